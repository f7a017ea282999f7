"""The REST API on the proxy's own app, under `/api/v1`, behind the proxy's own authentication.

`api_routes.ROUTES` lists what is here and for whom.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from ..api_routes import PREFIX, ROUTES
from ..reception import Reception
from . import (
    analytics,
    api_keys,
    cors,
    credits,
    explain,
    levels,
    openrouter,
    provider_keys,
    providers,
    unknown,
    usage,
    users,
)
from .envelope import EnvelopeRoute

__all__ = ["mount"]

_PARTS: tuple[APIRouter, ...] = (
    credits.routing,
    provider_keys.routing,
    api_keys.routing,
    levels.routing,
    analytics.routing,
    usage.routing,
    providers.routing,
    explain.routing,
    users.routing,
    openrouter.routing,
    unknown.routing,
)


def mount(app: FastAPI, reception: Reception) -> None:
    """Add our routes to LiteLLM's app, once per process."""
    if getattr(app.state, "uc_reception", None) is not None:
        return
    app.state.uc_reception = reception
    for part in _PARTS:
        for route in part.routes:
            _describe(route)
        app.include_router(part, prefix=PREFIX)
    cors.expose(app)


def _describe(route: BaseRoute) -> None:
    """Say of a route in the OpenAPI document what the table says of it."""
    if not isinstance(route, EnvelopeRoute):
        return
    for known in ROUTES:
        if known.path == f"{PREFIX}{route.path}" and known.method in (route.methods or ()):
            route.summary = known.summary
            route.openapi_extra = {"x-uc-audience": known.audience}
