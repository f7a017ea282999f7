"""A stream that LiteLLM opens without asking its provider, opened again at the next candidate while nothing came of it.

LiteLLM asks the provider of a streamed text completion when the first chunk is read, when its own retries and fallbacks
are over (litellm/router.py, `_atext_completion`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any


class Reopened:
    """A provider's stream, or the next provider's when the first chunk of the one before does not come.

    Parameters
    ----------
    stream
        The one that is open.
    reopen
        Takes the fault and opens another stream; raises the fault when there is nobody left to ask.
    """

    def __init__(self, stream: Any, reopen: Callable[[Exception], Awaitable[Any]]) -> None:
        # LiteLLM's name for what a stream wraps, so that the chunks it collects are found behind this one, too.
        self.completion_stream = stream
        self._reopen = reopen
        self._chunks: AsyncIterator[Any] | None = None
        self._has_begun = False
        self._first_fault: Exception | None = None

    def __aiter__(self) -> Reopened:
        return self

    async def __anext__(self) -> Any:
        while not self._has_begun:
            try:
                first = await self._source().__anext__()
            except StopAsyncIteration:
                raise
            except Exception as error:
                # Whatever the provider's fault is, the next one may not have it.
                self.completion_stream, self._chunks = await self._opened_after(error), None
            else:
                self._has_begun = True
                return first
        return await self._source().__anext__()

    async def _opened_after(self, error: Exception) -> Any:
        self._first_fault = self._first_fault or error
        try:
            return await self._reopen(error)
        except Exception:
            # Nobody is left. The client is told what the first one's fault was, as it is on LiteLLM's own way.
            raise self._first_fault from None

    def _source(self) -> AsyncIterator[Any]:
        if self._chunks is None:
            self._chunks = self.completion_stream.__aiter__()
        return self._chunks
