from __future__ import annotations

import threading
from pathlib import Path

import pytest

from uc_litellm_plugin import env_file
from uc_litellm_plugin.errors import SettingsError


def test_lines_as_people_write_them(tmp_path: Path) -> None:
    """Comments, quotes, `export` and blanks are understood; what is no assignment is passed over."""
    file = tmp_path / ".env"
    file.write_text("# a comment\n\nA=1\nexport B = 'two words'\nC=\"x=y\"\nD=\nnonsense\n")
    assert env_file.read(file) == {"A": "1", "B": "two words", "C": "x=y", "D": ""}


def test_the_real_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set is not replaced by the file's, an empty one is."""
    (tmp_path / ".env").write_text("SET=file\nEMPTY=file\nUNSET=file\n")
    monkeypatch.setenv("SET", "real")
    monkeypatch.setenv("EMPTY", "")
    environ = env_file.environment(tmp_path / ".env")
    assert (environ["SET"], environ["EMPTY"], environ["UNSET"]) == ("real", "file", "file")


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Missing values are added, readable by the owner only; all other lines stay as they were."""
    file = tmp_path / ".env"
    file.write_text("# mine\nA=1\n")
    file.chmod(0o644)
    assert env_file.complete(file, {"A": lambda: "2", "B": lambda: "3"}) == {"A": "1", "B": "3"}
    assert file.read_text() == "# mine\nA=1\nB=3\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_value_is_replaced(tmp_path: Path) -> None:
    """Setting a value anew leaves one line of it."""
    file = tmp_path / ".env"
    file.write_text("A=1\nB=2\nexport A=3\n")
    env_file.put(file, "A", "4")
    assert file.read_text() == "B=2\nA=4\n"


def test_a_linked_file_stays_linked(tmp_path: Path) -> None:
    """Where .env is a link, what it points to is written, not the link replaced."""
    (tmp_path / "real").touch()
    link = tmp_path / ".env"
    link.symlink_to(tmp_path / "real")
    env_file.put(link, "A", "1")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text() == "A=1\n"


def test_all_agree_on_one_secret(tmp_path: Path) -> None:
    """Whoever makes secrets at the same time ends up with the same ones."""
    together, got = threading.Barrier(8), set()

    def complete(number: int) -> None:
        together.wait()
        got.add(env_file.complete(tmp_path / ".env", {"KEY": lambda: str(number)})["KEY"])

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / ".env"]


def test_an_unreadable_file(tmp_path: Path) -> None:
    """A .env that is no text is an error that names it."""
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(SettingsError, match=r"\.env"):
        env_file.read(tmp_path / ".env")
