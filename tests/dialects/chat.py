"""OpenAI chat completions and the legacy completions (openai.types.chat, openai.types.completion)."""

import time
from collections.abc import Iterable, Iterator

from tests.dialects.counting import (
    Answer,
    Ask,
    Chunk,
    Json,
    Output,
    Usage,
    compose,
    consumed,
    count,
    is_openai_reasoning,
    last_said,
)

LEGACY_CAP = 16
"""What the legacy endpoint generates at most when `max_tokens` is not given (OpenAI's API reference)."""


def chat(ask: Ask) -> Answer:
    messages = ask.body["messages"]
    output = compose(ask, last_said(messages), chat_cap(ask))
    outputs = [output] * (ask.body.get("n") or 1)
    usage = consumed(ask, messages, outputs)
    base = envelope(ask, "chatcmpl", "chat.completion")
    choices = [chat_choice(ask, i, output) for i, output in enumerate(outputs)]
    stream_base = {**base, "object": "chat.completion.chunk"}
    chunks = stream(ask, stream_base, chat_events(ask, outputs), usage)
    plain = {**base, "choices": choices, "usage": usage_json(usage)}
    return Answer(usage, plain, chunks, words=sum(len(o.words) for o in outputs))


def chat_cap(ask: Ask) -> int | None:
    """OpenAI refuses two caps at once, and the old name for its reasoning models."""
    old, new = (ask.body.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
    if old and new:
        raise ValueError("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    if old and is_openai_reasoning(str(ask.body.get("model"))):
        raise ValueError("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
    return ask.cap("max_tokens", "max_completion_tokens")


def completions(ask: Ask) -> Answer:
    """`best_of` candidates are generated and billed for each prompt, `n` of them are sent."""
    prompt = ask.body["prompt"]
    prompts = prompt if isinstance(prompt, list) and not all(isinstance(p, int) for p in prompt) else [prompt]
    n = ask.body.get("n") or 1
    cap = ask.cap("max_tokens", default=LEGACY_CAP)
    composed = [compose(ask, p if isinstance(p, str) else "", cap) for p in prompts]
    generated = sum(output.tokens for output in composed) * max(ask.body.get("best_of") or n, n)
    usage = Usage(sum(map(count, prompts)), generated)
    outputs = [output for output in composed for _ in range(n)]
    base = envelope(ask, "cmpl", "text_completion")
    choices = [text_choice(i, o.text, o.finish("stop", "length", "stop")) for i, o in enumerate(outputs)]
    plain = {**base, "choices": choices, "usage": usage_json(usage)}
    chunks = stream(ask, base, text_events(outputs), usage)
    return Answer(usage, plain, chunks, words=sum(len(o.words) for o in outputs))


def envelope(ask: Ask, prefix: str, kind: str) -> Json:
    return {
        "id": f"{prefix}-{ask.id}",
        "object": kind,
        "created": int(time.time()),
        "model": ask.model,
        "system_fingerprint": "fp_upstream",
    }


def usage_json(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def stream(ask: Ask, base: Json, events: Iterable[tuple[Json, int]], usage: Usage) -> list[Chunk]:
    """OpenAI's rule: usage only on request, then null on every chunk and once in a last one without choices."""
    if not (ask.body.get("stream_options") or {}).get("include_usage"):
        return [*(Chunk({**base, "choices": [choice]}, words) for choice, words in events), Chunk(None)]
    chunks = [Chunk({**base, "choices": [choice], "usage": None}, words) for choice, words in events]
    return [*chunks, Chunk({**base, "choices": [], "usage": usage_json(usage)}, only_usage=True), Chunk(None)]


def tool_call(ask: Ask, output: Output, arguments: str) -> Json:
    return {"id": f"call_{ask.id}", "type": "function", "function": {"name": output.tool, "arguments": arguments}}


def chat_choice(ask: Ask, index: int, output: Output) -> Json:
    message: Json = {"role": "assistant", "content": None if output.tool else output.text, "refusal": None}
    if output.tool:
        message["tool_calls"] = [tool_call(ask, output, output.text)]
    finish = output.finish("stop", "length", "tool_calls")
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def chat_delta(index: int, delta: Json, finish: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def chat_events(ask: Ask, outputs: list[Output]) -> Iterator[tuple[Json, int]]:
    """The choices side by side: their roles, their words in turn, their ends."""
    for i, output in enumerate(outputs):
        opening: Json = {"role": "assistant", "content": None if output.tool else "", "refusal": None}
        if output.tool:
            opening["tool_calls"] = [{"index": 0, **tool_call(ask, output, "")}]
        yield chat_delta(i, opening), 1 if output.tool else 0
    for turn in zip(*(output.pieces for output in outputs), strict=True):
        for i, piece in enumerate(turn):
            called = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            yield chat_delta(i, called if outputs[i].tool else {"content": piece}), 1
    for i, output in enumerate(outputs):
        yield chat_delta(i, {}, output.finish("stop", "length", "tool_calls")), 0


def text_choice(index: int, text: str, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def text_events(outputs: list[Output]) -> Iterator[tuple[Json, int]]:
    for i, output in enumerate(outputs):
        yield from ((text_choice(i, piece, None), 1) for piece in output.pieces)
        yield text_choice(i, "", output.finish("stop", "length", "stop")), 0
