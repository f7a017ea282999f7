"""Holds: setting credits aside, refusing, extending, expiring."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest

from tests.schema.ledger import Connection, Ledger, plain, settlement

PAST = timedelta(seconds=-1)


async def test_hold(ledger: Ledger) -> None:
    """A hold sets credits aside, with a ledger row and a lease by the database's clock."""
    await ledger.add("ann", "10")
    hold = uuid.uuid4()
    answer = await ledger.hold("ann", "4", hold=hold)
    assert dict(answer) == {
        "success": True, "error": None, "duplicate": False, "held": 4, "credits_remaining": 10, "credits_held": 4,
        "credits_available": 6, "credits_debt": 0, "credits_cap_room": None,
    }  # fmt: skip
    lease = await ledger.connection.fetchrow(
        "SELECT *, expires_at - clock_timestamp() AS left FROM credit_holds WHERE hold_id = $1", hold
    )
    assert lease is not None
    assert (lease["user_id"], lease["amount"]) == ("ann", 4)
    assert timedelta(seconds=100) < lease["left"] <= timedelta(seconds=120)
    assert await ledger.types("ann") == ["bonus", "hold"]
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    ("amount", "minimum", "available", "held"),
    [("8", "2", "10", "8"), ("8", "2", "5", "5"), ("8", "5", "5", "5"), ("8", "8", "8", "8"), ("8", "0", "0", "0")],
)
async def test_hold_takes_what_fits(ledger: Ledger, amount: str, minimum: str, available: str, held: str) -> None:
    """A hold is as large as asked or as what is available, while that is at least the minimum."""
    await ledger.add("ann", "20")
    await ledger.debit("ann", str(20 - Decimal(available)))
    answer = await ledger.hold("ann", amount, minimum)
    assert (answer["success"], plain(answer["held"])) == (True, held)


async def test_hold_below_the_minimum(ledger: Ledger) -> None:
    """Less available than the minimum is a refusal that tells the balances and changes nothing."""
    await ledger.add("ann", "5")
    await ledger.held("ann", "1")
    before = await ledger.fingerprint()
    answer = await ledger.hold("ann", "8", "4.000001")
    assert (answer["success"], answer["error"], answer["held"]) == (False, "insufficient_credits", 0)
    assert (answer["credits_remaining"], answer["credits_held"], answer["credits_available"]) == (5, 1, 4)
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize(
    ("amount", "minimum"),
    [("-1", "-1"), ("NaN", "0"), ("1", "NaN"), ("Infinity", "0"), ("1", "2"), ("0.0000001", "0"), ("1e14", "0")],
)
async def test_impossible_amounts(ledger: Ledger, amount: str, minimum: str) -> None:
    """An amount that credits cannot hold is refused."""
    await ledger.add("ann", "5")
    before = await ledger.fingerprint()
    assert (await ledger.hold("ann", amount, minimum))["error"] == "invalid_amount"
    assert await ledger.fingerprint() == before


async def test_unknown_account(ledger: Ledger) -> None:
    """Who has no account holds nothing, and there is no balance to tell."""
    answer = await ledger.hold("nobody", "1")
    assert (answer["success"], answer["error"], answer["credits_remaining"]) == (False, "unknown_account", None)


@pytest.mark.parametrize("status", ["suspended", "closed"])
@pytest.mark.parametrize("amount", ["1", "0"])
async def test_account_status(ledger: Ledger, status: str, amount: str) -> None:
    """A suspended or closed account gets no hold, not even one of nothing, but ends the ones it has."""
    await ledger.add("ann", "5")
    hold = await ledger.held("ann", "1")
    await ledger.connection.execute("UPDATE user_credits SET status = $1", status)
    assert (await ledger.hold("ann", amount))["error"] == f"account_{status}"
    assert [row["outcome"] for row in await ledger.settle(settlement(hold, "ann", "1"))] == ["settled"]


async def test_debt_blocks_holds(ledger: Ledger) -> None:
    """An account in debt gets no hold, except one of nothing."""
    await ledger.add("ann", "1")
    await ledger.add("ann", "-2", "refund")
    assert (await ledger.hold("ann", "1", "0"))["error"] == "in_debt"
    assert (await ledger.hold("ann", "0"))["success"]
    assert await ledger.audit() == []


@pytest.mark.usefixtures("one_day")
async def test_monthly_cap(ledger: Ledger) -> None:
    """What is spent this month, held and asked for stays within the cap; the room left is told."""
    await ledger.add("ann", "100")
    await ledger.connection.execute("UPDATE user_credits SET monthly_cap = 10")
    await ledger.debit("ann", "3")
    await ledger.held("ann", "2")
    refused = await ledger.hold("ann", "6")
    assert (refused["error"], refused["credits_cap_room"]) == ("monthly_cap", 5)
    lowered = await ledger.hold("ann", "6", "1")
    assert (lowered["success"], lowered["held"]) == (True, 5)
    assert (await ledger.hold("ann", "1", "0.000001"))["error"] == "monthly_cap"
    assert (await ledger.hold("ann", "0"))["success"]


@pytest.mark.usefixtures("one_day")
async def test_month_rolls(ledger: Ledger) -> None:
    """The first hold of a month finds the whole cap free, and writes the new month down."""
    await ledger.add("ann", "100")
    await ledger.connection.execute(
        "UPDATE user_credits SET monthly_cap = 10, spent_this_month = 10, last_reset = last_reset - interval '1 month'"
    )
    assert (await ledger.hold("ann", "11"))["error"] == "monthly_cap"
    assert plain((await ledger.account("ann"))["spent_this_month"]) == "10"
    await ledger.held("ann", "10")
    account = await ledger.account("ann")
    assert plain(account["spent_this_month"]) == "0"
    assert (account["last_reset"].day, account["last_reset"].hour) == (1, 0)


@pytest.mark.usefixtures("one_day")
async def test_month_rolls_in_settlements(ledger: Ledger) -> None:
    """A charge counts in the month it is settled in."""
    await ledger.add("ann", "100")
    hold = await ledger.held("ann", "10")
    await ledger.connection.execute(
        "UPDATE user_credits SET spent_this_month = 50, last_reset = last_reset - interval '1 month'"
    )
    await ledger.settle(settlement(hold, "ann", "3"), settlement(uuid.uuid4(), "ann", "4"))
    assert plain((await ledger.account("ann"))["spent_this_month"]) == "7"


async def test_same_hold_again(ledger: Ledger) -> None:
    """The same hold again is a duplicate with the same answer; other amounts or another account are a conflict."""
    await ledger.add("ann", "10")
    await ledger.add("bob", "10")
    hold = uuid.uuid4()
    await ledger.hold("ann", "40", "5", hold=hold)
    before = await ledger.fingerprint()
    again = await ledger.hold("ann", "40", "5", hold=hold)
    assert (again["success"], again["duplicate"], again["held"]) == (True, True, 10)
    for user, amount, minimum in (("ann", "41", "5"), ("ann", "40", "4"), ("bob", "40", "5")):
        answer = await ledger.hold(user, amount, minimum, hold=hold)
        assert (answer["success"], answer["error"]) == (False, "idempotency_conflict")
    assert await ledger.fingerprint() == before


async def test_ended_hold_again(ledger: Ledger) -> None:
    """A hold that was settled, released or expired, or charged before it arrived, is not opened again."""
    await ledger.add("ann", "10")
    settled, released, expired = [await ledger.held("ann", "1", ttl=PAST) for _ in range(3)]
    late = uuid.uuid4()
    await ledger.settle(settlement(settled, "ann", "1"), settlement(late, "ann", "1"))
    await ledger.release(released, "ann")
    await ledger.connection.execute("SELECT expire_holds()")
    for hold in (settled, released, expired, late):
        answer = await ledger.hold("ann", "1", hold=hold)
        assert (answer["success"], answer["error"]) == (False, "already_resolved")


async def test_extend(ledger: Ledger) -> None:
    """Open leases are extended by the database's clock, ended ones are not returned."""
    await ledger.add("ann", "10")
    live, ended = await ledger.held("ann", "1", ttl=PAST), await ledger.held("ann", "1")
    await ledger.release(ended, "ann")
    rows = await ledger.connection.fetch("SELECT * FROM extend_holds($1, '60 s')", [live, ended, uuid.uuid4()])
    assert [row["hold_id"] for row in rows] == [live]
    assert await ledger.connection.fetch("SELECT * FROM expire_holds()") == []


async def test_expire(ledger: Ledger) -> None:
    """Lapsed holds are freed, open ones stay, no usage row is written."""
    await ledger.add("ann", "10")
    await ledger.add("bob", "10")
    lapsed = {await ledger.held("ann", "1", ttl=PAST), await ledger.held("ann", "2", ttl=PAST)}
    lapsed.add(await ledger.held("bob", "4", ttl=PAST))
    await ledger.held("bob", "5")
    rows = await ledger.connection.fetch("SELECT * FROM expire_holds()")
    assert {row["hold_id"] for row in rows} == lapsed
    assert {(row["user_id"], row["amount"]) for row in rows} == {("ann", 1), ("ann", 2), ("bob", 4)}
    assert await ledger.balances("ann") == ("10", "0", "0")
    assert await ledger.balances("bob") == ("10", "5", "0")
    assert await ledger.connection.fetchval("SELECT count(*) FROM llm_usage_log") == 0
    assert await ledger.audit() == []


async def test_expire_in_portions(ledger: Ledger) -> None:
    """At most as many as asked are freed, the longest lapsed first."""
    await ledger.add("ann", "10")
    older = await ledger.held("ann", "1", ttl=timedelta(hours=-1))
    newer = await ledger.held("ann", "1", ttl=PAST)
    for expected in ([older], [newer], []):
        rows = await ledger.connection.fetch("SELECT * FROM expire_holds(1)")
        assert [row["hold_id"] for row in rows] == expected


async def test_expiry_pays_debt(ledger: Ledger) -> None:
    """What an expiry frees pays debt before it becomes available."""
    await ledger.add("ann", "10")
    await ledger.held("ann", "6", ttl=PAST)
    await ledger.add("ann", "-9", "refund")
    assert await ledger.balances("ann") == ("6", "6", "5")
    await ledger.connection.execute("SELECT expire_holds()")
    assert await ledger.balances("ann") == ("1", "0", "0")
    assert await ledger.audit() == []


async def test_load_caller(db: Connection) -> None:
    """An API key's hash leads to the key and its account; touching keys is noted."""
    await db.execute("SELECT create_account('ann', 'professional', 'precision')")
    key = await db.fetchval(
        "INSERT INTO user_api_keys (user_id, key_hash, name, role) VALUES ('ann', $1, 'laptop', "
        "'service') RETURNING id",
        "a" * 64,
    )
    row = await db.fetchrow("SELECT * FROM load_caller($1)", "a" * 64)
    assert tuple(row or ()) == (
        key, "ann", "service", "laptop", True, None, "professional", "precision", "active", None,
        False,
    )  # fmt: skip
    assert await db.fetch("SELECT * FROM load_caller($1)", "b" * 64) == []
    await db.execute("SELECT touch_api_keys($1)", [key, uuid.uuid4()])
    assert await db.fetchval("SELECT last_used > created_at FROM user_api_keys")
