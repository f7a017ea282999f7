"""Who has which API key, and what their account allows: read from PostgreSQL, kept warm, dropped by NOTIFY."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from sys import intern
from typing import TypeVar

from . import power
from .api_keys import hash_key
from .database import Database, Row
from .errors import DatabaseError
from .power import PowerLevel
from .provider_key import ProviderKey
from .provider_keys import usable_keys

T = TypeVar("T")

_MOST_ROWS = 50_000
_LEVELS = "SELECT * FROM power_level_configs WHERE is_active"
_LOGIN = "SELECT error FROM login_account($1, $2, $3, $4)"
_PROVIDERS = "SELECT name, litellm_names FROM providers"


@dataclass(frozen=True, slots=True)
class Account:
    """What a call needs to know of an account before the ledger is asked.

    Attributes
    ----------
    downgrade
        A hold that does not fit at the wished level is tried at cheaper ones.
    status
        active, suspended or closed; holds ask the database again.
    """

    user_id: str
    tier: str
    power_level: str
    downgrade: bool
    status: str = "active"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One of our API keys with its account; `hashed` is how it is stored."""

    id: str
    hashed: str
    name: str
    role: str
    account: Account
    is_active: bool
    expires_at: datetime | None

    def is_valid(self) -> bool:
        """Neither revoked nor past its time."""
        return self.is_active and (self.expires_at is None or self.expires_at > datetime.now(timezone.utc))


class Accounts:
    """Rows of keys, accounts, power levels and providers, cached only while changes are heard.

    Parameters
    ----------
    database
        An open one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listening = False
        self._changes = 0
        self._keys: dict[str, ApiKey] = {}
        self._accounts: dict[str, Account] = {}
        self._provider_keys: dict[str, tuple[ProviderKey, ...]] = {}
        self._levels: Mapping[str, PowerLevel] = {}
        self._providers: Mapping[str, str] = {}

    def known_key(self, key: str) -> ApiKey | None:
        """The row of an API key that is at hand and valid."""
        kept = self._keys.get(hash_key(key))
        return kept if kept is not None and kept.is_valid() else None

    async def api_key(self, key: str) -> ApiKey | None:
        """The row of an API key, valid or not; None for an unknown one.

        Raises
        ------
        DatabaseUnavailable
            It is not cached and PostgreSQL does not answer.
        """
        if (known := self.known_key(key)) is not None:
            return known
        hashed = hash_key(key)
        self._keys.pop(hashed, None)
        found = await self._cached(self._keys, hashed, self._load_key)
        if found is not None and not found.is_valid():
            # Asked for anew each time, as an unknown one is: how long that takes must not tell them apart.
            self._keys.pop(hashed, None)
        return found

    async def account(self, user_id: str) -> Account | None:
        """The account of a user, None for an unknown one; raises as `api_key`."""
        return await self._cached(self._accounts, user_id, self._load_account)

    async def login(self, user_id: str, tier: str | None, welcome: Decimal, issued_at: float) -> Account:
        """The account of somebody who signed in, made if there was none.

        Parameters
        ----------
        tier
            What the login says; None leaves the account's as it is.
        welcome
            Credits for an account that is made.
        issued_at
            When the login was issued, in seconds since 1970: an older one does not overrule a newer one's tier.

        Raises
        ------
        DatabaseError
            PostgreSQL does not answer, or has no such account and makes none.
        """
        error = await self._database.fetchval(_LOGIN, user_id, tier, welcome, Decimal(issued_at), idempotent=True)
        self._changes += 1
        self._accounts.pop(user_id, None)
        account = await self.account(user_id)
        if account is None:
            raise DatabaseError(f"No account was made for somebody who signed in: {error}.")
        return account

    async def provider_keys(self, user_id: str) -> tuple[ProviderKey, ...]:
        """The active provider keys of a user, sealed, by provider and the default first; raises as `api_key`."""
        return await self._cached(self._provider_keys, user_id, self._load_provider_keys) or ()

    async def level(self, name: str) -> PowerLevel | None:
        """An active power level, None where there is no such; raises as `api_key`."""
        return (await self.levels()).get(name)

    async def levels(self) -> Mapping[str, PowerLevel]:
        """All active power levels by name; raises as `api_key`."""
        if self._levels and self._listening:
            return self._levels
        changes = self._changes
        rows = await self._database.fetch(_LEVELS, idempotent=True)
        levels = {row["power_level"]: power.from_row(dict(row)) for row in rows}
        if self._listening and changes == self._changes:
            self._levels = levels
        return levels

    async def provider_names(self) -> Mapping[str, str]:
        """LiteLLM's names of providers to ours; raises as `api_key`."""
        if self._providers and self._listening:
            return self._providers
        changes = self._changes
        rows = await self._database.fetch(_PROVIDERS, idempotent=True)
        names = {alias: row["name"] for row in rows for alias in row["litellm_names"]}
        if self._listening and changes == self._changes:
            self._providers = names
        return names

    async def made_response(self, user_id: str, response_id: str) -> bool:
        """Whether a settled call of this user made a stored response; raises as `api_key`."""
        return bool(
            await self._database.fetchval("SELECT made_response($1, $2)", user_id, response_id, idempotent=True)
        )

    def changed(self, payload: str) -> None:
        """Drop what a notification names; all of it when the notification cannot be read."""
        self._changes += 1
        try:
            change = json.loads(payload)
            table, user_id, key_hash = change["table"], change.get("user_id"), change.get("key_hash")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._drop_all()
            return
        if table in ("power_level_configs", "providers"):
            self._levels, self._providers = {}, {}
        self._keys.pop(str(key_hash), None)
        if table == "user_provider_keys":
            self._provider_keys.pop(str(user_id), None)
        if table == "user_credits":
            self._accounts.pop(str(user_id), None)
            for hashed in [hashed for hashed, key in self._keys.items() if key.account.user_id == user_id]:
                del self._keys[hashed]

    def heard(self) -> None:
        """Changes are heard from now on; what was read before may be stale."""
        self._drop_all()
        self._listening = True

    def deaf(self) -> None:
        """Changes are no longer heard: nothing is cached."""
        self._listening = False
        self._drop_all()

    async def _cached(self, rows: dict[str, T], key: str, load: Callable[[str], Awaitable[T | None]]) -> T | None:
        if (kept := rows.get(key)) is not None:
            return kept
        changes = self._changes
        found = await load(key)
        # A change heard while we read may have been of this very row.
        if found is not None and self._listening and changes == self._changes:
            if len(rows) >= _MOST_ROWS:
                del rows[next(iter(rows))]
            rows[key] = found
        return found

    async def _load_key(self, key_hash: str) -> ApiKey | None:
        row = await self._database.fetchrow("SELECT * FROM load_caller($1)", key_hash, idempotent=True)
        if row is None:
            return None
        account = _account(row)
        name, role = row["key_name"], intern(row["role"])
        return ApiKey(str(row["key_id"]), key_hash, name, role, account, row["is_active"], row["expires_at"])

    async def _load_provider_keys(self, user_id: str) -> tuple[ProviderKey, ...]:
        return await usable_keys(self._database, user_id)

    async def _load_account(self, user_id: str) -> Account | None:
        row = await self._database.fetchrow("SELECT * FROM load_account($1)", user_id, idempotent=True)
        return None if row is None else _account(row)

    def _drop_all(self) -> None:
        self._changes += 1
        self._keys.clear()
        self._accounts.clear()
        self._provider_keys.clear()
        self._levels, self._providers = {}, {}


def _account(row: Row) -> Account:
    # Words that all accounts share are kept once, not once for each of them.
    tier, level, status = intern(row["tier"]), intern(row["power_level"]), intern(row["status"])
    return Account(row["user_id"], tier, level, row["power_level_downgrade"], status)
