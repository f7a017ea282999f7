-- The checks of migration 10 are looked at in the rows that are there, in a transaction of its own, which stops nobody from writing.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

ALTER TABLE user_credits
    VALIDATE CONSTRAINT valid_user_id, VALIDATE CONSTRAINT valid_tier, VALIDATE CONSTRAINT valid_account_status,
    VALIDATE CONSTRAINT positive_credits;

ALTER TABLE credit_transactions
    VALIDATE CONSTRAINT valid_transaction_type, VALIDATE CONSTRAINT valid_payment_method, VALIDATE CONSTRAINT valid_state_after,
    VALIDATE CONSTRAINT valid_deltas;

ALTER TABLE llm_usage_log VALIDATE CONSTRAINT valid_cost_source, VALIDATE CONSTRAINT valid_power_level_usage;
