"""`config/uc.yaml` and the environment, read once into frozen, validated settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from .errors import SettingsError

Tier = Literal["free", "starter", "professional", "enterprise"]
TIERS: tuple[Tier, ...] = ("free", "starter", "professional", "enterprise")

# Names of power levels and of providers, as their columns allow them.
LEVEL_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
PROVIDER_NAME = r"^[a-z][a-z0-9_-]{0,62}$"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[Decimal, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Host = Annotated[str, Field(pattern=r"^([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$")]


class _Section(BaseModel):
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


class DatabaseSettings(_Section):
    """`database`: where our tables are and how long to wait for them."""

    schema_name: str = Field("uc", alias="schema", pattern=r"^[a-z_][a-z0-9_]{0,49}$")
    pool_size: int = Field(8, ge=1, le=200)
    timeout_s: Seconds = 1.5

    @model_validator(mode="after")
    def _not_litellms_own(self) -> DatabaseSettings:
        if self.schema_name == "public":
            raise ValueError("schema must not be 'public': LiteLLM's migrations drop what they do not know; use 'uc'")
        return self


class CreditSettings(_Section):
    """`credits`: what a credit is worth."""

    credits_per_usd: Rate = Decimal(10)


class HoldSettings(_Section):
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


class TierSettings(_Section):
    """`tiers.<name>`: what a tier costs and allows. A list left out allows all; in models `*` stands for any text."""

    markup: Rate = Decimal(1)
    power_levels: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    rpm_limit: int | None = Field(None, ge=1)
    tpm_limit: int | None = Field(None, ge=1)


class HealthSettings(_Section):
    """`health`: when a deployment is out of the way, and when it is tried again."""

    window_s: Seconds = 60
    down_after: int = Field(3, ge=1, le=1_000)
    degraded_below: float = Field(90, ge=0, le=100)
    probe_after_s: Seconds = 3


class PowerLevelSettings(_Section):
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


class RoutingSettings(_Section):
    """`routing`: how attempts are made."""

    switches: ClassVar[frozenset[str]] = frozenset({"latency_timeout"})

    latency_timeout: bool = False


class OutboxSettings(_Section):
    """`outbox`: how much may wait for PostgreSQL."""

    most_mb: int = Field(256, ge=1, le=1_000_000)


class RequestSettings(_Section):
    """`requests`: what bodies may carry."""

    extra_fields: frozenset[str] = frozenset()
    idempotency_hours: int = Field(24, ge=1, le=8_760)


class ByokSettings(_Section):
    """`byok`: users' own provider keys; hosts are in lower case, IPv6 in brackets, maybe with a port."""

    switches: ClassVar[frozenset[str]] = frozenset({"enabled", "allow_http"})

    enabled: bool = True
    min_tier: Tier = "starter"
    fee_percent: Annotated[Decimal, Field(ge=0, le=100, allow_inf_nan=False)] = Decimal(0)
    allow_http: bool = False
    allowed_hosts: frozenset[Host] = frozenset()
    most_keys: int = Field(20, ge=1, le=1_000)


class UsageSettings(_Section):
    """`usage`: the summary of usage rows."""

    summary_every_s: Seconds = 600


class Settings(_Section):
    """All settings of one process.

    Attributes
    ----------
    config_file
        The YAML file that was read.
    state_dir
        Where the embedded database and all local state live.
    database_url
        A PostgreSQL URL, or None for the embedded server.
    sealing_keys
        Keys that encrypt provider keys at rest, newest first.
    """

    config_file: Path
    state_dir: Path
    database_url: SecretStr | None = None
    sealing_keys: tuple[SecretStr, ...] = ()

    database: DatabaseSettings = DatabaseSettings()  # type: ignore[call-arg]
    credits: CreditSettings = CreditSettings()
    holds: HoldSettings = HoldSettings()  # type: ignore[call-arg]
    outbox: OutboxSettings = OutboxSettings()  # type: ignore[call-arg]
    tiers: dict[Tier, TierSettings] = Field(default_factory=dict)
    power_levels: dict[Annotated[str, Field(pattern=LEVEL_NAME)], PowerLevelSettings] = Field(default_factory=dict)
    routing: RoutingSettings = RoutingSettings()
    health: HealthSettings = HealthSettings()  # type: ignore[call-arg]
    requests: RequestSettings = RequestSettings()  # type: ignore[call-arg]
    usage: UsageSettings = UsageSettings()
    byok: ByokSettings = ByokSettings()  # type: ignore[call-arg]

    def tier(self, name: str) -> TierSettings:
        """The settings of a tier; the defaults where the file says nothing of it."""
        found = (settings for tier, settings in self.tiers.items() if tier == name)
        return next(found, TierSettings())  # type: ignore[call-arg]


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `UC_CONFIG` (else the shipped `uc.yaml`) and the environment.

    Raises
    ------
    SettingsError
        Names the file, the key, and what to write instead.
    """
    env = os.environ if environ is None else environ
    file = Path(env.get("UC_CONFIG") or shipped("config") / "uc.yaml").expanduser().absolute()
    values = _read_yaml(file)
    url = _secret(env, "UC_DATABASE_URL")
    keys = _secret(env, "UC_SEALING_KEYS") or ""
    try:
        return Settings(
            **values,
            config_file=file,
            state_dir=_state_dir(env),
            database_url=SecretStr(url) if url else None,
            sealing_keys=tuple(SecretStr(key.strip()) for key in keys.split(",") if key.strip()),
        )
    except ValidationError as error:
        raise SettingsError(_explain(file, error)) from None


def shipped(name: str) -> Path:
    """The directory `sql` or `config`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def _state_dir(env: Mapping[str, str]) -> Path:
    default = Path(env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "uc-litellm"
    return Path(env.get("UC_STATE_DIR") or default).expanduser().absolute()


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; set UC_CONFIG to a readable file or unset it") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{file} is not valid YAML: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not valid YAML: {_where(error)}") from None
    except RecursionError:
        raise SettingsError(f"{file} is not valid YAML: it is nested too deeply; correct it") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: the top level must be a mapping of sections, not {type(values).__name__}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise SettingsError(
            f"{file}: the key {odd[0]!r} is read as {type(odd[0]).__name__}; put it in quotes or correct it"
        )
    for key in ("config_file", "state_dir", "database_url", "sealing_keys"):
        if key in values:
            raise SettingsError(f"{file}: {key} does not belong into the file; set it by the environment variable")
    return values


def _where(error: yaml.YAMLError) -> str:
    """What YAML cannot read and where; its own message would quote the line, in which a secret may stand."""
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or 'it has characters that must not be'}{place}; correct it"


def _secret(env: Mapping[str, str], name: str) -> str | None:
    """A secret from `NAME`, or from the file that `NAME_FILE` names."""
    if value := env.get(name, "").strip():
        return value
    if not (file := env.get(f"{name}_FILE", "").strip()):
        return None
    try:
        return Path(file).expanduser().read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE names {file}, which cannot be read: {error}") from None


def _explain(file: Path, error: ValidationError) -> str:
    lines = [f"{file} has {error.error_count()} wrong setting(s):"]
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "(top level)"
        lines.append(f"  {key}: {fix(fault)}")
    return "\n".join(lines)


_FIXES = {
    "extra_forbidden": "unknown key; remove it or correct its spelling (all keys stand in the shipped config/uc.yaml)",
    "model_type": "write its settings below it, or remove it",
    "dict_type": "write its settings below it, or {} for none",
    "tuple_type": "write a list, such as [one, two]",
}


def fix(fault: Mapping[str, Any]) -> str:
    """How to mend one of the faults that a `ValidationError` lists; it repeats no text, which might be a secret."""
    if known := _FIXES.get(fault["type"]):
        return known
    message = str(fault["msg"]).removeprefix("Value error, ")
    shown = isinstance(fault["input"], int | float)
    return f"{message} (it is {fault['input']!r})" if shown and fault["type"] != "value_error" else message
