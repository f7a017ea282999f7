"""Python's garbage collector in a worker: what it looks through, and when."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable

# Before 3.12 a collection runs inside whatever allocation asks for it, so also inside ContextVar.set(). A finalizer
# that sets a variable of the same context then leaves CPython with freed memory, and the process dies: gh-148891.
# LiteLLM has such a finalizer, CustomStreamWrapper.__del__ (litellm_core_utils/streaming_handler.py).
SAFE_ANYWHERE = sys.version_info >= (3, 12)

_EVERY_S = 0.1
_THRESHOLDS = (20_000, 20, 20)
# Where nobody waits, a full collection costs nobody anything.
_IDLE_FULL = 5
# Should the loop stand still, memory is worth more than the rest.
_EMERGENCY = 2_000_000


def freeze() -> int:
    """Leave all objects that exist now out of every later collection; their number.

    LiteLLM's modules, models and routes are some 900,000 objects that never go, and a full collection, which looks
    through them, stops the worker for a third of a second. It concerns the whole process. What is freed by reference
    counting still is; only cycles among these objects are not collected any more.
    """
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()


async def collect_between_steps(is_idle: Callable[[], bool]) -> None:
    """Collect garbage from the event loop, where no code is half way through a step, instead of in any allocation.

    Runs until it is cancelled; then Python's own thresholds hold again. It concerns the whole process.

    Parameters
    ----------
    is_idle
        Whether nobody waits for this worker; full collections are made then, if they can be.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(_EMERGENCY, *thresholds[1:])
    try:
        while True:
            await asyncio.sleep(_EVERY_S)
            generation = due(gc.get_count(), is_idle)
            if generation is not None:
                gc.collect(generation)
    finally:
        gc.set_threshold(*thresholds)


def due(counts: tuple[int, int, int], is_idle: Callable[[], bool]) -> int | None:
    """The generation to collect: the oldest that has reached its threshold, as CPython chooses (gcmodule.c)."""
    young, middle, old = counts
    if old > _THRESHOLDS[2] or (old > _IDLE_FULL and is_idle()):
        return 2
    if middle > _THRESHOLDS[1]:
        return 1
    return 0 if young > _THRESHOLDS[0] else None
