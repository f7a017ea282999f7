"""Access tokens of OpenID Connect providers: whether one is genuine and meant for us, and who it says is calling."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import jwt

from .claims import Login, UnfitClaims, login
from .errors import Unauthorized
from .settings import IssuerSettings
from .signing_keys import SigningKeys, client

logger = logging.getLogger(__name__)

# Nothing longer is read at all. Characters; Keycloak's with many roles have a few thousand, and most servers in front
# take no longer header.
LONGEST_TOKEN = 8_192
_LONGEST_KID = 255
_MOST_REMEMBERED = 20_000
_REQUIRED = ("exp", "iat", "iss", "aud", "sub")
# What a token says it is, in its header and, at Keycloak, in its claim of the same name: not an ID token, not one for
# refreshing or logging out, though the issuer signed it with the same key.
_HEADER_TYPES = (None, "jwt", "at+jwt", "application/at+jwt")
_CLAIMED_TYPES = (None, "bearer", "jwt", "at+jwt")

# What only ID tokens (OpenID Connect Core, 3.1.3.6 and 3.3.2.11) and logout tokens (Back-Channel Logout, 2.4) say, for
# issuers that do not name the type. Cognito's `token_use` is the same by another name.
_OF_OTHERS = frozenset({"at_hash", "c_hash", "s_hash", "events"})


class _Doubt(Exception):
    """Why a token is not taken; for the log."""


@dataclass(frozen=True)
class _Issuer:
    settings: IssuerSettings
    keys: SigningKeys


@dataclass(frozen=True)
class _Remembered:
    issuer: _Issuer
    kid: str
    key: jwt.PyJWK
    login: Login


class Tokens:
    """Tells genuine tokens from others, and remembers those it has seen until they expire.

    Parameters
    ----------
    issuers
        Those that are trusted; with none, nothing is a token.
    asking
        Asks issuers for their keys.
    now
        Seconds since 1970.
    clock
        Seconds from any start, by which the times between requests to issuers are measured.
    """

    def __init__(
        self,
        issuers: Sequence[IssuerSettings],
        asking: httpx.AsyncClient | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        asking = asking or (client() if issuers else None)
        self._issuers = {each.issuer: _Issuer(each, SigningKeys(each, asking, clock)) for each in issuers if asking}
        self._now = now
        self._remembered: dict[bytes, _Remembered] = {}

    def looks_like_one(self, bearer: str) -> bool:
        """Whether it is to be read as a token: three parts with dots between them, and somebody who issues them."""
        return bool(self._issuers) and bearer.count(".") == 2

    def remembered(self, token: str) -> Login | None:
        """Who sent it, if it was found genuine before, its key is still in use and it has not expired."""
        hashed = _hashed(token)
        if (known := self._remembered.get(hashed)) is None:
            return None
        if known.login.expires_at > self._now() and known.issuer.keys.kept(known.kid) is known.key:
            return known.login
        del self._remembered[hashed]
        return None

    async def check(self, token: str) -> Login:
        """Who sends it.

        Raises
        ------
        Unauthorized
            It is not genuine, not for us, or not of this time. The log has the reason.
        IssuerUnavailable
            Its issuer's keys have never been had.
        """
        try:
            return await self._check(token)
        except (_Doubt, jwt.PyJWTError, UnfitClaims, ValueError, TypeError, OverflowError) as error:
            # Messages of others may repeat what stands in the token, so the log gets their names only.
            reason = str(error) if isinstance(error, _Doubt | UnfitClaims) else type(error).__name__
            logger.info("an access token was refused: %s", reason, extra={"action": "token_refused", "reason": reason})
            raise Unauthorized(
                "This access token is not valid here, or no longer: sign in again.",
                code="invalid_token",
                headers={"www-authenticate": 'Bearer error="invalid_token"'},
            ) from None

    async def _check(self, token: str) -> Login:
        issuer, kid = self._look(token)
        key = await issuer.keys.find(kid)
        if key is None:
            raise _Doubt("unknown key")
        claims = _genuine(token, key, issuer.settings)
        found = login(claims, issuer.settings)
        if len(self._remembered) >= _MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[_hashed(token)] = _Remembered(issuer, kid, key, found)
        return found

    def _look(self, token: str) -> tuple[_Issuer, str]:
        """Whose token it claims to be, and by which key; nothing of it is believed yet."""
        if len(token) > LONGEST_TOKEN:
            raise _Doubt("too long")
        header, named = _part(token, 0), _part(token, 1).get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise _Doubt("unknown issuer")
        if header.get("alg") not in issuer.settings.algorithms:
            raise _Doubt("algorithm")
        if _lowered(header.get("typ")) not in _HEADER_TYPES:
            raise _Doubt("not an access token")
        kid = header.get("kid")
        if not isinstance(kid, str) or len(kid) > _LONGEST_KID:
            raise _Doubt("no key named")
        return issuer, kid


def _part(token: str, place: int) -> Mapping[str, Any]:
    """The header (0) or the claims (1) of a token that nobody has checked; PyJWT reads it again, more slowly."""
    encoded = token.split(".")[place]
    try:
        found = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Doubt("unreadable")
    return found


def _genuine(token: str, key: jwt.PyJWK, issuer: IssuerSettings) -> Mapping[str, Any]:
    """The claims of a token that this key signed and that is for us, now."""
    claims = jwt.decode(
        token,
        key,
        algorithms=list(issuer.algorithms),
        audience=issuer.audience,
        issuer=issuer.issuer,
        leeway=issuer.leeway_s,
        options={"require": [*_REQUIRED, *issuer.required_claims], "verify_jti": False},
    )
    if _lowered(claims.get("typ")) not in _CLAIMED_TYPES or not _OF_OTHERS.isdisjoint(claims):
        raise _Doubt("not an access token")
    if claims.get("token_use", "access") != "access":
        raise _Doubt("not an access token")
    _check_party(claims, issuer)
    return claims


def _check_party(claims: Mapping[str, Any], issuer: IssuerSettings) -> None:
    """https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation, points 4 and 5."""
    party, audience = claims.get("azp"), claims["aud"]
    if issuer.azp and party not in issuer.azp:
        raise _Doubt("authorized party")
    if isinstance(audience, list) and len(audience) > 1 and not isinstance(party, str):
        raise _Doubt("no authorized party")


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
