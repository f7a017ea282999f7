"""What a provider says its calls cost: a CSV export, read and checked."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

from .errors import CommandRefused

REQUIRED = ("date", "provider", "model", "cost_usd")
OPTIONAL = ("request_id",)

# Beyond any bill: 0001-01-01 and 9999-12-31 stand for no date in spreadsheets.
FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2999, 12, 31)
# Beyond any bill; a larger number is a slip in the file.
MOST_USD = Decimal(10**9)


@dataclass(frozen=True)
class Cost:
    """One line of an export.

    Attributes
    ----------
    day
        The UTC day it counts for.
    provider, model
        As written in the file.
    usd
        May be below zero: a credit note.
    request_id
        The call it is for, None where the line is a total.
    """

    day: date
    provider: str
    model: str
    usd: Decimal
    request_id: str | None


def read(path: Path) -> list[Cost]:
    """The lines of a CSV file with a header; columns are found by name, in any order, others are ignored.

    Raises
    ------
    CommandRefused
        Names the file, the line and what to write there.
    """
    try:
        # With the byte order mark that spreadsheets write, or without.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_costs(path, file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refusal(f"{path} cannot be read as CSV: {error}.") from None


def _costs(path: Path, file: Iterator[str]) -> Iterator[Cost]:
    lines = csv.reader(file)
    columns = _columns(path, next(lines, []))
    for fields in lines:
        if any(field.strip() for field in fields):
            yield _cost(f"{path}, line {lines.line_num}", fields, columns)


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise _refusal(
            f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(REQUIRED)} "
            f"and may name {', '.join(OPTIONAL)}, separated by commas."
        )
    return {name: names.index(name) for name in REQUIRED + OPTIONAL if name in names}


def _cost(place: str, fields: Sequence[str], columns: Mapping[str, int]) -> Cost:
    values = {name: fields[at].strip() if at < len(fields) else "" for name, at in columns.items()}
    if empty := [name for name in REQUIRED if not values[name]]:
        raise _refusal(f"{place}: {', '.join(empty)} is empty.")
    if not all(value.isprintable() for value in values.values()):
        raise _refusal(f"{place}: there is a control character in it.")
    return Cost(
        day=_day(place, values["date"]),
        provider=values["provider"],
        model=values["model"],
        usd=_usd(place, values["cost_usd"]),
        request_id=values.get("request_id") or None,
    )


def _day(place: str, text: str) -> date:
    """The UTC day of a date or of a time, which is UTC unless it says otherwise."""
    try:
        # Python 3.10 does not know the Z.
        time = datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
        day = time.astimezone(timezone.utc).date() if time.tzinfo else time.date()
    except (ValueError, OverflowError):
        raise _refusal(f"{place}: {text[:40]!r} is no date; write it as 2030-01-31.") from None
    if not FIRST_DAY <= day <= LAST_DAY:
        raise _refusal(f"{place}: {text[:40]!r} is the day of no bill; write the day of the calls.")
    return day


def _usd(place: str, text: str) -> Decimal:
    try:
        usd = Decimal(text)
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or abs(usd) > MOST_USD:
        raise _refusal(f"{place}: {text[:40]!r} is no cost in USD; write a plain decimal such as 0.001234.")
    return usd


def _refusal(message: str) -> CommandRefused:
    return CommandRefused(message, code="invalid_export")
