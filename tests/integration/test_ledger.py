from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from tests.integration.ledgers import Counted, balance, charge, held, hold, is_sound, quarantined, release
from uc_litellm_plugin.call import Outcome
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox


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
    assert (answer.error, answer.amount, answer.available) == ("insufficient_credits", Decimal(0), Decimal(0))


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
