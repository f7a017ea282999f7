-- Usage per user, provider, model, power level and UTC day. refresh_usage_summary() brings it up to date.

SELECT set_config('search_path', quote_ident(coalesce(nullif(current_setting('uc.schema', true), ''), 'uc')) || ', pg_temp', false);

CREATE MATERIALIZED VIEW IF NOT EXISTS llm_usage_summary AS
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
    sum(total_tokens)::bigint AS total_tokens,
    round(avg(total_tokens), 2) AS avg_tokens_per_request,
    sum(cost_credits::numeric) AS total_cost,
    round(avg(cost_credits::numeric), 6) AS avg_cost_per_request,
    round(avg(latency_ms), 2) AS avg_latency_ms,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) AS p95_latency_ms,
    round(avg(tokens_per_second), 3) AS avg_tokens_per_second,
    round(100.0 * count(*) FILTER (WHERE success) / count(*), 2) AS success_rate,
    count(*) FILTER (WHERE byok_used) AS byok_requests
FROM llm_usage_log
GROUP BY user_id, provider, model, power_level, (created_at AT TIME ZONE 'UTC')::date
WITH DATA;

CREATE UNIQUE INDEX IF NOT EXISTS llm_usage_summary_group ON llm_usage_summary (user_id, provider, model, power_level, date);
CREATE INDEX IF NOT EXISTS llm_usage_summary_date ON llm_usage_summary (date);
