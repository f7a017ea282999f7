"""What waits in an outbox, seen from outside: nothing is locked, changed or kept from the workers."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandRefused
from .outbox import SUFFIX

CORRUPT = ".corrupt"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Backlog:
    """The state of an outbox directory.

    Attributes
    ----------
    segments, records, bytes
        Of the settlements that wait; empty segments are a live worker's and do not count.
    oldest_s
        Seconds since the segment that waits longest was last written, None when none waits. A worker begins a new
        segment every second or so while PostgreSQL is away.
    set_aside
        Files of torn or corrupt records, which wait for an operator.
    """

    directory: Path
    segments: int
    records: int
    bytes: int
    oldest_s: float | None
    set_aside: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, neither for PostgreSQL nor for an operator."""
        return not self.records and not self.set_aside


def survey(directory: Path) -> Backlog:
    """Look into an outbox directory; one that is missing is empty.

    Raises
    ------
    CommandRefused
        It cannot be read, most likely since it belongs to the proxy's user.
    """
    try:
        names = os.listdir(directory)
        found = [_segment(directory / name) for name in names if name.endswith(SUFFIX)]
    except FileNotFoundError:
        names, found = [], []
    except OSError as error:
        raise CommandRefused(
            f"The outbox {directory} cannot be read ({error.strerror}): run this as the proxy's user.",
            code="outbox_unreadable",
        ) from None
    waiting = [(records, size, written) for records, size, written in found if size]
    return Backlog(
        directory=directory,
        segments=len(waiting),
        records=sum(records for records, _, _ in waiting),
        bytes=sum(size for _, size, _ in waiting),
        oldest_s=max(0.0, time.time() - min(written for _, _, written in waiting)) if waiting else None,
        set_aside=sum(name.endswith(CORRUPT) for name in names),
    )


def _segment(path: Path) -> tuple[int, int, float]:
    """Records, bytes and the time of the last write; nothing for one that was settled in this moment."""
    records = size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                records += chunk.count(b"\n")
                size += len(chunk)
            return records, size, path.stat().st_mtime
    except FileNotFoundError:
        return 0, 0, 0.0
