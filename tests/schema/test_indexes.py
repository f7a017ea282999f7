"""Every index is used by the query that docs/schema.md documents for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.schema.ledger import Connection
from tests.schema.server import database_url
from tests.schema.volume import fill

DOCUMENT = Path(__file__).parents[2] / "docs" / "schema.md"
DATABASE = "uc_indexes"
SECTION = DOCUMENT.read_text().split("\n## Indexes\n")[1].split("\n## ")[0]
QUERIES = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", SECTION, re.MULTILINE))


@pytest.fixture(scope="module")
def filled_url(server_url: str, template: str) -> Iterator[str]:
    async def administer(statement: str) -> None:
        connection = await asyncpg.connect(server_url)
        await connection.execute(statement)
        await connection.close()

    async def load() -> None:
        connection = await asyncpg.connect(database_url(server_url, DATABASE), server_settings={"search_path": "uc"})
        await fill(connection, accounts=500, calls=5_000, usage=20_000)
        await connection.execute("REFRESH MATERIALIZED VIEW llm_usage_summary; ANALYZE llm_usage_summary")
        await connection.close()

    asyncio.run(administer(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
    asyncio.run(administer(f"CREATE DATABASE {DATABASE} TEMPLATE {template}"))
    asyncio.run(load())
    yield database_url(server_url, DATABASE)
    asyncio.run(administer(f"DROP DATABASE {DATABASE} WITH (FORCE)"))


@pytest.fixture
async def filled(filled_url: str) -> AsyncIterator[Connection]:
    # Several tables are too small here for any index to pay.
    settings = {"search_path": "uc", "enable_seqscan": "off"}
    connection = await asyncpg.connect(filled_url, server_settings=settings)
    yield connection
    await connection.close()


@pytest.mark.parametrize("index", QUERIES)
async def test_used(filled: Connection, index: str) -> None:
    """The planner answers the query by this index and no other."""
    rows = await filled.fetch(f"EXPLAIN {QUERIES[index]}")
    plan = "\n".join(row[0] for row in rows)
    used = set(re.findall(r"(?:Scan|Backward) using (\w+)|Bitmap Index Scan on (\w+)", plan))
    assert {name for pair in used for name in pair if name} == {index}, plan


async def test_documented(db: Connection) -> None:
    """The document names every index there is, with a query, and there are at least 25."""
    rows = await db.fetch(
        "SELECT indexrelid::regclass::text AS name FROM pg_index JOIN pg_class AS c ON c.oid = indrelid "
        "WHERE relnamespace = 'uc'::regnamespace"
    )
    assert {row["name"] for row in rows} == set(QUERIES)
    assert len(rows) >= 25


async def test_nothing_hot_is_indexed(db: Connection) -> None:
    """No index holds, or has in its condition, a column that every call changes."""
    changing = {
        "user_credits": "credits_remaining credits_held credits_available credits_spent spent_this_month version "
        "updated_at",
        "user_provider_keys": "total_requests total_tokens last_used spent_this_month_usd errors_in_a_row updated_at",
        "user_api_keys": "last_used",
    }
    for table, columns in changing.items():
        definitions = await db.fetch(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'uc' AND tablename = $1", table
        )
        words = set(re.findall(r"\w+", " ".join(row["indexdef"] for row in definitions)))
        assert words.isdisjoint(columns.split())
