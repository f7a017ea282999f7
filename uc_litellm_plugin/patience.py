"""How long to wait for PostgreSQL: time that passes while nobody is answered, as far as the event loop notices it."""

from __future__ import annotations

import asyncio
import sys
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
        self._timer: asyncio.Handle

    @property
    def is_over(self) -> bool:
        """Whether there is none left."""
        return self._left <= 0 or time.monotonic() >= self._ends

    def ask(self) -> None:
        """A connection is at hand, the statement goes out."""
        self._look_around()
        self.asked = True

    async def wait_for(self, work: Awaitable[T]) -> T:
        """The result of some work, which is cancelled when patience ends.

        It is done in the caller's own task: in one of its own it would wait for its turn behind all else that the
        event loop has to do, at the beginning and at the end.

        Raises
        ------
        asyncio.TimeoutError
            It ended first; `LONGEST_S` after the beginning at the latest, unless `seconds` are more.
        """
        end = _End()
        self._wait_a_little(end)
        try:
            return await work
        except asyncio.CancelledError:
            if end.is_ours():
                raise asyncio.TimeoutError from None
            raise
        finally:
            self._timer.cancel()
            end.is_ours()

    def _wait_a_little(self, end: _End) -> None:
        slice_s = max(0, min(_SLICE_S, self._left))
        self._timer = asyncio.get_running_loop().call_later(slice_s, self._waited, slice_s, end)

    def _waited(self, slice_s: float, end: _End) -> None:
        self._left -= slice_s
        if not self.asked:
            self._look_around()
        if self.is_over:
            # One turn later, after whoever has an answer that was read in this one.
            self._timer = asyncio.get_running_loop().call_soon(end.come)
        else:
            self._wait_a_little(end)

    def _look_around(self) -> None:
        if self._seen != (answers := self._answers()):
            self._seen = answers
            self._left = self.seconds


class _End:
    """A cancellation of the current task that can be told from anybody else's, as `asyncio.timeout` does it (3.11)."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._task = task
        self._has_come = False
        self._others = 0
        if sys.version_info >= (3, 11):
            self._others = task.cancelling()

    def come(self) -> None:
        """Cancel the task."""
        self._has_come = True
        self._task.cancel()

    def is_ours(self) -> bool:
        """Whether it came and nobody else cancels the task, too (which Python 3.10 does not say); asked once."""
        if not self._has_come:
            return False
        self._has_come = False
        return sys.version_info < (3, 11) or self._task.uncancel() <= self._others
