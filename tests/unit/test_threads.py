from __future__ import annotations

import asyncio
import multiprocessing
import threading

from uc_litellm_plugin.threads import aside


async def test_the_event_loop_goes_on() -> None:
    """Work that waits is done in a thread of ours, not in one of the loop's, and its result or error comes back."""
    gone_on = threading.Event()
    working = asyncio.ensure_future(aside(gone_on.wait, 30))
    await asyncio.sleep(0)
    gone_on.set()
    assert await working
    assert (await aside(threading.current_thread)).name.startswith("uc-disk")


def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those of the process that it was forked from are not there any more, though they were used before."""
    asyncio.run(aside(int))
    process = multiprocessing.get_context("fork").Process(target=_use_a_thread)
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0


def _use_a_thread() -> None:
    asyncio.run(aside(int))
