"""PostgreSQL as the rest of the package sees it: one pool and two errors.

The pool sets its session state when it connects and nothing after that, so connections are handed back without the
usual reset query (measured: it doubles the latency of a hold). Behind PgBouncer use session pooling: the settings
travel as startup parameters, and statements are prepared.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg

from . import embedded
from .connections import Connections, Lent
from .errors import DatabaseUnavailable
from .patience import LONGEST_S, Patience
from .postgres_faults import is_broken, is_in_step, translated
from .settings import Settings

Connection = asyncpg.Connection
Row = asyncpg.Record
T = TypeVar("T")

IDLE_IN_TRANSACTION_S = 30

# JSON that PostgreSQL accepts (no NaN), with amounts and times as strings.
_to_json = json.JSONEncoder(allow_nan=False, default=str).encode


async def dsn(settings: Settings) -> str:
    """The URL of the database: `UC_DATABASE_URL`, or the embedded server's, which is started if need be."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return await embedded.ensure(settings)


class Database:
    """A pool of connections whose session looks at our schema only.

    It needs no care when PostgreSQL goes away: while it is down, calls fail at once or after `timeout_s`; when it is
    back, they work. More calls than connections wait their turn: up to 10 s, as long as PostgreSQL answers anybody.

    Parameters
    ----------
    settings
        Of the process; `database.timeout_s` bounds each call unless the call says otherwise.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_s = settings.database.timeout_s
        self._open_connections: Connections | None = None
        self._answers = 0

    async def open(self) -> Database:
        """Make the pool. It connects on the first call, so that a worker may start before PostgreSQL does.

        Raises
        ------
        DatabaseError
            The URL is malformed, or the embedded server cannot be used.
        """
        with translated():
            pool = await asyncpg.create_pool(
                **_connect_arguments(await dsn(self._settings), self._settings),
                min_size=0,
                max_size=self._settings.database.pool_size,
                reset=_nothing,
                init=_set_codecs,
            )
        self._open_connections = Connections(pool)
        return self

    async def close(self) -> None:
        """Close all connections; calls under way have `timeout_s` to end."""
        if connections := self._open_connections:
            self._open_connections = None
            await connections.close(self._timeout_s)

    async def __aenter__(self) -> Database:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> list[Row]:
        """All rows of a statement.

        Parameters
        ----------
        sql
            One statement; arguments are `$1`, `$2`, ….
        timeout
            Seconds for everything: waiting for a connection, connecting, the statement. Default `timeout_s`. They begin
            anew when somebody else is answered before the statement is sent; `patience.LONGEST_S` bounds them.
        idempotent
            The statement may safely run twice: it is tried once more, on a fresh connection, when a connection broke.

        Raises
        ------
        DatabaseUnavailable
            PostgreSQL could not be reached or did not answer in time. What the statement does may have happened.
        DatabaseError
            PostgreSQL refused the statement; nothing has happened.
        """
        return await self._call(lambda connection: connection.fetch(sql, *args), timeout, idempotent)

    async def fetchrow(
        self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False
    ) -> Row | None:
        """The first row of a statement, or None; parameters and errors as `fetch`."""
        return await self._call(lambda connection: connection.fetchrow(sql, *args), timeout, idempotent)

    async def fetchval(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Any:
        """The first column of the first row, or None; parameters and errors as `fetch`."""
        return await self._call(lambda connection: connection.fetchval(sql, *args), timeout, idempotent)

    async def execute(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> str:
        """Run a statement and return its tag (`UPDATE 1`); parameters and errors as `fetch`."""
        return await self._call(lambda connection: connection.execute(sql, *args), timeout, idempotent)

    async def _call(self, statement: Callable[[Lent], Awaitable[T]], timeout: float | None, idempotent: bool) -> T:
        patience = Patience(self._timeout_s if timeout is None else timeout, lambda: self._answers)
        in_doubt = False
        while True:
            try:
                with translated():
                    return await patience.wait_for(self._call_once(statement, patience))
            except DatabaseUnavailable as error:
                in_doubt = error.in_doubt = in_doubt or (error.in_doubt and patience.asked)
                if not idempotent or patience.is_over:
                    raise
                idempotent = patience.asked = False

    async def _call_once(self, statement: Callable[[Lent], Awaitable[T]], patience: Patience) -> T:
        connections = self._connections()
        connection = await connections.lend()
        try:
            result = await self._run(statement, connection, patience)
            self._answers += 1
            return result
        except BaseException as error:
            if is_broken(error):
                await connections.expire()  # A broken connection is seldom the only one.
            if is_in_step(error):
                self._answers += 1
            else:
                _terminate(connection)  # Its answer was not read (a cancellation, too), so it cannot be used again.
            raise
        finally:
            connections.take_back(connection)

    async def _run(self, statement: Callable[[Lent], Awaitable[T]], connection: Lent, patience: Patience) -> T:
        patience.ask()
        if patience.seconds <= self._timeout_s:
            return await statement(connection)
        async with _transaction(connection):
            await connection.execute(f"SET LOCAL statement_timeout = {_milliseconds(patience.seconds)}")
            return await statement(connection)

    def _connections(self) -> Connections:
        if self._open_connections is None:
            raise DatabaseUnavailable("The database is not open in this process (not yet, or no longer).")
        return self._open_connections


@asynccontextmanager
async def _transaction(connection: Lent) -> AsyncIterator[None]:
    transaction = connection.transaction()
    await _or_terminate(connection, transaction.start())
    try:
        yield
    except BaseException as error:
        if is_in_step(error):  # Otherwise the connection is of no use, and may never answer.
            await _or_terminate(connection, transaction.rollback())
        raise
    await _or_terminate(connection, transaction.commit())


async def _or_terminate(connection: Lent, step: Awaitable[None]) -> None:
    """A step of a transaction; if it fails, nobody knows what the connection is in the middle of."""
    try:
        await step
    except BaseException:
        _terminate(connection)
        raise


def _terminate(connection: Lent) -> None:
    with suppress(asyncpg.InterfaceError):  # It broke, and asyncpg took it back by itself.
        connection.terminate()


@asynccontextmanager
async def connect(settings: Settings, *, timeout: float = 10, **server_settings: str) -> AsyncIterator[Connection[Row]]:
    """One connection outside the pool, closed at the end; errors are translated as in `Database`.

    Parameters
    ----------
    timeout
        Seconds to connect.
    server_settings
        PostgreSQL settings of the session that differ from the pool's.
    """
    with translated():
        arguments = _connect_arguments(await dsn(settings), settings)
        arguments["server_settings"].update(server_settings)
        connection = await asyncpg.connect(**{**arguments, "timeout": timeout})
        try:
            await _set_codecs(connection)
            yield connection
        finally:
            await _close(connection)


def _connect_arguments(url: str, settings: Settings) -> dict[str, Any]:
    # A little shorter than ours, so that PostgreSQL says why, and nothing abandoned goes on there.
    server_timeout = _milliseconds(settings.database.timeout_s * 0.9)
    return {
        "dsn": url,
        "timeout": LONGEST_S,  # Whoever waits for the connection has less patience.
        "server_settings": {
            "application_name": "uc_litellm_plugin",
            "search_path": f'"{settings.database.schema_name}", pg_temp',
            "lock_timeout": server_timeout,
            "statement_timeout": server_timeout,
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_S),
            "timezone": "UTC",
        },
    }


async def _set_codecs(connection: Any) -> None:
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_to_json, decoder=json.loads)


async def _nothing(_: Any) -> None:
    """The pool's reset: our statements leave no state in a session."""


async def _close(connection: Connection[Row]) -> None:
    try:
        await connection.close(timeout=1)
    except (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
