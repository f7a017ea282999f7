"""The sections of `config/uc.yaml`: what may stand in each, and the defaults."""

from __future__ import annotations

import ipaddress
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import heap

Tier = Literal["free", "starter", "professional", "enterprise"]
TIERS: tuple[Tier, ...] = ("free", "starter", "professional", "enterprise")

# Names of power levels and of providers, as their columns allow them.
LEVEL_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
PROVIDER_NAME = r"^[a-z][a-z0-9_-]{0,62}$"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[Decimal, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Host = Annotated[str, Field(pattern=r"^([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$")]


class Section(BaseModel):
    """What all sections have in common: frozen, no unknown keys, and no secret in a message."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    switches: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: Any) -> Any:
        # YAML reads `on` and `yes` as true, which pydantic would take for the number 1.
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, bool) and key not in cls.switches:
                    raise ValueError(f"{key} must not be true or false")
        return values


class DatabaseSettings(Section):
    """`database`: where our tables are and how long to wait for them."""

    schema_name: str = Field("uc", alias="schema", pattern=r"^[a-z_][a-z0-9_]{0,49}$")
    pool_size: int = Field(8, ge=1, le=200)
    timeout_s: Seconds = 1.5

    @model_validator(mode="after")
    def _not_litellms_own(self) -> DatabaseSettings:
        if self.schema_name == "public":
            raise ValueError("schema must not be 'public': LiteLLM's migrations drop what they do not know; use 'uc'")
        return self


class CreditSettings(Section):
    """`credits`: what a credit is worth."""

    credits_per_usd: Rate = Decimal(10)


class HoldSettings(Section):
    """`holds`: leases, sweeping, and what is held when a limit is not named."""

    lease_s: Seconds = 120
    extend_every_s: Seconds = 30
    sweep_every_s: Seconds = 10
    min_output_tokens: int = Field(256, ge=1, le=1_000_000)
    unbounded_input: Literal["refuse", "hold"] = "refuse"
    abort_drain_s: float = Field(10, ge=0, le=600)

    @model_validator(mode="after")
    def _extended_in_time(self) -> HoldSettings:
        if self.extend_every_s * 3 > self.lease_s:
            raise ValueError("extend_every_s must be at most a third of lease_s, so that a missed beat frees no hold")
        return self


class TierSettings(Section):
    """`tiers.<name>`: what a tier costs and allows. A list left out allows all; in models `*` stands for any text."""

    markup: Rate = Decimal(1)
    power_levels: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    rpm_limit: int | None = Field(None, ge=1)
    tpm_limit: int | None = Field(None, ge=1)


class HealthSettings(Section):
    """`health`: when a deployment is out of the way, and when it is tried again."""

    window_s: Seconds = 60
    down_after: int = Field(3, ge=1, le=1_000)
    degraded_below: float = Field(90, ge=0, le=100)
    probe_after_s: Seconds = 3


class PowerLevelSettings(Section):
    """`power_levels.<name>`: what the file says of a level; what it leaves out stays as it is in the level's row."""

    switches: ClassVar[frozenset[str]] = frozenset({"is_active"})

    name: str | None = Field(None, min_length=1, max_length=255)
    description: str | None = Field(None, max_length=10_000)
    preferred_providers: tuple[Annotated[str, Field(pattern=PROVIDER_NAME)], ...] | None = None
    fallback_strategy: Literal["next_available", "none"] | None = None
    cost_multiplier: Annotated[Decimal, Field(gt=0, le=100_000, decimal_places=4, allow_inf_nan=False)] | None = None
    max_latency_ms: int | None = Field(None, ge=1, le=86_400_000)
    min_quality_score: Annotated[Decimal, Field(ge=0, le=100, decimal_places=2, allow_inf_nan=False)] | None = None
    default_max_output_tokens: int | None = Field(None, ge=1, le=10_000_000)
    is_active: bool | None = None


class RoutingSettings(Section):
    """`routing`: how attempts are made."""

    switches: ClassVar[frozenset[str]] = frozenset({"latency_timeout"})

    latency_timeout: bool = False


class OutboxSettings(Section):
    """`outbox`: how much may wait for PostgreSQL."""

    most_mb: int = Field(256, ge=1, le=1_000_000)


class RequestSettings(Section):
    """`requests`: what bodies may carry."""

    extra_fields: frozenset[str] = frozenset()
    idempotency_hours: int = Field(24, ge=1, le=8_760)


class ByokSettings(Section):
    """`byok`: users' own provider keys; hosts are in lower case, IPv6 in brackets, maybe with a port."""

    switches: ClassVar[frozenset[str]] = frozenset({"enabled", "allow_http"})

    enabled: bool = True
    min_tier: Tier = "starter"
    fee_percent: Annotated[Decimal, Field(ge=0, le=100, allow_inf_nan=False)] = Decimal(0)
    allow_http: bool = False
    allowed_hosts: frozenset[Host] = frozenset()
    most_keys: int = Field(20, ge=1, le=1_000)


class UsageSettings(Section):
    """`usage`: the summary of usage rows."""

    summary_every_s: Seconds = 600


class ProcessSettings(Section):
    """`process`: the Python process of a worker."""

    switches: ClassVar[frozenset[str]] = frozenset({"collect_between_steps", "freeze_after_start"})

    collect_between_steps: bool | None = None
    freeze_after_start: bool = False

    @property
    def collects_between_steps(self) -> bool:
        """What `collect_between_steps` says, or, where it says nothing, whether this Python needs it."""
        return not heap.SAFE_ANYWHERE if self.collect_between_steps is None else self.collect_between_steps


class LimitSettings(Section):
    """`limits`: guesses of keys and requests to the REST API; each worker counts for itself, null is no limit."""

    failed_keys_per_minute: int | None = Field(60, ge=1, le=1_000_000)
    api_requests_per_minute: int | None = Field(1_200, ge=1, le=10_000_000)
    address_header: str | None = Field(None, pattern=r"^[a-z0-9-]{1,64}$")
    trusted_proxies: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _believed_from_somebody(self) -> LimitSettings:
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError("trusted_proxies must be addresses or networks such as 10.0.0.0/8") from None
        if self.address_header and not self.trusted_proxies:
            raise ValueError("address_header needs trusted_proxies: from others the header could say anything")
        return self
