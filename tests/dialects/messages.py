"""Anthropic messages (anthropic.types): `input_tokens` leaves out what was read from or written to the cache."""

import json
from collections.abc import Iterator

from tests.dialects.counting import Answer, Ask, Chunk, Json, Output, Usage, compose, consumed, last_said


def messages(ask: Ask) -> Answer:
    output = compose(ask, last_said(ask.body["messages"]), ask.cap("max_tokens", default=ask.body["max_tokens"]))
    usage = consumed(ask, conversation(ask), [output])
    stop = {"stop_reason": output.finish("end_turn", "max_tokens", "tool_use"), "stop_sequence": None}
    plain = {**envelope(ask), **stop, "content": [block(ask, output)], "usage": usage_json(usage, usage.output)}
    chunks = [Chunk(event, words) for event, words in events(ask, output, usage, stop)]
    return Answer(usage, plain, chunks, words=len(output.words))


def count_tokens(ask: Ask) -> Answer:
    return Answer(Usage(), {"input_tokens": consumed(ask, conversation(ask), []).input})


def conversation(ask: Ask) -> list[Json]:
    system = [{"role": "system", "content": ask.body["system"]}] if ask.body.get("system") else []
    return [*system, *ask.body["messages"]]


def envelope(ask: Ask) -> Json:
    return {"id": f"msg_{ask.id}", "type": "message", "role": "assistant", "model": ask.model}


def usage_json(usage: Usage, output: int) -> Json:
    return {
        "input_tokens": usage.input - usage.cached - usage.written,
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": usage.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def block(ask: Ask, output: Output) -> Json:
    if not output.tool:
        return {"type": "text", "text": output.text}
    arguments = {} if output.cut else json.loads(output.text)
    return {"type": "tool_use", "id": f"toolu_{ask.id}", "name": output.tool, "input": arguments}


def events(ask: Ask, output: Output, usage: Usage, stop: Json) -> Iterator[tuple[Json, int]]:
    """Every event with the words it carries; the first usage holds one output token, as Anthropic's does."""
    empty: Json = {"stop_reason": None, "stop_sequence": None, "content": [], "usage": usage_json(usage, 1)}
    yield {"type": "message_start", "message": {**envelope(ask), **empty}}, 0
    blank: Json = {"input": {}} if output.tool else {"text": ""}
    opening = {**block(ask, output), **blank}
    yield {"type": "content_block_start", "index": 0, "content_block": opening}, 1 if output.tool else 0
    yield {"type": "ping"}, 0
    for piece in output.pieces:
        called = {"type": "input_json_delta", "partial_json": piece}
        delta = called if output.tool else {"type": "text_delta", "text": piece}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}, 1
    yield {"type": "content_block_stop", "index": 0}, 0
    final = usage_json(usage, usage.output)
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    yield {"type": "message_delta", "delta": stop, "usage": {name: final[name] for name in names}}, 0
    yield {"type": "message_stop"}, 0
