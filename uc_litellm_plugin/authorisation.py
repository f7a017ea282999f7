"""Who may call which route of the proxy: the table that docs/api.md shows, from the code that decides.

`python -m uc_litellm_plugin.authorisation` prints it; with `--all`, one line for each route that LiteLLM serves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from . import api_routes, routes
from .errors import BadRequest, Refusal

Role = Literal["anonymous", "user", "service", "admin"]
ROLES: tuple[Role, ...] = ("anonymous", "user", "service", "admin")

# What a cell says.
OPEN = "open"  # LiteLLM asks nobody who calls.
OWN = "own"  # About the caller's own account.
NAMED = "named"  # About the account that X-UC-User-Id names; 403 without.
YES = "yes"  # Not about an account.
Cell = Literal["open", "own", "named", "yes", "400", "401", "403"]

_PARAMETER = re.compile(r"\{[^}]+\}")

Row = tuple[str, str, tuple[Cell, ...]]

_LEGEND = {
    OPEN: "LiteLLM does not ask us who calls; some of these routes ask for a secret of their own",
    OWN: "about the caller's own account, and no other row",
    NAMED: "about the account that `X-UC-User-Id` names; 403 (`payer_missing`) without",
    YES: "passes; what a route of LiteLLM's then does is LiteLLM's, but a call of a model needs `X-UC-User-Id`, and "
    "one that cannot be held is refused (400)",
    "400": "a kind of call whose cost cannot be held (`unsupported_endpoint`)",
    "401": "who is not known",
    "403": "`route_not_allowed`; a WebSocket is not accepted",
}


def cell(role: Role, method: str, path: str, *, authenticated: bool = True) -> Cell:
    """What becomes of a request with a key or token of this role.

    Parameters
    ----------
    method, path
        Of the request, without parameters in braces.
    authenticated
        Whether LiteLLM asks who calls.
    """
    if not authenticated:
        return "open"
    if role == "anonymous":
        return "403" if method == "WEBSOCKET" else "401"
    if role != "admin" and (refused := _refused(role, method, path)) is not None:
        return refused
    if not _is_about_an_account(method, path):
        return "yes"
    return "own" if role == "user" else "named"


def _refused(role: Role, method: str, path: str) -> Cell | None:
    try:
        routes.check(method, path, role)
    except BadRequest:
        return "403" if method == "WEBSOCKET" else "400"
    except Refusal:
        return "403"
    return None


def _is_about_an_account(method: str, path: str) -> bool:
    kind = routes.kind(method, path)
    if kind == "api":
        route = api_routes.find(method, path)
        return route is not None and route.account
    return kind == "billed" or (kind == "free" and "/responses/" in path)


def cells(method: str, path: str, *, authenticated: bool = True) -> tuple[Cell, ...]:
    """One row of the table, in the order of `ROLES`."""
    return tuple(cell(role, method, path, authenticated=authenticated) for role in ROLES)


def rows() -> Iterator[Row]:
    """The table: our own routes and those of models one by one, LiteLLM's others in groups."""
    for route in api_routes.ROUTES:
        yield route.method, route.path, cells(route.method, _example(route.path))
    for method, path in routes.open_to_users():
        yield method, path, cells(method, _example(path))
    for name, method, path, authenticated in _OTHERS:
        yield "any", name, cells(method, path, authenticated=authenticated)


# What stands for each group of LiteLLM's own routes: a name, and one of them.
_OTHERS = (
    ("images, audio, rerank, moderations, batches, files, fine-tuning, assistants, vector stores, videos, …",
     "POST", "/v1/images/generations", True),
    ("LiteLLM's administration (keys, users, teams, models, budgets, settings, spend), pass-through, MCP, agents",
     "POST", "/key/generate", True),
    ("WebSockets", "WEBSOCKET", "/v1/realtime", True),
    ("LiteLLM's public routes: health, sign-in, lists, and the files of its pages (their data is administration)",
     "GET", "/health/liveliness", False),
)  # fmt: skip


def _example(path: str) -> str:
    """A path that the template matches."""
    return _PARAMETER.sub("x", path)


def markdown() -> str:
    """The table as docs/api.md holds it, with its legend."""
    lines = [f"| method | route | {' | '.join(ROLES)} |", f"| --- | --- |{' --- |' * len(ROLES)}"]
    for method, path, found in rows():
        shown = f"`{path}`" if path.startswith("/") else path
        lines.append(f"| {method} | {shown} | {' | '.join(found)} |")
    return "\n".join([*lines, "", *(f"- {name}: {meaning}" for name, meaning in _LEGEND.items())])


def listing(served: Iterable[tuple[str, str, bool]]) -> Iterator[str]:
    """One line for each of these routes (method, path, whether LiteLLM asks who calls)."""
    for method, path, authenticated in served:
        found = cells(method, _example(path), authenticated=authenticated)
        yield "\t".join([method, path, *found])


def main(arguments: Sequence[str]) -> None:
    """Print the table, or with `--all` every route."""
    if "--all" in arguments:
        from .proxy_routes import served

        own = [(route.method, route.path, True) for route in api_routes.ROUTES]
        lines: Iterable[str] = listing([*own, *served()])
    else:
        lines = [markdown()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
