"""Before the call: its plan, and the credits for the plan's worst case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal

from . import denials, requests
from .call import Call, Caller
from .errors import BadRequest
from .holds import Held, Once
from .ledger import Ledger
from .planner import Planner
from .requests import Inbound
from .routes import Endpoint
from .settings import Settings

# What a cheaper power level can mend.
_TOO_DEAR = ("insufficient_credits", "monthly_cap")


class Admission:
    """The way of a request to its hold.

    Parameters
    ----------
    settings, ledger
        Of the worker.
    planner
        Plans calls.
    """

    def __init__(self, settings: Settings, ledger: Ledger, planner: Planner) -> None:
        self._settings = settings
        self._ledger = ledger
        self._planner = planner

    async def admit(self, endpoint: Endpoint, inbound: Inbound, caller: Caller, model: str) -> Call:
        """Check, plan, price and hold.

        Parameters
        ----------
        model
            The model group, after LiteLLM's aliases.

        Returns
        -------
        Call
            Held, with the output cap that must be written into the request. Where the wished level did not fit and
            the account allows it, at the dearest level that does.

        Raises
        ------
        Refusal
            400, 402, 403 or 503; nothing is held.
        DatabaseError
            The power levels cannot be read.
        """
        once = self._once(endpoint, inbound)
        call, held = await self._at_some_level(
            await self._planner.plan(endpoint, inbound, caller, model), lambda planned: self._hold(planned, once)
        )
        if held.error is not None:
            raise denials.denial(call, held)
        call.held, call.cap = held.amount, call.plan.cap_within(held.amount)
        return call

    async def rehearse(self, endpoint: Endpoint, inbound: Inbound, caller: Caller, model: str) -> tuple[Call, Held]:
        """All that `admit` does, except that nothing is held: the call it would make, and what the hold would get.

        Raises
        ------
        Refusal
            The call would be refused before anything is asked of the ledger.
        DatabaseError
            PostgreSQL cannot say.
        """
        call, held = await self._at_some_level(
            await self._planner.plan(endpoint, inbound, caller, model), self._rehearse
        )
        call.held, call.cap = held.amount, call.plan.cap_within(held.amount)
        return call, held

    async def _at_some_level(self, call: Call, hold: Callable[[Call], Awaitable[Held]]) -> tuple[Call, Held]:
        """The call at the wished level or, where that does not fit and the account allows it, at a cheaper one."""
        held = await hold(call)
        if held.error in _TOO_DEAR and call.caller.downgrade:
            for cheaper in await self._planner.cheaper(call):
                if (less := await hold(cheaper)).error is None:
                    return cheaper, less
        return call, held

    def _once(self, endpoint: Endpoint, inbound: Inbound) -> Once | None:
        key = requests.idempotency_key(inbound)
        if key is None:
            return None
        return Once(key, requests.body_hash(endpoint, inbound.body), self._settings.requests.idempotency_hours)

    async def _hold(self, call: Call, once: Once | None) -> Held:
        amount, least = _amounts(call)
        facts = {"model": call.model, "endpoint": call.endpoint.name}
        return await self._ledger.hold(
            call.id, call.caller.user_id, amount, least, call.plan.terms.power_level, facts, once
        )

    async def _rehearse(self, call: Call) -> Held:
        amount, least = _amounts(call)
        return await self._ledger.rehearse(call.caller.user_id, amount, least, call.plan.terms.power_level)


def _amounts(call: Call) -> tuple[Decimal, Decimal]:
    """The credits a call wants held, and the least that it can do with."""
    plan = call.plan
    try:
        wanted = plan.wanted_cost
        return wanted, wanted if plan.smallest_cap == plan.wanted_cap else plan.cost(plan.smallest_cap)
    except ArithmeticError:
        raise BadRequest("The worst case of this call is beyond any balance: lower max_tokens.",
                         code="too_expensive", param="max_tokens") from None  # fmt: skip
