"""The most a request can make a provider read and write, in tokens, before any price is known.

The input bound counts the text with one tokenizer and multiplies by a factor per model family; since a token of every
tokenizer in use stands for at least one byte (byte-level BPE, or SentencePiece with byte fallback), it never needs to
exceed the bytes. Images and audio come from a table; what cannot be seen from here is `unbounded`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequest
from .media import Stock
from .requests import Body, answers, named_cap
from .routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

Tokenizer = Callable[[str], int]

_PROMPT_FIELDS: Mapping[Endpoint, tuple[str, ...]] = {
    CHAT: ("messages", "tools", "functions", "response_format", "prediction"),
    COMPLETIONS: ("prompt", "suffix"),
    EMBEDDINGS: ("input",),
    RESPONSES: ("input", "instructions", "tools", "text"),
    MESSAGES: ("messages", "system", "tools", "output_config", "output_format"),
}

_MEDIA_FIELDS = {"messages", "input", "system", "instructions"}

# Input that lives at the provider or behind a reference, so that its size cannot be seen from here.
_REFERENCES: Mapping[Endpoint, tuple[str, ...]] = {
    RESPONSES: ("previous_response_id", "conversation", "prompt"),
}

# Tools that the caller runs; all others run at the provider, feed it text of their own finding and have a fee.
_CALLERS_TOOLS = ("function", "custom", "bash_", "text_editor_", "computer_", "memory_", "apply_patch", "local_shell")
_TOOL_LIMITS = ("max_uses", "max_tool_calls")

# Tokenizing is bounded: pieces keep BPE merging linear, beyond the limit each byte counts as a token.
_PIECE = 4_096
_LONGEST = 2_000_000
LONG_TEXT = 20_000


@dataclass(frozen=True)
class Demand:
    """What one request can cost at most, before prices.

    Attributes
    ----------
    text, prompt
        All text the provider reads: serialized, and as it came, without media.
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
    tool_calls
        How often tools may run at the provider, 0 when none can.
    tools_named
        The provider-side tools asked for.
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
    """

    text: str
    prompt: Mapping[str, Any] = field(default_factory=dict, repr=False)
    token_ids: int = 0
    parts: int = 0
    images: int = 0
    remote_images: int = 0
    audio_bytes: int = 0
    whole_context: bool = False
    unbounded: tuple[str, ...] = ()
    tool_calls: int = 0
    tools_named: tuple[str, ...] = ()
    answers: int = 1
    cap: int | None = None
    writes: bool = True
    caches: bool = False
    speaks: bool = False
    tier: str | None = None
    reasoning_asked: bool = False


@dataclass(frozen=True)
class Family:
    """How a family of models turns input into tokens.

    Attributes
    ----------
    factor
        Most tokens per token of our tokenizer.
    image
        Most tokens one image costs.
    remote_images
        True where a URL can only be read as an image; elsewhere it may be a document or a film.
    tools
        Tokens of the hidden prompt that comes with tools.
    """

    factor: float
    image: int
    remote_images: bool = False
    tools: int = 200


# Images: https://platform.openai.com/docs/guides/images (gpt-4o-mini: 2833 + 48 tiles at most of 5667 are scaled down
# to 8 tiles), https://docs.anthropic.com/en/docs/build-with-claude/vision, https://ai.google.dev/gemini-api/docs/tokens.
_FAMILIES: tuple[tuple[tuple[str, ...], Family], ...] = (
    (("gpt-4o-mini",), Family(1.15, 48_169, remote_images=True)),
    (
        ("gpt-", "o1", "o3", "o4", "chatgpt", "text-embedding", "davinci", "babbage"),
        Family(1.15, 4_000, remote_images=True),
    ),
    (("claude",), Family(1.6, 5_000, remote_images=True, tools=1_000)),
    (("gemini", "gemma"), Family(1.4, 5_200)),
)
_OTHER = Family(1.8, 8_000)

# Strings that say what a part is, rather than being what it says.
_LABELS = frozenset(
    {"type", "role", "id", "object", "status", "call_id", "tool_call_id", "tool_use_id", "finish_reason", "stop_reason"}
    | {"phase", "signature", "encrypted_content", "annotations", "logprobs", "index", "cache_control", "detail"}
)
# Models that search the web unasked, whose fee and findings nobody can bound.
_SEARCHERS = ("sonar", "search-preview", "search-api", "deep-research")

_FRAMING_PER_PART = 12
_FRAMING = 32


def family(model: str) -> Family:
    """The family of a model, by the name the provider knows it under."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((value for names, value in _FAMILIES if name.startswith(names)), _OTHER)


def measure(endpoint: Endpoint, body: Body) -> Demand:
    """Take stock of a checked body.

    Raises
    ------
    BadRequest
        A part has a form no provider documents, or parts are nested too deeply to be looked through.
    """
    try:
        return _measure(endpoint, body)
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="invalid_value") from None


def _measure(endpoint: Endpoint, body: Body) -> Demand:
    given = {field: body[field] for field in _PROMPT_FIELDS[endpoint] if body.get(field) is not None}
    token_ids = _token_ids(endpoint, given)
    stock = Stock()
    prompt = {field: stock.take(value) if field in _MEDIA_FIELDS else value for field, value in given.items()}
    try:
        text = json.dumps(prompt, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise BadRequest("NaN and Infinity are not JSON.", code="invalid_value") from None
    references = [field for field in _REFERENCES.get(endpoint, ()) if body.get(field)]
    named, calls = _provider_tools(body)
    return Demand(
        text=text,
        token_ids=token_ids,
        prompt=prompt,
        parts=stock.parts,
        images=stock.images,
        remote_images=stock.remote_images,
        audio_bytes=stock.audio_bytes,
        whole_context=stock.documents > 0,
        unbounded=tuple(references + stock.references),
        tool_calls=calls,
        tools_named=named,
        answers=answers(endpoint, body),
        cap=named_cap(body),
        writes=endpoint.cap_field is not None,
        caches='"cache_control"' in text or "cache_control" in body,
        speaks="audio" in (body.get("modalities") or ()),
        tier=body.get("service_tier"),
        reasoning_asked=any(body.get(name) for name in ("thinking", "reasoning", "reasoning_effort")),
    )


def count(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text by one tokenizer; never fewer than it would count in one go."""
    if len(text) > _LONGEST:
        return len(text.encode("utf-8", "replace"))
    return sum(tokenizer(text[start : start + _PIECE]) for start in range(0, len(text), _PIECE))


def input_bound(demand: Demand, counted: int, model: str) -> int:
    """The most tokens this model can count for the input that is seen.

    Parameters
    ----------
    demand
        What was asked.
    counted
        `count(demand.text, …)`.
    model
        The model's name at its provider, which tells the family.
    """
    kind = family(model)
    text = min(int(counted * kind.factor) + 1, len(demand.text.encode("utf-8", "replace")))
    framing = _FRAMING + demand.parts * _FRAMING_PER_PART + (kind.tools if '"tools":' in demand.text else 0)
    # 16 bytes a token is eight times the densest speech codec at 10 tokens a second.
    media = (demand.images + demand.remote_images) * kind.image + demand.audio_bytes // 16
    return text + demand.token_ids + framing + media


def input_estimate(demand: Demand, tokenizer: Tokenizer) -> int:
    """The likely number of input tokens, for calls whose provider does not say: the text and a little framing."""
    texts = "\n".join(spoken(demand.prompt))
    return count(texts, tokenizer) + demand.token_ids + 3 * len(demand.prompt.get("messages") or ())


def spoken(node: Any) -> Iterator[str]:
    """The texts in a prompt or an answer, without the names, kinds and ids around them."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key not in _LABELS:
                yield from spoken(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from spoken(value)


def unseen(demand: Demand, model: str) -> tuple[str, ...]:
    """What of the input this model would read but nobody can measure here."""
    remote = ("remote image",) if demand.remote_images and not family(model).remote_images else ()
    searches = ("a model that searches the web",) if any(name in model for name in _SEARCHERS) else ()
    return demand.unbounded + remote + searches


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


def _provider_tools(body: Body) -> tuple[tuple[str, ...], int]:
    """The tools that run at the provider, and how often they may; a missing limit shows as -1."""
    found = list(_find_provider_tools(body.get("tools") or []))
    if body.get("web_search_options") is not None:
        found.append(("web_search_options", None))
    if not found:
        return (), 0
    limits = [limit if limit is not None else body.get("max_tool_calls") for _, limit in found]
    calls = -1 if any(type(limit) is not int or limit < 1 for limit in limits) else sum(limits)  # type: ignore[arg-type]
    return tuple(name for name, _ in found), calls


def _find_provider_tools(tools: list[Any]) -> Iterator[tuple[str, Any]]:
    for tool in tools:
        if not isinstance(tool, dict):
            raise BadRequest("Each tool must be an object.", code="invalid_value", param="tools")
        kind = tool.get("type", "custom")
        if not isinstance(kind, str):
            raise BadRequest("A tool's type must be a string.", code="invalid_value", param="tools")
        if not kind.startswith(_CALLERS_TOOLS):
            yield kind, next((tool[key] for key in _TOOL_LIMITS if key in tool), None)
