from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from uc_litellm_plugin import migrations, scripts, verification
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseError, DatabaseUnavailable
from uc_litellm_plugin.settings import Settings, shipped

MIGRATE = """
import asyncio, sys
from uc_litellm_plugin import migrations, settings
sys.stdin.read()  # Everybody waits for the end of the input, so that all start together.
print(len(asyncio.run(migrations.migrate(settings.load()))))
"""


@pytest.fixture
def empty(settings: Settings, empty_database_url: str) -> Settings:
    """Settings for a database in which nothing is."""
    return settings.model_copy(update={"database_url": SecretStr(empty_database_url)})


@pytest.fixture
def sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scripts that the test may change."""
    copy = tmp_path / "sql"
    shutil.copytree(shipped("sql"), copy)
    monkeypatch.setattr(scripts, "shipped", lambda name: copy)
    return copy


async def run(settings: Settings, statement: str) -> None:
    assert settings.database_url is not None
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_clone_of_the_template_is_current(settings: Settings) -> None:
    """A migrated database needs nothing more, and verifies."""
    await migrations.require_current(settings)
    assert await migrations.migrate(settings) == []
    async with Database(settings) as database:
        assert await verification.find_problems(database, settings) == []


async def test_twelve_processes_at_once(empty: Settings) -> None:
    """Whoever comes first applies everything, the others nothing, and none fails."""
    assert empty.database_url is not None
    environ = {"UC_DATABASE_URL": empty.database_url.get_secret_value(), "PYTHONPATH": ":".join(sys.path)}
    starting = [
        asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, env=environ, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(12)
    ]  # fmt: skip
    processes = await asyncio.gather(*starting)
    outputs = await asyncio.gather(*[process.communicate(b"") for process in processes])
    assert [process.returncode for process in processes] == [0] * 12, [errors for _, errors in outputs]
    counts = sorted(int(output) for output, _ in outputs)
    assert counts == [0] * 11 + [len(scripts.shipped_migrations())]


async def test_a_changed_migration_is_refused(settings: Settings, sql: Path) -> None:
    """An applied file may not change; the message names it and both checksums."""
    was = next(each for each in scripts.shipped_migrations() if each.version == 1).checksum
    file = sql / "0001_tables.sql"
    file.write_text(file.read_text() + "\n-- later thought\n")
    now = next(each for each in scripts.shipped_migrations() if each.version == 1).checksum
    with pytest.raises(DatabaseError, match=r"0001_tables\.sql") as caught:
        await migrations.migrate(settings)
    assert was in str(caught.value)
    assert now in str(caught.value)


async def test_line_ends_change_nothing(settings: Settings, sql: Path) -> None:
    """A checkout with other line ends holds the same migrations."""
    file = sql / "0001_tables.sql"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert await migrations.migrate(settings) == []


async def test_changed_functions_are_applied_again(settings: Settings, sql: Path) -> None:
    """functions.sql may change at any time and is applied whenever it did."""
    functions = sql / "functions.sql"
    functions.write_text(functions.read_text() + "\n-- changed\n")
    assert [each.name for each in await migrations.status(settings) if each.state == "changed"] == ["functions"]
    assert await migrations.migrate(settings) == ["functions.sql"]
    assert await migrations.migrate(settings) == []


async def test_newer_functions_stay(settings: Settings, sql: Path) -> None:
    """An old host that restarts while others are upgraded does not bring its old functions back."""
    (sql / "functions.sql").write_text("SELECT 1/0")
    await run(settings, "UPDATE uc.schema_version SET app_version = '999.0.1' WHERE version = 0")
    assert await migrations.migrate(settings) == []
    await migrations.require_current(settings)


async def test_a_newer_database_is_refused(settings: Settings) -> None:
    """Code that does not know a migration must not run on it."""
    await run(settings, "INSERT INTO uc.schema_version (version, name, checksum) VALUES (99, 'future', 'x')")
    with pytest.raises(DatabaseError, match="version 99"):
        await migrations.migrate(settings)
    with pytest.raises(DatabaseError, match="newer"):
        await migrations.require_current(settings)


async def test_a_gap_in_the_history_is_refused(settings: Settings) -> None:
    """A missing row of schema_version is told, not guessed over."""
    await run(settings, "DELETE FROM uc.schema_version WHERE version = 2")
    with pytest.raises(DatabaseError, match="gap"):
        await migrations.migrate(settings)


async def test_a_missing_file_is_refused(settings: Settings, sql: Path) -> None:
    """An installation without one of its files does not start."""
    (sql / "0002_indexes.sql").unlink()
    with pytest.raises(DatabaseError, match="damaged"):
        await migrations.migrate(settings)


async def test_litellms_schema_is_refused(empty: Settings) -> None:
    """Where LiteLLM keeps its tables, nothing of ours is made."""
    await run(empty, 'CREATE SCHEMA uc; CREATE TABLE uc."LiteLLM_UserTable" ()')
    for work in (migrations.migrate(empty), migrations.init(empty, reset=True)):
        with pytest.raises(DatabaseError, match="LiteLLM_UserTable"):
            await work
    await run(empty, 'SELECT FROM uc."LiteLLM_UserTable"')


async def test_an_old_server_is_refused(empty: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server older than what the SQL needs is named."""
    monkeypatch.setattr(migrations, "OLDEST_POSTGRESQL", 99)
    with pytest.raises(DatabaseError, match="99 or newer"):
        await migrations.migrate(empty)


async def test_a_failing_file_leaves_nothing_of_itself(empty: Settings, sql: Path) -> None:
    """A file that fails half-way is undone and not recorded; the error names it, and the mended file applies."""
    broken = sql / f"{len(list(sql.glob('0*.sql'))) + 1:04d}_broken.sql"
    broken.write_text("CREATE TABLE half (id integer); SELECT 1/0;")
    with pytest.raises(DatabaseError, match=r"_broken\.sql.*division by zero"):
        await migrations.migrate(empty)
    states = {state.name: state.state for state in await migrations.status(empty)}
    assert (states["broken"], states["tables"]) == ("pending", "applied")
    broken.write_text("CREATE TABLE half (id integer)")
    assert await migrations.migrate(empty) == [broken.name, "functions.sql"]


async def test_a_database_made_by_hand_is_taken_over(empty: Settings) -> None:
    """After the files were run without us, as psql would, migrate records them and changes nothing."""
    for migration in scripts.shipped_migrations():
        await run(empty, migration.sql)
    await migrations.migrate(empty)
    await migrations.require_current(empty)


async def test_another_schema_name(empty: Settings) -> None:
    """Everything lives in the schema of the settings."""
    other = empty.model_copy(update={"database": empty.database.model_copy(update={"schema_name": "billing"})})
    await migrations.migrate(other)
    async with Database(other) as database:
        assert await database.fetchval("SELECT to_regclass('uc.user_credits')") is None
        assert await verification.find_problems(database, other) == []


async def test_init_is_all_or_nothing(settings: Settings, sql: Path) -> None:
    """A reset that fails in its last file has destroyed nothing."""
    async with Database(settings) as database:
        await database.fetch("SELECT success FROM add_user_credits('ann', 5, 'bonus')")
        (sql / "functions.sql").write_text("SELECT 1/0")
        with pytest.raises(DatabaseError, match="division by zero"):
            await migrations.init(settings, reset=True)
        assert await database.fetchval("SELECT credits_remaining FROM user_credits") == 5


async def test_init_with_test_data(settings: Settings) -> None:
    """A reset starts from nothing; the test data are accounts with credits in a ledger that adds up."""
    await migrations.init(settings, reset=True, test_data=True)
    assert await migrations.count_accounts(settings) == 3
    async with Database(settings) as database:
        assert await verification.find_problems(database, settings) == []


async def test_what_is_missing_is_found(settings: Settings) -> None:
    """Verification names a table, a function, a constraint and a seed row that are gone."""
    await run(
        settings,
        "DROP TABLE uc.settlement_quarantine; DROP FUNCTION uc.touch_api_keys; DELETE FROM uc.providers"
        " WHERE name = 'custom'; ALTER TABLE uc.user_credits DROP CONSTRAINT valid_tier",
    )
    async with Database(settings) as database:
        problems = "\n".join(await verification.find_problems(database, settings))
    for name in ("table settlement_quarantine", "function touch_api_keys", "constraint valid_tier", "'custom'"):
        assert name in problems


async def test_no_server_is_unavailable(settings: Settings) -> None:
    """A refused connection is told at once, as something that may pass."""
    nowhere = settings.model_copy(update={"database_url": SecretStr("postgresql://me@127.0.0.1:1/none")})
    with pytest.raises(DatabaseUnavailable):
        await migrations.migrate(nowhere)
