-- Health of providers: counts that roll with time, and since when and by whom a status stands.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

-- The newest minute and hour stand last.
ALTER TABLE provider_health
    ADD COLUMN IF NOT EXISTS status_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN IF NOT EXISTS reported_by text,
    ADD COLUMN IF NOT EXISTS requests_by_minute integer[] NOT NULL DEFAULT array_fill(0, ARRAY[60]),
    ADD COLUMN IF NOT EXISTS failures_by_minute integer[] NOT NULL DEFAULT array_fill(0, ARRAY[60]),
    ADD COLUMN IF NOT EXISTS failures_by_hour integer[] NOT NULL DEFAULT array_fill(0, ARRAY[24]),
    ADD COLUMN IF NOT EXISTS rolled_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- Replaced by forms with other arguments in functions.sql.
DROP FUNCTION IF EXISTS record_health(jsonb);
DROP FUNCTION IF EXISTS faded(integer, timestamptz, interval);

DO $$
BEGIN
    IF to_regtype('health_delta') IS NULL THEN
        -- What one worker saw of one deployment, or of one provider: record_health() makes them, write_health() takes them.
        CREATE TYPE health_delta AS (
            provider text,
            deployment text,
            successes integer,
            failures integer,
            streak integer,
            avg_ms numeric,
            p95_ms numeric,
            remaining integer,
            last_error text,
            status text,
            turned boolean
        );
    END IF;
END
$$;
