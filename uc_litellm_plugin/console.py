"""How commands talk: tables for people, JSON for programs, errors on stderr, exit codes that tell."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from . import embedded, env_file, migrations, settings
from .database import Database
from .errors import CommandRefused, DatabaseError, Refusal, SettingsError, UcError, VaultError
from .office import Office
from .settings import Settings

T = TypeVar("T")

OK, REFUSED, USAGE, DATABASE = 0, 1, 2, 3
# A command may wait longer than a call of the proxy: nobody's request hangs on it.
TIMEOUT_S = 30.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
UserId = Annotated[str, typer.Argument(metavar="USER", help="The account's user id.")]


def ask(work: Callable[[Office], Awaitable[T]]) -> T:
    """Run `work` with the accounts of the configured database, whose schema must be up to date."""

    async def connected(configured: Settings) -> T:
        await migrations.require_current(configured)
        async with Database(configured) as database:
            return await work(Office(database))

    return with_settings(connected)


def with_settings(work: Callable[[Settings], Awaitable[T]]) -> T:
    """Run `work` with the settings of the proxy; an embedded server nobody else uses is stopped afterwards."""
    return asyncio.run(_with_settings(work))


async def _with_settings(work: Callable[[Settings], Awaitable[T]]) -> T:
    configured = patient(settings.load(env_file.environment()))
    try:
        return await work(configured)
    finally:
        if configured.database_url is None:
            await embedded.stop(configured)


def patient(configured: Settings) -> Settings:
    """The same settings with time for commands."""
    database = configured.database
    longer = database.model_copy(update={"timeout_s": max(TIMEOUT_S, database.timeout_s)})
    return configured.model_copy(update={"database": longer})


def print_json(value: Any) -> None:
    """One JSON document: amounts as decimal strings, times in UTC as ISO 8601."""
    print(json.dumps(value, indent=2, default=_plain))  # noqa: T201 - this is the output


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """One thing: a JSON object, or a line for each of its facts."""
    if as_json:
        print_json(dict(facts))
        return
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_title(name), _text(value))
    _console().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Many things: a JSON array with all they have, or a table of the columns that people read."""
    if as_json:
        print_json([dict(row) for row in rows])
        return
    table = Table(*[_title(column) for column in columns])
    for row in rows:
        table.add_row(*[_text(row[column]) for column in columns])
    _console().print(table)


def say(message: str) -> None:
    """A remark for people; on stderr, so that stdout is the answer alone."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - this is the output


def print_error(message: str, code: str, as_json: bool) -> None:
    """An error, on stderr."""
    say(json.dumps({"error": {"message": message, "code": code}}) if as_json else f"Error: {message}")


def exit_code(error: UcError) -> int:
    """0 ok, 1 refused or not found, 2 wrong usage or settings, 3 database unreachable or not as needed."""
    if isinstance(error, DatabaseError):
        return DATABASE
    return USAGE if isinstance(error, SettingsError) else REFUSED


def error_code(error: UcError) -> str:
    """The word by which programs know the error."""
    if isinstance(error, CommandRefused | Refusal | VaultError):
        return error.code
    return {SettingsError: "settings", DatabaseError: "database"}.get(type(error), "database_unavailable")


def _console() -> Console:
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, markup=False, highlight=False, emoji=False)


def _title(name: str) -> str:
    return name.removeprefix("credits_").replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(_plain(value)) if isinstance(value, Decimal | UUID) else str(value)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
