"""The `.env` file of the current directory: what the environment does not say, and secrets that were made here."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import SettingsError

NAME = ".env"

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*")


def environment(file: Path | None = None) -> dict[str, str]:
    """The process's environment, and from the file what is not set there."""
    return {**read(file or Path(NAME)), **{name: value for name, value in os.environ.items() if value}}


def read(file: Path) -> dict[str, str]:
    """The values of a `.env` file; empty when there is none. Quotes around a value are taken off."""
    return dict(parsed for line in _lines(file) if (parsed := _parse(line)))


def complete(file: Path, wanted: Mapping[str, Callable[[], str]]) -> dict[str, str]:
    """Make the values that the file lacks and add them to it, readable by its owner only.

    Parameters
    ----------
    wanted
        What makes each value, by name. Processes that do this at the same time end up with the same values.

    Returns
    -------
    dict
        The wanted values.
    """
    with only_one_at_a_time(file):
        present = read(file)
        made = {name: make() for name, make in wanted.items() if not present.get(name)}
        if made:
            replace(file, made)
        return {name: made.get(name) or present[name] for name in wanted}


def put(file: Path, name: str, value: str) -> None:
    """Set one value, keeping all other lines."""
    with only_one_at_a_time(file):
        replace(file, {name: value})


def replace(file: Path, values: Mapping[str, str]) -> None:
    """`put` for who is the only one at the time."""
    kept = [line for line in _lines(file.resolve()) if (_parse(line) or ("",))[0] not in values]
    write_private(file, "\n".join([*kept, *(f"{name}={value}" for name, value in values.items())]) + "\n")


def write_private(file: Path, text: str) -> None:
    """Write a new file beside it and rename that: nobody ever sees half of it, or with another mode than 0600."""
    target = file.resolve()
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f"{target.name}.", dir=target.parent)  # mkstemp makes it 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(target)
    except OSError as error:
        raise SettingsError(f"{target}: {error.strerror}; run this in a directory you may write to") from error


@contextmanager
def only_one_at_a_time(file: Path) -> Iterator[None]:
    """Nobody else changes a file of this directory meanwhile; the same process must not ask twice."""
    try:
        directory = os.open(file.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a file in a directory you may write to") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file.absolute()} cannot be read: {error}") from error


def _parse(line: str) -> tuple[str, str] | None:
    if not (match := _LINE.fullmatch(line)):
        return None
    name, value = match.groups()
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return name, value[1:-1] if quoted else value
