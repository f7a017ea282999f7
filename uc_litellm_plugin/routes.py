"""Which routes of the proxy cost credits, which are free on purpose; every other one is refused (default deny)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from . import api_routes
from .errors import BadRequest, Forbidden

Dialect = Literal["openai", "anthropic", "responses"]


@dataclass(frozen=True)
class Endpoint:
    """A kind of call that is held before and settled after.

    Attributes
    ----------
    name
        As it stands in usage rows.
    call_type
        What LiteLLM's pre-call hook calls it (litellm/proxy/common_request_processing.py, `route_type`).
    dialect
        Whose stream events and error bodies it speaks.
    cap_field
        The body field that limits its output, None when it has no output.
    least_output
        What the output limit may be raised to on the way to another dialect. Tokens. LiteLLM raises a smaller
        `max_tokens` of `/v1/messages` for models that it reaches through `/v1/responses`.
    """

    name: str
    call_type: str
    dialect: Dialect
    cap_field: str | None
    least_output: int = 0


CHAT = Endpoint("chat", "acompletion", "openai", "max_tokens")
COMPLETIONS = Endpoint("completions", "atext_completion", "openai", "max_tokens")
EMBEDDINGS = Endpoint("embeddings", "aembedding", "openai", None)
RESPONSES = Endpoint("responses", "aresponses", "responses", "max_output_tokens")
MESSAGES = Endpoint("messages", "anthropic_messages", "anthropic", "max_tokens", least_output=16)

ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)
_BY_CALL_TYPE = {endpoint.call_type: endpoint for endpoint in ENDPOINTS}

# Fetching a stored answer costs nothing; the pre-call hook checks whose it is.
FETCH_RESPONSE = "aget_responses"

_BILLED: Mapping[str, Endpoint] = {
    "/v1/chat/completions": CHAT,
    "/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/embeddings": EMBEDDINGS,
    "/v1/responses": RESPONSES,
    "/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}

_FREE: Mapping[str, re.Pattern[str]] = {
    "/v1/models": re.compile(r"/(v1/)?models"),
    "/v1/models/{model_id}": re.compile(r"/(v1/)?models/[^/]+(/[^/]+)*"),
    "/v1/responses/{response_id}": re.compile(r"/(v1/)?responses/[^/]+"),
}

# Below it is our own REST API (api/).
API_PREFIX = f"{api_routes.PREFIX}/"

# Paid kinds that the worst case of a hold does not cover yet: they get a clear 400 rather than a puzzling 403.
_NOT_OFFERED = re.compile(
    r"/(v1/)?(images/.+|audio/.+|rerank|moderations|batches.*|files.*|fine_tuning/.+|assistants.*|threads.*"
    r"|vector_stores.*|videos.*|containers.*|realtime.*|responses/.+|messages/.+|ocr|search.*|skills.*|evals.*)"
    r"|/v2/rerank"
)

_MOST_SHOWN = 200

RouteKind = Literal["billed", "free", "api", "refused"]


def kind(method: str, path: str) -> RouteKind:
    """What happens to a user's request at this exact method and path."""
    if billed(method, path) is not None:
        return "billed"
    if method == "GET" and any(pattern.fullmatch(path) for pattern in _FREE.values()):
        return "free"
    return "refused" if api_routes.find(method, path) is None else "api"


def billed(method: str, path: str) -> Endpoint | None:
    """The endpoint that a request is for, None where it is free or refused."""
    return _BILLED.get(path) if method == "POST" else None


def check(method: str, path: str, role: str = "user") -> None:
    """Let a request of a user or a service pass to a billed or a free route, and to those of our API that are for it.

    Raises
    ------
    BadRequest
        The route is one of the LLM kinds that are not offered.
    Forbidden
        Any other route; it may be an administrator's.
    """
    found = kind(method, path)
    if found == "api":
        route = api_routes.find(method, path)
        if route is not None and not route.admits(role):
            raise Forbidden(f"{method} {shown(path)} is not open to {role} keys.", code="route_not_allowed")
    if found != "refused":
        return
    if _NOT_OFFERED.fullmatch(path):
        raise not_offered(f"{method} {shown(path)}")
    raise Forbidden(
        f"{method} {shown(path)} is not open to API keys of users; "
        f"offered are {', '.join(offered())} and GET /v1/models.",
        code="route_not_allowed",
    )


def shown(path: str) -> str:
    """A path as it may stand in a refusal and in a line of the log: on one line, and not all of a long one."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in path[:_MOST_SHOWN])


def named(name: str) -> Endpoint:
    """The endpoint of this name.

    Raises
    ------
    BadRequest
        There is none; the message lists those there are.
    """
    for endpoint in ENDPOINTS:
        if endpoint.name == name:
            return endpoint
    names = ", ".join(endpoint.name for endpoint in ENDPOINTS)
    raise BadRequest(f"'endpoint' must be one of {names}.", code="invalid_value", param="endpoint")


def billed_call(call_type: str) -> Endpoint:
    """The endpoint behind LiteLLM's call type.

    Raises
    ------
    BadRequest
        For every call type outside our table: what cannot be priced is not let through.
    """
    try:
        return _BY_CALL_TYPE[call_type]
    except KeyError:
        raise not_offered(f"This kind of call ({call_type})") from None


def not_offered(what: str) -> BadRequest:
    """The refusal of a call whose worst case cannot be held."""
    return BadRequest(
        f"{what} is not offered here: its cost cannot be held in advance. Offered are {', '.join(offered())}.",
        code="unsupported_endpoint",
    )


def open_to_users() -> list[tuple[str, str]]:
    """Methods and path templates of LiteLLM's routes that users may call."""
    return [*(("POST", path) for path in _BILLED), *(("GET", path) for path in _FREE)]


def offered() -> list[str]:
    """The billed paths in their `/v1` form."""
    return [path for path in _BILLED if path.startswith("/v1/")]
