"""`Idempotency-Key`: a retry is the same call and is paid once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import OpenAI

from tests.acceptance.asking import ASKS, asked, post, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.proxy import Proxy
from tests.upstream import Upstream


def keyed(proxy: Proxy, account: Account, key: str, name: str = "chat", **fields: object) -> httpx.Response:
    """One ask with an idempotency key."""
    path, body = request(name, False, **fields)
    return post(proxy, {**account.headers, "Idempotency-Key": key}, path, body)


@pytest.mark.parametrize("name", list(ASKS))
def test_a_second_try_is_not_paid(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """After the answer, the same key and body get a 409 that clients do not retry, naming the call that was paid."""
    first = keyed(proxy, account, "once", name)
    (row,) = bank.settled(account)
    second = keyed(proxy, account, "once", name)
    assert (first.status_code, second.status_code) == (200, 409)
    assert second.headers["x-should-retry"] == "false"
    assert first.headers["x-uc-request-id"] in second.text
    assert len(asked(upstream)) == 1
    assert bank.balance(account).remaining == 100 - row["cost_credits"]


@pytest.mark.parametrize("name", ["chat", "responses", "messages", "embeddings"])
def test_metadata_is_part_of_the_body(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str
) -> None:
    """What LiteLLM writes into a request's metadata does not make a retry another call."""
    answers = [keyed(proxy, account, "once", name, metadata={"user_id": "u-1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[1].json()["error"].get("code", "idempotency_finished") == "idempotency_finished"


def test_another_body_is_refused(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A key that was used for another body is a mistake of the caller's, and says so."""
    keyed(proxy, account, "mine")
    bank.settled(account)
    answer = keyed(proxy, account, "mine", max_tokens=51)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_reused")
    assert len(asked(upstream)) == 1


def test_other_keys_and_users_are_other_calls(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A key belongs to one account; without a key every request is a call of its own."""
    other = bank.open()
    answers = [keyed(proxy, account, "a"), keyed(proxy, account, "b"), keyed(proxy, other, "a")]
    answers += [post(proxy, account.headers, *request("chat")) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len(asked(upstream)) == 5


def test_while_it_is_under_way(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A second try during the first gets a 409 with Retry-After, which the official clients retry until it is done."""
    upstream.set_fault("gate")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(keyed, proxy, account, "twice")
        upstream.wait(gated=1)
        second = keyed(proxy, account, "twice")
        upstream.open()
        assert first.result().status_code == 200
    assert (second.status_code, second.headers["x-should-retry"]) == (409, "true")
    assert int(second.headers["retry-after"]) >= 1
    bank.settled(account)
    assert len(asked(upstream)) == 1


def test_twenty_at_once(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """However many tries come at the same moment, one is sent and one is paid."""
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: keyed(proxy, account, "storm").status_code, range(20)))
    assert statuses.count(200) == 1
    assert set(statuses) == {200, 409}
    (row,) = bank.settled(account)
    assert len(asked(upstream)) == 1
    assert bank.balance(account).remaining == 100 - row["cost_credits"]
    assert bank.audit() == []


def test_a_call_that_came_to_nothing_may_be_repeated(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account
) -> None:
    """A key whose call failed and was not charged is free for the next try; so is one whose hold was refused."""
    upstream.set_fault("status", status=500, times=1)
    failed = keyed(proxy, account, "again")
    retried = keyed(proxy, account, "again")
    assert (failed.status_code, retried.status_code) == (500, 200)
    poor = bank.open("0.000001")
    refused = keyed(proxy, poor, "later")
    bank.add(poor.user_id, "10")
    paid = keyed(proxy, poor, "later")
    assert (refused.status_code, paid.status_code) == (402, 200)
    assert bank.balance(poor).held == NOTHING


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "na\u00efve"])
def test_keys_that_are_none(proxy: Proxy, upstream: Upstream, account: Account, key: str) -> None:
    """A key that cannot be kept as it is gets a 400 rather than being ignored."""
    headers = {**account.headers, "Idempotency-Key": key}
    path, body = request("chat")
    answer = httpx.post(
        f"{proxy.url}{path}",
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        json=body,
        trust_env=False,
        timeout=30,
    )
    assert answer.status_code == 400, answer.text
    assert asked(upstream) == []


def test_the_official_client_sends_none(client: OpenAI, upstream: Upstream) -> None:
    """The OpenAI client makes no key of its own: its retries after a lost answer are calls of their own."""
    assert client._idempotency_header is None
    client.chat.completions.create(model="gpt-mini", messages=[{"role": "user", "content": "hi"}], max_tokens=10)
    assert len(asked(upstream)) == 1
