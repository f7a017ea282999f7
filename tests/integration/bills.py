"""Calls that were held and charged as the proxy does it, and the provider's bill for them."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from uc_litellm_plugin.cost_export import Cost
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.pricing import Terms, credits
from uc_litellm_plugin.reconciliation import Period, Reconciliation, Report
from uc_litellm_plugin.settings import Settings

USER = "ann"
DAY = date(2026, 3, 5)
NOON = datetime(2026, 3, 5, 12, tzinfo=timezone.utc)
TERMS = Terms("eco", Decimal("0.7"), Decimal("1.1"), Decimal(10))
FROZEN = {"credits_per_usd": "10", "cost_multiplier": "0.7", "markup": "1.1"}
MODEL = "openai/gpt-4o-mini"


class Shop:
    """One test's database, with 100 credits for one user, and its reconciliations."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    async def add(self, amount: str = "100", user: str = USER) -> None:
        await self.database.fetch("SELECT * FROM add_user_credits($1, $2::numeric, 'bonus')", user, Decimal(amount))

    async def hold(self, amount: str = "1", ttl_s: int = 120, call: UUID | None = None) -> str:
        """The id of a new hold."""
        call = call or uuid4()
        row = await self.database.fetchrow(
            "SELECT * FROM hold_credits($1, $2, $3, $3, make_interval(secs => $4), 'eco')",
            call, USER, Decimal(amount), ttl_s,
        )  # fmt: skip
        assert row is not None
        assert row["success"]
        return str(call)

    async def end(self, call: str, action: str, charge: str, usage: dict[str, Any]) -> None:
        settlement = {"hold_id": call, "user_id": USER, "action": action, "charge": charge, "usage": usage}
        await self.database.fetch("SELECT * FROM settle_credits($1)", [settlement])
        # What is compared by day must not depend on the day of the test.
        await self.database.execute("UPDATE llm_usage_log SET created_at = $2 WHERE request_id = $1", call, NOON)

    async def call(
        self, usd: str = "0.05", metadata: dict[str, str] | None = None, call_id: UUID | None = None, **usage: Any
    ) -> str:
        """The request id of a charged call that cost so many USD."""
        facts = {
            "provider": "openai", "model": MODEL, "power_level": "eco", "cost_usd": usd, "success": True,
            "metadata": {**FROZEN, **(metadata or {})}, **usage,
        }  # fmt: skip
        call = await self.hold(call=call_id)
        await self.end(call, "settle", f"{credits(Decimal(usd), TERMS):f}", facts)
        return call

    def books(self, *bill: Cost, period: Period | None = None, tolerance: str = "0.000001") -> Reconciliation:
        return Reconciliation(self.database, self.settings, period or Period(), bill or None, Decimal(tolerance))

    async def compare(self, *bill: Cost, period: Period | None = None, tolerance: str = "0.000001") -> Report:
        return await self.books(*bill, period=period, tolerance=tolerance).compare()

    async def correct(self, *bill: Cost) -> Report:
        books = self.books(*bill)
        return await books.correct(await books.compare(), "the March bill", "root")

    async def paid(self) -> Decimal:
        """What all of the user's calls cost, corrections included."""
        paid = await self.database.fetchval("SELECT 100 - credits_remaining + credits_debt FROM user_credits")
        assert isinstance(paid, Decimal)
        return paid

    async def audit(self) -> list[Any]:
        return await self.database.fetch("SELECT * FROM ledger_audit()")


def billed(usd: str, call: str | None = None, model: str = "gpt-4o-mini", day: date = DAY, by: str = "openai") -> Cost:
    return Cost(day, by, model, Decimal(usd), call)
