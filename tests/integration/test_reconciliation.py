from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from tests.integration.bills import Shop, billed
from uc_litellm_plugin.errors import CommandRefused
from uc_litellm_plugin.outbox import Outbox
from uc_litellm_plugin.reconciliation import Period


async def test_books_that_agree(shop: Shop) -> None:
    """Charged, released and free calls agree, and the charged ones are counted."""
    await shop.call()
    await shop.call("0")
    await shop.end(await shop.hold(), "release", "0", {"provider": "openai", "cost_usd": "0", "success": False})
    report = await shop.compare()
    assert (report.agrees, report.charges_compared, report.findings) == (True, 2, [])


MISMATCHES = {
    "charge_without_usage": "DELETE FROM llm_usage_log",
    "usage_without_charge": "INSERT INTO llm_usage_log (user_id, request_id, hold_id, cost_credits) "
    "SELECT 'ann', id, id::uuid, 1 FROM (SELECT gen_random_uuid()::text AS id) AS made",
    "amounts_differ": "UPDATE llm_usage_log SET cost_credits = 7",
    "accounts_differ": "UPDATE llm_usage_log SET user_id = 'bob'",
}


@pytest.mark.parametrize(("finding", "tampering"), MISMATCHES.items(), ids=MISMATCHES)
async def test_a_mismatch_is_found_once(shop: Shop, finding: str, tampering: str) -> None:
    """Each way in which the usage log and the ledger can differ is one finding, with both amounts."""
    await shop.call()
    await shop.database.execute(tampering)
    report = await shop.compare()
    assert [found["finding"] for found in report.findings] == [finding]
    assert not report.agrees
    assert await shop.audit() != []


async def test_a_period_bounds_calls_only(shop: Shop) -> None:
    """A mismatch outside of the period is not listed; what is unfinished is, whatever its age."""
    await shop.database.execute(MISMATCHES["usage_without_charge"])
    await shop.database.execute("INSERT INTO settlement_quarantine (record, error) VALUES ('{}', 'why')")
    later = Period(since=datetime.now(timezone.utc) + timedelta(days=1))
    assert [found["finding"] for found in (await shop.compare(period=later)).findings] == ["quarantined"]
    both = await shop.compare(period=Period(until=later.since))
    assert [found["finding"] for found in both.findings] == ["usage_without_charge", "quarantined"]


async def test_what_is_resolved_is_not_listed(shop: Shop) -> None:
    """A quarantined settlement that an operator marked as resolved is no finding."""
    await shop.database.execute(
        "INSERT INTO settlement_quarantine (record, error, resolved_at) VALUES ('{}', 'why', now())"
    )
    assert (await shop.compare()).agrees


async def test_an_overdue_hold(shop: Shop) -> None:
    """A hold that the sweepers left open is found; one that lapsed a moment ago is theirs."""
    await shop.hold(ttl_s=-1)
    assert (await shop.compare()).agrees
    overdue = await shop.hold(ttl_s=-3600)
    assert [(found["finding"], str(found["hold_id"])) for found in (await shop.compare()).findings] == [
        ("hold_overdue", overdue)
    ]


async def test_what_waits_in_the_outbox(shop: Shop) -> None:
    """Settlements on disk and corrupt ones set aside are findings."""
    directory = shop.settings.state_dir / "outbox"
    Outbox(directory, 1000).append([{"hold_id": "1"}, {"hold_id": "2"}])
    Path(directory, "1-1-1.corrupt").write_text("torn")
    found = (await shop.compare()).findings
    assert [each["finding"] for each in found] == ["outbox_waiting", "outbox_corrupt"]
    assert "2 settlement(s)" in found[0]["detail"]


async def test_totals_that_agree(shop: Shop) -> None:
    """Lines of a day are summed; LiteLLM's names, prefixes and releases of models mean the same."""
    for usd in ("0.01", "0.02", "0.03"):
        await shop.call(usd)
    await shop.call("1", provider="together", model="together_ai/llama")
    await shop.call("5", byok_used=True)
    await shop.call("3", provider="anthropic", model="claude")
    report = await shop.compare(
        billed("0.015", model="gpt-4o-mini-2024-07-18"), billed("0.045", model="OpenAI/GPT-4o-mini"),
        billed("1", by="together_ai", model="llama"),
    )  # fmt: skip
    assert report.agrees, report.provider_days


async def test_totals_that_differ(shop: Shop) -> None:
    """More, less, and what only one side has, is listed per day and model; the tolerance is kept to."""
    await shop.call("0.5")
    await shop.call("0.25", model="openai/o3")
    bill = billed("0.4"), billed("0.1", model="dall-e"), billed("2", day=date(2026, 3, 6))
    days = (await shop.compare(*bill)).provider_days
    assert days is not None
    assert [(each["date"], each["model"], each["difference_usd"], each["usage_calls"]) for each in days] == [
        ("2026-03-05", "dall-e", Decimal("0.1"), 0),
        ("2026-03-05", "gpt-4o-mini", Decimal("-0.1"), 1),
        ("2026-03-05", "o3", Decimal("-0.25"), 1),
        ("2026-03-06", "gpt-4o-mini", Decimal("2"), 0),
    ]
    assert len((await shop.compare(*bill, tolerance="0.2")).provider_days or []) == 2


async def test_the_period_bounds_a_bill(shop: Shop) -> None:
    """Days of a bill outside of the period do not count, our days in it do, and no day at all is refused."""
    await shop.call("0.5")
    bill = billed("9", day=date(2026, 3, 4)), billed("9", day=date(2026, 3, 7))
    report = await shop.compare(*bill, period=Period(since=datetime(2026, 3, 5, tzinfo=timezone.utc)))
    assert [(day["date"], day["difference_usd"]) for day in report.provider_days or []] == [
        ("2026-03-05", Decimal("-0.5")),
        ("2026-03-07", Decimal(9)),
    ]
    with pytest.raises(CommandRefused, match="no line"):
        shop.books(*bill, period=Period(until=datetime(2026, 3, 4, tzinfo=timezone.utc)))
