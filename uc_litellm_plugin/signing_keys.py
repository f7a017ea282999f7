"""The public keys by which an issuer's access tokens are known, and how they are had without asking too often."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import jwt

from .errors import IssuerUnavailable
from .settings import IssuerSettings
from .settings_oidc import may_ask

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
_LARGEST_ANSWER = 1_000_000
_MOST_KEYS = 100
# https://www.rfc-editor.org/rfc/rfc7518#section-3.3 wants 2048 bits at least; beyond the other, checking takes long.
_RSA_BITS = range(2048, 8193)
# Of an entry, what a public key is made of. With more, PyJWT would take it for a private one.
_PUBLIC = {"RSA": ("kty", "kid", "n", "e"), "EC": ("kty", "kid", "crv", "x", "y")}
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}

Json = Mapping[str, Any]


class Unusable(ValueError):
    """What the issuer answered cannot be used; the message says why."""


class SigningKeys:
    """One issuer's keys, asked for by discovery and kept while the issuer is away.

    However many requests come and whatever keys their tokens name, the issuer is asked once at a time, and once in
    `keys_interval_s`.

    Parameters
    ----------
    issuer
        Whose keys.
    client
        Asks the issuer.
    clock
        Seconds, from any start.
    """

    def __init__(self, issuer: IssuerSettings, client: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._client = client
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._entries: dict[str, Json] = {}
        self._read_at = -math.inf
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def kept(self, kid: str) -> jwt.PyJWK | None:
        """The key of this name as far as it is known; keys that are old are asked for again meanwhile."""
        if self._keys and self._clock() - self._read_at > self._issuer.keys_refresh_s:
            self._ask()
        return self._keys.get(kid)

    async def find(self, kid: str) -> jwt.PyJWK | None:
        """The key of this name, None where the issuer has no such; it may be a new one, so the issuer may be asked.

        Raises
        ------
        IssuerUnavailable
            The issuer has never answered.
        """
        if (known := self.kept(kid)) is not None:
            return known
        if (asking := self._ask()) is not None:
            # Shielded: whoever leaves must not take the others' answer along.
            await asyncio.shield(asking)
        if not self._keys:
            raise IssuerUnavailable(
                "The sign-in service cannot be reached; please try again shortly.", retry_after_s=self._again_in_s()
            )
        return self._keys.get(kid)

    def _again_in_s(self) -> int:
        return max(1, math.ceil(self._asked_at + self._issuer.keys_interval_s - self._clock()))

    def _ask(self) -> asyncio.Task[None] | None:
        """The request that is under way, or one that may be made now."""
        if self._asking is not None and not self._asking.done():
            return self._asking
        if self._clock() - self._asked_at < self._issuer.keys_interval_s:
            return None
        self._asked_at = self._clock()
        self._asking = asyncio.create_task(self._refresh())
        return self._asking

    async def _refresh(self) -> None:
        try:
            entries = await asyncio.wait_for(self._download(), TIMEOUT_S)
            self._take(entries)
        except Exception as error:
            # Whatever an issuer answers, or its network: requests go on with the keys that are known.
            logger.warning(
                "the keys of %s cannot be had, %s: %s: %s", self._issuer.issuer,
                "those known stay in use" if self._keys else "nobody can sign in", type(error).__name__, error,
                extra={"action": "issuer_unavailable"},
            )  # fmt: skip

    async def _download(self) -> list[Any]:
        where = f"{self._issuer.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = await self._get(where)
        if found.get("issuer") != self._issuer.issuer:
            raise Unusable(f"{where} is of another issuer; write its issuer into the settings, to the letter")
        keys_at = found.get("jwks_uri")
        if not isinstance(keys_at, str) or not may_ask(keys_at, allow_http=self._issuer.allow_http):
            raise Unusable(f"{where} names no jwks_uri that begins with https://")
        entries = (await self._get(keys_at)).get("keys")
        if not isinstance(entries, list):
            raise Unusable(f"{keys_at} lists no keys")
        return entries[:_MOST_KEYS]

    async def _get(self, url: str) -> Json:
        async with self._client.stream("GET", url, headers={"accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise Unusable(f"{url} answered {answer.status_code}")
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _LARGEST_ANSWER:
                    raise Unusable(f"{url} answered more than {_LARGEST_ANSWER} bytes")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Unusable(f"{url} answered no JSON object")
        return found

    def _take(self, entries: list[Any]) -> None:
        usable = {entry["kid"]: entry for entry in entries if _is_usable(entry, self._issuer.algorithms)}
        keys = {}
        for kid, entry in usable.items():
            # The same object while it is the same key: tokens that were found genuine by it stay so.
            same = self._entries.get(kid) == entry
            if (key := self._keys.get(kid) if same else _made(entry)) is not None:
                keys[kid] = key
        if not keys:
            raise Unusable("none of its keys can be used")
        if keys != self._keys:
            logger.info("the keys of %s: %s", self._issuer.issuer, ", ".join(repr(kid)[:80] for kid in keys))
        self._keys, self._entries, self._read_at = keys, usable, self._clock()


def client() -> httpx.AsyncClient:
    """For asking issuers: no redirects, since they could lead anywhere."""
    return httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)


def _is_usable(entry: Any, algorithms: tuple[str, ...]) -> bool:
    """Whether an entry of a key set is a public key for signatures by one of these algorithms."""
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC") or not isinstance(entry.get("kid"), str):
        return False
    algorithm = _ALGORITHMS[entry["kty"]]
    operations = entry.get("key_ops")
    return (
        algorithm in algorithms
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
    )


def _made(entry: Json) -> jwt.PyJWK | None:
    kind = entry["kty"]
    public = {name: entry[name] for name in _PUBLIC[kind] if name in entry}
    try:
        key = jwt.PyJWK(public, _ALGORITHMS[kind])
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return key if kind == "EC" or key.key.key_size in _RSA_BITS else None
