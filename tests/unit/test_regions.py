"""Deployments in regions that cost more: held and charged as LiteLLM reckons them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.types.utils import ModelResponse, Usage

from uc_litellm_plugin import costs, prices, pricing, regions
from uc_litellm_plugin.catalog import Catalog
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.prices import PriceEntry, Trigger

USAGES: list[dict[str, Any]] = [
    {"prompt_tokens": 1_017, "completion_tokens": 533, "total_tokens": 1_550},
    {"prompt_tokens": 1_017, "completion_tokens": 533, "total_tokens": 1_550,
     "prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 100}},
    {"prompt_tokens": 300_017, "completion_tokens": 533, "total_tokens": 300_550},
]  # fmt: skip
OF_VERTEX = sorted(name for name, entry in litellm.model_cost.items()
                   if entry.get("regional_endpoint_uplift_multiplier") and entry.get("mode") == "chat")  # fmt: skip
OF_OPENAI = sorted(name for name, entry in litellm.model_cost.items()
                   if entry.get("regional_processing_uplift_multiplier_eu") and entry.get("mode") == "chat"
                   and entry.get("litellm_provider") == "openai")  # fmt: skip


def found(model: str, **params: Any) -> Candidate:
    """The candidate that a real router's deployment becomes."""
    entry = {"model_name": "group", "litellm_params": {"model": model, "api_key": "none", **params}}
    router = Router(model_list=[entry])
    (candidate,) = Catalog(lambda: router, lambda name: name).candidates("group")
    return candidate


def litellms(candidate: Candidate, usage: dict[str, Any], **where: Any) -> Decimal:
    answer = ModelResponse(model=candidate.model, usage=Usage(**usage))
    return pricing.usd(
        litellm.completion_cost(completion_response=answer, model=candidate.model,
                                custom_llm_provider=candidate.litellm_provider, **where)
    )  # fmt: skip


@pytest.mark.parametrize("usage", USAGES, ids=["plain", "details", "long"])
@pytest.mark.parametrize("model", [*OF_VERTEX[::4], OF_VERTEX[-1]])
@pytest.mark.parametrize("where", ["us-east5", "europe-west1", "global", None])
def test_vertex_regions(model: str, usage: dict[str, Any], where: str | None) -> None:
    """What a region adds is charged to the last digit, and the hold covers it; the global endpoint adds nothing."""
    name = model if model.startswith("vertex_ai/") else f"vertex_ai/{model}"
    candidate = found(name, **({"vertex_location": where} if where else {}))
    location = None if where == "global" else where or "us-central1"
    charged = costs.cost(candidate, usage, "acompletion", None)
    assert charged == litellms(candidate, usage, vertex_location=location)
    trigger = Trigger(usage["prompt_tokens"], caches=True, tier="auto")
    dearest = prices.dearest(candidate.prices, trigger)
    assert charged <= pricing.worst_usd(dearest, usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize("usage", USAGES, ids=["plain", "details", "long"])
@pytest.mark.parametrize("model", [*OF_OPENAI[::6], OF_OPENAI[-1]])
@pytest.mark.parametrize("host", ["eu.api.openai.com", "us.api.openai.com", "api.openai.com"])
def test_openais_regions(model: str, usage: dict[str, Any], host: str) -> None:
    """The same for OpenAI's regional hosts."""
    candidate = found(f"openai/{model}", api_base=f"https://{host}/v1")
    residency = host[:2] if host != "api.openai.com" else None
    charged = costs.cost(candidate, usage, "acompletion", None)
    assert charged == litellms(candidate, usage, data_residency=residency)


def test_prices_of_an_operators_own_are_what_they_are() -> None:
    """LiteLLM adds a region's share to the map's prices only, and so do we."""
    candidate = found(f"openai/{OF_OPENAI[0]}", api_base="https://eu.api.openai.com/v1",
                      input_cost_per_token=1e-6, output_cost_per_token=2e-6)  # fmt: skip
    assert costs.cost(candidate, USAGES[0], "acompletion", None) == pricing.usd(Decimal("0.002083"))


def test_every_rate_of_an_entry_is_multiplied() -> None:
    """Those in steps and by the hour as well, and nothing that is no rate of tokens."""
    entry = PriceEntry({
        "input_cost_per_token": 1e-6, "output_cost_per_token": "0.000002", "cache_read_input_token_cost": None,
        "max_tokens": 7, "search_context_cost_per_query": {"search_context_size_low": 1.0},
        "tiered_pricing": [{"range": [0, 10], "input_cost_per_token": 3e-6}],
        "off_peak_pricing": {"hours_utc": "10:00-11:00", "input_cost_per_token": 5e-7},
    })  # fmt: skip
    assert entry.times(Decimal("1.1")) == {
        **entry, "input_cost_per_token": 1.1e-6, "output_cost_per_token": 2.2e-6,
        "tiered_pricing": [{"range": [0, 10], "input_cost_per_token": 3.3e-6}],
        "off_peak_pricing": {"hours_utc": "10:00-11:00", "input_cost_per_token": 5.5e-7},
    }  # fmt: skip
    assert entry.times(Decimal(1)) is entry


@pytest.mark.parametrize("value", [None, True, "1.1", {}])
def test_a_multiplier_that_is_no_number(value: Any) -> None:
    """It multiplies nothing."""
    params = {"api_base": "https://eu.api.openai.com/v1"}
    entry = {"regional_processing_uplift_multiplier_eu": value}
    assert regions.multiplier(entry, params, "gpt-x", "openai") == 1


@pytest.mark.parametrize("odd", ["10:00-11:00", [1], 5, True])
def test_hours_that_are_no_table(odd: Any) -> None:
    """An operator's mistake there keeps no answer from being charged and written down."""
    entry = PriceEntry({"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "off_peak_pricing": odd})
    assert entry.written == {"input_cost_per_token": "1e-06", "output_cost_per_token": "2e-06"}
    assert entry.times(Decimal("1.1"))["input_cost_per_token"] == 1.1e-6
    assert prices.dearest(entry, Trigger(1)) == prices.Rates(Decimal("0.000001"), Decimal("0.000002"))
