-- Idempotency keys of paid calls: a retry with the same key is the same call, and is paid once.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

CREATE TABLE IF NOT EXISTS idempotency_keys (
    user_id text NOT NULL CONSTRAINT known_idempotency_account REFERENCES user_credits (user_id),
    idempotency_key text NOT NULL,
    body_hash text NOT NULL,
    hold_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (user_id, idempotency_key),
    CONSTRAINT valid_idempotency_key CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT valid_body_hash CHECK (body_hash ~ '^[0-9a-f]{64}$')
);

-- The sweeper forgets lapsed keys.
CREATE INDEX IF NOT EXISTS idempotency_keys_expiry ON idempotency_keys (expires_at);
