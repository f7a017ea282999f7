from __future__ import annotations

import hashlib
import re

from uc_litellm_plugin import api_keys


def test_a_key_is_long_random_and_recognisable() -> None:
    """Every key starts alike, so that scanners find leaked ones, and no two are the same."""
    keys = {api_keys.generate() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"sk-uc-[A-Za-z0-9_-]{43}", key) for key in keys)


def test_the_hash_is_plain_sha256() -> None:
    """What is stored can be checked with any tool; text that is not UTF-8 is hashed too instead of failing."""
    assert api_keys.hash_key("sk-uc-ä") == hashlib.sha256("sk-uc-ä".encode()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", api_keys.hash_key("\ud800"))


def test_the_hint_gives_little_away() -> None:
    """Four characters, the last ones."""
    assert api_keys.hint("sk-uc-abcdefgh") == "efgh"
