from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.bills import DAY, NOON, TERMS, Shop, billed
from tests.unit.samples import held_call
from uc_litellm_plugin.call import Answer, Outcome
from uc_litellm_plugin.errors import CommandRefused
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.pricing import credits
from uc_litellm_plugin.settlement import Settlement


@pytest.mark.parametrize("by_whose_id", ["ours", "the provider's"])
@pytest.mark.parametrize(("theirs", "difference"), [("0.08", "-0.231"), ("0.02", "0.231"), ("0", "0.385")])
async def test_a_call_is_corrected(shop: Shop, by_whose_id: str, theirs: str, difference: str) -> None:
    """The difference of one call times its frozen terms is charged or given back, with who and why, and once."""
    call = await shop.call("0.05", {"response_id": "chatcmpl-1"})
    bill = billed(theirs, call if by_whose_id == "ours" else "chatcmpl-1")
    before = await shop.compare(bill)
    assert [each.correction for each in before.provider_calls or []] == [Decimal(difference)]
    assert await shop.paid() == Decimal("0.385")
    after = await shop.correct(bill)
    assert (after.agrees, [row["amount"] for row in after.corrections]) == (True, [Decimal(difference)])
    assert await shop.paid() == credits(Decimal(theirs), TERMS)
    row = await shop.database.fetchrow("SELECT * FROM credit_transactions WHERE transaction_type = 'adjustment'")
    assert row is not None
    assert (row["notes"], row["admin_user_id"], row["idempotency_key"]) == (
        "the March bill", "root", f"reconcile:{call}:1",
    )  # fmt: skip
    assert (await shop.correct(bill)).corrections == []
    assert await shop.audit() == []


@pytest.mark.usefixtures("one_day")
async def test_a_call_as_the_proxy_settles_it(shop: Shop) -> None:
    """The record that the proxy writes holds all that a correction needs: the terms and the provider's id."""
    call = held_call()
    call.response_id = "chatcmpl-9"

    async def settle(record: Record) -> Outcome:
        await shop.database.fetch("SELECT * FROM settle_credits($1)", [record])
        return Outcome(Decimal(record["charge"]), None)

    await shop.hold(call=call.id)
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    await Settlement(settle, lambda *_: Decimal("0.05")).charge(call, Answer(usage, "usage"))
    today = datetime.now(timezone.utc).date()
    after = await shop.correct(billed("0.0812345678", "chatcmpl-9", model="gpt-4o", day=today))
    assert (after.agrees, await shop.paid()) == (True, Decimal("0.812346"))


async def test_comparing_writes_nothing(shop: Shop) -> None:
    """Without a correction asked for, no row of the ledger is written."""
    call = await shop.call()
    rows = "SELECT count(*) FROM credit_transactions"
    before = await shop.database.fetchval(rows)
    assert not (await shop.compare(billed("1", call))).agrees
    assert await shop.database.fetchval(rows) == before


async def test_lines_of_one_call_are_summed(shop: Shop) -> None:
    """A call whose input and output are billed on two lines agrees by their sum."""
    call = await shop.call("0.05")
    assert (await shop.compare(billed("0.02", call), billed("0.03", call))).agrees


async def test_a_later_bill_corrects_again(shop: Shop) -> None:
    """After a bill that changed twice, also back, the call has cost what the last one says; totals agree, too."""
    call = await shop.call("0.05")
    for theirs in ("0.0800001", "0.03", "0.0800001", "0.05"):
        after = await shop.correct(billed(theirs, call))
        assert (after.agrees, len(after.corrections)) == (True, 1)
        assert await shop.paid() == credits(Decimal(theirs), TERMS)
        assert (await shop.compare(billed(theirs))).agrees
    assert await shop.audit() == []


async def test_a_dear_correction_becomes_debt(shop: Shop) -> None:
    """A charge beyond the balance is debt, as with any settlement."""
    call = await shop.call("0.05")
    await shop.correct(billed("20", call))
    debt = await shop.database.fetchval("SELECT credits_debt FROM user_credits")
    assert debt == credits(Decimal(20), TERMS) - 100
    assert await shop.audit() == []


UNCERTAIN: dict[str, tuple[dict[str, Any], str]] = {
    "own_key": ({"byok_used": True}, ""),
    "no_terms": ({}, "UPDATE llm_usage_log SET metadata = metadata - 'markup'"),
    "books_differ": ({}, "UPDATE llm_usage_log SET cost_credits = 7"),
    "other_model": ({"model": "openai/o3"}, ""),
}


@pytest.mark.parametrize("reason", UNCERTAIN)
async def test_what_is_not_certain_is_only_listed(shop: Shop, reason: str) -> None:
    """A call whose difference may have another cause is listed with the reason and not corrected."""
    usage, tampering = UNCERTAIN[reason]
    call = await shop.call("0.05", **usage)
    await shop.database.execute(tampering or "SELECT 1")
    report = await shop.correct(billed("0.2", call))
    assert [(each.reason, each.correction) for each in report.provider_calls or []] == [(reason, None)]
    assert report.corrections == []


async def test_a_released_call_is_not_charged_afterwards(shop: Shop) -> None:
    """What failed for the user stays free, though the provider bills it."""
    call = await shop.hold()
    await shop.end(call, "release", "0", {"provider": "openai", "model": "gpt-4o-mini", "success": False})
    report = await shop.correct(billed("0.2", call))
    assert [each.reason for each in report.provider_calls or []] == ["not_charged"]


async def test_a_call_nobody_knows(shop: Shop) -> None:
    """A billed call that has no usage row is listed by the provider's id."""
    report = await shop.correct(billed("0.2", "chatcmpl-lost"))
    assert [(each.request_id, each.reason) for each in report.provider_calls or []] == [
        ("chatcmpl-lost", "unknown_call")
    ]


async def test_two_calls_with_one_id(shop: Shop) -> None:
    """An id that two calls have, as an answer from a cache has, or two ids for one call, corrects neither."""
    first = await shop.call("0.05", {"response_id": "chatcmpl-1"})
    await shop.call("0.05", {"response_id": "chatcmpl-1"})
    report = await shop.correct(billed("0.2", "chatcmpl-1"), billed("0.2", first))
    assert [each.reason for each in report.provider_calls or []] == ["ambiguous", "ambiguous"]


async def test_a_negative_cost_of_a_call(shop: Shop) -> None:
    """A call cannot cost less than nothing; as a total, a credit note counts."""
    call = await shop.call("0.05")
    report = await shop.correct(billed("-0.2", call))
    assert [each.reason for each in report.provider_calls or []] == ["impossible_cost"]
    assert (await shop.compare(billed("0.25"), billed("-0.2"))).agrees


async def test_a_call_around_midnight(shop: Shop) -> None:
    """A call that the provider bills on the day before counts there, on both sides."""
    await shop.call("0.01")
    call = await shop.call("0.05")
    eve = DAY - timedelta(days=1)
    assert (await shop.compare(billed("0.05", call, day=eve), billed("0.01"))).agrees
    await shop.database.execute("UPDATE llm_usage_log SET created_at = $1", NOON + timedelta(days=1))
    report = await shop.compare(billed("0.05", call))
    assert report.agrees, report.provider_days


async def test_two_reconciliations_at_once(shop: Shop) -> None:
    """However many correct at the same time, each call is corrected once; one with another bill is refused."""
    calls = [await shop.call("0.05") for _ in range(5)]
    bill = [billed("0.08", call) for call in calls]
    books = [shop.books(*bill) for _ in range(4)]
    reports = [await each.compare() for each in books]
    other = shop.books(*[billed("0.09", call) for call in calls])
    stale = await other.compare()
    await asyncio.gather(*[each.correct(report, "why", "root") for each, report in zip(books, reports, strict=True)])
    assert await shop.paid() == 5 * credits(Decimal("0.08"), TERMS)
    with pytest.raises(CommandRefused, match="idempotency_conflict"):
        await other.correct(stale, "why", "root")
    assert await shop.paid() == 5 * credits(Decimal("0.08"), TERMS)


async def test_any_bill_is_met_exactly(shop: Shop) -> None:
    """Whatever the costs, after the correction each call has cost its billed USD by its terms, rounded up once."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    await shop.add("1000")

    def cost() -> str:
        return f"{chance.randrange(10 ** chance.randint(1, 11)) * Decimal('1e-12'):f}"

    bill = [billed(cost(), await shop.call(cost())) for _ in range(40)]
    after = await shop.correct(*bill, billed("0", str(uuid4())))
    assert [each.reason for each in after.provider_calls or []] == ["unknown_call"]
    # What differs by no more than the tolerance is left as it was.
    due = sum(credits(each.usd, TERMS) for each in bill)
    assert abs(await shop.paid() + 1000 - due) <= 40 * (credits(Decimal("0.000001"), TERMS) + Decimal("0.000001"))
    exact = shop.books(*bill, tolerance="0")
    await exact.correct(await exact.compare(), "to the last digit", "root")
    assert await shop.paid() + 1000 == due
    assert await shop.audit() == []
