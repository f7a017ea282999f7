"""When Python's garbage collector runs in a worker."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest

from uc_litellm_plugin import heap

# A finalizer like that of LiteLLM's stream wrapper, in a loop that sets variables. Without the collector in the loop,
# CPython 3.11 dies of it with 5, 17 and 25 variables (gh-148891).
FINALIZED = """
import asyncio, contextvars, gc, sys
from uc_litellm_plugin import heap

variables = [contextvars.ContextVar(str(number)) for number in range(int(sys.argv[1]))]
kept, at_work, torn = [], False, 0

class Stream:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        global torn
        torn += at_work
        for variable in variables:
            variable.set(object())
        kept.append([(object(), [number]) for number in range(20)])
        del kept[:-3]

async def main():
    global at_work
    gc.set_threshold(3, 10**6)
    task = asyncio.create_task(heap.collect_between_steps(lambda: True))
    await asyncio.sleep(0)
    for number in range(1, 1001):
        at_work = True
        Stream()
        for variable in variables:
            variable.set((number, variable))
        at_work = False
        if number % 50 == 0:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

asyncio.run(main())
gc.collect()
print(torn)
"""


@pytest.mark.parametrize("variables", [5, 17, 25])
def test_a_finalizer_that_sets_context_variables_is_harmless(variables: int) -> None:
    """No finalizer runs in the middle of a step of the loop, so the process lives."""
    command = [sys.executable, "-c", FINALIZED, str(variables)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


@pytest.mark.parametrize(
    ("counts", "idle", "generation"),
    [
        ((20_000, 0, 0), True, None),
        ((20_001, 0, 0), False, 0),
        ((0, 21, 0), False, 1),
        ((20_001, 21, 0), False, 1),
        ((0, 0, 6), False, None),
        ((0, 0, 6), True, 2),
        ((0, 0, 21), False, 2),
    ],
)
def test_what_is_due(counts: tuple[int, int, int], idle: bool, generation: int | None) -> None:
    """The oldest generation that is due is collected; the last one rather while nobody waits."""
    assert heap.due(counts, lambda: idle) == generation


async def test_it_collects_and_gives_back() -> None:
    """Cycles go while the loop turns, and Python's thresholds are as before in the end."""
    before, gone = gc.get_threshold(), asyncio.Event()

    class Cycle:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            gone.set()

    gc.collect()
    task = asyncio.create_task(heap.collect_between_steps(lambda: True))
    await asyncio.sleep(0)
    Cycle()
    ballast: list[list[int]] = [[] for _ in range(25_000)]
    await asyncio.wait_for(gone.wait(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(ballast) == 25_000
    assert gc.get_threshold() == before
