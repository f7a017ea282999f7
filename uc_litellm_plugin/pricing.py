"""Tokens to credits: the worst case before a call, the charge after it. The only place that rounds.

Prices are entries of LiteLLM's price map (`litellm/model_prices_and_context_window_backup.json`), USD per unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cached_property
from typing import Any

CREDIT = Decimal("0.000001")
USD = Decimal("0.000000000001")
ZERO = Decimal(0)

# The largest amount NUMERIC(20,6) holds; anything dearer is a bug or an attack.
LARGEST = Decimal("99999999999999.999999")

# The most that a usage row's NUMERIC(20,12) holds.
LARGEST_USD = Decimal("99999999.999999999999")

_EXACT = Context(prec=60)
_ABOVE = re.compile(r"_above_(\d+)(k?)_tokens|_above_1hr")
# The units a token can be priced by; a longer key ends in the name of a service tier (priority, flex, batches, …).
_UNITS = frozenset(
    {f"{way}_cost_per_{kind}token" for way in ("input", "output") for kind in ("", "audio_", "image_", "video_")}
    | {"output_cost_per_reasoning_token", "cache_creation_input_token_cost", "cache_read_input_token_cost"}
    | {"cache_creation_input_audio_token_cost", "input_cost_per_audio_per_token", "cache_read_input_audio_token_cost"}
)
# Tiers at the base rates or below; any other one, `auto` too, may be served at any tier's rates.
_PLAIN_TIERS = ("", "default", "standard", "standard_only", "flex", "batch")
_DEAR_OUTPUT = ("output_cost_per_reasoning_token", "output_cost_per_image_token")
# Rates by time or by other units have no bound in tokens: such a deployment has no price for us.
_UNBOUNDED = ("input_cost_per_second", "output_cost_per_second")


@dataclass(frozen=True)
class Terms:
    """What turns a provider's USD into a user's credits, frozen when a call is held.

    Attributes
    ----------
    power_level
        The level the call runs at.
    multiplier
        The level's `cost_multiplier`.
    markup
        The tier's factor.
    credits_per_usd
        Credits sold for one USD of provider cost.
    """

    power_level: str
    multiplier: Decimal
    markup: Decimal
    credits_per_usd: Decimal


@dataclass(frozen=True)
class Trigger:
    """What a request can set off in a price entry.

    Attributes
    ----------
    input_tokens
        The input bound; decides which long-context rates can apply.
    caches, images, speech
        May write the prompt cache; holds images; holds or asks for audio.
    tier
        The service tier asked for, None when none was.
    """

    input_tokens: int
    caches: bool = False
    images: bool = False
    speech: bool = False
    tier: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is served at the base rates or below."""
        return self.tier is None or self.tier.lower() in _PLAIN_TIERS


@dataclass(frozen=True)
class Rates:
    """The dearest USD per input token and per output token that a request can trigger, and a fee per request."""

    input: Decimal
    output: Decimal
    fee: Decimal = ZERO

    def times(self, share: Decimal) -> Rates:
        """A part of each of them."""
        return self if share == 1 else Rates(self.input * share, self.output * share, self.fee * share)


@dataclass(frozen=True)
class _Rate:
    """One rate of a price entry, and what a request must do to set it off."""

    usd: Decimal
    is_input: bool
    is_output: bool
    above: int = 0
    of_tier: bool = False
    of_cache_write: bool = False
    of_speech: bool = False
    of_image: bool = False

    @classmethod
    def read(cls, key: str, usd: Decimal) -> _Rate:
        is_output = _is_output(key)
        return cls(
            usd=usd,
            is_input=_is_input(key),
            is_output=is_output,
            above=_threshold(key),
            of_tier=_ABOVE.sub("", key) not in _UNITS,
            of_cache_write=key.startswith("cache_creation"),
            of_speech="_audio" in key,
            # A model with a price for drawing may draw unasked.
            of_image="_image" in key and not is_output,
        )

    def can_happen(self, trigger: Trigger) -> bool:
        return not (
            trigger.input_tokens < self.above
            or (self.of_tier and trigger.is_plain)
            or (self.of_cache_write and not trigger.caches)
            or (self.of_speech and not trigger.speech)
            or (self.of_image and not trigger.images)
        )


class PriceEntry(dict[str, Any]):
    """A price entry that is edited no more, so that its rates are read once."""

    @cached_property
    def rates(self) -> tuple[_Rate, ...]:
        """What it charges per unit."""
        return tuple(_rates(self))


def dearest(entry: Mapping[str, Any], trigger: Trigger) -> Rates:
    """The worst rates of a price entry for one request.

    Every rate whose condition the request can meet counts, the dearest wins: base rates, long-context rates where the
    input can reach the threshold, cache writes, audio, images, reasoning, and service tiers that were asked for.
    """
    known = entry.rates if isinstance(entry, PriceEntry) else _rates(entry)
    can_happen = [rate for rate in known if rate.can_happen(trigger)]
    reads = [rate.usd for rate in can_happen if rate.is_input]
    writes = [rate.usd for rate in can_happen if rate.is_output]
    per_request = entry.get("input_cost_per_request") or entry.get("input_cost_per_query") or 0
    return Rates(max(reads, default=ZERO), max(writes, default=ZERO), exact(per_request))


def is_priced(entry: Mapping[str, Any] | None, *, written_by_operator: bool) -> bool:
    """Whether a price entry can be charged by: 0 is a price only where the operator wrote it."""
    if entry is None or any(entry.get(key) for key in _UNBOUNDED):
        return False
    if entry.get("tiered_pricing"):
        return True
    rates = [entry.get("input_cost_per_token")]
    if entry.get("mode") != "embedding":
        rates.append(entry.get("output_cost_per_token"))
    return all(rate is not None for rate in rates) if written_by_operator else all(rates)


def is_uneven(entry: Mapping[str, Any]) -> bool:
    """Whether some output tokens, of reasoning or of images, are dearer than those of text."""
    steps = [dict(_numbers(step)) for step in (entry, *(entry.get("tiered_pricing") or ()))]
    return any(
        step.get(rate, ZERO) > step.get("output_cost_per_token", ZERO) for step in steps for rate in _DEAR_OUTPUT
    )


def is_free(entry: Mapping[str, Any]) -> bool:
    """Whether nothing in the entry costs anything."""
    known = entry.rates if isinstance(entry, PriceEntry) else _rates(entry)
    return not any(rate.usd for rate in known) and not entry.get("tiered_pricing")


def credits(usd: Decimal, terms: Terms) -> Decimal:
    """A provider's USD as a user's credits: USD x credits_per_usd x multiplier x markup, rounded up once to 1e-6.

    Raises
    ------
    OverflowError
        The amount does not fit a ledger row.
    """
    with localcontext(_EXACT):
        amount = usd * terms.credits_per_usd * terms.multiplier * terms.markup
        rounded = amount.quantize(CREDIT, rounding=ROUND_CEILING)
    if not ZERO <= rounded <= LARGEST:
        raise OverflowError(f"{rounded} credits do not fit a ledger row")
    return rounded


def usd(value: float | Decimal) -> Decimal:
    """A cost in USD as LiteLLM computes it (a float), quantized to 1e-12, which is below any price's last digit."""
    with localcontext(_EXACT):
        return exact(value).quantize(USD, rounding=ROUND_HALF_EVEN)


def worst_usd(rates: Rates, input_tokens: int, output_tokens: int) -> Decimal:
    """The dearest outcome: all input and all output at the dearest rates."""
    with localcontext(_EXACT):
        return rates.input * input_tokens + rates.output * output_tokens + rates.fee


def part(usd: Decimal, share: Decimal) -> Decimal:
    """A share of a cost in USD, exactly: it is rounded when it becomes credits."""
    with localcontext(_EXACT):
        return usd * share


def affordable_output(rates: Rates, input_tokens: int, available: Decimal, terms: Terms, answers: int) -> int:
    """How many output tokens per answer `available` credits cover after the input; below 0 when not even the input.

    The inverse of `credits(worst_usd(…))`: rounding up is undone by rounding the budget down.
    """
    with localcontext(_EXACT):
        budget = available / (terms.credits_per_usd * terms.multiplier * terms.markup)
        left = budget - rates.input * input_tokens - rates.fee
        if left < 0:
            return -1
        if not rates.output:
            return 1 << 40
        return int(left / (rates.output * answers))


def exact(value: Any) -> Decimal:
    """A number as the Decimal of its shortest form, so that 0.1 is 0.1."""
    return value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else str(value))


def _rates(entry: Mapping[str, Any]) -> Iterator[_Rate]:
    for key, usd in _numbers(entry):
        yield _Rate.read(key, usd)
    for step in entry.get("tiered_pricing") or ():
        for key, usd in _numbers(step):
            # Which step applies is not ours to say: each one counts.
            yield _Rate(usd, _is_input(key), _is_output(key))


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
    for key, value in entry.items():
        if "_cost" in key and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                yield key, exact(value)
            except ArithmeticError:
                continue


def _is_input(key: str) -> bool:
    return "token" in key and (key.startswith(("input_cost_per", "cache_creation_input", "cache_read_input")))


def _is_output(key: str) -> bool:
    return "token" in key and key.startswith("output_cost_per")


def _threshold(key: str) -> int:
    above = _ABOVE.search(key)
    return int(above[1]) * (1000 if above[2] else 1) if above and above[1] else 0
