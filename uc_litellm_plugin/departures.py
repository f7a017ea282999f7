"""Calls that end without anybody saying so: a client that is gone, a request that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from .call import Call
from .estimates import Estimate, Estimates
from .settlement import Settlement

CLIENT_LEFT = 499

# The loop alone would let go of them.
_ENDING: set[asyncio.Future[Any]] = set()


def watch(call: Call, settlement: Settlement, estimates: Estimates) -> None:
    """End a call with its request where no hook has: nobody takes its stream any more, a plain answer passed by unseen,
    or the request was cancelled before anything of its answer passed by.

    No hook hears of that: LiteLLM reads a stream's first event before it answers, and drops the stream when the client
    has left by then; it cancels one whose client leaves while its keepalives (`sse_keepalive_ping_interval_seconds`)
    are all that came.
    """

    def ended(request: asyncio.Task[Any]) -> None:
        call.over = True
        if call.ending is not None:
            return
        if call.delivery is not None:
            if not _hands_on(request):
                _begin(call.delivery.left())
        elif request.cancelled():
            _begin(left(call, settlement, estimates))
        elif call.unseen is not None:
            _begin(call.unseen())

    if (request := asyncio.current_task()) is not None:
        request.add_done_callback(ended)


def _hands_on(request: asyncio.Task[Any]) -> bool:
    """Whether a task only made the answer that another one sends: with keepalives LiteLLM has one for that
    (litellm/proxy/common_request_processing.py, `open_sse_before_first_byte`)."""
    return not request.cancelled() and request.exception() is None and request.result() is not None


def _begin(ending: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.ensure_future(ending)
    _ENDING.add(task)
    task.add_done_callback(_ENDING.discard)


async def left(call: Call, settlement: Settlement, estimates: Estimates) -> None:
    """The client has gone before the answer began: once a provider has the request its input is charged, and the whole
    where the provider has answered."""
    if call.unseen is not None:
        await call.unseen()
        return
    if not call.under_way:
        await settlement.release(call, CLIENT_LEFT, "client_disconnected")
        return
    message = "the client left before the answer"
    await estimates.charge(call, Estimate(status=CLIENT_LEFT, error_type="client_disconnected", error_message=message))
