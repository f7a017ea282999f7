"""The REST API on the proxy's own app, under `/api/v1`, behind the proxy's own authentication."""

from __future__ import annotations

from fastapi import FastAPI

from ..reception import Reception
from . import explain

__all__ = ["mount"]

PREFIX = "/api/v1"


def mount(app: FastAPI, reception: Reception) -> None:
    """Add our routes to LiteLLM's app, once per process."""
    if getattr(app.state, "uc_mounted", False):
        return
    app.state.uc_mounted = True
    app.include_router(explain.router(reception), prefix=PREFIX)
