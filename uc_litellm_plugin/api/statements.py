"""What the database knows of one account's credits. Each function reads the rows of the account it is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..database import Database, Row
from ..errors import BadRequest, Conflict, DatabaseUnavailable, Forbidden, InsufficientCredits, Refusal

_BALANCE = """
SELECT user_id, credits_remaining, credits_held, credits_available, credits_debt, credits_lifetime, credits_spent,
    monthly_cap, CASE WHEN last_reset < date_trunc('month', clock_timestamp(), 'UTC') THEN 0 ELSE spent_this_month END
        AS spent_this_month, tier, power_level, status
FROM user_credits WHERE user_id = $1"""
_TRANSACTION = """
id, transaction_type, amount, held_delta, debt_delta, balance_after, held_after, debt_after, hold_id, request_id,
idempotency_key, provider, model, prompt_tokens, completion_tokens, tokens_used, power_level, byok_used, payment_method,
package_id, notes, admin_user_id, metadata, created_at"""
_TRANSACTIONS = f"""
SELECT user_version, {_TRANSACTION} FROM credit_transactions
WHERE user_id = $1 AND user_version < coalesce($2, 9223372036854775807)
    AND ($3::text IS NULL OR transaction_type = $3) AND ($4::timestamptz IS NULL OR created_at >= $4)
    AND ($5::timestamptz IS NULL OR created_at < $5) AND ($6::text IS NULL OR model = $6)
    AND ($7::text IS NULL OR provider = $7)
ORDER BY user_version DESC LIMIT $8 OFFSET $9"""  # noqa: S608 - names of ours
# A correction carries the call's id in its key: reconciliation.py. The first one is number 1, and few calls have any.
_OF_CALL = f"""
SELECT {_TRANSACTION} FROM credit_transactions WHERE user_id = $1 AND hold_id = $2
UNION ALL
SELECT {_TRANSACTION} FROM credit_transactions
WHERE user_id = $1
    AND idempotency_key = ANY (SELECT 'reconcile:' || $2::uuid || ':' || n FROM generate_series(1, 20) AS n)
ORDER BY id"""  # noqa: S608
_HOLD = """
SELECT h.hold_id, h.amount, h.power_level, h.created_at, h.expires_at, t.metadata ->> 'model' AS model,
    t.metadata ->> 'endpoint' AS endpoint
FROM credit_holds AS h
LEFT JOIN credit_transactions AS t ON t.hold_id = h.hold_id AND t.transaction_type = 'hold'
WHERE h.user_id = $1"""
_HOLDS = f"""
{_HOLD} AND ($2::timestamptz IS NULL OR (h.created_at, h.hold_id) < ($2, $3))
ORDER BY h.created_at DESC, h.hold_id DESC LIMIT $4"""
_ONE_HOLD = f"{_HOLD} AND h.hold_id = $2"
_PACKAGES = """
SELECT id, name, credits, price_usd, discount_percent, min_tier, is_featured, description, badge_text
FROM credit_packages WHERE is_active ORDER BY sort_order, id"""
_DEBIT = "SELECT * FROM debit_user_credits($1, $2, $3, $4, $5, $6, NULL, $7)"


@dataclass(frozen=True)
class Wanted:
    """Which rows of the ledger; None is no condition. Times are a half-open period."""

    transaction_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    provider: str | None = None


@dataclass(frozen=True)
class Charge:
    """A charge without a hold.

    Attributes
    ----------
    key
        Its idempotency key.
    facts
        For the row's metadata.
    """

    amount: Decimal
    key: str
    facts: dict[str, Any]
    provider: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


async def balance(database: Database, user_id: str) -> Row:
    """The account's balance, its month rolled."""
    row = await database.fetchrow(_BALANCE, user_id, idempotent=True)
    if row is None:  # Accounts are never deleted, and authentication found this one.
        raise DatabaseUnavailable(f"the account {user_id!r} is not in this database")
    return row


async def transactions(
    database: Database, user_id: str, wanted: Wanted, before: int | None, limit: int, offset: int
) -> list[Row]:
    """Ledger rows, newest first, from the one numbered `before` (not included) on."""
    return await database.fetch(
        _TRANSACTIONS, user_id, before, wanted.transaction_type, wanted.since, wanted.until, wanted.model,
        wanted.provider, limit, offset, idempotent=True,
    )  # fmt: skip


async def transactions_of(database: Database, user_id: str, hold_id: UUID) -> list[Row]:
    """All ledger rows of one call, oldest first."""
    return await database.fetch(_OF_CALL, user_id, hold_id, idempotent=True)


async def holds(database: Database, user_id: str, before: tuple[datetime, UUID] | None, limit: int) -> list[Row]:
    """Open holds, newest first."""
    return await database.fetch(_HOLDS, user_id, *(before or (None, None)), limit, idempotent=True)


async def hold(database: Database, user_id: str, hold_id: UUID) -> Row | None:
    """One open hold."""
    return await database.fetchrow(_ONE_HOLD, user_id, hold_id, idempotent=True)


async def packages(database: Database) -> list[Row]:
    """What can be bought, in the shop's order."""
    return await database.fetch(_PACKAGES, idempotent=True)


async def debit(database: Database, user_id: str, charge: Charge) -> Row:
    """Charge an account at once; the same key again changes nothing and gets the first answer.

    Raises
    ------
    InsufficientCredits
        Less is available.
    Conflict
        The key was used for something else.
    Forbidden
        The account is suspended or closed.
    BadRequest
        With it, the account would have spent more than can be counted.
    """
    row = await database.fetchrow(
        _DEBIT, user_id, charge.amount, charge.provider, charge.model, charge.prompt_tokens, charge.completion_tokens,
        {**charge.facts, "request_id": charge.key}, idempotent=True,
    )  # fmt: skip
    if row is None or not row["success"]:
        raise await _refusal(database, user_id, charge, row["error_message"] if row else "no_answer")
    return row


async def _refusal(database: Database, user_id: str, charge: Charge, error: str) -> Refusal:
    if error == "idempotency_conflict":
        return Conflict("This idempotency key was used before, for another amount.")
    if error in ("account_suspended", "account_closed"):
        return Forbidden("This account is not active; it pays for nothing.", code=error)
    if error in ("insufficient_credits", "invalid_amount"):
        available = (await balance(database, user_id))["credits_available"]
        # Spent once more, it would be more than the column that counts what was ever spent can hold.
        if error == "invalid_amount" and charge.amount <= available:
            return BadRequest("amount is more than an account can ever spend.", code="invalid_amount", param="amount")
        return InsufficientCredits(
            f"{charge.amount:f} credits are to be charged and {available:f} are available.",
            metadata={"required": f"{charge.amount:f}", "available": f"{available:f}"},
        )
    raise DatabaseUnavailable(f"debit_user_credits refused: {error}")
