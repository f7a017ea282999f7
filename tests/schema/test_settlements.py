"""Settling and releasing: every transition of a hold, one at a time and in batches."""

from __future__ import annotations

import random
import uuid
from datetime import timedelta
from decimal import Decimal

import asyncpg
import pytest

from tests.schema.ledger import Ledger, plain, release, settlement

USAGE = {
    "provider": "openai",
    "model": "gpt-4o-mini",
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "cost_usd": "0.000123456789",
}


async def outcome(ledger: Ledger, *items: dict[str, object]) -> list[str]:
    return [row["outcome"] for row in await ledger.settle(*items)]


async def test_settle(ledger: Ledger) -> None:
    """A settlement frees the hold, charges the true cost, and writes ledger row and usage row."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    rows = await ledger.settle(settlement(hold, "ann", "1.5", **USAGE))
    assert [dict(row) for row in rows] == [
        {
            "hold_id": hold, "outcome": "settled", "charged": Decimal("1.5"), "debt_added": 0,
            "credits_remaining": Decimal("8.5"), "credits_held": 0, "credits_available": Decimal("8.5"),
            "credits_debt": 0,
        }
    ]  # fmt: skip
    debit = await ledger.connection.fetchrow("SELECT * FROM credit_transactions WHERE transaction_type = 'debit'")
    assert debit is not None
    assert (debit["amount"], debit["held_delta"], debit["hold_id"], debit["ends_hold"]) == (
        Decimal("-1.5"),
        -4,
        hold,
        True,
    )
    assert (debit["provider"], debit["prompt_tokens"], debit["request_id"]) == ("openai", 7, str(hold))
    usage = await ledger.usage(hold)
    assert (usage["cost_credits"], usage["total_tokens"], usage["success"]) == (Decimal("1.5"), 12, True)
    assert usage["cost_usd"] == Decimal("0.000123456789")
    account = await ledger.account("ann")
    assert (account["credits_spent"], account["spent_this_month"]) == (Decimal("1.5"), Decimal("1.5"))
    assert await ledger.connection.fetchval("SELECT count(*) FROM credit_holds") == 0
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    ("balance", "held", "charge", "left"),
    [
        ("10", "4", "4", ("6", "0", "0")),
        ("10", "4", "0", ("10", "0", "0")),
        ("10", "4", "9", ("1", "0", "0")),
        ("10", "4", "10", ("0", "0", "0")),
        ("10", "4", "10.000001", ("0", "0", "0.000001")),
        ("10", "0", "3", ("7", "0", "0")),
    ],
)
async def test_charge_against_the_hold(
    ledger: Ledger, balance: str, held: str, charge: str, left: tuple[str, str, str]
) -> None:
    """The true cost is charged in full: from the hold, then from what is available, the rest becomes debt."""
    await ledger.add("ann", balance)
    hold = await ledger.held("ann", held)
    assert await outcome(ledger, settlement(hold, "ann", charge)) == ["settled"]
    assert await ledger.balances("ann") == left
    assert await ledger.audit() == []


async def test_charge_leaves_other_holds_alone(ledger: Ledger) -> None:
    """A charge beyond its hold never takes what other calls hold."""
    await ledger.add("ann", "10")
    hold, other = await ledger.held("ann", "4"), await ledger.held("ann", "5")
    rows = await ledger.settle(settlement(hold, "ann", "7"))
    assert [(row["debt_added"], row["credits_remaining"], row["credits_held"]) for row in rows] == [(2, 5, 5)]
    assert await outcome(ledger, settlement(other, "ann", "1")) == ["settled"]
    assert await ledger.balances("ann") == ("2", "0", "0")
    assert await ledger.audit() == []


async def test_settled_twice(ledger: Ledger) -> None:
    """The same settlement again does nothing; another amount is a conflict that names the first."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    await ledger.settle(settlement(hold, "ann", "1", **USAGE))
    before = await ledger.fingerprint()
    again, other = await ledger.settle(settlement(hold, "ann", "1.00"), settlement(hold, "ann", "2"))
    assert (again["outcome"], again["charged"], again["credits_remaining"]) == ("duplicate", 1, 9)
    assert (other["outcome"], other["charged"], other["credits_remaining"]) == ("conflict", 1, 9)
    assert await outcome(ledger, release(hold, "ann", **USAGE)) == ["duplicate"]
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize("end", ["expired", "released", "never held"])
async def test_late_settlement(ledger: Ledger, end: str) -> None:
    """A settlement whose hold is gone or never came still charges, once, and says that it was late."""
    await ledger.add("ann", "10")
    hold = uuid.uuid4()
    if end != "never held":
        await ledger.hold("ann", "4", hold=hold, ttl=timedelta(seconds=-1))
    if end == "expired":
        await ledger.connection.execute("SELECT expire_holds()")
    if end == "released":
        await ledger.settle(release(hold, "ann", model="m", error_type="timeout"))
    assert await outcome(ledger, *[settlement(hold, "ann", "3", **USAGE)] * 2) == ["late_settled", "duplicate"]
    assert await ledger.balances("ann") == ("7", "0", "0")
    late = await ledger.connection.fetchrow("SELECT * FROM credit_transactions WHERE transaction_type = 'debit'")
    assert late is not None
    assert (late["metadata"], late["ends_hold"], late["held_delta"]) == ('{"late": true}', False, 0)
    usage = await ledger.usage(hold)
    assert (usage["cost_credits"], usage["success"], usage["model"], usage["error_type"]) == (
        3,
        True,
        "gpt-4o-mini",
        None,
    )
    assert await ledger.audit() == []


async def test_late_settlement_beyond_the_balance(ledger: Ledger) -> None:
    """What a late charge cannot find becomes debt, on top of the debt there is."""
    await ledger.add("ann", "1")
    rows = await ledger.settle(settlement(uuid.uuid4(), "ann", "3"), settlement(uuid.uuid4(), "ann", "4"))
    assert [(plain(row["debt_added"]), plain(row["credits_debt"])) for row in rows] == [("2", "2"), ("4", "6")]
    assert await ledger.audit() == []


async def test_release(ledger: Ledger) -> None:
    """A release frees all of the hold and writes a failed usage row that costs nothing."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    rows = await ledger.settle(
        release(hold, "ann", provider="openai", error_type="timeout", success=True, status_code=504)
    )
    assert [(row["outcome"], row["credits_available"]) for row in rows] == [("released", 10)]
    usage = await ledger.usage(hold)
    assert (usage["success"], usage["cost_credits"], usage["status_code"]) == (False, 0, 504)
    assert await ledger.types("ann") == ["bonus", "hold", "release"]
    assert await ledger.audit() == []


async def test_release_without_usage(ledger: Ledger) -> None:
    """A release that has nothing to say about the call writes no usage row."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    assert (await ledger.release(hold, "ann", "operator"))["outcome"] == "released"
    notes = "SELECT notes FROM credit_transactions WHERE transaction_type = 'release'"
    assert await ledger.connection.fetchval(notes) == "operator"
    assert await ledger.connection.fetchval("SELECT count(*) FROM llm_usage_log") == 0


async def test_release_before_its_hold(ledger: Ledger) -> None:
    """A hold that arrives after its release holds nothing; a second release changes nothing and is not heard."""
    await ledger.add("ann", "10")
    lost = uuid.uuid4()
    assert await outcome(ledger, release(lost, "ann", error_type="first")) == ["released"]
    assert await outcome(ledger, release(lost, "ann", error_type="second")) == ["duplicate"]
    assert (await ledger.usage(lost))["error_type"] == "first"
    assert (await ledger.hold("ann", "4", hold=lost))["error"] == "already_resolved"
    assert await ledger.types("ann") == ["bonus", "release"]
    assert await ledger.balances("ann") == ("10", "0", "0")
    assert await ledger.audit() == []


async def test_release_of_a_call_that_was_charged(ledger: Ledger) -> None:
    """A release after a settlement that had no hold changes nothing."""
    await ledger.add("ann", "10")
    hold = uuid.uuid4()
    await ledger.settle(settlement(hold, "ann", "1"))
    before = await ledger.fingerprint()
    assert await outcome(ledger, release(hold, "ann")) == ["duplicate"]
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize("charge", ["-1", "NaN", "Infinity", "abc", "", "1.0000001", "100000000000000", "1e99", None])
async def test_impossible_charges(ledger: Ledger, charge: str | None) -> None:
    """A charge that is no amount is refused and leaves the hold open, beside others that are settled."""
    await ledger.add("ann", "10")
    bad, good = await ledger.held("ann", "4"), await ledger.held("ann", "1")
    item = settlement(bad, "ann", "0") | {"charge": charge}
    assert await outcome(ledger, item, settlement(good, "ann", "1")) == ["invalid_amount", "settled"]
    assert await ledger.balances("ann") == ("9", "4", "0")
    assert await ledger.audit() == []


async def test_charges_beyond_counting(ledger: Ledger) -> None:
    """Charges whose sum credits_spent could not hold are refused as amounts, not by an overflow."""
    await ledger.add("ann", "10")
    items = [settlement(uuid.uuid4(), "ann", "60000000000000") for _ in range(2)]
    assert await outcome(ledger, *items) == ["late_settled", "invalid_amount"]
    assert await ledger.audit() == []


async def test_charges_as_numbers(ledger: Ledger) -> None:
    """A charge may come as a JSON number or in scientific notation."""
    await ledger.add("ann", "10")
    items = [settlement(uuid.uuid4(), "ann", "0") | {"charge": charge} for charge in (1.5, "1E-6", "2e0", 0)]
    rows = await ledger.settle(*items)
    assert [plain(row["charged"]) for row in rows] == ["1.5", "0.000001", "2", "0"]


async def test_unknown_account(ledger: Ledger) -> None:
    """Who has no account is charged nothing, and the others of the batch are settled."""
    await ledger.add("ann", "10")
    rows = await ledger.settle(settlement(uuid.uuid4(), "nobody", "1"), settlement(uuid.uuid4(), "ann", "1"))
    assert [(row["outcome"], row["credits_remaining"]) for row in rows] == [
        ("unknown_account", None),
        ("late_settled", 9),
    ]
    assert (rows[0]["charged"], rows[0]["credits_debt"]) == (None, None)


async def test_hold_of_another_account(ledger: Ledger) -> None:
    """Nobody ends or pays another account's hold."""
    await ledger.add("ann", "10")
    await ledger.add("bob", "10")
    hold = await ledger.held("ann", "4")
    before = await ledger.fingerprint()
    assert await outcome(ledger, settlement(hold, "bob", "1"), release(hold, "bob", **USAGE)) == [
        "conflict",
        "conflict",
    ]
    assert await ledger.fingerprint() == before


async def test_unknown_action_is_a_bug(ledger: Ledger) -> None:
    """An action that does not exist raises, with the ones that do."""
    await ledger.add("ann", "1")
    with pytest.raises(asyncpg.RaiseError, match='"refund"') as error:
        await ledger.settle(settlement(uuid.uuid4(), "ann", "1") | {"action": "refund"})
    assert "release" in str(error.value.hint)


async def test_empty_batch(ledger: Ledger) -> None:
    """Nothing to settle is settled."""
    assert await ledger.settle() == []


async def test_order_within_a_batch(ledger: Ledger) -> None:
    """Answers and charges keep the order of the input, also where a hold comes more than once."""
    await ledger.add("ann", "3")
    await ledger.add("bob", "1")
    hold, other = await ledger.held("ann", "2"), await ledger.held("bob", "1")
    rows = await ledger.settle(
        settlement(hold, "ann", "2"),
        release(other, "bob"),
        settlement(hold, "ann", "3"),
        settlement(other, "bob", "5"),
        settlement(uuid.uuid4(), "ann", "2"),
        settlement(hold, "ann", "2"),
    )
    assert [(row["outcome"], plain(row["debt_added"]), plain(row["credits_remaining"])) for row in rows] == [
        ("settled", "0", "1"), ("released", "0", "1"), ("conflict", "0", "1"), ("late_settled", "4", "0"),
        ("late_settled", "1", "0"), ("duplicate", "0", "0"),
    ]  # fmt: skip
    assert await ledger.audit() == []


async def test_usage_is_tolerant(ledger: Ledger) -> None:
    """Unknown fields are ignored, missing ones take their defaults, and identities in the usage do not count."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    forged = {"id": 7, "user_id": "bob", "request_id": "x", "cost_credits": "9", "hold_id": str(uuid.uuid4()), "new": 1}
    await ledger.settle(settlement(hold, "ann", "1", **forged))
    usage = await ledger.usage(hold)
    assert (usage["user_id"], usage["hold_id"], usage["cost_credits"]) == ("ann", hold, 1)
    assert (usage["provider"], usage["power_level"], usage["attempts"]) == ("unknown", "balanced", 1)
    assert await ledger.audit() == []


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1}, {"ip_address": "nowhere"}, {"cost_source": "guess"}])
async def test_poisoned_usage(ledger: Ledger, usage: dict[str, object]) -> None:
    """Usage that the table cannot hold fails the call as a whole; without it the charge goes through."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    before = await ledger.fingerprint()
    with pytest.raises((asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)):
        await ledger.settle(settlement(hold, "ann", "1", **usage))
    assert await ledger.fingerprint() == before
    assert await outcome(ledger, settlement(hold, "ann", "1")) == ["settled"]
    assert await ledger.audit() == []


async def test_random_orders_keep_the_books(ledger: Ledger) -> None:
    """Whatever comes in whatever order, each call is charged what it first settled for, and no invariant breaks."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    users = ["ann", "bob"]
    added, charges, holds = {user: Decimal(0) for user in users}, {}, []
    for user in users:
        await ledger.add(user, "20")
        added[user] += 20
    for _ in range(120):
        user = chance.choice(users)
        step = chance.choice(["hold", "hold", "batch", "batch", "add", "expire", "extend"])
        if step == "hold":
            hold = uuid.uuid4()
            ttl = timedelta(seconds=chance.choice([-1, 120]))
            await ledger.hold(user, str(chance.randint(0, 8)), "0", hold=hold, ttl=ttl)
            holds.append((hold, user))
        elif step == "batch":
            items = []
            for hold, owner in chance.choices(holds, k=min(len(holds), chance.randint(1, 6))):
                charge = Decimal(chance.randint(0, 9_000_000)).scaleb(-6)
                items.append(
                    chance.choice([release(hold, owner, **USAGE), settlement(hold, owner, str(charge), **USAGE)])
                )
            for row, item in zip(await ledger.settle(*items), items, strict=True):
                if row["outcome"] in ("settled", "late_settled"):
                    assert row["hold_id"] not in charges
                    charges[row["hold_id"]] = (item["user_id"], Decimal(str(item["charge"])))
        elif step == "add":
            amount = Decimal(chance.choice(["7.5", "-4.25"]))
            await ledger.add(user, str(amount), "adjustment")
            added[user] += amount
        elif step == "expire":
            await ledger.connection.execute("SELECT expire_holds(3)")
        else:
            await ledger.connection.execute("SELECT extend_holds($1, '2 min')", [hold for hold, _ in holds[-5:]])
        assert await ledger.audit() == []
    for user in users:
        account = await ledger.account(user)
        charged = sum((charge for owner, charge in charges.values() if owner == user), Decimal(0))
        assert account["credits_remaining"] - account["credits_debt"] == added[user] - charged
