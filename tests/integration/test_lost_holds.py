"""Holds whose answer is lost: nobody uses their credits, so they are freed at once and not when the lease ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.postgres import Server, Wire
from tests.integration.ledgers import Counted, Loss, balance, held, hold, is_sound, release
from tests.pace import within
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import LedgerUnavailable
from uc_litellm_plugin.holds import Once
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox

ONCE = Once("key-1", "0" * 64, 24)
TIMEOUT_S = 2.0


async def lost(ledger: Ledger, once: Once | None = None) -> None:
    """A hold of 1 credit that is refused, since its answer does not come."""
    with pytest.raises(LedgerUnavailable):
        await hold(ledger, "1", once=once)


async def entries(database: Database) -> list[str]:
    rows = await database.fetch(
        "SELECT transaction_type FROM credit_transactions WHERE hold_id IS NOT NULL ORDER BY id"
    )
    return [row[0] for row in rows]


async def test_released_at_once(ledger: Ledger, database: Counted) -> None:
    """A hold that was committed but not answered is released in the background."""
    database.losing = "answer"
    await lost(ledger)
    await ledger.drain()
    assert await balance(database) == ("1000", "0")
    assert await entries(database) == ["hold", "release"]
    assert await is_sound(database)


async def test_a_hold_after_its_release(ledger: Ledger, database: Counted) -> None:
    """A hold that PostgreSQL gets to read when it was released already holds nothing."""
    database.losing = "statement"
    await lost(ledger)
    await lost(ledger, ONCE)
    await ledger.drain()
    assert [row["error"] for row in await database.arrive()] == ["already_resolved"] * 2
    assert await balance(database) == ("1000", "0")
    assert await entries(database) == ["release"] * 2
    assert await is_sound(database)


@pytest.mark.parametrize("losing", ["statement", "answer"])
async def test_its_key_is_free_again(ledger: Ledger, database: Counted, losing: Loss) -> None:
    """The Idempotency-Key of a hold that was lost is not under way for ever: the same call can be made again."""
    database.losing = losing
    await lost(ledger, ONCE)
    await ledger.drain()
    await database.arrive()
    _, answer = await hold(ledger, "1", once=ONCE)
    assert (answer.error, answer.earlier) == (None, None)
    _, answer = await hold(ledger, "1", once=ONCE)
    assert answer.error == "idempotency_in_progress"
    assert await balance(database) == ("1000", "1")


async def test_a_caller_that_does_not_wait(ledger: Ledger, database: Counted) -> None:
    """A request that is cancelled while its credits are being held leaves none held."""
    database.losing = "caller"
    holding = asyncio.ensure_future(held(ledger))
    await database.entered.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    await ledger.drain()
    assert await balance(database) == ("1000", "0")


async def test_postgres_stays_away(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """While PostgreSQL does not answer, the release waits in the outbox, also for a process that comes later."""
    database.losing = "answer"
    losing = asyncio.ensure_future(lost(ledger))
    await database.entered.wait()
    database.away = True
    await losing
    await ledger.drain()
    assert outbox.waiting().size > 0
    database.away = False
    assert await Ledger(database, outbox, 120).flush() == 1
    assert await balance(database) == ("1000", "0")


async def test_the_process_stops(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """A loop that ends before the release is settled leaves it in the outbox."""
    database.losing = "answer"
    database.gate = asyncio.Event()
    await lost(ledger)
    assert ledger._writer is not None
    await asyncio.sleep(0)
    ledger._writer.cancel()
    await asyncio.wait([ledger._writer])
    database.gate = None
    assert await Ledger(database, outbox, 120).flush() == 1
    assert await balance(database) == ("1000", "0")


async def test_an_account_that_was_never_opened(ledger: Ledger, database: Counted) -> None:
    """The release of a lost hold of nobody's needs no operator."""
    database.losing = "answer"
    with pytest.raises(LedgerUnavailable):
        await hold(ledger, "1", user="nobody")
    await ledger.drain()
    assert await database.fetch("SELECT FROM settlement_quarantine") == []


async def test_nothing_was_asked(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """Refusals while PostgreSQL cannot be reached leave nothing to be released, so that they fill no outbox."""
    database.away = True
    await lost(ledger)
    await ledger.drain()
    assert outbox.waiting().size == 0


@pytest.fixture
async def wire(doomed: Server) -> AsyncIterator[Wire]:
    async with Wire(doomed) as wire:
        yield wire


@pytest.fixture
async def wired(wire: Wire, tmp_path: Path) -> AsyncIterator[Database]:
    """The database at the other end of the wire, connected already; nobody waits for it for long."""
    settings = settings_module.load({"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": wire.url})
    hurried = settings.database.model_copy(update={"timeout_s": TIMEOUT_S})
    async with Database(settings.model_copy(update={"database": hurried})) as database:
        await asyncio.gather(*[database.fetch("SELECT pg_sleep(0.01)", timeout=10) for _ in range(3)])
        yield database


@pytest.fixture
async def calm(doomed: Server) -> AsyncIterator[Database]:
    """The same database without a wire, with the usual patience."""
    async with Database(settings_module.load({"UC_DATABASE_URL": doomed.url})) as database:
        yield database


async def test_a_connection_cut_after_the_commit(wire: Wire, wired: Database, calm: Database, outbox: Outbox) -> None:
    """When only the connection is lost, the same hold is asked for again and holds."""
    ledger = Ledger(wired, outbox, 120)
    cutting = asyncio.ensure_future(wire.cut("hold", "after"))
    await asyncio.sleep(0)
    await ledger.settle(release(await held(ledger)))
    assert await cutting
    assert await balance(calm) == ("1000", "0")


async def test_an_answer_that_stays_on_the_wire(wire: Wire, wired: Database, calm: Database, outbox: Outbox) -> None:
    """PostgreSQL has committed, and its answer does not come in time: refused, and free again."""
    ledger = Ledger(wired, outbox, 120)
    muting = asyncio.ensure_future(wire.cut("hold", "mute"))
    await asyncio.sleep(0)
    await lost(ledger)
    assert await muting
    await ledger.drain()
    await Ledger(calm, outbox, 120).flush()
    assert await balance(calm) == ("1000", "0")
    assert await is_sound(calm)


async def test_a_frozen_postgres(doomed: Server, wired: Database, calm: Database, outbox: Outbox) -> None:
    """Holds that PostgreSQL reads only when nobody waits for them any more hold nothing for long."""
    ledger = Ledger(wired, outbox, 120)
    with doomed.frozen():
        async with within(TIMEOUT_S + 0.5):
            await asyncio.gather(*[lost(ledger) for _ in range(3)])
        await ledger.drain()
    assert await Ledger(calm, outbox, 120).flush() == 3
    assert await balance(calm) == ("1000", "0")
    assert await is_sound(calm)
