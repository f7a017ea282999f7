"""Calls that the operator's guardrails end: what was delivered is charged, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.asking import Visitor, ask, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.guards import CUTS, FORBIDS
from tests.proxy import Proxy
from tests.upstream import Upstream

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def guarded(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """The proxy with a guardrail beside the call and after it."""
    guard = {"guardrail": "tests.acceptance.guards.Guard", "mode": ["during_call", "post_call"], "default_on": True}
    made = config(running.url) | {"guardrails": [{"guardrail_name": "guard", "litellm_params": guard}]}
    with paid_proxy(bank.url, made, PYTHONPATH=str(ROOT)) as proxy:
        yield proxy


def asking(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{word}, say 40 words"}]


def test_what_a_guardrail_lets_through_is_charged(guarded: Proxy, bank: Bank, account: Account) -> None:
    """A guardrail that has nothing to say changes nothing."""
    assert ask(guarded, account, "chat", True).status_code == 200
    (row,) = bank.settled(account)
    assert (row["success"], row["cost_source"]) == (True, "usage")
    assert row["cost_credits"] > 0


@pytest.mark.parametrize("name", ["chat", "messages"])
def test_a_stream_that_a_guardrail_cuts(
    guarded: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str
) -> None:
    """What was delivered before is charged, as an estimate of a failed call."""
    upstream.set_fault("slow", seconds=0.02)
    with Visitor(guarded, account, *request(name, True, messages=asking(CUTS))) as visitor:
        visitor.hear_all()
    (row,) = bank.settled(account)
    assert (row["success"], row["status_code"], row["cost_source"]) == (False, 400, "estimate")
    assert 5 <= row["completion_tokens"] < 40
    assert row["cost_credits"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_guardrail_beside_the_call(
    guarded: Proxy, upstream: Upstream, bank: Bank, account: Account, stream: bool
) -> None:
    """What it refuses after the provider has answered was not delivered, and is not charged."""
    answer = ask(guarded, account, "chat", stream, messages=asking(FORBIDS))
    assert answer.status_code == 400
    (row,) = bank.settled(account)
    assert (row["cost_credits"], row["success"], row["status_code"]) == (0, False, 400)
    assert [each["transaction_type"] for each in bank.transactions(account)][-1] == "release"
