"""The connections of a pool, the latest of them kept at hand.

To take a connection out of asyncpg's pool and put it back costs as much as the statement in between: two tasks, a
proxy, and their turns of the event loop. One that was just used is handed to the next caller as it is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Lent: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

# What is at hand goes back to the pool so often, since the pool closes what nobody uses for five minutes, which a
# firewall may have forgotten, and renews what has served 50,000 statements. Seconds.
_AT_HAND_S = 30.0


class Connections:
    """Lends the connections of a pool.

    Parameters
    ----------
    pool
        An open one. It bounds their number, makes new ones, and lets callers wait in turn.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool
        # The latest used last.
        self._at_hand: list[Lent] = []
        # Those that may be lent again: acquired since the others were expired.
        self._good: set[Lent] = set()
        self._is_closing = False
        self._asking = 0
        self._returning: set[asyncio.Future[Any]] = set()
        self._tidying: asyncio.TimerHandle | None = None

    async def lend(self) -> Lent:
        """A connection, which must be taken back; waits until there is one."""
        while self._at_hand:
            connection = self._at_hand.pop()
            if _is_open(connection):
                return connection
            self._return(connection)
        # One that connects while the others are expired is none of the good ones after it.
        good = self._good
        self._asking += 1
        try:
            connection = await self._pool.acquire()
        finally:
            self._asking -= 1
        good.add(connection)
        return connection

    def take_back(self, connection: Lent) -> None:
        """For the next caller, once; whoever has an answer need not wait.

        One that broke goes to the pool, and so does one in the middle of a transaction, which the pool ends.
        """
        if self._asking or self._is_closing or connection not in self._good or not _is_clean(connection):
            self._return(connection)
            return
        self._at_hand.append(connection)
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(_AT_HAND_S, self._let_go)

    async def expire(self) -> None:
        """Use none of the present connections again; those that are lent end with their statements."""
        await self._pool.expire_connections()
        self._good = set()
        self._let_go()

    async def close(self, timeout_s: float) -> None:
        """Close all connections; statements under way have so long to end. Seconds."""
        self._is_closing = True
        self._let_go()
        try:
            await asyncio.wait_for(self._pool.close(), timeout_s)
        except asyncio.TimeoutError:
            self._pool.terminate()

    def _let_go(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None
        at_hand, self._at_hand = self._at_hand, []
        for connection in at_hand:
            self._return(connection)

    def _return(self, connection: Lent) -> None:
        """Back to the pool, in the background; what it cannot take back, it closes."""
        self._good.discard(connection)
        returning = asyncio.gather(self._pool.release(connection), return_exceptions=True)
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)


def _is_clean(connection: Lent) -> bool:
    return _is_open(connection) and not connection.is_in_transaction()


def _is_open(connection: Lent) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        return False  # It broke, and asyncpg took it back by itself.
