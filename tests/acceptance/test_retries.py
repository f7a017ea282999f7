"""Retries and fallbacks: paid once, at the price of whoever answered, within the hold."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ask, asked
from tests.acceptance.bank import NOTHING, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_faults import ended, kind
from tests.proxy import Proxy, upstream_key
from tests.upstream import Upstream

PER_MINUTE = 10


@pytest.mark.parametrize("stream", [False, True])
def test_retried(proxy: Proxy, upstream: Upstream, bank: Bank, stream: bool) -> None:
    """A call that succeeds at its third attempt is charged once, and its row counts the attempts."""
    account = bank.open()
    upstream.set_fault("status", status=500, times=2)
    answer = ask(proxy, account, "chat", stream, model="retried")
    over = ended(bank, account)
    over.note("500 twice, then well", f"chat, {kind(stream)}", answer.status_code)
    books = asked(upstream)
    assert (answer.status_code, len(books)) == (200, 3)
    assert (over.charged, over.row["success"], over.row["attempts"]) == (prices.of_call(books[-1]), True, 3)
    assert over.row["cost_source"] == "usage"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 429])
def test_falls_back(proxy: Proxy, upstream: Upstream, bank: Bank, status: int, stream: bool) -> None:
    """A call that falls back to a dearer group is charged the dearer price, which its hold covered."""
    account = bank.open()
    upstream.set_fault("status", status=status, match={"api_key": upstream_key("cheap")})
    answer = ask(proxy, account, "chat", stream, model="cheap")
    over = ended(bank, account)
    over.note(f"{status}, dearer group answers", f"chat, {kind(stream)}", answer.status_code)
    assert [call["status"] for call in asked(upstream)] == [status, 200]
    assert (answer.status_code, over.charged) == (200, prices.of_call(asked(upstream)[1]))
    assert Decimal(answer.headers["x-uc-credits-held"]) >= over.charged
    facts = json.loads(over.row["metadata"])
    assert (over.row["model_group"], facts["group"], over.row["attempts"]) == ("cheap", "dear", 2)


def test_both_fail(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A call whose fallback fails too is not charged."""
    account = bank.open()
    upstream.set_fault("status", status=500)
    answer = ask(proxy, account, "chat", model="cheap")
    over = ended(bank, account)
    over.note("500, at the fallback too", "chat, plain", answer.status_code)
    assert (answer.status_code, over.charged, over.row["attempts"]) == (500, NOTHING, 2)


def test_rate_limited(running: Upstream, upstream: Upstream, bank: Bank, tmp_path: Path) -> None:
    """Calls beyond the tier's requests per minute get a 429 and leave nothing held."""
    account = bank.open(tier="free")
    settings = tmp_path / "uc.yaml"
    settings.write_text(f"tiers: {{free: {{rpm_limit: {PER_MINUTE}}}}}\n")
    calls = 2 * PER_MINUTE + 5  # However they fall into two minutes, some are too many.
    # A proxy of its own: LiteLLM's limiter counts in the worker's memory, where the other tests' calls are too.
    with (
        paid_proxy(bank.url, config(running.url), UC_CONFIG=str(settings)) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        # What is loaded late is loaded before the minutes begin.
        assert ask(proxy, bank.open(), "chat").status_code == 200
        upstream.reset()
        statuses = list(pool.map(lambda _: ask(proxy, account, "chat").status_code, range(calls)))
    assert set(statuses) == {200, 429}
    paid = statuses.count(200)
    bank.settled(account, paid)
    balance = bank.balance(account)
    assert len(asked(upstream)) == paid
    assert balance.remaining == 100 - sum(map(prices.of_call, asked(upstream)))
    assert balance.held == 0
    assert bank.audit() == []
