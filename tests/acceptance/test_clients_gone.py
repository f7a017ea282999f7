"""Clients that leave: the hold ends every time, and what the provider did until then is charged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ASKS, STREAMED, Visitor, ask, asked, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_faults import GATE_WORD, WORDS_BEFORE, assert_delivered, ended
from tests.proxy import Proxy
from tests.upstream import Upstream

LEFT = 499
# LiteLLM's own keepalives: it opens the stream when they begin, and cancels the request of a client that leaves then.
PINGS = {"sse_keepalive_ping_interval_seconds": 0.05, "anthropic_sse_ping_interval_seconds": 0.05}
VISITS, AT_ONCE, LONGEST_STAY_SECONDS = 60, 6, 0.8


@pytest.fixture(scope="module")
def cancelling(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """A proxy that drops a request when its client has left."""
    settings = {
        "general_settings": {"cancel_on_disconnect": True, "custom_auth": "uc_litellm_plugin.user_api_key_auth"}
    }
    with paid_proxy(bank.url, config(running.url, **settings)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def pinging(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """A proxy that keeps a stream's connection alive until its first word."""
    with paid_proxy(bank.url, config(running.url, litellm_settings=PINGS)) as proxy:
        yield proxy


@pytest.fixture(params=["default", "cancel_on_disconnect"])
def either(request: pytest.FixtureRequest) -> Proxy:
    """Both kinds of proxy."""
    found: Proxy = request.getfixturevalue("proxy" if request.param == "default" else "cancelling")
    return found


@pytest.fixture(params=["proxy", "cancelling", "pinging"], ids=["default", "cancel_on_disconnect", "keepalives"])
def each(request: pytest.FixtureRequest) -> Proxy:
    """Every kind of proxy that treats a client in its own way when it leaves before the first word."""
    found: Proxy = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", STREAMED)
def test_staying_with_keepalives(pinging: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """Whoever stays to the end of a stream that is kept alive pays for all of it."""
    upstream.set_fault("slow", seconds=0.1)
    answer = ask(pinging, account, name, True)
    (call,) = asked(upstream)
    (row,) = bank.settled(account)
    assert (row["success"], row["cost_credits"]) == (True, prices.of_call(call)), answer.text


@pytest.mark.parametrize("name", ASKS)
def test_gone_in_a_plain_call(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A plain call goes on without its client, and is charged what the provider counted."""
    upstream.set_fault("gate")
    with Visitor(proxy, account, *request(name)):
        upstream.wait(gated=1)
    upstream.open()
    over = ended(bank, account)
    over.note("client gone in a plain call", f"{name}, plain", "nothing")
    (book,) = asked(upstream)
    assert (over.charged, over.row["cost_source"]) == (prices.of_call(book), "usage")


@pytest.mark.parametrize("name", ASKS)
def test_gone_in_a_cancelled_call(
    cancelling: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str
) -> None:
    """With cancel_on_disconnect the provider is left alone, and its input is charged."""
    upstream.set_fault("gate")
    with Visitor(cancelling, account, *request(name)):
        upstream.wait(gated=1)
    upstream.wait(left=1)
    over = ended(bank, account)
    over.note("client gone, cancel_on_disconnect", f"{name}, plain", "nothing")
    assert_delivered(over, name, 0)
    assert (over.row["status_code"], over.row["error_type"]) == (LEFT, "client_disconnected")


@pytest.mark.parametrize("name", STREAMED)
def test_gone_before_the_first_chunk(each: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A client that leaves before the first word pays for the input the provider accepted."""
    upstream.set_faults({"kind": "gate"}, {"kind": "hang", "after": 1})
    with Visitor(each, account, *request(name, stream=True)):
        upstream.wait(gated=1)
    upstream.open()
    over = ended(bank, account)
    over.note("client gone before the first chunk", f"{name}, streamed", "nothing")
    row = over.row
    assert over.charged == prices.of_tokens(row["model_group"], row["prompt_tokens"], row["completion_tokens"])
    assert row["prompt_tokens"] > 0
    assert (row["success"], row["status_code"], row["error_type"]) == (False, LEFT, "client_disconnected")


@pytest.mark.parametrize("name", STREAMED)
def test_gone_in_mid_stream(either: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A client that leaves after four words pays for the input and four words."""
    upstream.set_fault("gate", after=WORDS_BEFORE)
    with Visitor(either, account, *request(name, stream=True)) as visitor:
        visitor.hear(GATE_WORD)
    upstream.wait(left=1)
    over = ended(bank, account)
    over.note("client gone after 4 words", f"{name}, streamed", "4 words")
    assert_delivered(over, name, WORDS_BEFORE)
    row = over.row
    assert (row["success"], row["status_code"], row["error_type"]) == (False, LEFT, "client_disconnected")


@pytest.mark.parametrize("name", ["chat", "responses"])
def test_gone_while_it_reasons(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A reasoning model is read on for its usage, so that the thoughts nobody saw are charged."""
    upstream.set_fault("gate", after=WORDS_BEFORE)
    fields = {"max_tokens": None, "max_completion_tokens": 100} if name == "chat" else {"max_output_tokens": 100}
    with Visitor(proxy, account, *request(name, stream=True, model="reason", **fields)) as visitor:
        visitor.hear(GATE_WORD)
    upstream.open()
    over = ended(bank, account)
    over.note("client gone, a reasoning model", f"{name}, streamed", "4 words")
    (book,) = asked(upstream)
    assert (over.charged, over.row["cost_source"]) == (prices.of_call(book), "usage")
    assert (over.row["status_code"], over.row["error_type"]) == (LEFT, "client_disconnected")


def test_gone_at_any_moment(running: Upstream, upstream: Upstream, bank: Bank) -> None:
    """Whenever a client leaves, the call has ended when the proxy has: no hold waits for its lease."""
    account, seed = bank.open(tier="enterprise"), random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    visits = [(dice.choice(STREAMED), dice.uniform(0, LONGEST_STAY_SECONDS)) for _ in range(VISITS)]
    upstream.set_faults({"kind": "delay", "seconds": LONGEST_STAY_SECONDS / 2}, {"kind": "slow", "seconds": 0.02})
    with paid_proxy(bank.url, config(running.url, litellm_settings=PINGS)) as proxy:

        def visit(name: str, stays: float) -> None:
            with Visitor(proxy, account, *request(name, stream=True)):
                time.sleep(stays)  # what is tested is the moment

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(visit, *zip(*visits, strict=True)))
    transactions = [row["transaction_type"] for row in bank.transactions(account)]
    assert "expire" not in transactions
    assert transactions.count("hold") <= transactions.count("debit") + transactions.count("release")
    assert bank.balance(account).held == 0
    assert bank.audit() == []
