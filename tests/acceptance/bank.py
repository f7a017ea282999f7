"""Accounts for the acceptance tests, and what the database says about them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import asyncpg

from tests.proxy import Json
from uc_litellm_plugin import api_keys
from uc_litellm_plugin.vault import new_sealing_key

T = TypeVar("T")

WAIT_SECONDS = 60.0
NOTHING = Decimal(0)
# Modules share a database: where one stores provider keys, the proxies of the others must know their sealing key, too.
SEALING = {"UC_SEALING_KEYS": new_sealing_key()}

# The tests' own databases tell when a call has ended, so that no test has to ask again and again.
_TELL = """
CREATE FUNCTION uc.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NOTIFY acceptance; RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT ON uc.llm_usage_log FOR EACH STATEMENT EXECUTE FUNCTION uc.tell();
CREATE TRIGGER tell AFTER INSERT ON uc.credit_transactions FOR EACH STATEMENT EXECUTE FUNCTION uc.tell();
"""
_BALANCE = "SELECT credits_remaining, credits_held, credits_debt FROM user_credits WHERE user_id = $1"
_LOCK = "SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE"
_LOCKED_OUT = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_USAGE = "SELECT * FROM llm_usage_log WHERE user_id = $1 ORDER BY id"


@dataclass(frozen=True)
class Account:
    """A user with an API key of ours."""

    user_id: str
    api_key: str
    key_id: str

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a raw request."""
        return {"authorization": f"Bearer {self.api_key}"}


@dataclass(frozen=True)
class Balance:
    """An account's credits."""

    remaining: Decimal
    held: Decimal
    debt: Decimal


class Bank:
    """Opens accounts in one database and reads their rows.

    Parameters: `url` of a migrated database.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.execute(_TELL)

    def open(
        self, credits: str = "100", *, tier: str = "starter", role: str = "user", level: str = "balanced"
    ) -> Account:
        """A new account with credits and an API key."""
        user_id = f"user-{uuid.uuid4().hex[:12]}"
        self.rows("SELECT * FROM create_account($1, $2, $3)", user_id, tier, level)
        if Decimal(credits):
            self.add(user_id, credits)
        return self.key(user_id, role)

    def add(self, user_id: str, credits: str) -> None:
        """More credits for an account."""
        (row,) = self.rows("SELECT * FROM add_user_credits($1, $2, 'bonus')", user_id, Decimal(credits))
        assert row["success"], row

    def key(self, user_id: str, role: str = "user") -> Account:
        """Another API key of an account."""
        key = api_keys.generate()
        insert = "INSERT INTO user_api_keys (user_id, key_hash, key_hint, role) VALUES ($1, $2, $3, $4) RETURNING id"
        (row,) = self.rows(insert, user_id, api_keys.hash_key(key), api_keys.hint(key), role)
        return Account(user_id, key, str(row["id"]))

    def balance(self, account: Account) -> Balance:
        """The account's credits now."""
        (row,) = self.rows(_BALANCE, account.user_id)
        return Balance(*row.values())

    def usage(self, account: Account) -> list[Json]:
        """The account's usage rows, oldest first."""
        return self.rows(_USAGE, account.user_id)

    def transactions(self, account: Account) -> list[Json]:
        """The account's ledger rows, oldest first."""
        return self.rows("SELECT * FROM credit_transactions WHERE user_id = $1 ORDER BY user_version", account.user_id)

    def audit(self) -> list[Json]:
        """What the ledger's audit finds wrong, over all accounts."""
        return self.rows("SELECT * FROM ledger_audit()")

    def settled(self, account: Account, calls: int = 1, seconds: float = WAIT_SECONDS) -> list[Json]:
        """The usage rows, once there are so many of them and nothing is held any more.

        Raises TimeoutError after `seconds`, with what there is.
        """
        condition = """
            SELECT credits_held = 0 AND (SELECT count(*) FROM llm_usage_log WHERE user_id = $1) >= $2
            FROM user_credits WHERE user_id = $1"""
        if not _run(_wait(self.url, condition, (account.user_id, calls), seconds)):
            raise TimeoutError(f"after {seconds} s: {self.balance(account)}, {len(self.usage(account))} usage rows")
        return self.usage(account)

    def released(self, account: Account, seconds: float = WAIT_SECONDS) -> list[Json]:
        """The account's ledger rows, as soon as a release is among them."""
        condition = (
            "SELECT EXISTS (SELECT FROM credit_transactions WHERE user_id = $1 AND transaction_type = 'release')"
        )
        assert _run(_wait(self.url, condition, (account.user_id,), seconds)), "nothing was released"
        return self.transactions(account)

    def held(self, account: Account, seconds: float = WAIT_SECONDS) -> Decimal:
        """The credits held, as soon as there are some."""
        condition = "SELECT credits_held > 0 FROM user_credits WHERE user_id = $1"
        assert _run(_wait(self.url, condition, (account.user_id,), seconds)), "nothing was held"
        return self.balance(account).held

    @contextmanager
    def locked(self, account: Account) -> Iterator[None]:
        """Nobody else gets at the account's row meanwhile."""
        loop = asyncio.new_event_loop()
        connection = loop.run_until_complete(_connect(self.url))
        try:
            loop.run_until_complete(connection.execute("BEGIN"))
            loop.run_until_complete(connection.fetch(_LOCK, account.user_id))
            yield
        finally:
            loop.run_until_complete(connection.close())
            loop.close()

    def wait_for_lock(self, seconds: float = WAIT_SECONDS) -> None:
        """Returns when a session waits for a lock; PostgreSQL tells nobody, so it is asked again and again."""
        deadline = time.monotonic() + seconds
        while not self.rows(_LOCKED_OUT):
            assert time.monotonic() < deadline, "nobody waits for a lock"
            time.sleep(0.01)

    def rows(self, query: str, *args: Any) -> list[Json]:
        """What a query answers."""
        return [dict(row) for row in _run(_fetch(self.url, query, args))]

    def execute(self, statements: str) -> None:
        """Runs statements that take no arguments."""
        _run(_execute(self.url, statements))


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _connect(url: str) -> asyncpg.Connection[Any]:
    return await asyncpg.connect(url, server_settings={"search_path": "uc"})


async def _fetch(url: str, query: str, args: tuple[Any, ...]) -> list[Any]:
    connection = await _connect(url)
    try:
        return list(await connection.fetch(query, *args))
    finally:
        await connection.close()


async def _execute(url: str, statements: str) -> None:
    connection = await _connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def _wait(url: str, condition: str, args: tuple[Any, ...], seconds: float) -> bool:
    """Whether the condition comes true in time; asked again whenever a row is written."""
    connection, told = await _connect(url), asyncio.Event()
    try:
        await connection.add_listener("acceptance", lambda *_: told.set())
        deadline = asyncio.get_running_loop().time() + seconds
        while not await connection.fetchval(condition, *args):
            try:
                await asyncio.wait_for(told.wait(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                return False
            told.clear()
        return True
    finally:
        await connection.close()
