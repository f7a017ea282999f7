"""What one proxy worker runs beside its requests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from pathlib import Path

import pytest

from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import LedgerUnavailable
from uc_litellm_plugin.settings import Settings
from uc_litellm_plugin.worker import Worker

GENERATIONS = (700, 10, 10)
NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"


def settings_at(url: str, state_dir: Path) -> Settings:
    """The settings of a worker on this database."""
    return settings_module.load({"UC_STATE_DIR": str(state_dir), "UC_DATABASE_URL": url})


async def test_a_database_that_comes_late(tmp_path: Path, empty_database_url: str) -> None:
    """A worker that started before PostgreSQL refuses calls, and makes the schema when it is there."""
    worker = Worker(settings_at(NOBODY, tmp_path))
    worker.prepare()
    with pytest.raises(LedgerUnavailable):
        await worker.ready()
    late = Worker(settings_at(empty_database_url, tmp_path))
    try:
        await late.ready()
        assert await late.database.fetchval("SELECT count(*) FROM power_level_configs") == 3
    finally:
        await late.stop()


async def test_stopping_writes_what_was_asked_for(tmp_path: Path, database_url: str) -> None:
    """Settlements that were asked for before the stop are in the database after it."""
    worker = Worker(settings_at(database_url, tmp_path))
    await worker.ready()
    await worker.database.execute("SELECT create_account('ann')")
    record = {"hold_id": "00000000-0000-0000-0000-000000000001", "user_id": "ann", "action": "settle",
              "charge": "1.5", "usage": None}  # fmt: skip

    asking = asyncio.ensure_future(worker.ledger.settle(record))
    await asyncio.sleep(0)
    await worker.stop()
    assert (await asking).charged == 1.5


async def test_stopping_ends_what_did_not_hear_it(tmp_path: Path, database_url: str) -> None:
    """A task that misses its cancellation, as one in `asyncio.wait_for` may, does not keep a worker alive."""
    missed = asyncio.Event()

    async def hard_of_hearing() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        missed.set()
        await asyncio.Event().wait()

    worker = Worker(settings_at(database_url, tmp_path))
    await worker.ready()
    worker._tasks.append(asyncio.create_task(hard_of_hearing()))
    await asyncio.sleep(0)
    await asyncio.wait_for(worker.stop(), 60)
    assert missed.is_set()


async def test_connections_are_at_hand(database_url: str, tmp_path: Path, db: Database) -> None:
    """The first calls of a fresh worker need not wait for a connection to be made."""
    worker = Worker(settings_at(database_url, tmp_path))
    await worker.ready()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT'"
    assert await db.fetchval(query) == 2
    await worker.stop()


@pytest.mark.parametrize("wanted", ["true", "false"])
async def test_what_is_there_after_the_start_is_not_collected(database_url: str, tmp_path: Path, wanted: str) -> None:
    """Where the setting says so, a started worker's objects are out of the garbage collector's way, else never."""
    file = tmp_path / "uc.yaml"
    file.write_text(f"process: {{freeze_after_start: {wanted}}}\n")
    environment = {"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": database_url, "UC_CONFIG": str(file)}
    worker = Worker(settings_module.load(environment))
    try:
        await worker.ready()
        assert (gc.get_freeze_count() > 0) is (wanted == "true")
    finally:
        gc.unfreeze()
        await worker.stop()


@pytest.mark.parametrize("wanted", ["true", "false"])
async def test_garbage_is_collected_between_steps(database_url: str, tmp_path: Path, wanted: str) -> None:
    """Where the setting says so, and by itself where this Python needs it, allocations collect nothing any more."""
    file = tmp_path / "uc.yaml"
    file.write_text(f"process: {{collect_between_steps: {wanted}}}\n")
    environment = {"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": database_url, "UC_CONFIG": str(file)}
    gc.set_threshold(*GENERATIONS)
    worker = Worker(settings_module.load(environment))
    await worker.ready()
    await asyncio.sleep(0)
    assert (gc.get_threshold() != GENERATIONS) is (wanted == "true")
    await worker.stop()
    assert gc.get_threshold() == GENERATIONS


def test_old_pythons_need_it() -> None:
    """Python before 3.12 collects between steps by default."""
    assert settings_module.load({}).process.collects_between_steps is (sys.version_info < (3, 12))
