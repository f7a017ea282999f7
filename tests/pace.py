"""Seconds for bounds that must hold on any machine.

They are counted in beats. A busy machine comes back late from each of them, as it does from each step of what is
bounded, so that both last longer there; what takes longer than it may on a quiet machine is late on a busy one, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BEAT_S = 0.05


class Seconds:
    """So many seconds from now on, for tests without an event loop."""

    def __init__(self, count: float) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._pass, args=(_beats(count),), daemon=True).start()

    def _pass(self, beats: int) -> None:
        for _ in range(beats):
            time.sleep(BEAT_S)
        self._over.set()

    @property
    def are_over(self) -> bool:
        """Whether they have passed."""
        return self._over.is_set()


@asynccontextmanager
async def within(count: float) -> AsyncIterator[None]:
    """What is done in here takes fewer seconds of the running event loop than these."""
    passing = asyncio.create_task(_pass(_beats(count)))
    try:
        yield
        assert not passing.done(), f"it took more than {count} s"
    finally:
        passing.cancel()


async def _pass(beats: int) -> None:
    for _ in range(beats):
        await asyncio.sleep(BEAT_S)


def _beats(count: float) -> int:
    return round(count / BEAT_S)
