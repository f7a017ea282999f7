"""`uc-litellm ledger`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from . import backlog, cost_export, env_file, migrations, office, reconciliation, settings, verification
from .cli_accounts import parse_time
from .console import REFUSED, AsJson, ask, print_facts, print_json, print_rows, say, with_settings
from .database import Database
from .reconciliation import Period, Reconciliation, Report
from .settings import Settings

ledger = typer.Typer(help="The ledger: is it in order, and do others' books agree with it?", no_args_is_help=True)

_FINDINGS = ("finding", "user_id", "hold_id", "charged", "usage_cost", "detail")
_DAYS = ("date", "provider", "model", "provider_usd", "usage_usd", "difference_usd", "usage_calls")
_CALLS = ("request_id", "user_id", "model", "provider_usd", "usage_usd", "correction", "reason")
_CORRECTIONS = ("request_id", "user_id", "amount", "transaction_id")
# So that a slip of the keyboard hides no bill.
_MOST_TOLERANT = Decimal(1_000_000)
_FIRST, _LAST = datetime(1, 1, 3, tzinfo=timezone.utc), datetime(9999, 12, 30, tzinfo=timezone.utc)


@ledger.command("audit")
def audit(as_json: AsJson = False) -> None:
    """Check every invariant of the ledger; exit code 1 when one does not hold."""
    findings = ask(lambda at: verification.audit(at.database))
    if findings or as_json:
        print_rows(findings, ("invariant", "user_id", "hold_id", "detail"), as_json)
    else:
        say("Every invariant holds.")
    if findings:
        raise typer.Exit(REFUSED)


@ledger.command("reconcile")
def reconcile(
    provider_costs: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="CSV with the columns date, provider, model, cost_usd and maybe request_id."),
    ] = None,
    since: Annotated[str | None, typer.Option(help="ISO 8601, UTC unless it says otherwise.")] = None,
    until: Annotated[str | None, typer.Option(help="The end, not included.")] = None,
    tolerance: Annotated[str, typer.Option(metavar="USD", help="Costs may differ by this.")] = (
        f"{reconciliation.TOLERANCE_USD:f}"
    ),
    apply: Annotated[bool, typer.Option("--apply", help="Write the corrections that are certain.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; --apply needs it.")] = None,
    by: Annotated[str | None, typer.Option(help="Who; the system user if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare usage rows, charges and a provider's bill; exit code 1 when they do not agree."""
    if apply and not reason:
        raise typer.BadParameter("--apply needs a --reason, which is kept with each correction.")
    office.checked_text("the reason", reason, office.NOTES_MAX)
    office.checked_text("who does it", by, office.USER_ID_MAX)
    period = _period(since, until, whole_days=provider_costs is not None)
    within = _usd(tolerance)
    costs = None if provider_costs is None else cost_export.read(provider_costs)

    async def work(configured: Settings, database: Database) -> Report:
        books = Reconciliation(database, configured, period, costs, within)
        report = await books.compare()
        return await books.correct(report, reason, by or office.system_user()) if apply and reason else report

    report = _with_database(work)
    print_json(report.facts()) if as_json else _print_report(report, applied=apply)
    if not report.agrees:
        raise typer.Exit(REFUSED)


@ledger.command("outbox")
def outbox(as_json: AsJson = False) -> None:
    """Show what this host's workers keep for PostgreSQL; exit code 1 when settlements wait. Asks no database."""
    waiting = backlog.survey(settings.load(env_file.environment()).state_dir / "outbox")
    print_facts(asdict(waiting), as_json)
    if not waiting.is_empty:
        raise typer.Exit(REFUSED)


def _with_database(work: Callable[[Settings, Database], Awaitable[Report]]) -> Report:
    async def connected(configured: Settings) -> Report:
        await migrations.require_current(configured)
        async with Database(configured) as database:
            return await work(configured, database)

    return with_settings(connected)


def _period(since: str | None, until: str | None, *, whole_days: bool) -> Period:
    start, end = (None if time is None else _bounded(time) for time in map(parse_time, (since, until)))
    if start and end and start >= end:
        raise typer.BadParameter("--since must be before --until.")
    if whole_days and any(time is not None and not _is_midnight(time) for time in (start, end)):
        raise typer.BadParameter("A provider's bill is compared by whole UTC days: write --since and --until as dates.")
    return Period(start, end)


def _bounded(time: datetime) -> datetime:
    """In UTC, with room for the days around it that a comparison looks at; nobody called before or after."""
    return min(max(time.astimezone(timezone.utc), _FIRST), _LAST)


def _is_midnight(time: datetime) -> bool:
    return (time.hour, time.minute, time.second, time.microsecond) == (0, 0, 0, 0)


def _usd(text: str) -> Decimal:
    try:
        usd = Decimal(text)
    except ArithmeticError:
        usd = Decimal("NaN")
    if not (usd.is_finite() and 0 <= usd <= _MOST_TOLERANT):
        raise typer.BadParameter(f"--tolerance {text[:40]!r} is no amount of USD; write a decimal such as 0.01.")
    return usd


def _print_report(report: Report, *, applied: bool) -> None:
    _print_some("Our own books", report.findings, _FINDINGS)
    _print_some("The provider's bill, by day", report.provider_days, _DAYS)
    calls = None if report.provider_calls is None else [call.facts() for call in report.provider_calls]
    _print_some("The provider's bill, by call", calls, _CALLS)
    _print_some("Corrections written", report.corrections, _CORRECTIONS)
    if not applied and any(call.correction is not None for call in report.provider_calls or ()):
        say("Nothing was written. --apply --reason TEXT writes the corrections above.")
    outcome = "All agrees" if report.agrees else "The books do not agree"
    say(f"{outcome}; {report.charges_compared} charge(s) were compared.")


def _print_some(title: str, rows: Sequence[Mapping[str, Any]] | None, columns: tuple[str, ...]) -> None:
    if rows:
        say(f"{title}:")
        print_rows(rows, columns, as_json=False)
