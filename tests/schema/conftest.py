"""One server per run, one template database with the schema in it, one clone of it per test."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest

from tests.schema.ledger import Connection, Ledger
from tests.schema.server import apply_sql, database_url, running_server

Connect = Callable[[], Awaitable[Connection]]


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    name = f"uc_template_{uuid.uuid4().hex}"
    asyncio.run(_make_template(server_url, name))
    yield name
    asyncio.run(_administer(server_url, f"DROP DATABASE {name}"))


async def _make_template(server_url: str, name: str) -> None:
    await _administer(server_url, f"CREATE DATABASE {name}")
    connection = await asyncpg.connect(database_url(server_url, name))
    await apply_sql(connection)
    await connection.close()


async def _administer(server_url: str, statement: str) -> None:
    connection = await asyncpg.connect(server_url)
    await connection.execute(statement)
    await connection.close()


@pytest.fixture
async def empty_url(server_url: str) -> AsyncIterator[str]:
    """The URL of a database in which nothing is."""
    name = f"uc_empty_{uuid.uuid4().hex}"
    await _administer(server_url, f"CREATE DATABASE {name}")
    yield database_url(server_url, name)
    await _administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def url(server_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a database of this test's own, with the schema in it."""
    name = f"uc_test_{uuid.uuid4().hex}"
    await _administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_url(server_url, name)
    await _administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Connect]:
    """Opens further sessions in the test's database."""
    opened: list[Connection] = []

    async def open_one() -> Connection:
        connection = await asyncpg.connect(url, server_settings={"search_path": "uc"})
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.terminate()


@pytest.fixture
async def db(connect: Connect) -> Connection:
    return await connect()


@pytest.fixture
async def ledger(db: Connection) -> Ledger:
    return Ledger(db)
