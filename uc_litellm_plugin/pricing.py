"""Tokens to credits: the worst case before a call, the charge after it. The only place that rounds."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, localcontext

from .prices import ZERO, Rates, exact

CREDIT = Decimal("0.000001")
USD = Decimal("0.000000000001")

# The largest amount NUMERIC(20,6) holds; anything dearer is a bug or an attack.
LARGEST = Decimal("99999999999999.999999")

# The most that a usage row's NUMERIC(20,12) holds.
LARGEST_USD = Decimal("99999999.999999999999")

# Asked by its methods: to make it the thread's own for an operation takes ten times as long as the operation.
_EXACT = Context(prec=60)
_times = _EXACT.multiply


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


def credits(usd: Decimal, terms: Terms) -> Decimal:
    """A provider's USD as a user's credits: USD x credits_per_usd x multiplier x markup, rounded up once to 1e-6.

    Raises
    ------
    OverflowError
        The amount does not fit a ledger row.
    """
    amount = _times(_times(_times(usd, terms.credits_per_usd), terms.multiplier), terms.markup)
    rounded = amount.quantize(CREDIT, ROUND_CEILING, _EXACT)
    if not ZERO <= rounded <= LARGEST:
        raise OverflowError(f"{rounded} credits do not fit a ledger row")
    return rounded


def usd(value: float | Decimal) -> Decimal:
    """A cost in USD as LiteLLM computes it (a float), quantized to 1e-12, which is below any price's last digit."""
    return exact(value).quantize(USD, ROUND_HALF_EVEN, _EXACT)


def worst_usd(rates: Rates, input_tokens: int, output_tokens: int) -> Decimal:
    """The dearest outcome: all input and all output at the dearest rates."""
    return _EXACT.fma(rates.output, output_tokens, _EXACT.fma(rates.input, input_tokens, rates.fee))


def part(usd: Decimal, share: Decimal) -> Decimal:
    """A share of a cost in USD, exactly: it is rounded when it becomes credits."""
    return _times(usd, share)


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
