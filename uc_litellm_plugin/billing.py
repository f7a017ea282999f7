"""A provider's bill beside our usage rows: per provider, model and day, and per call where the bill names calls."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

from .cost_export import Cost
from .pricing import Terms, credits

Facts = dict[str, Any]
# Why the difference of a call is not corrected; docs/ledger.md says what each means.
Reason = Literal[
    "unknown_call", "ambiguous", "own_key", "not_charged", "books_differ", "other_model", "no_terms", "impossible_cost"
]
# A model's release at its provider: gpt-4o-mini-2024-07-18, claude-haiku-4-5-20251001.
_RELEASE = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


@dataclass(frozen=True, order=True)
class Line:
    """What one line of a bill is about; names in lower case, ours for the provider, the provider's for the model."""

    day: date
    provider: str
    model: str


@dataclass(frozen=True)
class BilledCall:
    """One call that the provider bills otherwise than we did.

    Attributes
    ----------
    request_id
        Ours (`x-uc-request-id`), or the one in the export where no call of ours has it.
    provider_usd, usage_usd
        What it cost, by the export and by the usage row.
    correction
        Credits to give back, below zero to charge; None where it is not certain.
    reason
        Why it is not certain.
    corrections
        How often this call was corrected before.
    """

    request_id: str
    user_id: str | None
    provider: str
    model: str
    provider_usd: Decimal
    usage_usd: Decimal | None
    correction: Decimal | None
    reason: Reason | None
    corrections: int = 0

    def facts(self) -> Facts:
        """For programs."""
        return asdict(self)


class Bill:
    """A provider's export, and our side of it.

    Parameters
    ----------
    costs
        The lines of the export.
    litellm_names
        LiteLLM's names of each provider of ours.
    tolerance
        USD by which a cost may differ.
    since, until
        The period, whole UTC days; None for the days that the export names.
    """

    def __init__(
        self,
        costs: Sequence[Cost],
        litellm_names: Mapping[str, set[str]],
        tolerance: Decimal,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        self._ours = {alias: name for name, aliases in litellm_names.items() for alias in (name, *aliases)}
        self._aliases = litellm_names
        self._tolerance = tolerance
        self._costs = costs
        self.since = since or _midnight(min(cost.day for cost in costs))
        self.until = until or _midnight(max(cost.day for cost in costs) + timedelta(days=1))
        self._models: set[tuple[str, str]] = set()
        self._usage: dict[Line, Decimal] = defaultdict(Decimal)
        self._usage_calls: dict[Line, int] = defaultdict(int)
        self._differing: list[BilledCall] = []

    @property
    def request_ids(self) -> list[str]:
        """The calls that are billed one by one."""
        return sorted({cost.request_id for cost in self._costs if cost.request_id is not None})

    def add_usage(self, days: Sequence[Facts]) -> None:
        """Take our sums, rows with `day, provider, model, calls, usd`; providers that send no bill are left out."""
        billed = {self._provider(cost.provider) for cost in self._costs}
        for row in days:
            line = self._line(row["day"], row["provider"], row["model"])
            self._models.add((line.provider, line.model))
            if line.provider in billed:
                self._usage[line] += row["usd"]
                self._usage_calls[line] += row["calls"]

    def match(self, rows: Sequence[Facts]) -> None:
        """Take the usage rows of the calls that are billed one by one, each with the `asked_id` it answers."""
        found: dict[str, list[Facts]] = defaultdict(list)
        for row in rows:
            found[row["asked_id"]].append(row)
        billed: dict[str, list[Cost]] = defaultdict(list)
        for cost in self._costs:
            if cost.request_id is not None:
                billed[cost.request_id].append(cost)
        # One call under two ids of the export: which line is it?
        twice = Counter(row["request_id"] for row in rows)
        for asked_id, costs in sorted(billed.items()):
            unsure = any(twice[row["request_id"]] > 1 for row in found[asked_id])
            self._match_one(asked_id, costs, found[asked_id] * (2 if unsure else 1))

    def days(self) -> list[Facts]:
        """The lines whose sums differ by more than the tolerance, oldest first."""
        billed: dict[Line, Decimal] = defaultdict(Decimal)
        for cost in self._costs:
            billed[self._billed_line(cost)] += cost.usd
        compared = [(line, billed.get(line, Decimal(0)), self._usage.get(line, Decimal(0)))
                    for line in sorted({*billed, *self._usage})]  # fmt: skip
        return [
            {
                "date": line.day.isoformat(),
                "provider": line.provider,
                "model": line.model,
                "provider_usd": theirs,
                "usage_usd": ours,
                "difference_usd": theirs - ours,
                "usage_calls": self._usage_calls.get(line, 0),
            }
            for line, theirs, ours in compared
            if abs(theirs - ours) > self._tolerance
        ]

    def calls(self) -> list[BilledCall]:
        """The calls that are billed otherwise than by our rows and corrections."""
        return self._differing

    def _match_one(self, asked_id: str, costs: Sequence[Cost], rows: Sequence[Facts]) -> None:
        usd = sum((cost.usd for cost in costs), Decimal(0))
        line = self._billed_line(costs[0])
        row = rows[0] if len(rows) == 1 else None
        judged = _judge(rows, usd, self._tolerance)
        if row is not None and self._is_same(row, costs):
            self._move(row, line, usd if judged is None else row["usd"] - row["corrected_usd"])
        elif row is not None and judged is not None:
            judged = None, "other_model"
        if judged is not None:
            correction, reason = judged
            self._differing.append(
                BilledCall(
                    request_id=row["request_id"] if row else asked_id,
                    user_id=row["user_id"] if row else None,
                    provider=line.provider,
                    model=line.model,
                    provider_usd=usd,
                    usage_usd=row["usd"] if row else None,
                    correction=correction,
                    reason=reason,
                    corrections=row["corrections"] if row else 0,
                )
            )

    def _is_same(self, row: Facts, costs: Sequence[Cost]) -> bool:
        """Whether the export means the provider and the model of our row."""
        ours = self._line(costs[0].day, row["provider"], row["model"])
        billed = [self._billed_line(cost) for cost in costs]
        return all((line.provider, line.model) == (ours.provider, ours.model) for line in billed)

    def _move(self, row: Facts, line: Line, usd: Decimal) -> None:
        """Count a call on the provider's day: it ended there before, or here after, midnight."""
        if row["byok_used"]:
            return
        if self.since <= row["created_at"] < self.until and row["usd"] > 0:
            own = self._line(row["created_at"].date(), row["provider"], row["model"])
            self._usage[own] -= row["usd"] - row["corrected_usd"]
            self._usage_calls[own] -= 1
        self._usage[line] += usd
        self._usage_calls[line] += 1

    def _billed_line(self, cost: Cost) -> Line:
        line = self._line(cost.day, cost.provider, cost.model)
        plain = _RELEASE.sub("", line.model)
        known = self._models
        # We name a model as the deployment does, mostly without its release.
        if (line.provider, line.model) not in known and (line.provider, plain) in known:
            return Line(line.day, line.provider, plain)
        return line

    def _line(self, day: date, provider: str, model: str) -> Line:
        name = self._provider(provider)
        prefix, _, rest = model.strip().lower().partition("/")
        is_prefix = bool(rest) and prefix in {name, *self._aliases.get(name, ())}
        return Line(day, name, rest if is_prefix else model.strip().lower())

    def _provider(self, name: str) -> str:
        lowered = name.strip().lower()
        return self._ours.get(lowered, lowered)


def _judge(rows: Sequence[Facts], usd: Decimal, tolerance: Decimal) -> tuple[Decimal | None, Reason | None] | None:
    """The correction of a call, or why there is none for certain; None when the call is in order."""
    if len(rows) != 1:
        return None, "ambiguous" if rows else "unknown_call"
    (row,) = rows
    if abs(usd - row["usd"] + row["corrected_usd"]) <= tolerance:
        return None
    if row["byok_used"]:
        return None, "own_key"
    if row["charged"] is None:
        return None, "not_charged"
    if row["charged"] != row["cost_credits"]:
        return None, "books_differ"
    if None in (row["credits_per_usd"], row["multiplier"], row["markup"]):
        return None, "no_terms"
    try:
        due = credits(usd, _terms(row))
    except ArithmeticError:
        return None, "impossible_cost"
    correction = row["charged"] - row["corrected"] - due
    return (correction, None) if correction else None


def _terms(row: Facts) -> Terms:
    """The terms that were frozen when the call was held."""
    return Terms(
        row["power_level"], Decimal(row["multiplier"]), Decimal(row["markup"]), Decimal(row["credits_per_usd"])
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), timezone.utc)
