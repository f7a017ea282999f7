"""Ways to pay less than what was delivered, each of which worked once."""

from __future__ import annotations

import json
import socket
from decimal import Decimal
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ask, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400}}


def raw(account: Account, method: str, path: str, body: Json | None = None, *, last: bool = False) -> bytes:
    """A request as bytes, for connections that a well-behaved client would not make."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: proxy",
        f"Authorization: Bearer {account.api_key}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(["Connection: close"] if last else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def connected(proxy: Proxy) -> socket.socket:
    """A plain connection to the proxy."""
    target = urlsplit(proxy.url)
    return socket.create_connection((target.hostname or "", target.port or 0), timeout=60)


def received(connection: socket.socket, until: bytes = b"") -> bytes:
    """What comes on a connection, up to a mark or to its end."""
    seen = b""
    while not (until and until in seen.replace(b" ", b"")) and (data := connection.recv(65_536)):
        seen += data
    return seen


def test_leaving_just_before_the_usage(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A client that reads all and leaves at the finish reason pays for its thirty images all the same."""
    upstream.set_faults({"kind": "slow", "seconds": 0.1})
    path, body = request("chat", True)
    body["messages"] = [{"role": "user", "content": [{"type": "text", "text": "say 7 words"}, *[IMAGE] * 30]}]
    with connected(proxy) as connection:
        connection.sendall(raw(account, "POST", path, body, last=True))
        received(connection, b'"finish_reason":"stop"')
    (row,) = bank.settled(account)
    assert row["cost_credits"] >= prices.of_call(asked(upstream)[0])


def test_leaving_a_model_that_thinks(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Where a model's thinking cannot be seen and its usage does not come in time, leaving costs the output limit."""
    upstream.set_faults({"kind": "slow", "seconds": 0.2})
    path, body = request("chat", True, model="reason", max_tokens=900)
    body["messages"] = [{"role": "user", "content": "think 500 tokens say 300 words"}]
    with connected(proxy) as connection:
        connection.sendall(raw(account, "POST", path, body, last=True))
        received(connection, b'"content":')
    (row,) = bank.settled(account)
    assert row["completion_tokens"] == 900
    assert row["cost_credits"] >= prices.of_call(asked(upstream)[0])


def test_pipelined_requests_are_strangers(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A chat behind a fetch on the same connection is a call of its own, answered and charged."""
    path, body = request("chat")
    with connected(proxy) as connection:
        fetch = raw(account, "GET", "/v1/responses/resp_unknown")
        connection.sendall(fetch + raw(account, "POST", path, body, last=True))
        answers = received(connection).split(b"HTTP/1.1 ")[1:]
    assert answers[-1].startswith(b"200"), answers
    (row,) = bank.settled(account)
    assert row["cost_credits"] == prices.of_call(asked(upstream)[0])


@pytest.mark.parametrize("address", ["not-an-address", "fe80::1%eth0", "10.0.0.1, evil", "'; --"])
def test_an_address_that_is_none(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, address: str) -> None:
    """What a client writes into X-Forwarded-For cannot blank its usage row."""
    path, body = request("chat")
    assert post(proxy, {**account.headers, "X-Forwarded-For": address}, path, body).status_code == 200
    (row,) = bank.settled(account)
    assert row["total_tokens"] == 13
    assert bank.rows("SELECT * FROM uc.settlement_quarantine") == []


def test_text_that_packs(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A text of phrases that are single tokens for one tokenizer is held at what another one makes of it."""
    text = ".DataGridViewColumnHeadersHeightSizeMode" * 500 + " say 1 words"
    answer = ask(proxy, account, "chat", messages=[{"role": "user", "content": text}], max_tokens=1)
    held = Decimal(answer.headers["x-uc-credits-held"])
    assert held >= prices.of_tokens("gpt-mini", 4_000, 1)


@pytest.mark.parametrize("tool", [{"googleSearch": {}}, {"type": "function", "urlContext": {}}, {"type": "web_search"}])
def test_tools_of_the_provider(proxy: Proxy, upstream: Upstream, account: Account, tool: Json) -> None:
    """A tool that would run at the provider is refused, however it is spelled."""
    answer = ask(proxy, account, "chat", tools=[tool])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_tool")
    assert asked(upstream) == []


def test_fetching_what_was_left(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A response whose stream was left in the middle is paid in part, and so cannot be fetched whole."""
    upstream.set_fault("hang", after=4)
    path, body = request("responses", True, input="say 30 words")
    with connected(proxy) as connection:
        connection.sendall(raw(account, "POST", path, body, last=True))
        begun = received(connection, b"output_text.delta")
    upstream.wait(left=1)
    (response_id,) = {json.loads(line[6:])["response"]["id"] for line in begun.splitlines() if b'"response":{' in line}
    bank.settled(account)
    url = f"{proxy.url}/v1/responses/{response_id}"
    assert httpx.get(url, headers=account.headers, trust_env=False, timeout=60).status_code >= 400
