"""The calls of the mix: each made with an official client, each with what its answer says about money."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from anthropic import Anthropic
from openai import OpenAI

# A property named `type` and a union type are what real schemas have.
SCHEMA = {"type": "object", "properties": {"city": {"type": ["string", "null"]}, "type": {"type": "string"}}}
TOOL = {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA}
ANTHROPIC_TOOL = {"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}
CHAT_MODELS = ("gpt-mini", "gpt-mini-map", "claude", "reason", "pair", "free")


@dataclass(frozen=True)
class Told:
    """What a client was told: the headers, and `usage.cost` where there was one."""

    headers: dict[str, str]
    cost: Decimal | None
    wants_cost: bool
    streamed: bool
    capped: bool = True
    reports: int = 0


@dataclass
class Client:
    """Both official clients of one account, and the dice of one call."""

    openai: OpenAI
    anthropic: Anthropic
    dice: random.Random
    mark: str
    asked: dict[str, Any] = field(default_factory=dict)

    def prompt(self, *more: str) -> str:
        """Directs the upstream's answer; the mark tells the call in its books."""
        return " ".join([f"mark {self.mark} say {self.dice.randint(1, 60)} words", *more])

    def messages(self, *more: str) -> Any:
        return [{"role": "user", "content": self.prompt(*more)}]


Ask = Callable[[Client], Told]


def _told(raw: Any, cost: Any, *, wants_cost: bool = True, streamed: bool = False, **rest: Any) -> Told:
    exact = None if cost is None else Decimal(repr(cost))
    return Told(dict(raw.headers), exact, wants_cost, streamed, **rest)


def _cost(usage: Any) -> Any:
    return None if usage is None else getattr(usage, "cost", None)


def _chat(client: Client, model: str, *more: str, **options: Any) -> Told:
    raw = client.openai.chat.completions.with_raw_response.create(
        model=model, messages=client.messages(*more), **options
    )
    return _told(raw, _cost(raw.parse().usage))


def chat(client: Client) -> Told:
    cap = client.dice.choice([{}, {"max_completion_tokens": client.dice.randint(10, 90)}])
    return _chat(client, client.dice.choice(CHAT_MODELS), **cap)


def chat_cached(client: Client) -> Told:
    return _chat(client, client.dice.choice(("gpt-mini", "gpt-mini-map", "pair", "claude")), "cached 5 tokens")


def chat_reasons(client: Client) -> Told:
    return _chat(client, "reason", f"think {client.dice.randint(1, 200)} tokens")


def chat_thrice(client: Client) -> Told:
    return _chat(client, client.dice.choice(("gpt-mini", "pair")), n=3, max_tokens=40)


def chat_calls_a_tool(client: Client) -> Told:
    tool: Any = {"type": "function", "function": TOOL}
    return _chat(client, client.dice.choice(("gpt-mini", "claude")), "call a tool", tools=[tool])


def _chat_stream(client: Client, wants_usage: bool, model: str, *more: str, **options: Any) -> Told:
    if wants_usage:
        options["stream_options"] = {"include_usage": True}
    raw = client.openai.chat.completions.with_raw_response.create(
        model=model, messages=client.messages(*more), stream=True, **options
    )
    return _read_openai(raw, wants_usage)


def _read_openai(raw: Any, wants_usage: bool) -> Told:
    """Reads a stream of chat or text completions to its end."""
    reports = [chunk.usage for chunk in raw.parse() if getattr(chunk, "usage", None) is not None]
    cost = _cost(reports[-1]) if reports else None
    return _told(raw, cost, wants_cost=wants_usage, streamed=True, reports=len(reports))


def chat_stream(client: Client) -> Told:
    return _chat_stream(client, False, client.dice.choice(CHAT_MODELS))


def chat_stream_with_usage(client: Client) -> Told:
    model = client.dice.choice(CHAT_MODELS)
    return _chat_stream(client, True, model, *(("cached 3 tokens",) if model in ("gpt-mini", "claude") else ()))


def chat_stream_with_tool(client: Client) -> Told:
    tool: Any = {"type": "function", "function": TOOL}
    return _chat_stream(client, True, client.dice.choice(("gpt-mini", "claude")), "call a tool", tools=[tool])


def chat_stream_twice(client: Client) -> Told:
    return _chat_stream(client, client.dice.random() < 0.5, "gpt-mini", n=2)


def completion(client: Client) -> Told:
    prompts = [client.prompt(), *(f"say {n} words" for n in range(client.dice.randint(0, 3)))]
    raw = client.openai.completions.with_raw_response.create(
        model="instruct", prompt=prompts, n=2, best_of=3, max_tokens=30
    )
    return _told(raw, _cost(raw.parse().usage))


def completion_stream(client: Client) -> Told:
    wants_usage = client.dice.random() < 0.5
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
    raw = client.openai.completions.with_raw_response.create(
        model="instruct", prompt=client.prompt(), max_tokens=80, stream=True, **options
    )
    return _read_openai(raw, wants_usage)


def embedding(client: Client) -> Told:
    texts = [client.prompt(), *("some more text" for _ in range(client.dice.randint(0, 400)))]
    raw = client.openai.embeddings.with_raw_response.create(model="embed", input=texts)
    return _told(raw, _cost(raw.parse().usage), capped=False)


def response(client: Client) -> Told:
    model = client.dice.choice(("gpt-mini", "reason", "claude", "gpt-mini-map"))
    more = ("cached 4 tokens",) if model == "gpt-mini" else ()
    raw = client.openai.responses.with_raw_response.create(model=model, input=client.prompt(*more))
    return _told(raw, _cost(raw.parse().usage))


def response_stream(client: Client) -> Told:
    model = client.dice.choice(("gpt-mini", "reason", "claude"))
    raw = client.openai.responses.with_raw_response.create(model=model, input=client.prompt(), stream=True)
    last: Any = list(raw.parse())[-1]
    return _told(raw, _cost(last.response.usage), streamed=True, reports=1)


def message(client: Client) -> Told:
    model = client.dice.choice(("claude", "gpt-mini"))
    more = ("cached 2 tokens", "written 3 tokens") if model == "claude" else ()
    raw = client.anthropic.messages.with_raw_response.create(
        model=model, max_tokens=client.dice.randint(16, 90), messages=client.messages(*more), system="Be brief."
    )
    return _told(raw, _cost(raw.parse().usage))


def message_with_tool(client: Client) -> Told:
    tools: Any = [ANTHROPIC_TOOL]
    raw = client.anthropic.messages.with_raw_response.create(
        model="claude", max_tokens=90, messages=client.messages("call a tool"), tools=tools
    )
    return _told(raw, _cost(raw.parse().usage))


def message_stream(client: Client) -> Told:
    model = client.dice.choice(("claude", "gpt-mini"))
    more = ("written 4 tokens",) if model == "claude" else ()
    raw = client.anthropic.messages.with_raw_response.create(
        model=model, max_tokens=70, messages=client.messages(*more), stream=True
    )
    reports = [event.usage for event in raw.parse() if event.type == "message_delta"]
    return _told(raw, _cost(reports[-1]), streamed=True, reports=len(reports))


KINDS: tuple[Ask, ...] = (
    *(chat, chat_cached, chat_reasons, chat_thrice, chat_calls_a_tool, chat_stream, chat_stream_with_usage),
    *(chat_stream_with_tool, chat_stream_twice, completion, completion_stream, embedding, response, response_stream),
    *(message, message_with_tool, message_stream),
)
