"""Two workers of one proxy share what they know through PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from decimal import Decimal

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import STREAMED, ask, asked
from tests.acceptance.bank import Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.proxy import Proxy
from tests.upstream import Upstream

AT_ONCE = 8


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    with paid_proxy(bank.url, config(running.url), workers=2) as proxy:
        yield proxy


def test_exact(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Calls of one account at both workers at once agree to the last decimal."""
    account = bank.open()
    asks = [(name, stream) for name in STREAMED for stream in (False, True)] * 4
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = list(pool.map(lambda which: ask(proxy, account, *which).status_code, asks))
    assert set(statuses) == {200}
    assert len(proxy.worker_pids()) == 2
    rows = bank.settled(account, len(asks))
    books = asked(upstream)
    assert len(rows) == len(books) == len(asks)
    assert bank.balance(account).remaining == 100 - sum(map(prices.of_call, books))
    assert bank.audit() == []


def test_nobody_overspends(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """However many calls come at once at both workers, together they hold no more than there is."""
    account = bank.open("0.02")
    upstream.set_fault("gate")
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(ask, proxy, account, "chat", max_tokens=100) for _ in range(16)]
        # Those without credits are answered while the others wait at the gate: the first tells that credits ran out.
        first = next(as_completed(sent))
        held = bank.balance(account).held
        upstream.open()
        statuses = [one.result().status_code for one in sent]
    assert first.result().status_code == 402
    assert set(statuses) == {200, 402}
    assert 0 < held <= Decimal("0.02")
    bank.settled(account, statuses.count(200))
    assert bank.balance(account).remaining == Decimal("0.02") - sum(map(prices.of_call, asked(upstream)))


def test_revoked_everywhere(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A key that both workers have seen is refused by both with the statement that revokes it."""
    account = bank.open()
    assert {ask(proxy, account, "chat").status_code for _ in range(16)} == {200}
    bank.execute(f"UPDATE user_api_keys SET is_active = false WHERE id = '{account.key_id}'")
    assert {ask(proxy, account, "chat").status_code for _ in range(16)} == {401}
    assert len(asked(upstream)) == 16
    bank.settled(account, 16)
