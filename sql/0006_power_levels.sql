-- Power levels with two editors, the settings file and the row: when a row was last edited. And accounts whose calls may go
-- down a level for want of credits.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

ALTER TABLE user_credits ADD COLUMN IF NOT EXISTS power_level_downgrade boolean NOT NULL DEFAULT false;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'power_level_configs'::regclass AND attname = 'edited_at'
    ) THEN
        ALTER TABLE power_level_configs ADD COLUMN edited_at timestamptz;
        ALTER TABLE power_level_configs ALTER COLUMN edited_at SET DEFAULT clock_timestamp();
        -- A row of the seed was edited by nobody, so that any file is newer, unless it was updated since.
        UPDATE power_level_configs SET source = 'database', edited_at = updated_at
        WHERE source <> 'seed' OR updated_at > created_at + interval '1 second';
    END IF;
END
$$;

-- Not valid: an upgrade must not fail for a row that is there.
ALTER TABLE power_level_configs
    DROP CONSTRAINT IF EXISTS valid_provider_names,
    ADD CONSTRAINT valid_provider_names CHECK (
        NOT jsonb_path_exists(preferred_providers, 'strict $[*] ? (@.type() != "string")', '{}', true)
    ) NOT VALID;

CREATE INDEX IF NOT EXISTS user_credits_power_level ON user_credits (power_level);
