"""Hearing what changes in the database: LISTEN on `<schema>_changed`, on one connection that is made anew when lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from collections.abc import Callable

from .database import Connection, Row, connect
from .errors import DatabaseError, DatabaseUnavailable
from .settings import Settings

log = logging.getLogger(__name__)

# A connection that is silently gone (a firewall, a lost host) is noticed by this heartbeat, and so is a pooler between
# us and PostgreSQL that gives the server's connection to others, and what it says with it.
HEARTBEAT_S = 10
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 5


async def listen(
    settings: Settings,
    *,
    on_payload: Callable[[str], None],
    on_ready: Callable[[], None],
    on_lost: Callable[[], None],
) -> None:
    """Report changes until cancelled.

    Parameters
    ----------
    on_payload
        Called with each payload: JSON with `table` and the keys of the changed row.
    on_ready
        Called when notifications arrive from now on. What was cached before may be stale: nobody listened.
    on_lost
        Called when they no longer arrive. Nothing may be cached until `on_ready` is called again.
    """
    attempts = itertools.count()

    def ready() -> None:
        nonlocal attempts
        attempts = itertools.count()
        on_ready()

    while True:
        try:
            await _listen_once(settings, on_payload, ready, on_lost)
        except DatabaseError as error:
            log.warning("not listening for changes: %s", error)
        await asyncio.sleep(_pause_s(next(attempts)))


async def _listen_once(
    settings: Settings, on_payload: Callable[[str], None], on_ready: Callable[[], None], on_lost: Callable[[], None]
) -> None:
    async with connect(settings, timeout=settings.database.timeout_s) as connection:
        channel, echo = f"{settings.database.schema_name}_changed", _Echo(settings, connection)
        await connection.add_listener(channel, lambda *event: on_payload(str(event[3])))
        await echo.prepare()
        await echo.hear()
        on_ready()
        try:
            await _until_lost(connection, echo)
        finally:
            on_lost()


class _Echo:
    """A word to ourselves through the database: whoever hears it hears what the others say, too.

    It is said on another connection, as theirs is: what a session says itself comes with its own answers.
    """

    def __init__(self, settings: Settings, connection: Connection[Row]) -> None:
        self._settings = settings
        self._connection = connection
        self._timeout_s = settings.database.timeout_s
        self._channel = f"uc_echo_{secrets.token_hex(8)}"
        self._heard = asyncio.Event()

    async def prepare(self) -> None:
        await self._connection.add_listener(self._channel, lambda *_: self._heard.set())

    async def hear(self) -> None:
        """Raises DatabaseUnavailable when what is said is not heard in time."""
        self._heard.clear()
        async with connect(self._settings, timeout=self._timeout_s) as other:
            await other.execute(f"NOTIFY {self._channel}", timeout=self._timeout_s)
        try:
            await asyncio.wait_for(self._heard.wait(), self._timeout_s)
        except asyncio.TimeoutError:
            raise DatabaseUnavailable(
                "notifications do not arrive: a pooler in transaction mode? Let UC_DATABASE_URL name PostgreSQL itself,"
                " or a pooler in session mode"
            ) from None


async def _until_lost(connection: Connection[Row], echo: _Echo) -> None:
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    while not connection.is_closed():
        try:
            await asyncio.wait_for(lost.wait(), HEARTBEAT_S)
        except asyncio.TimeoutError:
            await echo.hear()


def _pause_s(attempt: int) -> float:
    """Doubling pauses with jitter, so that many workers do not come back in the same instant."""
    return min(RECONNECT_FIRST_S * 2.0 ** min(attempt, 10), RECONNECT_MAX_S) * random.uniform(0.5, 1)  # noqa: S311
