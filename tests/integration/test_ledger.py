from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from uc_litellm_plugin.call import Outcome
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseError, DatabaseUnavailable, LedgerUnavailable
from uc_litellm_plugin.ledger import Held, Ledger
from uc_litellm_plugin.outbox import Outbox, Record
from uc_litellm_plugin.settings import Settings

USER = "ann"
AWAY = DatabaseUnavailable("PostgreSQL is away in this test.")

Fetch = Callable[..., Awaitable[list[Any]]]


class Counted(Database):
    """The real database, which counts its settlements and can be told to be away."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.batches: list[int] = []
        self.away = False
        self.entered = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> list[Any]:
        if "settle_credits" in sql:
            self.batches.append(len(args[0]))
            self.entered.set()
            if self.gate is not None:
                await self.gate.wait()
        if self.away:
            raise AWAY
        return await super().fetch(sql, *args, timeout=timeout, idempotent=idempotent)

    async def fetchrow(self, sql: str, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Any:
        if self.away:
            raise AWAY
        return await super().fetchrow(sql, *args, timeout=timeout, idempotent=idempotent)


@pytest.fixture
async def database(settings: Settings) -> Any:
    """A database with 1000 credits for one user."""
    async with Counted(settings) as database:
        await database.fetch("SELECT * FROM add_user_credits($1, 1000, 'bonus')", USER)
        yield database


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox", 1_000_000)


@pytest.fixture
def ledger(database: Counted, outbox: Outbox) -> Ledger:
    return Ledger(database, outbox, 120)


async def hold(ledger: Ledger, amount: str, least: str | None = None, user: str = USER) -> tuple[UUID, Held]:
    hold_id = uuid4()
    return hold_id, await ledger.hold(hold_id, user, Decimal(amount), Decimal(least or amount), "balanced", {})


async def held(ledger: Ledger, amount: str = "1") -> UUID:
    """The id of a new hold, which must succeed."""
    hold_id, answer = await hold(ledger, amount)
    assert answer.error is None
    return hold_id


def charge(hold_id: UUID, amount: str = "0.5", **usage: Any) -> Record:
    facts = {"provider": "openai", "model": "m", "power_level": "balanced", "cost_usd": "0", "success": True, **usage}
    return {"hold_id": str(hold_id), "user_id": USER, "action": "settle", "charge": amount, "usage": facts}


def release(hold_id: UUID) -> Record:
    return {**charge(hold_id, "0"), "action": "release"}


async def balance(database: Database) -> tuple[str, str]:
    """What remains, and what of it is held."""
    row = await database.fetchrow("SELECT credits_remaining, credits_held FROM user_credits WHERE user_id = $1", USER)
    assert row is not None
    return tuple(f"{amount.normalize():f}" for amount in row)  # type: ignore[return-value]


async def quarantined(database: Database) -> list[str]:
    rows = await database.fetch("SELECT hold_id::text FROM settlement_quarantine ORDER BY id")
    return [row["hold_id"] for row in rows]


async def is_sound(database: Database) -> bool:
    return await database.fetch("SELECT * FROM ledger_audit()") == []


async def test_hold_and_settle(ledger: Ledger, database: Counted) -> None:
    """What is held leaves what is available, what is charged leaves the balance, the rest comes back."""
    hold_id, answer = await hold(ledger, "10")
    assert (answer.error, answer.amount, answer.available) == (None, Decimal(10), Decimal(990))
    assert await ledger.settle(charge(hold_id, "2.5")) == Outcome(Decimal("2.5"), Decimal("997.5"))
    assert await balance(database) == ("997.5", "0")
    assert await is_sound(database)


async def test_release_charges_nothing(ledger: Ledger, database: Counted) -> None:
    """A released hold leaves the balance as it was."""
    assert await ledger.settle(release(await held(ledger, "10"))) == Outcome(Decimal(0), Decimal(1000))
    assert await balance(database) == ("1000", "0")


async def test_a_hold_takes_what_fits(ledger: Ledger) -> None:
    """Between the least and the wanted amount, what is available is held; below the least, nothing."""
    _, answer = await hold(ledger, "5000", "900")
    assert (answer.error, answer.amount) == (None, Decimal(1000))
    _, answer = await hold(ledger, "5000", "900")
    assert (answer.error, answer.amount, answer.available) == ("insufficient_credits", 0, 0)


async def test_an_unknown_account_holds_nothing(ledger: Ledger) -> None:
    """A user without an account is told so."""
    _, answer = await hold(ledger, "1", user="nobody")
    assert (answer.error, answer.remaining) == ("unknown_account", None)


async def test_calls_at_once_do_not_overspend(ledger: Ledger, database: Counted) -> None:
    """Of twenty holds of 100 at once, the ten that fit succeed."""
    answers = await asyncio.gather(*[hold(ledger, "100") for _ in range(20)])
    assert sorted(str(answer.error) for _, answer in answers) == ["None"] * 10 + ["insufficient_credits"] * 10
    assert await balance(database) == ("1000", "1000")


async def test_settlements_travel_together(ledger: Ledger, database: Counted) -> None:
    """What arrives while a settlement is under way goes in the next statement, at most a hundred at once."""
    holds = [await held(ledger) for _ in range(151)]
    database.gate = asyncio.Event()
    settling = [asyncio.ensure_future(ledger.settle(charge(holds[0])))]
    await database.entered.wait()
    settling += [asyncio.ensure_future(ledger.settle(charge(hold_id))) for hold_id in holds[1:]]
    await asyncio.sleep(0)
    database.gate.set()
    outcomes = await asyncio.gather(*settling)
    assert database.batches == [1, 100, 50]
    assert {outcome.charged for outcome in outcomes} == {Decimal("0.5")}
    assert await balance(database) == ("924.5", "0")
    assert await is_sound(database)


async def test_settling_twice_charges_once(ledger: Ledger, database: Counted) -> None:
    """The same record again, at once or later, changes nothing and answers alike."""
    record = charge(await held(ledger))
    outcomes = await asyncio.gather(*[ledger.settle(record) for _ in range(5)])
    outcomes.append(await ledger.settle(record))
    assert {outcome.charged for outcome in outcomes} == {Decimal("0.5")}
    assert await balance(database) == ("999.5", "0")
    assert await quarantined(database) == []


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
    outcomes = await asyncio.wait_for(asyncio.gather(*map(ledger.settle, settlements)), 10)
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
async def test_what_cannot_settle_at_all_stops_nobody(
    ledger: Ledger, database: Counted, fault: dict[str, Any]
) -> None:
    """A record that PostgreSQL refuses even without its usage row lets those before and after it settle."""
    holds = [await held(ledger) for _ in range(3)]
    settlements = [charge(hold_id) for hold_id in holds]
    settlements[1] |= fault
    settling = [asyncio.ensure_future(ledger.settle(record)) for record in settlements]
    done, _ = await asyncio.wait(settling, timeout=5)
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


async def test_away_and_back(ledger: Ledger, database: Counted, outbox: Outbox) -> None:
    """While PostgreSQL is away, settlements are answered from the outbox; when it is back, a flush settles them."""
    holds = [await held(ledger) for _ in range(3)]
    database.away = True
    outcomes = await asyncio.gather(*[ledger.settle(charge(hold_id)) for hold_id in holds])
    assert outcomes == [Outcome(Decimal("0.5"), None)] * 3
    assert outbox.size() > 0
    with pytest.raises(DatabaseUnavailable):
        await ledger.flush()
    database.away = False
    assert await ledger.flush() == 3
    assert (outbox.size(), await ledger.flush()) == (0, 0)
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
        done, _ = await asyncio.wait([settling], timeout=2)
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
    assert outbox.size() > 0
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


async def test_another_worker_extends_and_expires(ledger: Ledger, database: Counted, tmp_path: Path) -> None:
    """Any worker can extend or expire holds: only lapsed ones end, and only open ones are extended."""
    other = Ledger(database, Outbox(tmp_path / "other", 1_000_000), 3600)
    live, lapsed, settled = [await held(ledger, "10") for _ in range(3)]
    await ledger.settle(charge(settled, "10"))
    assert await other.extend([live, settled, uuid4()]) == {live}
    await database.execute("UPDATE credit_holds SET expires_at = clock_timestamp() - interval '1 second' "
                           "WHERE hold_id = $1", lapsed)  # fmt: skip
    assert await other.expire() == 1
    assert await other.expire() == 0
    assert await balance(database) == ("990", "10")
    left = await database.fetchval("SELECT expires_at - clock_timestamp() > interval '50 min' FROM credit_holds "
                                   "WHERE hold_id = $1", live)  # fmt: skip
    assert left is True


async def test_a_late_settlement_still_charges(ledger: Ledger, database: Counted) -> None:
    """A call that outlives its lease is charged all the same."""
    hold_id = await held(ledger, "10")
    await database.execute("UPDATE credit_holds SET expires_at = clock_timestamp() - interval '1 second'")
    assert await ledger.expire() == 1
    assert (await ledger.settle(charge(hold_id, "4"))).remaining == Decimal(996)
    assert await is_sound(database)


async def test_more_holds_lapse_than_one_statement_ends(ledger: Ledger, database: Counted) -> None:
    """After a crash of many calls, repeated sweeps free every credit."""
    await asyncio.gather(*[held(ledger) for _ in range(130)])
    await database.execute("UPDATE credit_holds SET expires_at = clock_timestamp() - interval '1 second'")
    swept = [await ledger.expire() for _ in range(3)]
    assert (sum(swept), swept[2]) == (130, 0)
    assert await balance(database) == ("1000", "0")


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
