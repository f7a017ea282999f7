from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.appender import Appender
from uc_litellm_plugin import outbox as outbox_module
from uc_litellm_plugin.outbox import Outbox, OutboxFull, Record, Waiting

MB = 1_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox"


@pytest.fixture
def outbox(directory: Path) -> Outbox:
    return Outbox(directory, MB)


def records(*names: str) -> list[Record]:
    return [{"hold_id": name} for name in names]


def taken(outbox: Outbox) -> list[str]:
    """The hold ids of everything that can be claimed now, which is then gone."""
    names = []
    for segment in outbox.claim():
        names += [record["hold_id"] for record in segment.records()]
        segment.delete()
    return names


def segment_of(directory: Path) -> Path:
    """The only segment there."""
    (path,) = directory.glob("*.outbox")
    return path


@pytest.fixture
def appenders() -> Iterator[list[Appender]]:
    """Processes of this test, which end with it."""
    started: list[Appender] = []
    yield started
    for each in started:
        each.kill()


def test_what_was_appended_is_claimed_in_order(outbox: Outbox) -> None:
    """Records come back once, in the order they were written, over several appends."""
    outbox.append(records("a", "b"))
    outbox.append(records("c"))
    assert taken(outbox) == ["a", "b", "c"]
    assert taken(outbox) == []
    assert outbox.waiting() == Waiting(0, 0.0)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, written: list[Record]) -> None:
    """Whatever strings a record holds, line ends, NUL and surrogates included, it comes back the same."""
    outbox = Outbox(tmp_path_factory.mktemp("outbox"), MB)
    outbox.append(written)
    (segment,) = outbox.claim()
    assert segment.records() == written
    segment.delete()


def test_a_surrogate_survives(outbox: Outbox) -> None:
    """A lone surrogate, which no UTF-8 holds, comes back the same."""
    outbox.append([{"text": "\ud800\0\n"}])
    (segment,) = outbox.claim()
    assert segment.records() == [{"text": "\ud800\0\n"}]
    segment.delete()


def test_a_released_segment_waits(outbox: Outbox) -> None:
    """What could not be settled stays, and is claimed again with what came meanwhile."""
    outbox.append(records("a"))
    (segment,) = outbox.claim()
    outbox.append(records("b"))
    segment.release()
    assert taken(outbox) == ["b", "a"]


@pytest.mark.parametrize("kept", [0, 1, 9, 20, -1])
def test_a_torn_tail_is_cut_out(directory: Path, outbox: Outbox, kept: int) -> None:
    """A record cut anywhere is set aside and reported; those before it count."""
    outbox.append(records("whole"))
    outbox.append(records("torn"))
    path = segment_of(directory)
    whole, torn = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole + torn[:kept])
    assert taken(outbox) == ["whole"]
    aside = [each.read_bytes() for each in directory.glob("*.corrupt")]
    assert aside == ([torn[:kept]] if kept else [])


@pytest.mark.parametrize(
    "damaged",
    [b"\x00" * 40 + b"\n", b"\n", b"garbage\n", b"ffffffff {}\n", b"\xff\xfe\n", b'00000000 {"hold_id":"x"}\n'],
)
def test_a_damaged_line_does_not_hide_the_others(directory: Path, outbox: Outbox, damaged: bytes) -> None:
    """A line in the middle that does not match its checksum is set aside, and both its neighbours count."""
    outbox.append(records("before"))
    outbox.append(records("after"))
    path = segment_of(directory)
    before, after = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(before + damaged + after)
    assert taken(outbox) == ["before", "after"]
    assert [each.read_bytes() for each in directory.glob("*.corrupt")] == [damaged]


def test_each_bit_is_guarded(directory: Path, outbox: Outbox) -> None:
    """No single flipped bit of a record goes unnoticed."""
    outbox.append(records("a"))
    line = segment_of(directory).read_bytes()
    for at in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[at // 8] ^= 1 << at % 8
        assert outbox_module._decode(bytes(flipped)) is None, at


def test_a_dead_process_is_inherited(directory: Path, outbox: Outbox, appenders: list[Appender]) -> None:
    """The records of a process killed with -9 are adopted by the next one; while it lives, they are its own."""
    other = Appender(directory, "a", "b")
    appenders.append(other)
    assert taken(outbox) == []
    other.kill()
    assert taken(outbox) == ["a", "b"]
    assert list(directory.iterdir()) == []


def test_living_processes_keep_their_own(directory: Path, outbox: Outbox, appenders: list[Appender]) -> None:
    """Of two live processes and one dead one, only the dead one's records can be claimed."""
    appenders += [Appender(directory, "a"), Appender(directory, "b"), Appender(directory, "c")]
    appenders[1].kill()
    outbox.append(records("mine"))
    assert taken(outbox) == ["mine", "b"]
    assert len(list(directory.glob("*.outbox"))) == 2


def test_one_heir_only(directory: Path, appenders: list[Appender]) -> None:
    """Two processes that claim at once do not both get a dead one's records."""
    appenders.append(Appender(directory, "a"))
    appenders[0].kill()
    first, second = (list(Outbox(directory, MB).claim()) for _ in range(2))
    assert (len(first), len(second)) == (1, 0)
    first[0].release()
    assert taken(Outbox(directory, MB)) == ["a"]


def test_a_full_outbox_takes_no_new_calls(directory: Path) -> None:
    """At its limit the check fails, while a settlement under way is still written; emptied, it is free again."""
    outbox = Outbox(directory, 100)
    outbox.check()
    outbox.append(records("a" * 100))
    with pytest.raises(OutboxFull, match="100 bytes"):
        outbox.check()
    outbox.append(records("b"))
    assert taken(outbox) == ["a" * 100, "b"]
    outbox.check()


def test_a_directory_that_cannot_be_made(directory: Path, outbox: Outbox) -> None:
    """Where a file stands in place of the directory, the check and the append fail, and nothing counts as written."""
    directory.parent.mkdir()
    directory.write_text("in the way")
    for use in (outbox.check, lambda: outbox.append(records("a"))):
        with pytest.raises(OSError, match="exists"):
            use()
    directory.unlink()
    outbox.append(records("b"))
    assert taken(outbox) == ["b"]


def test_a_missing_directory_holds_nothing(outbox: Outbox) -> None:
    """Before the first record there is nothing to claim, to measure or to wait for."""
    assert taken(outbox) == []
    assert outbox.waiting() == Waiting(0, 0.0)


def test_others_cannot_read_it(directory: Path, outbox: Outbox) -> None:
    """Directory and segments are the owner's alone."""
    outbox.append(records("a"))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert segment_of(directory).stat().st_mode & 0o777 == 0o600


def test_synced_before_it_counts(directory: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append returns after the whole record, and the name of a new segment, have been fsynced."""
    synced: list[bytes | str] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append(path.name if path.is_dir() else path.read_bytes())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    outbox.append(records("a"))
    assert synced == ["outbox", segment_of(directory).read_bytes()]


def test_a_failed_sync_counts_for_nothing(directory: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be synced is taken back, and the next append begins a new segment."""
    outbox.append(records("a"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_space)
        with pytest.raises(OSError, match="space"):
            outbox.append(records("b"))
    outbox.append(records("c"))
    assert len(list(directory.glob("*.outbox"))) == 2
    assert sorted(taken(outbox)) == ["a", "c"]


def _no_space(handle: int) -> None:
    raise OSError(28, "no space left on device")


def test_an_append_during_a_claim_is_not_lost(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is being written while the segment is claimed, settled and deleted is found by a later claim."""
    outbox.append(records("a"))
    encode = outbox_module._encode
    under_way, go_on = threading.Event(), threading.Event()

    def slow(record: Record) -> bytes:
        under_way.set()
        go_on.wait(5)
        return encode(record)

    monkeypatch.setattr(outbox_module, "_encode", slow)
    found: list[str] = []
    writer = threading.Thread(target=outbox.append, args=(records("b"),))
    reader = threading.Thread(target=lambda: found.extend(taken(outbox)))
    writer.start()
    under_way.wait(5)
    reader.start()
    reader.join(0.2)  # A claim that waits for the append is right, so nobody can wait for its end here.
    go_on.set()
    writer.join()
    reader.join()
    assert sorted(found + taken(outbox)) == ["a", "b"]


def test_a_segment_taken_at_birth_is_not_lost(directory: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that adopts and deletes a segment between its creation and its lock takes no record with it."""
    flock = fcntl.flock
    thieves = [Outbox(directory, MB)]

    def raced(file: Any, operation: int) -> None:
        if thieves and not operation & fcntl.LOCK_NB:
            assert taken(thieves.pop()) == []
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", raced)
    outbox.append(records("a"))
    assert thieves == []
    assert json.loads(segment_of(directory).read_bytes()[9:]) == {"hold_id": "a"}
    assert taken(outbox) == ["a"]


def test_the_oldest_record_tells_the_age(directory: Path, outbox: Outbox) -> None:
    """Age counts from the oldest segment that holds anything; an empty one does not count."""
    outbox.check()
    assert outbox.waiting().age_s == 0.0
    old = directory / f"{10**9}-1-old.outbox"
    old.write_bytes(b"")
    assert outbox.waiting().age_s == 0.0
    old.write_bytes(b"x")
    os.utime(old, (10**9, 10**9))
    assert outbox.waiting().age_s > 10**8


def test_a_directory_that_is_replaced(directory: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks while somebody puts a file in the directory's place finds nothing, and no error."""
    outbox.append(records("a"))
    names = [path.name for path in directory.glob("*.outbox")]
    directory.rename(directory.with_name("away"))
    directory.write_text("in the way")
    monkeypatch.setattr(os, "listdir", lambda _: names)
    other = Outbox(directory, MB)
    assert (other.waiting().size, list(other.claim())) == (0, [])


def test_a_directory_that_is_replaced_before_a_segment_is_deleted(directory: Path, outbox: Outbox) -> None:
    """A settled segment that can no longer be deleted is no fault; where it stays, it is claimed once more."""
    outbox.append([{"n": 1}])
    (segment,) = outbox.claim()
    directory.rename(aside := directory.with_name("aside"))
    directory.touch()
    segment.delete()
    assert list(outbox.claim()) == []
    directory.unlink()
    aside.rename(directory)
    (again,) = outbox.claim()
    assert again.records() == [{"n": 1}]
    again.delete()


def test_a_segment_that_cannot_be_opened(directory: Path, outbox: Outbox) -> None:
    """What cannot be taken over keeps nobody else's settlements waiting."""
    dead = Outbox(directory, MB)
    dead.append(records("a"))
    (segment,) = dead.claim()
    segment.release()
    (directory / "0.outbox").mkdir()
    assert taken(outbox) == ["a"]
