"""The body of a paid request: which fields may stand in it, and numbers that are numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from . import shapes
from .errors import BadRequest
from .routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

Body = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Inbound:
    """A request as the client sent it.

    Attributes
    ----------
    body
        Its JSON object, before LiteLLM added anything.
    headers
        With lower-case names.
    ip_address
        Of the peer.
    """

    body: Mapping[str, Any]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ip_address: str | None = None


IDEMPOTENCY_HEADER = "idempotency-key"
# Characters.
LONGEST_MODEL = 512

# Every name under which a provider takes its output limit; each one that is present is overwritten with ours.
CAP_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")

_SAMPLING = {"temperature", "top_p", "top_k", "top_a", "min_p", "repetition_penalty", "seed", "stop"}
_OPENAI = {"model", "stream", "user", "metadata", "frequency_penalty", "presence_penalty", "logit_bias"}
_CACHING = {"prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store"}

# Ours, on every endpoint; it never goes on to a provider.
ROUTING_FIELD = "provider"

# The documented fields: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages.
_FIELDS: Mapping[Endpoint, frozenset[str]] = {
    CHAT: frozenset(
        _OPENAI
        | _SAMPLING
        | _CACHING
        | {"messages", "audio", "function_call", "functions", "logprobs", "max_completion_tokens", "max_tokens"}
        | {"modalities", "n", "parallel_tool_calls", "reasoning", "reasoning_effort", "response_format"}
        | {"stream_options", "thinking", "tool_choice", "tools", "top_logprobs", "verbosity", "web_search_options"}
    ),
    COMPLETIONS: frozenset(
        _OPENAI | _SAMPLING | {"prompt", "best_of", "echo", "logprobs", "max_tokens", "n", "stream_options", "suffix"}
    ),
    EMBEDDINGS: frozenset({"model", "input", "dimensions", "encoding_format", "input_type", "user", "metadata"}),
    RESPONSES: frozenset(
        _CACHING
        | {"model", "stream", "user", "metadata", "temperature", "top_p", "top_logprobs", "input", "background"}
        | {"conversation", "include", "instructions", "max_output_tokens", "max_tool_calls"}
        | {"parallel_tool_calls", "previous_response_id", "prompt", "reasoning", "stream_options", "text"}
        | {"tool_choice", "tools", "truncation"}
    ),
    MESSAGES: frozenset(
        {"model", "messages", "max_tokens", "metadata", "stop_sequences", "stream", "system", "temperature"}
        | {"thinking", "tool_choice", "tools", "top_k", "top_p", "service_tier"}
        | {"output_config", "output_format", "cache_control"}
    ),
}

# What steers LiteLLM rather than the model; no setting opens these (litellm/types/router.py, litellm/main.py).
CONTROLS = frozenset(
    {"extra_body", "extra_headers", "extra_query", "api_key", "api_base", "base_url", "api_version", "organization"}
    | {"fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "disable_fallbacks", "num_retries"}
    | {"max_retries", "timeout", "stream_timeout", "request_timeout", "specific_deployment", "routing_strategy"}
    | {"no-log", "mock_response", "mock_tool_calls", "mock_timeout", "mock_testing_fallbacks", "litellm_metadata"}
    | {"litellm_params", "litellm_call_id", "litellm_logging_obj", "proxy_server_request", "model_info", "model_list"}
    | {"user_config", "cache", "caching", "custom_llm_provider", "input_cost_per_token", "output_cost_per_token"}
    | {"base_model", "guardrails", "tags", "headers", "ssl_verify", "client", "azure_ad_token", "vertex_credentials"}
    | {"drop_params", "additional_drop_params", "allowed_openai_params", "cooldown_time", "preset_cache_key"}
    | {"enable_cache_control", "cache_control_injection_points", "router_settings_override", "merge_reasoning_content"}
)

LARGEST_CAP = 10_000_000
_LARGEST: Mapping[str, int] = {**dict.fromkeys(CAP_FIELDS, LARGEST_CAP), "n": 128, "best_of": 128}


def fields(endpoint: Endpoint) -> frozenset[str]:
    """The documented fields of an endpoint's bodies, and ours."""
    return _FIELDS[endpoint] | {ROUTING_FIELD}


def check_body(endpoint: Endpoint, body: Body, extra_fields: frozenset[str]) -> None:
    """Refuse a body that holds a field nobody documented, or a number that is none.

    Parameters
    ----------
    endpoint
        What is called.
    body
        The client's JSON, as it came.
    extra_fields
        Names the operator added (`requests.extra_fields`).

    Raises
    ------
    BadRequest
        Names the field.
    """
    for field in body:
        _check_field(endpoint, field, extra_fields)
    check_model(body.get("model"))
    for field, most in _LARGEST.items():
        if field in body:
            whole_number(body, field, most)
    shapes.check(endpoint, body)
    if endpoint is RESPONSES:
        _check_caching(body)


def _check_caching(body: Body) -> None:
    """Writes into the prompt cache for an hour are dearer, and LiteLLM's translation to this API does not tell them."""
    ahead: list[Any] = [body]
    while ahead:
        node = ahead.pop()
        if isinstance(node, Mapping):
            control = node.get("cache_control")
            if isinstance(control, Mapping) and control.get("ttl", "5m") != "5m":
                raise BadRequest("cache_control.ttl can be 5m only on /v1/responses.", param="cache_control")
            ahead += node.values()
        elif isinstance(node, list):
            ahead += node


def _check_field(endpoint: Endpoint, field: str, extra_fields: frozenset[str]) -> None:
    if field in CONTROLS or field.startswith("_"):
        shown = clean(field, 100) or ""
        raise BadRequest(
            f"'{shown}' steers the proxy and is not taken from clients.", code="unknown_field", param=shown
        )
    if field not in _FIELDS[endpoint] and field != ROUTING_FIELD and field not in extra_fields:
        shown = clean(field, 100) or ""
        raise BadRequest(
            f"'{shown}' is not a field of {endpoint.name} requests here; remove it, "
            "or ask the operator to add it to requests.extra_fields.",
            code="unknown_field",
            param=shown,
        )


def check_model(model: Any) -> None:
    """Refuse what is not the name of one model: LiteLLM calls each of several names with commas between them.

    Raises
    ------
    BadRequest
        It is no text, empty, too long, or holds a comma or a control character.
    """
    if not isinstance(model, str) or not model.strip() or len(model) > LONGEST_MODEL:
        raise BadRequest("'model' must name one model.", code="invalid_model", param="model")
    if "," in model or not (model.isprintable() or all(unicodedata.category(char) != "Cc" for char in model)):
        raise BadRequest(
            "'model' must name one model: no commas, no control characters.", code="invalid_model", param="model"
        )


def idempotency_key(inbound: Inbound) -> str | None:
    """The client's `Idempotency-Key`, None without one.

    Raises
    ------
    BadRequest
        It is empty, too long, or holds other than printable ASCII.
    """
    key = inbound.headers.get(IDEMPOTENCY_HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not (key.isascii() and key.isprintable()):
        raise BadRequest("Idempotency-Key must be 1 to 255 printable ASCII characters.", code="invalid_idempotency_key")
    return key


def body_hash(endpoint: Endpoint, body: Body) -> str:
    """What a retry must have in common with its first try: SHA-256 of the endpoint and the body, in hex."""
    written = json.dumps([endpoint.name, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()


def whole_number(body: Body, field: str, most: int) -> int | None:
    """The value of a numeric field, None where it is missing or null.

    Raises
    ------
    BadRequest
        It is not a whole number from 1 to `most`; `true` and 5.0 are none.
    """
    value = body.get(field)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(f"'{field}' must be a whole number from 1 to {most}.", code="invalid_value", param=field)
    return value


def named_cap(body: Body) -> int | None:
    """The output limit the client named, in tokens: the smallest where it named several."""
    named = [value for field in CAP_FIELDS if (value := body.get(field)) is not None]
    return min(named) if named else None


def answers(endpoint: Endpoint, body: Body) -> int:
    """How many answers the provider may generate: the larger of `n` and `best_of`, for each prompt."""
    return max(body.get("n") or 1, body.get("best_of") or 1) * shapes.prompts(endpoint, body)


def clean(value: Any, longest: int) -> str | None:
    """A client's own name for something, fit for a row: no control characters, no surrogates, bounded.

    PostgreSQL's text takes neither NUL nor lone surrogates.
    """
    if not isinstance(value, str):
        return None
    kept = value[:longest]
    if not kept.isprintable():
        kept = "".join(char for char in kept if unicodedata.category(char) not in ("Cc", "Cs"))
    return kept.strip() or None
