"""The question and the answer of a hold."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from .database import Row


@dataclass(frozen=True)
class Once:
    """An idempotency key: the same account, key and body are one call.

    Attributes
    ----------
    key
        As the client sent it.
    body_hash
        SHA-256 of the endpoint and the body, in hex.
    remember_h
        How long it is remembered. Hours.
    """

    key: str
    body_hash: str
    remember_h: int


@dataclass(frozen=True)
class Held:
    """The answer to a hold.

    Attributes
    ----------
    error
        None when the credits are held; else why not, in the words of `hold_credits`.
    amount
        Credits held.
    remaining, held, available, debt
        The account after it; None for an unknown account.
    cap_room
        What the monthly cap left before it, None without a cap.
    earlier
        The call that has the idempotency key, None where that is not why.
    """

    error: str | None
    amount: Decimal
    remaining: Decimal | None
    held: Decimal | None
    available: Decimal | None
    debt: Decimal | None
    cap_room: Decimal | None
    earlier: UUID | None = None

    @classmethod
    def from_row(cls, row: Row) -> Held:
        """From the row that `hold_credits` and `hold_credits_once` answer with."""
        return cls(
            error=None if row["success"] else row["error"],
            amount=row["held"] or Decimal(0),
            remaining=row["credits_remaining"],
            held=row["credits_held"],
            available=row["credits_available"],
            debt=row["credits_debt"],
            cap_room=row["credits_cap_room"],
            earlier=row.get("earlier_hold_id"),
        )
