"""Why a hold was not given, as the caller is told."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any
from uuid import UUID

from .call import Call
from .errors import Conflict, Forbidden, InsufficientCredits, LedgerUnavailable, Refusal
from .holds import Held

logger = logging.getLogger(__name__)

_INACTIVE = {
    "account_suspended": "This account is not active; ask the operator.",
    "account_closed": "This account is not active; ask the operator.",
    "unknown_account": "This user has no account here; ask the operator.",
}


def denial(call: Call, held: Held) -> Refusal:
    """The refusal for a hold that PostgreSQL did not give.

    Parameters
    ----------
    call
        As it was planned.
    held
        The database's answer, with its `error`.
    """
    if held.earlier is not None:
        return _taken(held.error or "", held.earlier)
    if held.error in _INACTIVE:
        return Forbidden(_INACTIVE[held.error], code=held.error)
    least = call.plan.cost(call.plan.smallest_cap)
    if held.error == "in_debt":
        return InsufficientCredits(
            f"This account owes {held.debt} credits for earlier calls: add credits.",
            code="in_debt",
            metadata=_amounts(call, held, least),
        )
    if held.error == "monthly_cap":
        return InsufficientCredits(
            f"This call needs up to {least.normalize():f} credits and the monthly cap leaves {held.cap_room}: "
            "wait for the next month (UTC) or raise the cap.",
            code="monthly_cap",
            metadata={**_amounts(call, held, least), "monthly_cap_room": str(held.cap_room)},
        )
    if held.error == "insufficient_credits":
        return _too_poor(call, held, least)
    logger.error("hold %s of user %s was refused: %s", call.id, call.caller.user_id, held.error)
    return LedgerUnavailable("The credits for this call could not be held; please try again.")


def _taken(error: str, earlier: UUID) -> Conflict:
    """Why an idempotency key does not get another call; the official clients retry a 409 unless told not to."""
    if error == "idempotency_in_progress":
        return Conflict(
            "A call with this Idempotency-Key is under way; ask again shortly.",
            code=error,
            metadata={"request_id": str(earlier)},
            headers={"retry-after": "1", "x-should-retry": "true"},
        )
    why = "was used for another body" if error == "idempotency_reused" else "belongs to a call that has ended"
    return Conflict(
        f"This Idempotency-Key {why} (request {earlier}): use a new key for a new call.",
        code=error,
        metadata={"request_id": str(earlier)},
    )


def _too_poor(call: Call, held: Held, least: Decimal) -> InsufficientCredits:
    metadata = _amounts(call, held, least)
    affordable = metadata["affordable_max_tokens"]
    way_out = f"lower max_tokens to {affordable} or add credits" if affordable else "add credits"
    # Only calls in flight stand in the way: what they do not use comes back.
    waiting = held.held is not None and held.remaining is not None and held.held > 0 and held.remaining >= least
    return InsufficientCredits(
        f"This call needs up to {_shown(least)} credits and {_shown(held.available)} are available: {way_out}.",
        metadata=metadata,
        headers={"retry-after": "5"} if waiting else None,
    )


def _amounts(call: Call, held: Held, least: Decimal) -> dict[str, Any]:
    room = [amount for amount in (held.available, held.cap_room) if amount is not None]
    affordable = call.plan.affordable(max(min(room, default=Decimal(0)), Decimal(0))) if call.plan.wanted_cap else 0
    return {
        "required": _shown(least),
        "available": _shown(held.available),
        "held": _shown(held.held),
        "affordable_max_tokens": max(0, min(affordable, call.plan.wanted_cap)),
        "power_level": call.plan.terms.power_level,
    }


def _shown(amount: Decimal | None) -> str:
    """Credits for people: at least two places, no more than needed."""
    exact = (amount or Decimal(0)).normalize()
    places = max(2, -int(exact.as_tuple().exponent))
    return f"{exact:.{places}f}"
