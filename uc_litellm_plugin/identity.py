"""Who calls: LiteLLM's `custom_auth`, with API keys and access tokens, and who pays, from authentication only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth

from . import inbound, routes
from .accounts import Account, Accounts
from .bearers import MASTER, Actor, Bearer, Bearers
from .call import Caller
from .errors import Forbidden, Unauthorized
from .requests import Inbound
from .settings import Settings
from .throttle import Throttle

logger = logging.getLogger(__name__)

PAYER_HEADER = "x-uc-user-id"
_BLANK = UserAPIKeyAuth()
_WRITTEN_INTO = {name: value for name, value in _BLANK.__dict__.items() if isinstance(value, list | dict | set)}
_ADMINISTRATORS = (LitellmUserRoles.PROXY_ADMIN, LitellmUserRoles.PROXY_ADMIN_VIEW_ONLY)


@dataclass(frozen=True)
class Identified:
    """A request that we authenticated.

    Attributes
    ----------
    auth
        LiteLLM's idea of the caller.
    caller
        Ours; None for an administrator or a service that names no payer. It travels beside `auth`, in which keys of
        LiteLLM's own could carry whatever their maker wrote.
    inbound
        What was sent.
    actor
        Whose key or token it was.
    """

    auth: UserAPIKeyAuth
    caller: Caller | None
    inbound: Inbound
    actor: Actor


# Set by our authentication and seen by the hooks of the same request; not set where LiteLLM authenticates itself.
IDENTIFIED: ContextVar[Identified | None] = ContextVar("uc_identified", default=None)


class Authentication:
    """Finds out who calls, whether they may pass, and who pays; one per worker.

    Parameters
    ----------
    accounts
        Of the worker.
    settings
        Of the process.
    """

    def __init__(self, accounts: Accounts, settings: Settings) -> None:
        self._accounts = accounts
        self._settings = settings
        self._throttle = Throttle(settings.limits)
        self._bearers = Bearers(accounts, settings, self._throttle, lambda: proxy_server.master_key)

    async def authenticate(self, request: Request, bearer: str | None) -> Identified:
        """Whose request this is.

        Parameters
        ----------
        request
            Its method and path decide who may pass; its `X-UC-User-Id` names the payer for services and administrators.
        bearer
            An API key, an access token or the master key, as LiteLLM found it in any of its carriers, without `Bearer`.

        Raises
        ------
        Refusal
            401 for who is not known, 400 or 403 for a route that is not open, 403 where the payer is missing, 429 for
            who guesses or asks too often, 503 while nobody can say whether a token is genuine.
        DatabaseError
            PostgreSQL cannot say who it is.
        """
        if not bearer:
            raise Unauthorized("No API key: send it as 'Authorization: Bearer …' or 'x-api-key: …'.")
        known = await self._bearers.find(request, bearer)
        path, role = path_of(request), known.actor.role
        if role != "admin":
            routes.check(request.method, path, role)
        if path.startswith(routes.API_PREFIX):
            self._throttle.pace(f"{role} {known.actor.name}")
        account = known.account if role == "user" else await self._named_payer(request, known)
        caller = _as_caller(account, known) if account else None
        auth = _auth(known, caller, self._settings)
        return Identified(auth, caller, await inbound.read(request, path), known.actor)

    async def _named_payer(self, request: Request, known: Bearer) -> Account | None:
        """Whom a master, admin or service key names; such keys pay for nothing themselves."""
        path = path_of(request)
        if routes.kind(request.method, path) != "billed" and PAYER_HEADER not in request.headers:
            return None
        payer = await _payer(request.headers, self._accounts)
        actor = known.actor
        logger.info(
            "%s %s (key %s) acts for %s: %s %s",
            actor.role, actor.name, actor.key_id, payer.user_id, request.method, routes.shown(path),
            extra={"action": "acts_for", "role": actor.role, "actor": actor.name, "key_id": actor.key_id,
                   "payer": payer.user_id, "method": request.method, "path": path},
        )  # fmt: skip
        return payer


async def caller_of_litellms(auth: UserAPIKeyAuth, headers: Mapping[str, str], accounts: Accounts) -> Caller:
    """The payer of a request that LiteLLM authenticated itself: its keys count by their `user_id`.

    Raises
    ------
    Refusal
        401 without a user id, 403 for an administrator who names no payer and for a user without an account.
    """
    if auth.user_role in _ADMINISTRATORS:
        return _as_caller(await _payer(headers, accounts), _of_litellms(auth))
    if not auth.user_id:
        raise Unauthorized("This key belongs to no user, so nobody can pay: make it with a user_id.")
    account = await accounts.account(auth.user_id)
    if account is None:
        raise _no_account(auth.user_id)
    return _as_caller(account, _of_litellms(auth))


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


def actor_of(auth: UserAPIKeyAuth) -> Actor:
    """Who acts, by our own authentication or by LiteLLM's."""
    identified = IDENTIFIED.get()
    return identified.actor if identified is not None else _of_litellms(auth).actor


async def _payer(headers: Mapping[str, str], accounts: Accounts) -> Account:
    user_id = _as_written(headers.get(PAYER_HEADER, "")).strip(" \t")
    if not user_id:
        raise _no_payer()
    account = await accounts.account(user_id) if len(user_id) <= 255 and "\0" not in user_id else None
    if account is None:
        raise _no_account(user_id)
    return account


def _as_written(value: str) -> str:
    """A header's text: clients write UTF-8 (curl, Go) or Latin-1 (`fetch`), and Starlette reads all as Latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _auth(known: Bearer, caller: Caller | None, settings: Settings) -> UserAPIKeyAuth:
    tier = settings.tier(caller.tier) if caller else None
    payer, role = caller.user_id if caller else None, known.actor.role
    return _filled_in(
        api_key=known.hashed,
        token=known.hashed,
        user_id=payer or f"uc-{role}",
        # Set by us, so that neither a body's `user` nor a header can: litellm/proxy/auth/user_api_key_auth.py.
        end_user_id=payer,
        user_role=LitellmUserRoles.PROXY_ADMIN if role == "admin" else LitellmUserRoles.INTERNAL_USER,
        key_alias=known.app if caller else None,
        user_rpm_limit=tier.rpm_limit if tier else None,
        user_tpm_limit=tier.tpm_limit if tier else None,
    )


def _filled_in(**fields: Any) -> UserAPIKeyAuth:
    """A copy of a blank: to check its 120 fields takes a tenth of a millisecond of each call. LiteLLM writes into its
    lists and dicts, so that each has its own."""
    made = _BLANK.model_copy(update=fields)
    made.__dict__.update({name: value.copy() for name, value in _WRITTEN_INTO.items()})
    return made


def _as_caller(account: Account, known: Bearer) -> Caller:
    return Caller(
        account.user_id,
        account.tier,
        account.power_level,
        known.actor.role,
        api_key_id=known.actor.key_id,
        api_key_name=known.app,
        downgrade=account.downgrade,
        acted_by=None if known.actor.role == "user" else known.actor.name,
    )


def _of_litellms(auth: UserAPIKeyAuth) -> Bearer:
    role = "admin" if auth.user_role in _ADMINISTRATORS else "user"
    name = auth.user_id if auth.user_id and auth.user_id != proxy_server.litellm_proxy_admin_name else MASTER
    return Bearer(Actor(name, role), None, None, str(auth.api_key))


def path_of(request: Request) -> str:
    """The path as the application routes it: without the prefix it is served under.

    What is mounted within it (MCP) is no prefix: there Starlette's `root_path` has the mount, too.
    """
    path = str(request.scope.get("path", ""))
    prefix = str(request.scope.get("app_root_path", request.scope.get("root_path", ""))).rstrip("/")
    return path[len(prefix) :] or "/" if prefix and f"{path}/".startswith(f"{prefix}/") else path


def _no_payer() -> Forbidden:
    return Forbidden(
        "This key pays for nothing itself: name the user who pays in the header X-UC-User-Id.", code="payer_missing"
    )


def _no_account(user_id: str) -> Forbidden:
    return Forbidden(
        f"User {user_id!r} has no account here; an operator can make one with 'uc-litellm users add'.",
        code="unknown_account",
    )
