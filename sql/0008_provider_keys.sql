-- Users' provider keys: a monthly cap of their own, their errors, and how a provider lets a key be tried.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

-- A cap is in US dollars of the user's bill at the provider: what a call on an own key costs in credits may be nothing.
ALTER TABLE user_provider_keys
    ADD COLUMN IF NOT EXISTS monthly_cap_usd numeric(20, 6)
        CONSTRAINT positive_key_cap CHECK (monthly_cap_usd >= 0 AND monthly_cap_usd <> 'NaN'::numeric),
    ADD COLUMN IF NOT EXISTS spent_this_month_usd numeric(24, 12) NOT NULL DEFAULT 0
        CONSTRAINT positive_key_spending CHECK (spent_this_month_usd >= 0 AND spent_this_month_usd <> 'NaN'::numeric),
    ADD COLUMN IF NOT EXISTS last_reset timestamptz NOT NULL DEFAULT date_trunc('month', now(), 'UTC'),
    ADD COLUMN IF NOT EXISTS total_errors bigint NOT NULL DEFAULT 0
        CONSTRAINT positive_key_errors CHECK (total_errors >= 0),
    ADD COLUMN IF NOT EXISTS errors_in_a_row integer NOT NULL DEFAULT 0
        CONSTRAINT positive_key_streak CHECK (errors_in_a_row >= 0),
    ADD COLUMN IF NOT EXISTS last_error_at timestamptz;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'providers'::regclass AND attname = 'key_test_url') THEN
        RETURN;
    END IF;
    ALTER TABLE providers ADD COLUMN allows_api_base boolean NOT NULL DEFAULT false, ADD COLUMN key_test_url text;
    UPDATE providers SET allows_api_base = true WHERE name = 'custom';
    -- Their lists of models are public: they answer whatever the key.
    UPDATE providers SET key_test_url = 'https://openrouter.ai/api/v1/key' WHERE name = 'openrouter';
    UPDATE providers SET key_test_url = 'https://huggingface.co/api/whoami-v2' WHERE name = 'huggingface';
    UPDATE providers SET key_test_url = 'https://api.deepinfra.com/v1/me' WHERE name = 'deepinfra';
END
$$;
