"""A request as the client sent it, and as LiteLLM carries it on to the router."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import litellm
from fastapi import Request
from litellm.proxy.common_utils.http_parsing_utils import _read_request_body

from . import routes, shapes
from .call import Call
from .errors import BadRequest
from .plan import Candidate, Plan
from .requests import CAP_FIELDS, ROUTING_FIELD, Inbound, fields

# What LiteLLM takes from headers or keys and would let a client steer a call with
# (litellm/proxy/litellm_pre_call_utils.py, `add_litellm_data_for_backend_llm_call`).
_STEERING = ("timeout", "stream_timeout", "client_side_timeout", "num_retries", "disable_fallbacks", "fallbacks",
             "api_key", "no-log", "mock_response", "specific_deployment", "max_retries", "request_timeout")  # fmt: skip
# What LiteLLM itself adds to a request's data before the pre-call hook runs.
_LITELLMS_OWN = frozenset(
    {"metadata", "litellm_metadata", "proxy_server_request", "secret_fields", "litellm_call_id", "litellm_logging_obj"}
    | {"litellm_session_id", "litellm_trace_id", "headers", "api_version", "ttl", "cache", "keepalive_seconds"}
    | {"provider_specific_header", "user", "organization", "enable_prompt_caching", "allowed_model_region"}
)

# Headers that tell who answers.
_OF_ATTEMPTS = frozenset({"x-uc-provider", "x-uc-byok"})

# Says that the client has not asked for usage.
_STRIPS_USAGE = "_litellm_strip_stream_usage"
# Without these LiteLLM cannot go on; clients cannot write them (litellm strips or overwrites what they send).
_NEEDED = frozenset(
    {"metadata", "litellm_metadata", "proxy_server_request", "secret_fields", "litellm_call_id", "litellm_logging_obj"}
    | {"litellm_session_id", "litellm_trace_id", "user"}
)


async def read(request: Request, path: str) -> Inbound:
    """The client's request, before LiteLLM adds anything to it.

    Raises
    ------
    BadRequest
        The body of a billed call is no JSON object.
    """
    billed = routes.kind(request.method, path) == "billed"
    body = await _read_request_body(request=request) if billed else {}
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    shapes.check_early(body)
    if billed and "model" in request.query_params:
        # LiteLLM would take it over the body's, which is what was checked.
        raise BadRequest("The model belongs into the body, not into the query.", code="invalid_model", param="model")
    headers = {name.lower(): value for name, value in request.headers.items()}
    kept = dict(body)
    if isinstance(kept.get("metadata"), dict):
        # LiteLLM writes its own into the very object that the client's body has.
        kept["metadata"] = dict(kept["metadata"])
    return Inbound(kept, headers, request.client.host if request.client else None)


def from_litellm(data: Mapping[str, Any]) -> Inbound:
    """The request as LiteLLM has it after its own authentication, without what LiteLLM added."""
    body = {key: value for key, value in data.items() if not _is_litellms(key)}
    metadata = data.get("metadata")
    if isinstance(metadata, dict):
        body["metadata"] = {key: value for key, value in metadata.items() if not key.startswith("user_api_key")}
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    return Inbound(body, {name.lower(): value for name, value in headers.items()})


def _is_litellms(key: str) -> bool:
    return key in _LITELLMS_OWN or key in _STEERING or key.startswith(("_", "litellm_"))


def prepared(call: Call, data: dict[str, Any], extra_fields: frozenset[str], *, ours: bool) -> dict[str, Any]:
    """The request as it goes to the router: capped, asking for usage, without what steers LiteLLM.

    Parameters
    ----------
    extra_fields
        Body fields the operator added.
    ours
        Whether the body was checked as it came. Otherwise LiteLLM's additions cannot be told from the client's, and
        only what is known goes on.
    """
    if not ours:
        known = fields(call.endpoint) | extra_fields | _NEEDED
        for key in data.keys() - known:
            del data[key]
    for field in (*_STEERING, ROUTING_FIELD):
        data.pop(field, None)
    if isinstance(metadata := data.get("metadata"), dict):
        # Ours; Anthropic refuses what it does not know there.
        metadata.pop("power_level", None)
    data["model"] = call.plan.candidates[0].group
    if call.plan.ours:
        data["fallbacks"], data["num_retries"] = hops(call.plan), 0
    if call.endpoint.cap_field is not None:
        present = [field for field in CAP_FIELDS if data.get(field) is not None]
        for field in present or [call.endpoint.cap_field]:
            data[field] = call.cap
    if call.streamed and call.endpoint in (routes.CHAT, routes.COMPLETIONS):
        data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        if call.endpoint is routes.COMPLETIONS:
            # LiteLLM would drop the usage before it reaches us (text_completions/streaming_iterator.py, from 1.108);
            # for a client that has not asked for it, we drop it ourselves.
            data.pop(_STRIPS_USAGE, None)
        # Where a provider takes no such option, LiteLLM's stream reads it from here (streaming_handler.py).
        if (logging_obj := data.get("litellm_logging_obj")) is not None:
            logging_obj.stream_options = data["stream_options"]
    if litellm.cache is not None:
        data["cache"] = {**(data.get("cache") or {}), "namespace": call.caller.user_id}
        if call.endpoint is routes.EMBEDDINGS and isinstance(data.get("input"), list) and len(data["input"]) > 1:
            # LiteLLM would ask the provider for the inputs that it lacks, and call the whole a hit.
            data["cache"]["no-cache"] = True
    return data


def hops(plan: Plan) -> list[dict[str, Any]]:
    """The plan's candidates after the first, as LiteLLM's per-request fallbacks, which it follows whatever the failure.

    Each entry must differ from the others to be followed (litellm/router_utils/fallback_event_handlers.py,
    `fallback_attempt_key`), so it names the deployments that will have been tried in its group by then.
    """
    entries: list[dict[str, Any]] = []
    tried: dict[str, list[str]] = {}
    for candidate in plan.candidates:
        before = tried.setdefault(candidate.group, [])
        entry: dict[str, Any] = {"model": candidate.group}
        if before:
            entry["_excluded_deployment_ids"] = list(before)
        entries.append(entry)
        before.append(candidate.deployment)
    return entries[1:]


def capped(call: Call, candidate: Candidate, kwargs: dict[str, Any]) -> dict[str, Any]:
    """One attempt's arguments, with every output limit in them held to what this candidate may write."""
    if call.endpoint.cap_field is None:
        return kwargs
    cap = call.output_cap(candidate)
    present = [field for field in CAP_FIELDS if kwargs.get(field) is not None]
    return {**kwargs, **{field: min(cap, kwargs[field]) for field in present}}


class Late(str):
    """A header's value that is looked up when it is sent: a stream may fail over after LiteLLM has asked for headers.

    Starlette encodes headers when it makes the response, which LiteLLM does after the first chunk
    (litellm/proxy/common_request_processing.py, `create_response`).

    Parameters
    ----------
    now
        The value as it is now.
    later
        Looks it up.
    """

    later: Callable[[], str]

    def __new__(cls, now: str, later: Callable[[], str]) -> Late:
        made = super().__new__(cls, now)
        made.later = later
        return made

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes of the value as it is now."""
        return self.later().encode(encoding, errors)


def headers(call: Call) -> dict[str, str]:
    """What a client is told in HTTP headers; whose answer a stream is is looked up when they are sent."""
    told = call.headers()
    if call.streamed:
        told.update({name: Late(told[name], partial(_as_it_is, call, name)) for name in _OF_ATTEMPTS & told.keys()})
    return told


def _as_it_is(call: Call, name: str) -> str:
    return call.headers()[name]


def is_health_check(kwargs: Mapping[str, Any]) -> bool:
    """LiteLLM's own probes (litellm/litellm_core_utils/health_check_helpers.py) carry no client's request."""
    for name in ("metadata", "litellm_metadata"):
        metadata = kwargs.get(name) or {}
        if "litellm-internal-health-check" in (metadata.get("tags") or ()):
            return True
    return kwargs.get("proxy_server_request") is None


def is_cached(data: Mapping[str, Any]) -> bool:
    """Whether LiteLLM answers from its response cache, which answers do not show themselves on all endpoints.

    It knows when it has looked (litellm/caching/caching_handler.py, `_async_get_cache`); `model_call_details`, and what
    answers say, come later, by a task.
    """
    details = getattr(data.get("litellm_logging_obj"), "caching_details", None)
    return isinstance(details, dict) and details.get("cache_hit") is True


def forget_cache(data: Mapping[str, Any]) -> None:
    """Begin an attempt: a hit that LiteLLM went on from (for its `content_filter`) says nothing of the next answer."""
    if (logging_obj := data.get("litellm_logging_obj")) is not None:
        logging_obj.caching_details = None
