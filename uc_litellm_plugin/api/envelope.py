"""The class of our routes: small bodies only, and every error in the OpenAI envelope, LiteLLM's routes untouched."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from litellm.proxy._types import ProxyException
from starlette.exceptions import HTTPException

from ..errors import BadRequest, CommandRefused, Conflict, DatabaseError, NotFound, Refusal, Unexpected, VaultError
from ..refusals import unreachable

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
_MOST_FAULTS = 3
_LONGEST_NAME = 60
_MISSING = ("unknown_account", "unknown_key", "unknown_power_level")


class TooLarge(Refusal):
    """413: the body is larger than any of these routes needs."""

    status = 413
    default_code = "body_too_large"


class NotOffered(Refusal):
    """501: the route is known, what it is for is not there yet."""

    status = 501
    type = "not_implemented_error"
    default_code = "not_offered"


class WrongMethod(Refusal):
    """405: the path is known, with other methods."""

    status = 405
    default_code = "method_not_allowed"


class KeyClosed(Refusal):
    """503: a stored provider key does not open."""

    status = 503
    type = "service_unavailable"
    default_code = "key_closed"


class StrictRequest(Request):
    """A request in whose JSON each name stands once: of two amounts neither is a safe guess."""

    async def json(self) -> Any:
        """The body; raises `BadRequest` and ValueError."""
        if not hasattr(self, "_json"):
            self._json = json.loads(await self.body(), object_pairs_hook=_named_once, parse_constant=_no_number)
        return self._json


class EnvelopeRoute(APIRoute):
    """A route whose handler raises refusals; `route_class` of our routers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, between a bounded body and our errors."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                sent = StrictRequest(request.scope, request.receive)
                await _read_bounded(sent)
                return await handle(sent)
            except ProxyException:
                raise  # LiteLLM's authentication; its handler writes the same envelope.
            except Exception as error:
                # Whatever a client sent, it must get our envelope; what is no refusal is logged.
                return refused(_as_refusal(error))

        return answer


def refused(refusal: Refusal) -> JSONResponse:
    """A refusal as HTTP."""
    return JSONResponse({"error": refusal.error()}, refusal.status, headers=dict(refusal.headers))


async def _read_bounded(request: Request) -> None:
    """Read the body, or refuse a large one unread; LiteLLM is told of an empty one.

    It would search the body for its own controls (`api_base` is one), and log it, provider keys included. That it looks
    here first: litellm/proxy/common_utils/http_parsing_utils.py, `_safe_get_request_parsed_body`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise TooLarge(f"The body may have up to {MOST_BYTES} bytes.", headers={"connection": "close"})
    request._body = bytes(body)  # Where Starlette keeps a body that was read.
    request.scope["parsed_body"] = ((), {})


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRequest("A field stands twice in an object of the body.", code="invalid_json")
    return found


def _no_number(name: str) -> NoReturn:
    raise BadRequest(f"{name} is no number of JSON.", code="invalid_json")


def _as_refusal(error: Exception) -> Refusal:
    if isinstance(error, HTTPException) and isinstance(error.__cause__, Refusal):
        error = error.__cause__  # FastAPI wraps what comes up while it reads the body.
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return _explained(error.errors())
    if isinstance(error, CommandRefused):
        return _of_command(error)
    if isinstance(error, DatabaseError):
        return unreachable(error)
    if isinstance(error, VaultError):
        logger.error("a provider key does not open: %s", error, extra={"action": "vault_error"})
        return KeyClosed("This provider key cannot be opened at the moment; the operator can.", code=error.code)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return BadRequest("The body cannot be read as JSON.", code="invalid_json")
    logger.error("a request to our API failed", exc_info=error)
    return Unexpected()


def _of_command(error: CommandRefused) -> Refusal:
    if error.code in _MISSING:
        return NotFound(str(error), code=error.code)
    return Conflict(str(error)) if error.code == "idempotency_conflict" else BadRequest(str(error), code=error.code)


def _explained(faults: Sequence[Mapping[str, Any]]) -> BadRequest:
    """The first faults of a request, without what was sent."""
    if faults and faults[0]["type"] == "json_invalid":
        return BadRequest("The body cannot be read as JSON.", code="invalid_json")
    said = [f"{name}: {_reason(fault)}" if (name := _name(fault)) else _reason(fault) for fault in faults]
    message = "; ".join(said[:_MOST_FAULTS])
    more = len(said) - _MOST_FAULTS
    message += f"; and {more} more" if more > 0 else ""
    return BadRequest(f"{message}.", code="invalid_value", param=_name(faults[0]) or None)


def _name(fault: Mapping[str, Any]) -> str:
    """Where a fault is, as the client calls it; names that a client made up may hold anything."""
    parts = [str(part).encode("ascii", "backslashreplace").decode() for part in fault["loc"][1:]]
    return ".".join(part[:_LONGEST_NAME] for part in parts[:4])


def _reason(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    if fault["type"] == "string_unicode":
        return "must be Unicode text"
    return str(fault["msg"]).removeprefix("Value error, ")
