from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from uc_litellm_plugin import backlog
from uc_litellm_plugin.errors import CommandRefused
from uc_litellm_plugin.outbox import Outbox


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def test_nothing_waits(directory: Path) -> None:
    """A directory that is missing, or holds only a live worker's empty segment, is empty; nothing is made."""
    assert backlog.survey(directory).is_empty
    assert not directory.exists()
    outbox = Outbox(directory, 1000)
    outbox.check()
    found = backlog.survey(directory)
    assert (found.is_empty, found.segments, found.oldest_s) == (True, 0, None)


def test_what_waits_is_counted(directory: Path) -> None:
    """Segments, records and bytes of live and dead processes count, and the age is that of the oldest."""
    live, other = Outbox(directory, 10_000), Outbox(directory, 10_000)
    live.append([{"hold_id": "1"}, {"hold_id": "2"}])
    other.append([{"hold_id": "3"}])
    old = min(directory.iterdir())
    os.utime(old, (time.time() - 3600,) * 2)
    found = backlog.survey(directory)
    assert (found.segments, found.records, found.bytes) == (2, 3, live.waiting().size)
    assert found.oldest_s == pytest.approx(3600, abs=60)


def test_looking_locks_nobody_out(directory: Path) -> None:
    """A look changes no file, and the worker goes on to append and to claim what it wrote."""
    outbox = Outbox(directory, 10_000)
    outbox.append([{"hold_id": "1"}])
    before = [path.read_bytes() for path in directory.iterdir()]
    assert backlog.survey(directory).records == 1
    assert [path.read_bytes() for path in directory.iterdir()] == before
    outbox.append([{"hold_id": "2"}])
    claimed = [segment.records() for segment in outbox.claim()]
    assert claimed == [[{"hold_id": "1"}, {"hold_id": "2"}]]


def test_a_record_under_way_does_not_count(directory: Path) -> None:
    """A line without its end is being written, or torn; its bytes are there, the record is not yet."""
    Outbox(directory, 10_000).append([{"hold_id": "1"}])
    (segment,) = directory.iterdir()
    with segment.open("ab") as file:
        file.write(b"0000")
    assert backlog.survey(directory).records == 1


def test_corrupt_records_wait_for_an_operator(directory: Path) -> None:
    """What was set aside is counted, and the outbox is not empty while it is there."""
    directory.mkdir()
    (directory / "1-1-1.corrupt").write_text("torn")
    found = backlog.survey(directory)
    assert (found.records, found.set_aside, found.is_empty) == (0, 1, False)


def test_an_outbox_that_cannot_be_read(directory: Path) -> None:
    """It is told so, with the way out, not taken for an empty one."""
    directory.write_text("a file in its place")
    with pytest.raises(CommandRefused, match="as the proxy's user"):
        backlog.survey(directory)
