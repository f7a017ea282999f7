"""Calls, one by one and summed up."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from .models import Answer, Credits, Moment, Number, Usd
from .models_credits import Hold, Transaction

GroupBy = Literal["provider", "model", "power_level", "app", "day"]


class UsageCall(Answer):
    """A call as it ended. No prompt and no answer text is kept."""

    request_id: str = Field(description="As in the header x-uc-request-id.")
    created_at: Moment
    provider: str
    model: str
    model_group: str | None = Field(description="The model that was asked for.")
    power_level: str
    endpoint: str | None
    app_id: str | None
    session_id: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_credits: Credits
    cost_usd: Usd | None
    cost_source: str | None
    byok_used: bool
    provider_key_id: UUID | None
    streamed: bool
    attempts: int
    latency_ms: int | None
    time_to_first_token_ms: int | None
    tokens_per_second: Number | None
    success: bool
    status_code: int | None
    error_type: str | None
    error_message: str | None


class Terms(Answer):
    """What the charge rests on, frozen when the call was held."""

    credits_per_usd: str | None = None
    cost_multiplier: str | None = None
    markup: str | None = None
    tier: str | None = None
    held: str | None = Field(None, description="Credits that were held.")
    max_output_tokens: int | None = None
    deployment: str | None = Field(None, description="The one that answered.")
    group: str | None = Field(None, description="Its model group.")
    prices: dict[str, str] | None = Field(None, description="US dollars per unit.")
    power_level_wished: str | None = Field(None, description="Where the call ran at another than it asked for.")
    client_request_id: str | None = None


class Story(Answer):
    """All that is known of one call."""

    request_id: str
    state: Literal["running", "settled", "released", "expired"]
    call: UsageCall | None = Field(description="Null while it runs, and where nobody lived to log it.")
    terms: Terms | None
    hold: Hold | None = Field(description="While it runs.")
    charged: Credits | None = Field(description="Credits, corrections not counted; null while it runs.")
    transactions: list[Transaction] = Field(description="Its rows in the ledger, corrections included.")


class Group(Answer):
    """Sums over calls."""

    key: str | None = Field(examples=["openai"], description="Null: calls without an app.")
    requests: int
    successes: int
    errors: int
    byok_requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_credits: Credits
    avg_latency_ms: Number | None
    success_rate: Number = Field(description="0 to 100.")


class Totals(Answer):
    """Sums over all groups."""

    requests: int
    successes: int
    errors: int
    byok_requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_credits: Credits


class UsageReport(Answer):
    """Usage over some UTC days, the last one today."""

    group_by: GroupBy
    first_day: date
    last_day: date
    totals: Totals
    data: list[Group] = Field(description="The dearest first; days in their order.")
    truncated: bool = Field(description="Whether there were more groups than are listed; the totals count them all.")


class Rehearsal(BaseModel):
    """The body of a call, as it would be sent, with all its fields."""

    model_config = ConfigDict(
        extra="allow",
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
            ]
        },
    )

    model: str = Field(min_length=1, max_length=512)


class Candidate(Answer):
    """A deployment that a call may use."""

    model_config = ConfigDict(extra="allow")

    place: int
    deployment: str
    model_group: str
    model: str
    provider: str
    own_key: bool
    worst_case_usd: str
    status: str
    p95_ms: Number | None
    success_rate: Number | None
    quality_score: Number | None
    reasons: list[dict[str, Any]]


class Explanation(Answer):
    """What would happen to a call: candidates in order, hold, balance, outcome."""

    model: str
    endpoint: str | None = None
    power_level: str | None = None
    power_level_wished: str | None = None
    routed_by: str | None = None
    candidates: list[Candidate]
    left_out: list[dict[str, Any]]
    hold: dict[str, Any] | None
    balance: dict[str, Any] | None
    outcome: dict[str, Any]
