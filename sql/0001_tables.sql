-- The schema, its types and its tables. The schema's name is the setting uc.schema, else "uc".

DO $$
DECLARE
    target text := coalesce(nullif(current_setting('uc.schema', true), ''), 'uc');
BEGIN
    IF target = 'public' OR EXISTS (
        SELECT FROM pg_catalog.pg_tables WHERE schemaname = target AND tablename LIKE 'LiteLLM\_%'
    ) THEN
        RAISE EXCEPTION 'schema "%" is, or may become, LiteLLM''s own, whose migrations can drop tables they do not know', target
            USING HINT = 'Choose a schema of its own in the setting uc.schema, for example "uc".';
    END IF;
    IF length(target) > 50 THEN
        RAISE EXCEPTION 'schema name "%" is longer than 50 characters', target
            USING HINT = 'Choose a shorter name: the notification channel is made of it.';
    END IF;
    EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', target);
END
$$;

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

DO $$
BEGIN
    IF to_regtype('credits') IS NULL THEN
        -- numeric(20,6) already refuses infinities, but takes NaN, which would pass every "not below zero".
        CREATE DOMAIN credits AS numeric(20, 6) CONSTRAINT finite_credits CHECK (VALUE <> 'NaN'::numeric);
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS schema_version (
    version integer CONSTRAINT schema_version_pkey PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration_ms integer NOT NULL DEFAULT 0,
    app_version text NOT NULL DEFAULT ''
);

CREATE TABLE IF NOT EXISTS providers (
    name text CONSTRAINT providers_pkey PRIMARY KEY,
    display_name text NOT NULL,
    litellm_names text[] NOT NULL DEFAULT '{}',
    key_pattern text,
    models_url text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT valid_provider_name CHECK (name ~ '^[a-z][a-z0-9_-]{0,62}$')
);

CREATE TABLE IF NOT EXISTS power_level_configs (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT power_level_configs_pkey PRIMARY KEY,
    power_level text NOT NULL CONSTRAINT unique_power_level UNIQUE,
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    preferred_providers jsonb NOT NULL DEFAULT '[]',
    fallback_strategy text NOT NULL DEFAULT 'next_available',
    cost_multiplier numeric(10, 4) NOT NULL DEFAULT 1.0,
    max_latency_ms integer,
    min_quality_score numeric(5, 2) NOT NULL DEFAULT 0,
    default_max_output_tokens integer NOT NULL DEFAULT 4096,
    is_active boolean NOT NULL DEFAULT true,
    source text NOT NULL DEFAULT 'database',
    yaml_checksum text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT valid_power_level_config CHECK (power_level ~ '^[a-z][a-z0-9_-]{0,31}$'),
    CONSTRAINT valid_preferred_providers CHECK (jsonb_typeof(preferred_providers) = 'array'),
    CONSTRAINT valid_fallback_strategy CHECK (fallback_strategy IN ('next_available', 'none')),
    CONSTRAINT valid_cost_multiplier CHECK (cost_multiplier > 0 AND cost_multiplier <> 'NaN'::numeric),
    CONSTRAINT valid_max_latency CHECK (max_latency_ms > 0),
    CONSTRAINT valid_quality_score CHECK (min_quality_score BETWEEN 0 AND 100),
    CONSTRAINT valid_output_limit CHECK (default_max_output_tokens > 0),
    CONSTRAINT valid_config_source CHECK (source IN ('seed', 'yaml', 'database'))
);

CREATE TABLE IF NOT EXISTS credit_packages (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT credit_packages_pkey PRIMARY KEY,
    name text NOT NULL CONSTRAINT unique_package_name UNIQUE,
    credits credits NOT NULL,
    price_usd numeric(10, 2) NOT NULL,
    discount_percent numeric(5, 2) NOT NULL DEFAULT 0,
    min_tier text NOT NULL DEFAULT 'free',
    is_active boolean NOT NULL DEFAULT true,
    is_featured boolean NOT NULL DEFAULT false,
    sort_order integer NOT NULL DEFAULT 0,
    description text NOT NULL DEFAULT '',
    badge_text text,
    stripe_price_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT positive_package_credits CHECK (credits > 0),
    CONSTRAINT positive_package_price CHECK (price_usd > 0 AND price_usd <> 'NaN'::numeric),
    CONSTRAINT valid_discount CHECK (discount_percent BETWEEN 0 AND 100),
    CONSTRAINT valid_min_tier CHECK (min_tier IN ('free', 'starter', 'professional', 'enterprise'))
);

-- Half of each page is left free so that a balance can be rewritten in place (a HOT update) with every call.
CREATE TABLE IF NOT EXISTS user_credits (
    user_id text CONSTRAINT user_credits_pkey PRIMARY KEY,
    credits_remaining credits NOT NULL DEFAULT 0,
    credits_held credits NOT NULL DEFAULT 0,
    credits_debt credits NOT NULL DEFAULT 0,
    credits_available credits GENERATED ALWAYS AS (credits_remaining - credits_held) STORED,
    credits_lifetime credits NOT NULL DEFAULT 0,
    credits_spent credits NOT NULL DEFAULT 0,
    monthly_cap credits,
    spent_this_month credits NOT NULL DEFAULT 0,
    last_reset timestamptz NOT NULL DEFAULT date_trunc('month', clock_timestamp(), 'UTC'),
    tier text NOT NULL DEFAULT 'free',
    power_level text NOT NULL DEFAULT 'balanced',
    auto_recharge boolean NOT NULL DEFAULT false,
    recharge_threshold credits NOT NULL DEFAULT 10,
    recharge_amount credits NOT NULL DEFAULT 100,
    stripe_customer_id text,
    status text NOT NULL DEFAULT 'active',
    version bigint NOT NULL DEFAULT 0,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT valid_user_id CHECK (length(user_id) BETWEEN 1 AND 255 AND user_id !~ '[\u0001-\u001f\u007f-\u009f]'),
    CONSTRAINT valid_tier CHECK (tier IN ('free', 'starter', 'professional', 'enterprise')),
    CONSTRAINT valid_power_level FOREIGN KEY (power_level) REFERENCES power_level_configs (power_level),
    CONSTRAINT valid_account_status CHECK (status IN ('active', 'suspended', 'closed')),
    CONSTRAINT positive_credits CHECK (
        credits_held >= 0 AND credits_held <= credits_remaining
        AND credits_debt >= 0 AND (credits_debt = 0 OR credits_remaining = credits_held)
    ),
    CONSTRAINT positive_totals CHECK (credits_lifetime >= 0 AND credits_spent >= 0 AND spent_this_month >= 0),
    CONSTRAINT positive_monthly_cap CHECK (monthly_cap >= 0),
    CONSTRAINT positive_recharge CHECK (recharge_threshold >= 0 AND recharge_amount > 0)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS credit_transactions (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT credit_transactions_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT known_account REFERENCES user_credits (user_id),
    transaction_type text NOT NULL,
    amount credits NOT NULL,
    held_delta credits NOT NULL DEFAULT 0,
    debt_delta credits NOT NULL DEFAULT 0,
    balance_after credits NOT NULL,
    held_after credits NOT NULL,
    debt_after credits NOT NULL,
    user_version bigint NOT NULL,
    hold_id uuid,
    ends_hold boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    idempotency_key text,
    provider text,
    model text,
    prompt_tokens integer,
    completion_tokens integer,
    tokens_used bigint,
    cost_per_token numeric(20, 12),
    power_level text,
    byok_used boolean NOT NULL DEFAULT false,
    payment_method text,
    stripe_transaction_id text,
    stripe_invoice_id text,
    package_id integer CONSTRAINT known_package REFERENCES credit_packages (id),
    request_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    notes text,
    admin_user_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT valid_transaction_type CHECK (
        transaction_type IN ('purchase', 'debit', 'refund', 'bonus', 'adjustment', 'hold', 'release', 'expire')
    ),
    CONSTRAINT valid_payment_method CHECK (payment_method IN ('stripe', 'paypal', 'manual', 'bonus', 'trial')),
    CONSTRAINT valid_state_after CHECK (
        held_after >= 0 AND held_after <= balance_after
        AND debt_after >= 0 AND (debt_after = 0 OR balance_after = held_after)
    ),
    -- What each type may move. A freed hold can only pay debt, so its amount and debt_delta are equal.
    CONSTRAINT valid_deltas CHECK (
        CASE transaction_type
            WHEN 'hold' THEN held_delta >= 0 AND amount = 0 AND debt_delta = 0 AND hold_id IS NOT NULL AND NOT ends_hold
            WHEN 'release' THEN held_delta <= 0 AND amount <= 0 AND amount = debt_delta AND hold_id IS NOT NULL AND ends_hold
            WHEN 'expire' THEN held_delta <= 0 AND amount <= 0 AND amount = debt_delta AND hold_id IS NOT NULL AND ends_hold
            WHEN 'debit' THEN held_delta <= 0 AND amount <= 0 AND debt_delta >= amount AND (ends_hold OR held_delta = 0)
                AND (hold_id IS NOT NULL OR NOT ends_hold)
            WHEN 'purchase' THEN held_delta = 0 AND amount >= 0 AND debt_delta <= 0 AND hold_id IS NULL AND NOT ends_hold
            WHEN 'bonus' THEN held_delta = 0 AND amount >= 0 AND debt_delta <= 0 AND hold_id IS NULL AND NOT ends_hold
            ELSE held_delta = 0 AND hold_id IS NULL AND NOT ends_hold
        END
    ),
    CONSTRAINT positive_transaction_tokens CHECK (prompt_tokens >= 0 AND completion_tokens >= 0 AND tokens_used >= 0)
);

-- The open holds: a row stands here exactly as long as its hold is open. The ledger row of a hold cannot be extended.
CREATE TABLE IF NOT EXISTS credit_holds (
    hold_id uuid CONSTRAINT credit_holds_pkey PRIMARY KEY,
    user_id text NOT NULL,
    amount credits NOT NULL,
    expires_at timestamptz NOT NULL,
    power_level text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT positive_hold CHECK (amount >= 0)
);

CREATE TABLE IF NOT EXISTS user_api_keys (
    id uuid CONSTRAINT user_api_keys_pkey PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL CONSTRAINT known_key_account REFERENCES user_credits (user_id),
    key_hash text NOT NULL CONSTRAINT unique_key_hash UNIQUE,
    key_hint text NOT NULL DEFAULT '',
    name text NOT NULL DEFAULT 'default',
    role text NOT NULL DEFAULT 'user',
    is_active boolean NOT NULL DEFAULT true,
    expires_at timestamptz,
    last_used timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT valid_key_hash CHECK (key_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT valid_role CHECK (role IN ('user', 'service', 'admin'))
) WITH (fillfactor = 80);

CREATE TABLE IF NOT EXISTS user_provider_keys (
    id uuid CONSTRAINT user_provider_keys_pkey PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL CONSTRAINT known_provider_key_account REFERENCES user_credits (user_id),
    provider text NOT NULL CONSTRAINT valid_provider REFERENCES providers (name),
    encrypted_api_key text NOT NULL,
    key_id text NOT NULL,
    key_name text NOT NULL DEFAULT 'default',
    key_hint text NOT NULL DEFAULT '',
    api_base text,
    is_active boolean NOT NULL DEFAULT true,
    is_default boolean NOT NULL DEFAULT false,
    fallback text NOT NULL DEFAULT 'never',
    total_requests bigint NOT NULL DEFAULT 0,
    total_tokens bigint NOT NULL DEFAULT 0,
    last_used timestamptz,
    last_error text,
    expires_at timestamptz,
    rotation_reminder timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT unique_provider_key UNIQUE (user_id, provider, key_name),
    CONSTRAINT valid_fallback CHECK (fallback IN ('never', 'credits')),
    CONSTRAINT valid_key_hint CHECK (length(key_hint) <= 4),
    CONSTRAINT positive_key_totals CHECK (total_requests >= 0 AND total_tokens >= 0)
) WITH (fillfactor = 70);

-- No foreign key: a row per call must neither lock the account nor ever be refused. No prompt and no answer text.
CREATE TABLE IF NOT EXISTS llm_usage_log (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT llm_usage_log_pkey PRIMARY KEY,
    user_id text NOT NULL,
    provider text NOT NULL DEFAULT 'unknown',
    model text NOT NULL DEFAULT 'unknown',
    model_group text,
    power_level text NOT NULL DEFAULT 'balanced',
    prompt_tokens integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    total_tokens bigint NOT NULL DEFAULT 0,
    cached_tokens integer NOT NULL DEFAULT 0,
    reasoning_tokens integer NOT NULL DEFAULT 0,
    cost_credits credits NOT NULL DEFAULT 0,
    cost_usd numeric(20, 12),
    cost_per_token numeric(20, 12),
    cost_source text,
    byok_used boolean NOT NULL DEFAULT false,
    provider_key_id uuid,
    request_id text NOT NULL CONSTRAINT unique_request_id UNIQUE,
    hold_id uuid,
    session_id text,
    app_id text,
    endpoint text,
    call_type text,
    streamed boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 1,
    latency_ms integer,
    time_to_first_token_ms integer,
    tokens_per_second numeric(12, 3),
    success boolean NOT NULL DEFAULT true,
    status_code integer,
    error_type text,
    error_message text,
    user_agent text,
    ip_address inet,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT positive_tokens CHECK (
        prompt_tokens >= 0 AND completion_tokens >= 0 AND total_tokens >= 0 AND cached_tokens >= 0 AND reasoning_tokens >= 0
    ),
    CONSTRAINT positive_cost CHECK (cost_credits >= 0 AND cost_usd >= 0 AND cost_usd <> 'NaN'::numeric),
    CONSTRAINT valid_cost_source CHECK (cost_source IN ('provider', 'usage', 'estimate')),
    CONSTRAINT valid_power_level_usage CHECK (power_level ~ '^[a-z][a-z0-9_-]{0,31}$')
);

CREATE TABLE IF NOT EXISTS provider_health (
    provider text NOT NULL,
    deployment text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'healthy',
    avg_latency_ms numeric(12, 3),
    p95_latency_ms numeric(12, 3),
    success_rate numeric(5, 2),
    requests_last_hour integer NOT NULL DEFAULT 0,
    rate_limit_remaining integer,
    last_check timestamptz,
    last_success timestamptz,
    last_failure timestamptz,
    consecutive_failures integer NOT NULL DEFAULT 0,
    last_error text,
    error_count_24h integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT unique_provider_deployment UNIQUE (provider, deployment),
    CONSTRAINT valid_status CHECK (status IN ('healthy', 'degraded', 'down')),
    CONSTRAINT valid_success_rate CHECK (success_rate BETWEEN 0 AND 100)
) WITH (fillfactor = 50);

-- Settlements whose usage the database refused, kept as they came for an operator to look at.
CREATE TABLE IF NOT EXISTS settlement_quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT settlement_quarantine_pkey PRIMARY KEY,
    hold_id uuid,
    user_id text,
    record text NOT NULL,
    error text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at timestamptz
);

DO $$
BEGIN
    IF to_regtype('settlement_step') IS NULL THEN
        -- One settlement, worked out but not yet written: plan_settlements() makes them, the writers consume them.
        CREATE TYPE settlement_step AS (
            "position" integer,
            hold_id uuid,
            user_id text,
            action text,
            outcome text,
            charged numeric,
            freed numeric,
            amount numeric,
            debt_delta numeric,
            balance_after numeric,
            held_after numeric,
            debt_after numeric,
            user_version bigint,
            spent numeric,
            power_level text,
            notes text,
            usage jsonb
        );
    END IF;
END
$$;
