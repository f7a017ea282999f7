from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.ears import listening
from uc_litellm_plugin import accounts as accounts_module
from uc_litellm_plugin.accounts import Account, Accounts
from uc_litellm_plugin.api_keys import hash_key
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseUnavailable
from uc_litellm_plugin.settings import Settings

KEY = "sk-uc-a-key-of-ann"

_ADD_KEY = """
INSERT INTO user_api_keys (user_id, key_hash, key_hint, name, role, expires_at)
VALUES ($1, $2, 'hint', 'laptop', 'user', $3)"""


class Counted(Database):
    """The real database, which counts the questions it is asked and can be stopped in one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked = 0
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def fetch(self, sql: str, *args: Any, **options: Any) -> list[Any]:
        self.asked += 1
        return await super().fetch(sql, *args, **options)

    async def fetchrow(self, sql: str, *args: Any, **options: Any) -> Any:
        self.asked += 1
        row = await super().fetchrow(sql, *args, **options)
        if self.gate is not None:
            self.entered.set()
            await self.gate.wait()
        return row


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Counted]:
    """A database with two accounts and one key."""
    database = Counted(settings)
    async with database:
        for user in ("ann", "bob"):
            await database.execute("SELECT * FROM add_user_credits($1, 5, 'bonus')", user)
        await add_key(database, KEY)
        yield database


@pytest.fixture
def accounts(database: Counted) -> Accounts:
    return Accounts(database)


async def add_key(database: Database, key: str, user: str = "ann", expires_at: datetime | None = None) -> None:
    await database.execute(_ADD_KEY, user, hash_key(key), expires_at)


async def test_a_key_leads_to_its_account(accounts: Accounts) -> None:
    """Who has a key, and what the account allows, comes in one answer."""
    key = await accounts.api_key(KEY)
    assert key is not None
    assert (key.name, key.role, key.is_valid()) == ("laptop", "user", True)
    assert key.account == Account("ann", "free", "balanced", downgrade=False)
    account = await accounts.account("ann")
    assert account == key.account


@pytest.mark.parametrize("key", ["", "sk-uc-none", "a" * 10_000, "é\0", "\udcff", hash_key(KEY)])
async def test_an_unknown_key_is_nobody(accounts: Accounts, key: str) -> None:
    """No string but the key itself finds it, whatever bytes it has; its hash does not."""
    assert await accounts.api_key(key) is None
    assert await accounts.account("nobody") is None


async def test_keys_end(accounts: Accounts, database: Counted) -> None:
    """A revoked key and one past its time are known but not valid."""
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    await add_key(database, "old", expires_at=past)
    await add_key(database, "young", expires_at=past + timedelta(hours=1))
    await add_key(database, "revoked")
    await database.execute("UPDATE user_api_keys SET is_active = false WHERE key_hash = $1", hash_key("revoked"))
    found = [await accounts.api_key(name) for name in ("old", "young", "revoked")]
    assert [key is not None and key.is_valid() for key in found] == [False, True, False]


async def test_a_cached_key_ends_in_time(accounts: Accounts, database: Counted) -> None:
    """A key that expires while it is cached is no longer valid."""
    await add_key(database, "short", expires_at=datetime.now(timezone.utc) + timedelta(seconds=0.2))
    accounts.heard()
    first = await accounts.api_key("short")
    assert first is not None
    assert first.expires_at is not None
    await asyncio.sleep((first.expires_at - datetime.now(timezone.utc)).total_seconds() + 0.01)
    assert accounts.known_key("short") is None
    again = await accounts.api_key("short")
    assert again is not None
    assert not again.is_valid()


async def test_every_bad_key_is_asked_for_anew(accounts: Accounts, database: Counted) -> None:
    """Unknown, revoked and expired keys cost one question each time, so that time does not tell them apart."""
    await add_key(database, "old", expires_at=datetime.now(timezone.utc) - timedelta(seconds=1))
    await add_key(database, "revoked")
    await database.execute("UPDATE user_api_keys SET is_active = false WHERE key_hash = $1", hash_key("revoked"))
    accounts.heard()
    for name in ("old", "revoked", "unknown"):
        before = database.asked
        for _ in range(3):
            key = await accounts.api_key(name)
            assert key is None or not key.is_valid()
        assert database.asked - before == 3, name


async def test_nothing_is_kept_while_nobody_listens(accounts: Accounts, database: Counted) -> None:
    """Without notifications every question is asked anew."""
    for _ in range(3):
        await accounts.api_key(KEY)
        await accounts.provider_names()
    assert database.asked == 6


async def test_what_is_heard_of_is_kept(accounts: Accounts, database: Counted) -> None:
    """While changes are heard, a second question costs nothing."""
    accounts.heard()
    for _ in range(3):
        await accounts.api_key(KEY)
        await accounts.account("ann")
        await accounts.level("eco")
        await accounts.level("turbo")
        await accounts.levels()
        await accounts.provider_names()
    assert database.asked == 4


async def test_what_is_unknown_is_asked_again(accounts: Accounts, database: Counted) -> None:
    """An unknown key is not remembered as such: it may be made in the next moment."""
    accounts.heard()
    assert await accounts.api_key("new") is None
    await add_key(database, "new")
    assert await accounts.api_key("new") is not None


EDITS = [
    ("user_api_keys", "UPDATE user_api_keys SET is_active = false"),
    ("user_api_keys", "DELETE FROM user_api_keys"),
    ("user_credits", "UPDATE user_credits SET tier = 'professional' WHERE user_id = 'ann'"),
    ("user_credits", "UPDATE user_credits SET power_level = 'eco' WHERE user_id = 'ann'"),
    ("user_credits", "UPDATE user_credits SET power_level_downgrade = true WHERE user_id = 'ann'"),
]


@pytest.mark.parametrize(("table", "edit"), EDITS, ids=[edit for _, edit in EDITS])
async def test_an_edit_is_seen(
    settings: Settings, accounts: Accounts, database: Counted, table: str, edit: str
) -> None:
    """A change of a key or its account, made by anyone, is seen as soon as it is heard."""
    async with listening(settings, accounts) as ear:
        before = await accounts.api_key(KEY)
        assert await accounts.api_key(KEY) is before
        await database.execute(edit)
        await ear.heard(table)
        assert await accounts.api_key(KEY) != before


async def test_an_edit_of_another_changes_nothing(settings: Settings, accounts: Accounts, database: Counted) -> None:
    """What other accounts do leaves the cached rows alone."""
    async with listening(settings, accounts) as ear:
        before = await accounts.api_key(KEY)
        await database.execute("UPDATE user_credits SET tier = 'starter' WHERE user_id = 'bob'")
        await ear.heard("user_credits")
        asked = database.asked
        assert await accounts.api_key(KEY) is before
        assert database.asked == asked


async def test_levels_and_providers_follow_their_rows(
    settings: Settings, accounts: Accounts, database: Counted
) -> None:
    """An edited power level or provider counts for the next call."""
    async with listening(settings, accounts) as ear:
        level = await accounts.level("eco")
        names = await accounts.provider_names()
        await database.execute("UPDATE power_level_configs SET cost_multiplier = 0.5 WHERE power_level = 'eco'")
        await ear.heard("power_level_configs")
        after = await accounts.level("eco")
        assert level is not None
        assert after is not None
        assert (str(level.multiplier), str(after.multiplier)) == ("0.7000", "0.5000")
        await database.execute("UPDATE providers SET litellm_names = '{acme}' WHERE name = 'custom'")
        await ear.heard("providers")
        assert names.get("acme") is None
        assert (await accounts.provider_names())["acme"] == "custom"


async def test_inactive_and_unknown_levels_are_none(accounts: Accounts, database: Counted) -> None:
    """A level that is switched off, or does not exist, is no level."""
    await database.execute("UPDATE power_level_configs SET is_active = false WHERE power_level = 'eco'")
    assert await accounts.level("eco") is None
    assert await accounts.level("turbo") is None
    assert set(await accounts.levels()) == {"balanced", "precision"}


async def test_a_level_has_all_its_row_says(accounts: Accounts, database: Counted) -> None:
    """A level carries its providers in order, its targets and whether others may follow."""
    await database.execute("UPDATE power_level_configs SET fallback_strategy = 'none', max_latency_ms = NULL "
                           "WHERE power_level = 'precision'")  # fmt: skip
    levels = await accounts.levels()
    eco, precision = levels["eco"], levels["precision"]
    assert (eco.preferred_providers, eco.strict, eco.max_latency_ms) == (
        ("openrouter", "together", "deepinfra"), False, 5000,
    )  # fmt: skip
    assert (precision.strict, precision.max_latency_ms, f"{precision.min_quality:f}") == (True, None, "95.00")


async def test_a_change_during_a_read_is_not_missed(accounts: Accounts, database: Counted) -> None:
    """A row that was read just before it changed is not kept."""
    accounts.heard()
    database.gate = asyncio.Event()
    reading = asyncio.create_task(accounts.api_key(KEY))
    await database.entered.wait()
    accounts.changed(json.dumps({"table": "user_api_keys", "user_id": "ann", "key_hash": hash_key(KEY)}))
    database.gate.set()
    await reading
    database.gate = None
    asked = database.asked
    await accounts.api_key(KEY)
    assert database.asked == asked + 1


@pytest.mark.parametrize("table", ["providers", "power_level_configs"])
async def test_a_change_of_a_list_during_its_read_is_not_missed(
    accounts: Accounts, database: Counted, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """The same holds for the lists of providers and levels."""
    accounts.heard()
    fetch = database.fetch

    async def overtaken(sql: str, *args: Any, **options: Any) -> list[Any]:
        rows = await fetch(sql, *args, **options)
        accounts.changed(json.dumps({"table": table, "user_id": None, "key_hash": None}))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(database, "fetch", overtaken)
        await (accounts.provider_names() if table == "providers" else accounts.level("eco"))
    asked = database.asked
    await (accounts.provider_names() if table == "providers" else accounts.level("eco"))
    assert database.asked == asked + 1


@pytest.mark.parametrize("payload", ["", "{", "[]", "5", "null", "{}", '{"table": null}', '{"table": [1]}'])
async def test_a_strange_notification_drops_all(accounts: Accounts, database: Counted, payload: str) -> None:
    """A payload that cannot be read is no crash; what is safe is to forget."""
    accounts.heard()
    await accounts.api_key(KEY)
    accounts.changed(payload)
    asked = database.asked
    await accounts.api_key(KEY)
    assert database.asked == (asked + 1 if payload not in ('{"table": null}', '{"table": [1]}') else asked)


async def test_a_lost_connection_forgets_all(settings: Settings, accounts: Accounts, database: Counted) -> None:
    """When notifications stop, nothing is kept until they are back, and what changed meanwhile is seen then."""
    async with listening(settings, accounts) as ear:
        before = await accounts.api_key(KEY)
        ear.ready.clear()
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' "
            "AND datname = current_database()"
        )
        await asyncio.wait_for(ear.lost.wait(), 60)
        await database.execute("UPDATE user_credits SET tier = 'starter' WHERE user_id = 'ann'")
        during = await accounts.api_key(KEY)
        assert during is not None
        assert during.account.tier == "starter"
        await asyncio.wait_for(ear.ready.wait(), 60)
        after = await accounts.api_key(KEY)
        assert after == during != before


async def test_the_cache_is_bounded(accounts: Accounts, database: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many accounts call, the cache does not grow beyond its limit."""
    monkeypatch.setattr(accounts_module, "_MOST_ROWS", 1)
    accounts.heard()
    for user in ("ann", "bob", "ann", "bob"):
        account = await accounts.account(user)
        assert account is not None
        assert account.user_id == user
    assert len(accounts._accounts) == 1


async def test_without_postgresql_a_cached_key_works(accounts: Accounts, database: Counted) -> None:
    """When PostgreSQL is away, what is cached still answers and what is not is unavailable."""
    accounts.heard()
    key = await accounts.api_key(KEY)
    await database.close()
    assert await accounts.api_key(KEY) is key
    with pytest.raises(DatabaseUnavailable):
        await accounts.api_key("another")


async def settle_answer(database: Database, call_type: str, response_id: str, source: str = "usage") -> None:
    usage = {"provider": "openai", "model": "m", "power_level": "balanced", "success": True, "cost_usd": "0",
             "cost_source": source, "call_type": call_type, "metadata": {"response_id": response_id}}  # fmt: skip
    record = {"hold_id": str(uuid4()), "user_id": "ann", "action": "settle", "charge": "1", "usage": usage}
    await database.fetch("SELECT * FROM settle_credits($1)", [record])


async def test_who_made_a_response(accounts: Accounts, database: Counted) -> None:
    """Only the user whose call made a stored response, and paid for all of it, may have it."""
    await settle_answer(database, "aresponses", "resp_1")
    await settle_answer(database, "acompletion", "chat_1")
    await settle_answer(database, "aresponses", "resp_left", "estimate")
    asked = [
        ("ann", "resp_1"),
        ("bob", "resp_1"),
        ("ann", "resp_2"),
        ("ann", ""),
        ("ann", "chat_1"),
        ("ann", "resp_left"),
    ]
    assert [await accounts.made_response(*each) for each in asked] == [True, False, False, False, False, False]
