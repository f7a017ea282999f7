"""How long to wait for PostgreSQL: time that passes while nobody is answered, as far as the event loop notices it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

# The longest that anybody waits for a free connection while others are being answered, and the statement after it.
LONGEST_S = 10.0
_SLICE_S = 0.25


class Patience:
    """The patience of one caller.

    It is counted in slices, and a slice counts no more than its own length however late the event loop comes back from
    it: what was answered while the loop was busy elsewhere is read before anybody gives up. Until the caller's
    statement is sent, an answer to anybody else begins the count anew.

    Parameters
    ----------
    seconds
        How much there is.
    answers
        Counts what PostgreSQL has answered to anybody.

    Attributes
    ----------
    asked
        Whether the statement has been sent, so that its effect may be there although its answer is not.
    """

    def __init__(self, seconds: float, answers: Callable[[], int] = lambda: 0) -> None:
        self.seconds = seconds
        self.asked = False
        self._answers = answers
        self._seen = answers()
        self._left = seconds
        self._ends = time.monotonic() + max(seconds, LONGEST_S)

    @property
    def is_over(self) -> bool:
        """Whether there is none left."""
        return self._left <= 0 or time.monotonic() >= self._ends

    def ask(self) -> None:
        """A connection is at hand, the statement goes out."""
        self._look_around()
        self.asked = True

    async def wait_for(self, work: Awaitable[T]) -> T:
        """The result of some work, which is cancelled when patience ends, or the caller is cancelled.

        Raises
        ------
        asyncio.TimeoutError
            It ended first; `LONGEST_S` after the beginning at the latest, unless `seconds` are more.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done() and not self.is_over:
                await self._wait_a_little(task)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
                _ = task.cancelled() or task.exception()  # Looked at, or asyncio would complain that nobody did.
        if task.cancelled():
            raise asyncio.TimeoutError
        return task.result()

    async def _wait_a_little(self, task: asyncio.Future[T]) -> None:
        slice_s = min(_SLICE_S, self._left)
        await asyncio.wait([task], timeout=slice_s)
        self._left -= slice_s
        if not self.asked:
            self._look_around()

    def _look_around(self) -> None:
        if self._seen != (answers := self._answers()):
            self._seen = answers
            self._left = self.seconds
