from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from tests.unit.samples import candidate, held_call
from uc_litellm_plugin.call import Answer, Attempt, Outcome
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.settlement import CostFunction, Settlement

USAGE = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}


class Till:
    """Keeps what is settled, and answers with what it charged."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.open = asyncio.Event()
        self.open.set()

    async def settle(self, record: Record) -> Outcome:
        self.records.append(record)
        await self.open.wait()
        return Outcome(Decimal(record["charge"]), Decimal(1))


@pytest.fixture
def till() -> Till:
    return Till()


def costing(amount: str) -> CostFunction:
    return lambda candidate, usage, call_type, tier: Decimal(amount)


def failing(candidate: Candidate, usage: Mapping[str, Any], call_type: str, tier: str | None) -> Decimal:
    raise ValueError("this model isn't mapped yet")


async def test_a_charge_is_what_the_usage_cost(till: Till) -> None:
    """The provider's dollars become credits by the frozen terms, and the record holds the facts."""
    outcome = await Settlement(till.settle, costing("0.0123456789")).charge(held_call(), Answer(USAGE, "usage"))
    (record,) = till.records
    assert outcome.charged == Decimal("0.123457")
    assert (record["action"], record["charge"], record["user_id"]) == ("settle", "0.123457", "ann")
    facts = record["usage"]
    assert (facts["cost_usd"], facts["cost_source"], facts["success"]) == ("0.0123456789", "usage", True)
    assert facts["cost_per_token"] == "0.000008230453"
    assert facts["metadata"]["credits_per_usd"] == "10"
    assert facts["metadata"]["prices"] == {"input_cost_per_token": "1e-06", "output_cost_per_token": "2e-06"}
    json.dumps(record, allow_nan=False)


async def test_whoever_comes_first_ends_a_call(till: Till) -> None:
    """Hooks that charge and release at once all wait for the first one's outcome; one record is made."""
    call, settlement = held_call(), Settlement(till.settle, costing("0.01"))
    till.open.clear()
    ends = [
        asyncio.ensure_future(settlement.charge(call, Answer(USAGE, "usage"))),
        asyncio.ensure_future(settlement.release(call, 500, "late")),
        asyncio.ensure_future(settlement.charge(call, Answer({}, "estimate"))),
    ]
    await asyncio.sleep(0)
    till.open.set()
    assert {outcome.charged for outcome in await asyncio.gather(*ends)} == {Decimal("0.1")}
    assert len(till.records) == 1


async def test_a_cancelled_hook_does_not_stop_the_settlement(till: Till) -> None:
    """The client's leaving cancels the hook, not what it settles; the next hook gets the outcome."""
    call, settlement = held_call(), Settlement(till.settle, costing("0.01"))
    till.open.clear()
    first = asyncio.ensure_future(settlement.charge(call, Answer(USAGE, "usage")))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    till.open.set()
    assert (await settlement.release(call, 500, "late")).charged == Decimal("0.1")
    assert len(till.records) == 1


async def test_a_release_charges_nothing(till: Till) -> None:
    """A released call has a row that says why, and no cost."""
    await Settlement(till.settle, costing("1")).release(held_call(), 429, "RateLimitError")
    (record,) = till.records
    assert (record["action"], record["charge"]) == ("release", "0")
    facts = record["usage"]
    assert (facts["status_code"], facts["error_type"], facts["success"]) == (429, "RateLimitError", False)


async def test_what_litellm_cannot_price_is_not_free(till: Till) -> None:
    """When the cost function fails, the deployment's dearest rates apply."""
    await Settlement(till.settle, failing).charge(held_call(), Answer(USAGE, "usage"))
    assert till.records[0]["charge"] == "0.020000"


@pytest.mark.parametrize("amount", ["1e13", "1e40", "1e70", "NaN", "Infinity", "-1"])
async def test_a_cost_that_is_none_charges_the_hold(till: Till, amount: str) -> None:
    """A cost that fits no ledger row, or is no number, charges what was held, and settles."""
    await Settlement(till.settle, costing(amount)).charge(held_call(), Answer(USAGE, "usage"))
    assert Decimal(till.records[0]["charge"]) == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**30, -5, "7", None, True])
async def test_strange_usage_settles(till: Till, number: Any) -> None:
    """Whatever a provider puts in place of a count, the call ends with one record that is JSON."""
    usage = {"input_tokens": number, "output_tokens": number}
    await Settlement(till.settle, failing).charge(held_call(), Answer(usage, "usage"))
    (record,) = till.records
    assert Decimal(record["charge"]) >= 0
    json.dumps(record, allow_nan=False)


async def test_a_usage_that_came_too_fast(till: Till) -> None:
    """A rate beyond any model's fits its column, so that the row is written with the charge."""
    call = held_call()
    call.started -= 0.001
    usage = {"prompt_tokens": 1, "completion_tokens": 10**9, "total_tokens": 10**9 + 1}
    await Settlement(till.settle, costing("1")).charge(call, Answer(usage, "usage"))
    assert till.records[0]["usage"]["tokens_per_second"] <= 999_999_999


async def test_a_cached_answer_is_free(till: Till) -> None:
    """An answer from LiteLLM's cache charges nothing."""
    await Settlement(till.settle, costing("1")).charge(held_call(), Answer(USAGE, "cache"))
    assert (till.records[0]["action"], till.records[0]["charge"]) == ("settle", "0.000000")


async def test_a_cost_above_the_hold_is_charged_in_full(till: Till, caplog: pytest.LogCaptureFixture) -> None:
    """A provider that ignores its cap is paid, and the log counts it."""
    await Settlement(till.settle, costing("5")).charge(held_call(), Answer(USAGE, "usage"))
    assert till.records[0]["charge"] == "50.000000"
    assert [getattr(record, "action", None) for record in caplog.records] == ["hold_exceeded"]


async def test_the_answering_deployment_is_charged(till: Till) -> None:
    """Of several attempts the last one's prices and names stand in the row."""
    call, charged = held_call(), []
    call.attempts.append(Attempt(candidate("d2", model="claude")))

    def cost(candidate: Candidate, usage: Mapping[str, Any], call_type: str, tier: str | None) -> Decimal:
        charged.append((candidate.deployment, call_type, tier))
        return Decimal(0)

    await Settlement(till.settle, cost).charge(call, Answer(USAGE, "usage", service_tier="flex"))
    assert charged == [("d2", "acompletion", "flex")]
    facts = till.records[0]["usage"]
    assert (facts["model"], facts["attempts"], facts["metadata"]["deployment"]) == ("claude", 2, "d2")


@pytest.mark.parametrize(
    ("provider", "asked", "served", "tiers"),
    [
        ("openai", None, None, [None]),
        ("openai", "flex", "default", ["default"]),
        ("openai", "flex", None, [None, "flex"]),
        ("openai", "priority", None, [None, "priority"]),
        ("openai", "auto", None, [None]),
        ("gemini", "auto", None, [None, "priority"]),
        ("gemini", "auto", "default", ["default"]),
    ],
)
async def test_a_tier_that_nobody_names(
    till: Till, provider: str, asked: str | None, served: str | None, tiers: list[str]
) -> None:
    """Where the answer does not say at which tier it was served, the dearer of none and the one asked for counts."""
    call = held_call()
    call.attempts.append(Attempt(dataclasses.replace(candidate("d2"), litellm_provider=provider)))
    call.demand = dataclasses.replace(call.demand, tier=asked)
    seen: list[str | None] = []
    rates = {None: "0.1", "flex": "0.05", "priority": "0.2", "default": "0.1"}

    def cost(candidate: Candidate, usage: Mapping[str, Any], call_type: str, tier: str | None) -> Decimal:
        seen.append(tier)
        return Decimal(rates[tier])

    await Settlement(till.settle, cost).charge(call, Answer(USAGE, "usage", service_tier=served))
    assert seen == tiers
    assert till.records[0]["usage"]["cost_usd"] == max(rates[tier] for tier in tiers)


async def test_a_call_without_an_attempt_is_free(till: Till) -> None:
    """Where no deployment was tried there is nothing to charge."""
    call = held_call()
    call.attempts.clear()
    await Settlement(till.settle, costing("1")).charge(call, Answer(USAGE, "usage"))
    assert (till.records[0]["charge"], till.records[0]["usage"]["provider"]) == ("0.000000", "none")


@pytest.mark.parametrize(("cost", "shown"), [("1e15", "99999999.999999999999"), ("-3", "0"), ("NaN", "0")])
async def test_a_cost_that_no_row_holds(till: Till, cost: str, shown: str) -> None:
    """What an endpoint makes up costs at most what was held, and its row can be written."""
    call = held_call()
    await Settlement(till.settle, costing(cost)).charge(call, Answer(USAGE, "usage"))
    (record,) = till.records
    assert (record["usage"]["cost_usd"], Decimal(record["charge"])) == (shown, call.held)
