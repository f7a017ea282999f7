"""Without our `custom_auth`, LiteLLM says who calls; its master key pays only for a user it names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ASKS, STREAMED, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_refusals import PAYER
from tests.proxy import Proxy
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    made = config(running.url)
    with paid_proxy(bank.url, {**made, "general_settings": {}}) as proxy:
        yield proxy


@pytest.fixture
def master(proxy: Proxy) -> dict[str, str]:
    """Headers with the master key."""
    return {"authorization": f"Bearer {proxy.master_key}"}


@pytest.mark.parametrize(("name", "stream"), [(n, False) for n in ASKS] + [(n, True) for n in STREAMED])
def test_named_user_pays(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, master: dict[str, str], name: str, stream: bool
) -> None:
    """Master key and X-UC-User-Id: that user pays what the provider counted."""
    path, body = request(name, stream)
    answer = post(proxy, {**master, PAYER: account.user_id}, path, body)
    assert answer.status_code == 200, answer.text
    (row,) = bank.settled(account)
    (book,) = asked(upstream)
    assert row["cost_credits"] == prices.of_call(book) == 100 - bank.balance(account).remaining
    assert bank.audit() == []


@pytest.mark.parametrize("name", ["chat", "embeddings", "responses", "messages"])
def test_nobody_named(proxy: Proxy, upstream: Upstream, bank: Bank, master: dict[str, str], name: str) -> None:
    """The master key alone, or with a user nobody knows, gets 403, also when the body names a user."""
    path, body = request(name)
    user = bank.open().user_id
    for headers, more in (({}, {}), ({PAYER: "nobody"}, {}), ({}, {"user": user} if name != "messages" else {})):
        answer = post(proxy, {**master, **headers}, path, {**body, **more})
        assert answer.status_code == 403, answer.text
    assert asked(upstream) == []


def test_unknown_key(proxy: Proxy, upstream: Upstream, account: Account) -> None:
    """Our API keys mean nothing here: LiteLLM refuses them, since it has no database to look them up in."""
    path, body = request("chat")
    assert 400 <= post(proxy, account.headers, path, body).status_code < 500
    assert asked(upstream) == []


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/moderations", "/v1/rerank", "/v1/audio/speech"])
def test_other_kinds_are_refused(
    proxy: Proxy, upstream: Upstream, account: Account, master: dict[str, str], path: str
) -> None:
    """Kinds of calls that cannot be held are refused here as well, before anything is sent."""
    models = {"images": "image", "moderations": "moderate", "rerank": "rerank", "audio": "speech"}
    model = models[path.split("/")[2]]
    body = {"model": model, "input": "x", "prompt": "x", "query": "x", "documents": ["x"], "voice": "alloy"}
    answer = post(proxy, {**master, PAYER: account.user_id}, path, body)
    assert answer.status_code == 400, answer.text
    assert asked(upstream) == []
