"""Usage rows."""

from __future__ import annotations

import json
import uuid

import asyncpg
import pytest

from tests.schema.ledger import Connection, Ledger, settlement


async def test_every_column_arrives(ledger: Ledger) -> None:
    """A settlement's usage is stored column by column."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    usage = {
        "provider": "openai", "model": "gpt-4o-2024", "model_group": "gpt-4o", "power_level": "precision",
        "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9, "cached_tokens": 3, "reasoning_tokens": 4,
        "cost_usd": "0.000000000001", "cost_per_token": "0.5", "cost_source": "provider", "byok_used": True,
        "provider_key_id": str(uuid.uuid4()), "session_id": "s", "app_id": "a", "endpoint": "/v1/chat/completions",
        "call_type": "acompletion", "streamed": True, "attempts": 2, "latency_ms": 5, "time_to_first_token_ms": 6,
        "tokens_per_second": "7.125", "success": False, "status_code": 499, "error_type": "cut",
        "error_message": "gone",
        "user_agent": "curl", "ip_address": "2001:db8::1", "metadata": {"client_id": "x"},
    }  # fmt: skip
    await ledger.settle(settlement(hold, "ann", "1", **usage))
    row = await ledger.connection.fetchrow(
        "SELECT to_jsonb(u) - ARRAY['id','user_id','hold_id','request_id','created_at','cost_credits'] = $1::jsonb || "
        "jsonb_build_object('cost_usd', 0.000000000001, 'cost_per_token', 0.5, 'tokens_per_second', 7.125) AS same "
        "FROM llm_usage_log AS u",
        json.dumps(usage),
    )
    assert row is not None
    assert row["same"]


async def test_one_row_per_request(db: Connection) -> None:
    """A request id is logged once."""
    await db.execute("INSERT INTO llm_usage_log (user_id, request_id) VALUES ('ann', 'r')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("INSERT INTO llm_usage_log (user_id, request_id) VALUES ('bob', 'r')")


async def test_other_rows_do_not_give_way(ledger: Ledger) -> None:
    """A usage row that no release wrote stays as it is, and the audit tells of the mismatch."""
    await ledger.add("ann", "10")
    hold = await ledger.held("ann", "4")
    await ledger.connection.execute("INSERT INTO llm_usage_log (user_id, request_id) VALUES ('ann', $1)", str(hold))
    assert [row["outcome"] for row in await ledger.settle(settlement(hold, "ann", "1"))] == ["settled"]
    assert (await ledger.usage(hold))["cost_credits"] == 0
    assert [line.split()[0] for line in await ledger.audit()] == ["usage_is_charge"]


async def test_log_does_not_lock(db: Connection) -> None:
    """The log has no foreign key: a row per call locks no account, level or key."""
    assert (
        await db.fetchval(
            "SELECT count(*) FROM pg_constraint WHERE conrelid = 'llm_usage_log'::regclass AND contype = 'f'"
        )
        == 0
    )


async def test_no_text_of_the_call(db: Connection) -> None:
    """There is no column that could hold a prompt or an answer."""
    rows = await db.fetch("SELECT attname FROM pg_attribute WHERE attrelid = 'llm_usage_log'::regclass AND attnum > 0")
    words = ("prompt", "response", "answer", "content", "messages", "completion")
    assert {row["attname"] for row in rows if any(word in row["attname"] for word in words)} == {
        "prompt_tokens",
        "completion_tokens",
    }
