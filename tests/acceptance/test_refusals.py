"""Nobody spends what is not theirs: no credits, unknown keys, and whoever tries to let another pay."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.acceptance import prices
from tests.acceptance.asking import MESSAGES, STREAMED, Visitor, ask, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import anthropic_client, openai_client
from tests.proxy import Proxy
from tests.upstream import Upstream
from uc_litellm_plugin.requests import CAP_FIELDS

PAYER = "x-uc-user-id"


def assert_untouched(bank: Bank, account: Account, upstream: Upstream) -> None:
    """Nothing reached the provider, nothing was held, and no ledger row was written for it."""
    assert asked(upstream) == []
    assert bank.balance(account).held == 0
    assert {row["transaction_type"] for row in bank.transactions(account)} <= {"bonus"}
    assert bank.usage(account) == []


def paid(bank: Bank, account: Account, upstream: Upstream) -> Decimal:
    """What an account paid for its only call, which is what the provider counted."""
    bank.settled(account)
    (book,) = asked(upstream)
    charged = 100 - bank.balance(account).remaining
    assert charged == prices.of_call(book)
    return charged


@pytest.mark.parametrize(("name", "stream"), [("embeddings", False), *product(STREAMED, (False, True))])
def test_no_credits(proxy: Proxy, upstream: Upstream, bank: Bank, name: str, stream: bool) -> None:
    """Without credits every endpoint answers 402 in the documented shape, and nothing else happens."""
    poor = bank.open("0")
    answer = ask(proxy, poor, name, stream)
    error = answer.json()["error"]
    assert answer.status_code == 402
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "credits" in error["message"]
    dialect = ("error", "billing_error") if name.startswith("messages") else (None, "insufficient_credits")
    assert (answer.json().get("type"), error["type"]) == dialect
    assert (error["code"], error["param"]) == ("insufficient_credits", None)
    facts = error["metadata"]
    assert set(facts) == {"required", "available", "held", "affordable_max_tokens", "power_level"}
    assert (facts["available"], facts["held"], facts["affordable_max_tokens"]) == ("0.00", "0.00", 0)
    assert_untouched(bank, poor, upstream)


def test_official_clients_without_credits(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Both official clients raise an APIStatusError with status 402, and neither tries again."""
    poor = bank.open("0")
    with openai_client(proxy, poor).with_options(max_retries=3) as client, pytest.raises(openai.APIStatusError) as ours:
        client.chat.completions.create(model="gpt-mini", messages=MESSAGES)  # type: ignore[arg-type]
    body: Any = ours.value.body
    assert (ours.value.status_code, ours.value.code, ours.value.type) == (402, *["insufficient_credits"] * 2)
    assert body["metadata"]["available"] == "0.00"
    with (
        anthropic_client(proxy, poor).with_options(max_retries=3) as claude,
        pytest.raises(anthropic.APIStatusError) as theirs,
    ):
        claude.messages.create(model="claude", max_tokens=50, messages=MESSAGES)  # type: ignore[arg-type]
    body = theirs.value.body
    assert (theirs.value.status_code, body["type"]) == (402, "error")
    assert (body["error"]["type"], body["error"]["code"]) == ("billing_error", "insufficient_credits")
    assert_untouched(bank, poor, upstream)


@pytest.mark.parametrize("name", ["chat", "completions", "responses", "messages"])
def test_what_is_affordable_works(proxy: Proxy, upstream: Upstream, bank: Bank, name: str) -> None:
    """The limit a 402 names is accepted, and one token more is not."""
    few = bank.open("0.05")
    field = "max_output_tokens" if name == "responses" else "max_tokens"
    refused = ask(proxy, few, name, False, **{field: 4000})
    error = refused.json()["error"]
    assert refused.status_code == 402
    affordable = error["metadata"]["affordable_max_tokens"]
    assert 0 < affordable < 4000
    assert str(affordable) in error["message"]
    assert ask(proxy, few, name, False, **{field: affordable + 1}).status_code == 402
    assert asked(upstream) == []
    assert ask(proxy, few, name, False, **{field: affordable}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "chat bridged", "completions", "responses", "responses bridged"])
def test_unnamed_limit_is_lowered(proxy: Proxy, upstream: Upstream, bank: Bank, name: str, stream: bool) -> None:
    """A limit the client did not name is the level's, or what the credits allow; the provider gets exactly that."""
    field = "max_output_tokens" if name.startswith("responses") else "max_tokens"
    rich, few = bank.open("100"), bank.open("0.06")
    for account in (rich, few):
        answer = ask(proxy, account, name, stream, **{field: None})
        assert answer.status_code == 200
        cap = int(answer.headers["x-uc-max-output-tokens"])
        assert cap == 4096 if account is rich else 256 <= cap < 4096
        sent = asked(upstream)[-1]["body"]
        assert {sent.get(limit) for limit in CAP_FIELDS} - {None} == {cap}


def test_retry_when_calls_in_flight_stand_in_the_way(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Where only the holds of calls under way block a call, the 402 says when to try again."""
    few = bank.open("0.05")
    upstream.set_fault("gate")
    with Visitor(proxy, few, *request("chat", max_tokens=600)) as visitor:
        upstream.wait(gated=1)
        refused = ask(proxy, few, "chat", max_tokens=600)
        assert (refused.status_code, refused.headers.get("retry-after")) == (402, "5")
        assert Decimal(refused.json()["error"]["metadata"]["held"]) > 0
        upstream.open()
        visitor.hear_all()
    assert ask(proxy, few, "chat", max_tokens=600).status_code == 200


@pytest.mark.parametrize("key", ["sk-uc-unknown", "", "x" * 600, "sk-uc-\u00e4", "sk-uc-a b", "Bearer"])
@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_unknown_keys(proxy: Proxy, upstream: Upstream, key: str, name: str) -> None:
    """A key nobody knows gets 401 with a message, never more."""
    path, body = request(name)
    headers = {b"authorization": f"Bearer {key}".encode()} if key else {}
    answer = httpx.post(proxy.url + path, headers=headers, json=body, trust_env=False, timeout=60)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"]
    assert asked(upstream) == []


def test_revoked_and_lapsed_keys(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A key stops working with the statement that revokes it, though it was in use a moment before."""
    lapsed = bank.key(account.user_id)
    for key, ends in ((account, "is_active = false"), (lapsed, "expires_at = clock_timestamp()")):
        assert ask(proxy, key, "chat").status_code == 200
        bank.execute(f"UPDATE user_api_keys SET {ends} WHERE id = '{key.key_id}'")
        assert ask(proxy, key, "chat").status_code == 401
    assert len(asked(upstream)) == 2


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_suspended(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, status: str) -> None:
    """A suspended or closed account gets 403 at once."""
    assert ask(proxy, account, "chat").status_code == 200
    bank.settled(account)
    bank.execute(f"UPDATE user_credits SET status = '{status}' WHERE user_id = '{account.user_id}'")
    for name in ("chat", "messages", "responses"):
        answer = ask(proxy, account, name)
        assert answer.status_code == 403
        assert "not active" in answer.json()["error"]["message"]
    assert len(asked(upstream)) == 1


def administrators(proxy: Proxy, bank: Bank) -> list[tuple[str, Account]]:
    """The keys that pay for nothing themselves."""
    master = Account("", proxy.master_key, "")
    return [("master", master), *((role, bank.open(role=role)) for role in ("service", "admin"))]


def test_administrators_name_the_payer(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Master, service and admin keys get 403 without a payer, and with one exactly that user pays."""
    for _, key in administrators(proxy, bank):
        upstream.reset()
        path, body = request("chat")
        for headers in ({}, {PAYER: "nobody-we-know"}, {PAYER: ""}, {PAYER: "a" * 300}):
            refused = post(proxy, {**key.headers, **headers}, path, body)
            assert refused.status_code == 403, (headers, refused.text)
        assert asked(upstream) == []
        payer = bank.open()
        assert post(proxy, {**key.headers, PAYER: payer.user_id}, path, body).status_code == 200
        assert paid(bank, payer, upstream) > 0


@pytest.mark.parametrize("name", ["chat", "messages", "responses", "embeddings"])
def test_nobody_lets_another_pay(proxy: Proxy, upstream: Upstream, bank: Bank, name: str) -> None:
    """Whatever body and headers say, whoever authenticated pays."""
    account, other = bank.open(), bank.open()
    path, body = request(name)
    named = [f"x-litellm-{name}" for name in ("end-user-id", "customer-id", "user-id", "user")] + [
        "x-openwebui-user-id"
    ]
    headers = {**account.headers, PAYER: other.user_id, **dict.fromkeys(named, other.user_id)}
    extra: dict[str, Any] = {"metadata": {"user_id": other.user_id, "user_api_key_user_id": other.user_id}}
    if name != "messages":
        extra["user"] = other.user_id
    answer = post(proxy, headers, path, {**body, **extra})
    assert answer.status_code == 200, answer.text
    assert paid(bank, account, upstream) > 0
    assert bank.balance(other).remaining == 100
    assert bank.usage(other) == []


def test_unpriced(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A model without a price is refused, and the operator's zero is free, logged, and has a usage row."""
    refused = ask(proxy, account, "chat", model="unpriced")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unpriced_model")
    assert_untouched(bank, account, upstream)
    assert ask(proxy, bank.open("0"), "chat", model="free").status_code == 200
    assert ask(proxy, account, "chat", model="free").status_code == 200
    (row,) = bank.settled(account)
    assert (row["cost_credits"], row["success"], row["completion_tokens"]) == (0, True, 7)
    assert "dep-free of free is free of charge" in proxy.log()
