"""The users' own provider keys."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from tests.schema.ledger import Ledger, release, settlement

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
