"""What `llm_usage_log` knows of one account's calls, row by row and summed up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from ..database import Database, Row
from ..errors import LedgerUnavailable
from .models_usage import GroupBy

_CALL = """
id, request_id, hold_id, created_at, provider, model, model_group, power_level, endpoint, call_type, app_id, session_id,
prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost_credits, cost_usd, cost_source,
byok_used, provider_key_id, streamed, attempts, latency_ms, time_to_first_token_ms, tokens_per_second, success,
status_code, error_type, error_message, metadata"""
_CALLS = f"""
SELECT {_CALL} FROM llm_usage_log
WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
    AND created_at >= coalesce($4, '-infinity'::timestamptz) AND created_at < coalesce($5, 'infinity'::timestamptz)
    AND ($6::text IS NULL OR model = $6) AND ($7::text IS NULL OR provider = $7)
ORDER BY created_at DESC, id DESC LIMIT $8"""  # noqa: S608 - names of ours
_ONE = f"SELECT {_CALL} FROM llm_usage_log WHERE request_id = $2 AND user_id = $1"  # noqa: S608

# The summary has whole days and is behind by minutes (usage.summary_every_s): the newest days come from the log, and
# older ones cannot change any more, whatever the summary's schedule (settings: at most a day).
_DAYS_FROM_LOG = 2
_REPORT = """
SELECT key::text, sum(requests)::bigint AS requests, sum(successes)::bigint AS successes, sum(errors)::bigint AS errors,
    sum(byok_requests)::bigint AS byok_requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(total_tokens)::bigint AS total_tokens,
    sum(cost_credits) AS cost_credits, sum(latency_ms) / nullif(sum(measured), 0) AS avg_latency_ms,
    round(100.0 * sum(successes) / sum(requests), 2) AS success_rate
FROM (
    SELECT {summed} AS key, request_count AS requests, success_count AS successes, error_count AS errors, byok_requests,
        total_prompt_tokens AS prompt_tokens, total_completion_tokens AS completion_tokens, total_tokens,
        total_cost AS cost_credits, avg_latency_ms * request_count AS latency_ms,
        CASE WHEN avg_latency_ms IS NULL THEN 0 ELSE request_count END AS measured
    FROM llm_usage_summary WHERE user_id = $1 AND date >= $2::date AND date < $3::date
    UNION ALL
    SELECT {logged}, count(*), count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success),
        count(*) FILTER (WHERE byok_used), sum(prompt_tokens), sum(completion_tokens), sum(total_tokens),
        sum(cost_credits::numeric), sum(latency_ms), count(latency_ms)
    FROM llm_usage_log
    WHERE user_id = $1 AND created_at >= (greatest($2::date, $3::date)::timestamp AT TIME ZONE 'UTC')
    GROUP BY 1
) AS part
GROUP BY key"""
_DAY = "(created_at AT TIME ZONE 'UTC')::date"
_KEYS: dict[GroupBy, tuple[str, str]] = {
    "provider": ("provider", "provider"),
    "model": ("model", "model"),
    "power_level": ("power_level", "power_level"),
    "app": ("NULL::text", "app_id"),
    "day": ("date", _DAY),
}
_REPORTS = {name: _REPORT.format(summed=summed, logged=logged) for name, (summed, logged) in _KEYS.items()}
_ACTIVITY = f"""
SELECT date::text, model, provider, sum(requests)::bigint AS requests, sum(cost_credits) AS cost_credits,
    sum(byok_usd) AS byok_usd, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(reasoning_tokens)::bigint AS reasoning_tokens
FROM (
    SELECT date, model, provider, request_count AS requests, total_cost AS cost_credits,
        total_byok_cost_usd AS byok_usd, total_prompt_tokens AS prompt_tokens,
        total_completion_tokens AS completion_tokens, total_reasoning_tokens AS reasoning_tokens
    FROM llm_usage_summary WHERE user_id = $1 AND date >= $2::date AND date < least($3::date, $4::date)
    UNION ALL
    SELECT {_DAY}, model, provider, count(*), sum(cost_credits::numeric),
        coalesce(sum(cost_usd) FILTER (WHERE byok_used), 0), sum(prompt_tokens), sum(completion_tokens),
        sum(reasoning_tokens)
    FROM llm_usage_log
    WHERE user_id = $1 AND created_at >= (greatest($2::date, $4::date)::timestamp AT TIME ZONE 'UTC')
        AND created_at < ($3::date::timestamp AT TIME ZONE 'UTC')
    GROUP BY 1, 2, 3
) AS part
GROUP BY date, model, provider ORDER BY date DESC, cost_credits DESC, model, provider LIMIT $5"""  # noqa: S608
_PERIODS = f"""
SELECT
    coalesce(sum(cost_credits) FILTER (WHERE date >= day), 0) AS usage_daily,
    coalesce(sum(cost_credits) FILTER (WHERE date >= week), 0) AS usage_weekly,
    coalesce(sum(cost_credits) FILTER (WHERE date >= month), 0) AS usage_monthly,
    coalesce(sum(byok_usd) FILTER (WHERE date >= day), 0) AS byok_usage_daily,
    coalesce(sum(byok_usd) FILTER (WHERE date >= week), 0) AS byok_usage_weekly,
    coalesce(sum(byok_usd) FILTER (WHERE date >= month), 0) AS byok_usage_monthly
FROM (
    SELECT $2::date AS day, date_trunc('week', $2::date::timestamp)::date AS week,
        date_trunc('month', $2::date::timestamp)::date AS month
) AS begins, (
    SELECT date, total_cost AS cost_credits, total_byok_cost_usd AS byok_usd
    FROM llm_usage_summary WHERE user_id = $1 AND date >= $3::date AND date < $4::date
    UNION ALL
    SELECT {_DAY}, sum(cost_credits::numeric), sum(cost_usd) FILTER (WHERE byok_used)
    FROM llm_usage_log
    WHERE user_id = $1 AND created_at >= (greatest($3::date, $4::date)::timestamp AT TIME ZONE 'UTC')
    GROUP BY 1
) AS part"""  # noqa: S608

MOST_GROUPS = 1000
MOST_ACTIVITY = 10_000
# Reports read many rows: a few of them at a time leave the other connections to the calls.
_AT_ONCE = asyncio.Semaphore(2)
_WAIT_S = 5.0
_REPORT_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """Which calls; None is no condition. Times are a half-open period."""

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    provider: str | None = None


async def page(
    database: Database, user_id: str, wanted: Wanted, before: tuple[datetime, int] | None, limit: int
) -> list[Row]:
    """Calls, newest first, from one (not included) on."""
    return await database.fetch(
        _CALLS, user_id, *(before or (None, None)), wanted.since, wanted.until, wanted.model, wanted.provider, limit,
        idempotent=True,
    )  # fmt: skip


async def one(database: Database, user_id: str, request_id: str) -> Row | None:
    """One call of this account; None where it is not its."""
    return await database.fetchrow(_ONE, user_id, request_id, idempotent=True)


async def report(database: Database, user_id: str, group_by: GroupBy, first_day: date, from_log: date) -> list[Row]:
    """Sums over the calls since a UTC day.

    Parameters
    ----------
    from_log
        The first day whose calls are read one by one; those before it come from the summary, which knows no apps.

    Raises
    ------
    LedgerUnavailable
        Too many reports are asked for at once.
    """
    return await _at_leisure(database, _REPORTS[group_by], user_id, first_day, from_log)


async def activity(database: Database, user_id: str, first_day: date, until: date, today: date) -> list[Row]:
    """Sums by UTC day, model and provider, newest day first; raises as `report`."""
    return await _at_leisure(database, _ACTIVITY, user_id, first_day, until, first_logged(today), MOST_ACTIVITY)


async def periods(database: Database, user_id: str, today: date) -> Row:
    """What was spent in this UTC day, in its week and in its month; raises as `report`."""
    first_day = min(today - timedelta(days=today.weekday()), today.replace(day=1))
    (row,) = await _at_leisure(database, _PERIODS, user_id, today, first_day, first_logged(today))
    return row


def first_logged(today: date) -> date:
    """The first day of which the summary may still lack calls."""
    return today - timedelta(days=_DAYS_FROM_LOG - 1)


async def _at_leisure(database: Database, statement: str, *args: str | date | int) -> list[Row]:
    try:
        await asyncio.wait_for(_AT_ONCE.acquire(), _WAIT_S)
    except asyncio.TimeoutError:
        raise LedgerUnavailable("Too many reports are being made; please try again shortly.", retry_after_s=5) from None
    try:
        return await database.fetch(statement, *args, timeout=_REPORT_S, idempotent=True)
    finally:
        _AT_ONCE.release()


def hold_id_of(request_id: str) -> UUID | None:
    """The hold of a call, whose id is the call's."""
    try:
        return UUID(request_id)
    except ValueError:
        return None
