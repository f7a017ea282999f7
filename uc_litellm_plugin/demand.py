"""The most a request can make a provider read and write, before any price and any tokenizer is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest
from .media import Stock
from .requests import LARGEST_CAP, Body, answers, named_cap
from .routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

_PROMPT_FIELDS: Mapping[Endpoint, tuple[str, ...]] = {
    CHAT: ("messages", "tools", "functions", "response_format"),
    COMPLETIONS: ("prompt", "suffix"),
    EMBEDDINGS: ("input",),
    RESPONSES: ("input", "instructions", "tools", "text"),
    MESSAGES: ("messages", "system", "tools", "output_config", "output_format"),
}

# What LiteLLM makes of an effort for Claude (litellm/constants.py, `DEFAULT_REASONING_EFFORT_…_THINKING_BUDGET`).
_BUDGETS = {"minimal": 1_024, "low": 1_024, "medium": 2_048, "high": 4_096, "xhigh": 8_192, "max": 16_384}
_MEDIA_FIELDS = {"messages", "input", "system", "instructions"}

# Input that lives at the provider or behind a reference, so that its size cannot be seen from here.
_REFERENCES: Mapping[Endpoint, tuple[str, ...]] = {
    RESPONSES: ("previous_response_id", "conversation", "prompt"),
}

# Tools that the caller runs; all others run at the provider, feed it text of their own finding and have a fee.
_CALLERS_TOOLS = ("function", "custom", "bash_", "text_editor_", "computer_", "memory_", "apply_patch", "local_shell")
_CALLERS_TOOL_FIELDS = frozenset(
    {"type", "function", "custom", "name", "description", "parameters", "input_schema", "strict", "cache_control"}
    | {"format", "display_width_px", "display_height_px", "display_number", "max_characters", "environment"}
    | {"display_width", "display_height", "eager_input_streaming", "defer_loading", "input_examples"}
)

_written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class Demand:
    """What one request can cost at most, before prices.

    Attributes
    ----------
    text
        All text the provider reads, as it would be serialized, without media.
    token_ids
        Numbers of tokens sent as ids (embeddings, completions).
    parts
        Messages, tools and the like; each costs a few tokens of framing.
    images, audio_bytes
        Inline and remote images; bytes of inline audio.
    whole_context
        Holds a document: its pages are read as text and as images, so the context window is the bound.
    unbounded
        Names of the references whose size cannot be seen, empty when all can.
    answers
        How many answers may be generated: prompts x max(n, best_of).
    cap
        The output limit the client named, in tokens per answer; None when it named none.
    writes
        False for endpoints without output.
    caches, speaks, tier
        May write the provider's prompt cache; may answer in audio; the `service_tier` asked for.
    reasoning_asked
        The request turns reasoning on.
    thinking
        The tokens that a model may think before it answers, where the request says so.
    """

    text: str
    token_ids: int = 0
    parts: int = 0
    images: int = 0
    remote_images: int = 0
    audio_bytes: int = 0
    whole_context: bool = False
    unbounded: tuple[str, ...] = ()
    answers: int = 1
    cap: int | None = None
    writes: bool = True
    caches: bool = False
    speaks: bool = False
    tier: str | None = None
    reasoning_asked: bool = False
    thinking: int = 0


def measure(endpoint: Endpoint, body: Body) -> Demand:
    """Take stock of a checked body.

    Raises
    ------
    BadRequest
        A part has a form no provider documents, parts are nested too deeply to be looked through, or a tool would run
        at the provider.
    """
    try:
        return _measure(endpoint, body)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="invalid_value") from None


def _measure(endpoint: Endpoint, body: Body) -> Demand:
    _refuse_provider_tools(body)
    given = {field: body[field] for field in _PROMPT_FIELDS[endpoint] if body.get(field) is not None}
    token_ids = _token_ids(endpoint, given)
    stock = Stock()
    prompt = {field: stock.take(value) if field in _MEDIA_FIELDS else value for field, value in given.items()}
    try:
        text = _written(prompt)
    except ValueError:
        raise BadRequest("NaN and Infinity are not JSON.", code="invalid_value") from None
    references = [field for field in _REFERENCES.get(endpoint, ()) if body.get(field)]
    return Demand(
        text=text,
        token_ids=token_ids,
        parts=stock.parts,
        images=stock.images,
        remote_images=stock.remote_images,
        audio_bytes=stock.audio_bytes,
        whole_context=stock.documents > 0,
        unbounded=tuple(references + stock.references),
        answers=answers(endpoint, body),
        cap=named_cap(body),
        writes=endpoint.cap_field is not None,
        caches='"cache_control"' in text or "cache_control" in body,
        speaks="audio" in (body.get("modalities") or ()),
        tier=body.get("service_tier"),
        reasoning_asked=any(body.get(name) for name in ("thinking", "reasoning", "reasoning_effort")),
        thinking=_thinking(body),
    )


def _thinking(body: Body) -> int:
    """The tokens that a request lets a model think, by itself or by its effort; 0 where it says nothing of it."""
    thinking, reasoning = body.get("thinking"), body.get("reasoning")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if type(budget) is int and budget > 0:
        return min(budget, LARGEST_CAP)
    effort = body.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return _BUDGETS.get(effort, 0) if isinstance(effort, str) else 0


def _token_ids(endpoint: Endpoint, given: dict[str, Any]) -> int:
    """Count the prompts that are lists of token numbers, and take them out."""
    field = {COMPLETIONS: "prompt", EMBEDDINGS: "input"}.get(endpoint)
    prompts = given.get(field) if field else None
    if not field or not isinstance(prompts, list):
        return 0
    ids = [prompts] if _is_ids(prompts) else [p for p in prompts if _is_ids(p)]
    given[field] = [] if ids == [prompts] else [p for p in prompts if not _is_ids(p)]
    return sum(len(prompt) for prompt in ids)


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(type(item) is int and 0 <= item < 1 << 32 for item in prompt)


def _refuse_provider_tools(body: Body) -> None:
    """Tools that run at the provider (or at LiteLLM) read and charge what nobody here can see."""
    found = ["web_search_options"] if body.get("web_search_options") is not None else []
    for tool in body.get("tools") or []:
        if not isinstance(tool, dict) or not isinstance(tool.get("type", ""), str):
            raise BadRequest(
                "Each tool must be an object with a string as its type.", code="invalid_value", param="tools"
            )
        if not _is_callers(tool):
            found.append(tool.get("type") or ", ".join(sorted(tool.keys() - _CALLERS_TOOL_FIELDS)))
    if found:
        raise BadRequest(
            f"Tools that run at the provider are not offered, since their cost has no bound: {', '.join(found)}.",
            code="unsupported_tool",
            param="tools",
        )


def _is_callers(tool: Mapping[str, Any]) -> bool:
    """Whether the caller runs it. Any field beyond a caller's may make it one that the provider runs: LiteLLM takes
    `{"googleSearch": {}}` for such, with a caller's `type` beside it too."""
    kind = tool.get("type", "custom" if "name" in tool else "function" if "function" in tool else "")
    return isinstance(kind, str) and kind.startswith(_CALLERS_TOOLS) and tool.keys() <= _CALLERS_TOOL_FIELDS
