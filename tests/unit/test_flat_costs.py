"""Answers that are priced by their tokens alone: what two products make of them is what LiteLLM's arithmetic does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import litellm
import pytest

from tests.unit.costs import sample
from tests.unit.samples import candidate
from uc_litellm_plugin import costs
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.prices import PriceEntry

USAGE = {"prompt_tokens": 1_017, "completion_tokens": 533, "total_tokens": 1_550}
NO_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "rejected_prediction_tokens": 0},
}


def usages(read: int, wrote: int, thought: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same tokens in the dialects of all endpoints, each with its kind of call."""
    told = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
    texts = {
        "prompt_tokens_details": {"text_tokens": read, "cached_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": thought, "text_tokens": wrote - thought},
    }
    yield "acompletion", told
    yield "atext_completion", {**told, **NO_DETAILS}
    yield "acompletion", {**told, **texts}
    yield "acompletion", {**told, "completion_tokens_details": {"reasoning_tokens": thought}}
    yield "aembedding", {"prompt_tokens": read, "total_tokens": read}
    yield (
        "anthropic_messages",
        {
            "input_tokens": read, "output_tokens": wrote,
            "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        },
    )  # fmt: skip
    yield (
        "aresponses",
        {
            "input_tokens": read, "output_tokens": wrote, "total_tokens": read + wrote,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": thought},
        },
    )  # fmt: skip


def priced(name: str, *, custom: bool = False) -> Candidate:
    """A candidate with the prices of an entry of LiteLLM's map, as if the operator had written them where `custom`."""
    entry = litellm.model_cost[name]
    made = candidate(model=name, prices=PriceEntry(entry))
    price_name = costs._registered(entry) if custom else name
    return replace(made, litellm_provider=entry["litellm_provider"], price_name=price_name, custom_prices=custom)


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Decimal:
    """What LiteLLM says."""
    with monkeypatch.context() as patch:
        patch.setattr(costs, "_flat_cost", lambda *_: None)
        return costs.cost(*arguments)


def test_they_agree_over_the_whole_price_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is priced by tokens alone costs what LiteLLM says, for every provider, dialect and kind of call, and
    by an operator's own prices, too."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice, compared = random.Random(seed), 0
    every = itertools.product(sample(litellm.model_cost, 400), (None, "default"), (False, True))
    for name, tier, custom in every:
        made, read, wrote = (
            priced(name, custom=custom),
            dice.choice([1, 977, 40_001, 250_007]),
            dice.choice([1, 533, 20_011]),
        )
        for call_type, usage in usages(read, wrote, dice.randint(0, wrote)):
            flat = costs._flat_cost(made, usage, tier)
            if flat is None:
                continue
            compared += 1
            assert flat == asked(monkeypatch, made, usage, call_type, tier), (name, call_type, usage)
    assert compared > 1_000


def test_they_agree_on_what_a_router_leaves_in_the_price_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router writes everything that an entry could have into it, as None: what was priced by its tokens alone still
    is, but for reasoning where it finds more knowledge of that."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice, compared, left, filled = random.Random(seed), 0, 0, 0
    for name in sample(litellm.model_cost, 60):
        before = priced(name)
        monkeypatch.setitem(litellm.model_cost, name, dict(litellm.model_cost[name]))
        litellm.register_model({name: dict(litellm.model_cost[name])})
        filled += None in litellm.model_cost[name].values()
        after = priced(name)
        for call_type, usage in usages(977, 533, dice.randint(0, 533)):
            expected, flat = (costs._flat_cost(made, usage, None) for made in (before, after))
            left += expected is not None and flat is None
            if flat is not None:
                compared += 1
                assert flat == expected == asked(monkeypatch, after, usage, call_type, None), (name, call_type, usage)
    assert compared > 200
    assert left < compared / 20
    assert filled > 20


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_tokens_details": {"cached_tokens": 5}},
        {"prompt_tokens_details": {"audio_tokens": 1}},
        {"prompt_tokens_details": {"text_tokens": 1_000}},
        {"prompt_tokens_details": {"text_tokens": "1017"}},
        {"completion_tokens_details": {"image_tokens": 7}},
        {"completion_tokens_details": {"reasoning_tokens": 534}},
        {"completion_tokens_details": {"reasoning_tokens": -1}},
        {"completion_tokens_details": [1]},
        {"cache_read_input_tokens": 3},
        {"cache_creation": {"ephemeral_1h_input_tokens": 4}},
        {"server_tool_use": {"web_search_requests": 0}},
        {"service_tier": "priority"},
        {"inference_geo": "us"},
        {"speed": "fast"},
        {"input_tokens": 1_017},
        {"prompt_tokens": 1_017.0},
        {"prompt_tokens": True},
        {"completion_tokens": -533},
        {"num_search_queries": 1},
        {"total_tokens": 1_950, "completion_tokens_details": {"reasoning_tokens": 400}},
        {"total_tokens": None, "completion_tokens_details": {"reasoning_tokens": 400}},
        {"total_tokens": "1550"},
        {"total_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 1_017, "output_tokens": 533},
    ],
)  # fmt: skip
def test_whatever_else_is_in_a_usage_is_litellms_to_price(more: dict[str, Any]) -> None:
    """One word in a usage that may have a price of its own, or makes no sense, and LiteLLM is asked."""
    assert costs._flat_cost(priced("gpt-4o-mini"), {**USAGE, **more}, None) is None


@pytest.mark.parametrize("tier", ["priority", "flex", "auto", "batch"])
def test_other_service_tiers_are_litellms_to_price(tier: str) -> None:
    """A tier may have rates of its own."""
    assert costs._flat_cost(priced("gpt-4o-mini"), USAGE, tier) is None


@pytest.mark.parametrize(
    "entry",
    [
        {"tiered_pricing": [{"range": [0, 1], "input_cost_per_token": 1e-6}]},
        {"off_peak_pricing": {"hours_utc": "00:00-00:00", "input_cost_per_token": 1e-7}},
        {"surge_pricing": {"input_cost_per_token": 1e-5}},
        {"output_cost_per_token": 0, "output_cost_per_image_token": 3e-5},
        {"input_cost_per_request": 0.01},
        {"input_cost_per_query": 0.01},
        {"input_cost_per_character": 1e-7},
        {"input_cost_per_token_above_1k_tokens": 2e-6},
        {"input_cost_per_token": "0.000001"},
    ],
)
def test_other_prices_are_litellms_to_apply(entry: dict[str, Any]) -> None:
    """Steps, hours, tables that nobody here knows, output that is taken for images, fees, a threshold that the input
    reaches, and a rate that is no number are not two products."""
    known = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    assert costs._flat_cost(candidate(prices=PriceEntry(known)), USAGE, None) is not None
    assert costs._flat_cost(candidate(prices=PriceEntry({**known, **entry})), USAGE, None) is None


def test_reasoning_at_a_rate_of_its_own_is_litellms_to_price() -> None:
    """Tokens of reasoning count as output only where they cost the same."""
    known = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    thought = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 500}}
    apart = {**known, "output_cost_per_reasoning_token": 3e-6}
    assert costs._flat_cost(candidate(prices=PriceEntry(known)), thought, None) == Decimal("0.002083")
    assert costs._flat_cost(candidate(prices=PriceEntry(apart)), thought, None) is None
    assert costs._flat_cost(candidate(prices=PriceEntry(apart)), USAGE, None) == Decimal("0.002083")


@pytest.mark.parametrize("config", ["cost_discount_config", "cost_margin_config"])
def test_an_operators_discounts_and_margins_are_litellms_to_apply(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """`litellm_settings.cost_discount_config` and `cost_margin_config` change what LiteLLM's arithmetic says."""
    monkeypatch.setattr(litellm, config, {"openai": 0.1})
    assert costs._flat_cost(priced("gpt-4o-mini"), USAGE, None) is None
