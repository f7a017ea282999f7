"""What a caller wishes for, and what their tier allows: the level, the providers, and that no provider hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance import sides
from tests.acceptance.asking import MESSAGES, asked, post, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.choosing import SETTINGS, Asker, models
from tests.acceptance.conftest import clone
from tests.acceptance.sides import ENDPOINTS, ORDERS
from tests.proxy import Json, Proxy
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def own_bank(server_url: str, template: str) -> Bank:
    """A database of this module's own: its levels are others."""
    return Bank(clone(server_url, template))


@pytest.fixture(scope="module")
def proxy(running: Upstream, own_bank: Bank) -> Iterator[Proxy]:
    config = sides.config(
        running.url, models(running.url), disable_cooldowns=True, model_group_alias={"nick": "spread"}
    )
    with sides.powered_proxy(own_bank.url, config, SETTINGS) as proxy:
        yield proxy


@pytest.fixture
def account(own_bank: Bank) -> Account:
    return own_bank.open()


@pytest.fixture
def asker(proxy: Proxy, upstream: Upstream, account: Account) -> Asker:
    return Asker(proxy, upstream, account)


# Header, metadata, suffix, the account's: the first that is there counts.
WISHES = [
    ("precision", "eco", ":eco", "eco", "precision"),
    (None, "precision", ":eco", "eco", "precision"),
    (None, None, ":precision", "eco", "precision"),
    (None, None, "", "precision", "precision"),
    (None, None, "", "balanced", "balanced"),
    ("Eco", None, "", "balanced", "eco"),
    ("", "eco", "", "balanced", "eco"),
]


@pytest.mark.parametrize(("header", "metadata", "suffix", "default", "level"), WISHES)
@pytest.mark.parametrize("name", ["chat", "responses", "messages", "embeddings"])
def test_precedence(
    proxy: Proxy, upstream: Upstream, own_bank: Bank, name: str, header: str | None, metadata: str | None,
    suffix: str, default: str, level: str,
) -> None:  # fmt: skip
    """The header counts before the metadata, that before the suffix, that before the account's level."""
    asker = Asker(proxy, upstream, own_bank.open(level=default))
    fields: Json = {"metadata": {"power_level": metadata}} if metadata else {}
    answer = asker.ask(name, header, model=f"all {name}{suffix}", **fields)
    (row,) = own_bank.settled(asker.account)
    (call,) = asked(upstream)
    assert (answer.status_code, answer.headers["x-uc-power-level"]) == (200, level)
    assert sides.side_of(call) == ORDERS[level][0]
    assert (row["power_level"], row["model_group"]) == (level, f"all {name}")
    assert row["cost_credits"] == sides.charge(call, level)


UNKNOWN: list[tuple[str | None, Json]] = [
    ("turbo", {}),
    ("balanced,eco", {}),
    (None, {"metadata": {"power_level": "turbo"}}),
    (None, {"metadata": {"power_level": 1}}),
    (None, {"metadata": {"power_level": ["eco"]}}),
]


@pytest.mark.parametrize(("header", "fields"), UNKNOWN)
@pytest.mark.parametrize("name", ["chat", "messages", "responses", "embeddings", "completions"])
def test_unknown_level(asker: Asker, own_bank: Bank, name: str, header: str | None, fields: Json) -> None:
    """A level that does not exist is a 400 that lists those that do, in the endpoint's own shape."""
    answer = asker.ask(name, header, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, "unknown_power_level", "invalid_request_error")
    assert "balanced, eco, precision, strict" in error["message"]
    assert (answer.json().get("type") == "error") == (name == "messages")
    assert asked(asker.upstream) == []
    assert own_bank.balance(asker.account).held == NOTHING


NAMES = {
    "a level is a suffix": ("spread:eco", "eco", "spread"),
    "the whole name is a model": ("weird:eco", "balanced", "weird:eco"),
    "a model whose name ends in a level, with a level": ("weird:eco:precision", "precision", "weird:eco"),
    "an alias": ("nick", "balanced", "nick"),
    "an alias with a level": ("nick:eco", "eco", "nick"),
    "a wildcard": ("wild/gpt-4o-mini", "balanced", "wild/gpt-4o-mini"),
    "a wildcard with a level": ("wild/gpt-4o-mini:eco", "eco", "wild/gpt-4o-mini"),
}


@pytest.mark.parametrize("what", NAMES)
def test_names(asker: Asker, own_bank: Bank, what: str) -> None:
    """A suffix is a level only where the whole name is no model; aliases and wildcards follow the level as well."""
    model, level, group = NAMES[what]
    assert asker.order(model=model) == ORDERS[level]
    asker.upstream.reset()
    answer = asker.ask(model=model)
    assert answer.headers["x-uc-power-level"] == level
    rows = own_bank.settled(asker.account, 2)
    (call,) = asked(asker.upstream)
    assert (rows[-1]["model_group"], rows[-1]["cost_credits"]) == (group, sides.charge(call, level))


@pytest.mark.parametrize("model", ["spread:turbo", "nobody", "nobody:eco", ":eco", "spread:", "dep-spread-east"])
def test_no_such_model(asker: Asker, model: str) -> None:
    """A suffix that is no level is part of a name; a name that nobody serves is a 400, a deployment's id as well."""
    answer = asker.ask(model=model)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert asked(asker.upstream) == []


# At eco, which prefers north and east; by price it is east, west, north, south.
PREFERENCES: dict[str, tuple[Json, tuple[str, ...]]] = {
    "nothing": ({}, ("north", "east", "west", "south")),
    "order": ({"order": ["anthropic", "together"]}, ("west", "east", "north", "south")),
    "order by LiteLLM's name": ({"order": ["together_ai"]}, ("east", "north", "west", "south")),
    "order, no others": ({"order": ["openai", "together"], "allow_fallbacks": False}, ("south", "east")),
    "only": ({"only": ["openai", "together"]}, ("east", "south")),
    "only one": ({"only": ["openai"]}, ("south",)),
    "ignore": ({"ignore": ["openrouter"]}, ("east", "west", "south")),
    "sort by price": ({"sort": "price"}, ("east", "west", "north", "south")),
    "sort, in an order": ({"sort": "price", "order": ["openai"]}, ("south", "east", "west", "north")),
    "no others": ({"allow_fallbacks": False}, ("north",)),
    "the cheapest only": ({"sort": "price", "allow_fallbacks": False}, ("east",)),
    "dear input": ({"max_price": {"prompt": 1.7}}, ("east", "west")),
    "dear output": ({"max_price": {"completion": "6.7"}}, ("north", "east", "west")),
    "both": ({"max_price": {"prompt": 1.7, "completion": 5}, "order": ["anthropic"]}, ("east",)),
    "of nothing": ({"order": [], "ignore": [], "max_price": {}, "sort": None}, ("north", "east", "west", "south")),
}


@pytest.mark.parametrize("what", PREFERENCES)
@pytest.mark.parametrize("name", ["chat", "messages", "embeddings"])
def test_preferences(asker: Asker, what: str, name: str) -> None:
    """A request's own preferences decide among what level and tier allow."""
    preferences, order = PREFERENCES[what]
    assert asker.order(name, "eco", model=f"all {name}", provider=preferences) == order


WRONG: dict[str, tuple[Any, str, str]] = {
    "no object": (["openai"], "provider", "order, only, ignore"),
    "an unknown field": ({"quantizations": ["fp8"]}, "provider.quantizations", "order, only, ignore"),
    "an unknown provider": ({"order": ["nobody"]}, "provider.order", "anthropic, "),
    "an unknown provider to ignore": ({"ignore": ["nobody"]}, "provider.ignore", "anthropic, "),
    "no array": ({"only": "openai"}, "provider.only", "anthropic, "),
    "an unknown order": ({"sort": "beauty"}, "provider.sort", "price, latency, throughput"),
    "no switch": ({"allow_fallbacks": "no"}, "provider.allow_fallbacks", "true, false"),
    "no price": ({"max_price": {"prompt": "cheap"}}, "provider.max_price.prompt", "0 or more"),
    "an unknown price": ({"max_price": {"image": 1}}, "provider.max_price", "prompt, completion"),
    "nobody is left": ({"only": ["groq"]}, "provider", "provider.only names others"),
    "all too dear": ({"max_price": {"prompt": 0.5}}, "provider", "dearer than provider.max_price"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_wrong_preferences(asker: Asker, what: str, name: str) -> None:
    """A preference that cannot be is a 400 that names it and what can be."""
    value, param, said = WRONG[what]
    answer = asker.ask(name, provider=value)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert said in error["message"]
    assert asked(asker.upstream) == []


def test_nobody_else(asker: Asker) -> None:
    """A level without a fallback strategy uses its preferred providers only, and says so where there is none."""
    assert asker.order(level="strict") == ("north",)
    answer = asker.ask(level="strict", model="no-north")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_provider")
    assert "strict uses none but its preferred providers" in answer.json()["error"]["message"]


TIERS: list[tuple[str, str, Json, str, str]] = [
    ("free", "balanced", {}, "power_level_not_in_tier", "eco"),
    ("enterprise", "eco", {"model": "other"}, "model_not_in_tier", "spread*, auto"),
]


@pytest.mark.parametrize(("tier", "level", "fields", "code", "said"), TIERS)
@pytest.mark.parametrize("name", ["chat", "messages"])
def test_not_in_the_tier(
    proxy: Proxy, upstream: Upstream, own_bank: Bank, name: str, tier: str, level: str, fields: Json, code: str,
    said: str,
) -> None:  # fmt: skip
    """What the tier does not include is a 403 that says what it does include."""
    asker = Asker(proxy, upstream, own_bank.open(tier=tier))
    answer = asker.ask(name, level, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (403, code, "permission_error")
    assert said in error["message"]
    assert asked(upstream) == []
    assert own_bank.balance(asker.account).held == NOTHING


def test_within_the_tier(proxy: Proxy, upstream: Upstream, own_bank: Bank) -> None:
    """A tier's providers, levels and models are used in the level's order, however much a request wishes for others."""
    asker = Asker(proxy, upstream, own_bank.open(tier="professional"))
    assert asker.order(level="eco") == ("west", "south")
    assert asker.order(level="eco", provider={"order": ["openrouter", "openai"]}) == ("south", "west")
    answer = asker.ask(level="eco", provider={"only": ["openrouter"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_provider")
    assert Asker(proxy, upstream, own_bank.open(tier="free", level="eco")).order() == ORDERS["eco"]
    assert Asker(proxy, upstream, own_bank.open(tier="enterprise")).order() == ORDERS["balanced"]


@pytest.mark.parametrize(("level", "model"), [("eco", "gpt-4o-mini"), ("precision", "claude-sonnet-4-6")])
def test_auto(asker: Asker, level: str, model: str) -> None:
    """A group that spans models answers eco with a small one here and precision with a large one there."""
    answer = asker.ask(level=level, model="auto")
    (call,) = asked(asker.upstream)
    assert (answer.status_code, call["model"], sides.side_of(call)) == (200, model, ORDERS[level][0])


OURS = {"provider", "power_level", "fallbacks", "max_fallbacks", "num_retries", "max_retries"}
SECRETS = ("uc-", "uc_", "power", "idempotency", "session-id")


@pytest.mark.parametrize(("name", "stream"), [(name, s) for name, how in ENDPOINTS.items() for s in how.streams])
def test_no_provider_hears_of_it(asker: Asker, name: str, stream: bool) -> None:
    """Neither the first provider nor the ones after it are sent anything that was meant for us."""
    asker.upstream.set_fault("status", status=500, times=3)
    path, body = request(ENDPOINTS[name].ask, stream, model=f"all {name}", provider={"order": ["openai"]},
                         metadata={"power_level": "eco", "topic": "words"})  # fmt: skip
    headers = {**asker.account.headers, "x-power-level": "eco", "idempotency-key": "once", "x-session-id": "s"}
    answer = post(asker.proxy, headers, path, body)
    assert answer.status_code == 200, answer.text
    calls = asked(asker.upstream)
    assert len(calls) == 4
    for call in calls:
        assert not named(call["body"]) & OURS, call["body"]
        assert not [each for each in named(call["body"]) if each.startswith("_")]
        assert not [each for each in call["headers"] if each.startswith("x-") and any(s in each for s in SECRETS)]
        assert "eco" not in str(call["body"])


def named(value: Any) -> set[str]:
    """Every name of a field in JSON, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(named, value.values()))
    return set().union(*map(named, value)) if isinstance(value, list) else set()


def test_messages_are_asked(asker: Asker) -> None:
    """What is meant for the provider arrives."""
    assert asker.ask(messages=MESSAGES).status_code == 200
    (call,) = asked(asker.upstream)
    assert call["body"]["messages"] == MESSAGES
