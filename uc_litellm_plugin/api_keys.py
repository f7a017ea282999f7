"""API keys (app -> proxy): how one is made, what of it is stored, and what of it may be shown."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "sk-uc-"


def generate() -> str:
    """A new key with 256 random bits; whoever gets it is the only one who has it."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(api_key: str) -> str:
    """What is stored in its place: sha256 in hex. No salt and no stretching, since a key cannot be guessed.

    Lone surrogates (bytes of a header that are not UTF-8) are hashed like any other text, so that they match no key.
    """
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


def hint(api_key: str) -> str:
    """The last four characters, by which a person tells keys apart."""
    return api_key[-4:]
