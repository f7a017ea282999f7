"""Whose API key or access token a request carries."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from .accounts import Account, Accounts, ApiKey
from .api_keys import hash_key
from .claims import Login
from .errors import Forbidden, Unauthorized
from .oidc import Tokens
from .settings import Settings
from .throttle import Throttle, client_address, networks

MASTER = "master"
_LONGEST_KEY = 512


@dataclass(frozen=True)
class Actor:
    """Who acts, which need not be who pays.

    Attributes
    ----------
    name
        The user id of the key's or token's own account; `master` for LiteLLM's master key.
    role
        user, service or admin.
    key_id
        Of one of our API keys.
    """

    name: str
    role: str
    key_id: str | None = None


@dataclass(frozen=True)
class Bearer:
    """A key or token that was found to be somebody's.

    Attributes
    ----------
    account
        Its own; None for the master key.
    app
        What it was given to: the API key's name, or the app that the token names.
    hashed
        Stands for it in LiteLLM's logs and counters; tokens of one user have the same.
    """

    actor: Actor
    account: Account | None
    app: str | None
    hashed: str


class Bearers:
    """Finds out whose key or token it is; one per worker.

    Parameters
    ----------
    accounts, throttle
        Of the worker.
    settings
        Of the process.
    master_key
        Returns LiteLLM's; it is read anew each time.
    """

    def __init__(
        self, accounts: Accounts, settings: Settings, throttle: Throttle, master_key: Callable[[], object]
    ) -> None:
        self._accounts = accounts
        self._throttle = throttle
        self._master_key = master_key
        self._tokens = Tokens(settings.oidc)
        self._address_header = settings.limits.address_header
        self._proxies = networks(settings.limits.trusted_proxies)

    async def find(self, request: Request, bearer: str) -> Bearer:
        """Whose it is.

        Raises
        ------
        Refusal
            401 for what nobody has, 403 for who may act for nobody any more, 429 after too many guesses, 503 while
            nobody can say whether a token is genuine.
        DatabaseError
            PostgreSQL cannot say.
        """
        if self._tokens.looks_like_one(bearer) and not self._is_master(bearer):
            return await self._of_token(bearer)
        if (key := self._accounts.known_key(bearer)) is not None:
            return _of_key(key)
        guess = self._throttle.guess(self._address(request), bearer)
        if self._is_master(bearer):
            return Bearer(Actor(MASTER, "admin"), None, None, hash_key(bearer))
        found = await self._accounts.api_key(bearer) if len(bearer) <= _LONGEST_KEY else None
        if found is None or not found.is_valid():
            self._throttle.wrong(guess)
            raise Unauthorized("This API key is not known, revoked or expired.")
        return _of_key(found)

    async def _of_token(self, token: str) -> Bearer:
        login = self._tokens.remembered(token)
        is_new = login is None
        if login is None:
            login = await self._tokens.check(token)
        account = await self._account(login, is_new=is_new)
        actor = Actor(account.user_id, login.role)
        _check_active(actor, account)
        return Bearer(actor, account, login.app, hash_key(f"token of {account.user_id}"))

    async def _account(self, login: Login, *, is_new: bool) -> Account:
        """The account; a token that is seen for the first time makes it, or gives it the tier that it names."""
        account = await self._accounts.account(login.user_id)
        if account is not None and not (is_new and login.tier not in (None, account.tier)):
            return account
        return await self._accounts.login(login.user_id, login.tier, login.welcome, login.issued_at)

    def _is_master(self, bearer: str) -> bool:
        master = self._master_key()
        # Compared by their hashes, so that not even the length shows in the time.
        return isinstance(master, str) and hmac.compare_digest(hash_key(bearer), hash_key(master))

    def _address(self, request: Request) -> str:
        named = request.headers.getlist(self._address_header) if self._address_header else ()
        return client_address(request.client.host if request.client else None, named, self._proxies)


def _of_key(key: ApiKey) -> Bearer:
    actor = Actor(key.account.user_id, key.role, key.id)
    _check_active(actor, key.account)
    return Bearer(actor, key.account, key.name, key.hashed)


def _check_active(actor: Actor, account: Account) -> None:
    """A user whose account is suspended may still look; one who acts for others may do nothing."""
    if actor.role != "user" and account.status != "active":
        raise Forbidden("This account is not active; ask the operator.", code=f"account_{account.status}")
