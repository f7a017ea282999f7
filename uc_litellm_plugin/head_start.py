"""A call that is admitted while LiteLLM prepares its request: begun by the authentication, taken by the pre-call hook.

Between the two LiteLLM computes for longer than PostgreSQL takes to hold, so that the hold costs no waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from .call import Call
from .errors import UcError
from .requests import Inbound
from .routes import Endpoint

logger = logging.getLogger(__name__)


class HeadStart:
    """An admission that is under way for the request of the task that makes this.

    What it holds is given back unless the call is taken before the request ends: LiteLLM may refuse the request after
    its authentication, and the client may leave.

    Parameters
    ----------
    endpoint, sent, model
        What is admitted.
    admission
        Holds, and returns the call.
    give_back
        Frees what is held for a call that nobody takes; goes on when nobody awaits it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sent: Inbound,
        model: str,
        admission: Coroutine[Any, Any, Call],
        give_back: Callable[[Call], Awaitable[object]],
    ) -> None:
        self.model = model
        self._endpoint, self._sent = endpoint, sent
        self._give_back = give_back
        self._is_over = False
        self._admission = asyncio.ensure_future(admission)
        # asyncio would complain of a refusal that nobody waits for.
        self._admission.add_done_callback(lambda done: done.cancelled() or done.exception())
        if (request := asyncio.current_task()) is not None:
            request.add_done_callback(lambda _: self.drop())

    def waits_for(self, sent: Inbound) -> bool:
        """Whether it was begun for this request, and nobody has taken it."""
        return not self._is_over and sent is self._sent

    def is_for(self, endpoint: Endpoint, model: str) -> bool:
        """Whether it is what is asked for by now."""
        return (endpoint, model) == (self._endpoint, self.model)

    async def take(self) -> Call:
        """The call, for whoever asks first and even if the request ends meanwhile. Raises what the admission raises."""
        self._is_over = True
        try:
            # A client that leaves meanwhile must not break the statement off, and its connection with it.
            return await asyncio.shield(self._admission)
        except asyncio.CancelledError:
            self._admission.add_done_callback(self._dropped)
            raise

    async def withdraw(self) -> None:
        """Give back what is held, unless the call was taken; returns when its credits are there for another one."""
        if self._is_over:
            return
        await asyncio.wait([self._admission])
        if not self._is_over:
            self._is_over = True
            if self._admission.exception() is None:
                await self._give_back(self._admission.result())

    def drop(self) -> None:
        """Give back what is held by now or will be, unless the call was taken."""
        if not self._is_over:
            self._is_over = True
            self._admission.add_done_callback(self._dropped)

    def _dropped(self, admission: asyncio.Future[Call]) -> None:
        if admission.cancelled():
            return
        if (error := admission.exception()) is None:
            self._give_back(admission.result())
        elif not isinstance(error, UcError):
            logger.error("a call that nobody took could not be admitted", exc_info=error)


# Of the request that is being prepared.
UNDER_WAY: ContextVar[HeadStart | None] = ContextVar("uc_head_start", default=None)
