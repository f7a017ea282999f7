from __future__ import annotations

import asyncio
import time

import pytest

from uc_litellm_plugin import patience
from uc_litellm_plugin.patience import Patience


async def never() -> None:
    await asyncio.Event().wait()


async def gives_up_after(waiting: Patience) -> float:
    started = time.monotonic()
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
    assert 0.3 <= await gives_up_after(Patience(0.3)) < 1


async def test_answers_to_others_renew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """While others are answered it goes on, but not beyond the longest wait."""
    monkeypatch.setattr(patience, "LONGEST_S", 0.9)
    answers = iter(range(1000))
    assert 0.9 <= await gives_up_after(Patience(0.3, lambda: next(answers))) < 2


async def test_a_statement_that_is_sent_has_its_own_time() -> None:
    """Answers to others do not help one's own statement."""
    answers = iter(range(1000))
    waiting = Patience(0.3, lambda: next(answers))
    waiting.ask()
    assert 0.3 <= await gives_up_after(waiting) < 1


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
