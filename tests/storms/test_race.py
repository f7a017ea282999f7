"""Two proxies and more clients than credits: nobody gets in beyond what there is, at no moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal

import aiohttp
import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ask, asked, request
from tests.acceptance.bank import NOTHING, Account, Balance, Bank
from tests.proxy import Json, Proxy
from tests.storms.test_shutdown import proxy_at
from tests.upstream import Upstream

AFFORDED, CLIENTS_PER_PROXY = 37, 100
ACCOUNTS, AFFORDED_EACH, CLIENTS_EACH = 50, 3, 4
SECONDS = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True)
class Reply:
    """What one client got."""

    account: Account
    status: int
    body: Json


@pytest.fixture(scope="module")
def proxies(running: Upstream, bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Proxy]]:
    """Two proxies on one database, each a process of its own."""
    homes = [tmp_path_factory.mktemp("race") for _ in range(2)]
    for home in homes:
        (home / "uc.yaml").write_text("")
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        starting = [pool.submit(stack.enter_context, proxy_at(home, bank.url, running)) for home in homes]
        yield [proxy.result() for proxy in starting]


@pytest.fixture
def worst_case(proxies: list[Proxy], bank: Bank, upstream: Upstream) -> Decimal:
    """The credits that each of the calls here holds."""
    scout = bank.open()
    answers = [ask(proxy, scout, "chat") for proxy in proxies]
    held = {Decimal(answer.headers["x-uc-credits-held"]) for answer in answers}
    bank.settled(scout, len(proxies))
    upstream.reset()
    assert len(held) == 1
    return held.pop()


def test_one_account(proxies: list[Proxy], bank: Bank, upstream: Upstream, worst_case: Decimal) -> None:
    """200 clients at once on one account that affords 37 calls: 37 reach the provider, 163 get 402."""
    before = deadlocks(bank)
    account = bank.open(str(AFFORDED * worst_case))
    replies = storm(proxies, [account] * CLIENTS_PER_PROXY, upstream, AFFORDED)
    assert Counter(reply.status for reply in replies) == {200: AFFORDED, 402: 2 * CLIENTS_PER_PROXY - AFFORDED}
    assert len(asked(upstream)) == AFFORDED
    assert_exact(bank, account, AFFORDED * worst_case, replies, AFFORDED)
    assert lowest_available(bank, [account]) == 0
    assert bank.audit() == []
    assert deadlocks(bank) == before


def test_many_accounts(proxies: list[Proxy], bank: Bank, upstream: Upstream, worst_case: Decimal) -> None:
    """The same with 50 accounts at once, of which each affords 3 of its 8 calls."""
    before = deadlocks(bank)
    credits = AFFORDED_EACH * worst_case
    accounts = [bank.open(str(credits)) for _ in range(ACCOUNTS)]
    replies = storm(proxies, accounts * CLIENTS_EACH, upstream, ACCOUNTS * AFFORDED_EACH)
    assert len(asked(upstream)) == ACCOUNTS * AFFORDED_EACH
    for account in accounts:
        own = [reply for reply in replies if reply.account == account]
        refused = len(proxies) * CLIENTS_EACH - AFFORDED_EACH
        assert Counter(reply.status for reply in own) == {200: AFFORDED_EACH, 402: refused}
        assert_exact(bank, account, credits, own, AFFORDED_EACH)
    assert lowest_available(bank, accounts) == 0
    assert bank.audit() == []
    assert deadlocks(bank) == before


def storm(proxies: Sequence[Proxy], accounts: Sequence[Account], upstream: Upstream, afforded: int) -> list[Reply]:
    """Each proxy gets one call of every account, all at once; those that are let in wait for all others' answers."""
    upstream.set_fault("gate")
    return asyncio.run(_storm(proxies, accounts, upstream, afforded))


async def _storm(
    proxies: Sequence[Proxy], accounts: Sequence[Account], upstream: Upstream, afforded: int
) -> list[Reply]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=SECONDS) as http:
        sent = [asyncio.ensure_future(_ask(http, proxy, account)) for account in accounts for proxy in proxies]
        # Only refusals come while the gate is shut: their credits cannot come back before the last of them.
        for reply in asyncio.as_completed(sent):
            await reply
            if sum(task.done() for task in sent) == len(sent) - afforded:
                break
        await asyncio.to_thread(upstream.wait, gated=afforded, timeout=60)
        await asyncio.to_thread(upstream.open)
        return await asyncio.gather(*sent)


async def _ask(http: aiohttp.ClientSession, proxy: Proxy, account: Account) -> Reply:
    path, body = request("chat")
    async with http.post(f"{proxy.url}{path}", json=body, headers=account.headers) as answer:
        return Reply(account, answer.status, await answer.json())


def assert_exact(bank: Bank, account: Account, credits: Decimal, replies: Sequence[Reply], answered: int) -> None:
    """The account paid for its answers, as the provider counts, and what they held came back."""
    bank.settled(account, answered)
    usages = [reply.body["usage"] for reply in replies if reply.status == 200]
    spent = sum(prices.of_tokens("gpt-mini", use["prompt_tokens"], use["completion_tokens"]) for use in usages)
    balance = bank.balance(account)
    assert balance == Balance(credits - spent, NOTHING, NOTHING)


def lowest_available(bank: Bank, accounts: Sequence[Account]) -> Decimal:
    """The least that any of these accounts ever had available, over every row of its history since the first hold."""
    query = """
        SELECT min(balance_after - held_after - debt_after) AS least FROM credit_transactions
        WHERE user_id = ANY ($1)"""
    least: Decimal = bank.rows(query, [account.user_id for account in accounts])[0]["least"]
    return least


def deadlocks(bank: Bank) -> int:
    """How many deadlocks PostgreSQL has had to break in this database."""
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    count: int = bank.rows(query)[0]["deadlocks"]
    return count
