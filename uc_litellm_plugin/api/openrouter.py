"""`/credits`, `/key`, `/generation` and `/activity` as OpenRouter answers them, for clients that know it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Query

from ..errors import BadRequest, NotFound
from ..settings import TIERS, Settings
from . import calls, statements
from .callers import Account, Acting, At
from .envelope import EnvelopeRoute
from .models import ERRORS, Everything
from .models_openrouter import Data, OrActivity, OrCredits, OrGeneration, OrKey, OrRateLimit

routing = APIRouter(tags=["uc: OpenRouter's shapes"], route_class=EnvelopeRoute, responses=ERRORS)

_ACTIVITY_DAYS = 30
# Python 3.11 and later take other forms, too.
_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_KEY = "SELECT name, key_hint, expires_at FROM user_api_keys WHERE id = $1::text::uuid"


@routing.get("/credits")
async def credits(account: Account, at: At) -> Data[OrCredits]:
    """Credits ever added and ever used, as OpenRouter's GET /api/v1/credits."""
    row = await statements.balance(at.worker.database, account.user_id)
    left = row["credits_remaining"] - row["credits_debt"]
    return Data(
        data=OrCredits(total_credits=float(left + row["credits_spent"]), total_usage=float(row["credits_spent"]))
    )


@routing.get("/key")
async def key(account: Account, at: At) -> Data[OrKey]:
    """The key that asks, its account's usage and limit, as OpenRouter's GET /api/v1/key."""
    balance = dict(await statements.balance(at.worker.database, account.user_id))
    today = datetime.now(timezone.utc).date()
    usage = dict(await calls.periods(at.worker.database, account.user_id, today))
    row = None
    if account.actor.key_id is not None:
        row = await at.worker.database.fetchrow(_KEY, account.actor.key_id, idempotent=True)
    return Data(data=_key(account, balance, usage, dict(row) if row else {}, at.worker.settings))


@routing.get("/generation")
async def generation(
    account: Account, at: At, id: Annotated[str, Query(min_length=1, max_length=255, description="x-uc-request-id.")]
) -> Data[OrGeneration]:
    """One call, as OpenRouter's GET /api/v1/generation."""
    row = None if "\0" in id else await calls.one(at.worker.database, account.user_id, str(calls.hold_id_of(id) or id))
    if row is None:
        raise NotFound("There is no such call.")
    return Data(data=_generation(dict(row)))


@routing.get("/activity")
async def activity(
    account: Account,
    at: At,
    date: Annotated[str | None, Query(pattern=_DAY, description="A single UTC day, YYYY-MM-DD.")] = None,
) -> Everything[OrActivity]:
    """Usage by UTC day, model and provider over the last 30 whole days, as OpenRouter's GET /api/v1/activity."""
    today = datetime.now(timezone.utc).date()
    first, until = today - timedelta(days=_ACTIVITY_DAYS), today
    if date is not None:
        first = _day(date, first, today)
        until = first + timedelta(days=1)
    rows = await calls.activity(at.worker.database, account.user_id, first, until, today)
    return Everything(data=[_activity(dict(row)) for row in rows])


def _day(text: str, first: date, today: date) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or not first <= day <= today:
        message = f"date must be one of the last {_ACTIVITY_DAYS} UTC days, YYYY-MM-DD."
        raise BadRequest(message, code="invalid_value", param="date")
    return day


def _key(
    account: Acting, balance: Mapping[str, Any], usage: Mapping[str, Any], row: Mapping[str, Any], settings: Settings
) -> OrKey:
    cap = balance["monthly_cap"]
    room = None if cap is None else max(cap - balance["spent_this_month"] - balance["credits_held"], 0)
    rpm = settings.tier(balance["tier"]).rpm_limit
    return OrKey(
        label=row.get("name") or account.actor.name,
        limit=cap,
        limit_reset=None if cap is None else "monthly",
        limit_remaining=room,
        include_byok_in_limit=settings.byok.fee_percent > 0,
        usage=balance["credits_spent"],
        byok_usage=usage["byok_usage_monthly"],
        is_free_tier=balance["tier"] == TIERS[0],
        is_provisioning_key=account.actor.role != "user",
        rate_limit=OrRateLimit(requests=rpm or -1),
        expires_at=row.get("expires_at"),
        **usage,
    )


def _generation(row: dict[str, Any]) -> OrGeneration:
    waited, took = row["time_to_first_token_ms"], row["latency_ms"]
    metadata = row["metadata"] if isinstance(row["metadata"], dict) else {}
    return OrGeneration(
        id=row["request_id"],
        upstream_id=_text(metadata.get("response_id")),
        total_cost=row["cost_credits"],
        usage=row["cost_credits"],
        upstream_inference_cost=row["cost_usd"] if row["byok_used"] else None,
        created_at=row["created_at"],
        model=row["model"],
        provider_name=row["provider"],
        app_id=row["app_id"],
        streamed=row["streamed"],
        cancelled=row["status_code"] == 499,
        latency=took if waited is None else waited,
        generation_time=None if took is None or waited is None else max(took - waited, 0),
        finish_reason=None,
        native_finish_reason=None,
        origin="",
        is_byok=row["byok_used"],
        api_type=row["endpoint"],
        tokens_prompt=row["prompt_tokens"],
        tokens_completion=row["completion_tokens"],
        native_tokens_prompt=row["prompt_tokens"],
        native_tokens_completion=row["completion_tokens"],
        native_tokens_reasoning=row["reasoning_tokens"],
        native_tokens_cached=row["cached_tokens"],
    )


def _activity(row: dict[str, Any]) -> OrActivity:
    return OrActivity(
        date=row["date"],
        model=row["model"],
        model_permaslug=row["model"],
        endpoint_id="",
        provider_name=row["provider"],
        usage=row["cost_credits"],
        byok_usage_inference=row["byok_usd"],
        requests=row["requests"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
