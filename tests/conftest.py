"""One embedded PostgreSQL for the whole run, a migrated template in it, and a clone of that for each test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest
from pydantic import SecretStr

from uc_litellm_plugin import embedded, migrations
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.settings import Settings

TEMPLATE = "uc_template"
NEAR_MIDNIGHT_S = 60

# How fast examples are made and tried says nothing of what is tested.
hypothesis.settings.register_profile(
    "tests", deadline=None, max_examples=100, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

_clones = count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[Settings]:
    """Settings of the run's own embedded server; it stops with the run."""
    with _settings_with_own_server() as settings:
        yield settings


@pytest.fixture
def own_server() -> Iterator[Settings]:
    """Settings of an embedded server that this test may stop, kill and start; it is not started yet."""
    with _settings_with_own_server() as settings:
        yield settings


@pytest.fixture(scope="session")
def server_url(server: Settings) -> str:
    """The URL of the server's own database, for tests that make databases themselves."""
    return asyncio.run(embedded.ensure(server))


@pytest.fixture(scope="session")
def template(server: Settings, server_url: str) -> str:
    """The name of a migrated database that tests clone."""
    url = database_at(server_url, TEMPLATE)
    asyncio.run(_run(server_url, f"CREATE DATABASE {TEMPLATE}"))
    asyncio.run(migrations.migrate(server.model_copy(update={"database_url": SecretStr(url)})))
    return TEMPLATE


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of an empty database of this test's own."""
    async with _fresh_database(server_url, "template1") as url:
        yield url


@pytest.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a migrated database of this test's own."""
    async with _fresh_database(server_url, template) as url:
        yield url


@pytest.fixture
def one_day() -> None:
    """The test ends on the day (UTC) on which it begins: where midnight is near, it begins after it."""
    left_s = 86_400 - time.time() % 86_400
    if left_s < NEAR_MIDNIGHT_S:
        time.sleep(left_s)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings for the test's database and a state directory of its own."""
    return settings_module.load({"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": database_url})


@pytest.fixture
async def db(settings: Settings) -> AsyncIterator[Database]:
    """An open pool on the test's database."""
    async with Database(settings) as database:
        yield database


@contextmanager
def _settings_with_own_server() -> Iterator[Settings]:
    # Not pytest's tmp_path: it is closed to other users, and for root PostgreSQL runs as one.
    home = Path(tempfile.mkdtemp(prefix="uc-test-"))
    home.chmod(0o711)
    settings = settings_module.load({"UC_STATE_DIR": str(home / "state")})
    try:
        yield settings
    finally:
        asyncio.run(embedded.stop(settings))
        shutil.rmtree(home)


def database_at(url: str, name: str) -> str:
    """The same server's URL, with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@asynccontextmanager
async def _fresh_database(server_url: str, template: str) -> AsyncIterator[str]:
    name = f"uc_test_{os.getpid()}_{next(_clones)}"
    await _run(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield database_at(server_url, name)
    finally:
        await _run(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
