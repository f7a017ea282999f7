"""`config/uc.yaml` and the environment, read once into frozen, validated settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from .errors import SettingsError
from .settings_oidc import IssuerSettings
from .settings_sections import (
    LEVEL_NAME,
    PROVIDER_NAME,
    TIERS,
    ByokSettings,
    CreditSettings,
    DatabaseSettings,
    HealthSettings,
    HoldSettings,
    LimitSettings,
    OutboxSettings,
    PowerLevelSettings,
    ProcessSettings,
    RequestSettings,
    RoutingSettings,
    Section,
    Tier,
    TierSettings,
    UsageSettings,
)
from .yaml_loader import Loader

# The sections are known by this module's name.
__all__ = [
    "LEVEL_NAME", "PROVIDER_NAME", "TIERS", "ByokSettings", "CreditSettings", "DatabaseSettings", "HealthSettings",
    "HoldSettings", "IssuerSettings", "LimitSettings", "OutboxSettings", "PowerLevelSettings", "ProcessSettings",
    "RequestSettings", "RoutingSettings", "Settings", "Tier", "TierSettings", "UsageSettings", "fix", "load", "shipped",
]  # fmt: skip


class Settings(Section):
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
    process: ProcessSettings = ProcessSettings()
    byok: ByokSettings = ByokSettings()  # type: ignore[call-arg]
    oidc: tuple[IssuerSettings, ...] = ()
    limits: LimitSettings = LimitSettings()  # type: ignore[call-arg]

    @field_validator("oidc", mode="before")
    @classmethod
    def _one_issuer_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _issuers_share_no_users(self) -> Settings:
        for place, one in enumerate(self.oidc):
            for other in self.oidc[:place]:
                if one.issuer == other.issuer:
                    raise ValueError("oidc names an issuer twice; write all its audiences into one entry")
                if one.user_prefix.startswith(other.user_prefix) or other.user_prefix.startswith(one.user_prefix):
                    raise ValueError(
                        "oidc: with several issuers each needs a user_prefix that no other one starts with, "
                        "or one issuer's user could be taken for another's"
                    )
        return self

    def tier(self, name: str) -> TierSettings:
        """The settings of a tier; the defaults where the file says nothing of it."""
        found = (settings for tier, settings in self.tiers.items() if tier == name)
        return next(found, _UNNAMED_TIER)


_UNNAMED_TIER = TierSettings()  # type: ignore[call-arg]


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
        values = yaml.load(file.read_text("utf-8"), Loader)  # noqa: S506 - a safe one
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
