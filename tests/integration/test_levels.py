"""The settings file's power levels, live, on a real database and real files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from tests.chaos.postgres import Server
from tests.integration.ears import listening
from tests.integration.followers import (
    PATIENCE_S,
    ROW,
    WAYS,
    Follower,
    Told,
    plain,
    rename_over,
    settings_of,
    text,
    truncate_and_write,
)
from tests.pace import within
from uc_litellm_plugin import levels as levels_module
from uc_litellm_plugin import migrations
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.accounts import Accounts
from uc_litellm_plugin.settings import PowerLevelSettings
from uc_litellm_plugin.worker import Worker


@pytest.fixture
def told() -> Iterator[Told]:
    """What the followed files made workers say."""
    logger, told = logging.getLogger(levels_module.__name__), Told()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(told)
    yield told
    logger.removeHandler(told)
    logger.setLevel(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file that says 0.8 of eco."""
    return plain(tmp_path, text("0.8"))


@pytest.fixture
async def follower(file: Path, database_url: str, told: Told) -> AsyncIterator[Follower]:
    """A worker that has applied its file and follows it."""
    async with Follower(file, database_url).running() as follower:
        assert await follower.outcome() == ("eco", "applied")
        yield follower


@pytest.mark.parametrize("way", WAYS)
async def test_an_edit_counts_within_a_second(tmp_path: Path, database_url: str, way: str) -> None:
    """However a file is edited, its row follows within a second, and once."""
    layout, edit = WAYS[way]
    file = layout(tmp_path, text("0.8"))
    async with Follower(file, database_url).running() as follower:
        assert await follower.outcome() == ("eco", "applied")
        started = time.monotonic()
        async with within(1):
            edit(file, text("0.6"))
            assert await follower.outcome() == ("eco", "applied")
        print(f"{way}: {time.monotonic() - started:.3f} s")
        assert await follower.multiplier() == "0.6"
        truncate_and_write(file, text("0.65"))
        assert await follower.outcome() == ("eco", "applied")


BAD = [
    ("power_levels: {eco: {cost_multiplier: 0}}", "power_levels.eco.cost_multiplier", "greater than 0"),
    ("power_levels: {eco: {cost_multiplier: 0.12345}}", "power_levels.eco.cost_multiplier", "4 decimal places"),
    ("power_levels: {eco: {price: 5}}", "power_levels.eco.price", "unknown key"),
    ("power_levels: {eco: {preferred_providers: groq}}", "power_levels.eco.preferred_providers", "write a list"),
    ("power_levels: {Eco Two: {}}", "power_levels.Eco Two", "pattern"),
    ("power_levels: {eco: [", "line 1", "YAML"),
    ("power_levels:\n  eco:\n    name: a\x00b", "characters", "YAML"),
    ("power_levels:\n", "power_levels", "{} for none"),
    (text("0.6", more="holds: {lease_s: 0}\nusage: 5\n"), "holds.lease_s", "usage"),
]


@pytest.mark.parametrize(("content", "key", "fix"), BAD, ids=[key for _, key, _ in BAD])
async def test_a_bad_edit_is_refused(
    follower: Follower, file: Path, told: Told, content: str, key: str, fix: str
) -> None:
    """A bad edit is one line of the log that names file, key and fix; the old stays, and the next good edit counts."""
    rename_over(file, content)
    line = await told.first("ERROR")
    assert (str(file) in line, key in line, fix in line, "\n" in line) == (True, True, True, False), line
    assert await follower.multiplier() == "0.8"
    os.utime(file)
    rename_over(file, text("0.6"))
    assert await follower.outcome() == ("eco", "applied")
    assert len(told.at("ERROR")) == 1


async def test_what_postgresql_refuses(follower: Follower, file: Path, told: Told) -> None:
    """What only the database finds wrong is one line, too, and the row stays; other levels of the file count."""
    rename_over(file, text("0.6", "turbo") + '  eco: {name: "a\\0b"}\n')
    assert await follower.outcome() == ("turbo", "applied")
    line = await told.first("ERROR")
    assert (str(file) in line, "power_levels.eco" in line, "\n" in line) == (True, True, False)
    assert await follower.multiplier() == "0.8"
    rename_over(file, text("0.7"))
    assert await follower.outcome() == ("eco", "applied")


async def test_the_file_is_gone_for_a_while(follower: Follower, file: Path, told: Told) -> None:
    """A file that is not there, or is no file, is refused like a bad edit; when it is back, what differs is applied."""
    file.unlink()
    assert f"{file}: No such file" in await told.first("ERROR")
    file.mkdir()
    await told.at_least(2, "ERROR")
    file.rmdir()
    rename_over(file, text("0.8") + "  turbo: {cost_multiplier: 2}\n")
    assert await follower.outcome() == ("turbo", "applied")
    assert await follower.multiplier() == "0.8"


async def test_a_level_by_the_file_alone(follower: Follower, file: Path) -> None:
    """A level that the table does not know can be used as soon as the file names it, and stays when it does not."""
    accounts = Accounts(follower.database)
    async with listening(follower.file._running, accounts) as ear:
        assert set(await accounts.levels()) == {"eco", "balanced", "precision"}
        rename_over(file, text("0.8") + "  turbo: {cost_multiplier: 2, preferred_providers: [groq, openai]}\n")
        await ear.heard("power_level_configs")
        turbo = (await accounts.levels())["turbo"]
        assert (f"{turbo.multiplier:.1f}", turbo.preferred_providers) == ("2.0", ("groq", "openai"))
        assert await follower.outcome() == ("turbo", "applied")
        rename_over(file, text("0.6"))
        assert await follower.outcome() == ("eco", "applied")
        assert set(await accounts.levels()) == {"eco", "balanced", "precision", "turbo"}


async def test_only_levels_that_changed_are_applied(follower: Follower, file: Path) -> None:
    """An edit of one level, of a comment, or of how a number is written leaves what other rows became since."""
    rename_over(file, text("0.8") + "  balanced: {cost_multiplier: 1.1}\n")
    assert await follower.outcome() == ("balanced", "applied")
    await follower.edit_row("0.5")
    rename_over(file, text("0.80", more="  # a remark\n") + "  balanced: {cost_multiplier: 1.2}\n")
    assert await follower.outcome() == ("balanced", "applied")
    assert (await follower.multiplier(), await follower.multiplier("balanced")) == ("0.5", "1.2")


async def test_workers_of_a_host_write_once(follower: Follower, file: Path, database_url: str) -> None:
    """Every worker sees an edit, one applies it."""
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(Follower(file, database_url).running()) for _ in range(3)]
        assert {await other.outcome() for other in others} == {("eco", "known")}
        rename_over(file, text("0.6"))
        outcomes = [(await worker.outcome())[1] for worker in (follower, *others)]
        assert sorted(outcomes) == ["applied", "known", "known", "known"]


async def started(file: Path, url: str) -> str:
    """What became of the file of a worker that started, and stopped again."""
    async with Follower(file, url).running() as follower:
        return (await follower.outcome())[1]


async def test_a_rolling_deploy(tmp_path: Path, database_url: str) -> None:
    """While two hosts have different files the newer stands, whoever restarts; an edit of the row beats both."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = plain(tmp_path / "old", text("0.8")), plain(tmp_path / "new", text("0.6"))
    os.utime(old, (1e9, 1e9))
    async with Follower(old, database_url).running() as running:
        assert await running.outcome() == ("eco", "applied")
        assert [await started(file, database_url) for file in (new, old, new, old)] == [
            "applied", "older", "known", "older",
        ]  # fmt: skip
        assert await running.multiplier() == "0.6"
        await running.edit_row("0.5")
        assert [await started(file, database_url) for file in (old, new)] == ["older", "known"]
        assert await running.multiplier() == "0.5"
        rename_over(old, text("0.6"))
        assert await running.outcome() == ("eco", "known")


async def test_a_release_that_is_taken_back(tmp_path: Path, database_url: str) -> None:
    """A file that is put in place by a link is as new as the link: an older release counts when it is linked again."""
    for name, content in (("v1", text("0.8")), ("v2", text("0.6"))):
        (tmp_path / name).mkdir()
        os.utime(plain(tmp_path / name, content), (1e9, 1e9 + int(name[1])))
    for name in ("v1", "v2", "v1"):
        (tmp_path / "next").symlink_to(name)
        os.replace(tmp_path / "next", tmp_path / "current")
        assert await started(tmp_path / "current" / "uc.yaml", database_url) == "applied"


@pytest.mark.parametrize("seed", range(3))
async def test_the_last_edit_stands(file: Path, database_url: str, seed: int) -> None:
    """Whatever is edited in whatever order, with restarts in between, the row says what the last edit said."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    stands = "0.8"
    async with AsyncExitStack() as life:
        follower = await life.enter_async_context(Follower(file, database_url).running())
        await follower.outcome()
        for step in range(25):
            match chance.choice(("file", "file at rest", "row", "restart")):
                case "file":
                    stands = f"0.{step}1"
                    chance.choice((rename_over, truncate_and_write))(file, text(stands))
                    assert await follower.outcome() == ("eco", "applied")
                case "row":
                    stands = f"0.{step}2"
                    await follower.edit_row(stands)
                case restart:
                    await life.aclose()
                    if restart == "file at rest":
                        stands = f"0.{step}1"
                        rename_over(file, text(stands))
                        # The kernel's own stamp may be some milliseconds behind its clock.
                        os.utime(file, ns=(time.time_ns(), time.time_ns()))
                    follower = await life.enter_async_context(Follower(file, database_url).running())
                    await follower.outcome()
            assert await follower.multiplier() == stands, step


async def test_every_worker_obeys_both_editors(file: Path, database_url: str) -> None:
    """An edit of the file and one of the row are what the next call of every worker sees, within a second."""
    async with AsyncExitStack() as stack:
        workers = [Worker(settings_of(file, database_url)) for _ in range(2)]
        for worker in workers:
            stack.push_async_callback(worker.stop)
            await worker.ready()

        async def obeyed(multiplier: str) -> None:
            while [(await worker.accounts.levels())["eco"].multiplier for worker in workers] != [
                Decimal(multiplier)
            ] * 2:
                await asyncio.sleep(0)

        async with within(1):
            await asyncio.wait_for(obeyed("0.8"), PATIENCE_S)
        for editor, multiplier in (("file", "0.6"), ("row", "0.9"), ("file", "0.7"), ("row", "0.5")):
            started = time.monotonic()
            async with within(1):
                if editor == "file":
                    rename_over(file, text(multiplier))
                else:
                    await workers[0].database.execute(f"UPDATE power_level_configs SET cost_multiplier = {multiplier}")
                await asyncio.wait_for(obeyed(multiplier), PATIENCE_S)
            print(f"{editor}: {time.monotonic() - started:.3f} s")


async def test_the_shipped_example_is_eco(tmp_path: Path, database_url: str) -> None:
    """What the shipped file shows of a level is what the seed's eco has: naming it changes nothing but who wrote it."""
    shipped = (settings_module.shipped("config") / "uc.yaml").read_text()
    start = shipped.index("#   eco:\n")
    example = re.sub(r"^# ", "", shipped[start : shipped.index("power_levels: {}")], flags=re.MULTILINE)
    file = plain(tmp_path, f"power_levels:\n{example}")
    async with Follower(file, database_url).running() as follower:
        before = await follower.database.fetchrow(ROW, "balanced")
        assert await follower.outcome() == ("eco", "applied")
        seed = (settings_module.shipped("sql") / "0003_seed.sql").read_text()
        row = await follower.database.fetchrow(ROW, "eco")
        assert row is not None
        values = (row["power_level"], row["name"], row["description"], json.dumps(row["preferred_providers"]))
        assert "('{}', '{}', '{}', '{}', 0.7, 5000, 70, 2048, 'seed')".format(*values) in seed
        numbers = (row["cost_multiplier"], row["max_latency_ms"], row["min_quality_score"])
        assert (*numbers, row["default_max_output_tokens"]) == (Decimal("0.7"), 5000, 70, 2048)
        named = settings_of(file, database_url).power_levels["eco"].model_fields_set
        assert named == set(PowerLevelSettings.model_fields)
        assert await follower.database.fetchrow(ROW, "balanced") == before


@pytest.fixture(scope="module")
def mortal() -> Iterator[Server]:
    """A PostgreSQL that may crash."""
    with Server() as server:
        yield server


@pytest.fixture
async def stranded(mortal: Server, file: Path, told: Told) -> AsyncIterator[Follower]:
    """A worker that turns by hand; it has applied its file, edited it to 0.6 then 0.7, and PostgreSQL has crashed."""
    await migrations.migrate(settings_of(file, mortal.url))
    truncate_and_write(file, text("0.8"))
    follower = Follower(file, mortal.url)
    async with follower.database:
        await follower.file.refresh()
        assert await follower.outcome() == ("eco", "applied")
        mortal.crash()
        for multiplier in ("0.6", "0.7"):
            rename_over(file, text(multiplier))
            await follower.file.refresh()
        mortal.start()
        yield follower


async def test_postgresql_was_away(stranded: Follower, told: Told) -> None:
    """What was edited while PostgreSQL was away is applied when it is back, the last of it; waiting is told once."""
    assert [("wait for PostgreSQL" in line, "eco" in line) for line in told.at("WARNING")] == [(True, True)]
    await stranded.file.refresh()
    assert await stranded.multiplier() == "0.7"


async def test_somebody_was_faster(stranded: Follower, told: Told) -> None:
    """An edit of the row after PostgreSQL is back is the last one, though the file's comes to it later."""
    await stranded.edit_row("0.9")
    await stranded.file.refresh()
    assert await stranded.multiplier() == "0.9"
    assert "older than the last edit of its row" in told.at("WARNING")[-1]
    await stranded.file.refresh()
    assert stranded.database.outcomes.qsize() == 1


async def test_other_sections_need_a_restart(follower: Follower, file: Path, told: Told) -> None:
    """An edit that also changes other sections says which need a restart, and its levels count."""
    rename_over(file, text("0.6", more="holds: {min_output_tokens: 300}\ntiers: {free: {markup: 2}}\n"))
    assert await follower.outcome() == ("eco", "applied")
    line = await told.first("WARNING")
    assert (str(file) in line, "holds, tiers need a restart" in line) == (True, True)
    rename_over(file, text("0.7", more="holds: {min_output_tokens: 300}\ntiers: {free: {markup: 2}}\n"))
    assert await follower.outcome() == ("eco", "applied")
    assert len(told.at("WARNING")) == 1


async def test_an_unknown_provider_is_a_doubt(follower: Follower, file: Path, told: Told) -> None:
    """A preferred provider without a row counts, for LiteLLM may call one so; a warning lists the known ones."""
    rename_over(file, "power_levels: {eco: {preferred_providers: [groq, xai, opnai]}}")
    assert await follower.outcome() == ("eco", "applied")
    line = await told.first("WARNING")
    assert "prefers xai, opnai" in line
    assert "anthropic, anyscale, cohere" in line


async def test_a_default_that_is_switched_off(follower: Follower, file: Path, told: Told) -> None:
    """Switching off a level that is somebody's default is done, with a warning that says for how many accounts."""
    await follower.database.fetch(
        "SELECT create_account('ann'), create_account('bob'), create_account('cy', 'free', 'eco')"
    )
    rename_over(file, "power_levels: {balanced: {is_active: false}, precision: {is_active: off}}")
    assert {await follower.outcome(), await follower.outcome()} == {("balanced", "applied"), ("precision", "applied")}
    line = await told.first("WARNING")
    assert "balanced is switched off and is the default of 2 account(s)" in line
    assert "users set USER --power-level" in line
    assert set(await Accounts(follower.database).levels()) == {"eco"}
