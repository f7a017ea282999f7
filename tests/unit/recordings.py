"""Streams as LiteLLM hands them over, one per dialect, and a player that can hang or break at any event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices, Usage

from uc_litellm_plugin.routes import CHAT, MESSAGES, RESPONSES, Endpoint

WORDS = ("one ", "two ", "three")


@dataclass(frozen=True)
class Recording:
    """A whole stream.

    Attributes
    ----------
    events
        In order.
    speaks
        The numbers of the events that carry a word.
    complete
        The number of the event with the whole usage.
    ended
        The number of the event that shows this usage to be the last: it settles the call, and lets the one before out.
    """

    endpoint: Endpoint
    events: tuple[Any, ...]
    speaks: tuple[int, ...]
    complete: int

    @property
    def ended(self) -> int:
        """See above."""
        return self.complete + 1 if self.endpoint is MESSAGES else self.complete

    def words_before(self, event: int) -> int:
        """How many words are in the events before that one."""
        return sum(number < event for number in self.speaks)


def chunk(content: str | None = None, finish: str | None = None, usage: Usage | None = None) -> ModelResponseStream:
    """A chunk of chat; with a usage it has no choice."""
    choices = [] if usage else [StreamingChoices(index=0, delta=Delta(content=content), finish_reason=finish)]
    return ModelResponseStream(id="chat-1", choices=choices, **({"usage": usage} if usage else {}))


def frame(kind: str, **fields: Any) -> bytes:
    """A server-sent event of Anthropic's."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def chat() -> Recording:
    usage = Usage(prompt_tokens=10, completion_tokens=3, total_tokens=13)
    events = (chunk(""), *map(chunk, WORDS), chunk(finish="stop"), chunk(usage=usage))
    return Recording(CHAT, events, (1, 2, 3), 5)


def responses() -> Recording:
    usage = {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 3,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 13}  # fmt: skip
    events = (
        {"type": "response.created", "response": {"id": "resp-1", "usage": None}},
        *({"type": "response.output_text.delta", "delta": word} for word in WORDS),
        {"type": "response.output_text.done", "text": "".join(WORDS)},
        {"type": "response.completed", "response": {"id": "resp-1", "usage": usage}},
    )
    return Recording(RESPONSES, events, (1, 2, 3), 5)


def messages() -> Recording:
    events = (
        frame("message_start", message={"id": "msg-1", "usage": {"input_tokens": 10, "output_tokens": 1}}),
        frame("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(frame("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in WORDS),
        frame("content_block_stop", index=0),
        frame("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
        frame("message_stop"),
    )
    return Recording(MESSAGES, events, (2, 3, 4), 6)


RECORDINGS = {"chat": chat, "responses": responses, "messages": messages}


class Player:
    """Plays events, then ends, breaks or hangs."""

    def __init__(
        self, events: Iterable[Any], error: BaseException | None = None, hangs_before: int | None = None
    ) -> None:
        self._events = list(events)
        self._error = error
        self._hangs_before = hangs_before
        self.hangs = asyncio.Event()
        self.go_on = asyncio.Event()
        self.played = 0

    async def __aiter__(self) -> AsyncIterator[Any]:
        for number, event in enumerate(self._events):
            await self._hang(number)
            self.played += 1
            yield event
        await self._hang(len(self._events))
        if self._error is not None:
            raise self._error

    async def _hang(self, number: int) -> None:
        if number == self._hangs_before:
            self.hangs.set()
            await self.go_on.wait()
