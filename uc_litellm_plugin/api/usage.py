"""`/usage`: the account's calls, and each one's whole story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path

from ..database import Database, Row
from ..errors import NotFound
from . import calls, statements
from .callers import Account, At
from .calls import Wanted
from .envelope import EnvelopeRoute
from .models import ERRORS, Page
from .models_credits import Hold, transaction
from .models_usage import Story, Terms, UsageCall
from .pages import Cursor, Filter, From, Limit, To, cut, place_in

routing = APIRouter(prefix="/usage", tags=["uc: usage"], route_class=EnvelopeRoute, responses=ERRORS)

State = Literal["running", "settled", "released", "expired"]
RequestId = Annotated[
    str,
    Path(min_length=1, max_length=255, description="As in the header x-uc-request-id.",
         examples=["6b1f0a9e-3f1c-4e52-9a53-0d6a1f2f7c11"]),
]  # fmt: skip
_DIGITS = 30
_STATES: Mapping[str, State] = {"hold": "running", "release": "released", "expire": "expired", "debit": "settled"}


@routing.get("")
async def listed(
    account: Account,
    at: At,
    limit: Limit = 50,
    cursor: Cursor = None,
    since: From = None,
    to: To = None,
    model: Filter = None,
    provider: Filter = None,
) -> Page[UsageCall]:
    """The account's calls, newest first. New calls do not shift what a cursor goes on with."""
    before = place_in(cursor, datetime, int)
    wanted = Wanted(since, to, model, provider)
    rows = await calls.page(at.worker.database, account.user_id, wanted, before, limit + 1)
    shown, after = cut(rows, limit, lambda row: (row["created_at"], row["id"]))
    return Page(data=[UsageCall.model_validate(dict(row)) for row in shown], next_cursor=after)


@routing.get("/{request_id}")
async def story(account: Account, at: At, request_id: RequestId) -> Story:
    """All that is known of one call: its terms, attempts, charge and ledger rows; also while it runs."""
    database, user_id = at.worker.database, account.user_id
    hold_id = calls.hold_id_of(request_id)
    call = None if "\0" in request_id else await calls.one(database, user_id, str(hold_id or request_id))
    entries = await statements.transactions_of(database, user_id, hold_id) if hold_id else []
    if call is None and not entries:
        raise NotFound("There is no such call.")
    return await _story(database, user_id, str(hold_id or request_id), call, entries)


async def _story(database: Database, user_id: str, request_id: str, call: Row | None, entries: Sequence[Row]) -> Story:
    state = _state(call, entries)
    held = await statements.hold(database, user_id, UUID(request_id)) if state == "running" else None
    return Story(
        request_id=request_id,
        state=state,
        call=None if call is None else UsageCall.model_validate(dict(call)),
        terms=None if call is None else Terms.model_validate(_terms(call["metadata"])),
        hold=None if held is None else Hold.model_validate(dict(held)),
        charged=None if state == "running" else _charged(call, entries),
        transactions=[transaction(dict(row)) for row in entries],
    )


def _state(call: Row | None, entries: Sequence[Row]) -> State:
    """By its rows in the ledger: a late charge comes after what freed its hold, a correction decides nothing."""
    states = [_STATES[row["transaction_type"]] for row in entries if row["transaction_type"] in _STATES]
    if "settled" in states:
        return "settled"
    if states:
        return states[-1]
    return "settled" if call is not None and call["success"] else "released"


def _charged(call: Row | None, entries: Sequence[Row]) -> Decimal:
    debits = [row for row in entries if row["transaction_type"] == "debit"]
    if not debits and call is not None and call["hold_id"] is None:
        return Decimal(call["cost_credits"])  # Another system's row, which no hold stands behind.
    return sum((row["debt_delta"] - row["amount"] for row in debits), Decimal(0))


def _terms(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What our settlement wrote; rows of other systems may hold anything under these names."""
    known = {name: metadata[name] for name in Terms.model_fields if name in metadata}
    prices, most = known.pop("prices", None), known.pop("max_output_tokens", None)
    return {
        **{name: str(value) for name, value in known.items() if isinstance(value, str | int | float)},
        "prices": {name: _plain(price) for name, price in prices.items()} if isinstance(prices, dict) else None,
        "max_output_tokens": most if isinstance(most, int) else None,
    }


def _plain(price: object) -> str:
    """A price without an exponent, where it is one that anybody could have."""
    try:
        number = Decimal(str(price))
    except InvalidOperation:
        return str(price)
    return f"{number:f}" if abs(number.adjusted()) < _DIGITS else str(price)
