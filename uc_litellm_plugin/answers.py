"""What providers answer: the usage in it, the text that was delivered, and the cost written into it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from .routes import Dialect

Usage = Mapping[str, Any]

_COUNTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
# OpenAI's and Anthropic's names, as LiteLLM passes them on.
_LIMITS = ("x-ratelimit-remaining-requests", "llm_provider-x-ratelimit-remaining-requests",
           "llm_provider-anthropic-ratelimit-requests-remaining")  # fmt: skip
# Far beyond any context window: a provider that reports more has a fault.
_MOST_TOKENS = 1_000_000_000
_LONGEST_ID = 255
# What Google says of the tier in `trafficType`; ordinary traffic is any other.
_TIERS_OF_TRAFFIC = {"ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "FLEX": "flex", "BATCH": "batch"}

# Strings that say what a part is, rather than being what it says.
_LABELS = frozenset(
    {"type", "role", "id", "object", "status", "call_id", "tool_call_id", "tool_use_id", "finish_reason", "stop_reason"}
    | {"phase", "signature", "encrypted_content", "annotations", "logprobs", "index", "cache_control", "detail"}
    | {"content_filter_results", "native_finish_reason"}
)


def plain(value: Any) -> Any:
    """A pydantic object, a dict or a string of JSON as plain data."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    return value


def get(value: Any, name: str) -> Any:
    """A member of an object or of a dict, None where it has none."""
    if isinstance(value, BaseModel):
        return _member(value, name)
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _member(value: BaseModel, name: str) -> Any:
    """As `getattr`, which takes ten times as long to find out that a pydantic object has no such member."""
    if name in value.__dict__:
        return value.__dict__[name]
    if (extra := value.__pydantic_extra__) and name in extra:
        return extra[name]
    return getattr(value, name, None) if is_of_class(type(value), name) else None


@lru_cache(1_024)
def is_of_class(kind: type[BaseModel], name: str) -> bool:
    """Whether objects of a pydantic class have a member that they do not keep themselves."""
    return name in kind.__private_attributes__ or any(name in vars(each) for each in kind.__mro__)


def usage_of(answer: Any) -> Usage | None:
    """The provider's usage in an answer, None where it is missing or says nothing."""
    usage = plain(get(answer, "usage"))
    return usage if says_something(usage) else None


def says_something(usage: Any) -> bool:
    """Whether a usage can be charged by: numbers of tokens, not all zero, none absurd."""
    if not isinstance(usage, Mapping):
        return False
    return 0 < sum(_number(usage, name) for name in _COUNTS) <= _MOST_TOKENS


def stored_id(answer: Any) -> str | None:
    """The provider's own id of an answer, which LiteLLM wraps together with the deployment's
    (litellm/responses/utils.py, `_build_responses_api_response_id`). None where no row could take it."""
    given = get(answer, "id")
    if not isinstance(given, str):
        return None
    try:
        inner = base64.b64decode(given.removeprefix("resp_"), validate=True).decode()
    except ValueError:
        inner = given
    found = inner.rpartition("response_id:")[2] if "response_id:" in inner else given
    return found if len(found) <= _LONGEST_ID and found.isprintable() else None


def served_tier(answer: Any) -> str | None:
    """The service tier that a provider says it served: of the answer, of its usage, or Google's kind of traffic
    (litellm/cost_calculator.py, `_served_service_tier`); None where it says nothing."""
    said = get(answer, "service_tier") or get(get(answer, "usage"), "service_tier")
    if isinstance(said, str) and said:
        return said
    hidden = getattr(answer, "_hidden_params", None)
    fields = (hidden.get("provider_specific_fields") if isinstance(hidden, dict) else None) or {}
    traffic = fields.get("traffic_type")
    return _TIERS_OF_TRAFFIC.get(traffic.upper(), "default") if isinstance(traffic, str) else None


def requests_left(response: Any) -> int | None:
    """How many more requests the provider's rate limit lets pass now, by its response headers; None if it says nothing.

    LiteLLM keeps them with the answer (litellm/litellm_core_utils/core_helpers.py, `process_response_headers`).
    """
    hidden = getattr(response, "_hidden_params", None)
    headers = (hidden.get("additional_headers") if isinstance(hidden, dict) else None) or {}
    for name in _LIMITS:
        value = headers.get(name)
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    return None


def spoken(node: Any) -> Iterator[str]:
    """The texts in an answer, without the names, kinds and ids around them."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key not in _LABELS:
                yield from spoken(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from spoken(value)


def delivered(piece: Any) -> list[str]:
    """The texts in a piece of an answer; one that holds nothing else, as most do, is read as it is."""
    if isinstance(piece, BaseModel):
        members = [*piece.__dict__.items(), *(piece.__pydantic_extra__ or {}).items()]
        if all(value is None or isinstance(value, str) for _, value in members):
            return [value for name, value in members if value and name not in _LABELS]
    return [text for text in spoken(plain(piece)) if text]


def text_of(answer: Any) -> str:
    """All that an answer delivered, as text to be counted."""
    data = plain(answer)
    parts = [data.get(name) for name in ("choices", "content", "output")] if isinstance(data, Mapping) else [str(data)]
    return "\n".join(spoken(parts))


def write_cost(answer: Any, charged: Decimal) -> None:
    """Set `usage.cost` of a plain answer: credits, as a JSON number."""
    usage = get(answer, "usage")
    if isinstance(usage, dict):
        usage["cost"] = float(charged)
    elif hasattr(usage, "model_dump"):
        usage.cost = float(charged)


def tokens(usage: Usage) -> dict[str, int]:
    """A usage object of any dialect as the columns of a usage row. Anthropic's input leaves cached tokens out."""
    read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    written = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        prompt, completion = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")
    else:
        cached = _number(usage, "cache_read_input_tokens") + _number(usage, "cache_creation_input_tokens")
        prompt, completion = _number(usage, "input_tokens") + cached, _number(usage, "output_tokens")
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cached_tokens": _number(read, "cached_tokens") or _number(usage, "cache_read_input_tokens"),
        "reasoning_tokens": _number(written, "reasoning_tokens"),
    }
    return {name: min(count, _MOST_TOKENS) for name, count in counts.items()}


def estimated(dialect: Dialect, prompt_tokens: int, completion_tokens: int, known: Usage | None = None) -> Usage:
    """A usage object from our own counts, in the dialect's shape; what the provider said before it broke off stays."""
    seen = {name: value for name, value in (known or {}).items() if value is not None}
    reading, writing = "input_tokens", "output_tokens"
    if dialect == "openai":
        reading, writing = "prompt_tokens", "completion_tokens"
        # Its details of the output would be of the part it had counted, not of what was delivered.
        seen.pop("completion_tokens_details", None)
    read = _number(seen, reading) or prompt_tokens
    wrote = max(completion_tokens, _number(seen, writing))
    total = {} if dialect == "anthropic" else {"total_tokens": read + wrote}
    return {**seen, reading: read, writing: wrote, **total}


def _number(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name) if isinstance(source, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return max(0, int(value))
