"""The `power_levels` of the settings file, live: what is edited there goes into the rows of the levels.

A row in the database is the one truth, the file and the row are two ways to edit it, and the last edit stands. When the
file was edited is told by how long ago this worker saw it change, which no clock of another machine can distort; of a
file that is read at the start, by its own time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from . import level_rows, settings
from .database import Database
from .errors import DatabaseError, DatabaseUnavailable, SettingsError
from .level_rows import Facts, LevelRows, Outcome
from .settings import Settings
from .threads import aside

logger = logging.getLogger(__name__)

# The file is looked at so often: the kernel's notifications are hardly sooner, and none come of a network mount or of a
# link to elsewhere. Seconds.
LOOK_EVERY_S = 0.25
# A file is read when it has been left alone for so long: some editors write in several steps. Seconds.
QUIET_S = 0.1
_QUIET_LOOKS = 20

# What of the settings is not a section of the file, and the one section that needs no restart.
_NO_RESTART = frozenset({"config_file", "state_dir", "database_url", "sealing_keys", "power_levels"})

Stamp = tuple[int, ...] | None
_UNREAD: Stamp = ()


@dataclass(frozen=True)
class Edit:
    """What the file says of a level.

    Attributes
    ----------
    modified
        The file's time, where it was read at the start.
    seen_s
        When its change was seen, where it changed since. Seconds of the monotonic clock.
    """

    values: Facts
    modified: datetime | None = None
    seen_s: float | None = None

    def age_s(self) -> float | None:
        """How long ago the change was seen. Seconds."""
        return None if self.seen_s is None else time.monotonic() - self.seen_s


class LevelFile:
    """The settings file of one worker, followed while it runs.

    Parameters
    ----------
    running
        The settings the process started with.
    database
        That of the worker; open when something is to be applied.
    """

    def __init__(self, running: Settings, database: Database) -> None:
        self._running = running
        self._rows = LevelRows(database)
        self._file = running.config_file
        self._named = _named(running)
        self._edits = {name: Edit(values, modified=_modified(self._file)) for name, values in self._named.items()}
        self._stamp = _UNREAD
        self._refused = ""
        self._restart: list[str] = []
        self._waits = False

    async def refresh(self) -> None:
        """Read the file if it changed, and `apply` it."""
        if (seen_s := await self._changed_s()) is not None:
            await self._read(seen_s)
        await self.apply()

    async def apply(self) -> None:
        """Apply what is not in the database yet; what cannot be applied, or not now, is logged."""
        for name, edit in tuple(self._edits.items()):
            try:
                outcome = await self._rows.apply(name, edit.values, edit.modified, edit.age_s())
            except DatabaseUnavailable as error:
                self._tell_waiting(error)
                return
            except DatabaseError as error:
                logger.error("%s: power_levels.%s is refused, its row stays: %s", self._file, name, error)
            else:
                await self._tell(name, edit.values, outcome)
            del self._edits[name]
        self._waits = False

    async def _changed_s(self) -> float | None:
        """When the file was first seen as it is now, once nobody is at it any more; None while it was read already."""
        stamp, seen_s = await self._look()
        for _ in range(_QUIET_LOOKS):
            if stamp == self._stamp:
                return None
            await asyncio.sleep(QUIET_S)
            again, again_s = await self._look()
            if again == stamp:
                self._stamp = stamp
                return seen_s
            stamp, seen_s = again, again_s
        return None

    async def _look(self) -> tuple[Stamp, float]:
        return await aside(_stamp, self._file), time.monotonic()

    async def _read(self, seen_s: float) -> None:
        environ = {"UC_CONFIG": str(self._file), "UC_STATE_DIR": str(self._running.state_dir)}
        try:
            found = await aside(settings.load, environ)
        except SettingsError as error:
            self._refuse(error)
            return
        self._refused = ""
        named = _named(found)
        edits = {name: Edit(values, seen_s=seen_s) for name, values in named.items() if values != self._named.get(name)}
        self._edits = {name: edit for name, edit in self._edits.items() if name in named} | edits
        self._named = named
        self._tell_restart(found)

    def _refuse(self, error: SettingsError) -> None:
        head, *faults = str(error).splitlines()
        message = f"{head} {'; '.join(fault.strip() for fault in faults)}".rstrip()
        if message != self._refused:
            self._refused = message
            logger.error("the edit is refused, what was read before stays: %s", message)

    def _tell_restart(self, found: Settings) -> None:
        sections = type(found).model_fields.keys() - _NO_RESTART
        changed = sorted(name for name in sections if getattr(found, name) != getattr(self._running, name))
        if changed and changed != self._restart:
            logger.warning("%s: the changes of %s need a restart of the proxy", self._file, ", ".join(changed))
        self._restart = changed

    def _tell_waiting(self, error: DatabaseUnavailable) -> None:
        if self._edits and not self._waits:
            self._waits = True
            logger.warning("%s: power_levels wait for PostgreSQL, %s: %s", self._file, ", ".join(self._edits), error)

    async def _tell(self, name: str, values: Facts, outcome: Outcome) -> None:
        if outcome == "older":
            logger.warning(
                "%s: power_levels.%s is older than the last edit of its row, which stands; edit one of them again",
                self._file, name,
            )  # fmt: skip
        if outcome != "applied":
            return
        logger.info("%s: power_levels.%s is applied: %s", self._file, name, ", ".join(values) or "nothing")
        with contextlib.suppress(DatabaseError):  # The edit stands, whether or not it can be doubted.
            for doubt in await self._rows.doubts(name, values):
                logger.warning("%s: %s", self._file, doubt)


def _named(found: Settings) -> dict[str, Facts]:
    return {name: level_rows.named(section) for name, section in found.power_levels.items()}


def _stamp(file: Path) -> Stamp:
    """What is another when the file is: None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _modified(file: Path) -> datetime:
    """When the file became what it is: written, or put in place by a link on its path."""
    times = [time.time()] if (stamp := _stamp(file)) is None else [stamp[3] / 1e9, *_link_times(file)]
    return datetime.fromtimestamp(max(times), timezone.utc)


def _link_times(file: Path) -> Iterable[float]:
    return (path.lstat().st_mtime for path in (file, *file.parents) if path.is_symlink())
