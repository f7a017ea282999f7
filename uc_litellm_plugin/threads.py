"""Threads of our own for what waits for a disk.

LiteLLM prepares each attempt in a thread of the event loop's (litellm/main.py, `acompletion`). A job of ours there
makes the loop keep one thread more, which is woken with every attempt from then on and competes for the interpreter
with the one that has it; and a settlement on its way to the outbox would wait for its turn behind attempts.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _made() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="uc-disk")


def _renew() -> None:
    """A forked process has the executor and none of its threads."""
    global _FOR_DISKS
    _FOR_DISKS = _made()


_FOR_DISKS = _made()
os.register_at_fork(after_in_child=_renew)


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(_FOR_DISKS, partial(work, *args, **kwargs))
