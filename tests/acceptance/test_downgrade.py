"""Accounts that would rather be answered at a cheaper level than refused: off unless asked for, and always told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import product

import httpx
import pytest

from tests.acceptance import sides
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.sides import ENDPOINTS, ORDERS, spread
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

SETTINGS: Json = {
    "health": {"down_after": 1000, "degraded_below": 0},
    "tiers": {"free": {"power_levels": ["balanced", "precision"]}},
}
ASKED = [(name, stream) for name, how in ENDPOINTS.items() for stream in how.streams]


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    models = [each for name, how in ENDPOINTS.items() for each in spread(f"down {name}", how.models, running.url)]
    with sides.powered_proxy(bank.url, sides.config(running.url, models, disable_cooldowns=True), SETTINGS) as proxy:
        yield proxy


def ask(
    proxy: Proxy, account: Account, name: str, level: str, stream: bool = False, *, headers: Json | None = None,
    **fields: object,
) -> httpx.Response:  # fmt: skip
    path, body = request(ENDPOINTS[name].ask, stream, model=f"down {name}", **fields)
    return post(proxy, {**account.headers, "x-power-level": level, **(headers or {})}, path, body)


def willing(bank: Bank, credits: str, tier: str = "starter") -> Account:
    """An account that may be downgraded."""
    account = bank.open(credits, tier=tier)
    bank.rows("UPDATE user_credits SET power_level_downgrade = true WHERE user_id = $1", account.user_id)
    return account


def needs(proxy: Proxy, bank: Bank, name: str, level: str) -> Decimal:
    """What a call holds at a level."""
    answer = ask(proxy, bank.open(), name, level)
    return Decimal(answer.headers["x-uc-credits-held"])


def between(proxy: Proxy, bank: Bank, name: str, cheap: str, dear: str) -> str:
    """An amount that the cheaper level fits into and the dearer one does not."""
    least, most = needs(proxy, bank, name, cheap), needs(proxy, bank, name, dear)
    assert least < most
    return f"{least:f}"


@pytest.mark.parametrize(("name", "stream"), ASKED)
def test_off_unless_asked_for(proxy: Proxy, upstream: Upstream, bank: Bank, name: str, stream: bool) -> None:
    """An account that did not ask for it is refused at the level it wished for."""
    account = bank.open(between(proxy, bank, name, "eco", "balanced"))
    upstream.reset()
    answer = ask(proxy, account, name, "balanced", stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (402, "insufficient_credits")
    assert error["metadata"]["power_level"] == "balanced"
    assert asked(upstream) == []
    assert bank.balance(account).held == NOTHING


@pytest.mark.parametrize(("name", "stream"), ASKED)
def test_answered_at_eco(proxy: Proxy, upstream: Upstream, bank: Bank, name: str, stream: bool) -> None:
    """Where only eco fits, eco answers and is charged, and the headers and the usage row say what was wished for."""
    amount = between(proxy, bank, name, "eco", "balanced")
    account = willing(bank, amount)
    upstream.reset()
    answer = ask(proxy, account, name, "precision", stream)
    (row,) = bank.settled(account)
    (call,) = asked(upstream)
    assert answer.status_code == 200, answer.text
    levels = (answer.headers["x-uc-power-level"], answer.headers["x-uc-power-level-wished"])
    assert levels == ("eco", "precision")
    assert sides.side_of(call) == ORDERS["eco"][0]
    assert (row["power_level"], json.loads(row["metadata"])["power_level_wished"]) == ("eco", "precision")
    assert row["cost_credits"] == sides.charge(call, "eco") > NOTHING
    assert bank.balance(account).remaining == Decimal(amount) - row["cost_credits"]
    assert bank.audit() == []


def test_the_dearest_that_fits(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """From precision the next cheaper level is balanced, and it is taken when it fits."""
    account = willing(bank, between(proxy, bank, "chat", "balanced", "precision"))
    answer = ask(proxy, account, "chat", "precision")
    assert (answer.status_code, answer.headers["x-uc-power-level"]) == (200, "balanced")


@pytest.mark.parametrize("level", ORDERS)
def test_enough_at_the_wished_level(proxy: Proxy, upstream: Upstream, bank: Bank, level: str) -> None:
    """Who has enough is answered at the wished level, and no header speaks of another."""
    account = willing(bank, "100")
    answer = ask(proxy, account, "chat", level)
    (row,) = bank.settled(account)
    assert (answer.status_code, answer.headers["x-uc-power-level"]) == (200, level)
    assert "x-uc-power-level-wished" not in answer.headers
    assert "power_level_wished" not in json.loads(row["metadata"])


def test_nothing_cheaper_fits(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Where no level fits, the refusal is that of the wished one."""
    account = willing(bank, "0.000001")
    plain = bank.open("0.000001")
    refused, other = (ask(proxy, each, "chat", "precision") for each in (account, plain))
    assert (refused.status_code, refused.json()) == (402, other.json())
    assert refused.json()["error"]["metadata"]["power_level"] == "precision"
    assert asked(upstream) == []


def test_eco_has_nothing_below(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """At the cheapest level there is nothing to go down to."""
    account = willing(bank, "0.000001")
    answer = ask(proxy, account, "chat", "eco")
    assert (answer.status_code, answer.json()["error"]["metadata"]["power_level"]) == (402, "eco")


def test_not_below_the_tier(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A level that the tier does not include is not gone down to."""
    account = willing(bank, between(proxy, bank, "chat", "eco", "balanced"), tier="free")
    answer = ask(proxy, account, "chat", "precision")
    assert (answer.status_code, answer.json()["error"]["metadata"]["power_level"]) == (402, "precision")


@pytest.mark.parametrize("stream", [False, True])
def test_monthly_cap(proxy: Proxy, upstream: Upstream, bank: Bank, stream: bool) -> None:
    """A monthly cap that only eco fits into lets eco answer; one that nothing fits into is a 402 of its own."""
    room = Decimal(between(proxy, bank, "chat", "eco", "balanced"))
    account = willing(bank, "100")
    bank.rows("UPDATE user_credits SET monthly_cap = $2 WHERE user_id = $1", account.user_id, room)
    answer = ask(proxy, account, "chat", "balanced", stream)
    bank.settled(account)
    assert (answer.status_code, answer.headers["x-uc-power-level"]) == (200, "eco")
    bank.rows("UPDATE user_credits SET monthly_cap = 0 WHERE user_id = $1", account.user_id)
    refused = ask(proxy, account, "chat", "balanced", stream)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "monthly_cap")
    assert refused.json()["error"]["metadata"]["power_level"] == "balanced"


def test_with_an_idempotency_key(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A downgraded call has its idempotency key as any other: a second try is not paid, another body is refused."""
    account = willing(bank, between(proxy, bank, "chat", "eco", "balanced"))
    upstream.reset()
    key = {"idempotency-key": "once"}
    first, second = (ask(proxy, account, "chat", "balanced", headers=key) for _ in range(2))
    other = ask(proxy, account, "chat", "balanced", headers=key, max_tokens=40)
    bank.settled(account)
    assert (first.status_code, first.headers["x-uc-power-level"]) == (200, "eco")
    assert (second.status_code, other.status_code) == (409, 409)
    assert other.json()["error"]["code"] == "idempotency_reused"
    assert len(asked(upstream)) == 1
    assert bank.audit() == []


@pytest.mark.parametrize(("wish", "stream"), product(("header", "metadata", "suffix", "default"), (False, True)))
def test_however_it_was_wished(proxy: Proxy, upstream: Upstream, bank: Bank, wish: str, stream: bool) -> None:
    """A level is gone down from wherever the wish for it came from."""
    account = willing(bank, between(proxy, bank, "chat", "eco", "balanced"))
    fields: Json = {"model": "down chat:balanced" if wish == "suffix" else "down chat"}
    if wish == "metadata":
        fields["metadata"] = {"power_level": "balanced"}
    path, body = request("chat", stream, **fields)
    headers = {**account.headers, **({"x-power-level": "balanced"} if wish == "header" else {})}
    answer = post(proxy, headers, path, body)
    assert (answer.status_code, answer.headers.get("x-uc-power-level")) == (200, "eco"), answer.text
