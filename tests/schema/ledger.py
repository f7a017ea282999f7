"""The ledger's functions as the tests call them: amounts as text, rows as records."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
TTL = timedelta(seconds=120)


def settlement(hold: uuid.UUID, user: str, charge: str, **usage: Any) -> dict[str, Any]:
    return {"hold_id": str(hold), "user_id": user, "action": "settle", "charge": charge, "usage": usage or None}


def release(hold: uuid.UUID, user: str, **usage: Any) -> dict[str, Any]:
    return {"hold_id": str(hold), "user_id": user, "action": "release", "usage": usage or None}


class Ledger:
    """The ledger as one session sees it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def add(self, user: str, amount: str, kind: str = "bonus", **options: Any) -> asyncpg.Record:
        named = "".join(f", p_{name} => ${number}" for number, name in enumerate(options, start=4))
        statement = f"SELECT * FROM add_user_credits($1, $2::numeric, $3{named})"
        return await self._row(statement, user, Decimal(amount), kind, *options.values())

    async def hold(
        self, user: str, amount: str, minimum: str | None = None, hold: uuid.UUID | None = None, ttl: timedelta = TTL
    ) -> asyncpg.Record:
        return await self._row(
            "SELECT * FROM hold_credits($1, $2, $3, $4, $5, 'balanced')",
            hold or uuid.uuid4(),
            user,
            Decimal(amount),
            Decimal(minimum if minimum is not None else amount),
            ttl,
        )

    async def held(self, user: str, amount: str, ttl: timedelta = TTL) -> uuid.UUID:
        """The id of a new hold, which must succeed."""
        hold = uuid.uuid4()
        answer = await self.hold(user, amount, hold=hold, ttl=ttl)
        assert answer["success"], answer
        return hold

    async def settle(self, *items: dict[str, Any]) -> list[asyncpg.Record]:
        return await self.connection.fetch("SELECT * FROM settle_credits($1::jsonb)", json.dumps(items))

    async def release(self, hold: uuid.UUID, user: str, notes: str | None = None) -> asyncpg.Record:
        return await self._row("SELECT * FROM release_hold($1, $2, $3)", hold, user, notes)

    async def debit(
        self, user: str, amount: str, metadata: dict[str, Any] | None = None, tokens: tuple[int, int] = (10, 20)
    ) -> asyncpg.Record:
        return await self._row(
            "SELECT * FROM debit_user_credits($1, $2::numeric, 'openai', 'gpt-4o-mini', $3, $4, 'balanced', $5::jsonb)",
            user,
            Decimal(amount),
            *tokens,
            json.dumps(metadata or {}),
        )

    async def account(self, user: str) -> asyncpg.Record:
        return await self._row("SELECT * FROM user_credits WHERE user_id = $1", user)

    async def balances(self, user: str) -> tuple[str, str, str]:
        """What remains, what of it is held, and the debt, without trailing zeros."""
        row = await self.account(user)
        return plain(row["credits_remaining"]), plain(row["credits_held"]), plain(row["credits_debt"])

    async def types(self, user: str) -> list[str]:
        rows = await self.connection.fetch(
            "SELECT transaction_type FROM credit_transactions WHERE user_id = $1 ORDER BY user_version", user
        )
        return [row["transaction_type"] for row in rows]

    async def usage(self, hold: uuid.UUID) -> asyncpg.Record:
        return await self._row("SELECT * FROM llm_usage_log WHERE request_id = $1", str(hold))

    async def audit(self) -> list[str]:
        rows = await self.connection.fetch("SELECT * FROM ledger_audit()")
        return [f"{row['invariant']} {row['user_id']} {row['hold_id']}: {row['detail']}" for row in rows]

    async def fingerprint(self) -> str:
        """Changes with any change of an account, of the ledger, of the leases or of the usage log."""
        tables = ("user_credits", "credit_transactions", "credit_holds", "llm_usage_log")
        sums = (
            f"(SELECT coalesce(string_agg(t::text, '/' ORDER BY t::text), '') FROM {table} AS t)" for table in tables
        )
        return str(await self.connection.fetchval(f"SELECT md5({' || '.join(sums)})"))

    async def _row(self, statement: str, *arguments: Any) -> asyncpg.Record:
        row = await self.connection.fetchrow(statement, *arguments)
        assert row is not None, f"no row from {statement}"
        return row


def plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
