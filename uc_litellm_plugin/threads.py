"""Threads of our own for what waits for a disk.

LiteLLM prepares each attempt in a thread of the event loop's (litellm/main.py, `acompletion`). A job of ours there
makes the loop keep one thread more, which is woken with every attempt from then on and competes for the interpreter
with the one that has it; and a settlement on its way to the outbox would wait for its turn behind attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_FOR_DISKS = ThreadPoolExecutor(4, thread_name_prefix="uc-disk")


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(_FOR_DISKS, partial(work, *args, **kwargs))
