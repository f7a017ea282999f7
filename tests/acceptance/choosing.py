"""A proxy's models and settings for the tests of wishes, and a caller who sees where their calls go."""

from __future__ import annotations

from typing import Any

import httpx

from tests.acceptance import sides
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import Account
from tests.acceptance.sides import ENDPOINTS, one, spread
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

SETTINGS: Json = {
    # Failures are how a test learns the whole order: they must not change it.
    "health": {"down_after": 1000, "degraded_below": 0},
    "power_levels": {
        "strict": {
            "preferred_providers": ["openrouter"], "fallback_strategy": "none", "cost_multiplier": 0.5,
            "default_max_output_tokens": 512,
        },
    },
    "tiers": {
        "free": {"power_levels": ["eco"]},
        "professional": {"providers": ["openai", "anthropic"]},
        "enterprise": {"models": ["spread*", "auto"]},
    },
}  # fmt: skip
LARGE = {"input_cost_per_token": 9e-6, "output_cost_per_token": 3e-5}


def models(url: str) -> list[Json]:
    """Groups of each kind of name and endpoint, and one that spans models."""
    chat = ENDPOINTS["chat"].models
    groups = [
        *spread("spread", chat, url),
        *spread("other", chat, url),
        *spread("weird:eco", chat, url),
        *spread("wild/*", dict.fromkeys(chat, "openai/*"), url),
        *(each for name, how in ENDPOINTS.items() for each in spread(f"all {name}", how.models, url)),
        one("no-north", "south", chat["south"], url),
    ]
    # Two at the same provider: only what they are worth tells them apart.
    auto = [
        (one("auto", "north", chat["north"], url), 72),
        (one("auto", "west", "anthropic/claude-haiku-4-5", url, "auto-small"), 80),
        (one("auto", "west", "anthropic/claude-sonnet-4-6", url, "auto-large", **LARGE), 97),
    ]
    for each, quality in auto:
        each["model_info"] |= {"quality_score": quality, "uc_provider": sides.PROVIDERS[_side_of(each)]}
    return [*groups, *(each for each, _ in auto)]


def _side_of(made: Json) -> str:
    return str(made["litellm_params"]["api_base"]).removesuffix("/v1").rpartition("/")[2]


class Asker:
    """One account's calls, and where they went."""

    def __init__(self, proxy: Proxy, upstream: Upstream, account: Account) -> None:
        self.proxy, self.upstream, self.account = proxy, upstream, account

    def ask(self, name: str = "chat", level: str | None = None, stream: bool = False, **fields: Any) -> httpx.Response:
        path, body = request(name, stream, **{"model": "spread", **fields})
        headers = {**self.account.headers, **({} if level is None else {"x-power-level": level})}
        return post(self.proxy, headers, path, body)

    def order(self, *args: Any, **fields: Any) -> tuple[str, ...]:
        """All sides that a call turns to, in order: each of them fails."""
        before = len(asked(self.upstream))
        self.upstream.set_fault("status", status=500)
        answer = self.ask(*args, **fields)
        assert answer.status_code == 500, answer.text
        return tuple(sides.hits(asked(self.upstream)[before:]))
