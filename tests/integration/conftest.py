from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.ledgers import USER, Counted
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox
from uc_litellm_plugin.settings import Settings


@pytest.fixture
async def database(settings: Settings) -> Any:
    """A database with 1000 credits for one user."""
    async with Counted(settings) as database:
        await database.fetch("SELECT * FROM add_user_credits($1, 1000, 'bonus')", USER)
        yield database


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox", 1_000_000)


@pytest.fixture
def ledger(database: Counted, outbox: Outbox) -> Ledger:
    return Ledger(database, outbox, 120)
