"""Do the usage log, the ledger and the provider's bill tell the same story, and what of it can be put right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from . import backlog, billing
from .billing import BilledCall
from .cost_export import Cost
from .database import Database
from .errors import CommandRefused
from .settings import Settings

# One part in a million of a dollar: what exports with six decimals round away.
TOLERANCE_USD = Decimal("0.000001")
TIMEOUT_S = 600

Facts = dict[str, Any]

_CALLS = "SELECT * FROM reconcile_calls($1, $2)"
_COMPARED = """
SELECT count(*) FROM credit_transactions WHERE transaction_type = 'debit' AND hold_id IS NOT NULL
AND created_at >= coalesce($1::timestamptz, '-infinity') AND created_at < coalesce($2::timestamptz, 'infinity')"""
_QUARANTINED = """
SELECT user_id, hold_id, created_at, error AS detail FROM settlement_quarantine WHERE resolved_at IS NULL
ORDER BY created_at"""
_OVERDUE = """
SELECT user_id, hold_id, created_at, format('%s credits held, lease ended %s', amount, expires_at) AS detail
FROM credit_holds WHERE expires_at < clock_timestamp() - make_interval(secs => $1) ORDER BY expires_at"""
_USAGE_DAYS = """
SELECT (u.created_at AT TIME ZONE 'UTC')::date AS day, u.provider, u.model, count(*) AS calls,
    sum(u.cost_usd - coalesce(c.usd, 0)) AS usd
FROM llm_usage_log AS u LEFT JOIN call_corrections() AS c ON c.request_id = u.request_id
WHERE u.created_at >= $1 AND u.created_at < $2 AND NOT u.byok_used AND u.cost_usd > 0
GROUP BY 1, 2, 3"""
_LITELLM_NAMES = "SELECT name, litellm_names FROM providers"
# The provider's own ids have an index for stored responses only; the period bounds the search for the others.
_BILLED = """
WITH asked AS (SELECT unnest($1::text[]) AS id), found AS (
    SELECT a.id, u.id AS row FROM asked AS a JOIN llm_usage_log AS u ON u.request_id = a.id
    UNION
    SELECT a.id, u.id FROM asked AS a JOIN llm_usage_log AS u ON u.metadata ->> 'response_id' = a.id
    WHERE u.created_at >= $2 AND u.created_at < $3
)
SELECT f.id AS asked_id, u.request_id, u.user_id, u.provider, u.model, u.byok_used, u.created_at,
    coalesce(u.cost_usd, 0) AS usd, u.cost_credits, u.power_level, t.debt_delta - t.amount AS charged,
    u.metadata ->> 'credits_per_usd' AS credits_per_usd, u.metadata ->> 'cost_multiplier' AS multiplier,
    u.metadata ->> 'markup' AS markup, coalesce(c.times, 0) AS corrections,
    coalesce(c.credits, 0) AS corrected, coalesce(c.usd, 0) AS corrected_usd
FROM found AS f
JOIN llm_usage_log AS u ON u.id = f.row
LEFT JOIN credit_transactions AS t ON t.hold_id = u.hold_id AND t.transaction_type = 'debit'
LEFT JOIN call_corrections() AS c ON c.request_id = u.request_id"""
_CORRECT = """
SELECT * FROM add_user_credits($1, $2, 'adjustment', p_notes => $3, p_idempotency_key => $4, p_admin_user_id => $5)"""


@dataclass(frozen=True)
class Period:
    """From `since` on, up to but not including `until`; None is an open end. Times in UTC."""

    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Report:
    """What was compared, and where it differs.

    Attributes
    ----------
    charges_compared
        Charges of calls in the period.
    findings
        Calls whose usage row and charge differ, and what is unfinished, whatever its age.
    provider_days, provider_calls
        Where the provider's export says something else; None when no export was given.
    """

    period: Period
    charges_compared: int
    findings: list[Facts]
    provider_days: list[Facts] | None = None
    provider_calls: list[BilledCall] | None = None
    corrections: list[Facts] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and nothing is unfinished."""
        return not (self.findings or self.provider_days or self.provider_calls)

    def facts(self) -> Facts:
        """For programs."""
        calls = self.provider_calls
        return {
            "agrees": self.agrees,
            **asdict(self.period),
            "charges_compared": self.charges_compared,
            "findings": self.findings,
            "provider_days": self.provider_days,
            "provider_calls": None if calls is None else [call.facts() for call in calls],
            "corrections": self.corrections,
        }


class Reconciliation:
    """One comparison, which may be made again after corrections.

    Parameters
    ----------
    database
        An open one.
    settings
        Say where the outbox is and how soon lapsed holds are swept.
    period
        What to compare.
    costs
        A provider's export, None to compare only our own books.
    tolerance
        USD by which a cost may differ.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        period: Period,
        costs: Sequence[Cost] | None = None,
        tolerance: Decimal = TOLERANCE_USD,
    ) -> None:
        self._database = database
        self._settings = settings
        self._period = period
        self._costs = None if costs is None else _within(costs, period)
        self._tolerance = tolerance

    async def compare(self) -> Report:
        """Compare; writes nothing."""
        since, until = self._period.since, self._period.until
        compared = await self._database.fetchval(_COMPARED, since, until, timeout=TIMEOUT_S)
        findings = [*await self._calls(), *await self._unfinished(), *self._waiting()]
        if self._costs is None:
            return Report(self._period, compared, findings)
        bill = await self._bill(self._costs)
        return Report(self._period, compared, findings, bill.days(), bill.calls())

    async def correct(self, report: Report, reason: str, by: str) -> Report:
        """Write an adjustment for each call whose correction is certain, then compare again.

        Parameters
        ----------
        reason, by
            Why and who; kept with each row.
        """
        written = [
            await self._adjust(call, reason, by) for call in report.provider_calls or () if call.correction is not None
        ]
        return replace(await self.compare(), corrections=written)

    async def _adjust(self, call: BilledCall, reason: str, by: str) -> Facts:
        # The key counts the corrections of this call: of two runs at once, one writes, or the other is refused.
        key = f"reconcile:{call.request_id}:{call.corrections + 1}"
        row = await self._database.fetchrow(
            _CORRECT, call.user_id, call.correction, reason, key, by, timeout=TIMEOUT_S, idempotent=True
        )
        if row is None or not row["success"]:
            why = row["error_message"] if row else "no answer"
            raise CommandRefused(
                f"The correction of call {call.request_id} was refused ({why}); the ones before it stand. Is another "
                "reconciliation under way? Run this again.",
                code="correction_refused",
            )
        return {
            "request_id": call.request_id,
            "user_id": call.user_id,
            "amount": call.correction,
            "transaction_id": row["transaction_id"],
        }

    async def _calls(self) -> list[Facts]:
        since, until = self._period.since, self._period.until
        rows = await self._database.fetch(_CALLS, since, until, timeout=TIMEOUT_S)
        return [{**dict(row), "detail": None} for row in rows]

    async def _unfinished(self) -> list[Facts]:
        # A hold that lapsed a moment ago is still the sweeper's.
        grace_s = 3 * self._settings.holds.sweep_every_s
        quarantined = await self._database.fetch(_QUARANTINED, timeout=TIMEOUT_S)
        overdue = await self._database.fetch(_OVERDUE, grace_s, timeout=TIMEOUT_S)
        return [_finding("quarantined", **dict(row)) for row in quarantined] + [
            _finding("hold_overdue", **dict(row)) for row in overdue
        ]

    def _waiting(self) -> list[Facts]:
        waiting = backlog.survey(self._settings.state_dir / "outbox")
        found = []
        if waiting.records:
            found.append(_finding("outbox_waiting", detail=f"{waiting.records} settlement(s) in {waiting.directory}"))
        if waiting.set_aside:
            found.append(_finding("outbox_corrupt", detail=f"{waiting.set_aside} file(s) in {waiting.directory}"))
        return found

    async def _bill(self, costs: Sequence[Cost]) -> billing.Bill:
        names = {row["name"]: set(row["litellm_names"]) for row in await self._database.fetch(_LITELLM_NAMES)}
        bill = billing.Bill(costs, names, self._tolerance, self._period.since, self._period.until)
        since, until = bill.since, bill.until
        rows = await self._database.fetch(_USAGE_DAYS, since, until, timeout=TIMEOUT_S)
        bill.add_usage([dict(row) for row in rows])
        # Calls near midnight may stand on another day at the provider.
        margin = timedelta(days=1)
        ids = bill.request_ids
        matches = await self._database.fetch(_BILLED, ids, since - margin, until + margin, timeout=TIMEOUT_S)
        bill.match([dict(row) for row in matches])
        return bill


def _finding(finding: str, **facts: Any) -> Facts:
    empty = dict.fromkeys(("user_id", "hold_id", "charged", "usage_cost", "created_at", "detail"))
    return {"finding": finding, **empty, **facts}


def _within(costs: Sequence[Cost], period: Period) -> list[Cost]:
    first = None if period.since is None else period.since.date()
    last = None if period.until is None else (period.until - timedelta(days=1)).date()
    found = [cost for cost in costs if (first or cost.day) <= cost.day <= (last or cost.day)]
    if not found:
        raise CommandRefused("The provider's export has no line in this period.", code="invalid_export")
    return found
