"""The first layer: the promises one at a time, on one connection. Each check has an account of its own."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg

from tests.schema.ledger import Ledger, settlement

LAPSED = timedelta(seconds=-1)


async def a_charge_is_taken_once(ledger: Ledger, user: str) -> None:
    """What is charged is the charge, not the hold, and once however often it is reported."""
    await ledger.add(user, "10")
    item = settlement(await ledger.held(user, "4"), user, "3")
    outcomes = [(await ledger.settle(item))[0]["outcome"] for _ in range(3)]
    assert outcomes == ["settled", "duplicate", "duplicate"]
    assert await ledger.balances(user) == ("7", "0", "0")


async def nobody_holds_what_is_not_there(ledger: Ledger, user: str) -> None:
    """A hold beyond what is available is refused and changes nothing."""
    await ledger.add(user, "10")
    await ledger.held(user, "8")
    assert (await ledger.hold(user, "3"))["error"] == "insufficient_credits"
    assert await ledger.balances(user) == ("10", "8", "0")


async def the_excess_is_debt(ledger: Ledger, user: str) -> None:
    """A charge beyond everything takes what is there and leaves the rest as debt."""
    await ledger.add(user, "2")
    await ledger.settle(settlement(await ledger.held(user, "2"), user, "5"))
    assert await ledger.balances(user) == ("0", "0", "3")


async def a_late_settlement_charges(ledger: Ledger, user: str) -> None:
    """A settlement whose hold never arrived is charged all the same."""
    await ledger.add(user, "10")
    (answer,) = await ledger.settle(settlement(uuid.uuid4(), user, "3"))
    assert (answer["outcome"], answer["credits_remaining"]) == ("late_settled", 7)


async def a_payment_counts_once(ledger: Ledger, user: str) -> None:
    """The same payment, and the same key, add credits once."""
    for options in ({"stripe_transaction_id": f"pi {user}"}, {"idempotency_key": "k"}):
        for _ in range(2):
            await ledger.add(user, "5", "purchase", **options)
    assert await ledger.balances(user) == ("10", "0", "0")


async def a_hold_counts_once(ledger: Ledger, user: str) -> None:
    """A hold that is sent again holds nothing more."""
    await ledger.add(user, "10")
    hold = uuid.uuid4()
    answers = [await ledger.hold(user, "4", hold=hold) for _ in range(2)]
    assert [(answer["duplicate"], answer["credits_held"]) for answer in answers] == [(False, 4), (True, 4)]
    assert await ledger.balances(user) == ("10", "4", "0")


async def a_hold_after_its_release_is_none(ledger: Ledger, user: str) -> None:
    """A release may overtake its hold, whose answer was lost; the hold then holds nothing."""
    await ledger.add(user, "10")
    hold = uuid.uuid4()
    await ledger.release(hold, user)
    assert (await ledger.hold(user, "4", hold=hold))["error"] == "already_resolved"
    assert await ledger.balances(user) == ("10", "0", "0")


async def the_sweeper_frees_what_lapsed(ledger: Ledger, user: str) -> None:
    """Of a lapsed hold, a live one and one that was settled in time, only the first is freed."""
    await ledger.add(user, "10")
    lapsed, settled = await ledger.held(user, "1", ttl=LAPSED), await ledger.held(user, "2", ttl=LAPSED)
    await ledger.held(user, "4")
    await ledger.settle(settlement(settled, user, "2"))
    rows = await ledger.connection.fetch("SELECT hold_id FROM expire_holds()")
    assert [row["hold_id"] for row in rows] == [lapsed]
    assert await ledger.balances(user) == ("8", "4", "0")


CHECKS: tuple[Callable[[Ledger, str], Awaitable[None]], ...] = (
    a_charge_is_taken_once,
    nobody_holds_what_is_not_there,
    the_excess_is_debt,
    a_late_settlement_charges,
    a_payment_counts_once,
    a_hold_counts_once,
    a_hold_after_its_release_is_none,
    the_sweeper_frees_what_lapsed,
)


async def run(url: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "uc", "lock_timeout": "5s"})
    try:
        ledger = Ledger(connection)
        for check in CHECKS:
            try:
                await check(ledger, check.__name__)
            except AssertionError as error:
                raise AssertionError(f"not so: {check.__doc__}") from error
            assert (found := await ledger.audit()) == [], f"{found} after {check.__name__}"
    finally:
        connection.terminate()
