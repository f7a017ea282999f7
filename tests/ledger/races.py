"""The third layer: several sessions at once.

`overlaps` lets each operation meet each other one at its worst moment: the first is done but not committed when the
second begins. What comes out must be what the model says of one order or the other. `crossing` and `one_key` are two
meetings of more than two operations, `storm` is many sessions at random.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from decimal import Decimal
from itertools import product
from typing import Any

import asyncpg

from tests.ledger import snapshot
from tests.ledger.model import Books
from tests.ledger.operations import (
    AddCredits,
    DebitCredits,
    Ending,
    ExpireHolds,
    ExtendHolds,
    HoldCredits,
    Operation,
    SettleCredits,
)
from tests.schema.ledger import Connection, Ledger, settlement

HELD, LAPSED, BOBS, NEW = (uuid.UUID(int=number) for number in range(1, 5))

BEFORE: tuple[Operation, ...] = (
    AddCredits("ann", Decimal(10), "bonus"),
    AddCredits("bob", Decimal(10), "bonus"),
    HoldCredits(HELD, "ann", Decimal(4), Decimal(4)),
    HoldCredits(LAPSED, "ann", Decimal(2), Decimal(2), lapses=True),
    HoldCredits(BOBS, "bob", Decimal(1), Decimal(1)),
)
# Ann has 4 available: of two that want 3, one must find too little.
MEETING: tuple[Operation, ...] = (
    HoldCredits(NEW, "ann", Decimal(3), Decimal(3)),
    HoldCredits(uuid.UUID(int=9), "ann", Decimal(3), Decimal(1)),
    SettleCredits((Ending(HELD, "ann", "5"),)),
    SettleCredits((Ending(LAPSED, "ann", "1"), Ending(BOBS, "bob", "1"))),
    SettleCredits((Ending(HELD, "ann", None),)),
    ExpireHolds(),
    ExtendHolds((HELD, LAPSED)),
    AddCredits("ann", Decimal(5), "purchase", payment="pi_1"),
    AddCredits("new", Decimal(5), "bonus", key="k"),
    DebitCredits("ann", Decimal(3), key="d"),
)
NEVER_WAIT = (ExpireHolds, ExtendHolds)

SESSIONS = 6
ROUNDS = 12

ONCE = "SELECT success, error FROM hold_credits_once('key', repeat('0', 64), '1 day', $1, 'ann', 1, 1, '1 min')"

Result = tuple[object, object, object, snapshot.Snapshot]


async def overlaps(url: str) -> None:
    async with _sessions(url, 3) as sessions:
        for first, second in product(MEETING, MEETING):
            await _overlap(sessions, first, second)


async def _overlap(sessions: list[Ledger], first: Operation, second: Operation) -> None:
    books = Books()
    await snapshot.wipe(sessions[0].connection)
    for operation in BEFORE:
        assert await operation.ask(sessions[0]) == operation.expect(books)
    answers = await _both(sessions, first, second)
    # What lapses afterwards tells which leases were extended.
    swept = await ExpireHolds().ask(sessions[0])
    result: Result = (*answers, swept, await snapshot.taken(sessions[0].connection))
    possible = _possible(books, first, second)
    assert result in possible, f"{_named(first)} meets {_named(second)}: {result}\nis none of {possible}"


def _named(operation: Operation) -> str:
    return type(operation).__name__


async def _both(sessions: list[Ledger], first: Operation, second: Operation) -> tuple[object, object]:
    one, two, watcher = sessions
    async with one.connection.transaction():
        answer = await first.ask(one)
        task = asyncio.ensure_future(second.ask(two))
        if isinstance(second, NEVER_WAIT):
            await task
        else:
            await _until_waiting(watcher.connection, two.connection, task)
    return answer, await task


async def _until_waiting(watcher: Connection, session: Connection, task: asyncio.Future[Any]) -> None:
    """Returns when the session waits for a lock, or has found that it needs none."""
    waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
    while not task.done() and not await watcher.fetchval(waits, session.get_server_pid()):
        await asyncio.sleep(0)


def _possible(books: Books, first: Operation, second: Operation) -> list[Result]:
    """One order and the other; and what never waits may have passed over whatever was busy."""
    results = []
    for one, two in [(first, second), *[(first, each) for each in _passing_over(second)]]:
        results.append(_in_order(deepcopy(books), one, two))
    other = _in_order(deepcopy(books), second, first)
    return [*results, (other[1], other[0], *other[2:])]


def _in_order(books: Books, one: Operation, two: Operation) -> Result:
    return one.expect(books), two.expect(books), books.expire(), snapshot.expected(books)


def _passing_over(operation: Operation) -> list[Operation]:
    if isinstance(operation, ExtendHolds):
        return [ExtendHolds(holds) for holds in ((), *[(hold,) for hold in operation.holds])]
    return [_SweepNothing()] if isinstance(operation, ExpireHolds) else []


class _SweepNothing(ExpireHolds):
    def expect(self, books: Books) -> dict[uuid.UUID, Decimal]:
        return {}


async def one_key(url: str) -> None:
    """Of two calls with one idempotency key at the same moment, the second is told of the first."""
    async with _sessions(url, 3) as (one, two, watcher):
        await one.add("ann", "10")
        async with one.connection.transaction():
            first = await one.connection.fetchrow(ONCE, uuid.uuid4())
            task = asyncio.ensure_future(two.connection.fetchrow(ONCE, uuid.uuid4()))
            await _until_waiting(watcher.connection, two.connection, task)
        answers = [tuple(answer or ()) for answer in (first, await task)]
        assert answers == [(True, None), (False, "idempotency_in_progress")], f"two calls with one key: {answers}"


async def crossing(url: str) -> None:
    """Two batches over the same accounts in opposite order, both stopped at the one in the middle, end all the same."""
    users = ["user1", "user2", "user3"]
    async with _sessions(url, 4) as (holder, one, two, watcher):
        for user in users:
            await holder.add(user, "10")
        tasks = []
        async with holder.connection.transaction():
            await holder.debit("user2", "1")
            for session, order in ((one, users), (two, users[::-1])):
                batch = session.settle(*[settlement(uuid.uuid4(), user, "1") for user in order])
                tasks.append(asyncio.ensure_future(batch))
                await _until_waiting(watcher.connection, session.connection, tasks[-1])
        await asyncio.gather(*tasks)


async def storm(url: str, seed: int) -> None:
    """Sessions with a few accounts in common: no error, and every charge that was acknowledged is there once."""
    charged: dict[uuid.UUID, Decimal] = {}
    async with _sessions(url, SESSIONS) as sessions:
        for user in range(SESSIONS):
            await sessions[0].add(f"user{user}", "25")
        dice = [random.Random(seed + number) for number in range(SESSIONS)]
        for work in (_batches, _calls):
            await asyncio.gather(*[work(*each, charged) for each in zip(sessions, dice, strict=True)])
        await _judge(sessions[0], charged)


async def _batches(session: Ledger, dice: random.Random, charged: dict[uuid.UUID, Decimal]) -> None:
    """Batches over all accounts, each in an order of its own."""
    for _ in range(ROUNDS):
        users = dice.sample(range(SESSIONS), SESSIONS)
        for row in await session.settle(*[settlement(uuid.uuid4(), f"user{user}", "0.25") for user in users]):
            charged[row["hold_id"]] = row["charged"]


async def _calls(session: Ledger, dice: random.Random, charged: dict[uuid.UUID, Decimal]) -> None:
    for _ in range(ROUNDS):
        holds = {uuid.uuid4(): f"user{dice.randrange(SESSIONS)}" for _ in range(dice.randint(1, 4))}
        for hold, user in holds.items():
            await session.hold(user, "3", "1", hold)
        batch = [settlement(hold, user, dice.choice(["0.5", "2.25", "4"])) for hold, user in holds.items()]
        for row in [row for _ in range(dice.randint(1, 2)) for row in await session.settle(*batch)]:
            assert charged.setdefault(row["hold_id"], row["charged"]) == row["charged"]
        if dice.random() < 0.3:
            await ExpireHolds().ask(session)


async def _judge(session: Ledger, charged: dict[uuid.UUID, Decimal]) -> None:
    found = await snapshot.taken(session.connection)
    assert (found.faults, found.leases) == ({}, {}), f"{found.faults}, still held: {found.leases}"
    assert {uuid.UUID(hold): row[1] for hold, row in found.usage.items()} == charged, "usage is not what was answered"
    assert sum(figures[4] for figures in found.accounts.values()) == sum(charged.values()), (
        "spent is not what was answered"
    )


@asynccontextmanager
async def _sessions(url: str, count: int) -> AsyncIterator[list[Ledger]]:
    """So many sessions in an empty ledger."""
    options = {"search_path": "uc", "lock_timeout": "4s", "statement_timeout": "20s"}
    connections = [await asyncpg.connect(url, server_settings=options) for _ in range(count)]
    try:
        await snapshot.wipe(connections[0])
        yield [Ledger(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.terminate()
