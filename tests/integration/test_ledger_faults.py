from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.ledgers import Counted, balance, charge, held, hold, is_sound
from uc_litellm_plugin.call import Outcome
from uc_litellm_plugin.errors import DatabaseUnavailable, LedgerUnavailable
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox


async def test_away_and_back(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """While PostgreSQL is away, settlements are answered from the outbox; when it is back, a flush settles them."""
    holds = [await held(ledger) for _ in range(3)]
    database.away = True
    outcomes = await asyncio.gather(*[ledger.settle(charge(hold_id)) for hold_id in holds])
    assert outcomes == [Outcome(Decimal("0.5"), None)] * 3
    assert outbox.waiting().size > 0
    with pytest.raises(DatabaseUnavailable):
        await ledger.flush()
    database.away = False
    assert await ledger.flush() == 3
    assert (outbox.waiting().size, await ledger.flush()) == (0, 0)
    assert await balance(database) == ("998.5", "0")
    assert await is_sound(database)


async def test_a_failed_flush_keeps_no_lock(ledger: Ledger, database: Counted, outbox: Outbox, tmp_path: Path) -> None:
    """After a flush that failed, another process can take over every segment at once."""
    dead = Outbox(tmp_path / "outbox", 1_000_000)
    dead.append([charge(await held(ledger))])
    (segment,) = dead.claim()
    segment.release()
    outbox.append([charge(await held(ledger))])
    database.away = True
    with pytest.raises(DatabaseUnavailable) as caught:
        await ledger.flush()
    heirs = list(Outbox(tmp_path / "outbox", 1_000_000).claim())
    assert len(heirs) == 2, caught
    for heir in heirs:
        heir.release()


async def test_a_hold_while_away_is_refused(ledger: Ledger, database: Counted) -> None:
    """Without PostgreSQL nothing is held, and the refusal tells to come again."""
    database.away = True
    with pytest.raises(LedgerUnavailable) as caught:
        await hold(ledger, "1")
    assert caught.value.headers["retry-after"] == "1"


async def test_a_cancelled_caller_still_settles(ledger: Ledger, database: Counted) -> None:
    """A client that leaves while its call is settled does not stop the settlement."""
    hold_id = await held(ledger)
    database.gate = asyncio.Event()
    settling = asyncio.ensure_future(ledger.settle(charge(hold_id)))
    await database.entered.wait()
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    database.gate.set()
    await ledger.drain()
    assert await balance(database) == ("999.5", "0")


async def test_a_loop_that_ends_writes_everything_down(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """When the writer is cancelled, what is under way and what waits behind it is in the outbox, and settles later."""
    holds = [await held(ledger) for _ in range(150)]
    database.gate = asyncio.Event()
    settling = [asyncio.ensure_future(ledger.settle(charge(hold_id))) for hold_id in holds]
    await database.entered.wait()
    assert ledger._writer is not None
    ledger._writer.cancel()
    await asyncio.wait([ledger._writer])
    database.gate = None
    for each in settling:
        each.cancel()
    assert await Ledger(database, outbox, 120).flush() == 150
    assert await balance(database) == ("925", "0")


async def test_a_fault_in_the_writer_leaves_nobody_waiting(
    ledger: Ledger, outbox: Outbox, database: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in writing, every caller hears of it, and the next settlement goes through."""
    holds = [await held(ledger) for _ in range(2)]
    database.away = True

    def fail(records: object) -> None:
        raise ValueError("write to closed file")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "append", fail)
        settling = asyncio.ensure_future(ledger.settle(charge(holds[0])))
        done, _ = await asyncio.wait([settling], timeout=60)
    assert done == {settling}
    settling.exception()
    database.away = False
    assert (await ledger.settle(charge(holds[1]))).charged == Decimal("0.5")


async def test_stranded_settlements_stop_new_holds(
    ledger: Ledger, database: Counted, outbox: Outbox, tmp_path: Path
) -> None:
    """When neither PostgreSQL nor the outbox takes a settlement, no new call begins until it is on disk."""
    hold_id = await held(ledger)
    database.away = True
    (tmp_path / "outbox").write_text("in the way")
    assert (await ledger.settle(charge(hold_id))).remaining is None
    with pytest.raises(LedgerUnavailable):
        await hold(ledger, "1")
    (tmp_path / "outbox").unlink()
    with pytest.raises(DatabaseUnavailable):
        await ledger.flush()
    assert outbox.waiting().size > 0
    database.away = False
    await held(ledger)
    assert await ledger.flush() == 1
    assert (await balance(database))[0] == "999.5"


async def test_stranded_settlements_need_no_outbox(ledger: Ledger, database: Counted, tmp_path: Path) -> None:
    """When PostgreSQL is back before the outbox is mended, what was kept in memory settles there."""
    hold_id = await held(ledger)
    database.away = True
    (tmp_path / "outbox").write_text("in the way")
    await ledger.settle(charge(hold_id))
    database.away = False
    try:
        await ledger.flush()
    except OSError:
        await ledger.flush()
    assert (await balance(database))[0] == "999.5"


async def test_a_full_outbox_refuses_new_holds(database: Counted, outbox: Outbox, tmp_path: Path) -> None:
    """While the outbox is full or cannot be written nothing new is held, since its settlement might find no place."""
    full = Outbox(tmp_path / "full", 10)
    full.append([charge(uuid4())])
    ledger = Ledger(database, full, 120)
    await ledger.check_outbox()
    with pytest.raises(LedgerUnavailable):
        await hold(ledger, "1")
    await ledger.flush()
    await ledger.check_outbox()
    await held(ledger)
