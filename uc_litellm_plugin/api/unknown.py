"""What is under our prefix and no route: 404 and 405 in the envelope, once it is known who asks."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter, Request

from .. import api_routes, identity
from ..errors import NotFound
from .callers import Asking
from .envelope import EnvelopeRoute, WrongMethod

routing = APIRouter(route_class=EnvelopeRoute, include_in_schema=False)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


@routing.api_route("/{rest:path}", methods=_METHODS, response_model=None)
async def unknown(request: Request, asking: Asking) -> NoReturn:
    """Say that there is nothing here."""
    path = identity.path_of(request)
    if methods := api_routes.methods_of(path):
        allowed = ", ".join(methods)
        raise WrongMethod(f"{request.method} is not for {path[:200]}; use {allowed}.", headers={"allow": allowed})
    raise NotFound(f"There is no {path[:200]} here; the routes stand in /openapi.json.", code="unknown_route")
