"""Access tokens at the real proxy: who signs in has one account, whichever way and at whichever worker they come."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.acceptance import prices
from tests.acceptance.asking import ASKS, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.workers import at_each_worker
from tests.issuer import KEYS, Issuer, RunningIssuer, entry, key
from tests.pace import Seconds
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

BALANCE = "/api/v1/credits/balance"
# No test takes so long.
INTERVAL_S = 86_400
WORKERS = 2
PAYER = "x-uc-user-id"
FAILED_PER_MINUTE = 10


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """A provider in this process. No Keycloak is there; its claims are as Keycloak makes them."""
    with RunningIssuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Two workers that trust the issuer, and believe this machine who its client is."""
    signing_in = {
        "issuer": issuer.url, "audience": "uc", "allow_http": True, "keys_interval_s": INTERVAL_S,
        "tier_claim": "plan", "role_claim": "realm_access.roles", "roles": {"uc-admin": "admin", "uc-bot": "service"},
        "welcome_credits": {"free": 5, "starter": "20.5"},
    }  # fmt: skip
    limits = {"failed_keys_per_minute": FAILED_PER_MINUTE, "address_header": "x-forwarded-for",
              "trusted_proxies": ["127.0.0.1"]}  # fmt: skip
    settings = tmp_path_factory.mktemp("oidc") / "uc.yaml"
    settings.write_text(yaml.safe_dump({"oidc": signing_in, "limits": limits}))
    with paid_proxy(bank.url, config(running.url), workers=WORKERS, UC_CONFIG=str(settings)) as proxy:
        yield proxy


class Person:
    """Somebody who signs in at the issuer."""

    def __init__(self, issuer: Issuer, **claims: Any) -> None:
        self.user_id = str(uuid.uuid4())
        self._issuer = issuer
        self._claims = claims

    def account(self, **claims: Any) -> Account:
        """An account whose key is a new token."""
        made = {"sub": self.user_id, "jti": str(uuid.uuid4()), **self._claims, **claims}
        return Account(self.user_id, self._issuer.token(**made), "")


def roles(*names: str) -> Json:
    return {"realm_access": {"roles": ["offline_access", *names]}}


def get(proxy: Proxy, account: Account, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{proxy.url}{path}", headers={**account.headers, **headers}, trust_env=False, timeout=60)


def chat(proxy: Proxy, account: Account, **headers: str) -> httpx.Response:
    path, body = request("chat")
    return post(proxy, {**account.headers, **headers}, path, body)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def at_once(count: int, ask: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """The answers to as many at the same time; each has a connection of its own, so that both workers get some."""
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(ask) for _ in range(count)]]


def test_first_login(proxy: Proxy, bank: Bank, issuer: Issuer) -> None:
    """Twenty requests at once of somebody new make one account with one welcome, and all are answered."""
    person = Person(issuer, plan="starter")
    account = person.account()
    answers = at_once(20, lambda: get(proxy, account, BALANCE))
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    (row,) = bank.rows("SELECT tier, status FROM user_credits WHERE user_id = $1", person.user_id)
    assert row == {"tier": "starter", "status": "active"}
    (bonus,) = bank.transactions(account)
    assert (bonus["transaction_type"], bonus["amount"], bonus["idempotency_key"]) == (
        "bonus",
        Decimal("20.5"),
        "welcome",
    )
    assert bank.audit() == []


def test_one_account_for_key_and_token(proxy: Proxy, upstream: Upstream, bank: Bank, issuer: Issuer) -> None:
    """By API key and by token the same user pays from the same balance, and reads the same."""
    person = Person(issuer)
    by_token = person.account()
    assert chat(proxy, by_token).status_code == 200
    by_key = bank.key(person.user_id)
    assert chat(proxy, by_key).status_code == 200
    bank.settled(by_token, 2)
    paid = sum(map(prices.of_call, asked(upstream)))
    read = [get(proxy, each, BALANCE).json() for each in (by_token, by_key, person.account())]
    assert read[0] == read[1] == read[2]
    assert str(5 - paid) in map(str, read[0].values())
    assert [row["app_id"] for row in bank.usage(by_token)] == ["web", "default"]


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("carrier", ["authorization", "x-api-key"])
def test_tokens_serve_every_endpoint(
    proxy: Proxy, upstream: Upstream, bank: Bank, issuer: Issuer, name: str, carrier: str
) -> None:
    """A token is as good as an API key on each endpoint, in OpenAI's header and in Anthropic's."""
    account = Person(issuer).account()
    path, body = request(name)
    headers = account.headers if carrier == "authorization" else {carrier: account.api_key}
    answer = post(proxy, headers, path, body)
    assert answer.status_code == 200, answer.text
    (row,) = bank.settled(account)
    assert row["cost_credits"] == prices.of_call(asked(upstream)[0])


def test_tier_follows_the_token(proxy: Proxy, bank: Bank, issuer: Issuer) -> None:
    """A login with another tier changes the account; a token that is older than that does not change it back."""

    def tier() -> str:
        return str(bank.rows("SELECT tier FROM user_credits WHERE user_id = $1", person.user_id)[0]["tier"])

    person, now = Person(issuer), int(time.time())
    old = person.account(plan="free", iat=now - 20)
    assert get(proxy, old, BALANCE).status_code == 200
    assert tier() == "free"
    new = person.account(plan="professional", iat=now - 10)
    for account in [new, old, person.account(plan="free", iat=now - 20), person.account()] * 4:
        assert get(proxy, account, BALANCE).status_code == 200
        assert tier() == "professional" or account is old
    bank.execute(f"UPDATE user_credits SET tier = 'starter' WHERE user_id = '{person.user_id}'")
    for account in [new] * 8:
        get(proxy, account, BALANCE)
    assert tier() == "starter"
    assert [row["amount"] for row in bank.transactions(new)] == [5]


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_suspended(proxy: Proxy, upstream: Upstream, bank: Bank, issuer: Issuer, status: str) -> None:
    """A token of an account that is suspended pays for nothing from then on, at either worker."""
    account = Person(issuer).account()
    assert {answer.status_code for answer in at_once(8, lambda: chat(proxy, account))} == {200}
    bank.execute(f"UPDATE user_credits SET status = '{status}' WHERE user_id = '{account.user_id}'")
    assert {answer.status_code for answer in at_once(8, lambda: chat(proxy, account))} == {403}
    assert len(asked(upstream)) == 8


@pytest.mark.parametrize("kind", ["token", "API key"])
@pytest.mark.parametrize("role", ["admin", "service"])
def test_suspended_administrators(proxy: Proxy, bank: Bank, issuer: Issuer, kind: str, role: str) -> None:
    """A second after its suspension, who acts for others may do nothing more, at either worker."""
    person = Person(issuer, **roles("uc-admin" if role == "admin" else "uc-bot"))
    account = person.account()
    assert get(proxy, account, "/v1/models").status_code == 200
    account = account if kind == "token" else bank.key(person.user_id, role)
    assert {answer.status_code for answer in at_each_worker(proxy, account, "/v1/models")} == {200}
    bank.execute(f"UPDATE user_credits SET status = 'suspended' WHERE user_id = '{person.user_id}'")
    refused = refused_in_time(proxy, account, "/v1/models", 403)
    assert {code(answer) for answer in refused} == {"account_suspended"}


def refused_in_time(proxy: Proxy, account: Account, path: str, *statuses: int) -> list[httpx.Response]:
    """Asks until both workers refuse with one of these; whatever is asked later than a second from now they refuse."""
    second = Seconds(1)
    while True:
        is_late = second.are_over
        answers = at_each_worker(proxy, account, path)
        if {answer.status_code for answer in answers} <= set(statuses):
            return answers
        assert not is_late, answers


def test_keys_and_tokens_end_within_a_second(proxy: Proxy, bank: Bank, issuer: Issuer) -> None:
    """A key of somebody who signs in is refused by both workers a second after its revocation; the token is not."""
    person = Person(issuer)
    by_token = person.account()
    get(proxy, by_token, BALANCE)
    by_key = bank.key(person.user_id)
    assert {answer.status_code for answer in at_each_worker(proxy, by_key, BALANCE)} == {200}
    bank.execute(f"UPDATE user_api_keys SET is_active = false WHERE id = '{by_key.key_id}'")
    # A worker that is asked often while the other one has not heard of it takes this for guessing.
    refused_in_time(proxy, by_key, BALANCE, 401, 429)
    assert {answer.status_code for answer in at_each_worker(proxy, by_token, BALANCE)} == {200}


def test_roles(proxy: Proxy, upstream: Upstream, bank: Bank, issuer: Issuer) -> None:
    """A role in the token opens what it opens for keys: administration for one, acting for a named user for both."""
    user, bot, admin = (
        Person(issuer, **roles(*names)).account() for names in ((), ("uc-bot",), ("uc-admin", "uc-bot"))
    )
    assert [get(proxy, each, "/model/info").status_code for each in (user, bot, admin)] == [403, 403, 200]
    payer = bank.open()
    assert chat(proxy, user, **{PAYER: payer.user_id}).status_code == 200
    assert bank.usage(payer) == []
    for each in (bot, admin):
        assert code(chat(proxy, each)) == "payer_missing"
        assert chat(proxy, each, **{PAYER: payer.user_id}).status_code == 200
        assert get(proxy, each, BALANCE, **{PAYER: payer.user_id}).status_code == 200
        assert bank.transactions(each) == []
    rows = bank.settled(payer, 2)
    assert [(row["metadata"]["acted_by"], row["metadata"]["acted_as"]) for row in map(decoded, rows)] == [
        (bot.user_id, "service"), (admin.user_id, "admin"),
    ]  # fmt: skip
    for role, each in (("service", bot), ("admin", admin)):
        assert f"{role} {each.user_id} (key None) acts for {payer.user_id}: POST /v1/chat/completions" in proxy.log()


def decoded(row: Json) -> Json:
    metadata = row["metadata"]
    return {**row, "metadata": yaml.safe_load(metadata) if isinstance(metadata, str) else metadata}


def test_service_keys_are_noted(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A call that a service key makes for a user says so, in its usage row and in the log."""
    service, payer = bank.open(role="service"), bank.open()
    assert chat(proxy, service, **{PAYER: payer.user_id}).status_code == 200
    (row,) = map(decoded, bank.settled(payer))
    assert row["metadata"]["api_key_id"] == service.key_id
    assert (row["metadata"]["acted_by"], row["metadata"]["acted_as"]) == (service.user_id, "service")
    assert f"service {service.user_id} (key {service.key_id}) acts for {payer.user_id}: POST /v1/chat/" in proxy.log()


NOW = int(time.time())
REFUSED: dict[str, Json] = {
    "wrong issuer": {"iss": "https://evil.example.com"}, "wrong audience": {"aud": "other"},
    "expired": {"exp": NOW - 60},
    "not yet valid": {"nbf": NOW + 86_400}, "from the future": {"iat": NOW + 86_400},
    "ID token": {"typ": "ID"},
    "no subject": {"sub": None}, "unfit subject": {"sub": "a\0"}, "huge": {"more": "x" * 9_000},
    "very huge": {"more": "x" * 40_000},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/v1/models", BALANCE])
def test_refused(proxy: Proxy, issuer: Issuer, name: str, path: str) -> None:
    """A token that is not genuine or not for us is a plain 401 everywhere."""
    assert_refused(get(proxy, Account("", issuer.token(**REFUSED[name]), ""), path))


@pytest.mark.parametrize(
    "token", ["..", "a.b.c", "sk-uc-a.b.c", "e30.e30.", "eyJhbGciOiJub25lIn0.e30.", "." * 2 + "x" * 30_000]
)
def test_garbage(proxy: Proxy, token: str) -> None:
    """So is garbage."""
    assert_refused(get(proxy, Account("", token, ""), "/v1/models"))


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401, answer.text
    assert code(answer) == "invalid_token"
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["error"]["message"] == "This access token is not valid here, or no longer: sign in again."


def test_a_flood_of_unknown_keys(proxy: Proxy, issuer: Issuer) -> None:
    """However many keys tokens name that nobody has, each worker asks the issuer once in an interval."""
    assert get(proxy, Person(issuer).account(), "/v1/models").status_code == 200
    key("rsa-9")
    with ThreadPoolExecutor(16) as pool:
        tokens = [issuer.token("rsa-9", headers={"kid": f"k{n}"}) for n in range(200)]
        answers = list(pool.map(lambda token: get(proxy, Account("", token, ""), "/v1/models"), tokens))
    assert {answer.status_code for answer in answers} == {401}
    assert issuer.asked[KEYS] <= WORKERS
    issuer.keys.append(entry("rsa-9"))
    assert get(proxy, Account("", issuer.token("rsa-9"), ""), "/v1/models").status_code == 401
    assert issuer.asked[KEYS] <= WORKERS


def test_guessing_is_slowed(proxy: Proxy, bank: Bank) -> None:
    """Who tries key after key must wait, whatever the next key is; a key in use need not, nor another address."""
    account, fresh = bank.open(), bank.open()
    here, there = {"x-forwarded-for": "203.0.113.7"}, {"x-forwarded-for": "203.0.113.8"}
    assert {answer.status_code for answer in at_each_worker(proxy, account, "/v1/models", **here)} == {200}

    def guess() -> httpx.Response:
        return get(proxy, Account("", f"sk-uc-{uuid.uuid4()}", ""), "/v1/models", **here)

    began = time.monotonic()
    answers = [guess() for _ in range(60)]
    minutes = (time.monotonic() - began) / 60
    assert [answer.status_code for answer in answers[:FAILED_PER_MINUTE]] == [401] * FAILED_PER_MINUTE
    assert {answer.status_code for answer in answers} == {401, 429}
    # A bucket fills again while it is emptied.
    assert [answer.status_code for answer in answers].count(401) <= FAILED_PER_MINUTE * WORKERS * (1 + minutes) + 1
    slowed = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(slowed.headers["retry-after"]) <= 60
    assert code(slowed) == "rate_limit_exceeded"
    assert {answer.status_code for answer in at_each_worker(proxy, account, "/v1/models", **here)} == {200}
    master = Account("", proxy.master_key, "")
    assert get(proxy, fresh, "/v1/models", **there).status_code == 200
    assert get(proxy, master, "/v1/models", **there).status_code == 200


def test_no_key_is_told_from_another(proxy: Proxy, bank: Bank) -> None:
    """Unknown, revoked and expired keys get the same answer."""
    revoked, expired = bank.open(), bank.open()
    bank.execute(f"UPDATE user_api_keys SET is_active = false WHERE id = '{revoked.key_id}'")
    bank.execute(f"UPDATE user_api_keys SET expires_at = now() WHERE id = '{expired.key_id}'")
    unknown = Account("", f"sk-uc-{uuid.uuid4()}", "")
    there = {"x-forwarded-for": "203.0.113.9"}
    answers = [get(proxy, each, "/v1/models", **there) for each in (unknown, revoked, expired)]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1


def test_state_stays_private(proxy: Proxy, issuer: Issuer) -> None:
    """No token is written to the log."""
    account = Person(issuer).account()
    assert chat(proxy, account).status_code == 200
    assert account.api_key.split(".")[2] not in proxy.log()
    assert not list(Path(proxy.config_path.parent).glob("*token*"))
