"""PostgreSQL stands still: calls are refused in time, and what it reads afterwards locks nobody's credits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.asking import ask, asked
from tests.acceptance.bank import Account
from tests.chaos.postgres import Server
from tests.proxy import Proxy
from tests.storms.test_shutdown import migrated, proxy_at, until
from tests.upstream import Upstream

NAMES = ("chat", "messages", "responses", "embeddings", "completions")
AT_ONCE = 30
# database.timeout_s and what a busy machine takes; tests/integration/test_database.py is strict.
REFUSED_WITHIN_SECONDS = 1.5 + 5


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def test_frozen(server: Server, upstream: Upstream, tmp_path: Path) -> None:
    """Every call gets its 503 in time, alone or in a crowd, and a moment after the thaw nothing is held."""
    bank = migrated(server.url)
    account = bank.open()
    (tmp_path / "uc.yaml").write_text("")
    with proxy_at(tmp_path, server.url, upstream) as proxy, ThreadPoolExecutor(AT_ONCE) as pool:
        for name in NAMES:
            assert ask(proxy, account, name).status_code == 200
        with server.frozen():
            for name in NAMES:
                assert refused_after(proxy, account, name) < REFUSED_WITHIN_SECONDS
            crowd = [pool.submit(refused_after, proxy, account, name) for name in NAMES * (AT_ONCE // len(NAMES))]
            assert max(each.result() for each in crowd) < 2 * REFUSED_WITHIN_SECONDS
        until(lambda: ask(proxy, account, "chat").status_code == 200)
        bank.settled(account, len(NAMES) + 1)
        until(lambda: bank.rows("SELECT * FROM credit_holds") == [])
    assert len(asked(upstream)) == len(NAMES) + 1
    assert bank.balance(account).held == 0
    assert bank.audit() == []


def refused_after(proxy: Proxy, account: Account, name: str) -> float:
    """Seconds until a call is refused."""
    started = time.monotonic()
    answer = ask(proxy, account, name)
    assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (503, True), answer.text
    return time.monotonic() - started
