"""`/analytics/usage`: what the account's calls used and cost, summed up; as JSON or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response

from . import calls
from .callers import Account, At
from .envelope import EnvelopeRoute
from .models import ERRORS
from .models_usage import Group, GroupBy, Totals, UsageReport

routing = APIRouter(tags=["uc: usage"], route_class=EnvelopeRoute, responses=ERRORS)

_SUMS = tuple(Totals.model_fields)
_COLUMNS = tuple(Group.model_fields)
# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# A media type and its weight, where it has one.
_WEIGHTS = re.compile(r"(?:^|,)\s*([^\s;,]+)(?:[^,]*;\s*q=([01](?:\.\d{0,3})?))?")

_CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}, "example": f"{','.join(_COLUMNS)}\r\n"}}}
}


@routing.get("/analytics/usage", response_model=UsageReport, responses=_CSV)
async def usage(
    account: Account,
    at: At,
    days: Annotated[int, Query(ge=1, le=366, description="UTC days, today included.")] = 30,
    group_by: GroupBy = "day",
    format: Annotated[Literal["json", "csv"] | None, Query(description="Or the header Accept: text/csv.")] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> UsageReport | Response:
    """Usage by provider, model, power level, app or UTC day. Days before yesterday may lack what ended late."""
    today = datetime.now(timezone.utc).date()
    first = today - timedelta(days=days - 1)
    from_log = first if group_by == "app" else max(first, calls.first_logged(today))
    rows = await calls.report(at.worker.database, account.user_id, group_by, first, from_log)
    report = _report(group_by, first, today, [dict(row) for row in rows])
    if format == "csv" or (format is None and _prefers_csv(accept)):
        return _as_csv(report)
    return report


def _prefers_csv(accept: str) -> bool:
    """Whether an `Accept` names CSV, and JSON at most as much (RFC 9110, 12.5.1): nobody means it by `*/*`."""
    weights = {kind: float(weight or 1) for kind, weight in _WEIGHTS.findall(accept.lower())}
    return weights.get("text/csv", 0) > 0 and weights["text/csv"] >= weights.get("application/json", 0)


def _report(group_by: GroupBy, first: date, last: date, rows: list[dict[str, Any]]) -> UsageReport:
    by_cost = sorted(rows, key=lambda row: (-row["cost_credits"], -row["requests"], row["key"] or ""))
    ordered = sorted(rows, key=lambda row: row["key"]) if group_by == "day" else by_cost
    return UsageReport(
        group_by=group_by,
        first_day=first,
        last_day=last,
        totals=Totals.model_validate({name: sum(row[name] for row in rows) for name in _SUMS}),
        data=[Group.model_validate(row) for row in ordered[: calls.MOST_GROUPS]],
        truncated=len(rows) > calls.MOST_GROUPS,
    )


def _as_csv(report: UsageReport) -> Response:
    lines = io.StringIO()
    written = csv.writer(lines)
    written.writerow((report.group_by, *_COLUMNS[1:]))
    written.writerows(_cells(group.model_dump(mode="json")) for group in report.data)
    name = f"usage-by-{report.group_by}-{report.first_day}-{report.last_day}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(lines.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cells(group: Mapping[str, Any]) -> Iterable[Any]:
    """A row; its first cell may be a client's own text."""
    key = group["key"] or ""
    yield f"'{key}" if key.startswith(_FORMULA) else key
    yield from (group[name] for name in _COLUMNS[1:])
