"""What can be asked of the ledger, as values: each asks the database and the model, and the answers must be equal."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

import asyncpg

from tests.ledger.model import Balances, Books, HoldAnswer, MoveAnswer, SettleAnswer, is_amount
from tests.schema.ledger import TTL, Ledger, release, settlement

LAPSED = timedelta(seconds=-1)


class Operation(Protocol):
    """One statement of a worker, a sweeper or an operator."""

    async def ask(self, ledger: Ledger) -> object:
        """What the database answers."""

    def expect(self, books: Books) -> object:
        """What the model answers, which moves on."""


@dataclass(frozen=True)
class HoldCredits:
    """A call begins; with `lapses` its lease has run out as soon as it is written."""

    hold: uuid.UUID
    user: str
    amount: Decimal
    least: Decimal
    lapses: bool = False

    async def ask(self, ledger: Ledger) -> HoldAnswer:
        ttl = LAPSED if self.lapses else TTL
        row = await ledger.hold(self.user, str(self.amount), str(self.least), self.hold, ttl)
        return HoldAnswer(row["error"], row["duplicate"], row["held"], _balances(row), row["credits_cap_room"])

    def expect(self, books: Books) -> HoldAnswer:
        return books.hold(self.hold, self.user, self.amount, self.least, lapses=self.lapses)


@dataclass(frozen=True)
class Ending:
    """One settlement, or with no charge a release."""

    hold: uuid.UUID
    user: str
    charge: str | None
    usage: bool = True

    @property
    def record(self) -> dict[str, Any]:
        usage: dict[str, Any] = {"provider": "openai", "model": "m", "prompt_tokens": 1} if self.usage else {}
        if self.charge is None:
            return release(self.hold, self.user, **usage)
        return settlement(self.hold, self.user, self.charge, **usage)

    @property
    def amount(self) -> Decimal | None:
        """The charge, where it is an amount."""
        amount = Decimal(self.charge or 0)
        return amount if is_amount(amount) else None


@dataclass(frozen=True)
class SettleCredits:
    """A worker's batch."""

    endings: tuple[Ending, ...]

    async def ask(self, ledger: Ledger) -> list[SettleAnswer]:
        rows = await ledger.settle(*[each.record for each in self.endings])
        assert [row["hold_id"] for row in rows] == [each.hold for each in self.endings]
        return [SettleAnswer(row["outcome"], row["charged"], row["debt_added"], _balances(row)) for row in rows]

    def expect(self, books: Books) -> list[SettleAnswer]:
        return [
            books.settle(each.hold, each.user, each.amount, release=each.charge is None, usage=each.usage)
            for each in self.endings
        ]


@dataclass(frozen=True)
class ExpireHolds:
    """The sweeper."""

    async def ask(self, ledger: Ledger) -> dict[uuid.UUID, Decimal]:
        rows = await ledger.connection.fetch("SELECT * FROM expire_holds()")
        return {row["hold_id"]: row["amount"] for row in rows}

    def expect(self, books: Books) -> dict[uuid.UUID, Decimal]:
        return books.expire()


@dataclass(frozen=True)
class ExtendHolds:
    """A worker renews its leases; with `lapses` they run out, as if it had been killed long ago."""

    holds: tuple[uuid.UUID, ...]
    lapses: bool = False

    async def ask(self, ledger: Ledger) -> set[uuid.UUID]:
        statement = "SELECT hold_id FROM extend_holds($1, $2)"
        rows = await ledger.connection.fetch(statement, list(self.holds), LAPSED if self.lapses else TTL)
        return {row["hold_id"] for row in rows}

    def expect(self, books: Books) -> set[uuid.UUID]:
        return books.extend(list(self.holds), lapses=self.lapses)


@dataclass(frozen=True)
class AddCredits:
    """A purchase, bonus, refund or adjustment."""

    user: str
    amount: Decimal
    kind: str
    payment: str | None = None
    key: str | None = None

    async def ask(self, ledger: Ledger) -> MoveAnswer:
        options = {"stripe_transaction_id": self.payment, "idempotency_key": self.key}
        return _moved(await ledger.add(self.user, str(self.amount), self.kind, **options))

    def expect(self, books: Books) -> MoveAnswer:
        return books.add(self.user, self.amount, self.kind, self.payment, self.key)


@dataclass(frozen=True)
class DebitCredits:
    """A charge without a hold."""

    user: str
    amount: Decimal
    key: str | None = None

    async def ask(self, ledger: Ledger) -> MoveAnswer:
        return _moved(await ledger.debit(self.user, str(self.amount), {"request_id": self.key} if self.key else None))

    def expect(self, books: Books) -> MoveAnswer:
        return books.debit(self.user, self.amount, self.key)


@dataclass(frozen=True)
class SetAccount:
    """What an operator, or the calendar, changes in an account: monthly_cap, status, or last_reset set back."""

    user: str
    column: str
    value: Any

    async def ask(self, ledger: Ledger) -> None:
        value = "date_trunc('month', clock_timestamp(), 'UTC') - interval '1 month'"
        statement = f"UPDATE user_credits SET {self.column} = {value if self.column == 'last_reset' else '$2'}"
        arguments = (self.user,) if self.column == "last_reset" else (self.user, self.value)
        await ledger.connection.execute(f"{statement} WHERE user_id = $1", *arguments)

    def expect(self, books: Books) -> None:
        name = {"monthly_cap": "cap", "last_reset": "is_of_last_month"}.get(self.column, self.column)
        setattr(books.accounts[self.user], name, self.value)


def _balances(row: asyncpg.Record) -> Balances | None:
    """An account's; None where there is none."""
    if row["credits_debt"] is None:
        return None
    assert row["credits_available"] == row["credits_remaining"] - row["credits_held"]
    return Balances(row["credits_remaining"], row["credits_held"], row["credits_debt"])


def _moved(row: asyncpg.Record) -> MoveAnswer:
    assert row["success"] == (row["error_message"] is None) == (row["transaction_id"] is not None)
    return MoveAnswer(row["error_message"], row["new_balance"] if row["success"] else None)
