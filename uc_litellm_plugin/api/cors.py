"""Which headers of our answers a page of another origin may read; which origins may ask is LiteLLM's to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_EXPOSED = "Access-Control-Expose-Headers"
# Of call.py and errors.py; the official clients look at the last two.
READABLE = (
    "x-uc-request-id", "x-uc-credits-held", "x-uc-credits-charged", "x-uc-credits-remaining", "x-uc-power-level",
    "x-uc-power-level-wished", "x-uc-provider", "x-uc-byok", "x-uc-max-output-tokens", "retry-after", "x-should-retry",
)  # fmt: skip


def expose(app: FastAPI) -> None:
    """Name our headers beside LiteLLM's own.

    The proxy's layers stand already when it loads us, so theirs is completed and none is added
    (litellm/proxy/proxy_server.py, `app.add_middleware`).
    """
    for layer in _layers(app):
        if isinstance(layer, CORSMiddleware):
            named = layer.simple_headers.get(_EXPOSED)
            layer.simple_headers[_EXPOSED] = ", ".join([*([named] if named else []), *READABLE])


def _layers(app: FastAPI) -> Iterator[Any]:
    """From the outermost inwards; each has the next one as `app`."""
    layer: Any = app.middleware_stack
    while layer is not None:
        yield layer
        layer = getattr(layer, "app", None)
