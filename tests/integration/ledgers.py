"""The real database and a ledger on it, as the tests of the ledger use them."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseUnavailable
from uc_litellm_plugin.holds import Held, Once
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.settings import Settings

USER = "ann"
AWAY = DatabaseUnavailable("PostgreSQL is away in this test.")
AWAY.in_doubt = False

Loss = Literal["statement", "answer", "caller"]


class Counted(Database):
    """The real database, which counts its settlements and can be told to be away, or to lose holds: on their way to
    it (`statement`), on the way back (`answer`), or since their caller is gone by then (`caller`).
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.batches: list[int] = []
        self.away = False
        self.entered = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.losing: Loss | None = None
        self.late: list[tuple[str, tuple[Any, ...]]] = []

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> list[Any]:
        if "settle_credits" in sql:
            self.batches.append(len(args[0]))
            self.entered.set()
            if self.gate is not None:
                await self.gate.wait()
        if self.away:
            raise AWAY
        return await super().fetch(sql, *args, timeout=timeout, idempotent=idempotent)

    async def fetchrow(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Any:
        if self.away:
            raise AWAY
        if self.losing and "hold_credits" in sql:
            return await self._lose(sql, *args)
        return await super().fetchrow(sql, *args, timeout=timeout, idempotent=idempotent)

    async def _lose(self, sql: str, *args: Any) -> None:
        if self.losing == "statement":
            self.late.append((sql, args))
        else:
            await super().fetchrow(sql, *args)
            self.entered.set()
        if self.losing == "caller":
            await asyncio.Event().wait()
        raise DatabaseUnavailable("PostgreSQL did not answer in this test.")

    async def arrive(self) -> list[Any]:
        """What was lost on its way comes after all; nobody waits for the answers."""
        self.losing = None
        return [await super(Counted, self).fetchrow(sql, *args) for sql, args in self.late]


async def hold(
    ledger: Ledger, amount: str, least: str | None = None, user: str = USER, once: Once | None = None
) -> tuple[UUID, Held]:
    hold_id = uuid4()
    amounts = Decimal(amount), Decimal(least or amount)
    return hold_id, await ledger.hold(hold_id, user, *amounts, "balanced", {"endpoint": "chat"}, once)


async def held(ledger: Ledger, amount: str = "1") -> UUID:
    """The id of a new hold, which must succeed."""
    hold_id, answer = await hold(ledger, amount)
    assert answer.error is None
    return hold_id


def charge(hold_id: UUID, amount: str = "0.5", **usage: Any) -> Record:
    facts = {"provider": "openai", "model": "m", "power_level": "balanced", "cost_usd": "0", "success": True, **usage}
    return {"hold_id": str(hold_id), "user_id": USER, "action": "settle", "charge": amount, "usage": facts}


def release(hold_id: UUID) -> Record:
    return {**charge(hold_id, "0"), "action": "release"}


async def balance(database: Database) -> tuple[str, str]:
    """What remains, and what of it is held."""
    row = await database.fetchrow("SELECT credits_remaining, credits_held FROM user_credits WHERE user_id = $1", USER)
    assert row is not None
    return tuple(f"{amount.normalize():f}" for amount in row)  # type: ignore[return-value]


async def quarantined(database: Database) -> list[str]:
    rows = await database.fetch("SELECT hold_id::text FROM settlement_quarantine ORDER BY id")
    return [row["hold_id"] for row in rows]


async def is_sound(database: Database) -> bool:
    return await database.fetch("SELECT * FROM ledger_audit()") == []
