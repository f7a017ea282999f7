"""What happens when two sessions want the same thing; the second is known to wait before the first commits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from tests.schema.conftest import Connect
from tests.schema.ledger import Ledger, settlement

T = TypeVar("T")


@pytest.fixture
async def other(connect: Connect) -> Ledger:
    return Ledger(await connect())


@pytest.fixture
async def watcher(connect: Connect) -> Ledger:
    return Ledger(await connect())


async def until_waiting(watcher: Ledger, count: int = 1) -> None:
    """Returns when so many sessions of this database wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def poll() -> None:
        while await watcher.connection.fetchval(waiting) < count:
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), 20)


async def overlap(first: Ledger, watcher: Ledger, one: Coroutine[Any, Any, Any], two: Coroutine[Any, Any, T]) -> T:
    """Runs one in an open transaction, two until it waits for one, then commits; returns the answer of two."""
    transaction = first.connection.transaction()
    await transaction.start()
    await one
    second = asyncio.ensure_future(two)
    await until_waiting(watcher)
    await transaction.commit()
    return await second


async def test_two_holds_of_the_last_credits(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """Of two holds that the balance covers only once, the second finds what the first left."""
    await ledger.add("ann", "10")
    answer = await overlap(ledger, watcher, ledger.hold("ann", "7"), other.hold("ann", "7"))
    assert (answer["success"], answer["error"], answer["credits_available"]) == (False, "insufficient_credits", 3)
    assert await ledger.audit() == []


async def test_same_hold_twice_at_once(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """The same hold sent twice at once is one hold."""
    await ledger.add("ann", "10")
    hold = uuid.uuid4()
    answer = await overlap(ledger, watcher, ledger.hold("ann", "7", hold=hold), other.hold("ann", "7", hold=hold))
    assert (answer["success"], answer["duplicate"], answer["held"]) == (True, True, 7)
    assert await ledger.types("ann") == ["bonus", "hold"]


async def test_settled_twice_at_once(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """A settlement delivered twice at once charges once."""
    await ledger.add("ann", "10")
    item = settlement(await ledger.held("ann", "4"), "ann", "3")
    rows = await overlap(ledger, watcher, ledger.settle(item), other.settle(item))
    assert [(row["outcome"], row["credits_remaining"]) for row in rows] == [("duplicate", 7)]
    assert await ledger.audit() == []


async def test_settled_while_it_expires(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """A settlement that meets the sweeper charges late, once."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4", ttl=timedelta(seconds=-1))
    expire = ledger.connection.fetch("SELECT * FROM expire_holds()")
    rows = await overlap(ledger, watcher, expire, other.settle(settlement(hold, "ann", "3")))
    assert [row["outcome"] for row in rows] == ["late_settled"]
    assert await ledger.types("ann") == ["bonus", "hold", "expire", "debit"]
    assert await ledger.audit() == []


async def test_sweepers_pass_over_busy_accounts(ledger: Ledger, other: Ledger) -> None:
    """A sweeper waits for nobody: what another session is at is left to the next run."""
    await other.connection.execute("SET lock_timeout = '5 s'")
    for user in ("ann", "bob"):
        await ledger.add(user, "10")
        await ledger.held(user, "4", ttl=timedelta(seconds=-1))
    async with ledger.connection.transaction():
        await ledger.debit("ann", "1")
        rows = await other.connection.fetch("SELECT user_id FROM expire_holds()")
    assert [row["user_id"] for row in rows] == ["bob"]
    rows = await other.connection.fetch("SELECT user_id FROM expire_holds()")
    assert [row["user_id"] for row in rows] == ["ann"]
    assert await ledger.audit() == []


async def test_extended_is_not_expired(ledger: Ledger, other: Ledger) -> None:
    """A lease that is being extended is not swept, and one being ended is not waited for."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4", ttl=timedelta(seconds=-1))
    extend = "SELECT * FROM extend_holds($1, '1 min')"
    async with ledger.connection.transaction():
        assert len(await ledger.connection.fetch(extend, [hold])) == 1
        assert await other.connection.fetch("SELECT * FROM expire_holds()") == []
    async with ledger.connection.transaction():
        await ledger.settle(settlement(hold, "ann", "1"))
        assert await other.connection.fetch(extend, [hold]) == []
    assert await ledger.audit() == []


async def test_accounts_are_locked_in_order(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """A batch locks its accounts in the order of their ids, whatever its own order: up to the busy one, none beyond."""
    users = [f"user{number}" for number in range(9)]
    for user in users:
        await ledger.add(user, "10")
    batch = other.settle(*[settlement(uuid.uuid4(), user, "1") for user in (users[6:] + users[:3] + users[5:2:-1])])
    async with ledger.connection.transaction():
        await ledger.debit(users[4], "1")
        settled = asyncio.ensure_future(batch)
        await until_waiting(watcher)
        free = await watcher.connection.fetch("SELECT user_id FROM user_credits FOR UPDATE SKIP LOCKED")
    assert sorted(row["user_id"] for row in free) == users[5:]
    assert {row["outcome"] for row in await settled} == {"late_settled"}


async def test_batches_in_opposite_order(ledger: Ledger, other: Ledger) -> None:
    """Batches over the same accounts in opposite order end without a deadlock."""
    users = [f"user{number}" for number in range(8)]
    for user in users:
        await ledger.add(user, "1000")

    async def many(session: Ledger, order: list[str]) -> None:
        for _ in range(25):
            await session.settle(*[settlement(uuid.uuid4(), user, "0.5") for user in order])

    await asyncio.gather(many(ledger, users), many(other, users[::-1]))
    assert {await ledger.balances(user) for user in users} == {("975", "0", "0")}
    assert await ledger.audit() == []


async def test_same_payment_twice_at_once(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """A payment reported twice at once, for an account that is only now opened, is added once."""
    options = {"stripe_transaction_id": "pi_1"}
    answer = await overlap(
        ledger, watcher, ledger.add("ann", "5", "purchase", **options), other.add("ann", "5", "purchase", **options)
    )
    assert answer["success"]
    assert await ledger.balances("ann") == ("5", "0", "0")


async def test_one_payment_for_two_accounts_at_once(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """A payment claimed for two accounts at once goes to one of them."""
    options = {"stripe_transaction_id": "pi_1"}
    answer = await overlap(
        ledger, watcher, ledger.add("ann", "5", "purchase", **options), other.add("bob", "5", "purchase", **options)
    )
    assert (answer["success"], answer["error_message"]) == (False, "idempotency_conflict")


async def test_same_key_twice_at_once(ledger: Ledger, other: Ledger, watcher: Ledger) -> None:
    """An addition sent twice at once, for an account that is only now opened, is added once."""
    options = {"idempotency_key": "k"}
    answer = await overlap(ledger, watcher, ledger.add("ann", "5", **options), other.add("ann", "5", **options))
    assert answer["success"]
    assert await ledger.balances("ann") == ("5", "0", "0")


async def test_many_sessions_on_one_account(connect: Connect, ledger: Ledger) -> None:
    """However many sessions hold and settle at once, no credit is spent twice and none is lost."""
    await ledger.add("ann", "30")
    sessions = [Ledger(await connect()) for _ in range(6)]

    async def calls(session: Ledger) -> int:
        served = 0
        for _ in range(12):
            hold = uuid.uuid4()
            if (await session.hold("ann", "1", hold=hold))["success"]:
                await session.settle(settlement(hold, "ann", "0.75"))
                served += 1
        return served

    served = sum(await asyncio.gather(*map(calls, sessions)))
    account = await ledger.account("ann")
    assert account["credits_remaining"] == 30 - served * Decimal("0.75")
    assert (account["credits_held"], account["credits_debt"]) == (0, 0)
    assert await ledger.audit() == []
