"""Whatever is sent to whichever route: one envelope, never a 500, and nothing of LiteLLM's own routes has changed."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.asking import ASKS, asked, post
from tests.acceptance.bank import Account, Bank
from tests.acceptance.test_api.client import ENVELOPE, Client
from tests.proxy import Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import api_routes
from uc_litellm_plugin.api_routes import ROUTES, ApiRoute

BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "text": b'"x"',
    "not UTF-8": b'{"amount": "\xff"}',
    "a lone surrogate": b'{"amount": "\\ud800", "reason": "\\udfff", "name": "\\ud800"}',
    "a surrogate's name": b'{"\\ud800": 1}',
    "NUL": b'{"amount": "\\u0000", "reason": "\\u0000", "key_name": "\\u0000", "model": "\\u0000"}',
    "a huge number": b'{"amount": ' + b"9" * 5000 + b', "max_latency_ms": 1e400, "package_id": 99999999999999999999}',
    "NaN": b'{"amount": NaN, "max_latency_ms": Infinity, "package_id": -Infinity}',
    "deep": b'{"metadata": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deeper": b"[" * 60_000,
    "a field twice": b'{"amount": "1", "amount": "2", "reason": "x", "idempotency_key": "k", "name": "x", "name": "y", '
    b'"power_level": "eco", "power_level": "eco", "model": "gpt-mini", "model": "gpt-mini", "package_id": 1}',
    "a field twice, deep": b'{"model": "gpt-mini", "metadata": {"a": [{"b": 1, "b": 2}]}}',
    "two bodies": b"{}{}",
    "many fields": b"{" + b",".join(b'"f%d": 1' % n for n in range(4000)) + b"}",
    "a field of LiteLLM's": b'{"api_base": "http://x", "user_config": {}, "model": "gpt-mini", "mock_response": "x"}',
}
LARGE = b'{"name": "' + b"x" * 70_000 + b'"}'


def concrete(route: ApiRoute) -> str:
    """A path that the route matches, without the prefix."""
    filled = re.sub(r"\{\w+(:path)?\}", "00000000-0000-0000-0000-000000000000", route.path)
    return filled.removeprefix(api_routes.PREFIX)


def client_for(route: ApiRoute, user: Client, service: Client, admin: Client) -> Client:
    """Who may call it."""
    return {"user": user, "service": service, "admin": admin}[route.audience]


@pytest.mark.parametrize("name", BODIES)
def test_strange_bodies(user: Client, service: Client, admin: Client, name: str) -> None:
    """A body that cannot be is a 400 on every route that takes one, and other routes do not mind it."""
    json = {"content-type": "application/json"}
    for route in ROUTES:
        client = client_for(route, user, service, admin)
        answer = client.ask(route.method, concrete(route), content=BODIES[name], headers=json)
        if route.method in ("POST", "PUT", "PATCH") and not route.path.endswith("/test"):
            allowed = (400, 200) if route.path.endswith("/explain") or name == "nothing" else (400, 404)
            assert answer.status_code in allowed, (route, name, answer.text)


NO_JSON = [
    *(
        "{",
        "{}{}",
        '{"a": 1, "a": 1}',
        '{"metadata": {"a": "1", "a": "2"}}',
        '{"amount": NaN}',
        '{"amount": -Infinity}',
    ),
    '{"metadata": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + "}",
]


@pytest.mark.parametrize("body", NO_JSON, ids=lambda body: body[:20])
def test_no_json(user: Client, service: Client, body: str) -> None:
    """Of two fields of a name none is taken, nor is what only Python takes for JSON: the code says that it is none."""
    for client, path in ((service, "/credits/debit"), (user, "/route/explain"), (user, "/api-keys")):
        options = {"content": body.encode(), "headers": {"content-type": "application/json"}}
        assert client.refused("POST", path, **options) == (400, "invalid_json"), path


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"])
def test_strange_content_types(user: Client, service: Client, admin: Client, kind: str) -> None:
    """A body that is not said to be JSON is refused, whatever it is."""
    for route in ROUTES:
        client = client_for(route, user, service, admin)
        answer = client.ask(route.method, concrete(route), content=b"a=1&b=2", headers={"content-type": kind})
        assert answer.status_code >= 400 or route.method in ("GET", "DELETE"), (route, answer.text)


def test_large_bodies(proxy: Proxy, user: Client, service: Client, admin: Client) -> None:
    """A body over 64 KB is refused on every route."""
    for route in ROUTES:
        client = client_for(route, user, service, admin)
        refused = client.refused(
            route.method, concrete(route), content=LARGE, headers={"content-type": "application/json"}
        )
        assert refused == (413, "body_too_large"), route


def test_endless_body(proxy: Proxy, account: Account) -> None:
    """A body without an announced end is cut off at the limit, before its sender is known."""
    where = urlsplit(proxy.url)
    with socket.create_connection((where.hostname, where.port or 80), 30) as connection:
        head = (
            "POST /api/v1/api-keys HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"
        )
        connection.sendall(f"{head}\r\n\r\n".encode())
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        heard = b""
        for _ in range(40):
            try:
                connection.sendall(chunk)
            except OSError:  # The proxy has hung up.
                break
        while b"body_too_large" not in heard and (received := connection.recv(65536)):
            heard += received
    assert b" 413 " in heard.split(b"\r\n")[0]


TEXTS = [
    "",
    " ",
    "\x00",
    "%",
    "x" * 300,
    "é",
    "🦊",
    "' OR 1=1 --",
    "-1",
    "1e9",
    "99999999999999999999",
    "null",
    "[]",
    "../..",
]
PARAMETERS = {
    "/credits/transactions": "limit offset cursor type from to model provider",
    "/credits/holds": "limit cursor",
    "/usage": "limit cursor from to model provider",
    "/api-keys": "limit cursor status",
    "/analytics/usage": "days group_by format",
    "/generation": "id",
    "/activity": "date",
}


@pytest.mark.parametrize("text", TEXTS)
def test_strange_parameters(user: Client, admin: Client, text: str) -> None:
    """No text in any parameter or path brings a 500."""
    for path, names in PARAMETERS.items():
        user.ask("GET", path, params=dict.fromkeys(names.split(), text))
        for name in names.split():
            user.ask("GET", path, params={name: text})
    admin.ask("GET", "/users", params={"cursor": text, "tier": text})
    quoted = str(httpx.QueryParams({"p": text})).removeprefix("p=").replace("+", "%20")
    for method, path in (
        ("GET", "/usage/"),
        ("DELETE", "/api-keys/"),
        ("PATCH", "/provider-keys/"),
        ("GET", "/users/"),
    ):
        (admin if path == "/users/" else user).ask(method, path + quoted)


MOMENTS = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999-23:59", "2026-01-31T12:00:00.123456789+05:30"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_far_moments(user: Client, moment: str) -> None:
    """Every time that RFC 3339 can write is a time."""
    for path in ("/credits/transactions", "/usage"):
        assert user.get(path, **{"from": moment})["next_cursor"] is None
        assert user.get(path, to=moment)["next_cursor"] is None


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer"}, {"authorization": "Bearer x"}, {"x-api-key": "x" * 600}]
)
def test_nobody(proxy: Proxy, headers: dict[str, str]) -> None:
    """Without a known key every route is a 401, the unknown ones too."""
    nobody = Client(proxy, None)
    for method, path in [*((route.method, concrete(route)) for route in ROUTES), ("GET", "/nothing")]:
        assert nobody.ask(method, path, headers=headers).status_code == 401


def test_a_byte_that_no_header_has(proxy: Proxy) -> None:
    """A control character in a header (RFC 9110, 5.5) is no HTTP: 400, before any route."""
    headers = {"x-api-key": "\x7f"}
    answer = httpx.get(f"{proxy.url}/api/v1/credits/balance", headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == 400


UNKNOWN = [
    *(("GET", "/nothing"), ("GET", "/credits/"), ("POST", "/"), ("GET", "/usage/x/y"), ("DELETE", "/users/x")),
    # Starlette's patterns end before a line end as well as at the end.
    *(
        ("GET", "/foo%0Abar"),
        ("GET", "/foo%0D%0A/bar"),
        ("POST", "/credits/grant%0A"),
        ("GET", "/credits/balance%0A"),
        ("GET", "/power-levels%0A"),
    ),
    *(("POST", "/credits/balance"), ("PUT", "/api-keys"), ("OPTIONS", "/usage"), ("TRACE", "/usage")),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_unknown_routes(user: Client, admin: Client, method: str, path: str) -> None:
    """What is none of our routes is closed to users, and 404 or 405 for administrators, in the envelope."""
    assert user.refused(method, path) == (403, "route_not_allowed")
    known = api_routes.methods_of(api_routes.PREFIX + path)
    answer = admin.ask(method, path)
    assert answer.status_code == (405 if known else 404)
    assert set(filter(None, answer.headers.get("allow", "").split(", "))) == set(known)


def test_nobody_writes_lines_into_the_log(proxy: Proxy, user: Client, service: Client, admin: Client) -> None:
    """A line end in a path ends no line of the log, neither in a refusal nor where it says who acts for whom."""
    paths = [(user, "/v1/threads/x%0aFORGED"), (user, "/x%0aFORGED"), (service, "/v1/models/x%0dFORGED%0aFORGED"),
             (admin, "/api/v1/x%0aFORGED")]  # fmt: skip
    before = len(proxy.log())
    for client, path in paths:
        httpx.get(f"{proxy.url}{path}", headers=client.headers, trust_env=False, timeout=30)
    lines = proxy.log()[before:].splitlines()
    assert any(r"acts for" in line and r"/v1/models/x\rFORGED\nFORGED" in line for line in lines), lines
    assert not [line for line in lines if line.startswith("FORGED")]


def test_pages_may_read_our_headers(proxy: Proxy, user: Client) -> None:
    """A page of another origin sees what a call was charged and when to try again, beside what LiteLLM shows it."""
    path, body = ASKS["chat"]
    headers = {**user.headers, "origin": "https://app.example"}
    answer = httpx.post(f"{proxy.url}{path}", headers=headers, json=body, trust_env=False, timeout=60)
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    assert exposed >= {name for name in answer.headers if name.startswith("x-uc-")} | {"retry-after", "x-should-retry"}
    assert "x-litellm-cache-key" in exposed


def test_litellms_own_errors(proxy: Proxy) -> None:
    """LiteLLM's own routes go on answering as they did."""
    master = {"authorization": f"Bearer {proxy.master_key}"}
    own = httpx.get(f"{proxy.url}/get/nothing", headers=master, trust_env=False, timeout=60)
    assert own.json() == {"detail": "Not Found"}
    bad = httpx.post(f"{proxy.url}/utils/token_counter", headers=master, json={}, trust_env=False, timeout=60)
    assert bad.status_code == 422
    assert "detail" in bad.json()
    assert not ENVELOPE & set(bad.json())


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"'])
def test_paid_bodies_that_are_no_object(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, body: bytes
) -> None:
    """LiteLLM fails on them before it asks who calls, as docs/compatibility.md says; nothing is held or sent."""
    for path, _ in ASKS.values():
        assert post(proxy, account.headers, path, body).status_code in (400, 500), path
    assert asked(upstream) == []
    assert [row["transaction_type"] for row in bank.transactions(account)] == ["bonus"]
