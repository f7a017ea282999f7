"""A stream on its way to the client: settled before its last word, and charged for what was delivered if it is cut."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio

from . import answers, chunks, dialects, routes
from .call import Answer, Call, Outcome
from .departures import CLIENT_LEFT
from .errors import status_of
from .estimates import Estimate, Estimates
from .settlement import Settlement

logger = logging.getLogger(__name__)

# A provider's finish is in one of these; LiteLLM does not collect the one that it makes up.
_LAST_CHUNKS = 4


def settled(
    call: Call,
    response: Any,
    settlement: Settlement,
    estimates: Estimates,
    drain_s: float,
    on_first: Callable[[], None],
) -> AsyncIterator[Any]:
    """Pass a provider's stream on, and end the call whatever happens to either side.

    Parameters
    ----------
    response
        LiteLLM's stream of chunks.
    estimates
        Count and charge what was delivered when the provider does not say.
    drain_s
        How long a stream that reasons unseen is read on for its usage after the client has left. Seconds.
    on_first
        Called once, at the first output.
    """
    relay = call.delivery = _Relay(call, response, settlement, estimates, drain_s, on_first)
    return relay.events()


class _Relay:
    """One stream between the provider and the client."""

    def __init__(
        self,
        call: Call,
        response: Any,
        settlement: Settlement,
        estimates: Estimates,
        drain_s: float,
        on_first: Callable[[], None],
    ) -> None:
        self._call = call
        self._response = response
        self._source = response.__aiter__()
        self._stream = dialects.stream_of(call.endpoint.dialect)
        self._settlement = settlement
        self._estimates = estimates
        self._drain_s = drain_s
        self._on_first = on_first
        self._has_left = False
        self._looked_through = 0
        self._found: tuple[answers.Usage | None, bool] = (None, False)
        self._reading: asyncio.Future[Any] | None = None

    async def events(self) -> AsyncIterator[Any]:
        """The client's events; the call has ended before the last of them."""
        try:
            async for chunk in self:
                if (words := self._stream.words_alone(chunk)) is not None:
                    self._note(bool(words))
                    yield chunk
                    continue
                for event in self._stream.split(chunk):
                    for kept in await self._pass(event):
                        yield kept
            for event in self._stream.rest():
                for kept in await self._pass(event):
                    yield kept
            await self._finish()
            for event in self._stream.leftover():
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            # The client has left: the awaits below must not be cancelled again (anyio cancels at every await).
            with anyio.CancelScope(shield=True):
                await self.left()
            raise
        except Exception as error:
            await self.broken(status_of(error, unknown=502), type(error).__name__)
            raise

    async def left(self) -> None:
        """The client is gone: charge what it got, and for what reasons unseen what the provider says."""
        if self._has_left:
            return
        self._has_left = True
        if self._call.ending is None and not self._stream.counted and self._call.reasons_unseen:
            await self._read_on()
        if self._call.under_way or (self._call.ending is None and self._stream.text):
            await self._charge_part(CLIENT_LEFT, "client_disconnected")
        elif self._call.ending is None:
            # Between one provider's fault and the next attempt.
            await self._settlement.release(self._call, CLIENT_LEFT, "client_disconnected")

    async def broken(self, status: int, error: str) -> None:
        """The provider broke off: what was delivered is charged, nothing for nothing."""
        await self.cut_off(status, "provider_stream_broken" if self._stream.text else f"{error} ({status})")

    async def cut_off(self, status: int, error: str) -> None:
        """Somebody around the stream broke it off, a guardrail of the operator's: the same."""
        if self._stream.text:
            await self._charge_part(status, error)
        else:
            await self._settlement.release(self._call, status, error)

    def __aiter__(self) -> _Relay:
        return self

    def __anext__(self) -> Awaitable[Any]:
        """The provider's next chunk."""
        return self._read_aside() if self._call.reasons_unseen else self._source.__anext__()

    async def _read_aside(self) -> Any:
        """The next chunk, read in a task, which the client's leaving leaves alone."""
        self._reading = self._reading or _looked_at(asyncio.ensure_future(self._source.__anext__()))
        chunk = await asyncio.shield(self._reading)
        self._reading = None
        return chunk

    async def _pass(self, event: Any) -> list[Any]:
        self._note(self._stream.read(event))
        charged = None
        if self._stream.complete and not self._is_empty():
            charged = await self._price(self._answer())
        return self._stream.priced(event, charged, self._call.wants_usage)

    def _note(self, is_output: bool) -> None:
        if is_output and self._call.first_token is None:
            self._call.saw_output()
            self._on_first()

    async def _price(self, answer: Answer | Estimate) -> Decimal:
        """The credits of the answer, charged before its last word: meanwhile, where more of the stream is to come."""
        if self._call.ending is None and self._stream.goes_on and isinstance(answer, Answer):
            self._call.response_id = self._stream.response_id
            return self._settlement.begin(self._call, answer)
        return (await self._charge(answer)).charged

    async def _finish(self) -> None:
        """The stream has ended; where no complete usage came, what was delivered is counted."""
        if self._call.ending is None and not self._is_cached() and (self._stream.broke_off() or self._is_empty()):
            await self.broken(502, "provider_stream_broken")
            return
        if self._call.endpoint.dialect == "openai" and not self._stream.complete:
            # Where no usage came with the stream's end, the last one that the provider sent is its word.
            self._stream.usage = self._reported() or self._stream.usage
            self._stream.complete = self._stream.usage is not None
        await self._charge(self._answer())

    async def _charge_part(self, status: int, error: str) -> None:
        if self._is_cached():
            await self._charge(Answer(self._stream.usage or {}, "cache", status, error))
            return
        message = "cut after the provider's usage, which was charged"
        answer = Answer(self._stream.usage or {}, "usage", status, error, message, self._stream.service_tier)
        is_whole = self._stream.counted and not answer.is_half(lambda: self._stream.text)
        await self._charge(answer if is_whole else self._estimate(status, error))

    async def _charge(self, answer: Answer | Estimate) -> Outcome:
        self._call.response_id = self._stream.response_id
        if isinstance(answer, Estimate):
            return await self._estimates.charge(self._call, answer)
        return await self._settlement.charge(self._call, answer)

    def _answer(self) -> Answer | Estimate:
        usage = self._stream.usage
        if self._is_cached():
            return Answer(usage or {}, "cache")
        if usage is None or not self._stream.counted or self._is_made_up() or self._is_early():
            return self._estimate()
        answer = Answer(usage, _source(self._call, usage), service_tier=self._stream.service_tier)
        return self._estimate() if answer.is_half(lambda: self._stream.text) else answer

    def _estimate(self, status: int = 200, error: str | None = None) -> Estimate:
        least = 0
        message = None if error is None else "cut after part of the answer; the delivered part was charged"
        if status == CLIENT_LEFT and self._call.reasons_unseen and not self._stream.counted:
            # Nobody can see what it thought, and leaving early must not make thinking free.
            least = self._call.cap * self._call.plan.answers
            message = "the client left and no usage came; a model that reasons unseen is charged its output limit"
        known = self._reported() or self._stream.usage
        seen = known if answers.says_something(known) else None
        return Estimate(self._stream.text, seen, least, status, error, message, self._stream.service_tier)

    def _is_cached(self) -> bool:
        """Whether LiteLLM plays the stream from its response cache."""
        return self._call.cached or getattr(self._response, "custom_llm_provider", None) == "cached_response"

    def _is_made_up(self) -> bool:
        """Whether a usage is LiteLLM's own count.

        LiteLLM ends every chat stream with a usage; the provider's is among the chunks it collected
        (litellm/litellm_core_utils/streaming_handler.py, `_finalize_completed_stream`).
        """
        return (
            bool(chunks.collected(self._response)) and len(self._call.attempts) == 1 and self._last_report()[0] is None
        )

    def _is_early(self) -> bool:
        """Whether the provider said more after its last usage."""
        reported, said_more = self._last_report()
        return reported is not None and said_more

    def _is_empty(self) -> bool:
        """Whether nothing came from the provider: what ends such a stream is LiteLLM's own."""
        if self._stream.text or (self._stream.usage is not None and not self._is_made_up()):
            return False
        last = chunks.collected(self._response)[-_LAST_CHUNKS:]
        return not any(answers.get(choice, "finish_reason") for chunk in last for choice in chunks.choices(chunk))

    def _reported(self) -> answers.Usage | None:
        """The provider's last usage, where it has the shape of this dialect."""
        return self._last_report()[0] if self._call.endpoint.dialect == "openai" else None

    def _last_report(self) -> tuple[answers.Usage | None, bool]:
        """The last usage among the provider's own chunks, as far as LiteLLM collects them, and whether any later one
        says more."""
        collected = chunks.collected(self._response)
        if self._looked_through != len(collected):
            self._looked_through, self._found = len(collected), chunks.last_usage(collected)
        return self._found

    async def _read_on(self) -> None:
        """Read a stream for its usage, though nobody listens any more."""
        try:
            await asyncio.wait_for(self._read_until_complete(), self._drain_s)
        except (Exception, asyncio.CancelledError) as error:
            # It is only for a better number: the estimate stands in for it, and whoever cancelled this waits for that.
            logger.info("no usage after the client left: %s", type(error).__name__)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def _read_until_complete(self) -> None:
        async for chunk in self:
            for event in self._stream.split(chunk):
                self._stream.read(event)
            if self._stream.complete:
                break


def _looked_at(reading: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """The same; asyncio does not complain when nobody waits for it any more."""
    reading.add_done_callback(lambda done: done.cancelled() or done.exception())
    return reading


def _source(call: Call, usage: answers.Usage) -> str:
    """Where LiteLLM fills in a usage that the provider left out and shows nothing of the provider's own, only the lack
    of details tells (litellm/responses/streaming_iterator.py, `_estimate_usage_from_text`; text completions)."""
    if call.endpoint not in (routes.RESPONSES, routes.COMPLETIONS):
        return "usage"
    return "usage" if usage.get("input_tokens_details") or usage.get("prompt_tokens_details") else "estimate"
