"""`POST /api/v1/route/explain`: what it says is what happens, and saying it does nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.acceptance import sides, table
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.sides import ENDPOINTS, ORDERS, PROVIDERS, SIDES, spread
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

SEED = 4
ROUNDS = 40
TABLE = "Explained and happened"
COLUMNS = ("seed", "configurations", "answered", "402", "403", "400", "some down", "downgraded")
NAMES = ("chat", "responses", "messages", "messages bridged", "embeddings", "completions")
GROUPS = 4
SETTINGS: Json = {
    # What is down stays down and nothing else counts, so that asking changes nothing.
    "health": {"down_after": 1000, "degraded_below": 0, "probe_after_s": 3600},
    "tiers": {
        "free": {"power_levels": ["eco", "balanced"]},
        "professional": {"providers": ["openai", "anthropic"], "markup": 1.3},
        "enterprise": {"models": ["g0 *", "g1 *"]},
    },
}
PATH = "/api/v1/route/explain"


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """Groups for each endpoint, of which the later ones have providers that are down."""
    models = []
    for n in range(GROUPS):
        for name in NAMES:
            models += spread(f"g{n} {name}", ENDPOINTS[name].models, running.url)
    config = sides.config(running.url, models, disable_cooldowns=True)
    with sides.powered_proxy(bank.url, config, SETTINGS) as proxy:
        yield proxy


def explain(proxy: Proxy, headers: dict[str, str], name: str, body: object, endpoint: str | None = None) -> Any:
    """The answer to a request for an explanation."""
    named = endpoint or ENDPOINTS[name].ask.partition(" ")[0]
    return post(proxy, headers, f"{PATH}?endpoint={named}", body)


def body_of(name: str, **fields: object) -> tuple[str, Json]:
    return request(ENDPOINTS[name].ask, False, **fields)


def state(bank: Bank, account: Account) -> tuple[object, ...]:
    """All that a call would change."""
    hold_rows = bank.rows("SELECT * FROM credit_holds WHERE user_id = $1", account.user_id)
    return bank.balance(account), bank.transactions(account), bank.usage(account), hold_rows


def bring_down(proxy: Proxy, upstream: Upstream, bank: Bank, dice: random.Random) -> set[tuple[str, str]]:
    """Makes some deployments of the later groups really fail with a fault that lasts; returns group and side."""
    downs = {(f"g{n} {name}", side) for n in range(1, GROUPS) for name in NAMES for side in dice.sample(SIDES, n)}
    upstream.set_faults(*(
        {"kind": "status", "status": dice.choice((401, 402, 404)), "match": {"api_key": sides.key(group, side)}}
        for group, side in sorted(downs)
    ))  # fmt: skip
    account = bank.open("1000")
    for group, side in sorted(downs):
        # A call that may go nowhere else.
        path, body = body_of(group.partition(" ")[2], model=group, provider={"only": [PROVIDERS[side]]})
        assert post(proxy, account.headers, path, body).status_code in (401, 402, 404)
    return downs


class Random:
    """Random callers and wishes."""

    def __init__(self, dice: random.Random, bank: Bank) -> None:
        self.dice, self.bank = dice, bank

    def account(self, at_eco: Decimal) -> Account:
        """With plenty, with nothing, or with what the call needs at eco."""
        credits = self.dice.choice(("100", "100", "0", "0.01", f"{at_eco:f}", f"{at_eco:f}"))
        tier = self.dice.choice(("free", "starter", "starter", "professional", "enterprise"))
        account = self.bank.open(credits, tier=tier, level=self.dice.choice(tuple(ORDERS)))
        if self.dice.random() < 0.5:
            self.bank.rows("UPDATE user_credits SET power_level_downgrade = true WHERE user_id = $1", account.user_id)
        if self.dice.random() < 0.2:
            cap = Decimal(self.dice.choice(("0.003", "50", "0")))
            self.bank.rows("UPDATE user_credits SET monthly_cap = $2 WHERE user_id = $1", account.user_id, cap)
        return account

    def wish(self) -> tuple[dict[str, str], Json]:
        """Headers and body fields."""
        dice = self.dice
        headers = {"x-power-level": dice.choice((*ORDERS, *ORDERS, "turbo"))} if dice.random() < 0.6 else {}
        fields: Json = {}
        providers = tuple(PROVIDERS.values())
        preferences: list[Json] = [
            {"order": dice.sample(providers, 2)},
            {"only": dice.sample(providers, 2)},
            {"ignore": [dice.choice(providers)]},
            {"sort": "price"},
            {"order": [dice.choice(providers)], "allow_fallbacks": False},
            {"max_price": {"prompt": dice.choice((1, 1.5, 2))}},
        ]
        if dice.random() < 0.6:
            fields["provider"] = dice.choice(preferences)
        if dice.random() < 0.2:
            fields["metadata"] = {"power_level": dice.choice(tuple(ORDERS))}
        return headers, fields

    def model(self) -> tuple[str, str]:
        """An endpoint and a model there."""
        name = self.dice.choice(NAMES)
        suffix = self.dice.choice(("", "", "", ":eco", ":precision", ":turbo"))
        return name, f"g{self.dice.randrange(GROUPS)} {name}{suffix}"


def without_cap(name: str, body: Json, dice: random.Random) -> Json:
    """The body, sometimes without the output limit, which is then lowered to what fits."""
    if name.startswith("messages") or dice.random() < 0.5:
        return body
    return {key: value for key, value in body.items() if key not in ("max_tokens", "max_output_tokens")}


def test_explained_is_happened(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Over random callers, wishes and providers that are down: the refusal, or the order, the hold and the limit."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    downs = bring_down(proxy, upstream, bank, dice)
    chance, rich = Random(dice, bank), bank.open("1000")
    statuses, downgraded, some_down = [], 0, 0
    for _ in range(ROUNDS):
        (wished, fields), (name, model) = chance.wish(), chance.model()
        path, body = body_of(name, model=model, **fields)
        body = without_cap(name, body, dice)
        account = chance.account(at_eco(proxy, rich, name, body))
        headers = {**account.headers, **wished}
        before = state(bank, account)
        upstream.reset()
        answer = explain(proxy, headers, name, body)
        assert answer.status_code == 200, answer.text
        assert (state(bank, account), asked(upstream)) == (before, [])
        explained = answer.json()
        statuses.append(explained["outcome"]["status"])
        downgraded += explained.get("power_level_wished") != explained.get("power_level")
        some_down += any(each["status"] == "down" for each in explained["candidates"])
        happened = check(proxy, upstream, headers, path, body, explained)
        assert happened == explained["outcome"]["status"]
        assert all((each["status"] == "down") == ((each["model_group"], side_of(each)) in downs)
                   for each in explained["candidates"])  # fmt: skip
    table.begin(TABLE, *COLUMNS)
    table.add(TABLE, SEED, ROUNDS, *(statuses.count(code) for code in (200, 402, 403, 400)), some_down, downgraded)
    # A table of nothing but one kind would prove little.
    assert min(*(statuses.count(code) for code in (200, 402, 403, 400)), downgraded, some_down) >= 2


def at_eco(proxy: Proxy, rich: Account, name: str, body: Json) -> Decimal:
    """What the call would hold at eco; 0 for one that would be refused."""
    said = explain(proxy, {**rich.headers, "x-power-level": "eco"}, name, body).json()
    return Decimal(said["hold"]["smallest"]) if said["hold"] else NOTHING


def side_of(candidate: Json) -> str:
    return str(candidate["deployment"]).rpartition("-")[2]


def check(proxy: Proxy, upstream: Upstream, headers: dict[str, str], path: str, body: Json, explained: Json) -> int:
    """Makes the call, all providers failing, then, if it can be answered, once more; compares with what was said."""
    order = [side_of(each) for each in explained["candidates"]]
    upstream.set_fault("status", status=500)
    failed = post(proxy, headers, path, body)
    calls = asked(upstream)
    refusal = explained["outcome"]["error"]
    if refusal is not None:
        error = failed.json()["error"]
        assert calls == []
        assert (error["code"], error["message"]) == (refusal["code"], refusal["message"])
        assert error.get("metadata") == refusal.get("metadata")
        return failed.status_code
    # Health has heard of 500s, which do not count here; what is down is asked last.
    assert sides.hits(calls) == order
    upstream.reset()
    answered = post(proxy, headers, path, body)
    assert sides.hits(asked(upstream)) == order[:1]
    assert answered.headers["x-uc-provider"] == explained["candidates"][0]["provider"]
    assert answered.headers["x-uc-power-level"] == explained["power_level"]
    assert answered.headers.get("x-uc-power-level-wished", explained["power_level"]) == explained["power_level_wished"]
    assert Decimal(answered.headers["x-uc-credits-held"]) == Decimal(explained["hold"]["credits"])
    limit = answered.headers.get("x-uc-max-output-tokens")
    assert (None if limit is None else int(limit)) == explained["hold"]["max_output_tokens"]
    return answered.status_code


def test_what_it_says(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Candidates in order with their price and reasons, who is left out and why, the hold, and the balance after it."""
    _, body = body_of("chat", model="g0 chat", provider={"ignore": ["anthropic"]})
    said = explain(proxy, {**account.headers, "x-power-level": "eco"}, "chat", body).json()
    assert [(each["place"], each["provider"]) for each in said["candidates"]] == [
        (1, "openrouter"), (2, "together"), (3, "openai")
    ]  # fmt: skip
    assert [[reason["code"] for reason in each["reasons"]] for each in said["candidates"]] == [
        [], ["less_preferred"], ["not_preferred", "dearer"]
    ]  # fmt: skip
    (left_out,) = said["left_out"]
    assert (left_out["provider"], left_out["reason"]["code"]) == ("anthropic", "ignored")
    hold, balance = Decimal(said["hold"]["credits"]), said["balance"]
    assert Decimal(said["hold"]["worst_case"]) == hold > 0
    assert Decimal(balance["available"]) == 100
    assert Decimal(balance["available_after"]) == 100 - hold
    assert said["outcome"] == {"status": 200, "error": None}
    assert (said["routed_by"], said["power_level"]) == ("plan", "eco")
    assert asked(upstream) == []
    assert (bank.balance(account).remaining, bank.balance(account).held) == (Decimal(100), NOTHING)


def test_who_may_ask(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Users ask for themselves; service keys and administrators for whom they name; nobody else, for nobody else."""
    service, other = bank.key(account.user_id, "service"), bank.open("0")
    payer = {"x-uc-user-id": other.user_id}
    master = {"authorization": f"Bearer {proxy.master_key}"}
    _, body = body_of("chat", model="g0 chat")

    def said(headers: dict[str, str]) -> httpx.Response:
        answer: httpx.Response = explain(proxy, headers, "chat", body)
        return answer

    assert said(account.headers).json()["outcome"]["status"] == 200
    # A user's key pays for itself, whoever is named.
    assert said({**account.headers, **payer}).json()["outcome"]["status"] == 200
    for headers in (service.headers, master):
        assert said({**headers, **payer}).json()["outcome"]["status"] == 402
        assert (said(headers).status_code, said(headers).json()["error"]["code"]) == (403, "payer_missing")
        unknown = said({**headers, "x-uc-user-id": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (403, "unknown_account")
    assert said({}).status_code == said({"authorization": "Bearer sk-uc-nobody"}).status_code == 401
    bank.execute(f"UPDATE user_credits SET status = 'suspended' WHERE user_id = '{other.user_id}'")
    assert said({**master, **payer}).json()["outcome"]["error"]["code"] == "account_suspended"


BAD: dict[str, tuple[object, str | None, tuple[int, ...]]] = {
    "no JSON": (b"{", None, (400, 422)),
    "nothing": (b"", None, (400, 422)),
    "no model": ({"messages": [{"role": "user", "content": "hi"}]}, None, (400,)),
    "an unknown endpoint": ({"model": "g0 chat"}, "images", (400,)),
    "too deep": (b'{"model":' + b"[" * 5000 + b"]" * 5000 + b"}", None, (400, 422)),
    "not UTF-8": (b'{"model": "\xff"}', None, (400, 422)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests(proxy: Proxy, account: Account, what: str) -> None:
    """What is no request gets a clear 4xx, never a 500."""
    body, endpoint, statuses = BAD[what]
    answer = explain(proxy, account.headers, "chat", body, endpoint)
    assert answer.status_code in statuses, answer.text


REFUSED: dict[str, tuple[Json, str]] = {
    "several models": ({"model": "g0 chat,g1 chat", "messages": [{"role": "user", "content": "hi"}]}, "invalid_model"),
    "an unknown model": ({"model": "nobody", "messages": [{"role": "user", "content": "hi"}]}, "model_not_found"),
    "no messages": ({"model": "g0 chat"}, "missing_field"),
    "an unknown field": ({"model": "g0 chat", "fallbacks": ["x"]}, "unknown_field"),
    "a wrong limit": ({"model": "g0 chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1},
                      "invalid_value"),
    "too expensive": ({"model": "g0 chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9_999_999,
                       "n": 128}, "insufficient_credits"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_as_the_call_would_be(proxy: Proxy, upstream: Upstream, account: Account, what: str) -> None:
    """A body that the call would refuse is explained by that very refusal."""
    body, code = REFUSED[what]
    said = explain(proxy, account.headers, "chat", body)
    assert said.status_code == 200, said.text
    outcome = said.json()["outcome"]
    happened = post(proxy, account.headers, "/v1/chat/completions", body)
    assert outcome["error"]["code"] == happened.json()["error"]["code"] == code
    assert outcome["status"] == happened.status_code
    assert asked(upstream) == []
