"""The materialized view llm_usage_summary and its refresh."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from tests.schema.conftest import Connect
from tests.schema.ledger import Connection

CALLS = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    cost_credits, request_id, latency_ms, tokens_per_second, success, byok_used, created_at) VALUES
('ann', 'openai', 'gpt-4o', 'eco', 10, 20, 30, 1.5, 'a', 100, 10, true, false, '2026-03-01 00:00:00Z'),
('ann', 'openai', 'gpt-4o', 'eco', 20, 20, 40, 0.5, 'b', 200, 20, true, true, '2026-03-01 23:59:59.9Z'),
('ann', 'openai', 'gpt-4o', 'eco', 5, 0, 5, 0, 'c', 300, NULL, false, false, '2026-03-01 12:00Z'),
('ann', 'openai', 'gpt-4o', 'eco', 1, 1, 2, 0, 'd', 300, NULL, true, false, '2026-03-02 00:00Z'),
('ann', 'openai', 'gpt-4o', 'precision', 1, 1, 2, 0, 'e', NULL, NULL, true, false, '2026-03-01 12:00Z'),
('bob', 'openai', 'gpt-4o', 'eco', 1, 1, 2, 0, 'f', 300, NULL, true, false, '2026-03-01 12:00Z')
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
        "total_completion_tokens": 40,
        "total_tokens": 75, "avg_tokens_per_request": Decimal("25.00"), "total_cost": Decimal("2.000000"),
        "avg_cost_per_request": Decimal("0.666667"), "avg_latency_ms": Decimal("200.00"), "p95_latency_ms": 290.0,
        "avg_tokens_per_second": Decimal("15.000"), "success_rate": Decimal("66.67"), "byok_requests": 1,
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
