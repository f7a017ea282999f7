"""Ledger and usage rows by the million, such as calls would have left them: every invariant holds."""

from __future__ import annotations

from tests.schema.ledger import Connection

OPENING = 10_000
HELD, CHARGE = 1, "0.5"

# Call number n is made by user n % accounts, and is that user's call number n / accounts.
_ACCOUNTS = """
INSERT INTO user_credits (user_id, credits_remaining, credits_lifetime, credits_spent, version, tier, status,
auto_recharge)
SELECT 'user' || u, {opening} - {charge} * {per_user}, {opening}, {charge} * {per_user}, 1 + 2 * {per_user},
    (ARRAY['free', 'starter', 'professional', 'enterprise'])[1 + u % 4],
    CASE WHEN u % 50 = 0 THEN 'suspended' ELSE 'active' END, u % 20 = 0
FROM generate_series(0, {accounts} - 1) AS u
"""
_PURCHASES = """
INSERT INTO credit_transactions (user_id, transaction_type, amount, balance_after, held_after, debt_after, user_version,
    payment_method, stripe_transaction_id, package_id, admin_user_id, created_at)
SELECT 'user' || u, 'purchase', {opening}, {opening}, 0, 0, 1, 'stripe', 'pi_' || u, 1, 'admin' || u % 7, {start}
FROM generate_series(0, {accounts} - 1) AS u
"""
_LEDGER = """
INSERT INTO credit_transactions (user_id, transaction_type, amount, held_delta, balance_after, held_after, debt_after,
    user_version, hold_id, ends_hold, request_id, created_at)
SELECT 'user' || n % {accounts}, e.type, e.amount, e.held, {opening} - {charge} * (n / {accounts} + e.ended::int),
    CASE WHEN e.ended THEN 0 ELSE {held} END, 0, 2 + 2 * (n / {accounts}) + e.ended::int, {hold}, e.ended,
    {hold}::text, {moment}
FROM generate_series(0, {calls} - 1) AS n
CROSS JOIN (VALUES ('hold', 0, {held}, false), ('debit', -{charge}, -{held}, true)) AS e (type, amount, held, ended)
"""
_USAGE = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    cost_credits, cost_source, request_id, hold_id, session_id, app_id, latency_ms, tokens_per_second, success,
    created_at)
SELECT 'user' || n % {accounts}, (ARRAY['openai', 'anthropic', 'openrouter'])[1 + n % 3],
    'model-' || n % 40, (ARRAY['eco', 'balanced', 'precision'])[1 + n % 3], 100, 50, 150,
    CASE WHEN n < {calls} THEN {charge} ELSE 0 END, CASE WHEN n % 100 = 0 THEN 'estimate' ELSE 'usage' END,
    {hold}::text, CASE WHEN n < {calls} THEN {hold} END, CASE WHEN n % 10 = 0 THEN 'session' || n / 100 END,
    CASE WHEN n % 4 = 0 THEN 'app' || n % 3 END, n % 3000, 40, n % 50 <> 0, {moment}
FROM generate_series(0, {usage} - 1) AS n
"""
_KEYS = """
INSERT INTO user_api_keys (user_id, key_hash, expires_at)
SELECT 'user' || u, encode(sha256(u::text::bytea), 'hex'), {start} + u * interval '1 day' FROM
generate_series(0, {accounts} - 1) AS u;
INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id, is_default, expires_at, rotation_reminder)
SELECT 'user' || u, 'openai', 'sealed', 'k' || u % 9, true, {start} + u * interval '9 days', {start} + u *
interval '9 days'
FROM generate_series(0, {accounts} - 1) AS u
"""
_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index WHERE indrelid IN ('credit_transactions'::regclass, 'llm_usage_log'::regclass)
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


async def fill(connection: Connection, accounts: int, calls: int, usage: int) -> None:
    """Two ledger rows for each of the calls, and usage rows; those beyond the calls had no hold and cost nothing."""
    words = {
        "accounts": accounts,
        "calls": calls,
        "usage": usage,
        "per_user": calls // accounts,
        "opening": OPENING,
        "held": HELD,
        "charge": CHARGE,
        "start": "timestamptz '2026-01-01 00:00Z'",
        "moment": f"timestamptz '2026-01-01 00:00Z' + n * (interval '90 days' / {usage})",
        "hold": "lpad(to_hex(n), 32, '0')::uuid",
    }
    async with connection.transaction():
        # The rows are right by construction; checking each against its account would take as long again, and so would
        # filling the indexes row by row.
        await connection.execute(
            "SET LOCAL session_replication_role = replica; SET LOCAL maintenance_work_mem = '256MB'"
        )
        indexes = await connection.fetch(_INDEXES)
        await connection.execute("; ".join(f"DROP INDEX {index['name']}" for index in indexes))
        for statement in (_ACCOUNTS, _KEYS, _PURCHASES, _LEDGER, _USAGE):
            await connection.execute(statement.format(**words))
        await connection.execute("; ".join(index["definition"] for index in indexes))
    await connection.execute("VACUUM ANALYZE")
