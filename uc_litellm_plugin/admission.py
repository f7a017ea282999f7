"""Before the call: is the request allowed, what can it cost at most, and are those credits held?"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from . import demand, plan, requests, tokens
from .accounts import Accounts
from .call import Call, Caller, Names
from .demand import Demand
from .errors import BadRequest, Conflict, Forbidden, InsufficientCredits, LedgerUnavailable
from .holds import Held, Once
from .ledger import Ledger
from .plan import Candidate, Plan
from .power import PowerLevel
from .pricing import Terms
from .requests import Inbound
from .routes import Endpoint
from .settings import Settings
from .tokens import Tokenizer

logger = logging.getLogger(__name__)


class Admission:
    """The way of a request to its hold.

    Parameters
    ----------
    settings, accounts, ledger
        Of the worker.
    candidates
        The priced deployments of a model group and its fallbacks.
    tokenizer
        Counts a text.
    """

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        ledger: Ledger,
        candidates: Callable[[str], list[Candidate]],
        tokenizer: Tokenizer,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._ledger = ledger
        self._candidates = candidates
        self._tokenizer = tokenizer

    async def admit(self, endpoint: Endpoint, inbound: Inbound, caller: Caller, model: str) -> Call:
        """Check, plan, price and hold.

        Parameters
        ----------
        model
            The model group, after LiteLLM's aliases.

        Returns
        -------
        Call
            Held, with the output cap that must be written into the request.

        Raises
        ------
        Refusal
            400, 402, 403 or 503; nothing is held.
        DatabaseError
            The power level cannot be read.
        """
        requests.check_body(endpoint, inbound.body, self._settings.requests.extra_fields)
        requests.check_model(model)
        wish = demand.measure(endpoint, inbound.body)
        level = await self._level(caller)
        counted = await self._count(wish)
        made = self._plan(endpoint, wish, counted, model, level, caller)
        call = Call(
            caller=caller,
            endpoint=endpoint,
            plan=made,
            model=model,
            names=_names(inbound, caller),
            streamed=inbound.body.get("stream") is True,
            wants_usage=(inbound.body.get("stream_options") or {}).get("include_usage") is True,
            demand=wish,
        )
        await self._hold(call, self._once(endpoint, inbound))
        return call

    def _once(self, endpoint: Endpoint, inbound: Inbound) -> Once | None:
        key = requests.idempotency_key(inbound)
        if key is None:
            return None
        return Once(key, requests.body_hash(endpoint, inbound.body), self._settings.requests.idempotency_hours)

    async def _level(self, caller: Caller) -> PowerLevel:
        level = await self._accounts.level(caller.power_level)
        if level is None:
            raise Forbidden(
                f"Power level '{caller.power_level}' is not active; ask the operator.", code="power_level_inactive"
            )
        return level

    async def _count(self, wish: Demand) -> int:
        if len(wish.text) < tokens.LONG_TEXT:
            return tokens.count(wish.text, self._tokenizer)
        # Tokenizing releases the GIL, so that other requests go on.
        return await asyncio.to_thread(tokens.count, wish.text, self._tokenizer)

    def _plan(
        self, endpoint: Endpoint, wish: Demand, counted: int, model: str, level: PowerLevel, caller: Caller
    ) -> Plan:
        terms = Terms(
            power_level=level.name,
            multiplier=level.multiplier,
            markup=self._settings.tier(caller.tier).markup,
            credits_per_usd=self._settings.credits.credits_per_usd,
        )
        return plan.make(
            wish,
            counted,
            self._candidates(model),
            terms,
            default_cap=level.default_max_output,
            min_cap=self._settings.holds.min_output_tokens,
            least_output=endpoint.least_output,
            unbounded_input=self._settings.holds.unbounded_input,
        )

    async def _hold(self, call: Call, once: Once | None) -> None:
        try:
            amount, least = call.plan.cost(call.plan.wanted_cap), call.plan.cost(call.plan.smallest_cap)
        except ArithmeticError:
            raise BadRequest("The worst case of this call is beyond any balance: lower max_tokens.",
                             code="too_expensive", param="max_tokens") from None  # fmt: skip
        facts = {"model": call.model, "endpoint": call.endpoint.name}
        held = await self._ledger.hold(
            call.id, call.caller.user_id, amount, least, call.plan.terms.power_level, facts, once
        )
        if held.error is not None:
            _refuse(call, held, least)
        call.held, call.cap = held.amount, call.plan.cap_within(held.amount)


def _names(inbound: Inbound, caller: Caller) -> Names:
    metadata = inbound.body.get("metadata")
    session = inbound.headers.get("x-session-id") or (
        metadata.get("session_id") if isinstance(metadata, dict) else None
    )
    return Names(
        app=caller.api_key_name or requests.clean(inbound.headers.get("x-title"), 255),
        session=requests.clean(session, 255),
        request=requests.clean(inbound.headers.get("x-request-id"), 255),
        user_agent=requests.clean(inbound.headers.get("user-agent"), 255),
        ip_address=_address(inbound.ip_address),
    )


def _address(host: str | None) -> str | None:
    """The peer's address; a proxy in front may have named something that is none."""
    try:
        return str(ipaddress.ip_address((host or "").partition("%")[0]))
    except ValueError:
        return None


def _refuse(call: Call, held: Held, least: Decimal) -> NoReturn:
    if held.error in ("account_suspended", "account_closed"):
        raise Forbidden("This account is not active; ask the operator.", code=held.error)
    if held.earlier is not None:
        raise _taken(held.error or "", held.earlier)
    if held.error == "unknown_account":
        raise Forbidden("This user has no account here; ask the operator.", code=held.error)
    if held.error == "in_debt":
        raise InsufficientCredits(
            f"This account owes {held.debt} credits for earlier calls: add credits.",
            code="in_debt",
            metadata=_amounts(call, held, least),
        )
    if held.error == "monthly_cap":
        raise InsufficientCredits(
            f"This call needs up to {least.normalize():f} credits and the monthly cap leaves {held.cap_room}: "
            "wait for the next month (UTC) or raise the cap.",
            code="monthly_cap",
            metadata={**_amounts(call, held, least), "monthly_cap_room": str(held.cap_room)},
        )
    if held.error == "insufficient_credits":
        _refuse_poor(call, held, least)
    logger.error("hold %s of user %s was refused: %s", call.id, call.caller.user_id, held.error)
    raise LedgerUnavailable("The credits for this call could not be held; please try again.")


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


def _refuse_poor(call: Call, held: Held, least: Decimal) -> NoReturn:
    metadata = _amounts(call, held, least)
    affordable = metadata["affordable_max_tokens"]
    way_out = f"lower max_tokens to {affordable} or add credits" if affordable else "add credits"
    # Only calls in flight stand in the way: what they do not use comes back.
    waiting = held.held is not None and held.remaining is not None and held.held > 0 and held.remaining >= least
    raise InsufficientCredits(
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
