"""Sealing keys in files: made, put first or last, taken out, never lost and never shown."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pydantic import SecretStr

from uc_litellm_plugin import env_file, settings
from uc_litellm_plugin.errors import CommandRefused, SettingsError
from uc_litellm_plugin.sealing_keys import KeyFile, configured_file
from uc_litellm_plugin.vault import Vault, new_sealing_key


@pytest.fixture(params=["keys", "env"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> KeyFile:
    is_env = request.param == "env"
    return KeyFile(tmp_path / (".env" if is_env else "sealing-keys"), is_env=is_env)


def loaded(file: KeyFile) -> tuple[SecretStr, ...]:
    """The keys as the proxy would have them with this file."""
    environ = env_file.read(file.path) if file.is_env else {"UC_SEALING_KEYS_FILE": str(file.path)}
    return settings.load(environ).sealing_keys


def test_keys_come_first_or_last(file: KeyFile) -> None:
    """A new key is the newest, or the last one where it shall not seal yet; the proxy reads what was written."""
    first = file.add([], last=False)
    second = file.add(loaded(file), last=False)
    third = file.add(loaded(file), last=True)
    assert second.key_ids == (second.newest, first.newest)
    assert third.key_ids == (*second.key_ids, third.key_ids[-1])
    assert Vault(loaded(file)).key_ids == third.key_ids
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_keys_from_elsewhere_are_kept(file: KeyFile) -> None:
    """What the proxy has now goes into the file with the new key, once each, and so does what stood in the file."""
    stood = file.add([], last=False)
    present = [SecretStr(new_sealing_key()), *file.keys()]
    made = file.add(present, last=False)
    assert made.key_ids == (made.newest, Vault(present).newest, stood.newest)


def test_keys_made_at_once(file: KeyFile) -> None:
    """Of keys that commands make at the same moment none is lost."""
    together, made = threading.Barrier(6), list[str]()

    def make() -> None:
        together.wait()
        made.append(file.add([], last=False).newest)

    threads = [threading.Thread(target=make) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Vault(file.keys()).key_ids) == sorted(made)
    assert len(made) == together.parties


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A file that cannot be made is named."""
    with pytest.raises(SettingsError, match="nowhere"):
        KeyFile(tmp_path / "nowhere" / "keys", is_env=False).add([], last=False)


def test_dropping_a_key(file: KeyFile) -> None:
    """Any key but the newest can be taken out; an unknown one is named."""
    old = file.add([], last=False).newest
    new = file.add(file.keys(), last=False).newest
    with pytest.raises(CommandRefused, match="newest"):
        file.drop(new)
    assert file.drop(old).key_ids == (new,)
    with pytest.raises(CommandRefused, match=old):
        file.drop(old)
    assert Vault(file.keys()).key_ids == (new,)


def test_promoting_a_key(file: KeyFile) -> None:
    """A key that was put last is put first when all processes have it; the others keep their order."""
    first, second = file.add([], last=False).newest, file.add([], last=False).newest
    third = file.add([], last=True).key_ids[-1]
    assert file.promote(third).key_ids == (third, second, first)
    with pytest.raises(CommandRefused, match="nobody"):
        file.promote("nobody")


def test_nothing_is_written_beside_what_is_malformed(file: KeyFile) -> None:
    """A file with something else in it is not touched, and the message does not show it."""
    text = "UC_SEALING_KEYS=hunter2\n" if file.is_env else "hunter2"
    file.path.write_text(text)
    with pytest.raises(SettingsError, match="key 2 of 2") as refused:
        file.add([], last=False)
    assert "hunter2" not in str(refused.value)
    assert file.path.read_text() == text


def test_other_lines_of_an_env_file_stay(tmp_path: Path) -> None:
    """Of a .env file one line is written anew."""
    file = KeyFile(tmp_path / ".env", is_env=True)
    file.path.write_text("# mine\nLITELLM_MASTER_KEY=sk-1\n")
    file.add([], last=False)
    assert file.path.read_text().startswith("# mine\nLITELLM_MASTER_KEY=sk-1\nUC_SEALING_KEYS=")


@pytest.mark.parametrize(
    ("environ", "named", "path", "is_env"),
    [
        ({}, None, ".env", True),
        ({"UC_SEALING_KEYS_FILE": "/run/keys"}, None, "/run/keys", False),
        ({"UC_SEALING_KEYS_FILE": "/run/keys"}, "prod.env", "prod.env", True),
        ({}, ".env.local", ".env.local", True),
        ({}, "/etc/uc/sealing-keys", "/etc/uc/sealing-keys", False),
    ],
)
def test_which_file(environ: dict[str, str], named: str | None, path: str, is_env: bool) -> None:
    """The file that is named, else the one the proxy reads, else .env."""
    assert configured_file(environ, Path(named) if named else None) == KeyFile(Path(path), is_env=is_env)


def test_an_unreadable_file(tmp_path: Path) -> None:
    """A file that cannot be read is not taken for an empty one."""
    with pytest.raises(SettingsError, match="cannot be read"):
        KeyFile(tmp_path, is_env=False).keys()
