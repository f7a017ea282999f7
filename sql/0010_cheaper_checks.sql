-- The checks of the rows that every call writes become calls of functions. PostgreSQL reads the text of a CHECK anew in each
-- statement (ExecRelCheck, executor/execMain.c), and lists of words and long conditions were a third of what a hold and its
-- settlement cost it; a function is read once in a session. Names and conditions are the same.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

CREATE OR REPLACE FUNCTION is_user_id(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN length(p_text) BETWEEN 1 AND 255 AND p_text !~ '[\u0001-\u001f\u007f-\u009f]';
END
$$;

CREATE OR REPLACE FUNCTION is_tier(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text IN ('free', 'starter', 'professional', 'enterprise');
END
$$;

CREATE OR REPLACE FUNCTION is_account_status(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text IN ('active', 'suspended', 'closed');
END
$$;

-- Whether an account can stand so: what is held is there, and only who has nothing available is in debt.
CREATE OR REPLACE FUNCTION is_standing(p_balance numeric, p_held numeric, p_debt numeric) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_held >= 0 AND p_held <= p_balance AND p_debt >= 0 AND (p_debt = 0 OR p_balance = p_held);
END
$$;

CREATE OR REPLACE FUNCTION is_transaction_type(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text IN ('purchase', 'debit', 'refund', 'bonus', 'adjustment', 'hold', 'release', 'expire');
END
$$;

CREATE OR REPLACE FUNCTION is_payment_method(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text IN ('stripe', 'paypal', 'manual', 'bonus', 'trial');
END
$$;

-- Whether a row of this type may move so much. A freed hold can only pay debt, so its amount and debt_delta are equal.
CREATE OR REPLACE FUNCTION is_movement(
    p_type text, p_amount numeric, p_held_delta numeric, p_debt_delta numeric, p_hold_id uuid, p_ends_hold boolean
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN CASE
        WHEN p_type = 'hold' THEN p_held_delta >= 0 AND p_amount = 0 AND p_debt_delta = 0 AND p_hold_id IS NOT NULL
            AND NOT p_ends_hold
        WHEN p_type IN ('release', 'expire') THEN p_held_delta <= 0 AND p_amount <= 0 AND p_amount = p_debt_delta
            AND p_hold_id IS NOT NULL AND p_ends_hold
        WHEN p_type = 'debit' THEN p_held_delta <= 0 AND p_amount <= 0 AND p_debt_delta >= p_amount
            AND (p_ends_hold OR p_held_delta = 0) AND (p_hold_id IS NOT NULL OR NOT p_ends_hold)
        WHEN p_type IN ('purchase', 'bonus') THEN p_held_delta = 0 AND p_amount >= 0 AND p_debt_delta <= 0
            AND p_hold_id IS NULL AND NOT p_ends_hold
        ELSE p_held_delta = 0 AND p_hold_id IS NULL AND NOT p_ends_hold
    END;
END
$$;

CREATE OR REPLACE FUNCTION is_cost_source(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text IN ('provider', 'usage', 'estimate');
END
$$;

CREATE OR REPLACE FUNCTION is_power_level(p_text text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN p_text ~ '^[a-z][a-z0-9_-]{0,31}$';
END
$$;

-- Who writes a row calls its checks, so the roles that could hold credits get them; others have them from PUBLIC or not at all.
DO $$
DECLARE
    role regrole;
BEGIN
    FOR role IN
        SELECT DISTINCT a.grantee::regrole FROM pg_proc AS p CROSS JOIN aclexplode(p.proacl) AS a
        WHERE p.pronamespace = quote_ident(current_schema())::regnamespace AND p.proname = 'hold_credits'
            AND a.privilege_type = 'EXECUTE' AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION is_user_id, is_tier, is_account_status, is_standing, is_transaction_type, '
            'is_payment_method, is_movement, is_cost_source, is_power_level TO %s', role);
    END LOOP;
END
$$;

-- Not looked at in the rows that are there: the conditions are those that they were written under.
ALTER TABLE user_credits
    DROP CONSTRAINT IF EXISTS valid_user_id, ADD CONSTRAINT valid_user_id CHECK (is_user_id(user_id)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_tier, ADD CONSTRAINT valid_tier CHECK (is_tier(tier)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_account_status, ADD CONSTRAINT valid_account_status CHECK (is_account_status(status)) NOT VALID,
    DROP CONSTRAINT IF EXISTS positive_credits,
    ADD CONSTRAINT positive_credits CHECK (is_standing(credits_remaining, credits_held, credits_debt)) NOT VALID;

ALTER TABLE credit_transactions
    DROP CONSTRAINT IF EXISTS valid_transaction_type,
    ADD CONSTRAINT valid_transaction_type CHECK (is_transaction_type(transaction_type)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_payment_method,
    ADD CONSTRAINT valid_payment_method CHECK (is_payment_method(payment_method)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_state_after,
    ADD CONSTRAINT valid_state_after CHECK (is_standing(balance_after, held_after, debt_after)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_deltas,
    ADD CONSTRAINT valid_deltas CHECK (is_movement(transaction_type, amount, held_delta, debt_delta, hold_id, ends_hold)) NOT VALID;

ALTER TABLE llm_usage_log
    DROP CONSTRAINT IF EXISTS valid_cost_source, ADD CONSTRAINT valid_cost_source CHECK (is_cost_source(cost_source)) NOT VALID,
    DROP CONSTRAINT IF EXISTS valid_power_level_usage,
    ADD CONSTRAINT valid_power_level_usage CHECK (is_power_level(power_level)) NOT VALID;
