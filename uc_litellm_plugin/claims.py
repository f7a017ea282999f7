"""What the claims of an access token mean here: whose account, which tier and role, which app."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .settings import TIERS, IssuerSettings, Tier
from .settings_oidc import ROLES, Role

Claims = Mapping[str, Any]

_USER_ID_MAX = 255
_APP_MAX = 100
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Login:
    """Who signed in.

    Attributes
    ----------
    user_id
        The account, with the issuer's prefix.
    role
        What the token may do; `user` unless its roles are mapped to more.
    tier
        What the token says; None where it says nothing, and the account's row decides.
    app
        The app that the token was given to.
    welcome
        Credits for the account if this login makes it.
    issued_at, expires_at
        Seconds since 1970.
    """

    user_id: str
    role: Role
    tier: Tier | None
    app: str | None
    welcome: Decimal
    issued_at: float
    expires_at: float


class UnfitClaims(ValueError):
    """The claims of a genuine token that name no user, or not in the way they must."""


def login(claims: Claims, issuer: IssuerSettings) -> Login:
    """Who these claims say it is.

    Raises
    ------
    UnfitClaims
        They name nobody who can have an account.
    """
    found_tier, found_role = tier(claims, issuer), role(claims, issuer)
    # Credits are for people: a service or an administrator pays for nothing itself.
    welcome = issuer.welcome_credits.get(found_tier or TIERS[0], Decimal(0)) if found_role == "user" else Decimal(0)
    return Login(
        user_id=user_id(claims, issuer),
        role=found_role,
        tier=found_tier,
        app=app(claims, issuer),
        welcome=welcome,
        issued_at=float(claims["iat"]),
        expires_at=float(claims["exp"]),
    )


def user_id(claims: Claims, issuer: IssuerSettings) -> str:
    """The account's id.

    Raises
    ------
    UnfitClaims
        The claim is missing, no text or whole number, too long, holds control characters, or is an email that its owner
        has not verified.
    """
    found = at(claims, issuer.user_claim)
    if type(found) is int:
        found = str(found)
    if not isinstance(found, str) or not found.strip():
        raise UnfitClaims("no user")
    if issuer.user_claim == ("email",) and claims.get("email_verified") is not True:
        raise UnfitClaims("email not verified")
    named = f"{issuer.user_prefix}{found}"
    if len(named) > _USER_ID_MAX or _CONTROL.search(named):
        raise UnfitClaims("unfit user")
    return named


def tier(claims: Claims, issuer: IssuerSettings) -> Tier | None:
    """The highest tier that the claim names, None where it names none."""
    if issuer.tier_claim is None:
        return None
    meaning: Mapping[str, Tier] = issuer.tiers or {name: name for name in TIERS}
    named = {meaning[text] for text in _texts(at(claims, issuer.tier_claim)) if text in meaning}
    return max(named, key=TIERS.index, default=None)


def role(claims: Claims, issuer: IssuerSettings) -> Role:
    """The highest role that the claim is mapped to."""
    if issuer.role_claim is None:
        return ROLES[0]
    named = {issuer.roles[text] for text in _texts(at(claims, issuer.role_claim)) if text in issuer.roles}
    return max(named, key=ROLES.index, default=ROLES[0])


def app(claims: Claims, issuer: IssuerSettings) -> str | None:
    """The app's name, cleaned."""
    found = at(claims, issuer.app_claim) if issuer.app_claim else None
    return _CONTROL.sub("", found[:_APP_MAX]).strip() or None if isinstance(found, str) else None


def at(claims: Claims, path: Sequence[str]) -> Any:
    """What stands at this path, None where nothing does."""
    found: Any = claims
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _texts(found: Any) -> list[str]:
    """One text, or those of a list."""
    listed = found if isinstance(found, list) else [found]
    return [each for each in listed if isinstance(each, str)]
