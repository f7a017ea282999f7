"""The materialized view llm_usage_summary and its refresh."""

from __future__ import annotations

import uuid
from datetime import date
from decimal import Decimal
from pathlib import Path

from tests.schema.conftest import Connect
from tests.schema.ledger import Connection

SQL = Path(__file__).parents[2] / "sql"
CALLS = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    reasoning_tokens, cost_credits, cost_usd, request_id, latency_ms, tokens_per_second, success, byok_used,
    created_at) VALUES
('ann', 'openai', 'gpt-4o', 'eco', 10, 20, 30, 7, 1.5, 0.15, 'a', 100, 10, true, false, '2026-03-01 00:00:00Z'),
('ann', 'openai', 'gpt-4o', 'eco', 20, 20, 40, 4, 0.5, 0.25, 'b', 200, 20, true, true, '2026-03-01 23:59:59.9Z'),
('ann', 'openai', 'gpt-4o', 'eco', 5, 0, 5, 0, 0, NULL, 'c', 300, NULL, false, true, '2026-03-01 12:00Z'),
('ann', 'openai', 'gpt-4o', 'eco', 1, 1, 2, 0, 0, 0, 'd', 300, NULL, true, false, '2026-03-02 00:00Z'),
('ann', 'openai', 'gpt-4o', 'precision', 1, 1, 2, 0, 0, 0, 'e', NULL, NULL, true, false, '2026-03-01 12:00Z'),
('bob', 'openai', 'gpt-4o', 'eco', 1, 1, 2, 0, 0, 0, 'f', 300, NULL, true, false, '2026-03-01 12:00Z')
"""


async def test_contents(db: Connection) -> None:
    """A row per user, provider, model, level and UTC day, with its counts, sums and averages."""
    # A session in another zone must not move the day.
    await db.execute("SET timezone = 'Pacific/Auckland'")
    await db.execute(CALLS)
    assert await db.fetchval("SELECT refresh_usage_summary()") == "refreshed"
    assert await db.fetchval("SELECT count(*) FROM llm_usage_summary") == 4
    row = await db.fetchrow(
        "SELECT * FROM llm_usage_summary WHERE user_id = 'ann' AND date = '2026-03-01' AND power_level = 'eco'"
    )
    assert dict(row or {}) == {
        "user_id": "ann", "provider": "openai", "model": "gpt-4o", "power_level": "eco", "date": date(2026, 3, 1),
        "request_count": 3, "success_count": 2, "error_count": 1, "total_prompt_tokens": 35,
        "total_completion_tokens": 40, "total_reasoning_tokens": 11,
        "total_tokens": 75, "avg_tokens_per_request": Decimal("25.00"), "total_cost": Decimal("2.000000"),
        "avg_cost_per_request": Decimal("0.666667"), "avg_latency_ms": Decimal("200.00"), "p95_latency_ms": 290.0,
        "avg_tokens_per_second": Decimal("15.000"), "success_rate": Decimal("66.67"), "byok_requests": 2,
        "total_byok_cost_usd": Decimal("0.25"),
    }  # fmt: skip


async def test_fresh_database(db: Connection) -> None:
    """The view can be read and refreshed before the first call."""
    assert await db.fetch("SELECT * FROM llm_usage_summary") == []
    assert await db.fetchval("SELECT refresh_usage_summary()") == "refreshed"


async def test_never_filled(db: Connection) -> None:
    """A view that was restored without its data is filled."""
    await db.execute("REFRESH MATERIALIZED VIEW llm_usage_summary WITH NO DATA")
    await db.execute(CALLS)
    assert await db.fetchval("SELECT refresh_usage_summary()") == "refreshed"
    assert await db.fetchval("SELECT count(*) FROM llm_usage_summary") == 4


async def test_one_at_a_time(db: Connection, connect: Connect) -> None:
    """While one session refreshes, another skips it at once instead of waiting."""
    other = await connect()
    async with db.transaction():
        assert await db.fetchval("SELECT refresh_usage_summary()") == "refreshed"
        assert await other.fetchval("SELECT refresh_usage_summary()") == "skipped"
    assert await other.fetchval("SELECT refresh_usage_summary()") == "refreshed"


async def test_readers_are_not_blocked(db: Connection, connect: Connect) -> None:
    """During a refresh readers go on reading the old rows."""
    other = await connect()
    await other.execute("SET lock_timeout = '1 s'")
    await db.execute(CALLS)
    async with db.transaction():
        await db.fetchval("SELECT refresh_usage_summary()")
        assert await other.fetchval("SELECT count(*) FROM llm_usage_summary") == 0
    assert await other.fetchval("SELECT count(*) FROM llm_usage_summary") == 4


async def test_an_older_view_is_replaced(db: Connection) -> None:
    """The view of an older database gets its new columns, filled, and who could read it still can."""
    old, new = (next(SQL.glob(f"{number}_*.sql")).read_text() for number in ("0004", "0009"))
    role = f"uc_test_{uuid.uuid4().hex[:8]}"
    await db.execute(f"CREATE ROLE {role}; DROP MATERIALIZED VIEW llm_usage_summary")
    await db.execute(old)
    await db.execute(f"{CALLS}; GRANT SELECT ON llm_usage_summary TO {role}")
    try:
        await db.execute(new)
        assert await db.fetchval("SELECT sum(total_reasoning_tokens) FROM llm_usage_summary") == 11
        assert await db.fetchval(f"SELECT has_table_privilege('{role}', 'uc.llm_usage_summary', 'SELECT')")
        await db.execute(new)
        assert await db.fetchval("SELECT refresh_usage_summary()") == "refreshed"
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
