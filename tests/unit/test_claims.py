"""What the claims of a genuine token mean: account, tier, role, app, welcome."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from uc_litellm_plugin import claims
from uc_litellm_plugin.claims import UnfitClaims
from uc_litellm_plugin.settings import IssuerSettings

# As Keycloak makes them.
CLAIMS: dict[str, Any] = {
    "sub": "8c9e", "azp": "web", "iat": 100, "exp": 400.5, "email": "ann@example.com", "email_verified": True,
    "preferred_username": "ann", "groups": ["gold", "silver"], "plan": "professional", "number": 7,
    "realm_access": {"roles": ["offline_access", "uc-admin", "uc-service"]},
    "resource_access": {"my.app": {"roles": ["uc-service"]}},
    "https://example.com/plan": "starter",
}  # fmt: skip


def issuer(**changed: Any) -> IssuerSettings:
    return IssuerSettings.model_validate({"issuer": "https://sso.example.com", "audience": "uc", **changed})


@pytest.mark.parametrize(
    ("changed", "user_id"),
    [
        ({}, "8c9e"),
        ({"user_prefix": "kc:"}, "kc:8c9e"),
        ({"user_claim": "preferred_username"}, "ann"),
        ({"user_claim": "email"}, "ann@example.com"),
        ({"user_claim": "number"}, "7"),
    ],
)
def test_whose_account(changed: dict[str, Any], user_id: str) -> None:
    """The chosen claim, after the issuer's prefix."""
    assert claims.user_id(CLAIMS, issuer(**changed)) == user_id


@pytest.mark.parametrize("value", [None, "", "  ", True, 1.5, [], ["ann"], {}, "a\0", "a\x85", "\ud800", "a" * 254])
def test_who_can_have_no_account(value: Any) -> None:
    """What cannot be a user id is nobody."""
    with pytest.raises(UnfitClaims):
        claims.user_id({**CLAIMS, "sub": value}, issuer(user_prefix="kc:"))


@pytest.mark.parametrize("verified", [None, False, "true", 1])
def test_an_unverified_email_is_nobody(verified: Any) -> None:
    """Anybody can write another's address into a form."""
    with pytest.raises(UnfitClaims):
        claims.user_id({**CLAIMS, "email_verified": verified}, issuer(user_claim="email"))


@pytest.mark.parametrize(
    ("changed", "tier"),
    [
        ({}, None),
        ({"tier_claim": "plan"}, "professional"),
        ({"tier_claim": ["https://example.com/plan"]}, "starter"),
        ({"tier_claim": "groups"}, None),
        ({"tier_claim": "groups", "tiers": {"silver": "starter", "gold": "enterprise"}}, "enterprise"),
        ({"tier_claim": "groups", "tiers": {"silver": "starter", "bronze": "enterprise"}}, "starter"),
        ({"tier_claim": "plan", "tiers": {"pro": "professional"}}, None),
        ({"tier_claim": "nothing"}, None),
        ({"tier_claim": "sub.plan"}, None),
    ],
)
def test_which_tier(changed: dict[str, Any], tier: str | None) -> None:
    """The highest that the claim names, by the mapping if there is one; else nothing, and the row decides."""
    assert claims.tier(CLAIMS, issuer(**changed)) == tier


@pytest.mark.parametrize(
    ("changed", "role"),
    [
        ({}, "user"),
        ({"role_claim": "realm_access.roles", "roles": {"uc-admin": "admin", "uc-service": "service"}}, "admin"),
        ({"role_claim": "realm_access.roles", "roles": {"root": "admin"}}, "user"),
        ({"role_claim": ["resource_access", "my.app", "roles"], "roles": {"uc-service": "service"}}, "service"),
        ({"role_claim": "resource_access.my.app.roles", "roles": {"uc-service": "service"}}, "user"),
        ({"role_claim": "preferred_username", "roles": {"ann": "admin"}}, "admin"),
        ({"role_claim": "realm_access", "roles": {"roles": "admin"}}, "user"),
    ],
)
def test_which_role(changed: dict[str, Any], role: str) -> None:
    """The highest that the claim's values are mapped to; nothing is an administrator by its name alone."""
    assert claims.role(CLAIMS, issuer(**changed)) == role


def test_which_app() -> None:
    """The client that the token was given to, fit for a row."""
    assert claims.app(CLAIMS, issuer()) == "web"
    assert claims.app({"azp": "a\n" * 200}, issuer()) == "a" * 50
    assert claims.app({"azp": " \0"}, issuer()) is None
    assert claims.app({"azp": ["web"]}, issuer()) is None
    assert claims.app(CLAIMS, issuer(app_claim=None)) is None
    assert claims.app(CLAIMS, issuer(app_claim="preferred_username")) == "ann"


def test_welcome() -> None:
    """By the tier that the account is made with; nothing for those who act for others."""
    changed: dict[str, Any] = {"welcome_credits": {"free": 5, "professional": "20.5"}}
    assert claims.login(CLAIMS, issuer(**changed)).welcome == Decimal(5)
    found = claims.login(CLAIMS, issuer(**changed, tier_claim="plan"))
    assert (found.welcome, found.tier, found.issued_at, found.expires_at) == (
        Decimal("20.5"),
        "professional",
        100,
        400.5,
    )
    assert claims.login({**CLAIMS, "plan": "starter"}, issuer(**changed, tier_claim="plan")).welcome == 0
    service = issuer(**changed, role_claim="realm_access.roles", roles={"uc-service": "service"})
    assert claims.login(CLAIMS, service).welcome == 0
