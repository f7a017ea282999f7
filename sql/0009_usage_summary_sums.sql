-- The usage summary gets the sums that reports took from the calls themselves: output that nobody sees, and what calls on own
-- keys cost at their provider.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

DO $$
DECLARE
    granted text;
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'llm_usage_summary'::regclass AND attname = 'total_byok_cost_usd'
    ) THEN
        RETURN;
    END IF;
    -- A materialized view takes no new columns. Another one is filled beside it, so that nobody waits for more than the change.
    CREATE MATERIALIZED VIEW llm_usage_summary_next AS
    SELECT
        user_id,
        provider,
        model,
        power_level,
        (created_at AT TIME ZONE 'UTC')::date AS date,
        count(*) AS request_count,
        count(*) FILTER (WHERE success) AS success_count,
        count(*) FILTER (WHERE NOT success) AS error_count,
        sum(prompt_tokens)::bigint AS total_prompt_tokens,
        sum(completion_tokens)::bigint AS total_completion_tokens,
        sum(reasoning_tokens)::bigint AS total_reasoning_tokens,
        sum(total_tokens)::bigint AS total_tokens,
        round(avg(total_tokens), 2) AS avg_tokens_per_request,
        sum(cost_credits::numeric) AS total_cost,
        round(avg(cost_credits::numeric), 6) AS avg_cost_per_request,
        round(avg(latency_ms), 2) AS avg_latency_ms,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95_latency_ms,
        round(avg(tokens_per_second), 3) AS avg_tokens_per_second,
        round(100.0 * count(*) FILTER (WHERE success) / count(*), 2) AS success_rate,
        count(*) FILTER (WHERE byok_used) AS byok_requests,
        coalesce(sum(cost_usd) FILTER (WHERE byok_used), 0) AS total_byok_cost_usd
    FROM llm_usage_log
    GROUP BY user_id, provider, model, power_level, (created_at AT TIME ZONE 'UTC')::date
    WITH DATA;
    CREATE UNIQUE INDEX llm_usage_summary_next_group
        ON llm_usage_summary_next (user_id, provider, model, power_level, date);
    CREATE INDEX llm_usage_summary_next_date ON llm_usage_summary_next (date);
    ANALYZE llm_usage_summary_next;
    SELECT string_agg(format('GRANT %s ON llm_usage_summary TO %s', privilege_type,
                             CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
                      || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, '; ')
    INTO granted
    FROM pg_class, aclexplode(relacl) WHERE oid = 'llm_usage_summary'::regclass;
    DROP MATERIALIZED VIEW llm_usage_summary;
    ALTER MATERIALIZED VIEW llm_usage_summary_next RENAME TO llm_usage_summary;
    ALTER INDEX llm_usage_summary_next_group RENAME TO llm_usage_summary_group;
    ALTER INDEX llm_usage_summary_next_date RENAME TO llm_usage_summary_date;
    IF granted IS NOT NULL THEN
        EXECUTE granted;
    END IF;
END
$$;
