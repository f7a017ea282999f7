"""The ledger as it should be, in plain Python and Decimals, one operation after the other.

It is written from the state machine of a hold and the rules of debt, not from the SQL: where the SQL keeps one number
(available minus debt), this moves credits between balance, hold and debt step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

ZERO = Decimal(0)
MICRO = Decimal("0.000001")


class Balances(NamedTuple):
    """What an account comes to."""

    remaining: Decimal
    held: Decimal
    debt: Decimal


@dataclass
class Account:
    """One user's credits; debt is paid first by whatever becomes available."""

    remaining: Decimal = ZERO
    held: Decimal = ZERO
    debt: Decimal = ZERO
    lifetime: Decimal = ZERO
    spent: Decimal = ZERO
    spent_this_month: Decimal = ZERO
    cap: Decimal | None = None
    status: str = "active"
    is_of_last_month: bool = False
    rows: int = 0

    @property
    def available(self) -> Decimal:
        return self.remaining - self.held

    @property
    def balances(self) -> Balances:
        return Balances(self.remaining, self.held, self.debt)

    def room(self) -> Decimal | None:
        """What the monthly cap leaves; None without one."""
        spent = ZERO if self.is_of_last_month else self.spent_this_month
        return None if self.cap is None else self.cap - spent - self.held

    def write_row(self) -> None:
        """Every entry of the ledger counts, and rolls the month."""
        self.rows += 1
        if self.is_of_last_month:
            self.is_of_last_month, self.spent_this_month = False, ZERO

    def pay_debt(self) -> None:
        paid = min(self.debt, self.available)
        self.debt -= paid
        self.remaining -= paid

    def move(self, amount: Decimal) -> None:
        """Add credits, or with a negative amount take them."""
        if amount > 0:
            self.remaining += amount
        else:
            self.debt -= amount
        self.pay_debt()

    def spend(self, amount: Decimal) -> None:
        self.spent += amount
        self.spent_this_month += amount
        self.move(-amount)

    def free(self, amount: Decimal) -> None:
        self.held -= amount
        self.pay_debt()


@dataclass
class Hold:
    """What is known of a hold's id. `asked` is None where only a settlement ever came."""

    user: str
    asked: tuple[Decimal, Decimal] | None = None
    amount: Decimal = ZERO
    is_open: bool = False
    is_lapsed: bool = False
    charged: Decimal | None = None


@dataclass(frozen=True)
class Entry:
    """An addition or a debit with a key, as a repetition must find it."""

    user: str
    kind: str
    amount: Decimal
    balance_after: Decimal


class HoldAnswer(NamedTuple):
    """What hold_credits says."""

    error: str | None
    duplicate: bool
    held: Decimal
    balances: Balances | None
    room: Decimal | None


class SettleAnswer(NamedTuple):
    """What settle_credits says of one settlement."""

    outcome: str
    charged: Decimal | None
    debt_added: Decimal
    balances: Balances | None


class MoveAnswer(NamedTuple):
    """What add_user_credits and debit_user_credits say; the balance only where they succeeded."""

    error: str | None
    balance: Decimal | None


def is_amount(amount: Decimal) -> bool:
    return amount.is_finite() and amount >= 0 and amount == amount.quantize(MICRO)


@dataclass
class Books:
    """All accounts, holds and usage rows."""

    accounts: dict[str, Account] = field(default_factory=dict)
    holds: dict[UUID, Hold] = field(default_factory=dict)
    usage: dict[UUID, tuple[str, Decimal]] = field(default_factory=dict)
    _keys: dict[tuple[str, str], Entry] = field(default_factory=dict)
    _payments: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def hold(self, hold_id: UUID, user: str, amount: Decimal, least: Decimal, *, lapses: bool = False) -> HoldAnswer:
        account = self.accounts.get(user)
        if account is None:
            return HoldAnswer("unknown_account", False, ZERO, None, None)
        room = account.room()
        known = self.holds.get(hold_id)
        error = self._hold_refusal(known, account, user, amount, least)
        held = known.amount if known and error == "duplicate" else ZERO
        if error is None:
            held = ZERO if amount == 0 else min(each for each in (amount, account.available, room) if each is not None)
            account.write_row()
            account.held += held
            self.holds[hold_id] = Hold(user, (amount, least), held, is_open=True, is_lapsed=lapses)
        is_duplicate = error == "duplicate"
        return HoldAnswer(None if is_duplicate else error, is_duplicate, held, account.balances, room)

    @staticmethod
    def _hold_refusal(known: Hold | None, account: Account, user: str, amount: Decimal, least: Decimal) -> str | None:
        if not (is_amount(amount) and is_amount(least)) or least > amount:
            return "invalid_amount"
        if known is not None:
            if known.user != user:
                return "idempotency_conflict"
            if not known.is_open:
                return "already_resolved"
            return "duplicate" if known.asked == (amount, least) else "idempotency_conflict"
        if account.status != "active":
            return f"account_{account.status}"
        room = account.room()
        if amount == 0:
            return None
        if account.debt > 0:
            return "in_debt"
        if account.available < least:
            return "insufficient_credits"
        return "monthly_cap" if room is not None and room < least else None

    def settle(
        self, hold_id: UUID, user: str, charge: Decimal | None, *, release: bool = False, usage: bool = True
    ) -> SettleAnswer:
        """A charge of None is none that PostgreSQL takes for an amount."""
        account = self.accounts.get(user)
        if account is None:
            return SettleAnswer("unknown_account", None, ZERO, None)
        hold = self.holds.get(hold_id)
        outcome = _outcome(hold, user, charge, release)
        debt = account.debt
        charged = hold.charged if hold and hold.user == user else None
        if outcome in ("settled", "late_settled", "released"):
            charged = ZERO if release else charge
            self._write_end(self.holds.setdefault(hold_id, Hold(user)), charged or ZERO)
        self._write_usage(hold_id, user, outcome, charged, release, usage)
        return SettleAnswer(outcome, charged, max(account.debt - debt, ZERO), account.balances)

    def _write_end(self, hold: Hold, charge: Decimal) -> None:
        account = self.accounts[hold.user]
        account.write_row()
        if hold.is_open:
            hold.is_open = False
            account.free(hold.amount)
        account.spend(charge)

    def _write_usage(
        self, hold_id: UUID, user: str, outcome: str, charged: Decimal | None, release: bool, usage: bool
    ) -> None:
        if outcome in ("settled", "late_settled"):
            self.holds[hold_id].charged = charged
            self.usage[hold_id] = (user, charged or ZERO)
        elif release and usage and outcome in ("released", "duplicate"):
            self.usage.setdefault(hold_id, (user, ZERO))

    def expire(self) -> dict[UUID, Decimal]:
        """What each freed hold held."""
        due = {hold_id: hold for hold_id, hold in self.holds.items() if hold.is_open and hold.is_lapsed}
        for hold in due.values():
            self._write_end(hold, ZERO)
        return {hold_id: hold.amount for hold_id, hold in due.items()}

    def extend(self, hold_ids: list[UUID], *, lapses: bool) -> set[UUID]:
        found = {hold_id for hold_id in hold_ids if hold_id in self.holds and self.holds[hold_id].is_open}
        for hold_id in found:
            self.holds[hold_id].is_lapsed = lapses
        return found

    def add(self, user: str, amount: Decimal, kind: str, payment: str | None, key: str | None) -> MoveAnswer:
        if not is_amount(abs(amount)) or amount == 0 or (amount < 0 and kind in ("purchase", "bonus")):
            return MoveAnswer("invalid_amount", None)
        earlier = self._payments.get((payment or "", kind)) or self._keys.get((user, key or ""))
        if earlier:
            return _again(earlier, user, kind, amount)
        if user not in self.accounts:
            if amount < 0:
                return MoveAnswer("unknown_account", None)
            self.accounts[user] = Account()
        account = self.accounts[user]
        account.write_row()
        account.move(amount)
        account.lifetime += amount if kind == "purchase" else ZERO
        entry = Entry(user, kind, amount, account.remaining)
        if payment:
            self._payments[payment, kind] = entry
        if key:
            self._keys[user, key] = entry
        return MoveAnswer(None, account.remaining)

    def debit(self, user: str, amount: Decimal, key: str | None) -> MoveAnswer:
        account = self.accounts.get(user)
        if account is None:
            return MoveAnswer("unknown_account", None)
        if not is_amount(amount):
            return MoveAnswer("invalid_amount", None)
        if earlier := self._keys.get((user, key or "")):
            return _again(earlier, user, "debit", amount)
        if account.status != "active":
            return MoveAnswer(f"account_{account.status}", None)
        if amount > account.available:
            return MoveAnswer("insufficient_credits", None)
        account.write_row()
        account.spend(amount)
        if key:
            self._keys[user, key] = Entry(user, "debit", amount, account.remaining)
        return MoveAnswer(None, account.remaining)


def _outcome(hold: Hold | None, user: str, charge: Decimal | None, release: bool) -> str:
    if hold and hold.user != user:
        return "conflict"
    is_open = hold is not None and hold.is_open
    if release:
        return "released" if is_open or hold is None else "duplicate"
    if charge is None or not is_amount(charge):
        return "invalid_amount"
    if hold and hold.charged is not None:
        return "duplicate" if hold.charged == charge else "conflict"
    return "settled" if is_open else "late_settled"


def _again(earlier: Entry, user: str, kind: str, amount: Decimal) -> MoveAnswer:
    if (earlier.user, earlier.kind, earlier.amount) != (user, kind, amount):
        return MoveAnswer("idempotency_conflict", None)
    return MoveAnswer(None, earlier.balance_after)
