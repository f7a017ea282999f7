"""The vault: users' provider keys sealed with the operator's sealing keys. No other module imports cryptography.

A provider key is a Fernet token (https://github.com/fernet/spec) under a key of its own, which HKDF-SHA256 (RFC 5869)
derives from a sealing key for one purpose, user and provider. A token that is moved to another user's or provider's row
does not open. What stays in memory is the sealing keys; neither derived keys nor plaintexts are kept.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, SupportsIndex

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from .database import Database
from .errors import DamagedKey, SettingsError, UnknownSealingKey

logger = logging.getLogger(__name__)

PURPOSE = "api_key"

_VERSION = "uc-vault-1"
_SEALING_KEY_BYTES = 32
_KEY_ID_BYTES = 6
# Of 32 random bytes fewer than this are distinct with a probability below 1e-24.
_FEWEST_DISTINCT = 12
_IN_USE = "SELECT key_id, count(*) AS keys FROM user_provider_keys GROUP BY key_id ORDER BY key_id"


class Secret:
    """A text that shows itself to `reveal()` only: not to repr, str, format, logging, JSON, copies or pickle.

    Parameters
    ----------
    text
        The plaintext.
    """

    __slots__ = ("_text",)
    # Equal secrets must not be found by their hash.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The plaintext. Hand it on; keep it in nothing that outlives the call."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __format__(self, _: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self._text), _bytes(other._text))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _: object) -> Secret:
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret has no state to show")

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


@dataclass(frozen=True)
class Sealed:
    """A sealed provider key, as its row keeps it.

    Attributes
    ----------
    key_id
        Which sealing key sealed it (`user_provider_keys.key_id`).
    token
        The ciphertext (`user_provider_keys.encrypted_api_key`).
    """

    key_id: str
    token: str = field(repr=False)


def purpose_of(api_base: str | None) -> str:
    """What a provider key is sealed for: an address of its owner's is part of it, so that no other can be put in."""
    return PURPOSE if api_base is None else f"{PURPOSE} at {api_base}"


class KeyService(Protocol):
    """What seals and opens provider keys: the `Vault` here, or one that takes its sealing keys from elsewhere.

    Both methods are called while a client waits and must not wait for a network: a service unwraps its sealing keys
    when the process starts. docs/byok.md says how.
    """

    def seal(self, user_id: str, provider: str, plaintext: Secret, purpose: str = PURPOSE) -> Sealed:
        """Seal a provider key for this user, provider and purpose."""

    def open(self, user_id: str, provider: str, sealed: Sealed, purpose: str = PURPOSE) -> Secret:
        """Open it; raises `VaultError` where it was not sealed for the same, or not by this service."""


@dataclass(frozen=True)
class _SealingKey:
    id: str
    root: bytes = field(repr=False)

    def fernet(self, user_id: str, provider: str, purpose: str) -> Fernet:
        info = _framed(_VERSION, purpose, user_id, provider)
        return Fernet(base64.urlsafe_b64encode(_derive(self.root, 32, info)))


class Vault:
    """Seals and opens provider keys with local sealing keys.

    Parameters
    ----------
    sealing_keys
        Newest first: the first one seals, each opens what it sealed. The order of the others does not matter.

    Raises
    ------
    SettingsError
        There is none, or one is malformed.
    """

    def __init__(self, sealing_keys: Sequence[SecretStr]) -> None:
        if not sealing_keys:
            raise SettingsError(
                "There is no sealing key, so provider keys can be neither stored nor used: set UC_SEALING_KEYS, or "
                "UC_SEALING_KEYS_FILE to a file with it. `uc-litellm vault key` makes one."
            )
        parsed = [_parse(key, f"{place} of {len(sealing_keys)}") for place, key in enumerate(sealing_keys, start=1)]
        self._keys = {key.id: key for key in parsed}

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The fingerprints of the sealing keys, newest first."""
        return tuple(self._keys)

    @property
    def newest(self) -> str:
        """The fingerprint of the sealing key that seals."""
        return self.key_ids[0]

    def seal(self, user_id: str, provider: str, plaintext: Secret, purpose: str = PURPOSE) -> Sealed:
        """Seal a provider key with the newest sealing key.

        Parameters
        ----------
        user_id, provider, purpose
            What it is bound to: it opens for the same three only.

        Returns
        -------
        Sealed
            For the same plaintext another token each time.
        """
        fernet = self._keys[self.newest].fernet(user_id, provider, purpose)
        return Sealed(self.newest, fernet.encrypt(_bytes(plaintext.reveal())).decode())

    def open(self, user_id: str, provider: str, sealed: Sealed, purpose: str = PURPOSE) -> Secret:
        """The provider key in a row.

        Raises
        ------
        UnknownSealingKey
            It was sealed with a key that is not among the sealing keys.
        DamagedKey
            The token was altered or cut, or belongs to another user, provider or purpose.
        """
        fernet = self._key(sealed).fernet(user_id, provider, purpose)
        token = _canonical(sealed.token)
        try:
            # Strict: only what `seal` took comes out.
            return Secret(fernet.decrypt(token).decode("utf-8", "surrogatepass"))
        except (InvalidToken, UnicodeDecodeError):
            # The cause is cut off: it would carry bytes of the row into tracebacks.
            raise DamagedKey from None

    def reseal(self, user_id: str, provider: str, sealed: Sealed, purpose: str = PURPOSE) -> Sealed:
        """The same provider key under the newest sealing key; raises as `open`."""
        kept, newest = self._key(sealed), self._keys[self.newest]
        ring = MultiFernet([key.fernet(user_id, provider, purpose) for key in (newest, kept)])
        token = _canonical(sealed.token)
        try:
            return Sealed(newest.id, ring.rotate(token).decode())
        except InvalidToken:
            raise DamagedKey from None

    def _key(self, sealed: Sealed) -> _SealingKey:
        if (key := self._keys.get(sealed.key_id)) is None:
            raise UnknownSealingKey(sealed.key_id)
        return key


async def check_at_start(
    database: Database, sealing_keys: Sequence[SecretStr], *, enabled: bool = True
) -> Vault | None:
    """The vault that a process works with, before it takes requests.

    Parameters
    ----------
    enabled
        The setting `byok.enabled`; where it is off, no provider key is opened and nothing is asked.

    Returns
    -------
    Vault or None
        None where there is neither a sealing key nor a provider key, or `enabled` is off.

    Raises
    ------
    SettingsError
        Provider keys are stored and no sealing key is set, or one is malformed.
    DatabaseUnavailable
        PostgreSQL cannot be asked.
    """
    if not enabled:
        return None
    in_use = {row["key_id"]: row["keys"] for row in await database.fetch(_IN_USE, idempotent=True)}
    if in_use and not sealing_keys:
        raise SettingsError(
            f"{sum(in_use.values())} provider key(s) of users are stored and no sealing key is set: set "
            f"UC_SEALING_KEYS (or UC_SEALING_KEYS_FILE) to what sealed them, the id(s) {', '.join(in_use)}; or set "
            "byok.enabled to false, which leaves them unused."
        )
    vault = Vault(sealing_keys) if sealing_keys else None
    for key_id in [] if vault is None else sorted(set(in_use) - set(vault.key_ids)):
        # Not fatal: everybody else's calls go on.
        logger.critical("%d provider key(s): %s", in_use[key_id], UnknownSealingKey(key_id))
    return vault


def new_sealing_key() -> str:
    """A random sealing key: 32 bytes in URL-safe base64, the form of a Fernet key."""
    return base64.urlsafe_b64encode(os.urandom(_SEALING_KEY_BYTES)).decode()


def _parse(key: SecretStr, place: str) -> _SealingKey:
    root = _decode(key.get_secret_value().strip())
    if root is None or len(root) != _SEALING_KEY_BYTES:
        raise SettingsError(
            f"UC_SEALING_KEYS: key {place} is no sealing key, which is {_SEALING_KEY_BYTES} random bytes in URL-safe "
            "base64 (44 characters); several are separated by commas. `uc-litellm vault key` makes one."
        )
    if len(set(root)) < _FEWEST_DISTINCT:
        raise SettingsError(f"UC_SEALING_KEYS: key {place} is not random. `uc-litellm vault key` makes one.")
    return _SealingKey(_derive(root, _KEY_ID_BYTES, _framed(_VERSION, "key-id")).hex(), root)


def _decode(text: str) -> bytes | None:
    padded = text if text.endswith("=") else text + "=" * (-len(text) % 4)
    try:
        decoded = base64.urlsafe_b64decode(padded)
    except ValueError:
        return None
    # The decoder passes over what is no base64; a typo must not become another key.
    return decoded if base64.urlsafe_b64encode(decoded) == padded.encode() else None


def _canonical(token: str) -> bytes:
    """The token, if it is base64 as an encoder writes it: the decoder would pass over what does not belong there."""
    try:
        raw = token.encode("ascii")
        if base64.urlsafe_b64encode(base64.urlsafe_b64decode(raw)) == raw:
            return raw
    except (UnicodeEncodeError, binascii.Error):
        pass
    raise DamagedKey


def _derive(root: bytes, length: int, info: bytes) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=info).derive(root)


def _framed(*parts: str) -> bytes:
    """The parts one after the other, each after its length in 4 bytes, so that no two lists give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in map(_bytes, parts))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
