from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest

from uc_litellm_plugin import connections as connections_module
from uc_litellm_plugin.connections import Connections, Lent
from uc_litellm_plugin.settings import Settings

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """At most two connections."""
    assert settings.database_url is not None
    async with asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=0, max_size=2) as pool:
        yield pool


async def pid(connections: Connections) -> int:
    """The server's process behind the next connection."""
    connection = await connections.lend()
    try:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))
    finally:
        connections.take_back(connection)


async def test_the_next_caller_gets_the_last_ones_connection(pool: Pool) -> None:
    """One caller after the other has the same one, which the pool does not see in between."""
    connections = Connections(pool)
    assert len({await pid(connections) for _ in range(3)}) == 1
    assert (pool.get_size(), pool.get_idle_size()) == (1, 0)
    await connections.close(5)


async def test_who_waits_gets_what_comes_back(pool: Pool) -> None:
    """More callers than connections are served in the order in which they came; none is kept from them."""
    connections = Connections(pool)
    lent = [await connections.lend() for _ in range(2)]
    served: list[int] = []

    async def wait(number: int) -> None:
        connection = await connections.lend()
        served.append(number)
        connections.take_back(connection)

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    for connection in lent:
        connections.take_back(connection)
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert served == [0, 1, 2]
    await connections.close(5)


async def test_one_that_nobody_uses_goes_back_to_the_pool(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool closes connections after a time; that they are at hand does not keep them open for ever."""
    monkeypatch.setattr(connections_module, "_AT_HAND_S", 0.01)
    connections = Connections(pool)
    returning, back = connections._return, asyncio.Event()

    def told(connection: Lent) -> None:
        returning(connection)
        back.set()

    monkeypatch.setattr(connections, "_return", told)
    for _ in range(2):
        first = await pid(connections)
        await asyncio.wait_for(back.wait(), 30)
        back.clear()
        while connections._returning:
            await asyncio.wait([*connections._returning])
        assert (pool.get_size(), pool.get_idle_size()) == (1, 1)
    assert first == await pid(connections)
    await connections.close(5)


async def test_expired_ones_are_not_lent_again(pool: Pool) -> None:
    """Neither one at hand nor one that was lent when the word came."""
    connections = Connections(pool)
    busy = await connections.lend()
    old = {await busy.fetchval("SELECT pg_backend_pid()"), await pid(connections)}
    await connections.expire()
    connections.take_back(busy)
    lent = [await connections.lend() for _ in range(2)]
    assert not old & {await connection.fetchval("SELECT pg_backend_pid()") for connection in lent}
    for connection in lent:
        connections.take_back(connection)
    await connections.close(5)


async def test_closing_waits_for_what_is_lent(pool: Pool) -> None:
    """A statement under way ends, and its connection is closed like those at hand."""
    connections = Connections(pool)
    await pid(connections)
    busy = await connections.lend()
    statement = asyncio.create_task(busy.fetchval("SELECT 7 FROM pg_sleep(0.2)"))
    closing = asyncio.create_task(connections.close(30))
    assert await statement == 7
    assert not closing.done()
    connections.take_back(busy)
    await asyncio.wait_for(closing, 30)
    assert pool.is_closing()
    assert pool.get_size() == 0


async def test_one_that_broke_at_hand_is_not_lent(pool: Pool) -> None:
    """The next caller has a connection that works."""
    connections = Connections(pool)
    broken = await pid(connections)
    (at_hand,) = connections._at_hand
    gone = asyncio.Event()
    at_hand.add_termination_listener(lambda _: gone.set())
    async with pool.acquire() as other:
        await other.execute("SELECT pg_terminate_backend($1)", broken)
    await asyncio.wait_for(gone.wait(), 30)
    assert await pid(connections) != broken
    await connections.close(5)


async def test_one_in_a_transaction_is_not_lent(pool: Pool) -> None:
    """What one caller began, the next one does not find: the pool ends it."""
    connections = Connections(pool)
    connection = await connections.lend()
    await connection.execute("BEGIN")
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("SELECT * FROM nowhere")
    connections.take_back(connection)
    connection = await connections.lend()
    assert not connection.is_in_transaction()
    connections.take_back(connection)
    await connections.close(5)


async def test_one_that_connects_while_others_expire_is_lent_once(pool: Pool) -> None:
    """It may lead to where the others led."""
    connections = Connections(pool)
    asking = asyncio.create_task(connections.lend())
    await asyncio.sleep(0)
    await connections.expire()
    first = await asking
    old = await first.fetchval("SELECT pg_backend_pid()")
    connections.take_back(first)
    assert await pid(connections) != old
    await connections.close(5)
