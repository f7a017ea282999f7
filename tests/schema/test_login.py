"""Signing in with a token: who has no account gets one with a welcome, once, and the newest token says which tier."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.schema.conftest import Connect
from tests.schema.ledger import Connection, Ledger
from tests.schema.test_races import overlap

_LOGIN = "SELECT * FROM login_account($1, $2, $3, $4)"


async def login(
    db: Connection, user: str = "ann", tier: str | None = None, welcome: str = "0", issued_at: int = 100
) -> tuple[bool, str | None]:
    row = await db.fetchrow(_LOGIN, user, tier, Decimal(welcome), issued_at)
    assert row is not None
    return row["created"], row["error"]


async def account(db: Connection, user: str = "ann") -> tuple[str, Decimal]:
    """Tier and balance."""
    row = await db.fetchrow("SELECT tier, credits_remaining FROM user_credits WHERE user_id = $1", user)
    assert row is not None
    return row["tier"], row["credits_remaining"]


async def test_the_first_login(db: Connection, ledger: Ledger) -> None:
    """The first login makes the account with its tier and its welcome; the next ones change nothing."""
    assert await login(db, tier="starter", welcome="20.5") == (True, None)
    for _ in range(3):
        assert await login(db, tier="starter", welcome="20.5", issued_at=200) == (False, None)
    assert await account(db) == ("starter", Decimal("20.5"))
    assert await login(db, "bob") == (True, None)
    assert await account(db, "bob") == ("free", Decimal(0))
    (row,) = await db.fetch("SELECT transaction_type, idempotency_key FROM credit_transactions")
    assert tuple(row) == ("bonus", "welcome")
    assert await ledger.audit() == []


async def test_an_account_that_was_there(db: Connection) -> None:
    """Who has an account already gets no welcome, and keeps the tier that no token names."""
    await db.execute("SELECT create_account('ann', 'professional')")
    assert await login(db, welcome="5") == (False, None)
    assert await account(db) == ("professional", Decimal(0))


@pytest.mark.parametrize("there", [True, False])
async def test_an_older_token_does_not_overrule(db: Connection, there: bool) -> None:
    """Whatever order they come in, the tier is the one of the token that was issued last."""
    if there:
        await db.execute("SELECT create_account('ann')")
    for tier, issued_at, stands in (("starter", 100, "starter"), ("enterprise", 300, "enterprise"),
                                    ("free", 200, "enterprise"), ("free", 300, "enterprise"),
                                    ("professional", 301, "professional")):  # fmt: skip
        await login(db, tier=tier, issued_at=issued_at)
        assert (await account(db))[0] == stands


@pytest.mark.parametrize("metadata", ['{"tier_issued_at": "soon"}', '{"tier_issued_at": null}', '{"note": 1}'])
async def test_metadata_of_an_operator(db: Connection, metadata: str) -> None:
    """What else stands in the metadata stays, and what cannot be read there is no time."""
    await db.execute("SELECT create_account('ann')")
    await db.execute("UPDATE user_credits SET metadata = $1", metadata)
    assert await login(db, tier="starter") == (False, None)
    assert (await account(db))[0] == "starter"
    assert await db.fetchval("SELECT coalesce((metadata ->> 'note')::int, 1) FROM user_credits") == 1


@pytest.mark.parametrize(
    ("user", "tier", "error"),
    [("", "free", "invalid_user_id"), ("a\n", "free", "invalid_user_id"), ("ann", "gold", "invalid_tier")],
)
async def test_refusals(db: Connection, user: str, tier: str, error: str) -> None:
    """What cannot be an account is not made into one."""
    assert await login(db, user, tier, "5") == (False, error)
    assert await db.fetchval("SELECT count(*) FROM user_credits") == 0


async def test_two_first_logins_at_once(db: Connection, connect: Connect, ledger: Ledger) -> None:
    """The second waits for the first, and then finds the account made and welcomed."""
    other, watcher = await connect(), Ledger(await connect())
    second = await overlap(ledger, watcher, login(db, welcome="5"), login(other, welcome="5"))
    assert second == (False, None)
    assert await account(db) == ("free", Decimal(5))
    assert await ledger.audit() == []
