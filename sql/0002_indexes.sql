-- Each index serves a query named in docs/schema.md. None holds a column that every call changes: that would end
-- HOT updates of the row.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

CREATE INDEX IF NOT EXISTS providers_litellm_names ON providers USING gin (litellm_names);

CREATE INDEX IF NOT EXISTS credit_packages_offered ON credit_packages (sort_order) WHERE is_active;
CREATE UNIQUE INDEX IF NOT EXISTS credit_packages_stripe_price ON credit_packages (stripe_price_id) WHERE stripe_price_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS user_credits_tier ON user_credits (tier);
CREATE INDEX IF NOT EXISTS user_credits_blocked ON user_credits (status) WHERE status <> 'active';
CREATE INDEX IF NOT EXISTS user_credits_debtors ON user_credits (user_id) WHERE credits_debt > 0;
CREATE INDEX IF NOT EXISTS user_credits_auto_recharge ON user_credits (user_id) WHERE auto_recharge;
CREATE INDEX IF NOT EXISTS user_credits_created ON user_credits (created_at);
CREATE UNIQUE INDEX IF NOT EXISTS user_credits_stripe_customer ON user_credits (stripe_customer_id) WHERE stripe_customer_id IS NOT NULL;

CREATE UNIQUE INDEX IF NOT EXISTS one_row_per_user_version ON credit_transactions (user_id, user_version);
CREATE UNIQUE INDEX IF NOT EXISTS one_row_per_idempotency_key ON credit_transactions (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Its 'debit' entries are the promise of one charge per hold, late ones included.
CREATE UNIQUE INDEX IF NOT EXISTS one_charge_per_hold ON credit_transactions (hold_id, transaction_type) WHERE hold_id IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS one_end_per_hold ON credit_transactions (hold_id) WHERE ends_hold;
CREATE UNIQUE INDEX IF NOT EXISTS one_purchase_per_stripe_payment ON credit_transactions (stripe_transaction_id, transaction_type) WHERE stripe_transaction_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS credit_transactions_statement ON credit_transactions (user_id, created_at DESC) WHERE transaction_type NOT IN ('hold', 'release', 'expire');
CREATE INDEX IF NOT EXISTS credit_transactions_income ON credit_transactions (transaction_type, created_at) WHERE transaction_type IN ('purchase', 'refund', 'bonus', 'adjustment');
CREATE INDEX IF NOT EXISTS credit_transactions_late ON credit_transactions (created_at) WHERE transaction_type = 'debit' AND hold_id IS NOT NULL AND NOT ends_hold;
CREATE INDEX IF NOT EXISTS credit_transactions_admin ON credit_transactions (admin_user_id, created_at) WHERE admin_user_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS credit_transactions_package ON credit_transactions (package_id) WHERE package_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS credit_transactions_invoice ON credit_transactions (stripe_invoice_id) WHERE stripe_invoice_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS credit_transactions_time ON credit_transactions USING brin (created_at);

CREATE INDEX IF NOT EXISTS credit_holds_expiry ON credit_holds (expires_at);
CREATE INDEX IF NOT EXISTS credit_holds_user ON credit_holds (user_id);

CREATE INDEX IF NOT EXISTS user_api_keys_user ON user_api_keys (user_id, created_at);
CREATE INDEX IF NOT EXISTS user_api_keys_expiry ON user_api_keys (expires_at) WHERE is_active AND expires_at IS NOT NULL;

CREATE UNIQUE INDEX IF NOT EXISTS one_default_provider_key ON user_provider_keys (user_id, provider) WHERE is_default;
CREATE INDEX IF NOT EXISTS user_provider_keys_provider ON user_provider_keys (provider) WHERE is_active;
CREATE INDEX IF NOT EXISTS user_provider_keys_sealing ON user_provider_keys (key_id);
CREATE INDEX IF NOT EXISTS user_provider_keys_expiry ON user_provider_keys (expires_at) WHERE is_active AND expires_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS user_provider_keys_rotation ON user_provider_keys (rotation_reminder) WHERE is_active AND rotation_reminder IS NOT NULL;

CREATE INDEX IF NOT EXISTS llm_usage_log_user ON llm_usage_log (user_id, created_at DESC);
CREATE INDEX IF NOT EXISTS llm_usage_log_model ON llm_usage_log (model, created_at);
CREATE INDEX IF NOT EXISTS llm_usage_log_provider ON llm_usage_log (provider, created_at);
CREATE INDEX IF NOT EXISTS llm_usage_log_session ON llm_usage_log (user_id, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS llm_usage_log_app ON llm_usage_log (user_id, app_id, created_at) WHERE app_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS llm_usage_log_provider_key ON llm_usage_log (provider_key_id, created_at) WHERE provider_key_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS llm_usage_log_response ON llm_usage_log ((metadata ->> 'response_id')) WHERE call_type = 'aresponses';
CREATE INDEX IF NOT EXISTS llm_usage_log_failed ON llm_usage_log (created_at) WHERE NOT success;
CREATE INDEX IF NOT EXISTS llm_usage_log_estimated ON llm_usage_log (created_at) WHERE cost_source = 'estimate';
CREATE INDEX IF NOT EXISTS llm_usage_log_time ON llm_usage_log USING brin (created_at);

CREATE INDEX IF NOT EXISTS provider_health_unwell ON provider_health (status) WHERE status <> 'healthy';

CREATE INDEX IF NOT EXISTS settlement_quarantine_open ON settlement_quarantine (created_at) WHERE resolved_at IS NULL;
