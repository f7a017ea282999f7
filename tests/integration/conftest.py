from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.postgres import Server
from tests.integration.bills import Shop
from tests.integration.commands import Result, Run
from tests.integration.ledgers import USER, Counted
from uc_litellm_plugin import cli, migrations
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox
from uc_litellm_plugin.settings import Settings

ADD = "SELECT * FROM add_user_credits($1, 1000, 'bonus')"


@pytest.fixture
async def database(settings: Settings) -> Any:
    """A database with 1000 credits for one user."""
    async with Counted(settings) as database:
        await database.fetch(ADD, USER)
        yield database


@pytest.fixture(scope="session")
def doomed() -> Iterator[Server]:
    """A PostgreSQL that tests may freeze and whose wires they may cut, with 1000 credits for one user."""

    async def prepare(server: Server) -> None:
        settings = settings_module.load({"UC_DATABASE_URL": server.url})
        await migrations.migrate(settings)
        async with Database(settings) as database:
            await database.fetch(ADD, USER)

    with Server() as server:
        asyncio.run(prepare(server))
        yield server


@pytest.fixture
async def shop(db: Database, settings: Settings) -> Shop:
    """A user with 100 credits, who makes calls that a provider bills."""
    shop = Shop(db, settings)
    await shop.add()
    return shop


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox", 1_000_000)


@pytest.fixture
def ledger(database: Counted, outbox: Outbox) -> Ledger:
    return Ledger(database, outbox, 120)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory and an environment without settings of ours."""
    monkeypatch.chdir(tmp_path)
    for name in ("UC_DATABASE_URL", "UC_CONFIG", "UC_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run_anywhere(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `uc-litellm` in this process."""

    def run(*args: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def run(run_anywhere: Run, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `uc-litellm` on the test's own database."""
    monkeypatch.setenv("UC_DATABASE_URL", database_url)
    return run_anywhere
