"""Which candidates a caller's own keys make, and which of the platform's stay beside them."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from tests.unit.samples import candidate
from tests.unit.test_injection import own_key
from uc_litellm_plugin import own_keys
from uc_litellm_plugin.errors import Forbidden
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.provider_key import ProviderKey
from uc_litellm_plugin.routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

NOW = datetime(2026, 5, 15, tzinfo=timezone.utc)
PAST: dict[str, Any] = {"expires_at": NOW - timedelta(seconds=1)}
CAPPED: dict[str, Any] = {"monthly_cap_usd": Decimal(5), "spent_this_month_usd": Decimal(5), "last_reset": NOW}
CREDITS: dict[str, Any] = {"fallback": "credits"}
FEE = Decimal("0.05")


def at(name: str, provider: str = "openai", **values: Any) -> Candidate:
    return dataclasses.replace(candidate(name), provider=provider, **values)


def spread(keys: list[ProviderKey], *candidates: Candidate, endpoint: Endpoint = CHAT) -> list[Candidate]:
    return own_keys.spread(candidates or (at("a"), at("b", "anthropic")), keys, endpoint, FEE, NOW)


def names(found: list[Candidate]) -> list[str]:
    return [each.deployment for each in found]


CASES: dict[str, tuple[list[ProviderKey], list[str]]] = {
    "no key": ([], ["a", "b"]),
    "a key elsewhere": ([own_key("groq")], ["a", "b"]),
    "never": ([own_key()], ["a#byok"]),
    "credits": ([own_key(**CREDITS)], ["a#byok", "a", "b"]),
    "never and credits": ([own_key(), own_key("anthropic", **CREDITS)], ["a#byok", "b#byok"]),
    "both credits": ([own_key(**CREDITS), own_key("anthropic", **CREDITS)], ["a#byok", "b#byok", "a", "b"]),
    "expired, credits": ([own_key(**CREDITS, **PAST)], ["a", "b"]),
    "capped, credits": ([own_key(**CREDITS, **CAPPED)], ["a", "b"]),
    "expired never beside a good one": ([own_key(**PAST), own_key("anthropic")], ["b#byok"]),
    "the default is expired, another is not": ([own_key(**PAST), own_key(key_name="second")], ["a#byok"]),
    "capped last month": ([own_key(**{**CAPPED, "last_reset": NOW - timedelta(days=20)})], ["a#byok"]),
}


@pytest.mark.parametrize("case", CASES)
def test_candidates(case: str) -> None:
    """Own keys first; the platform's only where no key is for these providers or every one may fall back."""
    keys, expected = CASES[case]
    found = spread(keys)
    assert names(found) == expected
    for each in found:
        assert (each.own_key is not None) == each.deployment.endswith("#byok")
        assert each.share == (FEE if each.own_key else 1)


def test_the_first_that_can_be_used() -> None:
    """Of several keys at one provider the first that can be used is, and no other."""
    keys = [own_key(key_name="default", **CAPPED), own_key(key_name="second"), own_key(key_name="third")]
    (found,) = spread(keys, at("a"))
    assert found.own_key is keys[1]


@pytest.mark.parametrize(
    ("values", "says"), [(PAST, "past its time"), (CAPPED, "monthly cap"), ({"api_base": "https://x"}, "messages")]
)
def test_unusable(values: dict[str, Any], says: str) -> None:
    """Where the only keys that fit cannot be used and may not fall back, the call is refused and told why."""
    with pytest.raises(Forbidden, match=says) as raised:
        spread([own_key(**values)], endpoint=MESSAGES)
    assert raised.value.code == "own_key_unusable"


@pytest.mark.parametrize("keys", [[], [own_key(**CREDITS, **PAST)]])
def test_a_key_is_needed(keys: list[ProviderKey]) -> None:
    """Where the platform has no key of its own, a caller without one is told so."""
    with pytest.raises(Forbidden, match="add one of yours for openai") as raised:
        spread(keys, at("a", own_key_only=True))
    assert raised.value.code == "own_key_needed"


def test_only_own() -> None:
    """A deployment that needs keys of users is there for those who have one, beside others for all."""
    candidates = (at("a", own_key_only=True), at("b", "anthropic"))
    assert names(spread([own_key(**CREDITS)], *candidates)) == ["a#byok", "b"]
    assert names(spread([], *candidates)) == ["b"]


STAND_INS = (at("a"), at("b", "anthropic", group="stand-in"), at("c", "groq", group="last"))
NEVER_THERE = own_key("anthropic")
IN_GROUPS: dict[str, tuple[list[ProviderKey], list[str]]] = {
    "credits": ([own_key("anthropic", **CREDITS)], ["a", "b#byok", "b", "c"]),
    "never, from its group on": ([NEVER_THERE], ["a", "b#byok"]),
    "never and unusable": ([own_key("anthropic", **PAST)], ["a"]),
    "never in the first": ([own_key()], ["a#byok"]),
    "never before credits": ([NEVER_THERE, own_key("groq", **CREDITS)], ["a", "b#byok", "c#byok"]),
}


@pytest.mark.parametrize("case", IN_GROUPS)
def test_groups_that_stand_in(case: str) -> None:
    """A key for a group that only stands in takes no call away from the group that was asked for."""
    keys, expected = IN_GROUPS[case]
    assert names(spread(keys, *STAND_INS)) == expected


def test_groups_of_litellms_own_strategy() -> None:
    """A group that the plan does not order takes no keys of users."""
    assert names(spread([own_key()], at("a", ours=False))) == ["a"]


@pytest.mark.parametrize("endpoint", [CHAT, EMBEDDINGS, COMPLETIONS, RESPONSES, MESSAGES])
def test_addresses(endpoint: Endpoint) -> None:
    """A key with an address of its own serves chat and embeddings, through the OpenAI client only."""
    key = own_key("custom", api_base="https://x", **CREDITS)
    found = spread([key], at("a", "custom"), at("b", "custom", litellm_provider="anthropic"), endpoint=endpoint)
    assert names(found) == (["a#byok", "a", "b"] if endpoint in (CHAT, EMBEDDINGS) else ["a", "b"])


def test_no_key_where_the_machine_signs() -> None:
    """A deployment that LiteLLM asks as the proxy's own machine (Vertex AI, Bedrock) takes no key of a user's."""
    gemini, vertex = at("a", "google", litellm_provider="gemini"), at("b", "google", litellm_provider="vertex_ai")
    assert [each.deployment for each in spread([own_key("google")], gemini, vertex)] == ["a#byok"]
    with pytest.raises(Forbidden):
        spread([own_key("google")], vertex)
    assert spread([own_key("google", **CREDITS)], vertex) == [vertex]
