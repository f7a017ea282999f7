"""Users with provider keys, as the tests of the vault need them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import SecretStr

from uc_litellm_plugin.database import Database
from uc_litellm_plugin.endpoints import Resolve
from uc_litellm_plugin.provider_key import NewKey
from uc_litellm_plugin.provider_keys import ProviderKeys
from uc_litellm_plugin.settings import ByokSettings
from uc_litellm_plugin.vault import Sealed, Secret, Vault, new_sealing_key, purpose_of

ADDRESS = "93.184.215.14"


async def public(host: str, port: int) -> list[str]:
    """A resolver for which every name is public."""
    return [ADDRESS]


def vault_of(*keys: str) -> Vault:
    return Vault([SecretStr(key) for key in keys])


def canary(number: int) -> str:
    """A key of OpenAI's form that is nobody else's."""
    return f"sk-canary-{number:06}-0123456789abcdef"


@dataclass
class Keyring:
    """Two sealing keys, and the database's users with keys under the old one."""

    database: Database
    old: str
    new: str

    @staticmethod
    def on(database: Database) -> Keyring:
        return Keyring(database, new_sealing_key(), new_sealing_key())

    def keys(self, *sealing_keys: str, resolver: Resolve = public, **rules: Any) -> ProviderKeys:
        """The keys of users, sealed with the old sealing key unless others are named."""
        vault = vault_of(*(sealing_keys or (self.old,)))
        return ProviderKeys(self.database, vault, ByokSettings.model_validate(rules), resolver)

    async def account(self, user: str, tier: str = "starter") -> str:
        await self.database.fetch("SELECT * FROM create_account($1, $2)", user, tier)
        return user

    async def fill(self, count: int, users: int = 20) -> dict[UUID, str]:
        """So many keys of so many users; their plaintexts by id."""
        plain: dict[UUID, str] = {}
        rows = []
        vault = vault_of(self.old)
        for user in [await self.account(f"user{number}") for number in range(users)]:
            rows += [(user, number) for number in range(count // users)]
        for number, (user, place) in enumerate(rows):
            sealed = vault.seal(user, "openai", Secret(canary(number)))
            key_id = await self.database.fetchval(_INSERT, user, sealed.token, sealed.key_id, f"key {place}")
            plain[key_id] = canary(number)
        return plain

    async def opened(self, *sealing_keys: str) -> dict[UUID, str]:
        """All keys as they open with these sealing keys."""
        vault = vault_of(*sealing_keys)
        rows = await self.database.fetch("SELECT * FROM user_provider_keys")
        return {
            row["id"]: vault.open(
                row["user_id"],
                row["provider"],
                Sealed(row["key_id"], row["encrypted_api_key"]),
                purpose_of(row["api_base"]),
            ).reveal()
            for row in rows
        }


_INSERT = """
INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id, key_name)
VALUES ($1, 'openai', $2, $3, $4) RETURNING id"""

Write = Callable[[], Awaitable[Any]]


def new_key(number: int = 1, provider: str = "openai", **values: Any) -> NewKey:
    return NewKey(provider, Secret(canary(number)), **values)
