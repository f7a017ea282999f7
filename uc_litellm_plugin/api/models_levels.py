"""Power levels, and how providers fare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .models import Answer, Asked, LongText, Moment, Number, PowerLevelName, Text, Usd, left_out
from .models_keys import ProviderName

FallbackStrategy = Literal["next_available", "none"]
Multiplier = Annotated[str, Field(pattern=r"^[0-9]{1,5}(\.[0-9]{1,4})?$", max_length=10, examples=["1.5"])]
Score = Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,2})?$", max_length=6, examples=["85"])]


class DefaultLevel(Answer):
    """At which power level the account's calls run when they name none."""

    power_level: str = Field(examples=["balanced"])
    downgrade: bool = Field(description="Whether a call that does not fit is tried at cheaper levels.")


class LevelChoice(Asked):
    """The power level of calls that name none."""

    power_level: PowerLevelName
    downgrade: bool = left_out(description="Left out: it stays as it is.")


class Level(Answer):
    """A power level."""

    power_level: str = Field(examples=["eco"])
    name: str
    description: str
    preferred_providers: list[str] = Field(examples=[["openrouter", "together"]])
    fallback_strategy: FallbackStrategy
    cost_multiplier: Usd = Field(examples=["0.7000"])
    max_latency_ms: int | None
    min_quality_score: Usd = Field(examples=["70.00"])
    default_max_output_tokens: int
    is_active: bool
    source: Literal["seed", "yaml", "database"]
    edited_at: Moment | None


class LevelEdit(Asked):
    """What is to be changed of a power level; the rest stays."""

    name: Text = left_out(examples=["Eco"])
    description: LongText = left_out()
    preferred_providers: list[ProviderName] = left_out(max_length=64)
    fallback_strategy: FallbackStrategy = left_out()
    cost_multiplier: Multiplier = left_out()
    max_latency_ms: int | None = left_out(ge=1, le=86_400_000, description="Null: no target.")
    min_quality_score: Score = left_out()
    default_max_output_tokens: int = left_out(ge=1, le=10_000_000)
    is_active: bool = left_out()


class EditedLevel(Level):
    """The level after the edit."""

    warnings: list[str] = Field(description="What was probably not meant.")


class DeploymentHealth(Answer):
    """How a deployment, or a provider as a whole, fares."""

    status: Literal["healthy", "degraded", "down"]
    status_since: Moment
    avg_latency_ms: Number | None = Field(description="Mean time to the first output.")
    p95_latency_ms: Number | None
    success_rate: Number | None = Field(description="Of the last hour's attempts, 0 to 100.")
    last_check: Moment | None
    last_success: Moment | None
    last_failure: Moment | None
    last_error: str | None = Field(examples=["timeout"])
    requests_last_hour: int | None = Field(None, description="For admins.")
    error_count_24h: int | None = Field(None, description="For admins.")
    consecutive_failures: int | None = Field(None, description="For admins.")


class Deployment(DeploymentHealth):
    """One deployment of a provider."""

    deployment: str


class ProviderHealth(DeploymentHealth):
    """A provider with its deployments."""

    provider: str = Field(examples=["openai"])
    deployments: list[Deployment]
