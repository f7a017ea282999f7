"""`config/uc.yaml` and the environment, read once into frozen, validated settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from .errors import SettingsError

Tier = Literal["free", "starter", "professional", "enterprise"]
TIERS: tuple[Tier, ...] = ("free", "starter", "professional", "enterprise")

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[Decimal, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: Any) -> Any:
        # YAML reads `on` and `yes` as true, which pydantic would take for the number 1.
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, bool):
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
    """`tiers.<name>`: what a tier allows and costs."""

    markup: Rate = Decimal(1)
    rpm_limit: int | None = Field(None, ge=1)
    tpm_limit: int | None = Field(None, ge=1)


class OutboxSettings(_Section):
    """`outbox`: how much may wait for PostgreSQL."""

    most_mb: int = Field(256, ge=1, le=1_000_000)


class RequestSettings(_Section):
    """`requests`: what bodies may carry."""

    extra_fields: frozenset[str] = frozenset()
    idempotency_hours: int = Field(24, ge=1, le=8_760)


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
    requests: RequestSettings = RequestSettings()  # type: ignore[call-arg]
    usage: UsageSettings = UsageSettings()

    def tier(self, name: str) -> TierSettings:
        """The settings of a tier; the defaults where the file says nothing of it."""
        return next((value for key, value in self.tiers.items() if key == name), TierSettings())  # type: ignore[call-arg]


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid YAML: {error}") from error
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
        lines.append(f"  {key}: {_fix(fault)}")
    return "\n".join(lines)


def _fix(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key; remove it or correct its spelling (all keys stand in the shipped config/uc.yaml)"
    message = str(fault["msg"]).removeprefix("Value error, ")
    # A text may be a secret in the wrong place, so only numbers are shown.
    shown = isinstance(fault["input"], int | float)
    return f"{message} (it is {fault['input']!r})" if shown and fault["type"] != "value_error" else message
