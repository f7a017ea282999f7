"""The vault when a process starts."""

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from tests.integration.vaults import Keyring, new_key, vault_of
from uc_litellm_plugin import vault
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import SettingsError


@pytest.fixture
def keyring(db: Database) -> Keyring:
    return Keyring.on(db)


async def test_a_start_without_keys_of_either_kind(keyring: Keyring) -> None:
    """Without a sealing key and without provider keys there is no vault and no error."""
    assert await vault.check_at_start(keyring.database, ()) is None


async def test_a_start_with_a_sealing_key(keyring: Keyring) -> None:
    """With sealing keys there is a vault, whether there is something in it or not; malformed ones stop the start."""
    started = await vault.check_at_start(keyring.database, [SecretStr(keyring.new), SecretStr(keyring.old)])
    assert started is not None
    assert started.key_ids == vault_of(keyring.new, keyring.old).key_ids
    with pytest.raises(SettingsError, match="UC_SEALING_KEYS"):
        await vault.check_at_start(keyring.database, [SecretStr("hunter2")])


async def test_a_start_without_the_sealing_key(keyring: Keyring) -> None:
    """Provider keys without any sealing key stop the start; the message names the variable, the ids and the way out."""
    await keyring.account("ann")
    await keyring.keys().add("ann", new_key())
    with pytest.raises(SettingsError) as refused:
        await vault.check_at_start(keyring.database, ())
    message = str(refused.value)
    for part in ("1 provider key", "UC_SEALING_KEYS", vault_of(keyring.old).newest, "byok.enabled"):
        assert part in message
    assert await vault.check_at_start(keyring.database, (), enabled=False) is None


async def test_a_start_with_one_sealing_key_missing(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    """A sealing key removed too early does not stop the others' calls: the log names it and how many keys it closes."""
    await keyring.account("ann")
    await keyring.keys().add("ann", new_key())
    with caplog.at_level(logging.CRITICAL):
        assert await vault.check_at_start(keyring.database, [SecretStr(keyring.new)]) is not None
    (record,) = caplog.records
    assert record.getMessage().startswith("1 provider key(s): Sealed with the sealing key")
    assert vault_of(keyring.old).newest in record.getMessage()
