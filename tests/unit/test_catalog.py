from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.types.utils import ModelResponse, Usage

from tests.unit.costs import random_trigger, random_usage, sample
from tests.unit.samples import held_call
from uc_litellm_plugin import catalog, costs, prices, pricing
from uc_litellm_plugin.call import Answer, Outcome
from uc_litellm_plugin.catalog import Catalog
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.settlement import Settlement

OWN_PRICES: dict[str, Any] = {
    "input_cost_per_token": 3e-6,
    "output_cost_per_token": 7e-6,
    "cache_read_input_token_cost": 1e-6,
}


def deployment(group: str, model: str, info: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    return {
        "model_name": group,
        "litellm_params": {"model": model, "api_key": "none", **params},
        "model_info": {"id": f"{group}-{model}", **(info or {})},
    }


@pytest.fixture(scope="module")
def router() -> Router:
    """One router with a deployment of each kind that this module asks for."""
    return Router(
        model_list=[
            deployment("mini", "openai/gpt-4o-mini"),
            deployment("mini", "azure/my-mini", {"base_model": "azure/gpt-4o-mini"}, api_base="http://none"),
            deployment("mini", "openai/priceless"),
            deployment("sonnet", "anthropic/claude-sonnet-4-5", {"uc_provider": "ours"}),
            deployment("flash", "gemini/gemini-2.5-flash"),
            deployment("own", "openai/llama", **OWN_PRICES),
            deployment("told", "openai/llama", {"input_cost_per_token": 4e-6, "output_cost_per_token": 5e-6}),
            deployment("edited", "openai/llama-e", **OWN_PRICES),
            deployment("half", "openai/gpt-4o", input_cost_per_token=1e-6),
            deployment("free", "openai/llama", input_cost_per_token=0, output_cost_per_token=0),
            deployment("priceless", "openai/priceless"),
            deployment("routed", "azure/model-router", api_base="http://none"),
            deployment("any/*", "openai/*"),
            deployment("last", "openai/gpt-4.1-nano"),
        ],
        fallbacks=[{"mini": ["sonnet"]}, {"sonnet": ["flash", "mini"]}, {"own": ["priceless"]}],
        context_window_fallbacks=[{"mini": ["own"]}],
        content_policy_fallbacks=[{"flash": ["told"]}],
        default_fallbacks=["last"],
        model_group_alias={"alias": "mini"},
    )


@pytest.fixture
def found(router: Router) -> Catalog:
    """The catalog over that router, with one provider renamed."""
    return Catalog(lambda: router, lambda name: {"gemini": "google"}.get(name, name))


@pytest.fixture
def edited(request: pytest.FixtureRequest, router: Router) -> Iterator[str]:
    """The name of a price entry that the test may change."""
    name = getattr(request, "param", "edited-openai/llama-e")
    before = dict(litellm.model_cost[name])
    yield name
    litellm.register_model({name: before})


def only(found: Catalog, model: str) -> Candidate:
    """The one candidate of the group itself."""
    return next(each for each in found.candidates(model) if each.group == model)


def litellms_cost(model: str, usage: Mapping[str, Any], **options: Any) -> Decimal:
    answer = ModelResponse(model=model, usage=Usage(**usage))
    return pricing.usd(litellm.completion_cost(completion_response=answer, model=model, **options))


CHAT_USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
CACHED_USAGE = {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 400}}


@pytest.mark.parametrize("model", ["mini", "own", "told", "last", "any/gpt-4o"])
def test_plain_answers_of_a_real_router_are_two_products(found: Catalog, model: str) -> None:
    """What LiteLLM's router writes into the entries that it has read does not send every answer to its arithmetic."""
    usage = {"prompt_tokens": 12, "completion_tokens": 20, "total_tokens": 32}
    first = found.candidates(model)[0]
    assert costs._flat_cost(first, usage, None) == costs._providers_cost(
        first, costs.chat_usage(usage), "acompletion", None
    )


@pytest.mark.parametrize("usage", [CHAT_USAGE, CACHED_USAGE])
@pytest.mark.parametrize(
    ("group", "model"),
    [
        ("mini", "gpt-4o-mini"),
        ("sonnet", "claude-sonnet-4-5"),
        ("flash", "gemini/gemini-2.5-flash"),
        ("any/gpt-4o", "gpt-4o"),
        ("last", "gpt-4.1-nano"),
    ],
)
def test_the_cost_is_litellms_own(found: Catalog, group: str, model: str, usage: dict[str, Any]) -> None:
    """A usage costs what LiteLLM's completion_cost says, cached tokens at their rate included."""
    cost = costs.cost(only(found, group), usage, "acompletion", None)
    assert cost == litellms_cost(model, usage)
    assert cost > 0


def test_the_cost_by_hand(found: Catalog) -> None:
    """The operator's prices count token by token, those of the cache apart."""
    assert costs.cost(only(found, "own"), CHAT_USAGE, "acompletion", None) == Decimal("0.0065")
    assert costs.cost(only(found, "own"), CACHED_USAGE, "acompletion", None) == Decimal("0.0057")
    assert costs.cost(only(found, "told"), CHAT_USAGE, "acompletion", None) == Decimal("0.0065")


PROVIDERS = sorted(str(getattr(name, "value", name)) for name in litellm.provider_list)
# LiteLLM reads a size out of some names, and knows other prices for others.
NAMED = ("llama-3-8b-instruct", "gpt-4o", "claude-sonnet-4-5", "mistral-large", "x")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_operators_prices_count_at_every_provider(provider: str) -> None:
    """Whatever a provider, a model and a deployment are called: the operator's prices are charged."""
    for model in NAMED:
        name = f"dep-8b-{provider}-{model}"
        litellm.model_cost[name] = {**OWN_PRICES, "litellm_provider": provider, "mode": "chat"}
        try:
            prices = litellm.model_cost[name]
            made = Candidate(name, "g", f"{provider}/{model}", provider, provider, name, prices, True, None, None)
            assert costs.cost(made, CHAT_USAGE, "acompletion", None) == Decimal("0.0065"), model
        finally:
            del litellm.model_cost[name]


def test_the_operators_base_model_is_what_is_charged() -> None:
    """Where a deployment's model has a price of its own, `base_model` counts all the same, by whichever arithmetic."""
    router = Router(model_list=[deployment("based", "openai/gpt-4o", {"base_model": "gpt-4o-mini"})])
    based = only(Catalog(lambda: router, lambda name: name), "based")
    assert based.price_name == "gpt-4o-mini"
    cached = litellms_cost("gpt-4o-mini", CACHED_USAGE)
    assert costs.cost(based, CACHED_USAGE, "acompletion", None) == cached
    assert costs.cost(based, CHAT_USAGE, "acompletion", None) == litellms_cost("gpt-4o-mini", CHAT_USAGE)


@pytest.mark.parametrize(("model", "base"), [("gpt-4.1-nano", "azure/gpt-4o"), ("gpt-4o", "azure/gpt-4.1-nano")])
def test_a_base_model_of_another_provider(model: str, base: str) -> None:
    """It counts as well, by whichever arithmetic: one cached token does not change the price list, or pass the hold."""
    router = Router(model_list=[deployment("based", f"openai/{model}", {"base_model": base})])
    based = only(Catalog(lambda: router, lambda name: name), "based")
    reads, writes = (prices.exact(litellm.model_cost[base][f"{way}_cost_per_token"]) for way in ("input", "output"))
    plain = costs.cost(based, CHAT_USAGE, "acompletion", None)
    assert plain == pricing.usd(1000 * reads + 500 * writes)
    cached = costs.cost(based, CACHED_USAGE, "acompletion", None)
    assert cached == plain - pricing.usd(
        400 * (reads - prices.exact(litellm.model_cost[base]["cache_read_input_token_cost"]))
    )
    assert plain <= pricing.worst_usd(prices.dearest(based.prices, prices.Trigger(1000)), 1000, 500)


@pytest.mark.parametrize("tier", ["flex", "priority", "default", "auto", None])
def test_service_tiers_have_their_prices(found: Catalog, tier: str | None) -> None:
    """The tier that the provider served decides the rate."""
    candidate = only(found, "last")
    suffix = f"_{tier}" if candidate.prices.get(f"input_cost_per_token_{tier}") else ""
    by_hand = 1000 * prices.exact(candidate.prices[f"input_cost_per_token{suffix}"]) + 500 * prices.exact(
        candidate.prices[f"output_cost_per_token{suffix}"]
    )
    assert costs.cost(candidate, CHAT_USAGE, "acompletion", tier) == pricing.usd(by_hand)


def test_dialects_cost_the_same(found: Catalog) -> None:
    """The same tokens cost the same as chat, responses or messages usage, with a cache read."""
    candidate = only(found, "sonnet")
    responses = {
        "input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500,
        "input_tokens_details": {"cached_tokens": 400}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    messages = {"input_tokens": 600, "output_tokens": 500, "cache_read_input_tokens": 400}
    found_costs = {
        costs.cost(candidate, CACHED_USAGE, "acompletion", None),
        costs.cost(candidate, responses, "aresponses", None),
        costs.cost(candidate, messages, "anthropic_messages", None),
    }
    assert found_costs == {Decimal("0.00942")}


def test_cache_writes_cost_by_their_life(found: Catalog) -> None:
    """Anthropic's cache writes of five minutes and of an hour are told apart."""
    usage = {
        "input_tokens": 100, "output_tokens": 10, "cache_creation_input_tokens": 3000,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
    }  # fmt: skip
    expected = Decimal("0.0003") + Decimal("0.00015") + 1000 * Decimal("3.75e-6") + 2000 * Decimal("6e-6")
    assert costs.cost(only(found, "sonnet"), usage, "anthropic_messages", None) == expected


@pytest.mark.parametrize("group", ["mini", "own", "flash"])
def test_a_cost_that_a_provider_states_is_ignored(found: Catalog, group: str) -> None:
    """Whatever `usage.cost` says, the tokens count."""
    stated = {**CHAT_USAGE, "cost": 99.0}
    plain = costs.cost(only(found, group), CHAT_USAGE, "acompletion", None)
    assert costs.cost(only(found, group), stated, "acompletion", None) == plain


def test_a_price_edited_under_way_does_not_count(found: Catalog, edited: str) -> None:
    """A call is charged by the prices it was held at; the next call sees the new ones."""
    before = only(found, "edited")
    cost = costs.cost(before, CHAT_USAGE, "acompletion", None)
    litellm.register_model({edited: {**litellm.model_cost[edited], "input_cost_per_token": 3e-3}})
    assert costs.cost(before, CHAT_USAGE, "acompletion", None) == cost == Decimal("0.0065")
    after = only(found, "edited")
    assert costs.cost(after, CHAT_USAGE, "acompletion", None) == Decimal("3.0035")
    assert costs.cost(before, CHAT_USAGE, "acompletion", None) == cost


@pytest.mark.parametrize("edited", ["gpt-4.1-nano"], indirect=True)
def test_a_map_price_edited_under_way_does_not_count(found: Catalog, edited: str) -> None:
    """The same holds for an entry of LiteLLM's own map."""
    before = only(found, "last")
    cost = costs.cost(before, CHAT_USAGE, "acompletion", None)
    litellm.register_model({edited: {**litellm.model_cost[edited], "output_cost_per_token": 1e-2}})
    assert costs.cost(before, CHAT_USAGE, "acompletion", None) == cost
    assert costs.cost(only(found, "last"), CHAT_USAGE, "acompletion", None) > 5


def test_a_candidate_is_made_once(found: Catalog) -> None:
    """As long as nothing it is made of changes, a deployment's candidate is the same object."""
    assert all(one is other for one, other in zip(found.candidates("mini"), found.candidates("mini"), strict=True))


def test_what_a_candidate_is_made_of_may_change_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of the deployment, of its prices, of limits or of providers' names counts from the next
    call on, and so does its withdrawal."""
    router = Router(model_list=[deployment("group", "openai/gpt-4o-mini"), deployment("priced", "openai/gpt-4o")])
    names = {"openai": "openai"}
    found = Catalog(lambda: router, lambda name: names.get(name, name))
    (first,), (listed,) = found.candidates("group"), router.get_model_list(model_name="group") or []

    def now() -> Candidate:
        return only(found, "group")

    def undone() -> bool:
        return now() == first

    with monkeypatch.context() as edit:
        edit.setitem(listed["litellm_params"], "input_cost_per_token", 9.0)
        edit.setitem(litellm.model_cost, listed["model_info"]["id"], {**OWN_PRICES, "input_cost_per_token": 9.0})
        assert (now().custom_prices, now().prices["input_cost_per_token"]) == (True, 9.0)
    assert undone()
    with monkeypatch.context() as edit:
        edit.setitem(listed["litellm_params"], "model", "openai/gpt-4o")
        assert now().model == "openai/gpt-4o"
    assert undone()
    facts = {"provider": ("uc_provider", "mine"), "quality": ("quality_score", 7),
             "max_output": ("max_output_tokens", 3), "own_key_only": ("uc_own_key_only", True)}  # fmt: skip
    for name, (key, value) in facts.items():
        with monkeypatch.context() as edit:
            edit.setitem(listed["model_info"], key, 1)
            now()
            edit.setitem(listed["model_info"], key, value)
            assert getattr(now(), name) == value
        assert undone()
    with monkeypatch.context() as edit:
        edit.setitem(litellm.model_cost["gpt-4o-mini"], "output_cost_per_token", 5.0)
        assert now().prices["output_cost_per_token"] == 5.0
    assert undone()
    with monkeypatch.context() as edit:
        # A name that is looked for before the one that was found.
        edit.setitem(litellm.model_cost, "openai/gpt-4o-mini", {**litellm.model_cost["gpt-4o-mini"], "max_tokens": 11})
        assert (now().price_name, now().max_output) != (first.price_name, first.max_output)
    assert undone()
    with monkeypatch.context() as edit:
        edit.setitem(names, "openai", "open")
        assert now().provider == "open"
    assert undone()
    with monkeypatch.context() as edit:
        edit.delitem(litellm.model_cost, first.price_name)
        with pytest.raises(BadRequest):
            now()
    assert undone()


@pytest.mark.parametrize("model", ["priceless", "any/nonsense", "half", "routed"])
def test_what_has_no_price_is_refused(found: Catalog, model: str) -> None:
    """A model with a missing price, or with a 0 that no operator wrote, gets no call."""
    with pytest.raises(BadRequest) as caught:
        found.candidates(model)
    assert caught.value.code == "unpriced_model"


@pytest.mark.parametrize("model", ["nobody", "openai/gpt-4o", "", "*"])
def test_what_nobody_serves_is_refused(found: Catalog, model: str) -> None:
    """A name outside the router's list is no model."""
    with pytest.raises(BadRequest) as caught:
        found.candidates(model)
    assert caught.value.code in ("model_not_found", "unpriced_model")


def test_the_operators_zero_is_free_and_told_once(found: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    """A price of 0 on the deployment costs nothing, and the log says so once."""
    with caplog.at_level(logging.WARNING, logger="uc_litellm_plugin.catalog"):
        candidates = [only(found, "free") for _ in range(3)]
    assert costs.cost(candidates[0], CHAT_USAGE, "acompletion", None) == 0
    assert caplog.text.count("is free of charge") == 1


def test_a_group_and_all_it_falls_back_to(found: Catalog) -> None:
    """The plan's candidates are the closure over every table of fallbacks, priced ones only, each once."""
    names = [(each.group, each.model) for each in found.candidates("mini")]
    assert sorted(names) == [
        ("flash", "gemini/gemini-2.5-flash"), ("last", "openai/gpt-4.1-nano"), ("mini", "azure/my-mini"),
        ("mini", "openai/gpt-4o-mini"), ("own", "openai/llama"), ("sonnet", "anthropic/claude-sonnet-4-5"),
        ("told", "openai/llama"),
    ]  # fmt: skip


def test_an_alias_finds_its_group(found: Catalog) -> None:
    """An alias has the deployments of its group and the fallbacks of its target."""
    ids = {each.deployment for each in found.candidates("mini")}
    assert {each.deployment for each in found.candidates("alias")} == ids


def test_what_a_candidate_knows(found: Catalog) -> None:
    """A candidate carries our provider's name, its limits and whether it reasons."""
    flash, sonnet = only(found, "flash"), only(found, "sonnet")
    assert (flash.provider, flash.litellm_provider, flash.reasons) == ("google", "gemini", True)
    assert sonnet.provider == "ours"
    assert (only(found, "last").max_output, only(found, "last").context) == (32768, 1047576)
    assert only(found, "own").custom_prices
    assert not flash.custom_prices


def test_no_router_serves_nothing() -> None:
    """Before LiteLLM has made its router every model is unknown."""
    with pytest.raises(BadRequest):
        Catalog(lambda: None, str).candidates("mini")


async def never(record: Record) -> Outcome:
    raise AssertionError("nothing is settled here")


@pytest.mark.parametrize("name", sample(litellm.model_cost, 60))
def test_the_worst_case_bounds_litellms_cost(name: str) -> None:
    """No usage within the bounds of a request is charged more than what the request was held at."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model, provider = catalog._split({"model": name})
    price_name = catalog._price_name(model, provider)
    assert price_name is not None
    entry = litellm.model_cost[price_name]
    candidate = Candidate("d", "g", model, provider, provider, price_name, entry, False, None, None)
    settlement, call = Settlement(never, costs.cost), held_call()
    for _ in range(25):
        trigger = random_trigger(rng)
        wrote = rng.choice([0, 1, 500, 30_000])
        usage = random_usage(rng, trigger, wrote)
        cost = settlement._usd(call, candidate, Answer(usage, "usage", service_tier=trigger.tier))
        worst = pricing.worst_usd(prices.dearest(entry, trigger), trigger.input_tokens, wrote)
        assert cost <= worst + pricing.USD, (trigger, usage)


@pytest.mark.parametrize(
    ("usage", "prompt_tokens"),
    [
        ({"input_tokens": 100, "output_tokens": 5, "cache_read_input_tokens": 40}, 140),
        ({"input_tokens": 100, "output_tokens": 5, "total_tokens": 105, "cache_read_input_tokens": 40}, 140),
        ({"input_tokens": 100, "output_tokens": 5, "total_tokens": 105}, 100),
        ({"input_tokens": 100, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 40},
          "cache_read_input_tokens": 40}, 100),
    ],
)  # fmt: skip
def test_what_input_counts(usage: Mapping[str, Any], prompt_tokens: int) -> None:
    """Anthropic's input leaves cached tokens out, OpenAI's has them in; neither are lost nor counted twice."""
    seen = costs.chat_usage(usage)
    assert seen.prompt_tokens == prompt_tokens
    assert seen.prompt_tokens_details is None or seen.prompt_tokens_details.cached_tokens in (None, 0, 40)
