"""What the upstream's books cost in credits, by the tests' own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from tests.proxy import Json, upstream_key

CREDITS_PER_USD = Decimal(10)
SIX_PLACES = Decimal("0.000001")


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    read: str
    write: str
    cached: str | None = None
    cache_write: str | None = None

    def usd(self, usage: Json) -> Decimal:
        """What a usage of the upstream's books costs; `input` contains `cached` and `written`."""
        fresh = usage["input"] - usage["cached"] - usage["written"]
        parts = (
            (fresh, self.read),
            (usage["cached"], self.cached or self.read),
            (usage["written"], self.cache_write or self.read),
            (usage["output"], self.write),
        )
        return sum((Decimal(tokens) * Decimal(price) for tokens, price in parts), Decimal(0)) / 1_000_000


# The first three and the pair are set in tests/proxy.py; the others are LiteLLM's map's, as the providers publish them.
PRICES = {
    "gpt-mini": Price("1.7", "6.1", "0.47"),
    "claude": Price("3.3", "15.7", "0.31", "4.1"),
    "free": Price("0", "0"),
    "pair-east": Price("1.1", "4.3", "0.075"),
    "pair-west": Price("2.3", "7.9", "0.075"),
    "gpt-mini-map": Price("0.15", "0.6", "0.075"),
    "reason": Price("1.1", "4.4", "0.275"),
    "instruct": Price("1.5", "2.0"),
    "embed": Price("0.02", "0"),
    "timed": Price("1.7", "6.1", "0.47"),
    "retried": Price("1.7", "6.1", "0.47"),
    "cheap": Price("1.7", "6.1", "0.47"),
    "dear": Price("17", "61", "4.7"),
}
# What LiteLLM's map says of the tier that was asked for, where the provider does not say which it served.
PRIORITY = {upstream_key("gpt-mini-map"): Price("0.25", "1.0", "0.125")}
_BY_KEY = {upstream_key(name): price for name, price in PRICES.items()}


def credits(usd: Decimal, multiplier: str = "1") -> Decimal:
    """USD as credits, rounded up once."""
    return (usd * CREDITS_PER_USD * Decimal(multiplier)).quantize(SIX_PLACES, rounding=ROUND_CEILING)


def of_call(call: Json) -> Decimal:
    """The credits that a call in the upstream's books costs; its provider key tells the deployment."""
    if not call["usage"]:
        return Decimal(0)
    asked = PRIORITY if call["body"].get("service_tier") == "priority" else _BY_KEY
    return credits(asked[call["api_key"]].usd(call["usage"]))


def of_tokens(deployment: str, read: int, wrote: int, cached: int = 0) -> Decimal:
    """The credits that so many tokens cost."""
    return credits(PRICES[deployment].usd({"input": read, "cached": cached, "written": 0, "output": wrote}))
