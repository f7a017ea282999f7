"""Every route of our REST API: method, path, for whom it is and what for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

PREFIX = "/api/v1"

# `user`: every key, about one account: a user's own one, and for service and admin keys the one they name.
# `service`: service and admin keys. `admin`: admin keys only.
Audience = Literal["user", "service", "admin"]

_ADMITTED = {"user": ("user", "service", "admin"), "service": ("service", "admin"), "admin": ("admin",)}
_PARAMETER = re.compile(r"\{\w+(:path)?\}")


@dataclass(frozen=True)
class ApiRoute:
    """One route.

    Attributes
    ----------
    path
        A template as FastAPI has it, with the prefix: `{name}` is one segment, `{name:path}` any number of them.
    summary
        What it does, in a line.
    account
        Whether it is about one account, so that a service or an administrator has to name it in `X-UC-User-Id`.
    """

    method: str
    path: str
    audience: Audience
    summary: str
    account: bool = True

    def admits(self, role: str) -> bool:
        """Whether keys with this role (user, service or admin) may call it."""
        return role in _ADMITTED[self.audience]

    def matches(self, method: str, path: str) -> bool:
        """Whether a request with this method and decoded path is for this route."""
        return method == self.method and self._pattern.fullmatch(path) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts, end = [], 0
        for found in _PARAMETER.finditer(self.path):
            parts += [re.escape(self.path[end : found.start()]), ".+" if found[1] else "[^/]+"]
            end = found.end()
        return re.compile("".join([*parts, re.escape(self.path[end:])]), re.DOTALL)


def _route(method: str, path: str, audience: Audience, summary: str, *, account: bool = True) -> ApiRoute:
    return ApiRoute(method, f"{PREFIX}{path}", audience, summary, account)


ROUTES: tuple[ApiRoute, ...] = (
    _route("GET", "/credits/balance", "user", "The balance"),
    _route("GET", "/credits/transactions", "user", "The ledger, newest row first"),
    _route("GET", "/credits/holds", "user", "What is set aside for calls under way"),
    _route("GET", "/credits/packages", "user", "What can be bought", account=False),
    _route("POST", "/credits/purchase", "user", "Buy a package: not offered yet", account=False),
    _route("POST", "/credits/debit", "service", "Charge an account at once"),
    _route("POST", "/credits/grant", "admin", "Add credits to an account, or take some back"),
    _route("GET", "/provider-keys", "user", "The account's own provider keys"),
    _route("POST", "/provider-keys", "user", "Store a provider key"),
    _route("PATCH", "/provider-keys/{key_id}", "user", "Change a provider key"),
    _route("DELETE", "/provider-keys/{key_id}", "user", "Delete a provider key"),
    _route("POST", "/provider-keys/{key_id}/test", "user", "Try a provider key at its provider"),
    _route("GET", "/api-keys", "user", "The account's API keys"),
    _route("POST", "/api-keys", "user", "Make an API key; it is shown once"),
    _route("DELETE", "/api-keys/{key_id}", "user", "Revoke an API key"),
    _route("GET", "/power-level", "user", "The account's default power level"),
    _route("PUT", "/power-level", "user", "Choose the default power level"),
    _route("GET", "/power-levels", "user", "The power levels there are", account=False),
    _route("PUT", "/power-levels/{level}", "admin", "Edit a power level", account=False),
    _route("GET", "/analytics/usage", "user", "Usage by provider, model, power level, app or day; JSON or CSV"),
    _route("GET", "/usage", "user", "The calls, newest first"),
    _route("GET", "/usage/{request_id}", "user", "One call's whole story"),
    _route("GET", "/providers/health", "user", "How the providers fare", account=False),
    _route("POST", "/route/explain", "user", "What would happen to a call, and why"),
    _route("GET", "/users", "admin", "The accounts", account=False),
    _route("GET", "/users/{user_id:path}", "admin", "One account", account=False),
    _route(
        "PATCH", "/users/{user_id:path}", "admin", "Change an account's tier, cap, status or power level", account=False
    ),
    _route("GET", "/credits", "user", "Credits in OpenRouter's shape"),
    _route("GET", "/key", "user", "The API key in OpenRouter's shape"),
    _route("GET", "/generation", "user", "One call in OpenRouter's shape"),
    _route("GET", "/activity", "user", "Usage by day and model in OpenRouter's shape"),
)


def find(method: str, path: str) -> ApiRoute | None:
    """The route of a request, None where it is none of ours."""
    return next((route for route in ROUTES if route.matches(method, path)), None)


def methods_of(path: str) -> tuple[str, ...]:
    """The methods that this path can be asked with."""
    return tuple(route.method for route in ROUTES if route.matches(route.method, path))
