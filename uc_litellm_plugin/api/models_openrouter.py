"""OpenRouter's shapes, for clients that know them: https://openrouter.ai/docs/api-reference. Amounts are credits."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import Field

from .models import Answer, Moment, Number

T = TypeVar("T")


class Data(Answer, Generic[T]):
    """OpenRouter's envelope."""

    data: T


class OrCredits(Answer):
    """Credits ever added and ever used; what is left is the difference, debt taken off."""

    total_credits: Number
    total_usage: Number


class OrRateLimit(Answer):
    """Requests per minute, -1 for no limit."""

    requests: int
    interval: Literal["60s"] = "60s"
    note: str = "Requests per minute of this account."


class OrKey(Answer):
    """The key that asks. Usage and limit are the account's: all its keys draw on one balance."""

    label: str = Field(examples=["my app"])
    limit: Number | None = Field(description="The monthly cap.")
    limit_reset: Literal["monthly"] | None
    limit_remaining: Number | None
    include_byok_in_limit: bool
    usage: Number
    usage_daily: Number
    usage_weekly: Number
    usage_monthly: Number
    byok_usage: Number = Field(description="Of this UTC month, in US dollars at the provider.")
    byok_usage_daily: Number
    byok_usage_weekly: Number
    byok_usage_monthly: Number
    is_free_tier: bool
    is_provisioning_key: bool
    rate_limit: OrRateLimit
    expires_at: Moment | None


class OrGeneration(Answer):
    """One call."""

    id: str
    upstream_id: str | None
    total_cost: Number
    usage: Number
    upstream_inference_cost: Number | None
    created_at: Moment
    model: str
    provider_name: str
    app_id: str | None
    streamed: bool
    cancelled: bool
    latency: int | None
    generation_time: int | None
    finish_reason: str | None
    native_finish_reason: str | None
    origin: str
    is_byok: bool
    api_type: str | None
    tokens_prompt: int
    tokens_completion: int
    native_tokens_prompt: int
    native_tokens_completion: int
    native_tokens_reasoning: int
    native_tokens_cached: int


class OrActivity(Answer):
    """A day's usage of one model at one provider."""

    date: str = Field(examples=["2026-01-31"])
    model: str
    model_permaslug: str
    endpoint_id: str
    provider_name: str
    usage: Number
    byok_usage_inference: Number
    requests: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
