"""Streams in three dialects: what their events deliver, where the usage is, and which is the last word."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from . import answers, chunks
from .answers import Usage, get, plain
from .routes import Dialect


class Stream(ABC):
    """Reads a stream as it passes; a dialect says how.

    Attributes
    ----------
    usage
        The provider's usage so far.
    complete
        Whether that usage is its last word.
    failed
        Whether the provider said that it broke off.
    service_tier, response_id
        As the provider reported them.
    goes_on
        Whether a client has to wait for more when it has the complete usage.
    """

    goes_on = False

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.complete = False
        self.failed = False
        self.service_tier: str | None = None
        self.response_id: str | None = None
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """What was delivered."""
        return "".join(self._texts)

    def split(self, chunk: Any) -> Iterable[Any]:
        """The whole events in a chunk; what is cut off waits for the next one."""
        return (chunk,)

    def rest(self) -> Iterable[Any]:
        """What waited for more when the stream ended."""
        return ()

    @property
    def counted(self) -> bool:
        """Whether the provider's usage covers all that was delivered so far."""
        return self.complete

    def broke_off(self) -> bool:
        """Whether a stream that ended should have gone on."""
        return self.failed

    def leftover(self) -> list[Any]:
        """What was held back when the stream ended; it goes out after the settlement."""
        return []

    def words_alone(self, chunk: Any) -> str | None:
        """Take note of a chunk that brings words and nothing else, and goes out as it is; None for any other, of which
        nothing is noted."""
        return None

    @abstractmethod
    def read(self, event: Any) -> bool:
        """Take note of an event; true where it delivers output."""

    @abstractmethod
    def priced(self, event: Any, charged: Decimal | None, wants_usage: bool) -> list[Any]:
        """What the client gets for the event that was read last, maybe nothing; `charged` is known once the usage is
        complete."""

    def _note(self, piece: Any) -> bool:
        texts = answers.delivered(piece)
        self._texts += texts
        return bool(texts)


class ChatStream(Stream):
    """Chunks of chat and text completions; the usage comes alone, in the last one, before LiteLLM's `[DONE]`."""

    goes_on = True

    def __init__(self) -> None:
        super().__init__()
        self._finished = False
        self._given_id: Any = None

    def words_alone(self, chunk: Any) -> str | None:
        words = None if self.complete else chunks.words_alone(chunk, self._given_id)
        if words:
            self._texts.append(words)
        return words

    def read(self, event: Any) -> bool:
        self.service_tier = answers.served_tier(event) or self.service_tier
        if (given_id := get(event, "id")) != self._given_id:
            self._given_id, self.response_id = given_id, answers.stored_id(event) or self.response_id
        choices = chunks.choices(event)
        said = any([self._read_choice(choice) for choice in choices])  # noqa: C419 - each one must be read
        self._finished = self._finished or any(get(choice, "finish_reason") for choice in choices)
        if (usage := answers.usage_of(event)) is not None:
            # Some providers report usage as they go; the last word comes alone, after the finish.
            self.usage, self.complete = usage, not said and (self._finished or not choices)
        return said

    def _read_choice(self, choice: Any) -> bool:
        said = self._note(chunks.delta(choice))
        return self._note(get(choice, "text")) or said

    def priced(self, event: Any, charged: Decimal | None, wants_usage: bool) -> list[Any]:
        if get(event, "usage") is None:
            return [event]
        return [chunks.priced(event, charged)] if wants_usage else chunks.without_usage(event)


class ResponsesStream(Stream):
    """Events of the responses API; the usage is in the terminal one, with the whole answer."""

    _TERMINAL = ("response.completed", "response.incomplete", "response.failed")

    def read(self, event: Any) -> bool:
        if (answer := get(event, "response")) is not None:
            self.response_id = answers.stored_id(answer) or self.response_id
            self.service_tier = answers.served_tier(answer) or self.service_tier
            self.failed = _name(event) == "response.failed"
            if (usage := answers.usage_of(answer)) is not None:
                self.usage, self.complete = usage, _name(event) in self._TERMINAL
        return _name(event).endswith(".delta") and self._note(get(event, "delta"))

    def priced(self, event: Any, charged: Decimal | None, wants_usage: bool) -> list[Any]:
        if charged is not None and _name(event) in self._TERMINAL:
            answers.write_cost(get(event, "response"), charged)
        return [event]


class MessagesStream(Stream):
    """Server-sent events of Anthropic's API as bytes; input in `message_start`, output in `message_delta`."""

    def __init__(self) -> None:
        super().__init__()
        self._cut = b""
        self._kind: Any = None
        self._stopped = False
        self._held: Any = None
        self._usage_is_last = False

    def split(self, chunk: Any) -> Iterator[Any]:
        if not isinstance(chunk, bytes | str):
            yield chunk
            return
        self._cut += chunk.encode() if isinstance(chunk, str) else chunk
        while (end := _frame_end(self._cut)) > 0:
            frame, self._cut = self._cut[:end], self._cut[end:]
            yield frame

    def rest(self) -> Iterable[Any]:
        return (self._cut,) if self._cut else ()

    @property
    def counted(self) -> bool:
        return self.complete or (self._usage_is_last and self.usage is not None)

    def broke_off(self) -> bool:
        # LiteLLM's translation of other dialects just ends when its source breaks.
        return self.failed or not (self._stopped or self.counted)

    def read(self, event: Any) -> bool:
        data = _frame_data(event)
        kind = self._kind = data.get("type")
        if kind == "message_start":
            message = data.get("message") or {}
            self.response_id = answers.stored_id(message)
            self._merge(message.get("usage"))
        elif kind == "message_delta":
            self._merge(data.get("usage"))
            # Without the output in it, what `message_start` said of that stands for the one token it begins with.
            self._usage_is_last = "output_tokens" in (data.get("usage") or {})
        elif kind == "message_stop":
            self._stopped = True
            self.complete = self.counted
        elif kind == "error":
            self.failed = True
        elif kind == "content_block_delta":
            self._usage_is_last = False
            delta = data.get("delta") or {}
            return self._note({key: value for key, value in delta.items() if key not in ("type", "signature")})
        elif kind == "content_block_start":
            block = data.get("content_block") or {}
            return self._note(
                {key: value for key, value in block.items() if key in ("text", "name", "input", "thinking")}
            )
        return False

    def priced(self, event: Any, charged: Decimal | None, wants_usage: bool) -> list[Any]:
        # The event with the usage waits for the next one: only if that is the end was it the provider's last word.
        held, self._held = self._held, None
        before = [] if held is None else [_costed_delta(held, charged)]
        if self._kind == "message_delta":
            self._held = event
            return before
        return [*before, event]

    def leftover(self) -> list[Any]:
        return [] if self._held is None else [self._held]

    def _merge(self, usage: Any) -> None:
        if isinstance(usage, Mapping):
            merged = dict(self.usage or {})
            for key, value in usage.items():
                # Counts only grow: some providers say 0 at the end for what they counted at the start.
                counts = isinstance(value, int) and isinstance(merged.get(key), int)
                merged[key] = max(merged[key], value) if counts else merged.get(key) if value is None else value
            self.service_tier = merged.get("service_tier") or self.service_tier
            self.usage = merged if answers.says_something(merged) else None


def _name(event: Any) -> str:
    kind = get(event, "type")
    return str(getattr(kind, "value", kind))


def _frame_end(data: bytes) -> int:
    """Where the first whole server-sent event ends (a blank line, WHATWG HTML 9.2.5), 0 when it is cut off."""
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := data.find(mark)) >= 0]
    return min(ends, default=0)


def _frame_data(event: Any) -> dict[str, Any]:
    if isinstance(event, dict):
        return event
    if not isinstance(event, bytes):
        return plain(event) if isinstance(plain(event), dict) else {}
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines)) if lines else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _costed_delta(event: Any, charged: Decimal | None) -> Any:
    """A `message_delta` with the charge in its usage."""
    data = _frame_data(event)
    if charged is None or not isinstance(data.get("usage"), dict):
        return event
    data = {**data, "usage": {**data["usage"], "cost": float(charged)}}
    if isinstance(event, bytes):
        return b"event: message_delta\ndata: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
    return data


_DIALECTS: Mapping[Dialect, type[Stream]] = {
    "openai": ChatStream,
    "responses": ResponsesStream,
    "anthropic": MessagesStream,
}


def stream_of(dialect: Dialect) -> Stream:
    """A reader for the stream of one call."""
    return _DIALECTS[dialect]()
