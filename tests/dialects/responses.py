"""OpenAI responses: the object and its full sequence of events (openai.types.responses)."""

import time
from collections.abc import Iterator

from tests.dialects.counting import Answer, Ask, Chunk, Json, Output, Usage, compose, consumed, last_said


def responses(ask: Ask) -> Answer:
    given = ask.body["input"]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    if ask.body.get("instructions"):
        messages.insert(0, {"role": "system", "content": ask.body["instructions"]})
    output = compose(ask, last_said(messages), ask.cap("max_output_tokens"))
    usage = consumed(ask, messages, [output])
    plain = completed(ask, output, usage)
    chunks = [
        Chunk({**event, "sequence_number": number}, words)
        for number, (event, words) in enumerate(events(ask, output, plain))
    ]
    return Answer(usage, plain, chunks, words=len(output.words))


def usage_json(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.written},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.input + usage.output,
    }


def in_progress(ask: Ask) -> Json:
    body = ask.body
    return {
        "id": f"resp_{ask.id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": ask.tools,
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "metadata": body.get("metadata") or {},
    }


def completed(ask: Ask, output: Output, usage: Usage) -> Json:
    incomplete = {"reason": "max_output_tokens"} if output.cut else None
    items = [reasoning_item(ask)] if output.reasoning else []
    end: Json = {"status": status(output), "incomplete_details": incomplete, "usage": usage_json(usage)}
    return {**in_progress(ask), **end, "output": [*items, answer_item(ask, output)]}


def status(output: Output) -> str:
    return "incomplete" if output.cut else "completed"


def reasoning_item(ask: Ask) -> Json:
    return {"id": f"rs_{ask.id}", "type": "reasoning", "summary": []}


def answer_item(ask: Ask, output: Output) -> Json:
    if output.tool:
        call = {"call_id": f"call_{ask.id}", "name": output.tool, "arguments": output.text}
        return {"id": f"fc_{ask.id}", "type": "function_call", "status": status(output), **call}
    message = {"status": status(output), "role": "assistant", "content": [text_part(output.text)]}
    return {"id": f"msg_{ask.id}", "type": "message", **message}


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def events(ask: Ask, output: Output, response: Json) -> Iterator[tuple[Json, int]]:
    """Every event of the stream with the words it carries, in the order OpenAI sends them."""
    opening = in_progress(ask)
    yield {"type": "response.created", "response": opening}, 0
    yield {"type": "response.in_progress", "response": opening}, 0
    if output.reasoning:
        yield {"type": "response.output_item.added", "output_index": 0, "item": reasoning_item(ask)}, 0
        yield {"type": "response.output_item.done", "output_index": 0, "item": reasoning_item(ask)}, 0
    item = answer_item(ask, output)
    at = {"output_index": 1 if output.reasoning else 0}
    body = tool_events if output.tool else text_events
    yield from body(output, item, at)
    yield {"type": "response.output_item.done", **at, "item": item}, 0
    yield {"type": f"response.{response['status']}", "response": response}, 0


def tool_events(output: Output, item: Json, at: Json) -> Iterator[tuple[Json, int]]:
    within = {**at, "item_id": item["id"]}
    yield {"type": "response.output_item.added", **at, "item": {**item, "status": "in_progress", "arguments": ""}}, 1
    for piece in output.pieces:
        yield {"type": "response.function_call_arguments.delta", **within, "delta": piece}, 1
    done = {"name": output.tool, "arguments": output.text}
    yield {"type": "response.function_call_arguments.done", **within, **done}, 0


def text_events(output: Output, item: Json, at: Json) -> Iterator[tuple[Json, int]]:
    within = {**at, "item_id": item["id"], "content_index": 0}
    yield {"type": "response.output_item.added", **at, "item": {**item, "status": "in_progress", "content": []}}, 0
    yield {"type": "response.content_part.added", **within, "part": text_part("")}, 0
    for piece in output.pieces:
        yield {"type": "response.output_text.delta", **within, "delta": piece, "logprobs": []}, 1
    yield {"type": "response.output_text.done", **within, "text": output.text, "logprobs": []}, 0
    yield {"type": "response.content_part.done", **within, "part": text_part(output.text)}, 0
