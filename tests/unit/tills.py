"""Streams that are played to a settlement whose records stay here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from tests.unit.recordings import RECORDINGS
from uc_litellm_plugin import streams
from uc_litellm_plugin.call import Call, Outcome
from uc_litellm_plugin.estimates import Estimates
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.settlement import Settlement
from uc_litellm_plugin.vocabularies import Whole


class Till:
    """A settlement whose records stay here; it counts words, unless it is given something else to count with."""

    def __init__(self, whole: Whole | None = None) -> None:
        self.records: list[Record] = []
        self.settlement = Settlement(self._settle, lambda candidate, usage, *_: Decimal("0.1"))
        self.estimates = Estimates(self.settlement, whole or counting_words())

    async def _settle(self, record: Record) -> Outcome:
        await asyncio.sleep(0)
        self.records.append(record)
        return Outcome(Decimal(record["charge"]), Decimal(99))

    @property
    def record(self) -> Record:
        """The only record."""
        (record,) = self.records
        return record

    @property
    def ending(self) -> tuple[str, str | None, int]:
        """How the only record ended: action, source of the cost, status."""
        usage = self.record["usage"]
        return self.record["action"], usage.get("cost_source"), usage["status_code"]


def words(text: str) -> int:
    return len(text.split())


def counting_words() -> Whole:
    """What counts words, loaded."""
    whole = Whole(lambda: words)
    whole.count()
    return whole


def playing(call: Call, till: Till, player: Any, drain_s: float = 5) -> AsyncIterator[Any]:
    return streams.settled(call, player, till.settlement, till.estimates, drain_s, lambda: None)


async def all_of(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def all_dialects() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", [make() for make in RECORDINGS.values()], ids=RECORDINGS)


def at_every_event() -> pytest.MarkDecorator:
    """Each dialect, at each of its events."""
    made = {name: make() for name, make in RECORDINGS.items()}
    cases = [pytest.param(recording, at, id=f"{name}-{at}")
             for name, recording in made.items() for at in range(len(recording.events) + 1)]  # fmt: skip
    return pytest.mark.parametrize(("recording", "at"), cases)
