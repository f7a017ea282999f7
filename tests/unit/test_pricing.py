from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import TERMS
from uc_litellm_plugin import prices, pricing
from uc_litellm_plugin.prices import PriceEntry, Rates, Trigger
from uc_litellm_plugin.pricing import CREDIT, Terms

factors = st.decimals("0.01", "100", places=2)
terms = st.builds(Terms, st.just("balanced"), factors, factors, st.decimals("0.1", "1000", places=1))
per_token = st.decimals("0", "0.001", places=12)
rates = st.builds(Rates, per_token, per_token, per_token)


def exactly(usd: Decimal, terms: Terms) -> Fraction:
    return Fraction(usd) * Fraction(terms.credits_per_usd) * Fraction(terms.multiplier) * Fraction(terms.markup)


@given(st.decimals("0", "1000000", places=12), terms)
def test_credits_round_up_once(usd: Decimal, terms: Terms) -> None:
    """Credits are never below the exact product and less than one millionth above it."""
    found = Fraction(pricing.credits(usd, terms))
    assert 0 <= found - exactly(usd, terms) < Fraction(CREDIT)


@pytest.mark.parametrize("usd", ["0", "0.1", "0.0000001", "0.123456"])
def test_credits_without_a_fraction_are_exact(usd: str) -> None:
    """What needs no rounding is not rounded."""
    assert pricing.credits(Decimal(usd), TERMS) == Decimal(usd) * 10


@pytest.mark.parametrize("usd", ["1e15", "-1", "1e40"])
def test_credits_that_fit_no_row_are_refused(usd: str) -> None:
    """An amount beyond NUMERIC(20,6), or below zero, is an error and no number."""
    with pytest.raises(OverflowError):
        pricing.credits(Decimal(usd), TERMS)


@pytest.mark.parametrize("usd", ["NaN", "Infinity", "1e70"])
def test_credits_of_no_number_are_refused_alike(usd: str) -> None:
    """What is no amount at all raises an arithmetic error, which a settlement expects."""
    with pytest.raises(ArithmeticError):
        pricing.credits(Decimal(usd), TERMS)


@given(rates, st.integers(0, 2_000_000), st.decimals("0", "10000", places=6), terms, st.integers(1, 128))
def test_affordable_output_is_the_inverse_of_cost(
    rates: Rates, read: int, available: Decimal, terms: Terms, answers: int
) -> None:
    """The affordable output fits into what is available, and one token more does not."""
    affordable = pricing.affordable_output(rates, read, available, terms, answers)

    def cost(output: int) -> Decimal:
        return pricing.credits(pricing.worst_usd(rates, read, output * answers), terms)

    if affordable < 0:
        assert cost(0) > available
    else:
        assert cost(affordable) <= available
        assert not rates.output or cost(affordable + 1) > available


@given(rates, st.integers(0, 1_000_000), st.integers(0, 100_000), terms, st.integers(1, 128))
def test_what_is_held_affords_what_it_was_held_for(
    rates: Rates, read: int, output: int, terms: Terms, answers: int
) -> None:
    """The cost of an output limit, held to the last decimal, affords that very limit."""
    held = pricing.credits(pricing.worst_usd(rates, read, output * answers), terms)
    assert pricing.affordable_output(rates, read, held, terms, answers) >= output


@given(st.floats(0, 1000, allow_nan=False))
def test_usd_is_within_half_of_its_last_place(cost: float) -> None:
    """LiteLLM's float becomes the nearest multiple of 1e-12."""
    assert abs(Fraction(pricing.usd(cost)) - Fraction(Decimal(repr(cost)))) <= Fraction(1, 2 * 10**12)


@pytest.mark.parametrize(
    ("trigger", "read", "wrote"),
    [
        (Trigger(1000), "2", "4"),
        (Trigger(199_999), "2", "4"),
        (Trigger(200_000), "3", "6"),
        (Trigger(1000, caches=True), "5", "4"),
        (Trigger(1000, images=True), "7", "4"),
        (Trigger(1000, speech=True), "8", "9"),
        (Trigger(1000, tier="priority"), "10", "11"),
        (Trigger(1000, tier="auto"), "10", "11"),
        (Trigger(1000, tier="flex"), "2", "4"),
        (Trigger(1000, tier="default"), "2", "4"),
        (Trigger(1000, tier="PRIORITY"), "10", "11"),
        (Trigger(1000, tier="fast"), "10", "11"),
    ],
)
def test_each_rate_counts_where_its_condition_can_be_met(trigger: Trigger, read: str, wrote: str) -> None:
    """A request is held at the dearest rate it can trigger, and at none that it cannot."""
    entry = {
        "input_cost_per_token": 2, "output_cost_per_token": 4,
        "input_cost_per_token_above_200k_tokens": 3, "output_cost_per_token_above_200k_tokens": 6,
        "cache_read_input_token_cost": 1, "cache_creation_input_token_cost": 5,
        "input_cost_per_image_token": 7, "input_cost_per_audio_token": 8, "output_cost_per_audio_token": 9,
        "input_cost_per_token_priority": 10, "output_cost_per_token_priority": 11,
        "input_cost_per_token_flex": 1, "output_cost_per_token_flex": 1, "output_cost_per_reasoning_token": 3,
        "input_cost_per_token_batches": 1, "output_cost_per_token_batches": 1,
        "search_context_cost_per_query": {"search_context_size_low": 50},
    }  # fmt: skip
    assert prices.dearest(entry, trigger) == Rates(Decimal(read), Decimal(wrote))


def test_an_entry_knows_its_triggers_apart() -> None:
    """What was found for one request is not taken for another that sets off something else."""
    rates = {
        "input_cost_per_token": 2, "output_cost_per_token": 4,
        "input_cost_per_token_above_128k_tokens": 3, "output_cost_per_token_above_200k_tokens": 6,
        "cache_creation_input_token_cost": 5, "input_cost_per_image_token": 7, "input_cost_per_audio_token": 8,
        "input_cost_per_token_priority": 10, "output_cost_per_token_priority": 11,
    }  # fmt: skip
    entry, flags = PriceEntry(rates), (False, True)
    sizes, tiers = (127_999, 128_000, 199_999, 200_000), (None, "flex", "priority")
    triggers = [Trigger(*each) for each in product(sizes, flags, flags, flags, tiers)]
    found = [prices.dearest(entry, trigger) for trigger in triggers]
    assert found == [prices.dearest(dict(rates), trigger) for trigger in triggers]
    assert len(set(found)) == 10


@pytest.mark.parametrize("tier", ["ultrafast", "balanced", "decisions", "batches"])
def test_a_tier_nobody_asked_for_is_not_held(tier: str) -> None:
    """The rates of every service tier in LiteLLM's map stay out of a request that names none."""
    entry = {"input_cost_per_token": 1, "output_cost_per_token": 2}
    tiers = {f"{key}_{tier}": 99 for key in entry}
    assert prices.dearest({**entry, **tiers}, Trigger(1)) == Rates(Decimal(1), Decimal(2))


def test_tiered_prices_count_with_their_dearest_tier() -> None:
    """Prices in tiers are bounded by the dearest of them, and a fee per request is a fee."""
    entry = {
        "tiered_pricing": [
            {"range": [0, 1000], "input_cost_per_token": 1, "output_cost_per_token": 2},
            {"range": [1000, 2000], "input_cost_per_token": 3, "output_cost_per_reasoning_token": 5},
        ],
        "input_cost_per_request": 0.5,
    }
    assert prices.dearest(entry, Trigger(1)) == Rates(Decimal(3), Decimal(5), Decimal("0.5"))


def test_prices_by_the_hour_count_with_their_dearest() -> None:
    """A hold covers whatever hour the answer comes in, also where an operator's other hours are the dearer ones."""
    entry = {
        "input_cost_per_token": 2,
        "output_cost_per_token": 3,
        "off_peak_pricing": {"hours_utc": "10:00-00:00", "input_cost_per_token": 1, "output_cost_per_token": 7},
    }
    assert prices.dearest(entry, Trigger(1)) == Rates(Decimal(2), Decimal(7))


@pytest.mark.parametrize(
    ("entry", "by_operator", "priced"),
    [
        (None, True, False),
        ({}, True, False),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, False, False),
        ({"input_cost_per_token": 0, "output_cost_per_token": 0}, True, True),
        ({"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}, False, True),
        ({"input_cost_per_token": 1e-6, "output_cost_per_token": 0, "mode": "embedding"}, False, True),
        ({"input_cost_per_token": 1e-6, "output_cost_per_token": 0, "mode": "chat"}, False, False),
        ({"input_cost_per_token": 1e-6, "output_cost_per_token": None}, True, False),
        ({"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, "output_cost_per_second": 1}, True, False),
        ({"tiered_pricing": [{"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}]}, False, True),
    ],
)
def test_what_has_a_price(entry: dict[str, Any] | None, by_operator: bool, priced: bool) -> None:
    """Missing is unpriced, 0 is a price only where the operator wrote it, and rates by time have no bound."""
    assert prices.is_priced(entry, written_by_operator=by_operator) is priced


def test_free_is_only_what_costs_nothing_at_all() -> None:
    """One rate above 0 makes an entry not free."""
    assert prices.is_free({"input_cost_per_token": 0, "output_cost_per_token": 0.0})
    assert not prices.is_free({"input_cost_per_token": 0, "output_cost_per_token": 1e-9})
    assert not prices.is_free({"tiered_pricing": [{}]})


@pytest.mark.parametrize(
    ("entry", "is_uneven"),
    [
        ({"output_cost_per_token": 2, "output_cost_per_reasoning_token": 2}, False),
        ({"output_cost_per_token": 2, "output_cost_per_reasoning_token": 3}, True),
        ({"output_cost_per_token": 2, "output_cost_per_image_token": "3"}, True),
        ({"tiered_pricing": [{"output_cost_per_token": 1}, {"output_cost_per_reasoning_token": 1}]}, True),
        (
            {
                "output_cost_per_token": 3,
                "output_cost_per_reasoning_token": 3,
                "off_peak_pricing": {"output_cost_per_token": 1},
            },
            True,
        ),
        ({"output_cost_per_token": 2, "output_cost_per_audio_token": 9}, False),
    ],
)
def test_uneven_rates(entry: dict[str, Any], is_uneven: bool) -> None:
    """A price is uneven where output that cannot be told from text without details is dearer than text."""
    assert prices.is_uneven(entry) is is_uneven
