"""Who calls: LiteLLM's `custom_auth`, with our API keys, and who pays, from authentication only."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth, hash_token

from . import inbound, routes
from .accounts import Account, Accounts, ApiKey
from .call import Caller
from .errors import Forbidden, Unauthorized
from .requests import Inbound
from .settings import Settings

PAYER_HEADER = "x-uc-user-id"


@dataclass(frozen=True)
class Identified:
    """A request that we authenticated.

    Attributes
    ----------
    auth
        LiteLLM's idea of the caller.
    caller
        Ours; None for an administrator who names no payer. It travels beside `auth`, in which keys of LiteLLM's own
        could carry whatever their maker wrote.
    inbound
        What was sent.
    """

    auth: UserAPIKeyAuth
    caller: Caller | None
    inbound: Inbound


# Set by our authentication and seen by the hooks of the same request; not set where LiteLLM authenticates itself.
IDENTIFIED: ContextVar[Identified | None] = ContextVar("uc_identified", default=None)


async def authenticate(request: Request, api_key: str | None, accounts: Accounts, settings: Settings) -> Identified:
    """Find out whose key this is, whether it may pass, and who pays.

    Parameters
    ----------
    request
        Its method and path decide whether a user may pass; its `X-UC-User-Id` names the payer for service keys.
    api_key
        As LiteLLM found it in any of its carriers, without `Bearer`.

    Raises
    ------
    Refusal
        401 for an unknown key, 400 or 403 for a route that is not open, 403 where the payer is missing.
    DatabaseError
        PostgreSQL cannot say who it is.
    """
    if not api_key or len(api_key) > 512:
        raise Unauthorized("No API key: send it as 'Authorization: Bearer …' or 'x-api-key: …'.")
    key = None if _is_master(api_key) else await _our_key(api_key, accounts)
    role = key.role if key else "admin"
    if role != "admin":
        routes.check(request.method, path_of(request))
    account = key.account if key and role == "user" else await _named_payer(request, accounts)
    caller = _as_caller(account, role, key) if account else None
    return Identified(_auth(api_key, caller, settings, role), caller, await inbound.read(request, path_of(request)))


async def _our_key(api_key: str, accounts: Accounts) -> ApiKey:
    key = await accounts.api_key(api_key)
    if key is None or not key.is_valid():
        raise Unauthorized("This API key is not known, revoked or expired.")
    return key


async def _named_payer(request: Request, accounts: Accounts) -> Account | None:
    """Whom a master, admin or service key names; such keys pay for nothing themselves."""
    if routes.kind(request.method, path_of(request)) != "billed" and PAYER_HEADER not in request.headers:
        return None
    return await _payer(request.headers, accounts)


async def caller_of_litellms(auth: UserAPIKeyAuth, headers: Mapping[str, str], accounts: Accounts) -> Caller:
    """The payer of a request that LiteLLM authenticated itself: its keys count by their `user_id`.

    Raises
    ------
    Refusal
        401 without a user id, 403 for an administrator who names no payer and for a user without an account.
    """
    if auth.user_role in (LitellmUserRoles.PROXY_ADMIN, LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY):
        return _as_caller(await _payer(headers, accounts), "admin", None)
    if not auth.user_id:
        raise Unauthorized("This key belongs to no user, so nobody can pay: make it with a user_id.")
    account = await accounts.account(auth.user_id)
    if account is None:
        raise _no_account(auth.user_id)
    return _as_caller(account, "user", None)


async def identify(auth: UserAPIKeyAuth, data: Mapping[str, Any], accounts: Accounts) -> tuple[Inbound, Caller]:
    """What was sent and who pays; raises as `caller_of`.

    Parameters
    ----------
    data
        The request as LiteLLM carries it.
    """
    identified = IDENTIFIED.get()
    sent = identified.inbound if identified is not None else inbound.from_litellm(data)
    return sent, await caller_of(auth, sent.headers, accounts)


async def caller_of(auth: UserAPIKeyAuth, headers: Mapping[str, str], accounts: Accounts) -> Caller:
    """Who pays, by our own authentication or by LiteLLM's.

    Raises
    ------
    Refusal
        401 without a user id, 403 for an administrator who names no payer and for a user without an account.
    """
    if (identified := IDENTIFIED.get()) is not None:
        return payer_of(identified)
    return await caller_of_litellms(auth, headers, accounts)


def payer_of(identified: Identified) -> Caller:
    """The payer of a request that we authenticated.

    Raises
    ------
    Forbidden
        An administrator's key named nobody.
    """
    if identified.caller is None:
        raise _no_payer()
    return identified.caller


async def _payer(headers: Mapping[str, str], accounts: Accounts) -> Account:
    user_id = headers.get(PAYER_HEADER, "").strip()
    if not user_id:
        raise _no_payer()
    account = await accounts.account(user_id) if len(user_id) <= 255 and "\0" not in user_id else None
    if account is None:
        raise _no_account(user_id)
    return account


def _auth(api_key: str, caller: Caller | None, settings: Settings, role: str) -> UserAPIKeyAuth:
    tier = settings.tier(caller.tier) if caller else None
    payer = caller.user_id if caller else None
    return UserAPIKeyAuth(
        api_key=hash_token(api_key),
        user_id=payer or f"uc-{role}",
        # Set by us, so that neither a body's `user` nor a header can: litellm/proxy/auth/user_api_key_auth.py.
        end_user_id=payer,
        user_role=LitellmUserRoles.PROXY_ADMIN if role == "admin" else LitellmUserRoles.INTERNAL_USER,
        key_alias=caller.api_key_name if caller else None,
        user_rpm_limit=tier.rpm_limit if tier else None,
        user_tpm_limit=tier.tpm_limit if tier else None,
    )


def _as_caller(account: Account, role: str, key: ApiKey | None) -> Caller:
    return Caller(
        account.user_id,
        account.tier,
        account.power_level,
        role,
        api_key_id=key.id if key else None,
        api_key_name=key.name if key else None,
        downgrade=account.downgrade,
    )


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
