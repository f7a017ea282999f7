"""What is under our prefix and no route: 404 and 405 in the envelope, once it is known who asks."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter, Request
from starlette.convertors import PathConvertor, register_url_convertor

from .. import identity
from .callers import Asking, nothing_at
from .envelope import EnvelopeRoute

routing = APIRouter(route_class=EnvelopeRoute, include_in_schema=False)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


class _Anything(PathConvertor):
    """A path with line ends in it, too, for which LiteLLM would answer in its own words."""

    regex = "(?s:.*)"


register_url_convertor("uc_anything", _Anything())


@routing.api_route("/{rest:uc_anything}", methods=_METHODS, response_model=None)
async def unknown(request: Request, asking: Asking) -> NoReturn:
    """Say that there is nothing here, which `Asking` has done for all that is not in the table of routes."""
    raise nothing_at(request.method, identity.path_of(request))
