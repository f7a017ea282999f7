"""Listening for changes on behalf of a cache, so that a test can wait until one was heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from uc_litellm_plugin import changes
from uc_litellm_plugin.accounts import Accounts
from uc_litellm_plugin.settings import Settings


class Ear:
    """Listens for changes, drops what they name, and tells when it has."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.ready, self.lost = asyncio.Event(), asyncio.Event()
        self.payloads: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def on_payload(self, payload: str) -> None:
        self.accounts.changed(payload)
        self.payloads.put_nowait(json.loads(payload))

    def on_ready(self) -> None:
        self.accounts.heard()
        self.ready.set()

    def on_lost(self) -> None:
        self.accounts.deaf()
        self.lost.set()

    async def heard(self, table: str) -> None:
        """Wait until a change of that table was heard."""
        while (await asyncio.wait_for(self.payloads.get(), 60))["table"] != table:
            pass


@asynccontextmanager
async def listening(settings: Settings, accounts: Accounts) -> AsyncIterator[Ear]:
    ear = Ear(accounts)
    task = asyncio.create_task(
        changes.listen(settings, on_payload=ear.on_payload, on_ready=ear.on_ready, on_lost=ear.on_lost)
    )
    try:
        await asyncio.wait_for(ear.ready.wait(), 60)
        yield ear
    finally:
        task.cancel()
        await asyncio.wait([task])
