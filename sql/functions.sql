-- Functions and triggers. This file holds no state: it is applied again whenever it changes.
--
-- Every function that moves credits locks the account's row first, several accounts in the order of their ids, and
-- answers a refusal with a row. An exception is a bug of the caller, or the database itself failing.
--
-- Available and debt are two sides of one number, net = available - debt, since debt > 0 implies available = 0.
-- Freeing and adding raise net, charging lowers it; available = max(net, 0), debt = max(-net, 0). Thereby debt is paid
-- first by whatever comes in, and a whole batch of settlements is a running sum.
--
-- The functions of the hot path plan without sequential scans: a plan is kept for the life of a session, and one made
-- while a table is small would go on reading all of it when it has grown. Those of a call keep their plans from the
-- start: to plan for each call's own values costs more than the statement itself.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

-- Amounts ------------------------------------------------------------------------------------------------------------

-- Whether this is an amount that the type credits holds without rounding: not below zero, at most six decimals, finite.
CREATE OR REPLACE FUNCTION is_amount(p_amount numeric) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN coalesce(p_amount >= 0 AND p_amount < 1e14 AND p_amount = trunc(p_amount, 6), false);
END
$$;

-- The amount a text names, or null where it names none.
CREATE OR REPLACE FUNCTION parse_amount(p_text text) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF p_text ~ '^[0-9]{1,20}([.][0-9]{1,20})?([eE][+-]?[0-9]{1,2})?$' AND is_amount(p_text::numeric) THEN
        RETURN p_text::numeric;
    END IF;
    RETURN NULL;
END
$$;

-- Accounts -----------------------------------------------------------------------------------------------------------

-- Opens an account. Doing it again changes nothing and is no error.
CREATE OR REPLACE FUNCTION create_account(p_user_id text, p_tier text DEFAULT 'free', p_power_level text DEFAULT 'balanced')
RETURNS TABLE (created boolean, error text)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    error := CASE
        WHEN NOT coalesce(is_user_id(p_user_id), false) THEN 'invalid_user_id'
        WHEN NOT coalesce(is_tier(p_tier), false) THEN 'invalid_tier'
        WHEN NOT EXISTS (SELECT FROM power_level_configs AS c WHERE c.power_level = p_power_level) THEN 'invalid_power_level'
    END;
    created := false;
    IF error IS NULL THEN
        INSERT INTO user_credits (user_id, tier, power_level) VALUES (p_user_id, p_tier, p_power_level)
        ON CONFLICT (user_id) DO NOTHING;
        created := FOUND;
    END IF;
    RETURN NEXT;
END
$$;

-- Somebody signed in with a token: makes the account when there is none, with these credits as a welcome, once. A tier that
-- the token names is written where it differs, unless the account has its tier from a token that was issued later.
-- Refusals: those of create_account.
CREATE OR REPLACE FUNCTION login_account(p_user_id text, p_tier text, p_welcome numeric, p_issued_at numeric)
RETURNS TABLE (created boolean, error text)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    added record;
BEGIN
    SELECT c.created, c.error INTO created, error FROM create_account(p_user_id, coalesce(p_tier, 'free')) AS c;
    IF created AND p_welcome > 0 THEN
        SELECT a.success, a.error_message INTO added FROM add_user_credits(p_user_id, p_welcome, 'bonus', 'bonus',
            p_notes => 'Welcome', p_idempotency_key => 'welcome') AS a;
        IF NOT added.success THEN
            RAISE EXCEPTION 'no welcome for an account that was just made: %', added.error_message;
        END IF;
    END IF;
    IF error IS NULL AND p_tier IS NOT NULL THEN
        UPDATE user_credits AS u
        SET tier = p_tier, metadata = u.metadata || jsonb_build_object('tier_issued_at', p_issued_at)
        WHERE u.user_id = p_user_id AND (login_account.created OR u.tier <> p_tier)
            AND CASE WHEN jsonb_typeof(u.metadata -> 'tier_issued_at') = 'number'
                THEN (u.metadata ->> 'tier_issued_at')::numeric < p_issued_at ELSE true END;
    END IF;
    RETURN NEXT;
END
$$;

-- The account's row, locked, with the month rolled in what is returned; the caller writes it back or leaves it.
CREATE OR REPLACE FUNCTION lock_account(p_user_id text) RETURNS user_credits
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    account user_credits;
    this_month timestamptz;
BEGIN
    SELECT * INTO account FROM user_credits WHERE user_id = p_user_id FOR UPDATE;
    this_month := date_trunc('month', clock_timestamp(), 'UTC');
    IF account.last_reset < this_month THEN
        account.spent_this_month := 0;
        account.last_reset := this_month;
    END IF;
    RETURN account;
END
$$;

-- The account after its net (available - debt) moved by so much.
CREATE OR REPLACE FUNCTION account_after(p_account user_credits, p_change numeric) RETURNS user_credits
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
DECLARE
    net numeric := p_account.credits_remaining - p_account.credits_held - p_account.credits_debt + p_change;
BEGIN
    p_account.credits_remaining := greatest(net, 0) + p_account.credits_held;
    p_account.credits_available := greatest(net, 0);
    p_account.credits_debt := greatest(-net, 0);
    p_account.version := p_account.version + 1;
    RETURN p_account;
END
$$;

-- Writes back what the ledger's functions may change in an account.
CREATE OR REPLACE FUNCTION save_account(p_account user_credits) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE user_credits SET
        credits_remaining = p_account.credits_remaining,
        credits_held = p_account.credits_held,
        credits_debt = p_account.credits_debt,
        credits_lifetime = p_account.credits_lifetime,
        credits_spent = p_account.credits_spent,
        spent_this_month = p_account.spent_this_month,
        last_reset = p_account.last_reset,
        version = p_account.version
    WHERE user_id = p_account.user_id;
END
$$;

-- An account's balance; no row for an unknown one.
CREATE OR REPLACE FUNCTION get_user_balance(p_user_id text)
RETURNS TABLE (
    credits_remaining credits, credits_held credits, credits_available credits, credits_debt credits,
    credits_lifetime credits, tier text, power_level text
)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT a.credits_remaining, a.credits_held, a.credits_available, a.credits_debt, a.credits_lifetime, a.tier, a.power_level
    FROM user_credits AS a WHERE a.user_id = p_user_id
$$;

-- A function's columns cannot be replaced, so a form of before this column goes first. Only that one: what was granted on a
-- function goes with it.
DO $$
DECLARE
    earlier regprocedure;
BEGIN
    FOR earlier IN
        SELECT oid FROM pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace
            AND proname IN ('load_account', 'load_caller') AND NOT 'power_level_downgrade' = ANY (proargnames)
    LOOP
        EXECUTE format('DROP FUNCTION %s', earlier);
    END LOOP;
END
$$;

-- What authentication needs to know of an account; no row for an unknown one.
CREATE OR REPLACE FUNCTION load_account(p_user_id text)
RETURNS TABLE (
    user_id text, tier text, power_level text, status text, monthly_cap credits, power_level_downgrade boolean
)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT a.user_id, a.tier, a.power_level, a.status, a.monthly_cap, a.power_level_downgrade
    FROM user_credits AS a WHERE a.user_id = p_user_id
$$;

-- The API key with this hash and its account, revoked and lapsed keys too; no row for an unknown one.
CREATE OR REPLACE FUNCTION load_caller(p_key_hash text)
RETURNS TABLE (
    key_id uuid, user_id text, role text, key_name text, is_active boolean, expires_at timestamptz,
    tier text, power_level text, status text, monthly_cap credits, power_level_downgrade boolean
)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT k.id, k.user_id, k.role, k.name, k.is_active, k.expires_at,
        a.tier, a.power_level, a.status, a.monthly_cap, a.power_level_downgrade
    FROM user_api_keys AS k JOIN user_credits AS a ON a.user_id = k.user_id
    WHERE k.key_hash = p_key_hash
$$;

-- Notes that these API keys were used just now. A key that somebody else is changing is passed over.
CREATE OR REPLACE FUNCTION touch_api_keys(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE user_api_keys SET last_used = clock_timestamp()
    WHERE id IN (SELECT id FROM user_api_keys WHERE id = ANY (p_ids) ORDER BY id FOR UPDATE SKIP LOCKED);
END
$$;

-- An account's ledger rows, newest first; p_before_id is the last row of the page before.
CREATE OR REPLACE FUNCTION account_history(p_user_id text, p_limit integer DEFAULT 50, p_before_id bigint DEFAULT NULL)
RETURNS SETOF credit_transactions
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT * FROM credit_transactions
    WHERE user_id = p_user_id AND user_version < CASE
        WHEN p_before_id IS NULL THEN 9223372036854775807
        ELSE (SELECT t.user_version FROM credit_transactions AS t WHERE t.id = p_before_id AND t.user_id = p_user_id)
    END
    ORDER BY user_version DESC
    LIMIT p_limit
$$;

-- Adding and debiting ------------------------------------------------------------------------------------------------

-- Why these arguments of add_user_credits cannot be, or null.
CREATE OR REPLACE FUNCTION add_refusal(p_amount numeric, p_transaction_type text, p_payment_method text, p_package_id integer)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN CASE
        WHEN coalesce(p_transaction_type, '') NOT IN ('purchase', 'bonus', 'refund', 'adjustment') THEN 'invalid_transaction_type'
        WHEN NOT is_amount(abs(p_amount)) OR p_amount = 0 THEN 'invalid_amount'
        WHEN p_amount < 0 AND p_transaction_type IN ('purchase', 'bonus') THEN 'invalid_amount'
        WHEN NOT is_payment_method(p_payment_method) THEN 'invalid_payment_method'
        WHEN p_package_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM credit_packages AS p WHERE p.id = p_package_id) THEN 'unknown_package'
    END;
END
$$;

-- Adds credits, or with a negative refund or adjustment takes them: from what is available, the rest becomes debt.
-- Debt is paid first. Opens the account when there is none. A repeated Stripe id or idempotency key with the same
-- arguments gets the first answer again. Refusals: invalid_user_id, invalid_transaction_type, invalid_amount,
-- invalid_payment_method, unknown_package, unknown_account (taking from nobody), idempotency_conflict.
CREATE OR REPLACE FUNCTION add_user_credits(
    p_user_id text,
    p_amount numeric,
    p_transaction_type text,
    p_payment_method text DEFAULT NULL,
    p_stripe_transaction_id text DEFAULT NULL,
    p_package_id integer DEFAULT NULL,
    p_notes text DEFAULT NULL,
    p_idempotency_key text DEFAULT NULL,
    p_admin_user_id text DEFAULT NULL
) RETURNS TABLE (new_balance credits, transaction_id bigint, success boolean, error_message text)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    account user_credits;
    earlier credit_transactions;
BEGIN
    success := false;
    error_message := add_refusal(p_amount, p_transaction_type, p_payment_method, p_package_id);
    IF error_message IS NULL THEN
        PERFORM lock_stripe_payment(p_stripe_transaction_id);
        account := lock_account(p_user_id);
        earlier := earlier_addition(p_user_id, p_transaction_type, p_stripe_transaction_id, p_idempotency_key);
        IF account.user_id IS NULL AND earlier.id IS NULL THEN
            error_message := CASE WHEN p_amount < 0 THEN 'unknown_account'
                ELSE (SELECT c.error FROM create_account(p_user_id) AS c) END;
            account := lock_account(p_user_id);
            -- Opening the account may have waited for another session that opened it for the same addition.
            earlier := earlier_addition(p_user_id, p_transaction_type, p_stripe_transaction_id, p_idempotency_key);
        END IF;
    END IF;
    IF earlier.id IS NOT NULL AND (earlier.user_id, earlier.transaction_type, earlier.debt_delta - earlier.amount)
            IS DISTINCT FROM (p_user_id, p_transaction_type, -p_amount) THEN
        error_message := 'idempotency_conflict';
    END IF;
    IF error_message IS NULL AND earlier.id IS NULL AND NOT is_amount(abs(account.credits_remaining - account.credits_debt + p_amount)
        + account.credits_held + account.credits_lifetime) THEN
        error_message := 'invalid_amount';
    END IF;
    IF error_message IS NULL AND earlier.id IS NULL THEN
        earlier := write_addition(account, p_amount, p_transaction_type, p_payment_method, p_stripe_transaction_id,
            p_package_id, p_notes, p_idempotency_key, p_admin_user_id);
    END IF;
    success := error_message IS NULL;
    new_balance := CASE WHEN success THEN earlier.balance_after ELSE account.credits_remaining END;
    transaction_id := CASE WHEN success THEN earlier.id END;
    RETURN NEXT;
END
$$;

-- Lets one addition at a time through for a Stripe payment, whichever account it names.
CREATE OR REPLACE FUNCTION lock_stripe_payment(p_stripe_transaction_id text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF p_stripe_transaction_id IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || ' stripe ' || p_stripe_transaction_id, 0));
    END IF;
END
$$;

-- The ledger row that an addition with this Stripe id or idempotency key has already made, or nulls.
CREATE OR REPLACE FUNCTION earlier_addition(
    p_user_id text, p_transaction_type text, p_stripe_transaction_id text, p_idempotency_key text
) RETURNS credit_transactions
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    earlier credit_transactions;
BEGIN
    SELECT * INTO earlier FROM credit_transactions
    WHERE stripe_transaction_id = p_stripe_transaction_id AND transaction_type = p_transaction_type;
    IF earlier.id IS NULL THEN
        SELECT * INTO earlier FROM credit_transactions
        WHERE user_id = p_user_id AND idempotency_key = p_idempotency_key;
    END IF;
    RETURN earlier;
END
$$;

-- Writes an addition that was found to be in order, into the account and the ledger.
CREATE OR REPLACE FUNCTION write_addition(
    p_account user_credits, p_amount numeric, p_transaction_type text, p_payment_method text,
    p_stripe_transaction_id text, p_package_id integer, p_notes text, p_idempotency_key text, p_admin_user_id text
) RETURNS credit_transactions
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed user_credits := account_after(p_account, p_amount);
    written credit_transactions;
BEGIN
    IF p_transaction_type = 'purchase' THEN
        changed.credits_lifetime := changed.credits_lifetime + p_amount;
    END IF;
    PERFORM save_account(changed);
    INSERT INTO credit_transactions (
        user_id, transaction_type, amount, debt_delta, balance_after, held_after, debt_after, user_version,
        idempotency_key, payment_method, stripe_transaction_id, package_id, notes, admin_user_id
    ) VALUES (
        changed.user_id, p_transaction_type, changed.credits_remaining - p_account.credits_remaining,
        changed.credits_debt - p_account.credits_debt, changed.credits_remaining, changed.credits_held,
        changed.credits_debt, changed.version, p_idempotency_key, p_payment_method, p_stripe_transaction_id,
        p_package_id, p_notes, p_admin_user_id
    ) RETURNING * INTO written;
    RETURN written;
END
$$;

-- Charges an account at once, without a hold. Never goes below zero and never makes debt. A request_id in the metadata is
-- its idempotency key; notes and admin_user_id there go into their columns, too. Refusals: unknown_account, invalid_amount,
-- invalid_tokens, insufficient_credits, idempotency_conflict.
CREATE OR REPLACE FUNCTION debit_user_credits(
    p_user_id text,
    p_amount numeric,
    p_provider text,
    p_model text,
    p_prompt_tokens integer,
    p_completion_tokens integer,
    p_power_level text,
    p_metadata jsonb DEFAULT '{}'
) RETURNS TABLE (new_balance credits, transaction_id bigint, success boolean, error_message text)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    account user_credits := lock_account(p_user_id);
    debit credit_transactions;
BEGIN
    SELECT * INTO debit FROM credit_transactions
    WHERE user_id = p_user_id AND idempotency_key = p_metadata ->> 'request_id';
    error_message := CASE
        WHEN account.user_id IS NULL THEN 'unknown_account'
        WHEN NOT is_amount(p_amount) OR NOT is_amount(account.credits_spent + p_amount) THEN 'invalid_amount'
        WHEN least(p_prompt_tokens, p_completion_tokens) < 0 THEN 'invalid_tokens'
        WHEN debit.id IS NOT NULL THEN CASE WHEN (debit.transaction_type, debit.amount) IS DISTINCT FROM ('debit', -p_amount)
            THEN 'idempotency_conflict' END
        WHEN account.status <> 'active' THEN 'account_' || account.status
        WHEN p_amount > account.credits_available THEN 'insufficient_credits'
    END;
    IF error_message IS NULL AND debit.id IS NULL THEN
        debit := write_debit(account, p_amount, p_provider, p_model, p_prompt_tokens, p_completion_tokens, p_power_level,
            coalesce(p_metadata, '{}'));
    END IF;
    success := error_message IS NULL;
    new_balance := CASE WHEN success THEN debit.balance_after ELSE account.credits_remaining END;
    transaction_id := CASE WHEN success THEN debit.id END;
    RETURN NEXT;
END
$$;

-- Writes a debit that was found to be in order, into the account and the ledger.
CREATE OR REPLACE FUNCTION write_debit(
    p_account user_credits, p_amount numeric, p_provider text, p_model text, p_prompt_tokens integer,
    p_completion_tokens integer, p_power_level text, p_metadata jsonb
) RETURNS credit_transactions
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed user_credits := account_after(p_account, -p_amount);
    tokens bigint := coalesce(p_prompt_tokens, 0)::bigint + coalesce(p_completion_tokens, 0);
    written credit_transactions;
BEGIN
    changed.credits_spent := changed.credits_spent + p_amount;
    changed.spent_this_month := changed.spent_this_month + p_amount;
    PERFORM save_account(changed);
    INSERT INTO credit_transactions (
        user_id, transaction_type, amount, balance_after, held_after, debt_after, user_version, idempotency_key,
        provider, model, prompt_tokens, completion_tokens, tokens_used, cost_per_token, power_level, request_id, metadata,
        notes, admin_user_id
    ) VALUES (
        changed.user_id, 'debit', -p_amount, changed.credits_remaining, changed.credits_held, changed.credits_debt,
        changed.version, p_metadata ->> 'request_id', p_provider, p_model, p_prompt_tokens, p_completion_tokens, tokens,
        -- What the column cannot hold is left out: it must not stop a charge.
        CASE WHEN p_amount < 1e8 * tokens THEN p_amount / tokens END, p_power_level, p_metadata ->> 'request_id', p_metadata,
        p_metadata ->> 'notes', p_metadata ->> 'admin_user_id'
    ) RETURNING * INTO written;
    RETURN written;
END
$$;

-- Holds --------------------------------------------------------------------------------------------------------------

-- What the ledger already knows of a hold: null (nothing), duplicate, already_resolved or idempotency_conflict.
CREATE OR REPLACE FUNCTION hold_state(p_hold_id uuid, p_user_id text, p_amount numeric, p_min_amount numeric) RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    written record;
BEGIN
    SELECT
        count(*) AS entries,
        bool_and(t.user_id = p_user_id) AS same_user,
        bool_or(t.transaction_type <> 'hold') AS resolved,
        bool_and((t.metadata ->> 'asked_amount')::numeric = p_amount AND (t.metadata ->> 'min_amount')::numeric = p_min_amount)
            FILTER (WHERE t.transaction_type = 'hold') AS same_amounts
    INTO written FROM credit_transactions AS t WHERE t.hold_id = p_hold_id;
    RETURN CASE
        WHEN written.entries = 0 THEN NULL
        WHEN NOT written.same_user THEN 'idempotency_conflict'
        WHEN written.resolved THEN 'already_resolved'
        WHEN written.same_amounts THEN 'duplicate'
        ELSE 'idempotency_conflict'
    END;
END
$$;

-- Why the account cannot have this hold, or null. A hold of nothing only asks whether the account is active.
CREATE OR REPLACE FUNCTION hold_refusal(p_account user_credits, p_amount numeric, p_min_amount numeric, p_room numeric)
RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN CASE
        WHEN p_account.status = 'suspended' THEN 'account_suspended'
        WHEN p_account.status = 'closed' THEN 'account_closed'
        WHEN p_amount = 0 THEN NULL
        WHEN p_account.credits_debt > 0 THEN 'in_debt'
        WHEN p_account.credits_available < p_min_amount THEN 'insufficient_credits'
        WHEN p_room < p_min_amount THEN 'monthly_cap'
    END;
END
$$;

-- Sets credits aside for a call: p_amount, or as much of it as is available and the monthly cap leaves, if that is at
-- least p_min_amount. The lease ends after p_ttl by the database's clock unless extended. The same id with the same
-- amounts again is a duplicate and gets the same answer. Refusals, in error: unknown_account, account_suspended,
-- account_closed, in_debt, insufficient_credits, monthly_cap, already_resolved, idempotency_conflict, invalid_amount;
-- the balances tell the account's state all the same. credits_cap_room is what the monthly cap left before this hold.
CREATE OR REPLACE FUNCTION hold_credits(
    p_hold_id uuid,
    p_user_id text,
    p_amount numeric,
    p_min_amount numeric,
    p_ttl interval,
    p_power_level text DEFAULT NULL,
    p_metadata jsonb DEFAULT '{}'
) RETURNS TABLE (
    success boolean, error text, duplicate boolean, held credits, credits_remaining credits, credits_held credits,
    credits_available credits, credits_debt credits, credits_cap_room credits
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    account user_credits := lock_account(p_user_id);
    room numeric := account.monthly_cap - account.spent_this_month - account.credits_held;
BEGIN
    error := CASE
        WHEN account.user_id IS NULL THEN 'unknown_account'
        WHEN NOT is_amount(p_amount) OR NOT is_amount(p_min_amount) OR p_min_amount > p_amount THEN 'invalid_amount'
        ELSE hold_state(p_hold_id, p_user_id, p_amount, p_min_amount)
    END;
    duplicate := error IS NOT DISTINCT FROM 'duplicate';
    held := 0;
    IF duplicate THEN
        error := NULL;
        SELECT t.held_delta INTO STRICT held FROM credit_transactions AS t
        WHERE t.hold_id = p_hold_id AND t.transaction_type = 'hold';
    ELSE
        error := coalesce(error, hold_refusal(account, p_amount, p_min_amount, room));
        IF error IS NULL THEN
            held := CASE WHEN p_amount = 0 THEN 0 ELSE least(p_amount, account.credits_available, room) END;
            account := write_hold(account, p_hold_id, held, p_ttl, p_power_level, coalesce(p_metadata, '{}')
                || jsonb_build_object('asked_amount', p_amount::text, 'min_amount', p_min_amount::text));
        END IF;
    END IF;
    success := error IS NULL;
    credits_remaining := account.credits_remaining;
    credits_held := account.credits_held;
    credits_available := account.credits_available;
    credits_debt := account.credits_debt;
    credits_cap_room := room;
    RETURN NEXT;
END
$$;

-- What hold_credits would answer now; nothing is written: the very same statement runs and is undone.
CREATE OR REPLACE FUNCTION rehearse_hold(
    p_user_id text, p_amount numeric, p_min_amount numeric, p_power_level text DEFAULT NULL
) RETURNS TABLE (
    success boolean, error text, duplicate boolean, held credits, credits_remaining credits, credits_held credits,
    credits_available credits, credits_debt credits, credits_cap_room credits
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    BEGIN
        SELECT h.* INTO success, error, duplicate, held, credits_remaining, credits_held, credits_available,
            credits_debt, credits_cap_room
        FROM hold_credits(gen_random_uuid(), p_user_id, p_amount, p_min_amount, interval '1 second', p_power_level) AS h;
        -- Undoes the block; what the variables hold stays.
        RAISE EXCEPTION USING ERRCODE = 'UC000', MESSAGE = 'rehearsed';
    EXCEPTION WHEN SQLSTATE 'UC000' THEN
        NULL;
    END;
    RETURN NEXT;
END
$$;

-- Writes a hold that was found to be in order: the account, the ledger row, the lease. Returns the account after it.
CREATE OR REPLACE FUNCTION write_hold(
    p_account user_credits, p_hold_id uuid, p_amount numeric, p_ttl interval, p_power_level text, p_metadata jsonb
) RETURNS user_credits
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    ends timestamptz := clock_timestamp() + p_ttl;
BEGIN
    p_account.credits_held := p_account.credits_held + p_amount;
    p_account.credits_available := p_account.credits_available - p_amount;
    p_account.version := p_account.version + 1;
    PERFORM save_account(p_account);
    INSERT INTO credit_transactions (
        user_id, transaction_type, amount, held_delta, balance_after, held_after, debt_after, user_version, hold_id,
        expires_at, power_level, request_id, metadata
    ) VALUES (
        p_account.user_id, 'hold', 0, p_amount, p_account.credits_remaining, p_account.credits_held,
        p_account.credits_debt, p_account.version, p_hold_id, ends, p_power_level, p_hold_id::text, p_metadata
    );
    INSERT INTO credit_holds (hold_id, user_id, amount, expires_at, power_level)
    VALUES (p_hold_id, p_account.user_id, p_amount, ends, p_power_level);
    RETURN p_account;
END
$$;

-- hold_credits() for a call with an idempotency key: one call, and one charge, per account, key and body while the key
-- is remembered. A key whose call is under way or was charged is refused (idempotency_in_progress, idempotency_finished,
-- or idempotency_reused for another body), and earlier_hold_id names that call; one whose call was released is free again.
-- A lapsed hold counts as finished: its settlement may still come.
CREATE OR REPLACE FUNCTION hold_credits_once(
    p_idempotency_key text,
    p_body_hash text,
    p_remember interval,
    p_hold_id uuid,
    p_user_id text,
    p_amount numeric,
    p_min_amount numeric,
    p_ttl interval,
    p_power_level text DEFAULT NULL,
    p_metadata jsonb DEFAULT '{}'
) RETURNS TABLE (
    success boolean, error text, duplicate boolean, held credits, credits_remaining credits, credits_held credits,
    credits_available credits, credits_debt credits, credits_cap_room credits, earlier_hold_id uuid
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    earlier idempotency_keys;
BEGIN
    -- The account's lock orders calls with the same key.
    PERFORM lock_account(p_user_id);
    SELECT * INTO earlier FROM idempotency_keys AS k
    WHERE k.user_id = p_user_id AND k.idempotency_key = p_idempotency_key AND k.expires_at > clock_timestamp();
    IF earlier.hold_id <> p_hold_id THEN
        error := idempotency_refusal(earlier, p_body_hash);
    END IF;
    IF error IS NOT NULL THEN
        success := false;
        earlier_hold_id := earlier.hold_id;
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT h.*, NULL::uuid FROM hold_credits(
        p_hold_id, p_user_id, p_amount, p_min_amount, p_ttl, p_power_level, p_metadata
    ) AS h;
    INSERT INTO idempotency_keys AS k (user_id, idempotency_key, body_hash, hold_id, expires_at)
    SELECT p_user_id, p_idempotency_key, p_body_hash, p_hold_id, clock_timestamp() + p_remember
    WHERE EXISTS (SELECT FROM credit_holds AS h WHERE h.hold_id = p_hold_id)
    ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO UPDATE SET
        body_hash = excluded.body_hash, hold_id = excluded.hold_id, expires_at = excluded.expires_at
    WHERE k.hold_id <> excluded.hold_id;
END
$$;

-- Why a remembered key cannot be used for another call, or null where the earlier call came to nothing.
CREATE OR REPLACE FUNCTION idempotency_refusal(p_earlier idempotency_keys, p_body_hash text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN CASE
        WHEN p_earlier.body_hash <> p_body_hash THEN 'idempotency_reused'
        WHEN EXISTS (SELECT FROM credit_holds AS h WHERE h.hold_id = p_earlier.hold_id) THEN 'idempotency_in_progress'
        WHEN EXISTS (
            SELECT FROM credit_transactions AS t WHERE t.hold_id = p_earlier.hold_id AND t.transaction_type IN ('debit', 'expire')
        ) THEN 'idempotency_finished'
    END;
END
$$;

-- Forgets keys past their time, as many as p_limit, and returns how many.
CREATE OR REPLACE FUNCTION forget_idempotency_keys(p_limit integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    forgotten integer;
BEGIN
    DELETE FROM idempotency_keys AS k WHERE (k.user_id, k.idempotency_key) IN (
        SELECT o.user_id, o.idempotency_key FROM idempotency_keys AS o
        WHERE o.expires_at < clock_timestamp() ORDER BY o.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END
$$;

-- Extends open leases to p_ttl from now and returns those that are still open. A lease whose hold is being ended at this
-- moment is passed over, so that this never waits and never deadlocks.
CREATE OR REPLACE FUNCTION extend_holds(p_hold_ids uuid[], p_ttl interval) RETURNS TABLE (hold_id uuid)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RETURN QUERY
    UPDATE credit_holds AS h SET expires_at = clock_timestamp() + p_ttl
    WHERE h.hold_id IN (
        SELECT o.hold_id FROM credit_holds AS o WHERE o.hold_id = ANY (p_hold_ids) ORDER BY o.hold_id FOR UPDATE SKIP LOCKED
    )
    RETURNING h.hold_id;
END
$$;

-- Frees up to p_limit holds whose lease has run out by the database's clock, and returns them. Accounts and leases that
-- are busy are left to the next run, so that any number of sweepers may run at once.
CREATE OR REPLACE FUNCTION expire_holds(p_limit integer DEFAULT 100)
RETURNS TABLE (hold_id uuid, user_id text, amount credits)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    due uuid[] := ARRAY(
        SELECT h.hold_id FROM credit_holds AS h WHERE h.expires_at < clock_timestamp() ORDER BY h.expires_at LIMIT p_limit
    );
    locked text[];
BEGIN
    locked := ARRAY(
        SELECT a.user_id FROM user_credits AS a
        WHERE a.user_id IN (SELECT h.user_id FROM credit_holds AS h WHERE h.hold_id = ANY (due))
        ORDER BY a.user_id FOR UPDATE SKIP LOCKED
    );
    RETURN QUERY
    SELECT s.hold_id, s.user_id, s.freed::credits
    FROM apply_settlements((
        SELECT coalesce(jsonb_agg(jsonb_build_object('hold_id', o.hold_id, 'user_id', o.user_id, 'action', 'expire')), '[]')
        FROM (
            SELECT h.hold_id, h.user_id FROM credit_holds AS h
            WHERE h.hold_id = ANY (due) AND h.user_id = ANY (locked) AND h.expires_at < clock_timestamp()
            FOR UPDATE SKIP LOCKED
        ) AS o
    )) AS s
    WHERE s.outcome = 'expired';
END
$$;

-- Settling -----------------------------------------------------------------------------------------------------------

-- The state machine of a hold: what becomes of one settlement, release or expiry. p_held is null where the ledger has no
-- hold, p_charged where nothing was charged yet, p_charge where what is to be charged is no amount. A release may come
-- before its hold, whose answer was lost: it is written, and the hold then finds itself resolved.
CREATE OR REPLACE FUNCTION settlement_outcome(
    p_action text, p_charge numeric, p_same_user boolean, p_held numeric, p_ended boolean, p_charged numeric
) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
DECLARE
    is_open boolean := p_held IS NOT NULL AND NOT p_ended;
BEGIN
    IF p_action NOT IN ('settle', 'release', 'expire') OR p_action IS NULL THEN
        RAISE EXCEPTION 'unknown settlement action "%"', p_action USING HINT = 'The action is "settle" or "release".';
    END IF;
    RETURN CASE
        WHEN NOT p_same_user THEN 'conflict'
        WHEN p_action = 'settle' AND p_charge IS NULL THEN 'invalid_amount'
        WHEN p_action = 'settle' AND p_charged <> p_charge THEN 'conflict'
        WHEN p_action = 'settle' AND p_charged IS NOT NULL THEN 'duplicate'
        WHEN p_action = 'settle' AND NOT is_open THEN 'late_settled'
        WHEN p_action = 'settle' THEN 'settled'
        WHEN p_action = 'release' AND p_held IS NULL AND NOT p_ended AND p_charged IS NULL THEN 'released'
        WHEN NOT is_open OR p_charged IS NOT NULL THEN 'duplicate'
        WHEN p_action = 'release' THEN 'released'
        ELSE 'expired'
    END;
END
$$;

-- Works out a batch whose accounts are locked and whose hold ids are distinct, in input order, and writes nothing.
-- A charge is read back from the ledger as debt_delta - amount: what left the balance plus what went to debt.
CREATE OR REPLACE FUNCTION plan_settlements(p_items jsonb) RETURNS settlement_step[]
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RETURN ARRAY(
        WITH item AS (
            SELECT i.position::integer AS position, (i.value ->> 'hold_id')::uuid AS hold_id, i.value ->> 'user_id' AS user_id,
                i.value ->> 'action' AS action, parse_amount(i.value ->> 'charge') AS charge, i.value ->> 'notes' AS notes,
                nullif(i.value -> 'usage', 'null') AS usage
            FROM jsonb_array_elements(p_items) WITH ORDINALITY AS i (value, position)
        ), known AS (
            SELECT item.*, a.credits_remaining - a.credits_held - a.credits_debt AS net, a.credits_held, a.version,
                a.credits_spent, a.user_id IS NOT NULL AS has_account, l.same_user, l.held, l.ended, l.charged, l.power_level,
                is_amount(a.credits_spent + sum(item.charge) OVER (PARTITION BY item.user_id ORDER BY item.position)) AS fits
            FROM item
            LEFT JOIN LATERAL (SELECT c.* FROM user_credits AS c WHERE c.user_id = item.user_id OFFSET 0) AS a ON true
            CROSS JOIN LATERAL (
                SELECT coalesce(bool_and(t.user_id = item.user_id), true) AS same_user,
                    max(t.held_delta) FILTER (WHERE t.transaction_type = 'hold') AS held,
                    max(t.power_level) FILTER (WHERE t.transaction_type = 'hold') AS power_level,
                    coalesce(bool_or(t.ends_hold), false) AS ended,
                    max(t.debt_delta - t.amount) FILTER (WHERE t.transaction_type = 'debit') AS charged
                FROM credit_transactions AS t WHERE t.hold_id = item.hold_id
            ) AS l
        ), decided AS MATERIALIZED (
            SELECT *, CASE WHEN NOT has_account THEN 'unknown_account'
                ELSE settlement_outcome(action, CASE WHEN fits THEN charge END, same_user, held, ended, charged) END AS outcome
            FROM known
        ), moved AS MATERIALIZED (
            SELECT *, CASE WHEN outcome IN ('settled', 'released', 'expired') THEN coalesce(held, 0) ELSE 0 END AS freed,
                CASE WHEN outcome IN ('settled', 'late_settled') THEN charge ELSE 0 END AS owed,
                (outcome IN ('settled', 'late_settled', 'released', 'expired'))::integer AS entry
            FROM decided
        ), summed AS (
            SELECT *, net + sum(freed - owed) OVER so_far AS net_after, credits_held - sum(freed) OVER so_far AS held_after,
                version + sum(entry) OVER so_far AS user_version, credits_spent + sum(owed) OVER so_far AS spent
            FROM moved WINDOW so_far AS (PARTITION BY user_id ORDER BY position)
        )
        SELECT ROW(
            position, hold_id, user_id, action, outcome,
            CASE WHEN entry = 1 THEN owed WHEN same_user THEN charged END,
            freed,
            greatest(net_after, 0) - greatest(net_after - freed + owed, 0) - freed,
            greatest(-net_after, 0) - greatest(-net_after + freed - owed, 0),
            greatest(net_after, 0) + held_after, held_after, CASE WHEN has_account THEN greatest(-net_after, 0) END,
            user_version, spent, power_level, notes, usage
        )::settlement_step
        FROM summed ORDER BY position
    );
END
$$;

-- Writes the ledger rows of the steps that change something, and ends their leases.
CREATE OR REPLACE FUNCTION write_settled_ledger(p_steps settlement_step[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO credit_transactions (
        user_id, transaction_type, amount, held_delta, debt_delta, balance_after, held_after, debt_after, user_version,
        hold_id, ends_hold, provider, model, prompt_tokens, completion_tokens, tokens_used, cost_per_token, power_level,
        byok_used, request_id, metadata, notes
    )
    SELECT s.user_id, CASE s.outcome WHEN 'released' THEN 'release' WHEN 'expired' THEN 'expire' ELSE 'debit' END,
        s.amount, -s.freed, s.debt_delta, s.balance_after, s.held_after, s.debt_after, s.user_version,
        s.hold_id, s.outcome <> 'late_settled', s.usage ->> 'provider', s.usage ->> 'model',
        (s.usage ->> 'prompt_tokens')::integer, (s.usage ->> 'completion_tokens')::integer,
        (s.usage ->> 'total_tokens')::bigint, (s.usage ->> 'cost_per_token')::numeric,
        coalesce(s.usage ->> 'power_level', s.power_level), coalesce((s.usage ->> 'byok_used')::boolean, false),
        s.hold_id::text, CASE s.outcome WHEN 'late_settled' THEN '{"late": true}'::jsonb ELSE '{}' END, s.notes
    FROM unnest(p_steps) AS s
    WHERE s.outcome IN ('settled', 'late_settled', 'released', 'expired')
    ORDER BY s.position;
    DELETE FROM credit_holds WHERE hold_id = ANY (ARRAY(
        SELECT s.hold_id FROM unnest(p_steps) AS s WHERE s.outcome IN ('settled', 'released', 'expired')
    ));
END
$$;

-- Writes the accounts: each takes the state after its last step.
CREATE OR REPLACE FUNCTION write_settled_accounts(p_steps settlement_step[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    this_month timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
BEGIN
    UPDATE user_credits AS a SET
        credits_remaining = s.balance_after,
        credits_held = s.held_after,
        credits_debt = s.debt_after,
        credits_spent = s.spent,
        spent_this_month = CASE WHEN a.last_reset < this_month THEN 0 ELSE a.spent_this_month END + s.spent - a.credits_spent,
        last_reset = greatest(a.last_reset, this_month),
        version = s.user_version
    FROM (
        SELECT DISTINCT ON (u.user_id) u.* FROM unnest(p_steps) AS u ORDER BY u.user_id, u.position DESC
    ) AS s
    WHERE a.user_id = s.user_id AND a.version < s.user_version;
END
$$;

-- Writes the usage rows. Only a row that a release wrote gives way, to the late settlement that came after it.
CREATE OR REPLACE FUNCTION write_usage(p_steps settlement_step[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO llm_usage_log AS log (
        user_id, request_id, hold_id, cost_credits, provider, model, model_group, power_level, prompt_tokens,
        completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost_usd, cost_per_token, cost_source, byok_used,
        provider_key_id, session_id, app_id, endpoint, call_type, streamed, attempts, latency_ms, time_to_first_token_ms,
        tokens_per_second, success, status_code, error_type, error_message, user_agent, ip_address, metadata
    )
    SELECT s.user_id, s.hold_id::text, s.hold_id, CASE s.action WHEN 'settle' THEN s.charged ELSE 0 END,
        coalesce(u.provider, 'unknown'), coalesce(u.model, 'unknown'), u.model_group,
        coalesce(u.power_level, s.power_level, 'balanced'), coalesce(u.prompt_tokens, 0), coalesce(u.completion_tokens, 0),
        coalesce(u.total_tokens, coalesce(u.prompt_tokens, 0)::bigint + coalesce(u.completion_tokens, 0)),
        coalesce(u.cached_tokens, 0), coalesce(u.reasoning_tokens, 0), u.cost_usd, u.cost_per_token, u.cost_source,
        coalesce(u.byok_used, false), u.provider_key_id, u.session_id, u.app_id, u.endpoint, u.call_type,
        coalesce(u.streamed, false), coalesce(u.attempts, 1), u.latency_ms, u.time_to_first_token_ms, u.tokens_per_second,
        s.action = 'settle' AND coalesce(u.success, true), u.status_code, u.error_type, u.error_message, u.user_agent,
        u.ip_address, coalesce(u.metadata, '{}') || CASE s.action WHEN 'settle' THEN '{}' ELSE '{"ended_by": "release"}' END::jsonb
    FROM unnest(p_steps) AS s
    CROSS JOIN LATERAL jsonb_populate_record(NULL::llm_usage_log, coalesce(s.usage, '{}')) AS u
    WHERE s.outcome IN ('settled', 'late_settled')
        OR (s.action = 'release' AND s.usage IS NOT NULL AND s.outcome IN ('released', 'duplicate'))
    ON CONFLICT (request_id) DO UPDATE SET
        user_id = excluded.user_id, cost_credits = excluded.cost_credits, provider = excluded.provider, model = excluded.model,
        model_group = excluded.model_group, power_level = excluded.power_level, prompt_tokens = excluded.prompt_tokens,
        completion_tokens = excluded.completion_tokens, total_tokens = excluded.total_tokens,
        cached_tokens = excluded.cached_tokens, reasoning_tokens = excluded.reasoning_tokens, cost_usd = excluded.cost_usd,
        cost_per_token = excluded.cost_per_token, cost_source = excluded.cost_source, byok_used = excluded.byok_used,
        provider_key_id = excluded.provider_key_id, session_id = excluded.session_id, app_id = excluded.app_id,
        endpoint = excluded.endpoint, call_type = excluded.call_type, streamed = excluded.streamed,
        attempts = excluded.attempts, latency_ms = excluded.latency_ms,
        time_to_first_token_ms = excluded.time_to_first_token_ms, tokens_per_second = excluded.tokens_per_second,
        success = excluded.success, status_code = excluded.status_code, error_type = excluded.error_type,
        error_message = excluded.error_message, user_agent = excluded.user_agent, ip_address = excluded.ip_address,
        metadata = excluded.metadata
    WHERE log.metadata ->> 'ended_by' = 'release' AND NOT excluded.metadata ? 'ended_by';
END
$$;

-- Counts the settled calls on the users' own provider keys, and what they cost there in the month of the settlement.
CREATE OR REPLACE FUNCTION count_provider_key_use(p_steps settlement_step[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    this_month timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
BEGIN
    UPDATE user_provider_keys AS k SET
        total_requests = k.total_requests + used.requests,
        total_tokens = k.total_tokens + used.tokens,
        spent_this_month_usd = CASE WHEN k.last_reset < this_month THEN 0 ELSE k.spent_this_month_usd END + used.usd,
        last_reset = greatest(k.last_reset, this_month),
        errors_in_a_row = CASE WHEN used.answered THEN 0 ELSE k.errors_in_a_row END,
        last_used = clock_timestamp()
    FROM (
        SELECT (s.usage ->> 'provider_key_id')::uuid AS id, s.user_id, count(*) AS requests,
            sum(coalesce((s.usage ->> 'cost_usd')::numeric, 0)) AS usd,
            bool_or(coalesce((s.usage ->> 'success')::boolean, true)) AS answered,
            sum(coalesce((s.usage ->> 'total_tokens')::bigint,
                coalesce((s.usage ->> 'prompt_tokens')::bigint, 0) + coalesce((s.usage ->> 'completion_tokens')::bigint, 0))) AS tokens
        FROM unnest(p_steps) AS s
        WHERE s.outcome IN ('settled', 'late_settled') AND s.usage ->> 'provider_key_id' IS NOT NULL
        GROUP BY 1, 2
    ) AS used
    WHERE k.id = used.id AND k.user_id = used.user_id;
END
$$;

-- Applies a batch whose accounts are locked and whose hold ids are distinct.
CREATE OR REPLACE FUNCTION apply_settlements(p_items jsonb) RETURNS SETOF settlement_step
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    steps settlement_step[];
BEGIN
    steps := plan_settlements(p_items);
    PERFORM write_settled_ledger(steps);
    PERFORM write_settled_accounts(steps);
    PERFORM write_usage(steps);
    IF EXISTS (SELECT FROM unnest(steps) AS s WHERE s.usage ->> 'provider_key_id' IS NOT NULL) THEN
        PERFORM count_provider_key_use(steps);
    END IF;
    RETURN QUERY SELECT * FROM unnest(steps);
END
$$;

-- Settles and releases holds, in one transaction and in input order. p_settlements is an array of objects
-- {"hold_id", "user_id", "action": "settle" | "release", "charge", "usage": {columns of llm_usage_log} | null, "notes"}.
-- A settlement depends on no hold: where its hold has lapsed, was released or never arrived, it still charges. What is not
-- covered by the hold and by what is available becomes debt. A release ends a hold that arrives after it, too. Outcomes:
-- settled, late_settled, released, duplicate (nothing left to do), conflict (charged already with another amount, then in
-- charged; or a hold of another account), unknown_account, invalid_amount. A row that repeats a hold id of this batch
-- begins a new run over the rest.
CREATE OR REPLACE FUNCTION settle_credits(p_settlements jsonb)
RETURNS TABLE (
    hold_id uuid, outcome text, charged credits, debt_added credits, credits_remaining credits, credits_held credits,
    credits_available credits, credits_debt credits
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    run jsonb;
BEGIN
    PERFORM FROM user_credits
    WHERE user_id = ANY (ARRAY(SELECT DISTINCT i.value ->> 'user_id' FROM jsonb_array_elements(p_settlements) AS i))
    ORDER BY user_id FOR UPDATE;
    FOR run IN SELECT distinct_runs(p_settlements) LOOP
        RETURN QUERY
        SELECT s.hold_id, s.outcome, s.charged::credits, greatest(s.debt_delta, 0)::credits, s.balance_after::credits,
            s.held_after::credits, (s.balance_after - s.held_after)::credits, s.debt_after::credits
        FROM apply_settlements(run) AS s;
    END LOOP;
END
$$;

-- Cuts a batch, in order, into runs in which no hold id comes twice.
CREATE OR REPLACE FUNCTION distinct_runs(p_items jsonb) RETURNS SETOF jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
BEGIN
    IF jsonb_array_length(p_items) = 1 THEN
        RETURN NEXT p_items;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT jsonb_agg(cut.value ORDER BY cut.position)
    FROM (
        SELECT seen.value, seen.position, count(*) FILTER (WHERE seen.times > 1) OVER (ORDER BY seen.position) AS run
        FROM (
            SELECT i.value, i.position,
                count(*) OVER (PARTITION BY (i.value ->> 'hold_id')::uuid ORDER BY i.position) AS times
            FROM jsonb_array_elements(p_items) WITH ORDINALITY AS i (value, position)
        ) AS seen
    ) AS cut
    GROUP BY cut.run ORDER BY cut.run;
END
$$;

-- Frees one hold that is not needed, for operators and for a refusal after the hold.
CREATE OR REPLACE FUNCTION release_hold(p_hold_id uuid, p_user_id text, p_notes text DEFAULT NULL)
RETURNS TABLE (
    hold_id uuid, outcome text, charged credits, debt_added credits, credits_remaining credits, credits_held credits,
    credits_available credits, credits_debt credits
)
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT * FROM settle_credits(jsonb_build_array(jsonb_build_object(
        'hold_id', p_hold_id, 'user_id', p_user_id, 'action', 'release', 'notes', p_notes
    )))
$$;

-- Audit --------------------------------------------------------------------------------------------------------------

-- Invariants 1, 10 and 13: an account is the sum of its ledger rows.
CREATE OR REPLACE FUNCTION audit_accounts() RETURNS TABLE (invariant text, user_id text, hold_id uuid, detail text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH entries AS (
        SELECT t.user_id, sum(t.amount) AS balance, sum(t.held_delta) AS held, sum(t.debt_delta) AS debt, count(*) AS entries,
            sum(t.debt_delta - t.amount) FILTER (WHERE t.transaction_type = 'debit') AS spent,
            sum(t.amount - t.debt_delta) FILTER (WHERE t.transaction_type = 'purchase') AS lifetime,
            sum(t.amount - t.debt_delta) FILTER (WHERE t.transaction_type IN ('purchase', 'bonus', 'refund', 'adjustment')) AS added
        FROM credit_transactions AS t GROUP BY t.user_id
    ), compared AS (
        SELECT a.*, coalesce(e.balance, 0) AS balance, coalesce(e.held, 0) AS held, coalesce(e.debt, 0) AS debt,
            coalesce(e.entries, 0) AS entries, coalesce(e.spent, 0) AS spent, coalesce(e.lifetime, 0) AS lifetime,
            coalesce(e.added, 0) AS added
        FROM user_credits AS a LEFT JOIN entries AS e ON e.user_id = a.user_id
    )
    SELECT found.invariant, c.user_id, NULL::uuid, found.detail
    FROM compared AS c
    CROSS JOIN LATERAL (VALUES
        ('balance_is_sum', c.credits_remaining <> c.balance, format('account %s, ledger %s', c.credits_remaining, c.balance)),
        ('held_is_sum', c.credits_held <> c.held, format('account %s, ledger %s', c.credits_held, c.held)),
        ('debt_is_sum', c.credits_debt <> c.debt, format('account %s, ledger %s', c.credits_debt, c.debt)),
        ('spent_is_sum', c.credits_spent <> c.spent, format('account %s, ledger %s', c.credits_spent, c.spent)),
        ('lifetime_is_sum', c.credits_lifetime <> c.lifetime, format('account %s, ledger %s', c.credits_lifetime, c.lifetime)),
        ('version_is_count', c.version <> c.entries, format('account %s, ledger %s', c.version, c.entries)),
        ('debt_without_available', c.credits_debt > 0 AND c.credits_remaining <> c.credits_held,
            format('debt %s beside available %s', c.credits_debt, c.credits_remaining - c.credits_held)),
        ('conservation', c.added - c.spent <> c.credits_remaining - c.credits_debt,
            format('added %s - charged %s is not balance %s - debt %s', c.added, c.spent, c.credits_remaining, c.credits_debt))
    ) AS found (invariant, broken, detail)
    WHERE found.broken
$$;

-- Invariants 2 and 4 over every row of the history: no gap, each state follows from the one before, none is impossible.
CREATE OR REPLACE FUNCTION audit_history() RETURNS TABLE (invariant text, user_id text, hold_id uuid, detail text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH history AS (
        SELECT t.*, coalesce(lag(t.user_version) OVER w, 0) AS version_before, coalesce(lag(t.balance_after) OVER w, 0) AS balance_before,
            coalesce(lag(t.held_after) OVER w, 0) AS held_before, coalesce(lag(t.debt_after) OVER w, 0) AS debt_before
        FROM (
            SELECT c.id, c.user_id, c.hold_id, c.user_version, c.amount, c.held_delta, c.debt_delta, c.balance_after,
                c.held_after, c.debt_after
            FROM credit_transactions AS c
        ) AS t WINDOW w AS (PARTITION BY t.user_id ORDER BY t.user_version)
    ), judged AS (
        SELECT *, user_version <> version_before + 1 AS gap,
            (balance_after, held_after, debt_after)
                <> (balance_before + amount, held_before + held_delta, debt_before + debt_delta) AS leap,
            NOT (held_after BETWEEN 0 AND balance_after AND debt_after >= 0
                AND (debt_after = 0 OR balance_after = held_after)) AS impossible
        FROM history
    )
    SELECT found.invariant, j.user_id, j.hold_id,
        format('transaction %s, version %s after %s: balance %s after %s, held %s after %s, debt %s after %s', j.id, j.user_version,
            j.version_before, j.balance_after, j.balance_before, j.held_after, j.held_before, j.debt_after, j.debt_before)
    FROM judged AS j
    CROSS JOIN LATERAL (VALUES
        ('version_gapless', j.gap), ('state_follows', j.leap), ('state_possible', j.impossible)
    ) AS found (invariant, broken)
    WHERE (j.gap OR j.leap OR j.impossible) AND found.broken
$$;

-- Invariants 3 and 5: a hold is ended at most once, charged at most once, freed exactly, and open holds have their lease.
CREATE OR REPLACE FUNCTION audit_holds() RETURNS TABLE (invariant text, user_id text, hold_id uuid, detail text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH ledger AS (
        SELECT t.hold_id, min(t.user_id) AS user_id, count(DISTINCT t.user_id) AS users,
            count(*) FILTER (WHERE t.transaction_type = 'hold') AS holds, count(*) FILTER (WHERE t.ends_hold) AS ends,
            count(*) FILTER (WHERE t.transaction_type = 'debit') AS charges, sum(t.held_delta) AS held,
            count(*) FILTER (WHERE t.transaction_type = 'release') AS releases
        FROM credit_transactions AS t WHERE t.hold_id IS NOT NULL GROUP BY t.hold_id
    ), compared AS (
        SELECT coalesce(l.hold_id, h.hold_id) AS hold_id, coalesce(l.user_id, h.user_id) AS user_id,
            coalesce(l.users, 1) AS users, coalesce(l.holds, 0) AS holds, coalesce(l.ends, 0) AS ends,
            coalesce(l.charges, 0) AS charges, coalesce(l.held, 0) AS held, coalesce(l.releases, 0) AS releases,
            h.amount AS leased, h.user_id AS lessee
        FROM ledger AS l FULL JOIN credit_holds AS h ON h.hold_id = l.hold_id
    )
    SELECT found.invariant, c.user_id, c.hold_id, found.detail
    FROM compared AS c
    CROSS JOIN LATERAL (VALUES
        ('one_hold', c.holds > 1, format('%s hold rows', c.holds)),
        ('one_end', c.ends > 1, format('%s ends', c.ends)),
        ('one_charge', c.charges > 1, format('%s charges', c.charges)),
        ('one_account_per_hold', c.users > 1 OR c.lessee <> c.user_id, format('%s accounts, leased by %s', c.users, c.lessee)),
        ('end_names_hold', c.ends > c.holds + c.releases, 'ended, but never held'),
        ('freed_exactly', c.ends >= c.holds AND c.held <> 0, format('%s left after its end', c.held)),
        ('open_hold_has_lease', c.holds > c.ends AND c.leased IS DISTINCT FROM c.held, format('held %s, leased %s', c.held, c.leased)),
        ('lease_has_open_hold', c.leased IS NOT NULL AND c.holds <= c.ends, format('leased %s, but not open', c.leased))
    ) AS found (invariant, broken, detail)
    WHERE found.broken
$$;

-- Invariant 7: each charge of a call has its usage row with the same cost, and no usage row costs what nobody was charged.
CREATE OR REPLACE FUNCTION audit_usage() RETURNS TABLE (invariant text, user_id text, hold_id uuid, detail text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT 'usage_is_charge', coalesce(c.user_id, u.user_id), coalesce(c.hold_id, u.hold_id),
        format('charged %s, usage rows say %s', c.charge, u.cost)
    FROM (
        SELECT t.hold_id, t.user_id, t.debt_delta - t.amount AS charge
        FROM credit_transactions AS t WHERE t.transaction_type = 'debit' AND t.hold_id IS NOT NULL
    ) AS c
    FULL JOIN (
        SELECT l.hold_id, min(l.user_id) AS user_id, sum(l.cost_credits) AS cost
        FROM llm_usage_log AS l WHERE l.hold_id IS NOT NULL GROUP BY l.hold_id
    ) AS u ON u.hold_id = c.hold_id
    WHERE c.charge IS DISTINCT FROM u.cost AND NOT (c.hold_id IS NULL AND u.cost = 0)
        OR c.user_id <> u.user_id
$$;

-- Every broken invariant of the ledger, in one snapshot; no row when all is well.
CREATE OR REPLACE FUNCTION ledger_audit() RETURNS TABLE (invariant text, user_id text, hold_id uuid, detail text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT * FROM audit_accounts()
    UNION ALL SELECT * FROM audit_history()
    UNION ALL SELECT * FROM audit_holds()
    UNION ALL SELECT * FROM audit_usage()
$$;

-- Reconciliation -----------------------------------------------------------------------------------------------------

-- Where the usage log and the ledger tell different stories of a call, of those charged or logged in a period (null: open
-- end). One snapshot; no row when all agrees. The audit proves the same for all time, this says what to look at.
CREATE OR REPLACE FUNCTION reconcile_calls(p_since timestamptz, p_until timestamptz)
RETURNS TABLE (finding text, user_id text, hold_id uuid, charged credits, usage_cost credits, created_at timestamptz)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH pairs AS (
        SELECT t.user_id AS payer, u.user_id AS caller, t.hold_id, t.debt_delta - t.amount AS charged, u.cost_credits, t.created_at
        FROM credit_transactions AS t LEFT JOIN llm_usage_log AS u ON u.request_id = t.hold_id::text
        WHERE t.transaction_type = 'debit' AND t.hold_id IS NOT NULL
            AND t.created_at >= coalesce(p_since, '-infinity') AND t.created_at < coalesce(p_until, 'infinity')
        UNION
        SELECT t.user_id, u.user_id, u.hold_id, t.debt_delta - t.amount, u.cost_credits, coalesce(t.created_at, u.created_at)
        FROM llm_usage_log AS u
        LEFT JOIN credit_transactions AS t ON t.hold_id = u.hold_id AND t.transaction_type = 'debit'
        WHERE u.hold_id IS NOT NULL
            AND u.created_at >= coalesce(p_since, '-infinity') AND u.created_at < coalesce(p_until, 'infinity')
    )
    SELECT CASE
            WHEN p.caller IS NULL THEN 'charge_without_usage'
            WHEN p.payer IS NULL THEN 'usage_without_charge'
            WHEN p.payer <> p.caller THEN 'accounts_differ'
            ELSE 'amounts_differ'
        END, coalesce(p.payer, p.caller), p.hold_id, p.charged, p.cost_credits, p.created_at
    FROM pairs AS p
    -- A call that was released has a usage row that costs nothing, and no charge.
    WHERE p.payer IS DISTINCT FROM p.caller AND NOT (p.payer IS NULL AND p.cost_credits = 0)
        OR p.charged <> p.cost_credits
    ORDER BY p.created_at, p.hold_id
$$;

-- What calls were corrected by so far, by adjustments whose idempotency key is reconcile:<request id>:<number>: credits
-- given back (below zero: charged), and the same in USD by the terms that the call was held with.
CREATE OR REPLACE FUNCTION call_corrections() RETURNS TABLE (request_id text, times bigint, credits numeric, usd numeric)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT a.request_id, a.times, a.credits, round(a.credits / ((u.metadata ->> 'credits_per_usd')::numeric
        * (u.metadata ->> 'cost_multiplier')::numeric * (u.metadata ->> 'markup')::numeric), 12)
    FROM (
        SELECT split_part(t.idempotency_key, ':', 2) AS request_id, count(*) AS times, sum(t.amount - t.debt_delta) AS credits
        FROM credit_transactions AS t
        WHERE t.transaction_type = 'adjustment' AND t.idempotency_key LIKE 'reconcile:%' GROUP BY 1
    ) AS a
    JOIN llm_usage_log AS u ON u.request_id = a.request_id
$$;

-- Summary ------------------------------------------------------------------------------------------------------------

-- Brings llm_usage_summary up to date: returns 'refreshed', or 'skipped' while another session is at it. Readers go on
-- reading the old rows; only a view that was never filled, which nobody can read anyway, is locked.
CREATE OR REPLACE FUNCTION refresh_usage_summary() RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended(current_schema() || ' refresh_usage_summary', 0)) THEN
        RETURN 'skipped';
    END IF;
    IF (SELECT c.relispopulated FROM pg_class AS c WHERE c.oid = 'llm_usage_summary'::regclass) THEN
        REFRESH MATERIALIZED VIEW CONCURRENTLY llm_usage_summary;
    ELSE
        REFRESH MATERIALIZED VIEW llm_usage_summary;
    END IF;
    RETURN 'refreshed';
END
$$;

-- Power levels -------------------------------------------------------------------------------------------------------

-- Applies what a settings file says of a power level to its row, which is made where there is none: 'applied'; 'known'
-- when this very content was the last applied; 'older' when the row was edited later. p_values names columns, the others
-- stay. A file that changed under a running worker was edited p_age ago, by this database's clock; one that is read at a
-- start, at its time p_modified, by the clock of who wrote it.
CREATE OR REPLACE FUNCTION apply_power_level(
    p_power_level text, p_values jsonb, p_checksum text, p_modified timestamptz DEFAULT NULL, p_age interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    edit_time timestamptz := coalesce(clock_timestamp() - p_age, least(p_modified, clock_timestamp()));
    level power_level_configs := lock_power_level(p_power_level);
BEGIN
    IF level.yaml_checksum = p_checksum THEN
        RETURN 'known';
    ELSIF level.edited_at >= edit_time THEN
        RETURN 'older';
    END IF;
    level := jsonb_populate_record(level, p_values);
    UPDATE power_level_configs SET
        name = level.name,
        description = level.description,
        preferred_providers = level.preferred_providers,
        fallback_strategy = level.fallback_strategy,
        cost_multiplier = level.cost_multiplier,
        max_latency_ms = level.max_latency_ms,
        min_quality_score = level.min_quality_score,
        default_max_output_tokens = level.default_max_output_tokens,
        is_active = level.is_active,
        source = 'yaml',
        yaml_checksum = p_checksum,
        edited_at = edit_time
    WHERE power_level = p_power_level;
    RETURN 'applied';
END
$$;

-- The row of a power level, locked; a new one, which nobody has edited, where there was none.
CREATE OR REPLACE FUNCTION lock_power_level(p_power_level text) RETURNS power_level_configs
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    level power_level_configs;
BEGIN
    SELECT * INTO level FROM power_level_configs WHERE power_level = p_power_level FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO power_level_configs (power_level, name, edited_at) VALUES (p_power_level, initcap(p_power_level), NULL)
        ON CONFLICT (power_level) DO NOTHING;
        SELECT * INTO level FROM power_level_configs WHERE power_level = p_power_level FOR NO KEY UPDATE;
    END IF;
    RETURN level;
END
$$;

-- Triggers -----------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION set_updated_at() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON user_credits FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON user_provider_keys FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON credit_packages FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON power_level_configs FOR EACH ROW EXECUTE FUNCTION set_updated_at();

CREATE OR REPLACE FUNCTION refuse_ledger_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'credit_transactions is append-only: % refused', TG_OP
        USING HINT = 'Correct a mistake with an adjustment: add_user_credits(user, amount, ''adjustment'').';
END
$$;

CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credit_transactions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change();

CREATE OR REPLACE FUNCTION refuse_seed_level_loss() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'power level "%" belongs to every installation and cannot be deleted or renamed', OLD.power_level
        USING HINT = 'Set is_active to false to withdraw it.';
END
$$;

CREATE OR REPLACE TRIGGER keep_seed_levels BEFORE DELETE ON power_level_configs FOR EACH ROW
    WHEN (OLD.power_level IN ('eco', 'balanced', 'precision')) EXECUTE FUNCTION refuse_seed_level_loss();
CREATE OR REPLACE TRIGGER keep_seed_level_names BEFORE UPDATE OF power_level ON power_level_configs FOR EACH ROW
    WHEN (OLD.power_level IN ('eco', 'balanced', 'precision') AND NEW.power_level <> OLD.power_level)
    EXECUTE FUNCTION refuse_seed_level_loss();

-- Notes who edited a power level, and when. A write that brings a checksum is apply_power_level's; any other that changes
-- what people set is an edit of the row. What changes nothing of that leaves both notes as they were: a write by a machine
-- must not make the row look newer than a file.
CREATE OR REPLACE FUNCTION note_level_edit() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.source = 'yaml' AND NEW.yaml_checksum IS DISTINCT FROM OLD.yaml_checksum THEN
        RETURN NEW;
    END IF;
    NEW.source := OLD.source;
    NEW.edited_at := OLD.edited_at;
    IF (
        NEW.power_level, NEW.name, NEW.description, NEW.preferred_providers, NEW.fallback_strategy, NEW.cost_multiplier,
        NEW.max_latency_ms, NEW.min_quality_score, NEW.default_max_output_tokens, NEW.is_active
    ) IS DISTINCT FROM (
        OLD.power_level, OLD.name, OLD.description, OLD.preferred_providers, OLD.fallback_strategy, OLD.cost_multiplier,
        OLD.max_latency_ms, OLD.min_quality_score, OLD.default_max_output_tokens, OLD.is_active
    ) THEN
        NEW.source := 'database';
        NEW.edited_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER note_edit BEFORE UPDATE ON power_level_configs FOR EACH ROW EXECUTE FUNCTION note_level_edit();

-- Tells the workers, on the channel <schema>_changed, which of their cached rows to drop. Of a change, both the old and
-- the new user or key are named; Postgres folds equal messages of a transaction into one.
CREATE OR REPLACE FUNCTION notify_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed jsonb;
BEGIN
    FOREACH changed IN ARRAY ARRAY[to_jsonb(OLD), to_jsonb(NEW)] LOOP
        IF changed IS NOT NULL THEN
            PERFORM pg_notify(TG_TABLE_SCHEMA || '_changed', jsonb_build_object(
                'table', TG_TABLE_NAME, 'user_id', changed ->> 'user_id', 'key_hash', changed ->> 'key_hash')::text);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Columns that calls change are left out: a NOTIFY takes a lock that all commits of the server share.
CREATE OR REPLACE TRIGGER notify_added_or_removed AFTER INSERT OR DELETE ON user_credits
    FOR EACH ROW EXECUTE FUNCTION notify_change();
CREATE OR REPLACE TRIGGER notify_changed
    AFTER UPDATE OF tier, power_level, power_level_downgrade, status, monthly_cap ON user_credits FOR EACH ROW
    WHEN (
        (OLD.tier, OLD.power_level, OLD.power_level_downgrade, OLD.status, OLD.monthly_cap)
        IS DISTINCT FROM (NEW.tier, NEW.power_level, NEW.power_level_downgrade, NEW.status, NEW.monthly_cap)
    )
    EXECUTE FUNCTION notify_change();
CREATE OR REPLACE TRIGGER notify_changed AFTER INSERT OR DELETE
    OR UPDATE OF user_id, key_hash, name, role, is_active, expires_at ON user_api_keys
    FOR EACH ROW EXECUTE FUNCTION notify_change();
CREATE OR REPLACE TRIGGER notify_changed AFTER INSERT OR DELETE
    OR UPDATE OF user_id, provider, encrypted_api_key, key_id, key_name, api_base, is_active, is_default, fallback, expires_at,
        monthly_cap_usd
    ON user_provider_keys FOR EACH ROW EXECUTE FUNCTION notify_change();
-- Calls move what a key has spent; only the call that reaches the cap, and the first one of a new month, is announced.
CREATE OR REPLACE TRIGGER notify_cap AFTER UPDATE OF spent_this_month_usd ON user_provider_keys FOR EACH ROW
    WHEN ((OLD.spent_this_month_usd >= OLD.monthly_cap_usd) IS DISTINCT FROM (NEW.spent_this_month_usd >= NEW.monthly_cap_usd))
    EXECUTE FUNCTION notify_change();
CREATE OR REPLACE TRIGGER notify_changed AFTER INSERT OR DELETE OR UPDATE ON power_level_configs
    FOR EACH ROW EXECUTE FUNCTION notify_change();
CREATE OR REPLACE TRIGGER notify_changed AFTER INSERT OR DELETE OR UPDATE ON providers
    FOR EACH ROW EXECUTE FUNCTION notify_change();

-- Provider keys ------------------------------------------------------------------------------------------------------
--
-- Who changes several of an account's provider keys locks the account first, as settlements do, which count their use.

-- Stores a sealed provider key; p_values holds columns of user_provider_keys by name. No row where the account has as many
-- keys for the provider as it may, or does not exist. A new default takes the place of the old one.
CREATE OR REPLACE FUNCTION add_provider_key(p_user_id text, p_provider text, p_values jsonb, p_most integer)
RETURNS SETOF user_provider_keys
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    new_id uuid;
BEGIN
    PERFORM FROM user_credits WHERE user_id = p_user_id FOR UPDATE;
    IF NOT FOUND OR (SELECT count(*) FROM user_provider_keys WHERE user_id = p_user_id AND provider = p_provider) >= p_most THEN
        RETURN;
    END IF;
    INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id, key_name)
    VALUES (p_user_id, p_provider, p_values ->> 'encrypted_api_key', p_values ->> 'key_id', p_values ->> 'key_name')
    RETURNING id INTO new_id;
    RETURN QUERY SELECT * FROM change_provider_key(p_user_id, new_id, p_values);
END
$$;

-- Changes of a user's provider key what p_changes names: key_name, key_hint, api_base, is_active, is_default, fallback,
-- monthly_cap_usd, expires_at, rotation_reminder; other names are passed over. No row where the user has no such key.
CREATE OR REPLACE FUNCTION change_provider_key(p_user_id text, p_id uuid, p_changes jsonb)
RETURNS SETOF user_provider_keys
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    wanted user_provider_keys;
BEGIN
    PERFORM FROM user_credits WHERE user_id = p_user_id FOR UPDATE;
    SELECT * INTO wanted FROM user_provider_keys WHERE id = p_id AND user_id = p_user_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    wanted := jsonb_populate_record(wanted, p_changes - 'provider');
    IF wanted.is_default THEN
        UPDATE user_provider_keys SET is_default = false
        WHERE user_id = p_user_id AND provider = wanted.provider AND is_default AND id <> p_id;
    END IF;
    RETURN QUERY
    UPDATE user_provider_keys SET
        key_name = wanted.key_name, key_hint = wanted.key_hint, api_base = wanted.api_base, is_active = wanted.is_active,
        is_default = wanted.is_default, fallback = wanted.fallback, monthly_cap_usd = wanted.monthly_cap_usd,
        expires_at = wanted.expires_at, rotation_reminder = wanted.rotation_reminder
    WHERE id = p_id RETURNING *;
END
$$;

-- Notes that a provider refused a user's key, or failed with it; p_error must not hold the key. A key that somebody else
-- is changing is passed over.
CREATE OR REPLACE FUNCTION note_provider_key_error(p_user_id text, p_id uuid, p_error text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off AS $$
BEGIN
    UPDATE user_provider_keys SET
        total_errors = total_errors + 1, errors_in_a_row = errors_in_a_row + 1, last_error = left(p_error, 200),
        last_error_at = clock_timestamp()
    WHERE id = (SELECT k.id FROM user_provider_keys AS k WHERE k.id = p_id AND k.user_id = p_user_id FOR UPDATE SKIP LOCKED);
END
$$;

-- Whether a call of this user made the stored response with this id and paid for all of it: what a client left in the
-- middle is charged for its part only, though the provider may have stored the whole.
CREATE OR REPLACE FUNCTION made_response(p_user_id text, p_response_id text) RETURNS boolean
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT EXISTS (
        SELECT FROM llm_usage_log
        WHERE user_id = p_user_id AND call_type = 'aresponses' AND metadata ->> 'response_id' = p_response_id
            AND success AND cost_source = 'usage'
    )
$$;

-- Health -------------------------------------------------------------------------------------------------------------

-- Adds what a worker saw since its last write to the rows of its deployments and of their providers (empty deployment),
-- rolls the counts of idle rows on, and answers how deployments stand by what all workers wrote. Rows are locked in
-- order, a provider's own before its deployments', and idle ones only if nobody else has them: no two workers can wait
-- for each other.
CREATE OR REPLACE FUNCTION record_health(p_deltas jsonb, p_worker text DEFAULT NULL)
RETURNS TABLE (provider text, deployment text, status text, status_since timestamptz, reported_by text)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    delta health_delta;
BEGIN
    FOR delta IN
        SELECT
            d.provider, v.deployment,
            sum(d.successes)::integer, sum(d.failures)::integer, max(d.failures_since_success)::integer,
            sum(d.avg_latency_ms * d.successes) / nullif(sum(d.successes) FILTER (WHERE d.avg_latency_ms IS NOT NULL), 0),
            sum(d.p95_latency_ms * d.successes) / nullif(sum(d.successes) FILTER (WHERE d.p95_latency_ms IS NOT NULL), 0),
            min(d.rate_limit_remaining), max(d.last_error),
            -- A provider's status follows from its deployments'.
            CASE WHEN v.deployment <> '' THEN max(d.status) END, v.deployment <> '' AND coalesce(bool_or(d.turned), false)
        FROM jsonb_to_recordset(p_deltas) AS d (
            provider text, deployment text, successes integer, failures integer, failures_since_success integer,
            avg_latency_ms numeric, p95_latency_ms numeric, rate_limit_remaining integer, last_error text, status text,
            turned boolean
        )
        CROSS JOIN LATERAL (VALUES (d.deployment), ('')) AS v (deployment)
        GROUP BY d.provider, v.deployment
        ORDER BY d.provider, v.deployment
    LOOP
        INSERT INTO provider_health (provider, deployment) VALUES (delta.provider, delta.deployment) ON CONFLICT DO NOTHING;
        PERFORM FROM provider_health AS h
        WHERE h.provider = delta.provider AND h.deployment = delta.deployment FOR UPDATE;
        PERFORM write_health(delta, p_worker);
    END LOOP;
    UPDATE provider_health AS h SET status = provider_status(h.provider)
    WHERE h.deployment = '' AND h.provider IN (SELECT d ->> 'provider' FROM jsonb_array_elements(p_deltas) AS d)
        AND h.status <> provider_status(h.provider);
    PERFORM roll_idle_health();
    RETURN QUERY SELECT h.provider, h.deployment, h.status, h.status_since, h.reported_by
    FROM provider_health AS h WHERE h.deployment <> '' AND h.last_check > clock_timestamp() - interval '1 day';
END
$$;

-- Adds a delta to its row, which is locked. Latencies are the worker's over its window and are weighted by the attempts
-- behind them. Whether a row is down changes only by a worker whose own finding has turned: the others go on reporting
-- what they see without contradicting it.
CREATE OR REPLACE FUNCTION write_health(p_delta health_delta, p_worker text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    health provider_health;
BEGIN
    SELECT * INTO health FROM provider_health AS h
    WHERE h.provider = p_delta.provider AND h.deployment = p_delta.deployment;
    health := rolled_health(health, p_delta.successes, p_delta.failures);
    UPDATE provider_health AS h SET
        status = CASE
            WHEN p_delta.turned THEN p_delta.status
            WHEN 'down' IN (h.status, p_delta.status) THEN h.status
            ELSE coalesce(p_delta.status, h.status)
        END,
        reported_by = CASE WHEN p_delta.turned THEN p_worker ELSE h.reported_by END,
        avg_latency_ms = blended(h.avg_latency_ms, p_delta.avg_ms, p_delta.successes),
        p95_latency_ms = blended(h.p95_latency_ms, p_delta.p95_ms, p_delta.successes),
        success_rate = health.success_rate,
        requests_last_hour = health.requests_last_hour,
        rate_limit_remaining = coalesce(p_delta.remaining, h.rate_limit_remaining),
        last_check = clock_timestamp(),
        last_success = CASE WHEN p_delta.successes > 0 THEN clock_timestamp() ELSE h.last_success END,
        last_failure = CASE WHEN p_delta.failures > 0 THEN clock_timestamp() ELSE h.last_failure END,
        consecutive_failures = CASE WHEN p_delta.successes > 0 THEN 0 ELSE h.consecutive_failures END + p_delta.streak,
        last_error = coalesce(p_delta.last_error, h.last_error),
        error_count_24h = health.error_count_24h,
        requests_by_minute = health.requests_by_minute,
        failures_by_minute = health.failures_by_minute,
        failures_by_hour = health.failures_by_hour,
        rolled_at = health.rolled_at
    WHERE h.provider = p_delta.provider AND h.deployment = p_delta.deployment;
END
$$;

-- A provider is down when all of its deployments in use are, and degraded when not all of them are healthy.
CREATE OR REPLACE FUNCTION provider_status(p_provider text) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT CASE
        WHEN bool_and(h.status = 'down') THEN 'down'
        WHEN bool_or(h.status <> 'healthy') THEN 'degraded'
        ELSE 'healthy'
    END
    FROM provider_health AS h WHERE h.provider = p_provider AND h.deployment <> '' AND h.requests_last_hour > 0
$$;

-- Brings the counts of rows that had no attempt this minute up to date. A deployment that nobody has tried for an hour is
-- not known to be degraded.
CREATE OR REPLACE FUNCTION roll_idle_health() RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    health provider_health;
BEGIN
    FOR health IN
        SELECT * FROM provider_health AS h
        WHERE h.rolled_at < date_trunc('minute', clock_timestamp())
            AND (h.requests_last_hour > 0 OR h.error_count_24h > 0 OR h.status = 'degraded')
        FOR UPDATE SKIP LOCKED
    LOOP
        health := rolled_health(health, 0, 0);
        UPDATE provider_health AS h SET
            status = CASE WHEN h.status = 'degraded' AND health.requests_last_hour = 0 THEN 'healthy' ELSE h.status END,
            success_rate = health.success_rate,
            requests_last_hour = health.requests_last_hour,
            error_count_24h = health.error_count_24h,
            requests_by_minute = health.requests_by_minute,
            failures_by_minute = health.failures_by_minute,
            failures_by_hour = health.failures_by_hour,
            rolled_at = health.rolled_at
        WHERE h.provider = health.provider AND h.deployment = health.deployment;
    END LOOP;
END
$$;

-- A row of health with its counts moved on to this minute and hour, and these attempts added.
CREATE OR REPLACE FUNCTION rolled_health(p_health provider_health, p_successes integer, p_failures integer)
RETURNS provider_health
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    now_s numeric := extract(epoch FROM clock_timestamp());
    then_s numeric := extract(epoch FROM p_health.rolled_at);
    minutes integer := least(floor(now_s / 60) - floor(then_s / 60), 60);
    hours integer := least(floor(now_s / 3600) - floor(then_s / 3600), 24);
BEGIN
    p_health.requests_by_minute := rolled(p_health.requests_by_minute, minutes, p_successes + p_failures);
    p_health.failures_by_minute := rolled(p_health.failures_by_minute, minutes, p_failures);
    p_health.failures_by_hour := rolled(p_health.failures_by_hour, hours, p_failures);
    p_health.requests_last_hour := (SELECT sum(c) FROM unnest(p_health.requests_by_minute) AS c);
    p_health.error_count_24h := (SELECT sum(c) FROM unnest(p_health.failures_by_hour) AS c);
    p_health.success_rate := 100 - 100.0 * (SELECT sum(c) FROM unnest(p_health.failures_by_minute) AS c)
        / nullif(p_health.requests_last_hour, 0);
    p_health.rolled_at := clock_timestamp();
    RETURN p_health;
END
$$;

-- Counts moved on by so many places, with so many added to the last.
CREATE OR REPLACE FUNCTION rolled(p_counts integer[], p_places integer, p_more integer) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
BEGIN
    IF p_places > 0 THEN
        p_counts := p_counts[p_places + 1:] || array_fill(0, ARRAY[least(p_places, cardinality(p_counts))]);
    END IF;
    p_counts[cardinality(p_counts)] := p_counts[cardinality(p_counts)] + p_more;
    RETURN p_counts;
END
$$;

-- A moving average in which the last 20 attempts or so count.
CREATE OR REPLACE FUNCTION blended(p_old numeric, p_new numeric, p_weight integer) RETURNS numeric
LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$
    SELECT CASE
        WHEN p_new IS NULL THEN p_old
        WHEN p_old IS NULL THEN p_new
        ELSE p_old + (p_new - p_old) * least(p_weight, 20) / 20.0
    END
$$;

-- Dates a new status, and tells the workers at once whether a deployment is down. Workers leave out what they reported
-- themselves: who sets a status by hand sets reported_by to null.
CREATE OR REPLACE FUNCTION announce_health() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    NEW.status_since := clock_timestamp();
    IF NEW.deployment <> '' AND 'down' IN (OLD.status, NEW.status) THEN
        PERFORM pg_notify(TG_TABLE_SCHEMA || '_changed', jsonb_build_object(
            'table', TG_TABLE_NAME, 'provider', NEW.provider, 'deployment', NEW.deployment, 'status', NEW.status,
            'since', extract(epoch FROM NEW.status_since), 'by', NEW.reported_by)::text);
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER announce_health BEFORE UPDATE OF status ON provider_health FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION announce_health();


-- Only who is granted a function may call it.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM PUBLIC', current_schema());
END
$$;
