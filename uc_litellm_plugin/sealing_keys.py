"""Where an operator keeps the sealing keys: in a `.env` file, or in a file of their own (`UC_SEALING_KEYS_FILE`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from . import env_file, settings
from .errors import CommandRefused, SettingsError
from .vault import Vault, new_sealing_key

VARIABLE = "UC_SEALING_KEYS"


@dataclass(frozen=True)
class KeyFile:
    """A file with sealing keys, newest first, separated by commas.

    Attributes
    ----------
    is_env
        Whether it is a `.env` file, in which they are the value of `UC_SEALING_KEYS`.
    """

    path: Path
    is_env: bool

    def keys(self) -> list[SecretStr]:
        """The keys in it; empty when there is no such file."""
        text = env_file.read(self.path).get(VARIABLE, "") if self.is_env else _read(self.path)
        return [SecretStr(key.strip()) for key in text.split(",") if key.strip()]

    def add(self, present: Sequence[SecretStr], *, last: bool) -> Vault:
        """Make a new key and write it with those that are present, which must not be lost.

        Parameters
        ----------
        present
            The keys that the proxy has now, wherever they are kept.
        last
            After the others: it opens and does not seal yet.

        Returns
        -------
        Vault
            With the keys as they stand in the file now.
        """
        with env_file.only_one_at_a_time(self.path):
            kept = _distinct([*present, *self.keys()])
            made = SecretStr(new_sealing_key())
            return self._write([*kept, made] if last else [made, *kept])

    def drop(self, key_id: str) -> Vault:
        """Take the key with this fingerprint out of the file; the first one stays, and there is always one."""
        with env_file.only_one_at_a_time(self.path):
            chosen, others = self._parted(key_id)
            if chosen == self.keys()[0]:
                raise CommandRefused(
                    f"{key_id} is the newest sealing key, which seals: make another with `uc-litellm vault key` first.",
                    code="newest_sealing_key",
                )
            return self._write(others)

    def promote(self, key_id: str) -> Vault:
        """Put the key with this fingerprint first: it seals from now on."""
        with env_file.only_one_at_a_time(self.path):
            chosen, others = self._parted(key_id)
            return self._write([chosen, *others])

    def _parted(self, key_id: str) -> tuple[SecretStr, list[SecretStr]]:
        """The key with this fingerprint, and the others in their order."""
        kept = _distinct(self.keys())
        for key in kept:
            if Vault([key]).newest == key_id:
                return key, [other for other in kept if other != key]
        raise CommandRefused(f"{self.path} holds no sealing key {key_id!r}.", code="unknown_sealing_key")

    def _write(self, keys: Sequence[SecretStr]) -> Vault:
        # Made first, so that nothing is written beside what is malformed.
        vault = Vault(keys)
        text = ",".join(key.get_secret_value() for key in keys)
        if self.is_env:
            env_file.replace(self.path, {VARIABLE: text})
        else:
            env_file.write_private(self.path, f"{text}\n")
        return vault


def configured_file(environ: Mapping[str, str], file: Path | None) -> KeyFile:
    """The file an operator names, else the one `UC_SEALING_KEYS_FILE` names, else `.env`."""
    if file is not None:
        return KeyFile(file, is_env=file.suffix == ".env" or file.name.startswith(".env"))
    named = environ.get(f"{VARIABLE}_FILE")
    return KeyFile(Path(named).expanduser(), is_env=False) if named else KeyFile(Path(env_file.NAME), is_env=True)


def configured_keys(environ: Mapping[str, str]) -> tuple[SecretStr, ...]:
    """The sealing keys that the proxy has with this environment; a file that is yet to be made holds none."""
    named = environ.get(f"{VARIABLE}_FILE")
    is_to_be_made = named is not None and not Path(named).expanduser().exists()
    return settings.load({**environ, f"{VARIABLE}_FILE": ""} if is_to_be_made else environ).sealing_keys


def _distinct(keys: Sequence[SecretStr]) -> list[SecretStr]:
    return [SecretStr(text) for text in dict.fromkeys(key.get_secret_value() for key in keys)]


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file.absolute()} cannot be read: {error}") from None
