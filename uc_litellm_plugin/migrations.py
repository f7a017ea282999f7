"""The schema, brought up to date: numbered files of `sql/`, each applied once, and `functions.sql` when it changed.

What was applied stands in `schema_version`, with checksums. Everything runs under one advisory lock, so any number of
processes may start at once; each file and its row in `schema_version` are one transaction.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Literal

from .database import Connection, Row, connect
from .errors import DatabaseError
from .postgres_faults import translated
from .scripts import FUNCTIONS, Migration, shipped_migrations
from .settings import Settings

OLDEST_POSTGRESQL = 15
DDL_LOCK_TIMEOUT = "30s"


@dataclass(frozen=True)
class Applied:
    """One row of `schema_version`."""

    version: int
    name: str
    checksum: str
    app_version: str
    applied_at: datetime


@dataclass(frozen=True)
class State:
    """A migration beside what the database knows of it."""

    version: int
    name: str
    state: Literal["applied", "pending", "changed", "unknown"]
    applied_at: datetime | None


def silent(_: str) -> None:
    """Report progress to nobody."""


async def migrate(settings: Settings, report: Callable[[str], None] = silent) -> list[str]:
    """Apply what is missing.

    Parameters
    ----------
    report
        Called with the name of each file before it is applied.

    Returns
    -------
    list of str
        The files that were applied, in order; empty when all was up to date.

    Raises
    ------
    DatabaseError
        The database is newer than this code, an applied file was changed since, a file is missing, the server is
        older than 15, or the schema is LiteLLM's.
    DatabaseUnavailable
        PostgreSQL cannot be reached.
    """
    wanted = shipped_migrations()
    async with _session(settings) as connection:
        return await _apply(connection, settings, wanted, report)


async def init(
    settings: Settings, *, reset: bool = False, test_data: bool = False, report: Callable[[str], None] = silent
) -> list[str]:
    """Make the schema in one transaction: if anything fails, nothing has changed.

    Parameters
    ----------
    reset
        Drop the schema first, with all its data.
    test_data
        Add a few accounts with credits.
    """
    wanted = shipped_migrations()
    async with _session(settings) as connection, connection.transaction():
        if reset:
            await _refuse_foreign_schema(connection, settings)
            report(f"dropping schema {settings.database.schema_name}")
            await connection.execute(f'DROP SCHEMA IF EXISTS "{settings.database.schema_name}" CASCADE')
        applied = await _apply(connection, settings, wanted, report)
        if test_data:
            report("adding test data")
            await _add_test_data(connection)
        return applied


async def status(settings: Settings) -> list[State]:
    """Every migration this code or the database knows, in order of version; `functions.sql` is version 0."""
    wanted = {migration.version: migration for migration in shipped_migrations()}
    async with _session(settings, lock=False) as connection:
        applied = await _applied(connection, settings)
    return [_state(version, wanted, applied) for version in sorted({*wanted, *applied})]


async def require_current(settings: Settings) -> None:
    """Return when the schema is what this code needs.

    Raises
    ------
    DatabaseError
        It is missing or not up to date; the message says which command mends it.
    """
    states = await status(settings)
    if all(state.state == "applied" for state in states):
        return
    if any(state.state == "unknown" for state in states):
        raise DatabaseError("The database is newer than this version of uc-litellm-plugin: upgrade the package.")
    raise DatabaseError(
        f"Schema {settings.database.schema_name!r} is missing or not up to date: run `uc-litellm db migrate`."
    )


async def count_accounts(settings: Settings) -> int | None:
    """How many accounts a reset would destroy; None when there is no schema."""
    async with _session(settings, lock=False) as connection:
        schema = settings.database.schema_name
        if await connection.fetchval("SELECT to_regclass(format('%I.user_credits', $1::text))", schema) is None:
            return None
        return int(await connection.fetchval(f'SELECT count(*) FROM "{schema}".user_credits'))  # noqa: S608 - checked name


@asynccontextmanager
async def _session(settings: Settings, *, lock: bool = True) -> AsyncIterator[Connection[Row]]:
    async with connect(settings, lock_timeout="0", statement_timeout="0") as connection:
        await _refuse_old_server(connection)
        schema = settings.database.schema_name
        await connection.execute("SELECT set_config('uc.schema', $1, false)", schema)
        if lock:
            key = f"uc_litellm_plugin migrations of {schema}"
            await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", key)
        yield connection


async def _apply(
    connection: Connection[Row], settings: Settings, wanted: Sequence[Migration], report: Callable[[str], None]
) -> list[str]:
    await _refuse_foreign_schema(connection, settings)
    applied = await _applied(connection, settings)
    _refuse_other_history(wanted, applied)
    missing = [migration for migration in wanted if not _is_applied(migration, applied.get(migration.version))]
    for migration in missing:
        report(f"applying {migration.file}")
        await _apply_one(connection, settings, migration)
    return [migration.file for migration in missing]


async def _apply_one(connection: Connection[Row], settings: Settings, migration: Migration) -> None:
    started = time.monotonic()
    try:
        with translated():
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{DDL_LOCK_TIMEOUT}'")
                await connection.execute(migration.sql)
                await _record(connection, settings, migration, round((time.monotonic() - started) * 1000))
    except DatabaseError as error:
        error.args = (f"sql/{migration.file}: {error}",)
        raise


async def _record(connection: Connection[Row], settings: Settings, migration: Migration, duration_ms: int) -> None:
    await connection.execute(
        f'INSERT INTO "{settings.database.schema_name}".schema_version'  # noqa: S608 - the settings check the name
        " (version, name, checksum, duration_ms, app_version) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum,"
        " applied_at = clock_timestamp(), duration_ms = excluded.duration_ms, app_version = excluded.app_version",
        migration.version,
        migration.name,
        migration.checksum,
        duration_ms,
        _app_version(),
    )


async def _applied(connection: Connection[Row], settings: Settings) -> dict[int, Applied]:
    schema = settings.database.schema_name
    if await connection.fetchval("SELECT to_regclass(format('%I.schema_version', $1::text))", schema) is None:
        return {}
    rows = await connection.fetch(
        f'SELECT version, name, checksum, app_version, applied_at FROM "{schema}".schema_version'  # noqa: S608 - a checked name
    )
    return {row["version"]: Applied(**dict(row)) for row in rows}


async def _refuse_old_server(connection: Connection[Row]) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_POSTGRESQL:
        raise DatabaseError(f"PostgreSQL {version.major} is too old: {OLDEST_POSTGRESQL} or newer is needed.")


async def _refuse_foreign_schema(connection: Connection[Row], settings: Settings) -> None:
    schema = settings.database.schema_name
    found = await connection.fetchval(
        r"SELECT min(tablename) FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename LIKE 'LiteLLM\_%'", schema
    )
    if schema == "public" or found is not None:
        reason = (
            f"it holds LiteLLM's table {found}" if found else "LiteLLM's migrations drop what they do not know there"
        )
        raise DatabaseError(f"Schema {schema!r} is refused, {reason}: set database.schema to a name of its own (`uc`).")


def _refuse_other_history(wanted: Sequence[Migration], applied: Mapping[int, Applied]) -> None:
    newest = max(migration.version for migration in wanted)
    if applied and max(applied) > newest:
        raise DatabaseError(
            f"The database is at version {max(applied)}, this code knows versions up to {newest}: "
            "upgrade uc-litellm-plugin; an older one must not run on it."
        )
    done = sorted(version for version in applied if version != FUNCTIONS)
    if done != list(range(1, len(done) + 1)):
        raise DatabaseError(f"schema_version has a gap: it lists {done}. Restore the missing row or the database.")
    for migration in wanted:
        known = applied.get(migration.version)
        if known and migration.version != FUNCTIONS and known.checksum != migration.checksum:
            raise DatabaseError(
                f"sql/{migration.file} was changed after it was applied: its checksum was {known.checksum}, "
                f"now it is {migration.checksum}. Restore the file and put the change into a new one."
            )


def _is_applied(migration: Migration, known: Applied | None) -> bool:
    if known is None:
        return False
    # While hosts are upgraded one by one, an old one that restarts must not bring the old functions back.
    newer = migration.version == FUNCTIONS and _numbers(known.app_version) > _numbers(_app_version())
    return newer or known.checksum == migration.checksum


def _state(version: int, wanted: Mapping[int, Migration], applied: Mapping[int, Applied]) -> State:
    migration, known = wanted.get(version), applied.get(version)
    if migration is None:
        assert known is not None  # noqa: S101 - each version comes from one of the two
        return State(version, known.name, "unknown", known.applied_at)
    if known is None:
        return State(version, migration.name, "pending", None)
    state: Literal["applied", "changed"] = "applied" if _is_applied(migration, known) else "changed"
    return State(version, migration.name, state, known.applied_at)


async def _add_test_data(connection: Connection[Row]) -> None:
    for user_id, tier, credits in (
        ("test-free", "free", 0),
        ("test-starter", "starter", 100),
        ("test-pro", "professional", 1000),
    ):
        await connection.execute("SELECT created FROM create_account($1, $2)", user_id, tier)
        if credits:
            await connection.execute(
                "SELECT success FROM add_user_credits($1, $2, 'bonus', 'bonus', p_notes => 'test data')",
                user_id,
                credits,
            )


def _numbers(version: str) -> tuple[int, ...]:
    """`1.10.2` as (1, 10, 2), for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _app_version() -> str:
    try:
        return metadata.version("uc-litellm-plugin")
    except metadata.PackageNotFoundError:
        return "unknown"
