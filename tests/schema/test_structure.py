"""What must be there: tables, columns, functions, and how the files that make them behave."""

from __future__ import annotations

import asyncpg
import pytest

from tests.schema.ledger import Connection
from tests.schema.server import SQL_FILES, apply_sql, dump_schema, psql

TABLES = {
    "user_credits": """user_id credits_remaining credits_held credits_debt credits_available credits_lifetime
        credits_spent monthly_cap spent_this_month last_reset tier power_level power_level_downgrade auto_recharge
        recharge_threshold recharge_amount stripe_customer_id status version metadata created_at updated_at""",
    "credit_transactions": """id user_id transaction_type amount held_delta debt_delta balance_after held_after
        debt_after user_version hold_id expires_at idempotency_key provider model prompt_tokens completion_tokens
        tokens_used cost_per_token power_level byok_used payment_method stripe_transaction_id stripe_invoice_id
        package_id request_id metadata notes admin_user_id created_at""",
    "user_provider_keys": """id user_id provider encrypted_api_key key_id key_name key_hint api_base is_active
        is_default fallback total_requests total_tokens last_used last_error expires_at rotation_reminder created_at
        updated_at monthly_cap_usd spent_this_month_usd last_reset total_errors errors_in_a_row last_error_at""",
    "llm_usage_log": """id user_id provider model model_group power_level prompt_tokens completion_tokens total_tokens
        cached_tokens reasoning_tokens cost_credits cost_usd cost_per_token cost_source byok_used provider_key_id
        request_id hold_id session_id app_id endpoint call_type streamed attempts latency_ms time_to_first_token_ms
        tokens_per_second success status_code error_type error_message user_agent ip_address metadata created_at""",
    "provider_health": """provider deployment status avg_latency_ms p95_latency_ms success_rate requests_last_hour
        rate_limit_remaining last_check last_success last_failure consecutive_failures last_error error_count_24h
        created_at""",
    "credit_packages": """id name credits price_usd discount_percent min_tier is_active is_featured sort_order
        description badge_text stripe_price_id created_at updated_at""",
    "power_level_configs": """id power_level name description preferred_providers fallback_strategy cost_multiplier
        max_latency_ms min_quality_score default_max_output_tokens is_active source yaml_checksum edited_at
        created_at updated_at""",
    "schema_version": "version name checksum applied_at duration_ms app_version",
    "providers": "name display_name litellm_names key_pattern models_url key_test_url allows_api_base created_at",
    "user_api_keys": "id user_id key_hash key_hint name role is_active expires_at last_used created_at",
    "credit_holds": "hold_id user_id amount expires_at power_level created_at",
    "idempotency_keys": "user_id idempotency_key body_hash hold_id expires_at created_at",
    "settlement_quarantine": "id hold_id user_id record error created_at resolved_at",
    "llm_usage_summary": """user_id provider model power_level date request_count success_count error_count
        total_prompt_tokens total_completion_tokens total_tokens avg_tokens_per_request total_cost
        avg_cost_per_request avg_latency_ms p95_latency_ms avg_tokens_per_second success_rate byok_requests""",
}

SIGNATURES = {
    "debit_user_credits": "p_user_id text, p_amount numeric, p_provider text, p_model text, p_prompt_tokens integer, "
    "p_completion_tokens integer, p_power_level text, p_metadata jsonb DEFAULT '{}'::jsonb",
    "add_user_credits": "p_user_id text, p_amount numeric, p_transaction_type text, "
    "p_payment_method text DEFAULT NULL::text, p_stripe_transaction_id text DEFAULT NULL::text, "
    "p_package_id integer DEFAULT NULL::integer, p_notes text DEFAULT NULL::text, "
    "p_idempotency_key text DEFAULT NULL::text, p_admin_user_id text DEFAULT NULL::text",
    "get_user_balance": "p_user_id text",
    "refresh_usage_summary": "",
    "rehearse_hold": "p_user_id text, p_amount numeric, p_min_amount numeric, p_power_level text DEFAULT NULL::text",
    "hold_credits": "p_hold_id uuid, p_user_id text, p_amount numeric, p_min_amount numeric, p_ttl interval, "
    "p_power_level text DEFAULT NULL::text, p_metadata jsonb DEFAULT '{}'::jsonb",
    "settle_credits": "p_settlements jsonb",
    "release_hold": "p_hold_id uuid, p_user_id text, p_notes text DEFAULT NULL::text",
    "extend_holds": "p_hold_ids uuid[], p_ttl interval",
    "expire_holds": "p_limit integer DEFAULT 100",
    "ledger_audit": "",
    "create_account": "p_user_id text, p_tier text DEFAULT 'free'::text, p_power_level text DEFAULT 'balanced'::text",
    "load_caller": "p_key_hash text",
    "load_account": "p_user_id text",
    "touch_api_keys": "p_ids uuid[]",
    "apply_power_level": "p_power_level text, p_values jsonb, p_checksum text, "
    "p_modified timestamp with time zone DEFAULT NULL::timestamp with time zone, p_age interval DEFAULT NULL::interval",
    "account_history": "p_user_id text, p_limit integer DEFAULT 50, p_before_id bigint DEFAULT NULL::bigint",
}


@pytest.mark.parametrize("table", TABLES)
async def test_columns(db: Connection, table: str) -> None:
    """Every table and the view have the columns that other systems query."""
    rows = await db.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped", table
    )
    assert {row["attname"] for row in rows} >= set(TABLES[table].split())


async def test_no_other_tables(db: Connection) -> None:
    """The schema holds the documented relations and no other."""
    rows = await db.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'uc'::regnamespace AND relkind IN ('r', 'm', 'v', 'p')"
    )
    assert {row["relname"] for row in rows} == set(TABLES)


@pytest.mark.parametrize("function", SIGNATURES)
async def test_signatures(db: Connection, function: str) -> None:
    """A function has exactly one form, the one that other systems call."""
    rows = await db.fetch(
        "SELECT pg_get_function_arguments(oid) AS arguments FROM pg_proc WHERE pronamespace = 'uc'::regnamespace "
        "AND proname = $1",
        function,
    )
    assert [row["arguments"] for row in rows] == [SIGNATURES[function]]


async def test_money_and_time_types(db: Connection) -> None:
    """Money is NUMERIC(20,6) credits and a moment is a timestamptz, wherever they stand."""
    rows = await db.fetch(
        "SELECT DISTINCT format_type(t.typbasetype, t.typtypmod) AS type FROM pg_type AS t WHERE t.typname = 'credits'"
    )
    assert [row["type"] for row in rows] == ["numeric(20,6)"]
    loose = await db.fetch(
        "SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid "
        "WHERE relnamespace = 'uc'::regnamespace AND relkind = 'r' AND attnum > 0 "
        "AND atttypid IN ('timestamp'::regtype, 'float8'::regtype, 'float4'::regtype, 'money'::regtype)"
    )
    assert loose == []
    credit_columns = await db.fetchval(
        "SELECT count(*) FROM pg_attribute WHERE attrelid IN ('user_credits'::regclass, "
        "'credit_transactions'::regclass, "
        "'credit_holds'::regclass, 'llm_usage_log'::regclass) AND atttypid = 'credits'::regtype"
    )
    assert credit_columns == 10 + 6 + 1 + 1


async def test_every_row_is_dated(db: Connection) -> None:
    """Every table says when a row was made; schema_version calls it applied_at."""
    rows = await db.fetch(
        "SELECT relname FROM pg_class AS c WHERE relnamespace = 'uc'::regnamespace AND relkind = 'r' AND NOT EXISTS "
        "(SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'created_at' AND attnotnull)"
    )
    assert [row["relname"] for row in rows] == ["schema_version"]


@pytest.mark.parametrize("table", ["user_credits", "user_provider_keys", "credit_packages", "power_level_configs"])
async def test_updated_at(db: Connection, table: str) -> None:
    """A change moves updated_at, whatever the statement says about it."""
    await db.execute("SELECT create_account('ann')")
    await db.execute(
        "INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id) VALUES ('ann', "
        "'openai', 'x', 'k')"
    )
    before = await db.fetchval(f"SELECT max(updated_at) FROM {table}")
    await db.execute(f"UPDATE {table} SET updated_at = '2001-01-01'")
    assert await db.fetchval(f"SELECT min(updated_at) FROM {table}") > before


async def test_constraints_are_named(db: Connection) -> None:
    """The constraints that callers and texts name exist under these names."""
    rows = await db.fetch("SELECT conname FROM pg_constraint WHERE connamespace = 'uc'::regnamespace")
    assert {row["conname"] for row in rows} >= {
        "valid_tier", "valid_power_level", "positive_credits", "valid_transaction_type", "valid_payment_method",
        "valid_provider", "positive_tokens", "valid_power_level_usage", "valid_status", "valid_success_rate",
        "valid_power_level_config",
    }  # fmt: skip


async def test_functions_fix_their_search_path(db: Connection) -> None:
    """Every function finds its own schema's tables first and temporary ones last, whoever calls it from where."""
    rows = await db.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'uc'::regnamespace "
        "AND NOT coalesce(proconfig, '{}') @> ARRAY['search_path=uc, pg_temp']"
    )
    assert rows == []


async def test_functions_are_not_public(db: Connection) -> None:
    """A role without a grant can call no function and read no table."""
    await db.execute("SELECT create_account('ann')")
    granted = await db.fetch(
        "SELECT proname FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a "
        "WHERE pronamespace = 'uc'::regnamespace AND a.grantee = 0"
    )
    assert granted == []


async def test_temporary_tables_do_not_deceive(db: Connection) -> None:
    """A temporary table named like an account's cannot stand in for it."""
    await db.execute("SELECT create_account('ann')")
    await db.execute("CREATE TEMP TABLE user_credits AS SELECT * FROM uc.user_credits WHERE false")
    assert await db.fetchval("SELECT count(*) FROM uc.get_user_balance('ann')") == 1


async def test_files_apply_twice(url: str, db: Connection) -> None:
    """Running every file again changes nothing, so that a database made by psql can be taken over."""
    before = dump_schema(url), await db.fetchval("SELECT count(*) FROM providers")
    await apply_sql(db)
    assert (dump_schema(url), await db.fetchval("SELECT count(*) FROM providers")) == before


async def test_psql_makes_the_same_database(url: str, empty_url: str) -> None:
    """psql -f over the files in their order gives what the driver's scripts give."""
    for file in SQL_FILES:
        psql(empty_url, "-f", str(file))
    assert dump_schema(empty_url) == dump_schema(url)
    rows = "SELECT name, litellm_names, key_pattern FROM uc.providers ORDER BY name"
    assert psql(empty_url, "-c", rows) == psql(url, "-c", rows)


async def test_schema_name_is_a_setting(empty_url: str) -> None:
    """Under another name, one that needs quotes too, everything works and nothing is left in uc or public."""
    connection = await asyncpg.connect(empty_url)
    await apply_sql(connection, schema="Credits of ours")
    answer = await connection.fetchrow("SELECT * FROM \"Credits of ours\".add_user_credits('ann', 5, 'bonus')")
    assert answer is not None
    assert answer["success"]
    schemas = await connection.fetch(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
    )
    assert [row["schemaname"] for row in schemas] == ["Credits of ours"]
    await connection.close()


async def test_public_is_refused(empty_url: str) -> None:
    """LiteLLM's default schema is refused with the way out, and nothing is made."""
    connection = await asyncpg.connect(empty_url)
    with pytest.raises(asyncpg.RaiseError, match="LiteLLM") as refusal:
        await apply_sql(connection, schema="public")
    assert "uc.schema" in str(refusal.value.hint)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await connection.close()


async def test_schema_of_litellm_is_refused(empty_url: str) -> None:
    """Whichever schema LiteLLM's tables are in, it is not ours."""
    connection = await asyncpg.connect(empty_url)
    await connection.execute('CREATE SCHEMA proxy; CREATE TABLE proxy."LiteLLM_UserTable" (id int)')
    with pytest.raises(asyncpg.RaiseError, match='schema "proxy"'):
        await apply_sql(connection, schema="proxy")
    await connection.close()
