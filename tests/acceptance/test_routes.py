"""Every route of the proxy is billed, free on purpose, refused for users, or known to be LiteLLM's public own."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import httpx
import pytest

from tests.acceptance import table
from tests.acceptance.asking import asked
from tests.acceptance.bank import Account, Bank
from tests.acceptance.public_routes import PUBLIC
from tests.proxy import Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import proxy_routes, routes
from uc_litellm_plugin.proxy_routes import Served

ROUTES = "The proxy's routes"
BILLED = {
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/v1/embeddings", "/embeddings"),
    *("/v1/responses", "/responses", "/v1/messages"),
}
FREE = {
    *("/models", "/v1/models", "/models/{model_id}", "/v1/models/{model_id}"),
    *("/responses/{response_id}", "/v1/responses/{response_id}"),
}


@cache
def served() -> tuple[Served, ...]:
    """All routes, those of included routers and of features that load later too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        return proxy_routes.served()


def kind(route: Served) -> str:
    """What becomes of a user's request at this route."""
    return routes.kind(route.method, route.concrete) if route.authenticated else "public"


def test_every_route_has_its_place() -> None:
    """Exactly the billed paths are billed, exactly the free ones free, and only known ones are open to all."""
    found: dict[str, set[str]] = {"billed": set(), "free": set(), "refused": set(), "public": set()}
    for route in served():
        found[kind(route)].add(route.path)
    table.begin(ROUTES, "place", "routes")
    for name, count in sorted(Counter(map(kind, served())).items()):
        table.add(ROUTES, name, count)
    assert len(served()) > 900
    assert found["billed"] == BILLED
    assert found["free"] == FREE
    assert found["public"] - PUBLIC == set()


def test_websockets_are_refused() -> None:
    """No WebSocket is open: each asks who calls, and none is on the list of what is let through."""
    sockets = [route for route in served() if route.method == "WEBSOCKET"]
    assert len(sockets) >= 10
    assert {kind(route) for route in sockets} == {"refused"}


SPEND = re.compile(
    r"chat|completion|embed|responses|messages|image|audio|speech|rerank|ocr|moderation|video|batch|realtime|generate|"
    r"gemini|vertex|bedrock|anthropic|cohere|mistral|azure|openai|assembly|cursor|vllm|milvus|search|rag|a2a|agent|mcp"
)


def worth_trying() -> list[Served]:
    """Routes that may spend or manage, in all methods but those for looking; the billed ones excepted."""
    tried = [r for r in served() if r.method in ("POST", "PUT", "PATCH", "DELETE") and kind(r) != "billed"]
    spending = [r for r in tried if SPEND.search(r.path)]
    return [*spending, *[r for r in tried if r not in spending][::7]]


def test_no_other_route_serves_a_user(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """With a user's key, every other route that could spend is refused, and nothing reaches the provider."""
    body = {"model": "gpt-mini", "messages": [{"role": "user", "content": "say 7 words"}], "input": "x", "prompt": "x"}
    open_ones, broken = [], []
    with httpx.Client(base_url=proxy.url, headers=account.headers, trust_env=False, timeout=60) as client:
        for route in worth_trying():
            try:
                answer = client.request(route.method, route.concrete, json=body)
            except httpx.ReadError:
                # A refusal that has not read the body closes the connection, at times before its answer is read.
                answer = client.request(route.method, route.concrete, json=body)
            if answer.status_code < 400 and kind(route) != "public":
                open_ones.append((route.method, route.path, answer.status_code))
            if answer.status_code >= 500 and kind(route) != "public":
                broken.append((route.method, route.path, answer.status_code, answer.text[:100]))
    table.begin(ROUTES, "place", "routes")
    table.add(ROUTES, "tried with a user's key, refused by the proxy", len(worth_trying()) - len(open_ones))
    assert asked(upstream) == []
    assert bank.balance(account).remaining == 100
    assert (open_ones, broken) == ([], [])


@pytest.mark.parametrize(
    "path", ["/v1/realtime", "/realtime", "/openai/v1/realtime", "/v1/responses", "/vertex_ai/live"]
)
def test_websocket_handshakes_are_refused(proxy: Proxy, upstream: Upstream, account: Account, path: str) -> None:
    """A WebSocket with a user's key is not accepted."""
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers = {**account.headers, **upgrade, "sec-websocket-key": "MDEyMzQ1Njc4OWFiY2RlZg=="}
    answer = httpx.get(f"{proxy.url}{path}?model=gpt-mini", headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == 403
    assert asked(upstream) == []


def test_free_routes(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """The list of models is free, even without credits, and asks for a key."""
    poor = bank.open("0")
    listed = httpx.get(f"{proxy.url}/v1/models", headers=poor.headers, trust_env=False, timeout=60)
    assert "gpt-mini" in {model["id"] for model in listed.json()["data"]}
    assert httpx.get(f"{proxy.url}/v1/models", trust_env=False, timeout=60).status_code == 401
    assert asked(upstream) == []


def test_stored_responses_belong_to_their_maker(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A stored response is fetched by the user whose call made it, for nothing, and by nobody else."""
    made = httpx.post(f"{proxy.url}/v1/responses", headers=account.headers, timeout=60, trust_env=False,
                      json={"model": "gpt-mini", "input": "say 3 words", "max_output_tokens": 50}).json()  # fmt: skip
    bank.settled(account)
    charged = bank.balance(account).remaining
    mine, theirs = (
        httpx.get(f"{proxy.url}/v1/responses/{made['id']}", headers=who.headers, trust_env=False, timeout=60)
        for who in (account, bank.open())
    )
    assert (mine.status_code, theirs.status_code) == (200, 403)
    assert mine.json()["output"] == made["output"]
    assert bank.balance(account).remaining == charged
