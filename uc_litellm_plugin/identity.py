"""Who calls: LiteLLM's `custom_auth`, with our API keys, and who pays, from authentication only."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth, hash_token

from . import routes
from .accounts import Account, Accounts, ApiKey
from .call import Caller
from .errors import DatabaseError, Forbidden, LedgerUnavailable, Unauthorized
from .settings import Settings

PAYER_HEADER = "x-uc-user-id"
# Under this name our caller travels in `UserAPIKeyAuth.metadata`; clients cannot write there.
_OURS = "uc"
_CALLERS_OWN = ("user",)


async def authenticate(request: Request, api_key: str | None, accounts: Accounts, settings: Settings) -> UserAPIKeyAuth:
    """Turn a request's key into LiteLLM's idea of a caller.

    Parameters
    ----------
    request
        Its method and path decide whether a user may pass; its `X-UC-User-Id` names the payer for service keys.
    api_key
        As LiteLLM found it in any of its carriers, without `Bearer`.

    Raises
    ------
    Refusal
        401 for an unknown key, 400 or 403 for a route that is not open, 403 where the payer is missing,
        503 when PostgreSQL cannot say who it is.
    """
    if not api_key or len(api_key) > 512:
        raise Unauthorized("No API key: send it as 'Authorization: Bearer …' or 'x-api-key: …'.")
    if _is_master(api_key):
        return await _administrator(request, accounts, settings, role="admin", key=None)
    try:
        key = await accounts.api_key(api_key)
    except DatabaseError as error:
        raise LedgerUnavailable("API keys cannot be checked at the moment; please try again shortly.") from error
    if key is None or not key.is_valid():
        raise Unauthorized("This API key is not known, revoked or expired.")
    if key.role in _CALLERS_OWN:
        routes.check(request.method, path_of(request))
        return _auth(api_key, key.account, settings, key)
    return await _administrator(request, accounts, settings, role=key.role, key=key, api_key=api_key)


async def caller_of(auth: UserAPIKeyAuth, headers: Mapping[str, str], accounts: Accounts) -> Caller:
    """The payer of an authenticated request.

    Without our `custom_auth`, LiteLLM's own keys count by their `user_id`.

    Raises
    ------
    Refusal
        401 without a user id, 403 for an administrator who names no payer and for a user without an account.
    """
    ours = (auth.metadata or {}).get(_OURS)
    if auth.authenticated_by_custom_auth and isinstance(ours, dict):
        if ours["user_id"] is None:
            raise _no_payer()
        return Caller(**ours)
    if auth.user_role in (LitellmUserRoles.PROXY_ADMIN, LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY):
        return _as_caller(await _payer(headers, accounts), "admin")
    if not auth.user_id:
        raise Unauthorized("This key belongs to no user, so nobody can pay: make it with a user_id.")
    account = await accounts.account(auth.user_id)
    if account is None:
        raise _no_account(auth.user_id)
    return _as_caller(account, "user")


async def _administrator(
    request: Request,
    accounts: Accounts,
    settings: Settings,
    *,
    role: str,
    key: ApiKey | None,
    api_key: str | None = None,
) -> UserAPIKeyAuth:
    """Master, admin and service keys: they pay for nothing themselves."""
    kind = routes.kind(request.method, path_of(request))
    if role == "service":
        routes.check(request.method, path_of(request))
    account = None
    if kind == "billed" or PAYER_HEADER in request.headers:
        try:
            account = await _payer(request.headers, accounts)
        except DatabaseError as error:
            raise LedgerUnavailable("Accounts cannot be read at the moment; please try again shortly.") from error
    return _auth(api_key or "uc-master", account, settings, key, role=role)


async def _payer(headers: Mapping[str, str], accounts: Accounts) -> Account:
    user_id = headers.get(PAYER_HEADER, "").strip()
    if not user_id:
        raise _no_payer()
    account = await accounts.account(user_id) if len(user_id) <= 255 and "\0" not in user_id else None
    if account is None:
        raise _no_account(user_id)
    return account


def _auth(
    api_key: str, account: Account | None, settings: Settings, key: ApiKey | None, role: str = "user"
) -> UserAPIKeyAuth:
    tier = settings.tier(account.tier) if account else None
    return UserAPIKeyAuth(
        api_key=hash_token(api_key),
        user_id=account.user_id if account else f"uc-{role}",
        # Set by us, so that neither a body's `user` nor a header can: litellm/proxy/auth/user_api_key_auth.py.
        end_user_id=account.user_id if account else None,
        user_role=LitellmUserRoles.PROXY_ADMIN if role == "admin" else LitellmUserRoles.INTERNAL_USER,
        key_alias=key.name if key else None,
        user_rpm_limit=tier.rpm_limit if tier else None,
        user_tpm_limit=tier.tpm_limit if tier else None,
        metadata={_OURS: _as_metadata(account, key, role)},
    )


def _as_metadata(account: Account | None, key: ApiKey | None, role: str) -> dict[str, Any]:
    return {
        "user_id": account.user_id if account else None,
        "tier": account.tier if account else "free",
        "power_level": account.power_level if account else "balanced",
        "role": role,
        "api_key_id": key.id if key else None,
        "api_key_name": key.name if key else None,
    }


def _as_caller(account: Account, role: str) -> Caller:
    return Caller(account.user_id, account.tier, account.power_level, role)


def _is_master(api_key: str) -> bool:
    master = proxy_server.master_key
    return isinstance(master, str) and hmac.compare_digest(api_key.encode(), master.encode())


def path_of(request: Request) -> str:
    """The path as the application routes it: without the prefix it is mounted under."""
    path = str(request.scope.get("path", ""))
    prefix = str(request.scope.get("root_path", ""))
    return path[len(prefix) :] or "/" if prefix and path.startswith(prefix) else path


def _no_payer() -> Forbidden:
    return Forbidden(
        "This key pays for nothing itself: name the user who pays in the header X-UC-User-Id.", code="payer_missing"
    )


def _no_account(user_id: str) -> Forbidden:
    return Forbidden(
        f"User {user_id!r} has no account here; an operator can make one with 'uc-litellm users add'.",
        code="unknown_account",
    )
