"""The rows every installation starts with."""

from __future__ import annotations

import json
from decimal import Decimal

import asyncpg
import pytest

from tests.schema.ledger import Connection
from tests.schema.server import apply_sql

PROVIDERS = {
    "openai", "anthropic", "openrouter", "google", "cohere", "together", "groq", "mistral", "perplexity", "fireworks",
    "huggingface", "anyscale", "deepinfra", "custom",
}  # fmt: skip


async def test_packages(db: Connection) -> None:
    """The four packages, in the order they are offered."""
    rows = await db.fetch(
        "SELECT name, credits, price_usd, discount_percent, badge_text FROM credit_packages ORDER BY sort_order"
    )
    assert [tuple(row) for row in rows] == [
        ("Starter Pack", 100, Decimal("10.00"), 0, None),
        ("Value Pack", 500, Decimal("45.00"), 10, "MOST POPULAR"),
        ("Pro Pack", 1000, Decimal("80.00"), 20, "BEST VALUE"),
        ("Enterprise Pack", 5000, Decimal("350.00"), 30, None),
    ]


async def test_power_levels(db: Connection) -> None:
    """The three power levels with their providers in order, multipliers and bounds."""
    rows = await db.fetch("SELECT * FROM power_level_configs ORDER BY cost_multiplier")
    found = [
        (
            row["power_level"],
            json.loads(row["preferred_providers"]),
            row["cost_multiplier"],
            row["max_latency_ms"],
            row["min_quality_score"],
            row["default_max_output_tokens"],
        )
        for row in rows
    ]
    assert found == [
        ("eco", ["openrouter", "together", "deepinfra"], Decimal("0.7"), 5000, 70, 2048),
        ("balanced", ["openai", "anthropic", "openrouter"], Decimal("1.0"), 3000, 85, 4096),
        ("precision", ["anthropic", "openai"], Decimal("1.5"), 2000, 95, 8192),
    ]
    assert {(row["fallback_strategy"], row["source"], row["is_active"]) for row in rows} == {
        ("next_available", "seed", True)
    }


async def test_providers(db: Connection) -> None:
    """The fourteen providers, none of LiteLLM's names claimed by two of them."""
    names = {row["name"] for row in await db.fetch("SELECT name FROM providers")}
    assert names == PROVIDERS
    twice = "SELECT unnest(litellm_names) FROM providers GROUP BY 1 HAVING count(*) > 1"
    assert await db.fetch(twice) == []


@pytest.mark.parametrize(
    ("litellm_name", "provider"),
    [("together_ai", "together"), ("gemini", "google"), ("vertex_ai", "google"), ("fireworks_ai", "fireworks"),
     ("cohere_chat", "cohere"), ("text-completion-openai", "openai"), ("codestral", "mistral")],
)  # fmt: skip
async def test_litellm_names(db: Connection, litellm_name: str, provider: str) -> None:
    """What LiteLLM calls a provider leads to what we call it."""
    found = await db.fetchval("SELECT name FROM providers WHERE litellm_names @> ARRAY[$1]", litellm_name)
    assert found == provider


async def test_preferred_providers_exist(db: Connection) -> None:
    """A power level prefers providers that there are."""
    missing = await db.fetch(
        "SELECT p.value FROM power_level_configs, jsonb_array_elements_text(preferred_providers) AS p "
        "WHERE p.value NOT IN (SELECT name FROM providers)"
    )
    assert missing == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM power_level_configs WHERE power_level = 'eco'",
        "UPDATE power_level_configs SET power_level = 'x' WHERE power_level = 'eco'",
    ],
)
async def test_seed_levels_stay(db: Connection, statement: str) -> None:
    """The three levels can be neither deleted nor renamed."""
    with pytest.raises(asyncpg.RaiseError, match='"eco"'):
        await db.execute(statement)


async def test_fourth_level(db: Connection) -> None:
    """An operator's own level can be added, used by an account, and deleted when unused."""
    await db.execute("INSERT INTO power_level_configs (power_level, name) VALUES ('turbo', 'Turbo'), ('idle', 'Idle')")
    answer = await db.fetchrow("SELECT * FROM create_account('ann', 'free', 'turbo')")
    assert tuple(answer or ()) == (True, None)
    await db.execute("DELETE FROM power_level_configs WHERE power_level = 'idle'")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await db.execute("DELETE FROM power_level_configs WHERE power_level = 'turbo'")


async def test_edits_survive_the_seed(db: Connection) -> None:
    """Applying the files again leaves an edited row as it is."""
    await db.execute("UPDATE power_level_configs SET cost_multiplier = 0.5 WHERE power_level = 'eco'")
    await apply_sql(db)
    kept = await db.fetchval("SELECT cost_multiplier FROM uc.power_level_configs WHERE power_level = 'eco'")
    assert kept == Decimal("0.5")
