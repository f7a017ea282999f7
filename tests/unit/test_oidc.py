"""Which access tokens are taken, and how often an issuer is asked for its keys."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest

from tests.clock import Clock
from tests.issuer import DISCOVERY, KEYS, Issuer, Json, entry, key, public_pem
from uc_litellm_plugin import oidc
from uc_litellm_plugin.claims import Login
from uc_litellm_plugin.errors import IssuerUnavailable, Unauthorized
from uc_litellm_plugin.oidc import LONGEST_TOKEN, Tokens
from uc_litellm_plugin.settings import IssuerSettings

URL = "https://sso.example.com/realms/acme"


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(URL)


@pytest.fixture
def clock() -> Clock:
    """The time that intervals are measured by."""
    return Clock(1000.0)


def settings(**changed: Any) -> IssuerSettings:
    return IssuerSettings.model_validate({"issuer": URL, "audience": "uc", **changed})


def tokens(issuer: Issuer, **changed: Any) -> Tokens:
    return Tokens([settings(**changed)], issuer.client())


def timed(issuer: Issuer, clock: Clock, **changed: Any) -> Tokens:
    """Those whose intervals are measured by this clock."""
    return Tokens([settings(**changed)], issuer.client(), clock=clock)


async def reason(checking: Tokens, token: str, caplog: pytest.LogCaptureFixture) -> str:
    """Why the log says that a token was refused; its sender learns nothing of that."""
    caplog.clear()
    with caplog.at_level(logging.INFO, oidc.__name__), pytest.raises(Unauthorized) as caught:
        await checking.check(token)
    assert caught.value.message == "This access token is not valid here, or no longer: sign in again."
    assert caught.value.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    told = [str(vars(record)["reason"]) for record in caplog.records if vars(record).get("action") == "token_refused"]
    assert len(told) == 1
    assert all(part not in caplog.text for part in token.split(".") if len(part) > 20)
    return told[0]


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
async def test_a_good_token(issuer: Issuer, kid: str) -> None:
    """A token of either algorithm says who it is, and is remembered until it expires."""
    clock = Clock(time.time())
    checking = Tokens([settings()], issuer.client(), clock)
    token = issuer.token(kid)
    assert checking.remembered(token) is None
    login = await checking.check(token)
    assert (login.user_id, login.role, login.tier, login.app) == ("ann", "user", None, "web")
    assert checking.remembered(token) is login
    clock.now = login.expires_at
    assert checking.remembered(token) is None


def part(value: Json | bytes) -> str:
    """One of a token's three parts."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed_with_public_key(issuer: Issuer) -> str:
    """HS256 with the public key for a secret: what a library accepts that believes the header."""
    signing = f"{part({'alg': 'HS256', 'kid': 'rsa-1', 'typ': 'JWT'})}.{part(issuer.claims())}"
    return f"{signing}.{part(hmac.digest(public_pem('rsa-1'), signing.encode(), 'sha256'))}"


def unsigned(issuer: Issuer, algorithm: str = "none") -> str:
    return f"{part({'alg': algorithm, 'kid': 'rsa-1'})}.{part(issuer.claims())}."


def altered(issuer: Issuer) -> str:
    """Another one's claims under a good signature."""
    header, _, signature = issuer.token().split(".")
    return f"{header}.{issuer.token(sub='bob').split('.')[1]}.{signature}"


NOW = int(time.time())
REFUSED: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "wrong issuer": (lambda i: i.token(iss="https://evil.example.com"), "unknown issuer"),
    "issuer with a slash more": (lambda i: i.token(iss=f"{URL}/"), "unknown issuer"),
    "no issuer": (lambda i: i.token(iss=None), "unknown issuer"),
    "issuers in a list": (lambda i: unlisted(i, iss=[URL]), "unknown issuer"),
    "wrong audience": (lambda i: i.token(aud="other"), "InvalidAudienceError"),
    "no audience": (lambda i: i.token(aud=None), "MissingRequiredClaimError"),
    "audience of another type": (lambda i: unlisted(i, aud={"uc": 1}), "InvalidAudienceError"),
    "expired": (lambda i: i.token(exp=NOW - 3600), "ExpiredSignatureError"),
    "no expiry": (lambda i: i.token(exp=None), "MissingRequiredClaimError"),
    "endless": (lambda i: i.token(exp=float("inf")), "DecodeError"),
    "expiry is text": (lambda i: unlisted(i, exp="tomorrow"), "DecodeError"),
    "not yet valid": (lambda i: i.token(nbf=NOW + 3600), "ImmatureSignatureError"),
    "issued in the future": (lambda i: i.token(iat=NOW + 3600), "ImmatureSignatureError"),
    "no issuing": (lambda i: i.token(iat=None), "MissingRequiredClaimError"),
    "no subject": (lambda i: i.token(sub=None), "MissingRequiredClaimError"),
    "subject is a number": (lambda i: unlisted(i, sub=5), "InvalidSubjectError"),
    "control character in the subject": (lambda i: i.token(sub="a\nb"), "unfit user"),
    "endless subject": (lambda i: i.token(sub="a" * 256), "unfit user"),
    "several audiences, no party": (lambda i: i.token(aud=["uc", "account"], azp=None), "no authorized party"),
    "unsigned": (unsigned, "algorithm"),
    "unsigned under another name": (lambda i: unsigned(i, "None"), "algorithm"),
    "signature missing": (lambda i: unsigned(i, "RS256"), "InvalidSignatureError"),
    "HS256 with the public key": (signed_with_public_key, "algorithm"),
    "another algorithm of the same key": (
        lambda i: jwt.encode(i.claims(), key("rsa-1"), "RS512", headers={"kid": "rsa-1"}), "algorithm"),
    "algorithm of another key": (
        lambda i: jwt.encode(i.claims(), key("rsa-1"), "RS256", headers={"kid": "ec-1"}), "InvalidAlgorithmError"),
    "forged": (lambda i: jwt.encode(i.claims(), key("rsa-2"), "RS256", headers={"kid": "rsa-1"}),
               "InvalidSignatureError"),
    "altered": (altered, "InvalidSignatureError"),
    "unknown key": (lambda i: i.token("rsa-2"), "unknown key"),
    "no key named": (lambda i: jwt.encode(i.claims(), key("rsa-1"), "RS256"), "no key named"),
    "endless key name": (lambda i: i.token(headers={"kid": "k" * 300}), "no key named"),
    "ID token": (lambda i: i.token(typ="ID"), "not an access token"),
    "refresh token": (lambda i: i.token(typ="Refresh"), "not an access token"),
    "logout token without a type": (lambda i: i.token(events={}), "not an access token"),
    "ID token without a type": (lambda i: i.token(at_hash="x"), "not an access token"),
    "ID token of Cognito": (lambda i: i.token(token_use="id"), "not an access token"),
    "logout token": (lambda i: i.token(headers={"typ": "logout+jwt"}), "not an access token"),
    "critical extension": (lambda i: i.token(headers={"crit": ["x"], "x": 1}), "InvalidTokenError"),
    "huge": (lambda i: i.token(more="x" * LONGEST_TOKEN), "too long"),
    "huge garbage": (lambda i: "a" * 1_000_000 + ".b.c", "too long"),
    "nested": (lambda i: base64.urlsafe_b64encode(b"[" * 6_000).decode() + ".e30.e30", "unreadable"),
    "dots": (lambda i: "..", "unreadable"),
    "garbage": (lambda i: "a.b.c", "unreadable"),
    "not ASCII": (lambda i: "é.ü.ß", "unreadable"),
    "lone surrogates": (lambda i: "\udcff.\udcff.\udcff", "unreadable"),
    "claims are a list": (lambda i: signed(b"[]"), "unreadable"),
    "claims are no JSON": (lambda i: signed(b"\xff"), "unreadable"),
}  # fmt: skip


def signed(claims: bytes) -> str:
    """A genuine signature over anything."""
    return jwt.PyJWS().encode(claims, key("rsa-1"), "RS256", headers={"kid": "rsa-1"})


def unlisted(issuer: Issuer, **changed: Any) -> str:
    """A genuine signature over claims that the library would not sign."""
    return signed(json.dumps(issuer.claims(**changed)).encode())


@pytest.mark.parametrize("name", REFUSED)
async def test_a_token_that_is_not_taken(issuer: Issuer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is a 401 whose reason stands in the log alone, and the issuer is asked at most once."""
    make, why = REFUSED[name]
    checking, token = tokens(issuer), make(issuer)
    for _ in range(2):
        assert await reason(checking, token, caplog) == why
        assert checking.remembered(token) is None
    assert issuer.asked[KEYS] <= 1
    assert issuer.asked[DISCOVERY] <= 1


async def test_what_is_asked_beyond_the_standard(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Clients, algorithms and further claims are limited by the settings."""
    checking = tokens(issuer, azp="web", algorithms="ES256", required_claims=["scope"])
    assert (await checking.check(issuer.token("ec-1", scope="x"))).user_id == "ann"
    assert await reason(checking, issuer.token("ec-1", scope="x", azp="other"), caplog) == "authorized party"
    assert await reason(checking, issuer.token("ec-1", scope="x", azp=None), caplog) == "authorized party"
    assert await reason(checking, issuer.token("rsa-1", scope="x"), caplog) == "algorithm"
    assert await reason(checking, issuer.token("ec-1"), caplog) == "MissingRequiredClaimError"


async def test_leeway(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """Clocks may be apart by as much as the settings say."""
    now = time.time()
    late, early = issuer.token(exp=int(now - 20)), issuer.token(nbf=int(now + 20), iat=int(now + 20))
    for token in (late, early):
        assert (await tokens(issuer, leeway_s=60).check(token)).user_id == "ann"
        assert await reason(tokens(issuer, leeway_s=0), token, caplog)


@pytest.mark.parametrize(("bearer", "is_one"), [("a.b.c", True), ("sk-uc-abc", False), ("a.b", False), ("...", False)])
async def test_what_looks_like_a_token(issuer: Issuer, bearer: str, is_one: bool) -> None:
    """Two dots make a token, where anybody issues tokens; else all are API keys."""
    assert tokens(issuer).looks_like_one(bearer) is is_one
    assert Tokens([]).looks_like_one(bearer) is False


async def test_two_issuers(caplog: pytest.LogCaptureFixture) -> None:
    """A token counts for the issuer that it names, and by that one's keys alone."""
    ours, theirs = Issuer(URL, "rsa-1"), Issuer("https://other.example.com", "rsa-2")

    def handle(request: httpx.Request) -> httpx.Response:
        asked = ours if str(request.url).startswith(ours.url) else theirs
        status, body = asked.answer(str(request.url).removeprefix(asked.url))
        return httpx.Response(status, content=body)

    prefixed = [settings(user_prefix="a:"), settings(issuer=theirs.url, user_prefix="b:")]
    checking = Tokens(prefixed, httpx.AsyncClient(transport=httpx.MockTransport(handle)))
    assert (await checking.check(ours.token("rsa-1"))).user_id == "a:ann"
    assert (await checking.check(theirs.token("rsa-2"))).user_id == "b:ann"
    assert await reason(checking, theirs.token("rsa-2", iss=ours.url), caplog) == "unknown key"


async def test_a_flood_of_unknown_keys(issuer: Issuer, clock: Clock) -> None:
    """Whatever keys tokens name, at once or one after the other, the issuer is asked once in an interval."""
    checking = timed(issuer, clock, keys_interval_s=10)
    await checking.check(issuer.token())
    forged = [issuer.token(headers={"kid": f"k{n}"}) for n in range(40)]
    for interval in range(3):
        gathered = await asyncio.gather(*map(checking.check, forged), return_exceptions=True)
        assert {type(each) for each in gathered} == {Unauthorized}
        for token in forged[:10]:
            with pytest.raises(Unauthorized):
                await checking.check(token)
        assert issuer.asked[KEYS] == issuer.asked[DISCOVERY] == interval + 1
        clock.now += 10


async def test_rotated_keys(issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A new key is found when a token first names it; a withdrawn one ends with the next look, remembered or not."""
    checking = timed(issuer, clock, keys_interval_s=10, keys_refresh_s=300)
    old = issuer.token("rsa-1")
    await checking.check(old)
    issuer.keys = [entry("rsa-2"), *issuer.keys]
    clock.now += 10
    assert (await checking.check(issuer.token("rsa-2"))).user_id == "ann"
    assert checking.remembered(old) is not None
    issuer.keys = [entry("rsa-2")]
    clock.now += 301
    assert checking.remembered(old) is not None
    await until(lambda: issuer.asked[KEYS] == 3 and checking.remembered(old) is None)
    assert await reason(checking, old, caplog) == "unknown key"


async def test_a_key_that_changes_under_its_name(issuer: Issuer, clock: Clock) -> None:
    """What another key of the same name signed is not genuine any more."""
    checking = timed(issuer, clock, keys_refresh_s=300)
    old = issuer.token("rsa-1")
    await checking.check(old)
    issuer.keys = [{**entry("rsa-2"), "kid": "rsa-1"}]
    clock.now += 301
    await until(lambda: checking.remembered(old) is None)
    with pytest.raises(Unauthorized):
        await checking.check(old)


async def test_the_issuer_is_away(issuer: Issuer, clock: Clock) -> None:
    """Before it was ever reached it is a 503 that says when to try again; afterwards the known keys stay in use."""
    issuer.down = True
    checking = timed(issuer, clock, keys_interval_s=10, keys_refresh_s=300)
    for _ in range(5):
        with pytest.raises(IssuerUnavailable) as caught:
            await checking.check(issuer.token())
    assert caught.value.headers["retry-after"] == "10"
    assert issuer.asked[DISCOVERY] == 1
    issuer.down = False
    clock.now += 10
    await checking.check(issuer.token())
    issuer.down = True
    for _ in range(10):
        clock.now += 10_000
        assert (await checking.check(issuer.token(jti=str(clock.now)))).user_id == "ann"
    with pytest.raises(Unauthorized):
        await checking.check(issuer.token("rsa-2"))


async def test_one_request_for_all(issuer: Issuer) -> None:
    """However many come first at once, the issuer is asked once, and who leaves takes nobody's answer along."""
    checking = tokens(issuer)
    tasks = [asyncio.create_task(checking.check(issuer.token(jti=str(n)))) for n in range(50)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    gathered = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(gathered[0], asyncio.CancelledError)
    assert all(isinstance(each, Login) for each in gathered[1:])
    assert (issuer.asked[DISCOVERY], issuer.asked[KEYS]) == (1, 1)


JUNK: list[Any] = [
    5, {}, {"kty": "RSA"}, {"kty": [], "kid": "rsa-1"}, {"kty": "RSA", "kid": "rsa-1", "n": 5, "e": []},
    {"kty": "oct", "kid": "rsa-1", "k": "c2VjcmV0", "alg": "HS256"}, {"kty": "EC", "kid": "rsa-1", "crv": "P-384"},
    entry("rsa-1", use="enc"), entry("rsa-1", key_ops=["encrypt"]), entry("rsa-1", alg="RS512"), entry("rsa-1", kid=7),
    {**entry("short"), "kid": "rsa-1"},
]  # fmt: skip
BAD_ANSWERS: dict[str, Callable[[Issuer], None]] = {
    "discovery of another issuer": lambda i: i.discovery.update(issuer="https://evil.example.com"),
    "keys by plain http": lambda i: i.discovery.update(jwks_uri="http://sso.example.com/certs"),
    "keys nowhere": lambda i: i.discovery.pop("jwks_uri") and None,
    "keys at no address": lambda i: i.discovery.update(jwks_uri="https://[/"),
    "no keys": lambda i: i.keys.clear(),
    "keys of no use": lambda i: setattr(i, "keys", JUNK),
    "too much": lambda i: i.discovery.update(more="x" * 2_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_what_an_issuer_may_answer(issuer: Issuer, name: str) -> None:
    """An answer that cannot be used leaves nobody signed in, and no error but a 503."""
    BAD_ANSWERS[name](issuer)
    with pytest.raises(IssuerUnavailable):
        await tokens(issuer).check(issuer.token())


async def test_keys_among_others(issuer: Issuer) -> None:
    """What cannot be used does not stand in the way of what can."""
    issuer.keys = [*JUNK, *issuer.keys]
    for kid in ("rsa-1", "ec-1"):
        assert (await tokens(issuer).check(issuer.token(kid))).user_id == "ann"


async def test_a_private_key_that_is_published(issuer: Issuer) -> None:
    """An entry with more than the public parts is used for its public ones."""
    private = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(key("rsa-1")))
    issuer.keys = [{**private, "kid": "rsa-1", "key_ops": ["sign", "verify"]}]
    assert "d" in private
    assert (await tokens(issuer).check(issuer.token())).user_id == "ann"


async def test_memory_is_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest tokens are forgotten, not the newest."""
    monkeypatch.setattr(oidc, "_MOST_REMEMBERED", 3)
    checking = tokens(issuer)
    made = [issuer.token(jti=str(n)) for n in range(5)]
    for token in made:
        await checking.check(token)
    assert [checking.remembered(token) is not None for token in made] == [False, False, True, True, True]


async def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Lets others run until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
