"""`uc-litellm db`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from . import migrations, verification
from .console import DATABASE, REFUSED, AsJson, print_json, print_rows, say, with_settings
from .database import Database
from .errors import CommandRefused, DatabaseError
from .settings import Settings

db = typer.Typer(help="The database's schema.", no_args_is_help=True)


@db.command("migrate")
def migrate(as_json: AsJson = False) -> None:
    """Bring the schema up to date; safe at any time and from any number of processes."""
    applied = with_settings(lambda settings: migrations.migrate(settings, _progress(as_json)))
    print_json({"applied": applied}) if as_json else say("The schema is up to date.")


@db.command("status")
def status(as_json: AsJson = False) -> None:
    """List the migrations; exit code 3 unless all are applied."""
    states = with_settings(migrations.status)
    print_rows([asdict(state) for state in states], ("version", "name", "state", "applied_at"), as_json)
    if any(state.state != "applied" for state in states):
        raise typer.Exit(DATABASE)


@db.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Check schema, seed rows and ledger, and show what each package earns; exit code 1 when something is wrong."""
    report = with_settings(_verify)
    print_json(report) if as_json else _print_report(report)
    if report["problems"]:
        raise typer.Exit(REFUSED)


@db.command("init")
def init(
    reset: Annotated[bool, typer.Option("--reset", help="Drop the schema and all its data first.")] = False,
    test_data: Annotated[bool, typer.Option("--test-data", help="Add a few accounts with credits.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before data is destroyed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the schema in one transaction and verify it; if anything fails, nothing has changed."""

    progress = _progress(as_json)

    async def work(settings: Settings) -> dict[str, Any]:
        if reset and not yes:
            _confirm_loss(await migrations.count_accounts(settings))
        applied = await migrations.init(settings, reset=reset, test_data=test_data, report=progress)
        progress("verifying")
        return {"applied": applied, **await _verify(settings)}

    report = with_settings(work)
    print_json(report) if as_json else _print_report(report)
    if report["problems"]:
        raise typer.Exit(REFUSED)


def _progress(as_json: bool) -> Callable[[str], None]:
    """Progress is for people; a program gets one document."""
    return migrations.silent if as_json else say


def _confirm_loss(accounts: int | None) -> None:
    """Ask before accounts are lost; nobody there to ask means no."""
    if not accounts:
        return
    loss = f"--reset destroys {accounts} account(s) with all credits and history."
    if not sys.stdin.isatty():
        raise CommandRefused(f"{loss} Say --yes to do that without being asked.", code="confirmation_needed")
    if not typer.confirm(f"{loss} Go on?", err=True):
        raise CommandRefused("Nothing was changed.", code="not_confirmed")


async def _verify(settings: Settings) -> dict[str, Any]:
    async with Database(settings) as database:
        problems = await verification.find_problems(database, settings)
        try:
            margins = await verification.margins(database, settings)
        except DatabaseError:
            # The tables it needs are missing, which is among the problems.
            margins = []
    return {"ok": not problems, "problems": problems, "margins": [asdict(margin) for margin in margins]}


def _print_report(report: dict[str, Any]) -> None:
    for problem in report["problems"]:
        say(f"Problem: {problem}")
    print_rows(report["margins"], ("package", "power_level", "margin"), as_json=False)
    if losses := [margin for margin in report["margins"] if margin["margin"] < 1]:
        say(
            f"Warning: {len(losses)} of {len(report['margins'])} combinations sell below provider cost (margin under "
            "1). Raise the price, the level's cost_multiplier, a tier's markup or credits.credits_per_usd."
        )
    if report["ok"]:
        say("The database is as it should be.")
