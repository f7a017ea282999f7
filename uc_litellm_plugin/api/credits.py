"""`/credits/…`: balance, ledger, holds, packages; debit for services, grant for administrators."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query

from ..errors import BadRequest
from ..office import Office
from . import statements
from .callers import Account, Asking, At, note
from .envelope import EnvelopeRoute, NotOffered
from .models import ERRORS, Everything, IdempotencyKey, Page
from .models_credits import (
    Balance,
    Debit,
    Debited,
    Grant,
    Granted,
    Hold,
    Package,
    Purchase,
    Transaction,
    TransactionType,
    transaction,
)
from .pages import Cursor, Filter, From, Limit, To, cut, place_in
from .statements import Charge, Wanted

routing = APIRouter(prefix="/credits", tags=["uc: credits"], route_class=EnvelopeRoute, responses=ERRORS)

MOST_OFFSET = 1_000_000

KeyHeader = Annotated[
    IdempotencyKey | None, Header(alias="Idempotency-Key", description="Or `idempotency_key` in the body.")
]


@routing.get("/balance")
async def balance(account: Account, at: At) -> Balance:
    """What the account has: remaining, held, available, debt, and what it spent."""
    return Balance.model_validate(dict(await statements.balance(at.worker.database, account.user_id)))


@routing.get("/transactions")
async def transactions(
    account: Account,
    at: At,
    limit: Limit = 50,
    cursor: Cursor = None,
    offset: Annotated[int, Query(ge=0, le=MOST_OFFSET, description="In place of a cursor; rows may shift.")] = 0,
    kind: Annotated[TransactionType | None, Query(alias="type")] = None,
    since: From = None,
    to: To = None,
    model: Filter = None,
    provider: Filter = None,
) -> Page[Transaction]:
    """The account's ledger, newest row first. New rows do not shift what a cursor goes on with."""
    place = place_in(cursor, int)
    if place is not None and offset:
        raise BadRequest("Use either cursor or offset.", code="invalid_value", param="offset")
    wanted = Wanted(kind, since, to, model, provider)
    before = place[0] if place else None
    rows = await statements.transactions(at.worker.database, account.user_id, wanted, before, limit + 1, offset)
    shown, after = cut(rows, limit, lambda row: (row["user_version"],))
    return Page(data=[transaction(dict(row)) for row in shown], next_cursor=after)


@routing.get("/holds")
async def holds(account: Account, at: At, limit: Limit = 50, cursor: Cursor = None) -> Page[Hold]:
    """What is set aside for calls under way, newest first."""
    before = place_in(cursor, datetime, UUID)
    rows = await statements.holds(at.worker.database, account.user_id, before, limit + 1)
    shown, after = cut(rows, limit, lambda row: (row["created_at"], row["hold_id"]))
    return Page(data=[Hold.model_validate(dict(row)) for row in shown], next_cursor=after)


@routing.get("/packages")
async def packages(asking: Asking, at: At) -> Everything[Package]:
    """What can be bought."""
    return Everything(data=[Package.model_validate(dict(row)) for row in await statements.packages(at.worker.database)])


@routing.post("/purchase", status_code=501, response_model=None)
async def purchase(asking: Asking, wanted: Purchase) -> None:
    """Buying is not offered yet: always 501."""
    raise NotOffered("Packages cannot be bought here yet; ask the operator for credits.", code="purchases_not_offered")


@routing.post("/debit")
async def debit(account: Account, at: At, wanted: Debit, key: KeyHeader = None) -> Debited:
    """Charge the account at once, without a hold; never below zero. For service and admin keys.

    An idempotency key is needed: the same key and amount again charge nothing and get the first answer.
    """
    amount, chosen = Decimal(wanted.amount), _key(key, wanted.idempotency_key)
    if chosen is None:
        raise BadRequest("A debit needs an idempotency key.", code="idempotency_key_missing", param="idempotency_key")
    if amount == 0:
        raise BadRequest("amount must be above 0.", code="invalid_amount", param="amount")
    facts = {"client": wanted.metadata, "notes": wanted.reason, "admin_user_id": account.actor.name}
    charge = Charge(amount, chosen, facts, **wanted.model_dump(include=_OF_CALLS))
    row = await statements.debit(at.worker.database, account.user_id, charge)
    note(account.actor, f"debited {amount:f} credits", account.user_id, wanted.reason)
    return Debited(transaction_id=row["transaction_id"], amount=_exact(-amount), credits_remaining=row["new_balance"])


@routing.post("/grant")
async def grant(account: Account, at: At, wanted: Grant, key: KeyHeader = None) -> Granted:
    """Add credits to the account; debt is paid first. A refund or an adjustment may take some back. For admin keys."""
    amount, chosen = Decimal(wanted.amount), _key(key, wanted.idempotency_key)
    office = Office(at.worker.database)
    by = account.actor.name
    facts = await office.add_credits(account.user_id, amount, wanted.type, wanted.reason, chosen, by)
    note(account.actor, f"granted {amount:f} credits ({wanted.type})", account.user_id, wanted.reason)
    return Granted.model_validate({**facts, "amount": _exact(amount)})


def _exact(amount: Decimal) -> Decimal:
    """With six decimals, as the ledger has it."""
    return amount.quantize(Decimal("0.000001"))


_OF_CALLS = {"provider", "model", "prompt_tokens", "completion_tokens"}


def _key(header: str | None, body: str | None) -> str | None:
    if header is not None and body is not None and header != body:
        raise BadRequest("Idempotency-Key and idempotency_key differ.", code="invalid_idempotency_key")
    return header if header is not None else body
