"""Users' own provider keys in an acceptance test's database: stored as the commands store them, or many at once."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from tests.acceptance.bank import Account, Bank
from tests.proxy import Json
from uc_litellm_plugin import settings, vault
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.provider_key import NewKey
from uc_litellm_plugin.provider_keys import ProviderKeys
from uc_litellm_plugin.settings import ByokSettings
from uc_litellm_plugin.vault import Secret, Vault

CANARY = re.compile(r"cnry[0-9a-f]{8}u\d{3,}[a-z]+[0-9a-f]{16}")
PREFIXES = {"openai": "sk-", "anthropic": "sk-ant-", "openrouter": "sk-or-", "together": "", "custom": ""}
_INSERT = """
INSERT INTO uc.user_provider_keys (user_id, provider, encrypted_api_key, key_id, key_name, key_hint, is_default)
VALUES ($1, $2, $3, $4, $5, $6, true)"""


def canary(seed: int, user: int, provider: str) -> str:
    """A key of the provider's form that is nobody else's."""
    return f"{PREFIXES[provider]}cnry{seed % 2**32:08x}u{user:03}{provider}{secrets.token_hex(8)}"


@dataclass(frozen=True)
class Keyring:
    """The keys of a bank's users.

    Attributes
    ----------
    sealing_key
        What the proxy must have in UC_SEALING_KEYS.
    rules
        The settings `byok` by which keys are accepted.
    """

    bank: Bank
    sealing_key: str
    rules: ByokSettings

    def add(self, account: Account, provider: str, key: str, **values: Any) -> Json:
        """Store one as a user does; the row as its owner sees it."""

        async def work() -> Json:
            async with Database(settings.load({"UC_DATABASE_URL": self.bank.url})) as database:
                keys = ProviderKeys(database, self._vault(), self.rules)
                return await keys.add(account.user_id, NewKey(provider, Secret(key), **values))

        return asyncio.run(work())

    def insert(self, keys: Iterable[tuple[Account, str, str]], name: str = "default") -> None:
        """Store many at once: account, provider, key."""
        vault = self._vault()

        async def work() -> None:
            rows = []
            for account, provider, key in keys:
                sealed = vault.seal(account.user_id, provider, Secret(key))
                rows.append((account.user_id, provider, sealed.token, sealed.key_id, name, key[-4:]))
            async with Database(settings.load({"UC_DATABASE_URL": self.bank.url})) as database:
                for row in rows:
                    await database.execute(_INSERT, *row)

        asyncio.run(work())

    def row(self, account: Account, provider: str, name: str = "default") -> Json:
        """A key's row."""
        query = "SELECT * FROM user_provider_keys WHERE user_id = $1 AND provider = $2 AND key_name = $3"
        (row,) = self.bank.rows(query, account.user_id, provider, name)
        return row

    @property
    def key_id(self) -> str:
        """The sealing key's fingerprint, as it stands in rows."""
        return self._vault().newest

    def _vault(self) -> Vault:
        return Vault([SecretStr(self.sealing_key)])


def made(bank: Bank, **rules: Any) -> Keyring:
    """A keyring with a sealing key of its own."""
    return Keyring(bank, vault.new_sealing_key(), ByokSettings.model_validate(rules))
