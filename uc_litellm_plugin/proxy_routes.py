"""What the proxy's application serves: every method and path, and whether LiteLLM asks there who calls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_PARAMETER = re.compile(r"\{[^}]+\}")


class Served(NamedTuple):
    """A method and a path template of the application.

    Attributes
    ----------
    method
        WEBSOCKET for a WebSocket, MOUNT for a directory of files.
    authenticated
        Whether LiteLLM asks who calls before the route is entered, so that our authentication decides.
    """

    method: str
    path: str
    authenticated: bool

    @property
    def concrete(self) -> str:
        """A path that the template matches."""
        return _PARAMETER.sub("x", self.path)


def served() -> tuple[Served, ...]:
    """LiteLLM's routes, of included routers and of features that load later too; of two that are one, the first."""
    from litellm.proxy._lazy_features import register_all_features
    from litellm.proxy.proxy_server import app

    register_all_features(app)
    found: dict[tuple[str, str], Served] = {}
    for route in _walk(app.routes):
        found.setdefault((route.method, route.path), route)
    return tuple(found.values())


def _walk(nodes: Any, prefix: str = "") -> Iterator[Served]:
    for node in nodes:
        if hasattr(node, "original_router"):
            yield from _walk(node.original_router.routes, prefix + node.include_context.prefix)
            continue
        authenticated = hasattr(node, "dependant") and any(map(_authenticates, _calls(node.dependant)))
        kind = ["WEBSOCKET" if hasattr(node, "dependant") else "MOUNT"]
        for method in sorted(getattr(node, "methods", None) or kind):
            yield Served(method, prefix + node.path, authenticated)


def _calls(dependant: Any) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)


def _authenticates(call: Any) -> bool:
    return "user_api_key_auth" in getattr(call, "__name__", "")
