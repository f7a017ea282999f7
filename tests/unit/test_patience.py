from __future__ import annotations

import asyncio
import sys
import time

import pytest

from tests.pace import within
from uc_litellm_plugin import patience
from uc_litellm_plugin.patience import Patience


async def never() -> None:
    await asyncio.Event().wait()


async def gives_up_after(waiting: Patience, most_s: float) -> float:
    """The seconds after which patience ends, which are fewer than these."""
    started = time.monotonic()
    async with within(most_s):
        with pytest.raises(asyncio.TimeoutError):
            await waiting.wait_for(never())
    assert waiting.is_over
    return time.monotonic() - started


async def test_the_result_comes_through() -> None:
    """What the work returns is returned, what it raises is raised."""

    async def fail() -> None:
        raise ValueError("no")

    assert await Patience(1).wait_for(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="no"):
        await Patience(1).wait_for(fail())


async def test_it_ends() -> None:
    """Without any answer it lasts as long as it says."""
    assert await gives_up_after(Patience(0.3), 1) >= 0.3


async def test_answers_to_others_renew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """While others are answered it goes on, but not beyond the longest wait."""
    monkeypatch.setattr(patience, "LONGEST_S", 0.9)
    answers = iter(range(1000))
    assert await gives_up_after(Patience(0.3, lambda: next(answers)), 2) >= 0.9


async def test_a_statement_that_is_sent_has_its_own_time() -> None:
    """Answers to others do not help one's own statement."""
    answers = iter(range(1000))
    waiting = Patience(0.3, lambda: next(answers))
    waiting.ask()
    assert await gives_up_after(waiting, 1) >= 0.3


async def test_a_late_loop_does_not_count() -> None:
    """A second in which the event loop did not run is no second that PostgreSQL was given."""

    async def late() -> str:
        time.sleep(1)
        await asyncio.sleep(0.05)
        return "done"

    assert await Patience(0.5).wait_for(late()) == "done"


async def test_a_cancelled_caller_cancels_the_work() -> None:
    """Whoever stops waiting leaves nothing running behind, and it is over when they go."""
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    waiting = asyncio.ensure_future(Patience(5).wait_for(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_its_end_is_told_from_a_cancellation() -> None:
    """Who cancels the caller cancels it, also when patience ends in the same moment."""
    waiting = asyncio.ensure_future(Patience(0.01).wait_for(never()))
    await asyncio.sleep(0)
    # Its timer is due before the loop comes round, and so is this.
    asyncio.get_running_loop().call_later(0.005, waiting.cancel)
    time.sleep(0.05)
    # Python 3.10 does not count who cancels a task.
    with pytest.raises(asyncio.CancelledError if sys.version_info >= (3, 11) else asyncio.TimeoutError):
        await waiting


@pytest.mark.parametrize("leaves_with", [None, ValueError("closed")])
async def test_its_end_leaves_no_cancellation_behind(leaves_with: Exception | None) -> None:
    """What comes after it in the same task is not cancelled, however the work took its end."""

    async def work() -> None:
        try:
            await never()
        except asyncio.CancelledError:
            if leaves_with is not None:
                raise leaves_with from None
            raise

    with pytest.raises(type(leaves_with) if leaves_with else asyncio.TimeoutError):
        await Patience(0.01).wait_for(work())
    assert await asyncio.wait_for(asyncio.sleep(0.01, "whole"), 1) == "whole"
    if sys.version_info >= (3, 11):
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
