"""PostgreSQL takes its time: nothing is sent before the hold is decided, and no answer ends before it is charged."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.asking import ASKS, Visitor, asked, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.proxy import Proxy
from tests.upstream import Upstream

EVERY = [(name, stream) for name in ASKS for stream in (False, True) if not (stream and name == "embeddings")]
SHAPES = [(name, stream) for name in ("chat", "responses", "messages") for stream in (False, True)]


@pytest.fixture(scope="module")
def patient(running: Upstream, bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that waits for PostgreSQL for longer than this machine can be busy."""
    settings = tmp_path_factory.mktemp("patient") / "uc.yaml"
    settings.write_text("database: {timeout_s: 30}\n")
    with paid_proxy(bank.url, config(running.url), UC_CONFIG=str(settings)) as proxy:
        yield proxy


@pytest.mark.parametrize(("name", "stream"), EVERY)
def test_nothing_is_sent_before_the_credits_are_held(
    patient: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool
) -> None:
    """While PostgreSQL has not answered, the provider has no request; then it has one, and the answer is charged."""
    with bank.locked(account):
        visitor = Visitor(patient, account, *request(name, stream))
        bank.wait_for_lock()
        assert asked(upstream) == []
    with visitor:
        assert "200 OK" in visitor.hear_all()
    assert len(asked(upstream)) == 1
    bank.settled(account)
    assert [row["transaction_type"] for row in bank.transactions(account)].count("debit") == 1


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("name", ["chat", "completions"])
def test_the_end_of_a_stream_waits_for_its_charge(
    patient: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, usage: bool
) -> None:
    """While PostgreSQL has not charged a stream, its client may know what it will cost, but has not heard its end."""
    upstream.set_fault("gate", after=2)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with Visitor(patient, account, *request(name, True, **options)) as visitor:
        upstream.wait(gated=1)
        with bank.locked(account):
            upstream.open()
            if usage:
                visitor.hear('"cost":')
            bank.wait_for_lock()
            assert "[DONE]" not in visitor.heard()
        visitor.hear("[DONE]")
        debits = [row for row in bank.transactions(account) if row["transaction_type"] == "debit"]
    assert len(debits) == 1


@pytest.mark.parametrize(("name", "stream"), SHAPES)
def test_a_hold_that_takes_too_long(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool
) -> None:
    """A hold that PostgreSQL cannot give in time is a 503 in the endpoint's own shape, and nothing was sent."""
    path, body = request(name, stream)
    with bank.locked(account):
        answer = httpx.post(f"{proxy.url}{path}", headers=account.headers, json=body, trust_env=False, timeout=60)
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert answer.json()["error"]["message"].startswith("The credit ledger cannot be reached")
    assert asked(upstream) == []
    assert bank.balance(account).held == 0
    assert bank.audit() == []
