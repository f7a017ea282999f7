"""Every constraint refuses what it is there to refuse, under its name."""

from __future__ import annotations

import uuid
from pathlib import Path

import asyncpg
import pytest

from tests.schema.ledger import Connection

SQL = Path(__file__).parents[2] / "sql"

ACCOUNT = "INSERT INTO user_credits (user_id, {0}) VALUES ('bob', {1})"
LEDGER = """INSERT INTO credit_transactions (user_id, transaction_type, balance_after, held_after, debt_after,
    user_version, amount, {0}) VALUES ('ann', {1})"""
KEY = "INSERT INTO user_provider_keys (user_id, encrypted_api_key, key_id, provider, {0}) VALUES ('ann', 'x', 'k', {1})"
API_KEY = "INSERT INTO user_api_keys (user_id, key_hash, {0}) VALUES ({1})"
USAGE = "INSERT INTO llm_usage_log (user_id, request_id, {0}) VALUES ('ann', 'r', {1})"
HEALTH = "INSERT INTO provider_health (provider, {0}) VALUES ('openai', {1})"
PACKAGE = "INSERT INTO credit_packages (name, credits, price_usd, {0}) VALUES ('x', {1})"
LEVEL = "INSERT INTO power_level_configs (name, power_level, {0}) VALUES ('X', {1})"
RETRY = """INSERT INTO idempotency_keys (hold_id, expires_at, user_id, idempotency_key, {0})
    VALUES (gen_random_uuid(), now(), {1})"""
HASH = "repeat('a', 64)"

REFUSED = [
    ("valid_user_id", ACCOUNT, "tier", "'free'); INSERT INTO user_credits (user_id) VALUES (E'a\\nb'"),
    ("valid_tier", ACCOUNT, "tier", "'gold'"),
    ("valid_power_level", ACCOUNT, "power_level", "'turbo'"),
    ("valid_account_status", ACCOUNT, "status", "'gone'"),
    ("positive_credits", ACCOUNT, "credits_remaining", "-1"),
    ("positive_credits", ACCOUNT, "credits_held", "1"),
    ("positive_credits", ACCOUNT, "credits_debt", "-1"),
    ("positive_credits", ACCOUNT, "credits_remaining, credits_debt", "1, 1"),
    ("finite_credits", ACCOUNT, "credits_remaining", "'NaN'"),
    ("positive_totals", ACCOUNT, "credits_spent", "-1"),
    ("positive_monthly_cap", ACCOUNT, "monthly_cap", "-1"),
    ("positive_recharge", ACCOUNT, "recharge_amount", "0"),
    ("user_credits_stripe_customer", ACCOUNT, "stripe_customer_id", "'c'"),
    ("valid_transaction_type", LEDGER, "notes", "'gift', 1, 0, 0, 2, 1, ''"),
    ("valid_payment_method", LEDGER, "payment_method", "'bonus', 1, 0, 0, 2, 1, 'cash'"),
    ("valid_state_after", LEDGER, "notes", "'bonus', 1, 2, 0, 2, 1, ''"),
    ("valid_state_after", LEDGER, "notes", "'bonus', 1, 0, 1, 2, 1, ''"),
    ("valid_deltas", LEDGER, "notes", "'bonus', 1, 0, 0, 2, -1, ''"),
    ("valid_deltas", LEDGER, "notes", "'debit', 1, 0, 0, 2, 1, ''"),
    ("valid_deltas", LEDGER, "notes", "'hold', 1, 0, 0, 2, 0, ''"),
    ("valid_deltas", LEDGER, "hold_id", "'release', 1, 0, 0, 2, 0, gen_random_uuid()"),
    ("valid_deltas", LEDGER, "hold_id", "'purchase', 1, 0, 0, 2, 1, gen_random_uuid()"),
    ("positive_transaction_tokens", LEDGER, "tokens_used", "'bonus', 1, 0, 0, 2, 1, -1"),
    ("known_account", LEDGER, "notes", "'bonus', 1, 0, 0, 2, 1, ''), ('bob', 'bonus', 1, 0, 0, 2, 1, ''"),
    ("known_package", LEDGER, "package_id", "'bonus', 1, 0, 0, 2, 1, 999"),
    ("one_row_per_user_version", LEDGER, "notes", "'bonus', 1, 0, 0, 1, 1, ''"),
    ("valid_provider", KEY, "key_name", "'nobody', 'x'"),
    ("unique_provider_key", KEY, "key_name", "'openai', 'x'), ('ann', 'x', 'k', 'openai', 'x'"),
    ("valid_fallback", KEY, "fallback", "'openai', 'always'"),
    ("valid_key_hint", KEY, "key_hint", "'openai', 'abcde'"),
    ("positive_key_totals", KEY, "total_tokens", "'openai', -1"),
    ("positive_key_cap", KEY, "monthly_cap_usd", "'openai', -1"),
    ("positive_key_spending", KEY, "spent_this_month_usd", "'openai', 'NaN'"),
    ("positive_key_errors", KEY, "total_errors", "'openai', -1"),
    ("positive_key_streak", KEY, "errors_in_a_row", "'openai', -1"),
    ("known_provider_key_account", KEY, "key_name", "'openai', 'x'), ('bob', 'x', 'k', 'openai', 'x'"),
    ("valid_key_hash", API_KEY, "name", "'ann', 'sk-plain', 'x'"),
    ("unique_key_hash", API_KEY, "name", f"'ann', {HASH}, 'x'), ('ann', {HASH}, 'y'"),
    ("valid_role", API_KEY, "role", f"'ann', {HASH}, 'root'"),
    ("known_key_account", API_KEY, "name", f"'bob', {HASH}, 'x'"),
    ("known_idempotency_account", RETRY, "body_hash", f"'bob', 'k', {HASH}"),
    ("valid_idempotency_key", RETRY, "body_hash", f"'ann', '', {HASH}"),
    ("valid_body_hash", RETRY, "body_hash", "'ann', 'k', 'x'"),
    ("unique_request_id", USAGE, "app_id", "''), ('bob', 'r', ''"),
    ("positive_tokens", USAGE, "cached_tokens", "-1"),
    ("positive_cost", USAGE, "cost_credits", "-1"),
    ("positive_cost", USAGE, "cost_usd", "'NaN'"),
    ("valid_cost_source", USAGE, "cost_source", "'guess'"),
    ("valid_power_level_usage", USAGE, "power_level", "'A level'"),
    ("valid_status", HEALTH, "status", "'tired'"),
    ("valid_success_rate", HEALTH, "success_rate", "100.01"),
    ("unique_provider_deployment", HEALTH, "deployment", "''), ('openai', ''"),
    ("positive_package_credits", PACKAGE, "description", "0, 1, ''"),
    ("valid_discount", PACKAGE, "discount_percent", "1, 1, 101"),
    ("valid_min_tier", PACKAGE, "min_tier", "1, 1, 'gold'"),
    ("positive_package_price", PACKAGE, "description", "1, 0, ''"),
    ("unique_package_name", PACKAGE, "description", "1, 1, ''), ('x', 1, 1, ''"),
    ("valid_power_level_config", LEVEL, "description", "'A level', ''"),
    ("unique_power_level", LEVEL, "description", "'eco', ''"),
    ("valid_preferred_providers", LEVEL, "preferred_providers", "'x', '{}'"),
    ("valid_provider_names", LEVEL, "preferred_providers", "'x', '[\"openai\", 5]'"),
    ("valid_provider_names", LEVEL, "preferred_providers", "'x', '[[\"openai\"]]'"),
    ("valid_fallback_strategy", LEVEL, "fallback_strategy", "'x', 'any'"),
    ("valid_cost_multiplier", LEVEL, "cost_multiplier", "'x', 0"),
    ("valid_max_latency", LEVEL, "max_latency_ms", "'x', 0"),
    ("valid_quality_score", LEVEL, "min_quality_score", "'x', 101"),
    ("valid_output_limit", LEVEL, "default_max_output_tokens", "'x', 0"),
    ("valid_config_source", LEVEL, "source", "'x', 'moon'"),
    ("valid_provider_name", "INSERT INTO providers ({0}) VALUES ({1})", "name, display_name", "'Big One', 'x'"),
    ("positive_hold", "INSERT INTO credit_holds ({0}) VALUES ({1})", "hold_id, user_id, amount, expires_at",
     "gen_random_uuid(), 'ann', -1, now()"),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "statement", "columns", "values"), REFUSED)
async def test_refused(db: Connection, constraint: str, statement: str, columns: str, values: str) -> None:
    """The row is refused, and the error names the constraint."""
    await db.execute("SELECT add_user_credits('ann', 1, 'bonus'); UPDATE user_credits SET stripe_customer_id = 'c'")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refusal:
        await db.execute(statement.format(columns, values))
    assert refusal.value.constraint_name == constraint


async def test_every_check_is_tried(db: Connection) -> None:
    """No CHECK, foreign key or unique constraint is without its case above."""
    rows = await db.fetch(
        "SELECT conname FROM pg_constraint WHERE connamespace = 'uc'::regnamespace AND contype IN ('c', 'f', 'u')"
    )
    assert {row["conname"] for row in rows} - {constraint for constraint, *_ in REFUSED} == set()


async def test_who_may_hold_may_check(db: Connection) -> None:
    """Whoever writes a row calls its checks: the roles that could hold credits get those that migration 10 brings."""
    role = f"uc_test_{uuid.uuid4().hex[:8]}"
    await db.execute(f"CREATE ROLE {role}; GRANT EXECUTE ON FUNCTION hold_credits TO {role}")
    try:
        for name in ("0010_cheaper_checks.sql", "0011_validated_checks.sql"):
            await db.execute((SQL / name).read_text())
        assert await db.fetchval(f"SELECT has_function_privilege('{role}', 'uc.is_power_level(text)', 'EXECUTE')")
        found = await db.fetch("SELECT conname FROM pg_constraint WHERE contype = 'c' AND NOT convalidated")
        assert [row["conname"] for row in found] == ["valid_provider_names"]
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
