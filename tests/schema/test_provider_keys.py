"""The users' own provider keys."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from tests.schema.ledger import Ledger, release, settlement
from tests.schema.server import apply_sql

ADD = """INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id, key_name, is_default)
         VALUES ($1, $2, 'sealed', 'k1', $3, $4) RETURNING id"""


async def add(
    ledger: Ledger, user: str, provider: str = "openai", name: str = "default", default: bool = False
) -> uuid.UUID:
    found: uuid.UUID = await ledger.connection.fetchval(ADD, user, provider, name, default)
    return found


async def test_defaults(ledger: Ledger) -> None:
    """A new key is active, is not the default, and never falls back to credits."""
    await ledger.add("ann", "1")
    await add(ledger, "ann")
    row = await ledger.connection.fetchrow("SELECT * FROM user_provider_keys")
    assert row is not None
    assert (row["is_active"], row["is_default"], row["fallback"]) == (True, False, "never")
    assert (row["total_requests"], row["total_tokens"], row["last_used"]) == (0, 0, None)


async def test_one_default(ledger: Ledger) -> None:
    """A user has one default key per provider, and as many others as they like."""
    await ledger.add("ann", "1")
    await add(ledger, "ann", default=True)
    await add(ledger, "ann", "anthropic", default=True)
    await add(ledger, "ann", name="second")
    with pytest.raises(asyncpg.UniqueViolationError) as refusal:
        await add(ledger, "ann", name="third", default=True)
    assert refusal.value.constraint_name == "one_default_provider_key"


async def one(ledger: Ledger) -> asyncpg.Record:
    row = await ledger.connection.fetchrow("SELECT * FROM user_provider_keys")
    assert row is not None
    return row


@pytest.mark.usefixtures("one_day")
async def test_what_a_key_cost_this_month(ledger: Ledger) -> None:
    """Settled calls add what they cost at the provider; the first one of a new month begins anew; failures add none."""
    await ledger.add("ann", "10")
    used = {"provider_key_id": str(await add(ledger, "ann")), "byok_used": True}
    for usd in ("0.000000000001", "1.5"):
        await ledger.settle(settlement(await ledger.held("ann", "1"), "ann", "0", **used, cost_usd=usd))
    await ledger.settle(release(await ledger.held("ann", "1"), "ann", **used, cost_usd="9"))
    assert (await one(ledger))["spent_this_month_usd"] == Decimal("1.500000000001")
    await ledger.connection.execute("UPDATE user_provider_keys SET last_reset = last_reset - interval '1 month'")
    await ledger.settle(settlement(await ledger.held("ann", "1"), "ann", "0", **used, cost_usd="0.25"))
    row = await one(ledger)
    now = datetime.now(timezone.utc)
    assert row["spent_this_month_usd"] == Decimal("0.25")
    assert (row["last_reset"].year, row["last_reset"].month, row["last_reset"].day) == (now.year, now.month, 1)
    await ledger.settle(settlement(await ledger.held("ann", "1"), "ann", "0", **used))
    assert (await one(ledger))["spent_this_month_usd"] == Decimal("0.25")


async def test_errors_of_a_key(ledger: Ledger) -> None:
    """Errors are counted with their text cut short, on the user's own key only; an answered call ends their row."""
    await ledger.add("ann", "10")
    key = await add(ledger, "ann")
    note = "SELECT note_provider_key_error($1, $2, $3)"
    for user in ("ann", "ann", "bob"):
        await ledger.connection.execute(note, user, key, "x" * 500)
    row = await one(ledger)
    assert (row["total_errors"], row["errors_in_a_row"], row["last_error"]) == (2, 2, "x" * 200)
    assert row["last_error_at"] is not None
    used = {"provider_key_id": str(key), "byok_used": True}
    await ledger.settle(settlement(await ledger.held("ann", "1"), "ann", "0", **used, success=False))
    assert (await one(ledger))["errors_in_a_row"] == 2
    await ledger.settle(settlement(await ledger.held("ann", "1"), "ann", "0", **used))
    row = await one(ledger)
    assert (row["total_errors"], row["errors_in_a_row"]) == (2, 0)


async def test_adding_and_changing(ledger: Ledger) -> None:
    """The functions store and change what is named, for the account's own keys only, and keep one default."""
    run = ledger.connection.fetchrow
    store = "SELECT * FROM add_provider_key($1, 'openai', $2, $3)"
    change = "SELECT * FROM change_provider_key($1, $2, $3)"

    def values(**columns: Any) -> str:
        return json.dumps({"encrypted_api_key": "sealed", "key_id": "k1", "is_default": True, **columns})

    assert await run(store, "ann", values(key_name="a"), 9) is None
    await ledger.add("ann", "1")
    first = await run(store, "ann", values(key_name="a", monthly_cap_usd="2.5", expires_at="2999-01-01Z"), 9)
    second = await run(store, "ann", values(key_name="b", total_requests=7, provider="groq"), 2)
    assert first is not None
    assert second is not None
    assert (first["monthly_cap_usd"], first["expires_at"].year, first["is_default"]) == (Decimal("2.5"), 2999, True)
    assert (second["provider"], second["total_requests"], second["is_default"]) == ("openai", 0, True)
    assert await run(store, "ann", values(key_name="c"), 2) is None
    assert await run(change, "bob", first["id"], "{}") is None
    changed = await run(change, "ann", first["id"], '{"is_default": true, "expires_at": null, "user_id": "bob"}')
    assert changed is not None
    assert (changed["user_id"], changed["expires_at"], changed["monthly_cap_usd"]) == ("ann", None, Decimal("2.5"))
    defaults = await ledger.connection.fetch("SELECT id FROM user_provider_keys WHERE is_default")
    assert [row["id"] for row in defaults] == [first["id"]]


async def test_who_may_name_an_address(ledger: Ledger) -> None:
    """Only custom endpoints have an address of their owner's, until an operator says otherwise, which then stands."""
    rows = await ledger.connection.fetch("SELECT name FROM providers WHERE allows_api_base")
    assert [row["name"] for row in rows] == ["custom"]
    await ledger.connection.execute("UPDATE providers SET allows_api_base = name = 'openai', key_test_url = NULL")
    await apply_sql(ledger.connection)
    rows = await ledger.connection.fetch("SELECT name FROM providers WHERE allows_api_base AND key_test_url IS NULL")
    assert [row["name"] for row in rows] == ["openai"]


async def test_settlements_count_their_key(ledger: Ledger) -> None:
    """Settled calls on an own key are counted on it; repeated, released and foreign ones are not."""
    await ledger.add("ann", "10")
    await ledger.add("bob", "10")
    key, foreign = await add(ledger, "ann"), await add(ledger, "bob")
    first, second, third, fourth = [await ledger.held("ann", "1") for _ in range(4)]
    used = {"provider_key_id": str(key), "byok_used": True, "prompt_tokens": 3, "completion_tokens": 4}
    await ledger.settle(
        settlement(first, "ann", "0", **used),
        settlement(second, "ann", "0", **used, total_tokens=20),
        settlement(first, "ann", "0", **used),
        release(third, "ann", **used),
        settlement(fourth, "ann", "0", provider_key_id=str(foreign), prompt_tokens=3),
    )
    rows = await ledger.connection.fetch(
        "SELECT total_requests, total_tokens, last_used FROM user_provider_keys ORDER BY user_id"
    )
    assert [(row["total_requests"], row["total_tokens"], row["last_used"] is None) for row in rows] == [
        (2, 27, False),
        (0, 0, True),
    ]
    byok = "SELECT count(*) FROM credit_transactions WHERE transaction_type = 'debit' AND byok_used"
    assert await ledger.connection.fetchval(byok) == 2
    assert await ledger.audit() == []
