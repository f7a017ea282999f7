"""Sealed keys: their format stays, and nothing but the right row under the right sealing key opens."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
import logging
import pickle
import re
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from uc_litellm_plugin import vault as vault_module
from uc_litellm_plugin.errors import DamagedKey, SettingsError, UnknownSealingKey, VaultError
from uc_litellm_plugin.vault import Sealed, Secret, Vault, new_sealing_key

OLD = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
NEW = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
PLAIN = "sk-known-answer-0123456789"

# key_id, user, provider, plaintext, token: made once, at time 1750000000 with the bytes 0 to 15 as its IV.
KNOWN = [
    ("53dae81cfabf", "ann", "openai", PLAIN,
     "gAAAAABoTuGAAAECAwQFBgcICQoLDA0OD6KiTXy7erXiIFt8Ju7TQXF2X-ftj4GW6JLS8xraYTh7-Xj2j5RGW7PZbprRjW-26wtc41fwm7mc96iD"
     "K9o9DzI="),
    ("75b938297c98", "zoë 🦊", "anthropic", "sk-ant-known-answer-é",
     "gAAAAABoTuGAAAECAwQFBgcICQoLDA0ODx2-S9F7_5mUw2txUdO55JqmQ2E78sZCYWf7D3tYHvRppzuE4XWhFAAsYRIXxh6UTSnWjfuJbvASVjYc"
     "tJSCzv0="),
]  # fmt: skip


def vault_of(*keys: str) -> Vault:
    return Vault([SecretStr(key) for key in keys])


VAULT = vault_of(OLD, NEW)
SEALED = Sealed(KNOWN[0][0], KNOWN[0][4])


@pytest.mark.parametrize(("key_id", "user", "provider", "plaintext", "token"), KNOWN)
def test_known_answers(key_id: str, user: str, provider: str, plaintext: str, token: str) -> None:
    """Tokens that were sealed once open for ever, under the same fingerprint."""
    assert VAULT.key_ids == (KNOWN[0][0], KNOWN[1][0])
    assert VAULT.open(user, provider, Sealed(key_id, token)).reveal() == plaintext


@pytest.mark.parametrize(("key_id", "user", "provider", "plaintext", "token"), KNOWN)
def test_the_format_as_documented(key_id: str, user: str, provider: str, plaintext: str, token: str) -> None:
    """The standard library's HMAC and any Fernet open a token, with what docs/byok.md says and nothing else."""

    def hkdf(root: bytes, info: bytes, length: int) -> bytes:
        extracted = hmac.digest(bytes(32), root, "sha256")
        return hmac.digest(extracted, info + b"\x01", hashlib.sha256)[:length]

    def info(*parts: str) -> bytes:
        return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)

    roots = [base64.urlsafe_b64decode(key) for key in (OLD, NEW)]
    (root,) = [root for root in roots if hkdf(root, info("uc-vault-1", "key-id"), 6).hex() == key_id]
    key = base64.urlsafe_b64encode(hkdf(root, info("uc-vault-1", "api_key", user, provider), 32))
    assert Fernet(key).decrypt(token).decode() == plaintext


@given(user=st.text(min_size=1), provider=st.text(min_size=1), plaintext=st.text())
def test_round_trip(user: str, provider: str, plaintext: str) -> None:
    """Whatever is sealed comes out again, for any user id and provider."""
    sealed = VAULT.seal(user, provider, Secret(plaintext))
    assert sealed.key_id == VAULT.newest
    assert VAULT.open(user, provider, sealed).reveal() == plaintext
    assert vault_of(NEW, OLD).reseal(user, provider, sealed).key_id == KNOWN[1][0]


def test_a_lone_surrogate_is_no_crash() -> None:
    """What Python can hold and UTF-8 cannot is sealed and opened all the same."""
    sealed = VAULT.seal("\ud800", "openai", Secret("\udfff"))
    assert VAULT.open("\ud800", "openai", sealed).reveal() == "\udfff"


@given(st.lists(st.text(), min_size=4, max_size=4), st.lists(st.text(), min_size=4, max_size=4))
def test_no_two_rows_share_a_key(one: list[str], other: list[str]) -> None:
    """However user, provider and purpose are cut, other parts give other keys: ('ab', 'c') is not ('a', 'bc')."""
    assert (vault_module._framed(*one) == vault_module._framed(*other)) is (one == other)


@pytest.mark.parametrize(
    ("user", "provider", "purpose"),
    [
        ("bob", "openai", "api_key"),
        ("ann", "anthropic", "api_key"),
        ("ann", "openai", "webhook"),
        ("annopenai", "", "api_key"),
        ("", "annopenai", "api_key"),
        ("openai", "ann", "api_key"),
        ("ann ", "openai", "api_key"),
        ("Ann", "openai", "api_key"),
        ("api_key", "openai", "ann"),
        ("ann\0openai", "", "api_key"),
    ],
)
def test_a_moved_row_does_not_open(user: str, provider: str, purpose: str) -> None:
    """A token opens for its own user, provider and purpose only, and is not resealed for others either."""
    for attempt in (VAULT.open, VAULT.reseal):
        with pytest.raises(DamagedKey):
            attempt(user, provider, SEALED, purpose)


def test_composed_and_decomposed_names_differ() -> None:
    """User ids are compared as the database does, by their characters and not by their looks."""
    sealed = VAULT.seal("zo\u00eb", "openai", Secret(PLAIN))
    with pytest.raises(DamagedKey):
        VAULT.open("zoe\u0308", "openai", sealed)


def test_every_flipped_bit_is_seen() -> None:
    """Of every character of a token each bit is flipped, of its bytes too; none opens."""
    raw = base64.urlsafe_b64decode(SEALED.token)
    texts = [
        SEALED.token[:place] + chr(ord(SEALED.token[place]) ^ 1 << bit) + SEALED.token[place + 1 :]
        for place in range(len(SEALED.token))
        for bit in range(8)
    ]
    flipped = [raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for at in range(len(raw)) for bit in range(8)]
    texts += [base64.urlsafe_b64encode(each).decode() for each in flipped]
    assert len(texts) > 1_500
    for text in texts:
        with pytest.raises(DamagedKey):
            VAULT.open("ann", "openai", Sealed(SEALED.key_id, text))


def test_every_truncation_is_seen() -> None:
    """A token cut at any length, from either end, does not open; nor does one with something added."""
    token = SEALED.token
    wrong = [token[:at] for at in range(len(token))] + [token[at:] for at in range(1, len(token) + 1)]
    wrong += [token + each for each in ("=", "A", "\n", " ", "\0", "é", token)] + [
        f" {token}",
        f"{token[:9]}\n{token[9:]}",
    ]
    for text in wrong:
        with pytest.raises(DamagedKey):
            VAULT.open("ann", "openai", Sealed(SEALED.key_id, text))


def test_a_wrong_fingerprint_is_not_guessed_around() -> None:
    """A row that names another of our sealing keys does not open with the one that would fit."""
    with pytest.raises(DamagedKey):
        VAULT.open("ann", "openai", Sealed(KNOWN[1][0], SEALED.token))


def test_sealing_keys_in_any_order() -> None:
    """The order of sealing keys changes which one seals, and nothing that is sealed."""
    for vault in (vault_of(OLD, NEW), vault_of(NEW, OLD), vault_of(new_sealing_key(), NEW, OLD), vault_of(OLD)):
        assert vault.open("ann", "openai", SEALED).reveal() == PLAIN
    assert vault_of(NEW, OLD).seal("ann", "openai", Secret("x")).key_id == KNOWN[1][0]


def test_a_sealing_key_removed_too_early() -> None:
    """The error names the missing key and the way out; with the key back, everything opens."""
    for attempt in (vault_of(NEW).open, vault_of(NEW).reseal):
        with pytest.raises(UnknownSealingKey, match=r"53dae81cfabf.*UC_SEALING_KEYS.*vault rotate") as refused:
            attempt("ann", "openai", SEALED)
        assert refused.value.key_id == "53dae81cfabf"
    assert vault_of(NEW, OLD).open("ann", "openai", SEALED).reveal() == PLAIN


def test_resealing() -> None:
    """Under the newest sealing key the plaintext is the same, and the old sealing key is needed no more."""
    resealed = vault_of(NEW, OLD).reseal("ann", "openai", SEALED)
    assert vault_of(NEW).open("ann", "openai", resealed).reveal() == PLAIN
    assert vault_of(NEW).reseal("ann", "openai", resealed) != resealed


@pytest.mark.parametrize(
    "key",
    [
        "",
        "short",
        "hunter2hunter2hunter2hunter2hunter2hunter2!!",
        OLD[:-2],
        OLD + "A",
        OLD[:-2] + "9=",
        f"{OLD[:20]}\n{OLD[20:]}",
        base64.urlsafe_b64encode(bytes(range(31))).decode(),
        base64.urlsafe_b64encode(bytes(range(33))).decode(),
        base64.b64encode(bytes(range(200, 232))).decode().replace("A", "+"),
        bytes(range(32)).hex(),
        base64.urlsafe_b64encode(bytes(32)).decode(),
        base64.urlsafe_b64encode(b"ab" * 16).decode(),
        "é" * 44,
    ],
)
def test_bad_sealing_keys_are_refused(key: str) -> None:
    """Short, long, malformed and made-up sealing keys stop the start; the message says which, and not what it is."""
    with pytest.raises(SettingsError, match=r"key 2 of 2.*vault key") as refused:
        vault_of(NEW, key)
    assert not key or key not in "".join(traceback.format_exception(refused.value))


def test_no_sealing_key() -> None:
    """Without any, the message names the variable and the command that makes one."""
    with pytest.raises(SettingsError, match=r"UC_SEALING_KEYS.*vault key"):
        Vault([])


def test_what_commands_and_people_make_is_taken() -> None:
    """A new key works, with and without its padding, and twice the same is one."""
    made = new_sealing_key()
    assert vault_of(made).key_ids == vault_of(made.rstrip("="), f" {made} ").key_ids
    assert vault_of(made).key_ids != vault_of(new_sealing_key()).key_ids


@dataclass(frozen=True)
class Bearer:
    """Somebody's dataclass with a secret in it."""

    name: str
    key: Secret


SHOWN: dict[str, Callable[[Secret], object]] = {
    "repr": repr,
    "str": str,
    "f-string": lambda key: f"{key} {key!r} {key!s} {key:>40}",
    "percent": lambda key: "%s %r" % (key, key),  # noqa: UP031
    "format": "{0} {0!r}".format,
    "containers": lambda key: repr([key, (key,), {"key": key}]),
    "dataclass": lambda key: repr(Bearer("ann", key)),
    "asdict": lambda key: repr(asdict(Bearer("ann", key))),
    "json": lambda key: json.dumps({"key": key}, default=str),
    "copy": lambda key: repr((copy.copy(key), copy.deepcopy({"key": [key]}))),
    "exception": lambda key: repr(ValueError(key)) + str(ValueError(key)),
    "dir": lambda key: repr([getattr(key, name) for name in dir(key) if name[:2] == "__" and name != "__getstate__"]),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_a_secret_does_not_show(shown: str) -> None:
    """However a secret is printed, formatted, copied or serialized, its text is not in it."""
    assert PLAIN not in str(SHOWN[shown](Secret(PLAIN)))


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        lambda key: pickle.dumps(Bearer("ann", key)),
        json.dumps,
        lambda key: key.__getstate__(),
        lambda key: key.__reduce__(),
        vars,
        list,
        hash,
        lambda key: "key: " + key,
        lambda key: ",".join([key]),
    ],
)  # fmt: skip
def test_a_secret_is_not_let_out(leak: Callable[[Secret], object]) -> None:
    """What would carry its text away fails, and the error does not show it."""
    with pytest.raises(TypeError) as refused:
        leak(Secret(PLAIN))
    assert PLAIN not in told(refused.value)


def told(error: BaseException) -> str:
    """All a report of an error could hold: its chain, its frames and their variables."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def test_secrets_are_compared_by_text() -> None:
    """Equal texts are equal secrets, and a secret is no text."""
    assert Secret(PLAIN) == Secret(PLAIN)
    assert Secret(PLAIN) != Secret("other")
    assert Secret(PLAIN) != PLAIN


def test_no_plaintext_in_errors_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails: neither the key nor a sealing key is in a log at DEBUG, an error, its causes or its frames."""
    caplog.set_level(logging.DEBUG)
    failures: list[Callable[[], Any]] = [
        lambda: VAULT.open("bob", "openai", SEALED),
        lambda: VAULT.reseal("bob", "openai", SEALED),
        lambda: VAULT.open("ann", "openai", Sealed(SEALED.key_id, SEALED.token[:-3])),
        lambda: vault_of(NEW).open("ann", "openai", SEALED),
        lambda: VAULT.open("ann", "openai", Sealed("nobody", SEALED.token)),
    ]
    reports = [repr(VAULT), repr(VAULT.seal("ann", "openai", Secret(PLAIN))), repr(vars(VAULT))]
    for fail in failures:
        with pytest.raises(VaultError) as refused:
            fail()
        assert refused.value.__cause__ is None
        reports += [told(refused.value), repr(refused.value), str(refused.value)]
    root = repr(base64.urlsafe_b64decode(OLD))[2:-1]
    for report in [*reports, caplog.text]:
        assert not re.search("|".join(map(re.escape, (PLAIN, OLD, root[:20]))), report)


def test_opening_is_fast() -> None:
    """A key opens within 100 microseconds, nothing of it being kept: the median of 2,000, some 20 on one core."""
    taken = []
    for _ in range(2_000):
        start = time.perf_counter_ns()
        VAULT.open("ann", "openai", SEALED)
        taken.append(time.perf_counter_ns() - start)
    print(f"open: median {statistics.median(taken) / 1000:.1f} us, 99 % {sorted(taken)[1980] / 1000:.1f} us")
    assert statistics.median(taken) < 100_000
