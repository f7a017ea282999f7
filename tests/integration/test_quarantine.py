from __future__ import annotations

import asyncio
import gc
import json
from decimal import Decimal
from typing import Any

import pytest

from tests.integration.ledgers import AWAY, USER, Counted, balance, charge, held, is_sound, quarantined
from uc_litellm_plugin import requests
from uc_litellm_plugin.errors import DatabaseError
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox


async def test_another_charge_for_the_same_hold_is_kept(ledger: Ledger, database: Counted) -> None:
    """The first charge stands; a different one for the same hold waits for an operator."""
    hold_id = await held(ledger)
    await ledger.settle(charge(hold_id))
    assert (await ledger.settle(charge(hold_id, "0.7"))).charged == Decimal("0.5")
    assert await quarantined(database) == [str(hold_id)]
    assert await balance(database) == ("999.5", "0")


POISON = {
    "NUL": {"session_id": "a\0b"},
    "surrogate": {"app_id": "\ud800"},
    "overflow": {"prompt_tokens": 10**12},
    "negative": {"completion_tokens": -1},
    "no number": {"latency_ms": "soon"},
    "NaN": {"tokens_per_second": float("nan")},
    "no address": {"ip_address": "nowhere"},
    "no object": {"metadata": "text"},
}


@pytest.mark.parametrize("usage", POISON.values(), ids=POISON)
async def test_a_poisonous_row_stops_nobody(ledger: Ledger, database: Counted, usage: dict[str, Any]) -> None:
    """A usage row that PostgreSQL refuses is kept for an operator; its charge and all the others settle."""
    holds = [await held(ledger) for _ in range(5)]
    settlements = [charge(hold_id, **(usage if number == 2 else {})) for number, hold_id in enumerate(holds)]
    outcomes = await asyncio.wait_for(asyncio.gather(*map(ledger.settle, settlements)), 60)
    assert [outcome.charged for outcome in outcomes] == [Decimal("0.5")] * 5
    assert await balance(database) == ("997.5", "0")
    assert await quarantined(database) in ([], [str(holds[2])])
    assert await is_sound(database)


async def test_the_original_of_a_poisonous_row_is_kept(ledger: Ledger, database: Counted) -> None:
    """The quarantined record is the whole original, as JSON, with the reason."""
    record = charge(await held(ledger), session_id="a\0b")
    await ledger.settle(record)
    row = await database.fetchrow("SELECT user_id, record, error FROM settlement_quarantine")
    assert row is not None
    assert (row["user_id"], json.loads(row["record"])) == (USER, record)
    assert "PostgreSQL" in row["error"]


UNSETTLED = {"no hold id": {"hold_id": "none"}, "NUL in the user": {"user_id": "a\0b"}, "no amount": {"charge": "much"}}


@pytest.mark.parametrize("fault", UNSETTLED.values(), ids=UNSETTLED)
async def test_what_cannot_settle_at_all_stops_nobody(ledger: Ledger, database: Counted, fault: dict[str, Any]) -> None:
    """A record that PostgreSQL refuses even without its usage row lets those before and after it settle."""
    holds = [await held(ledger) for _ in range(3)]
    settlements = [charge(hold_id) for hold_id in holds]
    settlements[1] |= fault
    settling = [asyncio.ensure_future(ledger.settle(record)) for record in settlements]
    done, _ = await asyncio.wait(settling, timeout=60)
    assert {settling[0], settling[2]} <= done
    assert (await balance(database))[0] == "999"
    await ledger.flush()
    assert (await balance(database))[0] == "999"


@pytest.mark.parametrize("fault", UNSETTLED.values(), ids=UNSETTLED)
async def test_an_outbox_with_such_a_record_empties(
    ledger: Ledger, database: Counted, outbox: Outbox, fault: dict[str, Any]
) -> None:
    """In the outbox, too, such a record stops nobody, and the quarantine does not grow with each flush."""
    holds = [await held(ledger) for _ in range(3)]
    settlements = [charge(hold_id) for hold_id in holds]
    settlements[1] |= fault
    outbox.append(settlements)
    for _ in range(3):
        try:
            await ledger.flush()
        finally:
            gc.collect()
    assert (await balance(database))[0] == "999"
    assert len(await quarantined(database)) <= 1


async def test_the_quarantine_survives_a_lost_answer(
    ledger: Ledger, database: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If PostgreSQL goes away between quarantine and settlement, the record settles by the outbox."""
    record = charge(await held(ledger), session_id="a\0b")
    fetchrow = database.fetchrow

    async def lost(sql: str, *args: Any, **options: Any) -> Any:
        if "settle_credits" in sql:
            monkeypatch.undo()
            raise AWAY
        return await fetchrow(sql, *args, **options)

    monkeypatch.setattr(database, "fetchrow", lost)
    assert (await ledger.settle(record)).remaining is None
    try:
        await ledger.flush()
    except DatabaseError:
        await ledger.flush()
    assert await balance(database) == ("999.5", "0")


async def test_a_cleaned_name_poisons_nothing(ledger: Ledger, database: Counted) -> None:
    """Of all characters there are, PostgreSQL takes every one that is left in a client's own names."""
    every = "".join(map(chr, range(0x110000)))
    cleaned = [requests.clean(every[start : start + 255], 255) for start in range(0, len(every), 255)]
    names = [name for name in cleaned if name]
    assert await database.fetchval("SELECT $1::text[]", names) == names
    await ledger.settle(charge(await held(ledger), metadata={"names": names[:1000]}, session_id=names[5]))
    assert await quarantined(database) == []
