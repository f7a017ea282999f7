"""Answers that are charged by our own count, where the provider's never came."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from . import answers
from .answers import Usage
from .call import Answer, Call, Outcome
from .settlement import Settlement
from .vocabularies import Whole


@dataclass(frozen=True)
class Estimate:
    """What was delivered, still to be counted.

    Attributes
    ----------
    wrote
        The text of the answer.
    known
        What the provider reported of its usage; its counts stay.
    least_output
        Output tokens that are charged whatever the text is.
    status, error_type, error_message, service_tier
        As an `Answer` has them.
    """

    wrote: str = ""
    known: Usage | None = None
    least_output: int = 0
    status: int = 200
    error_type: str | None = None
    error_message: str | None = None
    service_tier: str | None = None


class Estimates:
    """Counts and charges.

    Parameters
    ----------
    settlement
        Charges.
    whole
        Counts.
    """

    def __init__(self, settlement: Settlement, whole: Whole) -> None:
        self._settlement = settlement
        self._whole = whole

    async def charge(self, call: Call, estimate: Estimate) -> Outcome:
        """Charge what was delivered by what it counts; every caller waits for the same outcome, the first one's."""
        if call.ending is None:
            texts = call.demand.text, estimate.wrote
            if self._whole.is_quick(*texts):
                return await self._settlement.charge(call, _answer(call, estimate, *self._whole.count(*texts)))
            # Set before the first await, so that a second hook finds it, and a task of its own, so that the client's
            # leaving does not cancel it.
            call.ending = asyncio.ensure_future(self._count_and_charge(call, estimate))
        return await asyncio.shield(call.ending)

    async def _count_and_charge(self, call: Call, estimate: Estimate) -> Outcome:
        try:
            counts = await self._whole.count_aside(call.demand.text, estimate.wrote)
        finally:
            # The settlement sets its own before anybody else has a turn.
            call.ending = None
        return await self._settlement.charge(call, _answer(call, estimate, *counts))


def _answer(call: Call, estimate: Estimate, read: int, wrote: int) -> Answer:
    usage = answers.estimated(
        call.endpoint.dialect, call.estimated_input(read), max(wrote, estimate.least_output), estimate.known
    )
    return Answer(
        usage, "estimate", estimate.status, estimate.error_type, estimate.error_message, estimate.service_tier
    )
