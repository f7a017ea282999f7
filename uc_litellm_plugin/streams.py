"""A stream on its way to the client: settled before its last word, and charged for what was delivered if it is cut."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio

from . import answers, dialects, routes
from .call import Answer, Call
from .demand import Tokenizer, count, input_estimate
from .dialects import Stream
from .errors import status_of
from .settlement import Settlement

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499


async def settled(
    call: Call,
    response: Any,
    settlement: Settlement,
    tokenizer: Tokenizer,
    drain_s: float,
    on_first: Callable[[], None],
) -> AsyncIterator[Any]:
    """Pass a provider's stream on, and end the call whatever happens to either side.

    Parameters
    ----------
    response
        LiteLLM's stream of chunks.
    tokenizer
        Counts what was delivered when the provider does not say.
    drain_s
        How long a stream that reasons unseen is read on for its usage after the client has left. Seconds.
    on_first
        Called once, at the first output.
    """
    stream = dialects.stream_of(call.endpoint.dialect)
    source = response.__aiter__()
    try:
        while (chunk := await _next(call, source)) is not _END:
            for event in stream.split(chunk):
                if (kept := await _pass(call, stream, event, response, settlement, tokenizer, on_first)) is not None:
                    yield kept
        for event in stream.rest():
            yield await _pass(call, stream, event, response, settlement, tokenizer, on_first)
        await _finish(call, stream, response, settlement, tokenizer)
    except (asyncio.CancelledError, GeneratorExit):
        # The client has left: the awaits below must not be cancelled again (anyio cancels at every await).
        with anyio.CancelScope(shield=True):
            if not stream.complete and call.reasons_unseen:
                await _read_on(call, source, stream, drain_s)
            await _cut(call, stream, settlement, tokenizer, CLIENT_LEFT, "client_disconnected")
        raise
    except Exception as error:
        await _broken(call, stream, settlement, tokenizer, error)
        raise


_END = object()


async def _next(call: Call, source: Any) -> Any:
    """The next chunk. A stream that reasons unseen is read in a task, which the client's leaving does not cancel."""
    try:
        if not call.reasons_unseen:
            return await source.__anext__()
        call.reading = call.reading or asyncio.ensure_future(source.__anext__())
        chunk = await asyncio.shield(call.reading)
        call.reading = None
        return chunk
    except StopAsyncIteration:
        return _END


async def _pass(
    call: Call, stream: Stream, event: Any, response: Any, settlement: Settlement, tokenizer: Tokenizer,
    on_first: Callable[[], None],
) -> Any:  # fmt: skip
    if stream.read(event) and call.first_token is None:
        call.saw_output()
        on_first()
    charged = None
    if stream.complete:
        call.response_id = stream.response_id
        charged = (await settlement.charge(call, _answer(call, stream, response, tokenizer))).charged
    return stream.priced(event, charged, call.wants_usage)


async def _finish(call: Call, stream: Stream, response: Any, settlement: Settlement, tokenizer: Tokenizer) -> None:
    """The stream ended without a complete usage: what was delivered is counted."""
    call.response_id = stream.response_id
    if call.endpoint.dialect == "openai" and not stream.complete:
        # Where no usage came with the stream's end, the last one that the provider sent is its word.
        reported = [usage for chunk in _collected(response) if (usage := answers.usage_of(chunk)) is not None]
        stream.usage = reported[-1] if reported else stream.usage
        stream.complete = stream.usage is not None
    if call.ending is not None:
        await asyncio.shield(call.ending)
    elif stream.broke_off() and not stream.text:
        await settlement.release(call, 502, "provider_stream_broken")
    elif stream.broke_off():
        await _cut(call, stream, settlement, tokenizer, 502, "provider_stream_broken")
    else:
        await settlement.charge(call, _answer(call, stream, response, tokenizer))


def _answer(call: Call, stream: Stream, response: Any, tokenizer: Tokenizer) -> Answer:
    if getattr(response, "custom_llm_provider", None) == "cached_response":
        return Answer(stream.usage or {}, "cache")
    if stream.usage is None or not stream.complete or not _reported(call, response):
        return _estimate(call, stream, tokenizer)
    return Answer(stream.usage, _source(call, stream.usage), service_tier=stream.service_tier)


def _reported(call: Call, response: Any) -> bool:
    """Whether a usage comes from the provider, not from LiteLLM's own count.

    LiteLLM ends every chat stream with a usage; the provider's is among the chunks it collected
    (litellm/litellm_core_utils/streaming_handler.py, `_finalize_completed_stream`).
    """
    collected = _collected(response)
    if not collected or len(call.attempts) > 1:
        return True
    return any(answers.usage_of(chunk) is not None for chunk in collected)


def _collected(response: Any) -> list[Any]:
    """The chunks of the provider's chat stream, through the wrappers that LiteLLM puts around it."""
    for name in ("chunks", "collected_chat_completion_chunks"):
        if isinstance(chunks := getattr(response, name, None), list):
            return chunks
    inner = getattr(response, "completion_stream", None) or getattr(response, "inner", None)
    return [] if inner is None or inner is response else _collected(inner)


def _source(call: Call, usage: answers.Usage) -> str:
    """Where LiteLLM fills in a usage that the provider left out and shows nothing of the provider's own, only the lack
    of details tells (litellm/responses/streaming_iterator.py, `_estimate_usage_from_text`; text completions)."""
    if call.endpoint not in (routes.RESPONSES, routes.COMPLETIONS):
        return "usage"
    return "usage" if usage.get("input_tokens_details") or usage.get("prompt_tokens_details") else "estimate"


def _estimate(call: Call, stream: Stream, tokenizer: Tokenizer, status: int = 200, error: str | None = None) -> Answer:
    read = input_estimate(call.demand, tokenizer)
    usage = answers.estimated(call.endpoint.dialect, read, count(stream.text, tokenizer), stream.usage)
    message = None if error is None else "cut after part of the answer; the delivered part was charged"
    return Answer(usage, "estimate", status, error, message, stream.service_tier)


async def _cut(
    call: Call, stream: Stream, settlement: Settlement, tokenizer: Tokenizer, status: int, error: str
) -> None:
    if call.ending is not None:
        await asyncio.shield(call.ending)
    elif call.attempts:
        call.response_id = stream.response_id
        known = stream.usage is not None and stream.complete
        answer = (
            Answer(stream.usage or {}, "usage", status, error, "the client left", stream.service_tier)
            if known
            else _estimate(call, stream, tokenizer, status, error)
        )
        await settlement.charge(call, answer)


async def _broken(call: Call, stream: Stream, settlement: Settlement, tokenizer: Tokenizer, error: Exception) -> None:
    """The provider broke off: what was delivered is charged, nothing for nothing."""
    status = status_of(error, unknown=502)
    if stream.text:
        await _cut(call, stream, settlement, tokenizer, status, "provider_stream_broken")
    else:
        await settlement.release(call, status, f"{type(error).__name__} ({status})")


async def _read_on(call: Call, source: Any, stream: Stream, drain_s: float) -> None:
    """Read a stream for its usage, though nobody listens any more."""

    async def read() -> None:
        while not stream.complete and (chunk := await _next(call, source)) is not _END:
            for event in stream.split(chunk):
                stream.read(event)

    try:
        await asyncio.wait_for(read(), drain_s)
    except Exception as error:
        # It is only for a better number: the estimate stands in for it.
        logger.info("no usage after the client left: %s", type(error).__name__)
    finally:
        if call.reading is not None:
            call.reading.cancel()
