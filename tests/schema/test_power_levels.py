"""The rows of the power levels have two editors, the settings file and whoever writes the row: the last edit stands."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.schema.conftest import Connect
from tests.schema.ledger import Connection
from tests.schema.server import apply_sql

LONG_AGO = datetime(2001, 1, 1, tzinfo=timezone.utc)
EDIT = "UPDATE power_level_configs SET cost_multiplier = $1 WHERE power_level = 'eco'"
MIGRATION = (Path(__file__).parents[2] / "sql" / "0006_power_levels.sql").read_text()


class Levels:
    """The rows, and the function by which a file edits them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def read_at_start(self, modified: datetime, level: str = "eco", **values: Any) -> str:
        return await self._apply(level, values, modified, None)

    async def changed(self, age_s: float = 0, level: str = "eco", **values: Any) -> str:
        return await self._apply(level, values, None, timedelta(seconds=age_s))

    async def _apply(self, level: str, values: dict[str, Any], modified: datetime | None, age: timedelta | None) -> str:
        text = json.dumps(values)
        sql = "SELECT apply_power_level($1, $2::jsonb, $3, p_modified => $4, p_age => $5)"
        return str(await self.connection.fetchval(sql, level, text, f"sum of {text}", modified, age))

    async def edit(self, multiplier: str) -> None:
        await self.connection.execute(EDIT, Decimal(multiplier))

    async def row(self, level: str = "eco") -> asyncpg.Record:
        row = await self.connection.fetchrow("SELECT * FROM power_level_configs WHERE power_level = $1", level)
        assert row is not None
        return row

    async def now(self) -> datetime:
        now: datetime = await self.connection.fetchval("SELECT clock_timestamp()")
        return now


@pytest.fixture
async def levels(db: Connection) -> Levels:
    return Levels(db)


async def test_only_what_is_named_changes(levels: Levels) -> None:
    """What a file leaves out stays as it is in the row, and the row says who wrote it and when that was edited."""
    before, start = dict(await levels.row()), await levels.now()
    assert await levels.changed(cost_multiplier="0.8", preferred_providers=["groq"], max_latency_ms=None) == "applied"
    after = dict(await levels.row())
    assert (after["cost_multiplier"], json.loads(after["preferred_providers"])) == (Decimal("0.8"), ["groq"])
    assert (after["max_latency_ms"], after["source"], after["yaml_checksum"][:6]) == (None, "yaml", "sum of")
    assert start <= after["edited_at"] <= after["updated_at"]
    changed = {"cost_multiplier", "preferred_providers", "max_latency_ms", "source", "yaml_checksum", "edited_at",
               "updated_at"}  # fmt: skip
    assert {key for key in before if before[key] != after[key]} == changed


async def test_the_same_content_is_written_once(levels: Levels) -> None:
    """What was applied last changes nothing a second time, whoever edited the row since."""
    assert await levels.changed(cost_multiplier="0.8") == "applied"
    applied = await levels.row()
    assert await levels.changed(cost_multiplier="0.8") == "known"
    assert await levels.row() == applied
    await levels.edit("0.9")
    edited = await levels.row()
    assert await levels.changed(cost_multiplier="0.8") == "known"
    assert await levels.read_at_start(await levels.now(), cost_multiplier="0.8") == "known"
    assert await levels.row() == edited


async def test_the_seed_is_older_than_any_file(levels: Levels) -> None:
    """A file that was written long before the database was made still counts: nobody has edited the seed."""
    assert (await levels.row())["edited_at"] is None
    assert await levels.read_at_start(LONG_AGO, cost_multiplier="0.8") == "applied"
    assert (await levels.row())["edited_at"] == LONG_AGO


async def test_an_edit_of_the_row_beats_an_older_file(levels: Levels) -> None:
    """At a start a file counts only if it is newer than the last edit of the row."""
    before = await levels.now()
    await levels.edit("0.9")
    edited = await levels.row()
    assert (edited["source"], edited["yaml_checksum"]) == ("database", None)
    assert await levels.read_at_start(before, cost_multiplier="0.8") == "older"
    assert await levels.read_at_start(edited["edited_at"], cost_multiplier="0.8") == "older"
    assert await levels.row() == edited
    assert await levels.read_at_start(await levels.now(), cost_multiplier="0.8") == "applied"
    assert (await levels.row())["source"] == "yaml"


async def test_a_change_under_a_running_worker_always_counts(levels: Levels) -> None:
    """However old the file's own time, a change that is seen now is the last edit."""
    await levels.edit("0.9")
    assert await levels.changed(cost_multiplier="0.8") == "applied"
    await levels.edit("0.9")
    assert await levels.changed(cost_multiplier="0.7") == "applied"
    assert await levels.changed(cost_multiplier="0.8") == "applied"


async def test_a_change_that_had_to_wait_may_be_overtaken(levels: Levels) -> None:
    """A change that could not be applied when it was seen is as old as it is: the row may have been edited since."""
    await levels.edit("0.9")
    assert await levels.changed(60, cost_multiplier="0.8") == "older"
    assert await levels.changed(0, cost_multiplier="0.8") == "applied"


async def test_a_file_from_the_future_is_of_now(levels: Levels) -> None:
    """A wrong clock does not make a file win for ever: it counts as edited just now."""
    future = await levels.now() + timedelta(days=365)
    assert await levels.read_at_start(future, cost_multiplier="0.8") == "applied"
    assert (await levels.row())["edited_at"] <= await levels.now()
    assert await levels.changed(cost_multiplier="0.7") == "applied"


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
async def test_hosts_start_in_any_order(levels: Levels, order: tuple[int, ...]) -> None:
    """In a rolling deploy the newest file stands, whichever host starts when, and however often."""
    await levels.edit("0.5")
    now = await levels.now()
    files = [(now + timedelta(milliseconds=host), f"0.6{host}") for host in range(3)]
    await levels.connection.execute("SELECT pg_sleep(0.003)")
    for host in (*order, *order):
        modified, multiplier = files[host]
        await levels.read_at_start(modified, cost_multiplier=multiplier)
    assert (await levels.row())["cost_multiplier"] == Decimal("0.62")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE power_level_configs SET updated_at = now()",
        "UPDATE power_level_configs SET cost_multiplier = cost_multiplier, source = 'database'",
        "UPDATE power_level_configs SET source = 'yaml', edited_at = '2001-01-01'",
        "ALTER TABLE power_level_configs ADD requests bigint; UPDATE power_level_configs SET requests = 5",
    ],
)
async def test_a_machine_is_no_editor(levels: Levels, statement: str) -> None:
    """A write that changes nothing of what people set does not make the row look newer, nor change its source."""
    await levels.edit("0.9")
    before = await levels.row()
    await levels.connection.execute(statement)
    after = await levels.row()
    assert (after["source"], after["edited_at"]) == (before["source"], before["edited_at"])
    assert after["updated_at"] > before["updated_at"]


EDITS = ["name = 'x'", "description = 'x'", "preferred_providers = '[]'", "fallback_strategy = 'none'",
         "cost_multiplier = 3", "max_latency_ms = NULL", "min_quality_score = 1", "default_max_output_tokens = 1",
         "is_active = false", "cost_multiplier = 3, source = 'yaml'"]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
async def test_an_edit_of_the_row_is_noted(levels: Levels, edit: str) -> None:
    """Whoever changes a row by hand becomes its source, and the moment is kept, whatever the statement says of it."""
    await levels.changed(cost_multiplier="0.8")
    before = await levels.row()
    await levels.connection.execute(f"UPDATE power_level_configs SET {edit} WHERE power_level = 'eco'")
    after = await levels.row()
    assert (after["source"], after["yaml_checksum"]) == ("database", before["yaml_checksum"])
    assert after["edited_at"] > before["edited_at"]


async def test_a_new_level(levels: Levels) -> None:
    """A level that the table does not know is made, by a file of any age, with the table's defaults for the rest."""
    assert await levels.read_at_start(LONG_AGO, "turbo", cost_multiplier="2") == "applied"
    row = await levels.row("turbo")
    assert (row["name"], row["cost_multiplier"], row["source"]) == ("Turbo", 2, "yaml")
    assert (json.loads(row["preferred_providers"]), row["fallback_strategy"], row["is_active"]) == (
        [], "next_available", True,
    )  # fmt: skip
    assert await levels.changed(0, "plain") == "applied"
    assert (await levels.row("plain"))["cost_multiplier"] == 1


@pytest.mark.parametrize("level", ["eco", "turbo"])
async def test_many_workers_write_once(connect: Connect, level: str) -> None:
    """Of workers that see the same change at the same time one applies it, and no other writes."""
    workers = [Levels(await connect()) for _ in range(5)]
    outcomes = await asyncio.gather(*(worker.changed(0, level, cost_multiplier="0.8") for worker in workers))
    assert sorted(outcomes) == ["applied", *["known"] * 4]


async def test_a_file_waits_for_an_edit_under_way(levels: Levels, connect: Connect) -> None:
    """While somebody's edit of the row is not committed, the file waits, and then the later of the two stands."""
    other = Levels(await connect())
    transaction = other.connection.transaction()
    await transaction.start()
    earlier = await levels.now()
    await other.edit("0.9")
    waiting = asyncio.create_task(levels.read_at_start(earlier, cost_multiplier="0.8"))
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    while await other.connection.fetchval(blocked) == 0:
        pass
    await transaction.commit()
    assert await waiting == "older"
    assert (await levels.row())["cost_multiplier"] == Decimal("0.9")


@pytest.mark.parametrize(
    ("level", "values"),
    [("eco", {"cost_multiplier": 0}), ("turbo", {"min_quality_score": 101}), ("Not A Level", {})],
)
async def test_a_refused_edit_leaves_all(levels: Levels, level: str, values: dict[str, Any]) -> None:
    """What the table's constraints refuse changes no row and makes none."""
    everything = "SELECT * FROM power_level_configs ORDER BY id"
    before = await levels.connection.fetch(everything)
    with pytest.raises(asyncpg.CheckViolationError):
        await levels.changed(0, level, **values)
    assert await levels.connection.fetch(everything) == before


_AS_BEFORE = """
ALTER TABLE power_level_configs DROP edited_at;
UPDATE power_level_configs SET updated_at = now(), cost_multiplier = 5 WHERE power_level = 'eco';
ALTER TABLE power_level_configs DISABLE TRIGGER USER;
UPDATE power_level_configs SET created_at = '2001-01-01', updated_at = '2001-01-01';
UPDATE power_level_configs SET updated_at = '2002-02-02' WHERE power_level = 'eco';
INSERT INTO power_level_configs (power_level, name, updated_at) VALUES ('turbo', 'Turbo', '2003-03-03');
ALTER TABLE power_level_configs ENABLE TRIGGER USER"""


async def test_an_upgrade_knows_who_edited(levels: Levels) -> None:
    """At the upgrade, rows that somebody edited or added count as edited then; the seed counts as edited by nobody."""
    run = levels.connection.execute
    await run("DROP TRIGGER note_edit ON power_level_configs")
    await run(_AS_BEFORE)
    await run(MIGRATION)
    rows = await levels.connection.fetch("SELECT power_level, source, edited_at FROM uc.power_level_configs")
    known = {row["power_level"]: (row["source"], row["edited_at"] and row["edited_at"].year) for row in rows}
    assert known == {
        "eco": ("database", 2002), "balanced": ("seed", None), "precision": ("seed", None), "turbo": ("database", 2003),
    }  # fmt: skip
    await levels.connection.execute(MIGRATION)
    assert await levels.connection.fetch("SELECT power_level, source, edited_at FROM uc.power_level_configs") == rows


async def test_an_upgrade_replaces_functions(db: Connection) -> None:
    """Functions whose columns grew are made anew once; after that, what was granted on them stays."""
    old = "LANGUAGE sql AS $$ SELECT user_id FROM uc.user_credits WHERE user_id = p_user_id $$"
    await db.execute("DROP FUNCTION load_account")
    await db.execute(f"CREATE FUNCTION load_account(p_user_id text) RETURNS TABLE (user_id text) {old}")
    await apply_sql(db)
    await db.execute("SELECT uc.create_account('ann'); UPDATE uc.user_credits SET power_level_downgrade = true")
    account = await db.fetchrow("SELECT * FROM uc.load_account('ann')")
    assert account is not None
    assert account["power_level_downgrade"] is True
    await db.execute("CREATE ROLE uc_test_app; GRANT EXECUTE ON FUNCTION uc.load_account TO uc_test_app")
    try:
        await apply_sql(db)
        allowed = "SELECT has_function_privilege('uc_test_app', 'uc.load_account(text)', 'EXECUTE')"
        assert await db.fetchval(allowed) is True
    finally:
        await db.execute("DROP OWNED BY uc_test_app; DROP ROLE uc_test_app")


async def test_callers_know_whether_to_downgrade(db: Connection) -> None:
    """Both ways to an account say whether its calls may go down a level; off is the default."""
    await db.execute("SELECT create_account('ann')")
    await db.execute("INSERT INTO user_api_keys (user_id, key_hash) VALUES ('ann', repeat('a', 64))")
    ask = "SELECT power_level_downgrade FROM load_account('ann') UNION ALL SELECT power_level_downgrade FROM "
    ask += "load_caller(repeat('a', 64))"
    assert [row[0] for row in await db.fetch(ask)] == [False, False]
    await db.execute("UPDATE user_credits SET power_level_downgrade = true")
    assert [row[0] for row in await db.fetch(ask)] == [True, True]
