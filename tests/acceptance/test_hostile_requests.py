"""Hostile requests: none breaks the proxy, none is free, and each refusal says why."""

from __future__ import annotations

import json
from decimal import Decimal

import httpx
import pytest

from tests.acceptance import prices, table
from tests.acceptance.asking import Visitor, ask, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.hostile import EVERY, SURROGATES, Hostile
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

HOSTILE = "Hostile requests"


def note(name: str, answer: httpx.Response, charged: Decimal) -> None:
    table.begin(HOSTILE, "request", "got", "message", "charged")
    table.add(HOSTILE, name, answer.status_code, message(answer)[:110] if answer.status_code != 200 else "", charged)


def message(answer: httpx.Response) -> str:
    """The error's text, wherever the answer's shape has it."""
    try:
        body: Json = answer.json()
    except ValueError:
        return answer.text
    error = body.get("error", body.get("detail", body))
    return str(error.get("message", error) if isinstance(error, dict) else error)


@pytest.mark.parametrize("hostile", EVERY, ids=lambda hostile: hostile.name[:60])
def test_hostile(proxy: Proxy, upstream: Upstream, bank: Bank, hostile: Hostile) -> None:
    """It gets what the table says: refused before anything is held or sent, or answered and paid for."""
    account = bank.open()
    answer = post(proxy, {**account.headers, **hostile.headers}, hostile.path, hostile.body)
    if answer.status_code == 200:
        bank.settled(account)
    note(hostile.name, answer, 100 - bank.balance(account).remaining)
    assert answer.status_code == hostile.status, message(answer)
    assert hostile.says in message(answer)
    assert_paid(bank, account, upstream) if hostile.reaches else assert_untouched(bank, account, upstream)


def assert_untouched(bank: Bank, account: Account, upstream: Upstream) -> None:
    assert asked(upstream) == []
    assert [row["transaction_type"] for row in bank.transactions(account)] == ["bonus"]


def assert_paid(bank: Bank, account: Account, upstream: Upstream) -> None:
    """The one call was charged what the provider counted, out of a hold that covered it."""
    (book,) = asked(upstream)
    (row,) = bank.usage(account)
    assert row["cost_credits"] == prices.of_call(book) == 100 - bank.balance(account).remaining
    assert row["cost_credits"] > 0
    facts = json.loads(row["metadata"])
    assert Decimal(facts["held"]) >= row["cost_credits"]
    assert book["body"].get("max_tokens", book["body"].get("max_completion_tokens")) <= facts["max_output_tokens"]
    assert book["headers"].keys().isdisjoint({"x-litellm-timeout", "x-litellm-num-retries"})


def test_two_limits_at_once(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Of two limits the smaller is held and both are overwritten with it; OpenAI refuses the pair, for nothing."""
    answer = ask(proxy, account, "chat", max_tokens=50, max_completion_tokens=40_000)
    bank.settled(account)
    note("max_tokens beside max_completion_tokens", answer, 100 - bank.balance(account).remaining)
    (book,) = asked(upstream)
    caps = {name: book["body"][name] for name in ("max_tokens", "max_completion_tokens") if name in book["body"]}
    assert set(caps.values()) == {50}
    assert answer.status_code in (200, 400)
    assert (answer.status_code == 200) == (bank.balance(account).remaining < 100)


def test_many_prompts(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A hundred prompts in one completion are held a hundred times over, and charged as they come."""
    answer = ask(proxy, account, "completions", prompt=["say 7 words"] * 100, max_tokens=50)
    assert answer.status_code == 200
    held, least = Decimal(answer.headers["x-uc-credits-held"]), prices.of_tokens("instruct", 300, 100 * 50)
    assert held >= least
    bank.settled(account)
    note("100 prompts in one completion", answer, 100 - bank.balance(account).remaining)
    assert_paid(bank, account, upstream)


def test_lone_surrogates(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Text that is no Unicode is refused or answered; it never breaks anything, and it is never free."""
    for content in SURROGATES:
        upstream.reset()
        payer = bank.open()
        answer = post(proxy, payer.headers, "/v1/chat/completions", content)
        rows = bank.settled(payer) if asked(upstream) else []
        note("lone surrogate", answer, 100 - bank.balance(payer).remaining)
        assert answer.status_code < 500, answer.text
        assert bank.balance(payer).remaining == 100 - sum(map(prices.of_call, asked(upstream)))
        assert len(rows) == len(asked(upstream))


def test_large_body(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """Five megabytes of text are held at their worst case: whoever has not so much gets 402."""
    text = "say 7 words " + "boat " * 1_000_000
    few = bank.open("5")
    answer = ask(proxy, few, "chat", messages=[{"role": "user", "content": text}])
    note("5 MB of text, 5 credits", answer, 5 - bank.balance(few).remaining)
    assert answer.status_code == 402
    assert asked(upstream) == []


def test_retries_cannot_be_asked_for(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A client's header does not make the proxy try again and again."""
    upstream.set_fault("status", status=500)
    path, body = request("chat")
    answer = post(proxy, {**account.headers, "x-litellm-num-retries": "50"}, path, body)
    assert (answer.status_code, len(asked(upstream))) == (500, 1)
    bank.settled(account)


def test_nul_in_a_header(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """A NUL in a header never reaches the database."""
    account = bank.open()
    key = Account(account.user_id, f"{account.api_key}\r\nx-session-id: a\0b", "")
    with Visitor(proxy, key, *request("chat")) as odd:
        answer = odd.hear_all()
    assert answer.split(" ")[1] in ("200", "400")
    rows = bank.settled(account) if asked(upstream) else []
    assert all(row["session_id"] == "ab" for row in rows)


def test_get(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A GET of a paid path, with the model in its query, is not a call."""
    url = f"{proxy.url}/v1/chat/completions?model=gpt-mini"
    answer = httpx.get(url, headers=account.headers, trust_env=False, timeout=60)
    note("GET /v1/chat/completions", answer, Decimal(0))
    assert answer.status_code in (403, 405)
    assert_untouched(bank, account, upstream)
