"""`oidc`: whose access tokens are taken, and what their claims mean here."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .settings_sections import Seconds, Section, Tier

Role = Literal["user", "service", "admin"]
ROLES: tuple[Role, ...] = ("user", "service", "admin")

_LOCAL = ("localhost", "127.0.0.1", "::1")
_CONTROL_FREE = r"^[^\x00-\x1f\x7f-\x9f]*$"


def _names(value: Any) -> Any:
    """One name is a list of one."""
    return (value,) if isinstance(value, str) else value


def _path(value: Any) -> Any:
    """`realm_access.roles` is one claim within another; a claim with a dot in its name is written as a list."""
    return tuple(value.split(".")) if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1, max_length=512)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_names)]
Path = Annotated[tuple[Text, ...], BeforeValidator(_path), Field(min_length=1)]
Welcome = Annotated[Decimal, Field(ge=0, le=1_000_000_000, decimal_places=6, allow_inf_nan=False)]


class IssuerSettings(Section):
    """One entry of `oidc`.

    Attributes
    ----------
    issuer
        As the tokens' `iss` has it, to the letter.
    azp
        The clients whose tokens are taken; empty for all.
    user_claim, tier_claim, role_claim, app_claim
        Where in the claims it stands, one name for each level.
    tiers, roles
        What a value of the claim means; other values mean nothing. Without `tiers` the values are names of tiers.
    welcome_credits
        Credits for an account that a login makes, by its tier.
    keys_refresh_s
        How long the issuer's keys are used before they are asked for again.
    keys_interval_s
        How much time there is at least between two requests to the issuer.
    """

    switches: ClassVar[frozenset[str]] = frozenset({"allow_http"})

    issuer: Text
    audience: Annotated[Names, Field(min_length=1)]
    azp: Names = ()
    algorithms: Annotated[tuple[Literal["RS256", "ES256"], ...], BeforeValidator(_names), Field(min_length=1)] = (
        "RS256",
        "ES256",
    )
    required_claims: Names = ()
    user_claim: Path = ("sub",)
    user_prefix: str = Field("", max_length=100, pattern=_CONTROL_FREE)
    tier_claim: Path | None = None
    tiers: dict[Text, Tier] = Field(default_factory=dict)
    role_claim: Path | None = None
    roles: dict[Text, Role] = Field(default_factory=dict)
    app_claim: Path | None = ("azp",)
    welcome_credits: dict[Tier, Welcome] = Field(default_factory=dict)
    leeway_s: float = Field(10, ge=0, le=300)
    keys_refresh_s: Seconds = 300
    keys_interval_s: Seconds = 10
    allow_http: bool = False

    @field_validator("issuer")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            address = urlsplit(value)
            whole = bool(address.hostname) and not (address.query or address.fragment or address.username)
            whole = whole and value.isprintable() and " " not in value and (address.port or 1) > 0
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("write the issuer's address as it stands in the tokens' iss: https://host/path")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> IssuerSettings:
        if not may_ask(self.issuer, allow_http=self.allow_http):
            raise ValueError("issuer must begin with https://; allow_http opens http:// for this machine only")
        if bool(self.role_claim) != bool(self.roles):
            raise ValueError("role_claim and roles need each other: nothing else makes an administrator of a user")
        if self.tiers and not self.tier_claim:
            raise ValueError("tiers needs tier_claim, which says where a token names its tier")
        return self


def may_ask(url: str, *, allow_http: bool) -> bool:
    """Whether keys may be fetched from there: by https, or from this machine where plain http is allowed."""
    address = urlsplit(url)
    return address.scheme == "https" or (allow_http and address.scheme == "http" and address.hostname in _LOCAL)
