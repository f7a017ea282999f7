"""Settlements that PostgreSQL did not take in time, kept on disk until it does.

A segment is an append-only file of one process, locked by it as long as it lives. A record is a line: the CRC-32 of
its JSON in eight hex digits, a space, the JSON. An append is fsynced before it counts. Segments whose lock is free
belong to dead processes and are adopted by whoever comes first. A line that does not match its CRC (a torn write) is
cut out, kept beside the segment as `.corrupt`, and reported; it is never fatal. Settling twice is harmless: the
database knows each by its hold id.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)

Record = dict[str, Any]

SUFFIX = ".outbox"

# What a file says that another process has settled meanwhile, or whose directory somebody has replaced.
_GONE = (FileNotFoundError, NotADirectoryError)


class OutboxFull(OSError):
    """The outbox holds as many bytes as it may."""


@dataclass(frozen=True)
class Waiting:
    """What PostgreSQL has yet to take.

    Attributes
    ----------
    size
        Bytes in all segments.
    age_s
        Seconds since the oldest record was begun, 0 when none waits.
    """

    size: int
    age_s: float


class Outbox:
    """The segments in one directory. Its methods block on the disk; callers run them in a thread.

    Parameters
    ----------
    directory
        Must outlive the machine's restarts; is made if missing.
    most_bytes
        How much all segments together may hold before new calls are refused.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._segment: Segment | None = None
        # Appends and flushes run in different threads; a segment must not be flushed away under an append.
        self._lock = threading.Lock()

    def check(self) -> Waiting:
        """Make sure a record could be written now; what waits there already.

        Raises
        ------
        OSError
            The directory cannot be written, or is full.
        """
        waiting = self.waiting()
        if waiting.size >= self._most_bytes:
            raise OutboxFull(f"the outbox {self._directory} holds its {self._most_bytes} bytes; is PostgreSQL back?")
        with self._lock:
            self._segment = self._segment or self._create()
        return waiting

    def append(self, records: Sequence[Record]) -> None:
        """Write records so that they survive a crash of the machine.

        Raises
        ------
        OSError
            They could not be written; none counts.
        """
        with self._lock:
            self._segment = self._segment or self._create()
            self._append(self._segment, records)

    def _append(self, segment: Segment, records: Sequence[Record]) -> None:
        try:
            segment.append(records)
        except OSError:
            # Never write to that file again: its state is in doubt. What it held before is flushed as any other.
            self._segment = None
            segment.release()
            raise

    def claim(self) -> Iterator[Segment]:
        """Segments to be settled: this process's own, closed for writing, and those of dead processes."""
        with self._lock:
            own = self._segment if self._segment and not self._segment.is_empty() else None
            self._segment = self._segment if own is None else None
        if own is not None:
            yield own
        for path in self._paths():
            if (file := _lock(path)) is not None:
                yield Segment(path, file)

    def waiting(self) -> Waiting:
        """What waits in all segments."""
        stats = list(self._stats())
        oldest = min((born for size, born in stats if size), default=None)
        return Waiting(sum(size for size, _ in stats), 0.0 if oldest is None else max(0.0, time.time() - oldest))

    def _create(self) -> Segment:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            path = self._directory / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_still(path, file):
                _sync_directory(self._directory)
                return Segment(path, file)
            file.close()  # Another process took the empty file for a dead one's before it was locked.

    def _paths(self) -> list[Path]:
        # A beat looks every second, and `Path.glob` lets go of the interpreter for each name.
        try:
            return [self._directory / name for name in sorted(os.listdir(self._directory)) if name.endswith(SUFFIX)]
        except _GONE:
            return []

    def _stats(self) -> Iterator[tuple[int, float]]:
        for path in self._paths():
            try:
                found = path.stat()
            except _GONE:
                continue
            yield found.st_size, found.st_mtime


class Segment:
    """One file, locked by us until it is deleted or released."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    def append(self, records: Sequence[Record]) -> None:
        """Write records and wait until the disk has them; on OSError none counts."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(b"".join(_encode(record) for record in records))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # If it cannot be taken back, its CRC gives a torn record away.
                os.ftruncate(self._file.fileno(), end)
            raise

    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return self._file.seek(0, os.SEEK_END) == 0

    def records(self) -> list[Record]:
        """All records whose CRC is right; the others are set aside."""
        self._file.seek(0)
        records, corrupt = [], []
        for line in self._file:
            record = _decode(line)
            if record is None:
                corrupt.append(line)
            else:
                records.append(record)
        if corrupt:
            self._set_aside(corrupt)
        return records

    def delete(self) -> None:
        """All its records are settled. A file that stays is settled once more, which changes nothing."""
        try:
            self.path.unlink()
        except _GONE:
            pass
        except OSError as error:
            logger.error("outbox segment %s is settled and cannot be deleted: %s", self.path, error)
        finally:
            self._file.close()

    def release(self) -> None:
        """Leave it for a later try."""
        with contextlib.suppress(OSError):  # Closing writes what is buffered, which a full disk refuses again.
            self._file.close()

    def _set_aside(self, lines: list[bytes]) -> None:
        aside = self.path.with_suffix(".corrupt")
        aside.write_bytes(b"".join(lines))
        logger.error("outbox segment %s had %d corrupt record(s), kept in %s", self.path.name, len(lines), aside)


def _encode(record: Record) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode(line: bytes) -> Record | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or len(checksum) != 8 or checksum != b"%08x" % zlib.crc32(body):
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None


def _lock(path: Path) -> BinaryIO | None:
    """Open a segment if nobody else has it."""
    try:
        file = path.open("r+b")
    except _GONE:
        return None
    except OSError as error:
        # It must not keep the others waiting: most likely another user's, who settles it.
        logger.error("outbox segment %s cannot be taken over: %s", path, error)
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if not _is_still(path, file):  # Deleted by the one who held the lock before us.
        file.close()
        return None
    return file


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Whether the path names this very file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except _GONE:
        return False


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
