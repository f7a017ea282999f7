"""A million usage rows and a million ledger rows: every query of the hot path and of the reports finds its index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from tests.schema.ledger import Connection, Ledger, settlement
from tests.schema.server import database_url
from tests.schema.volume import fill

MILLION = 1_000_000
DATABASE = "uc_million"


@pytest.fixture(scope="module")
def million_url(server_url: str, template: str) -> Iterator[str]:
    async def administer(statement: str) -> None:
        connection = await asyncpg.connect(server_url)
        await connection.execute(statement)
        await connection.close()

    async def load() -> None:
        connection = await asyncpg.connect(database_url(server_url, DATABASE), server_settings={"search_path": "uc"})
        await fill(connection, accounts=1000, calls=MILLION // 2, usage=MILLION)
        await connection.close()

    asyncio.run(administer(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
    asyncio.run(administer(f"CREATE DATABASE {DATABASE} TEMPLATE {template}"))
    asyncio.run(load())
    yield database_url(server_url, DATABASE)
    asyncio.run(administer(f"DROP DATABASE {DATABASE} WITH (FORCE)"))


@pytest.fixture
async def million(million_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(million_url, server_settings={"search_path": "uc"})
    yield connection
    await connection.close()


async def plan(connection: Connection, query: str) -> list[dict[str, Any]]:
    """The nodes of the query's plan."""
    tree = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}"))[0]["Plan"]
    nodes: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        nodes.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(tree)
    return nodes


QUERIES = {
    "newest calls of a user": (
        "SELECT * FROM llm_usage_log WHERE user_id = 'user7' ORDER BY created_at DESC LIMIT 50",
        "llm_usage_log_user",
    ),
    "a user's month": (
        "SELECT sum(cost_credits) FROM llm_usage_log WHERE user_id = 'user7' AND created_at >= '2026-02-01Z' "
        "AND created_at < '2026-03-01Z'",
        "llm_usage_log_user",
    ),
    "one call": ("SELECT * FROM llm_usage_log WHERE request_id = 'x'", "unique_request_id"),
    "a model's day": (
        "SELECT count(*) FROM llm_usage_log WHERE model = 'model-3' AND created_at >= '2026-02-01Z' AND "
        "created_at < '2026-02-02Z'",
        "llm_usage_log_model",
    ),
    "failures of a day": (
        "SELECT * FROM llm_usage_log WHERE NOT success AND created_at >= '2026-02-01Z' AND created_at < '2026-02-02Z'",
        "llm_usage_log_failed",
    ),
    "an account's history": (
        "SELECT * FROM credit_transactions WHERE user_id = 'user7' ORDER BY user_version DESC LIMIT 50",
        "one_row_per_user_version",
    ),
    "the state of a hold": (
        "SELECT * FROM credit_transactions WHERE hold_id = '00000000-0000-0000-0000-000000000005'",
        "one_charge_per_hold",
    ),
    "a repeated request": (
        "SELECT * FROM credit_transactions WHERE user_id = 'user7' AND idempotency_key = 'x'",
        "one_row_per_idempotency_key",
    ),
    "an account": ("SELECT * FROM user_credits WHERE user_id = 'user7'", "user_credits_pkey"),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_plan(million: Connection, name: str) -> None:
    """The query reads by its index, under the planner's default settings, and never the whole table."""
    query, index = QUERIES[name]
    nodes = await plan(million, query)
    assert index in {node.get("Index Name") for node in nodes}
    assert not [node for node in nodes if "Seq Scan" in node["Node Type"]]


async def test_rows(million: Connection) -> None:
    """The tables are as large as they claim."""
    assert await million.fetchval("SELECT count(*) FROM llm_usage_log") == MILLION
    assert await million.fetchval("SELECT count(*) FROM credit_transactions") == MILLION + 1000


async def scanned(connection: Connection) -> dict[str, int]:
    """How many rows the session's server has read from each table without an index."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch("SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'uc'")
    return {row["relname"]: row["seq_tup_read"] for row in rows}


async def test_calls_read_no_table(million: Connection) -> None:
    """Holding, settling, releasing, extending and expiring read no large table from end to end."""
    ledger = Ledger(million)
    before = await scanned(million)
    holds = [await ledger.held(f"user{number * 3 + 1}", "1") for number in range(20)]
    await million.fetch("SELECT * FROM extend_holds($1, '-1 s')", holds)
    items = [settlement(hold, f"user{number * 3 + 1}", "0.25") for number, hold in enumerate(holds[:15])]
    assert {row["outcome"] for row in await ledger.settle(*items)} == {"settled"}
    await ledger.debit("user1", "1", {"request_id": "r"})
    await ledger.add("user1", "1", idempotency_key="k")
    assert len(await million.fetch("SELECT * FROM expire_holds()")) == 5
    after = await scanned(million)
    large = ("user_credits", "credit_transactions", "llm_usage_log")
    assert {table: after[table] - before[table] for table in large} == dict.fromkeys(large, 0)


async def test_balances_stay_in_place(million: Connection) -> None:
    """Rewriting a balance touches no index: the updates of calls are HOT."""
    ledger = Ledger(million)
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'user_credits'"
    await million.execute("SELECT pg_stat_force_next_flush()")
    before = await million.fetchrow(counts)
    for _ in range(100):
        await ledger.settle(settlement(await ledger.held("user8", "1"), "user8", "0.25"))
    await million.execute("SELECT pg_stat_force_next_flush()")
    after = await million.fetchrow(counts)
    assert before is not None
    assert after is not None
    assert after["n_tup_upd"] - before["n_tup_upd"] == 200
    assert after["n_tup_hot_upd"] - before["n_tup_hot_upd"] >= 190


async def test_audit_of_a_million(million: Connection) -> None:
    """The whole audit runs over a million ledger rows and finds them right."""
    assert await million.fetch("SELECT * FROM ledger_audit()", timeout=60) == []


async def test_summary_of_a_million(million: Connection) -> None:
    """The summary can be brought up to date over a million rows, while readers read it."""
    assert await million.fetchval("SELECT refresh_usage_summary()", timeout=60) == "refreshed"
    assert await million.fetchval("SELECT sum(request_count) FROM llm_usage_summary") >= MILLION
    nodes = await plan(million, "SELECT * FROM llm_usage_summary WHERE user_id = 'user7' AND provider = 'openai'")
    assert "llm_usage_summary_group" in {node.get("Index Name") for node in nodes}
