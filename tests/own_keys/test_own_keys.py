"""Users' own keys at the proxy: whose key pays, what it costs, what happens to others, and to addresses of users."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.acceptance import keyring, prices, sides
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import paid_proxy
from tests.acceptance.echoing import EchoingUpstream
from tests.acceptance.keyring import Keyring
from tests.acceptance.sides import MIXED, PROVIDERS
from tests.proxy import Json, Proxy, deployment, litellm_config
from uc_litellm_plugin import api_keys, settings
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.provider_key import NewKey
from uc_litellm_plugin.provider_keys import ProviderKeys
from uc_litellm_plugin.vault import Secret

SEED = 5
FEE = Decimal("0.125")
AT_ONCE = 60
MANY_KEYS = int(os.environ.get("UC_OWN_KEYS", "90"))
REBOUND = "llm.rebound.example"
RULES = {"fee_percent": 12.5, "allow_http": True, "allowed_hosts": ["127.0.0.1"]}
PRICES = {"input_cost_per_token": 2.3e-6, "output_cost_per_token": 7.9e-6}


@pytest.fixture(scope="module")
def running() -> Iterator[EchoingUpstream]:
    with EchoingUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def ring(bank: Bank) -> Keyring:
    return keyring.made(bank, **RULES)


@pytest.fixture(scope="module")
def proxy(running: EchoingUpstream, bank: Bank, ring: Keyring) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="uc-own-") as directory:
        file = Path(directory, "uc.yaml")
        strict = {"strict": {"preferred_providers": ["anthropic"], "fallback_strategy": "none", "cost_multiplier": 1}}
        file.write_text(yaml.safe_dump({"byok": RULES, "health": {"degraded_below": 0}, "power_levels": strict}))
        made = litellm_config(running.url, router_settings={"num_retries": 0})
        made["model_list"] = models(running.url)
        made["litellm_settings"]["callbacks"].append("tests.acceptance.spy.after")
        env: dict[str, Any] = {"UC_CONFIG": str(file), "UC_SEALING_KEYS": ring.sealing_key,
               "SPY_HOSTS": f"{REBOUND}=127.0.0.1", "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
        with paid_proxy(bank.url, made, **env) as proxy:
            yield proxy


def models(url: str) -> list[Json]:
    """One group at four providers, one at OpenAI only, and some that are served with users' own keys and addresses."""
    custom = []
    for group, model in (("mine", "openai/llama"), ("my-vectors", "openai/vectors")):
        made = deployment(group, model, f"{url}/nowhere/v1", PRICES)
        del made["litellm_params"]["api_key"]
        made["model_info"] |= {"uc_provider": "custom", "uc_own_key_only": True}
        custom.append(made)
    custom[1]["model_info"]["mode"] = "embedding"
    return [*sides.spread("four", MIXED, url), sides.one("solo", "south", MIXED["south"], url), *custom]


class User:
    """A user with own keys, by provider and name."""

    def __init__(self, bank: Bank, ring: Keyring, credits: str = "100", **account: Any) -> None:
        self.account = bank.open(credits, **account)
        self._ring = ring
        self.keys: dict[str, str] = {}

    def add(self, provider: str, name: str = "default", **values: Any) -> str:
        key = self.keys[name if name != "default" else provider] = keyring.canary(SEED, len(self.keys), provider)
        self._ring.add(self.account, provider, key, key_name=name, **values)
        return key


def chat(proxy: Proxy, user: User | Account, model: str = "solo", orders: str = "", ask: str = "chat", **more: Any) -> (
    httpx.Response
):  # fmt: skip
    """A call, with what the sides are told to do."""
    account = user.account if isinstance(user, User) else user
    headers = {**account.headers, **more.pop("headers", {})}
    path, body = request(ask, model=model, **more)
    field = next(each for each in ("messages", "prompt", "input") if each in body)
    text = f"say 7 words {orders}"
    body[field] = [{"role": "user", "content": text}] if field == "messages" else text
    return post(proxy, headers, path, body)


def credentials(upstream: EchoingUpstream) -> list[str]:
    return [call["api_key"] for call in asked(upstream)]


def platform(side: str, group: str = "four") -> str:
    return sides.key(group, side)


@pytest.fixture
def user(bank: Bank, ring: Keyring) -> User:
    return User(bank, ring)


# Whose key, and what it costs


def test_fee(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """A call on an own key costs the fee's part of its price, rounded up once; its row says what it cost there."""
    key = user.add("openai")
    answer = chat(proxy, user)
    (row,) = bank.settled(user.account)
    (call,) = asked(upstream)
    usd = sides.PRICES["south"].usd(call["usage"])
    assert (answer.status_code, call["api_key"]) == (200, key)
    assert row["cost_usd"] == usd
    assert row["cost_credits"] == prices.credits(usd * FEE) == 100 - bank.balance(user.account).remaining
    assert (row["byok_used"], answer.headers["x-uc-byok"]) == (True, "true")
    (stored,) = bank.rows("SELECT * FROM user_provider_keys WHERE user_id = $1", user.account.user_id)
    assert (row["provider_key_id"], stored["total_requests"]) == (stored["id"], 1)
    assert stored["spent_this_month_usd"] == usd
    held = Decimal(answer.headers["x-uc-credits-held"])
    assert row["cost_credits"] <= held
    full = Decimal(chat(proxy, User(bank, user._ring)).headers["x-uc-credits-held"])
    assert held < full * FEE + Decimal("0.000002")


def test_without_credits(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, ring: Keyring) -> None:
    """Where there is a fee, a call needs credits for it."""
    poor = User(bank, ring, credits="0")
    poor.add("openai")
    assert chat(proxy, poor).status_code == 402
    assert asked(upstream) == []


@pytest.mark.parametrize("ask", ["chat", "chat bridged", "messages", "responses", "messages bridged"])
def test_fallback(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User, ask: str) -> None:
    """A key that may fall back is followed by the platform's keys, for credits, and only once by itself."""
    key = user.add("openai", fallback="credits")
    said = f"Incorrect API key provided: {key}."
    upstream.set_fault("status", status=401, message=said, match={"api_key": key})
    answer = chat(proxy, user, "four", ask=ask)
    assert answer.status_code == 200
    # The platform's key at the same provider is another candidate.
    assert credentials(upstream) == [key, platform("south")]
    (row,) = bank.settled(user.account)
    (stored,) = bank.rows("SELECT * FROM user_provider_keys WHERE user_id = $1", user.account.user_id)
    assert (row["byok_used"], row["provider_key_id"], row["provider"]) == (False, None, "openai")
    assert (stored["total_errors"], stored["last_error"]) == (1, "unauthorized")
    assert key not in answer.text + str(answer.headers) + str(row) + str(stored)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", ["chat", "messages", "responses"])
def test_no_fallback(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User, ask: str, stream: bool) -> None:
    """A key that may not fall back fails with its call, nobody else is asked, and the error says whose key failed."""
    key = user.add("openai")
    answer = chat(proxy, user, "four", "at south: echo-json", ask, stream=stream)
    assert answer.status_code == 401
    assert "With your own openai key 'default'" in answer.text
    assert "Incorrect API key provided: [own key]" in answer.text
    assert credentials(upstream) == [key]
    (row,) = bank.settled(user.account)
    assert (row["cost_credits"], row["success"], row["byok_used"]) == (0, False, True)
    assert bank.balance(user.account).remaining == 100


def test_own_keys_first(proxy: Proxy, upstream: EchoingUpstream, user: User) -> None:
    """Own keys go first, in the level's order, each to its own provider; the platform's follow in that order."""
    own = {provider: user.add(provider, fallback="credits") for provider in ("together", "anthropic")}
    orders = " ".join(f"at {side}: 500" for side in PROVIDERS)
    assert chat(proxy, user, "four", orders).status_code == 500
    assert credentials(upstream) == [
        own["anthropic"], own["together"], *(platform(side) for side in ("south", "west", "north", "east"))
    ]  # fmt: skip
    assert [sides.side_of(call) for call in asked(upstream)][:2] == ["west", "east"]


def test_elsewhere(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """A key for a provider that the group does not have changes nothing."""
    user.add("groq") if "groq" in keyring.PREFIXES else user.add("together")
    assert chat(proxy, user).status_code == 200
    assert credentials(upstream) == [platform("south", "solo")]
    (row,) = bank.settled(user.account)
    assert (row["byok_used"], row["cost_credits"] > 0) == (False, True)


@pytest.mark.parametrize(
    ("wish", "sides_asked"),
    [
        ({"only": ["anthropic"]}, ["west"]),
        ({"ignore": ["anthropic"]}, ["south"]),
        ({"order": ["anthropic"], "allow_fallbacks": False}, ["west"]),
        ({"sort": "price"}, ["west"]),
    ],
)
def test_wishes(proxy: Proxy, upstream: EchoingUpstream, user: User, wish: Json, sides_asked: list[str]) -> None:
    """What a request says of providers holds for own keys, too."""
    keys = {"south": user.add("openai"), "west": user.add("anthropic")}
    assert chat(proxy, user, "four", provider=wish).status_code == 200
    assert [sides.side_of(call) for call in asked(upstream)] == sides_asked
    assert credentials(upstream) == [keys[side] for side in sides_asked]


@pytest.mark.parametrize("wish", [{"ignore": ["openai"]}, {"only": ["anthropic"]}])
def test_a_key_that_the_request_excludes(
    proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User, wish: Json
) -> None:
    """A key at a provider that the request does not want does not keep credits from being spent at the others, and
    none are ever spent at its own."""
    user.add("openai")
    assert chat(proxy, user, "four", provider=wish).status_code == 200
    assert credentials(upstream) == [platform("west")]
    orders = " ".join(f"at {side}: 500" for side in PROVIDERS)
    assert chat(proxy, user, "four", orders, provider=wish).status_code == 500
    assert platform("south") not in credentials(upstream)
    assert [row["byok_used"] for row in bank.settled(user.account, 2)] == [False, False]


def test_a_strict_level(proxy: Proxy, upstream: EchoingUpstream, user: User) -> None:
    """A level that uses none but its preferred providers does not use own keys elsewhere."""
    user.add("openai", fallback="credits")
    key = user.add("anthropic", fallback="credits")
    assert chat(proxy, user, "four", headers={"x-power-level": "strict"}).status_code == 200
    assert credentials(upstream) == [key]


def test_several_keys(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """Of several keys at one provider the default is used; without it the oldest."""
    old = user.add("openai", "old")
    default = user.add("openai", "main", is_default=True)
    chat(proxy, user)
    bank.rows("DELETE FROM user_provider_keys WHERE user_id = $1 AND is_default", user.account.user_id)
    chat(proxy, user)
    assert credentials(upstream) == [default, old]


def test_tiers(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """An account that goes below the tier uses credits."""
    key = user.add("openai")
    chat(proxy, user)
    bank.rows("UPDATE user_credits SET tier = 'free' WHERE user_id = $1", user.account.user_id)
    chat(proxy, user)
    assert credentials(upstream) == [key, platform("south", "solo")]


EDITS = {
    "capped": "monthly_cap_usd = 0.01, spent_this_month_usd = 0.02",
    "expired": "expires_at = now() - interval '1 second'",
}


@pytest.mark.parametrize("edit", EDITS)
def test_unusable(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User, edit: str) -> None:
    """A key past its cap or its time is not used: the call is refused and told why, or goes on with credits."""
    user.add("openai")
    bank.rows(f"UPDATE user_provider_keys SET {EDITS[edit]} WHERE user_id = $1", user.account.user_id)
    refused = chat(proxy, user)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "own_key_unusable")
    assert asked(upstream) == []
    bank.rows("UPDATE user_provider_keys SET fallback = 'credits' WHERE user_id = $1", user.account.user_id)
    assert chat(proxy, user).status_code == 200
    assert credentials(upstream) == [platform("south", "solo")]
    bank.settled(user.account)
    assert bank.balance(user.account).held == 0


def test_a_cap_is_reached(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """The call that reaches the cap ends as it is, the next one is refused."""
    user.add("openai", monthly_cap_usd=Decimal("0.00001"))
    assert chat(proxy, user).status_code == 200
    bank.settled(user.account)
    assert chat(proxy, user).json()["error"]["code"] == "own_key_unusable"
    assert len(asked(upstream)) == 1


def test_inactive(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """A key that is switched off is as if it were not there."""
    user.add("openai")
    bank.rows("UPDATE user_provider_keys SET is_active = false WHERE user_id = $1", user.account.user_id)
    assert chat(proxy, user).status_code == 200
    assert credentials(upstream) == [platform("south", "solo")]


MEANWHILE = {
    "deleted": "DELETE FROM user_provider_keys WHERE user_id = $1",
    "switched off": "UPDATE user_provider_keys SET is_active = false WHERE user_id = $1",
    "another tier": "UPDATE user_credits SET tier = 'free' WHERE user_id = $1",
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_meanwhile(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User, what: str) -> None:
    """A call whose key is taken away meanwhile ends as it is and is settled; the next one does not have it."""
    key = user.add("openai")
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(chat, proxy, user, "solo", "at south: gate")
        upstream.wait(gated=1)
        bank.rows(MEANWHILE[what], user.account.user_id)
        upstream.open()
        assert under_way.result().status_code == 200
    (row,) = bank.settled(user.account)
    assert (row["byok_used"], row["success"]) == (True, True)
    chat(proxy, user)
    assert credentials(upstream) == [key, platform("south", "solo")]
    assert bank.audit() == []


def test_compressed(proxy: Proxy, upstream: EchoingUpstream, user: User) -> None:
    """A refusal that repeats the key compressed, though nobody asked for that, does not show it."""
    key = user.add("openai")
    answer = chat(proxy, user, "solo", "at south: echo-gzip")
    assert answer.status_code == 401
    assert "[own key]" in answer.text
    assert key not in answer.text
    assert credentials(upstream) == [key]


def test_explained(proxy: Proxy, upstream: EchoingUpstream, user: User) -> None:
    """Explain shows own keys as candidates, in order, and nothing of the keys."""
    key = user.add("together", fallback="credits")
    _, body = request("chat", model="four")
    answer = post(proxy, user.account.headers, "/api/v1/route/explain", body)
    candidates = answer.json()["candidates"]
    assert [(each["provider"], each["own_key"]) for each in candidates] == [
        ("together", True), ("openai", False), ("anthropic", False), ("openrouter", False), ("together", False)
    ]  # fmt: skip
    stored = user._ring.row(user.account, "together")
    assert not [each for each in (key, key[-4:], stored["encrypted_api_key"], stored["key_id"]) if each in answer.text]
    assert asked(upstream) == []


@pytest.mark.parametrize("path", ["messages/count_tokens", "files", "batches", "moderations", "images/generations"])
def test_what_has_no_own_key(proxy: Proxy, upstream: EchoingUpstream, user: User, path: str) -> None:
    """What would be done with the platform's key without a word is refused."""
    user.add("anthropic")
    answer = post(proxy, user.account.headers, f"/v1/{path}", {"model": "four", "messages": [], "input": "x"})
    assert answer.status_code == 400
    assert asked(upstream) == []


# Others


def test_sixty_at_once(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, ring: Keyring) -> None:
    """Sixty calls of two users at once on one deployment each have their caller's key."""
    users = [User(bank, ring), User(bank, ring)]
    for user in users:
        user.add("openai")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = list(pool.map(
            lambda n: chat(proxy, users[n % 2], orders=f"of {n % 2}", stream=n % 4 < 2).status_code, range(AT_ONCE)
        ))  # fmt: skip
    assert sent == [200] * AT_ONCE
    calls = asked(upstream)
    right = [call for call in calls if call["api_key"] == users["of 1" in json.dumps(call["body"])].keys["openai"]]
    print(f"{len(calls)} calls of two users at once, {len(right)} with their caller's key")
    assert len(right) == len(calls) == AT_ONCE


def test_one_bad_key(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, ring: Keyring) -> None:
    """A key that is refused fifty times is its owner's matter: others' calls and the deployment's health are well."""
    bad, good, without = User(bank, ring), User(bank, ring), User(bank, ring)
    key, other = bad.add("openai"), good.add("openai")
    upstream.set_fault("status", status=401, match={"api_key": key})
    told, others = [], []
    for n in range(50):
        told.append(chat(proxy, bad).status_code)
        if n % 10 == 9:
            others += [chat(proxy, good).status_code, chat(proxy, without).status_code]
    assert (told, others) == ([401] * 50, [200] * 10)
    used = credentials(upstream)
    print(f"one key refused {told.count(401)} times; beside it {others.count(200)} of {len(others)} calls answered")
    assert (used.count(key), used.count(other), used.count(platform("south", "solo"))) == (50, 5, 5)
    (row,) = bank.rows("SELECT * FROM user_provider_keys WHERE user_id = $1", bad.account.user_id)
    bank.settled(bad.account, 50)
    assert (row["total_errors"], row["last_error"]) == (50, "unauthorized")
    explained = post(proxy, without.account.headers, "/api/v1/route/explain", request("chat", model="solo")[1]).json()
    assert [each["status"] for each in explained["candidates"]] == ["healthy"]
    ill = bank.rows("SELECT * FROM provider_health WHERE status <> 'healthy' AND deployment LIKE '%solo%'")
    assert ill == []
    assert not bank.rows("SELECT * FROM provider_health WHERE deployment LIKE '%byok%'")


def test_one_slow_key(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, ring: Keyring) -> None:
    """While one user's twenty calls hang, another's are as fast as before."""
    slow, quick = User(bank, ring), User(bank, ring)
    slow.add("openai")
    quick.add("openai")

    def seconds() -> float:
        began = time.perf_counter()
        assert chat(proxy, quick).status_code == 200
        return time.perf_counter() - began

    seconds()
    before = statistics.median(seconds() for _ in range(15))
    with ThreadPoolExecutor(20) as pool:
        hanging = [pool.submit(chat, proxy, slow, "solo", "at south: gate") for _ in range(20)]
        upstream.wait(gated=20, timeout=60)
        meanwhile = statistics.median(seconds() for _ in range(15))
        upstream.open()
        assert {each.result().status_code for each in hanging} == {200}
    print(f"a call took {before * 1000:.0f} ms, {meanwhile * 1000:.0f} ms while twenty hung: {meanwhile / before:.2f}")
    assert meanwhile < 3 * before


def many(bank: Bank, count: int) -> list[Account]:
    """So many accounts with credits, made at once."""
    names, keys = [f"many-{n}" for n in range(count)], [api_keys.generate() for _ in range(count)]
    bank.rows("SELECT made.error FROM unnest($1::text[]) AS name, create_account(name, 'starter') AS made", names)
    bank.rows(
        "SELECT given.success FROM unnest($1::text[]) AS name, add_user_credits(name, 10, 'bonus') AS given", names
    )
    insert = """INSERT INTO user_api_keys (user_id, key_hash, key_hint, role)
                SELECT *, 'user' FROM unnest($1::text[], $2::text[], $3::text[]) RETURNING id"""
    hashes, hints = [api_keys.hash_key(key) for key in keys], [api_keys.hint(key) for key in keys]
    rows = bank.rows(insert, names, hashes, hints)
    return [Account(name, key, str(row["id"])) for name, key, row in zip(names, keys, rows, strict=True)]


def test_many_keys(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, ring: Keyring) -> None:
    """Ever new keys make no deployments, prices, clients or files, and next to no memory."""
    users = many(bank, MANY_KEYS)
    keys = [keyring.canary(SEED, n, "openai") for n in range(MANY_KEYS)]
    ring.insert(zip(users, ["openai"] * MANY_KEYS, keys, strict=True))
    half = MANY_KEYS // 2

    def call(which: tuple[int, Account]) -> int:
        n, account = which
        return chat(proxy, account, ask="responses" if n % 3 == 0 else "chat", stream=n % 2 == 0).status_code

    def sizes() -> Json:
        found: Json = httpx.get(f"{proxy.url}/spy/sizes", trust_env=False, timeout=60).json()
        return found

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(call, enumerate(users[:half])))
        before = sizes()
        statuses += pool.map(call, enumerate(users[half:]))
        after = sizes()
    assert statuses == [200] * MANY_KEYS
    assert sorted(credentials(upstream)) == sorted(keys)
    grown = {name: after[name] - before[name] for name in before}
    print(f"after {half} keys: {before}; {MANY_KEYS - half} more keys: {grown}")
    assert (grown["prices"], grown["deployments"], grown["ids"]) == (0, 0, 0)
    assert max(grown["clients"], grown["files"]) <= 10
    assert grown["objects"] < 400 * (MANY_KEYS - half)


# Addresses of users


@pytest.fixture
def mine(user: User, running: EchoingUpstream) -> User:
    """A user with an endpoint of their own."""
    user.add("custom", api_base=f"{running.url}/mine/v1")
    return user


@pytest.mark.parametrize("stream", [False, True])
def test_an_own_address(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, mine: User, stream: bool) -> None:
    """Chat reaches the user's endpoint with their key, and costs the fee."""
    assert chat(proxy, mine, "mine", stream=stream).status_code == 200
    (call,) = asked(upstream)
    assert (call["path"], call["api_key"]) == ("/mine/v1/chat/completions", mine.keys["custom"])
    (row,) = bank.settled(mine.account)
    assert (row["provider"], row["byok_used"], row["cost_credits"] > 0) == ("custom", True, True)


def test_own_embeddings(proxy: Proxy, upstream: EchoingUpstream, mine: User) -> None:
    """Embeddings reach it, too."""
    assert chat(proxy, mine, "my-vectors", ask="embeddings").status_code == 200
    (call,) = asked(upstream)
    assert (call["path"], call["api_key"]) == ("/mine/v1/embeddings", mine.keys["custom"])


@pytest.mark.parametrize("ask", ["responses", "messages bridged", "completions"])
def test_what_own_addresses_do_not_serve(proxy: Proxy, upstream: EchoingUpstream, mine: User, ask: str) -> None:
    """Where LiteLLM would not take our connection, the call is refused and told why."""
    answer = chat(proxy, mine, "mine", ask=ask)
    assert answer.status_code == 403
    # LiteLLM 1.100 has the status for a code on /v1/completions.
    assert answer.json()["error"]["code"] in ("own_key_unusable", "403")
    assert "endpoint of its own" in answer.text
    assert asked(upstream) == []


def test_a_key_is_needed(proxy: Proxy, upstream: EchoingUpstream, user: User) -> None:
    """Where the platform has no key, a user without one is told so."""
    answer = chat(proxy, user, "mine")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "own_key_needed")
    assert asked(upstream) == []


@pytest.mark.parametrize("group", ["mine", "solo"])
def test_redirects(proxy: Proxy, upstream: EchoingUpstream, running: EchoingUpstream, mine: User, group: str) -> None:
    """Nobody who answers with a redirect has the key sent on."""
    mine.add("openai")
    to = {"location": f"{running.url}/thief/v1/chat/completions"}
    upstream.set_fault("status", status=307, headers=to, body={})
    assert chat(proxy, mine, group).status_code >= 400
    assert not [call for call in upstream.calls() if "thief" in call["path"]]


def test_a_name_that_leads_elsewhere(proxy: Proxy, upstream: EchoingUpstream, bank: Bank, user: User) -> None:
    """An address that was public when it was stored and is private now is not called."""
    port = httpx.URL(upstream.url).port
    key = keyring.canary(SEED, 0, "custom")

    async def public(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    async def add() -> None:
        async with Database(settings.load({"UC_DATABASE_URL": bank.url})) as database:
            keys = ProviderKeys(database, user._ring._vault(), user._ring.rules, public)
            await keys.add(user.account.user_id, NewKey("custom", Secret(key), api_base=f"http://{REBOUND}:{port}/v1"))

    asyncio.run(add())
    answer = chat(proxy, user, "mine")
    assert answer.status_code >= 400
    assert asked(upstream) == []
    assert "127.0.0.1" not in answer.text
    assert key not in answer.text
    bank.settled(user.account)
    assert bank.balance(user.account).held == 0
