"""Every cell of the table of who may call what, asked of the real proxy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.acceptance import table
from tests.acceptance.asking import asked
from tests.acceptance.bank import Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_routes import served
from tests.proxy import Json, Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import api_routes, authorisation
from uc_litellm_plugin.authorisation import Cell, Role, cell
from uc_litellm_plugin.proxy_routes import Served

CELLS = "Who may call what"
DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
AT_ONCE = 6
SECONDS = 60.0
# Answers of a stream that never ends; that it began is enough.
ENDLESS = "/mcp"
# LiteLLM refuses these before it asks who calls: a feature that is switched off, or not licensed.
BEFORE_ASKING = ("/scim/", "/claude_code_gateway/")
# Here LiteLLM asks for a secret of its own, by any bearer; without it there is nothing to be had.
OWN_SECRET = "/lens/"
UPGRADE = {
    "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
    "sec-websocket-key": "MDEyMzQ1Njc4OWFiY2RlZg==",
}  # fmt: skip
OURS = {"invalid_api_key", "route_not_allowed", "unsupported_endpoint", "payer_missing", "unknown_account"}


def is_endless(route: Served) -> bool:
    return f"{route.concrete}/".startswith(f"{ENDLESS}/")


class Answer:
    """What became of one request; status 0 where there was no answer in time."""

    def __init__(self, status: int, code: str = "") -> None:
        self.status = status
        self.code = code

    def __repr__(self) -> str:
        return f"{self.status} {self.code}"


class Caller:
    """Asks the proxy with the key of a role."""

    def __init__(self, proxy: Proxy, headers: dict[str, str]) -> None:
        self._url = proxy.url
        self._headers = headers
        self._client = httpx.Client(trust_env=False, timeout=SECONDS)

    def ask(self, route: Served, **headers: str) -> Answer:
        """An answer's status and our code in it; a connection that was closed meanwhile is made again."""
        method = {"WEBSOCKET": "GET", "MOUNT": "GET"}.get(route.method, route.method)
        body: Json | None = {} if method in ("POST", "PUT", "PATCH") else None
        sent = {**self._headers, **headers, **(UPGRADE if route.method == "WEBSOCKET" else {})}
        seconds = 3 if is_endless(route) else SECONDS
        for _ in range(3):
            try:
                got = self._client.request(method, self._url + route.concrete, headers=sent, json=body, timeout=seconds)
            except httpx.ReadTimeout:
                return Answer(0, "in no time")
            except httpx.TransportError:
                continue
            return Answer(got.status_code, code_of(got))
        return Answer(0, "no answer")


def code_of(answer: httpx.Response) -> str:
    """The code by which our authentication refuses, else the beginning of the body."""
    if answer.status_code == 404:  # Our own routes say `unknown_account`, too.
        return answer.text[:60]
    found = re.search(rf'"code":\s*"({"|".join(OURS)})"', answer.text)
    return found[1] if found else answer.text[:60]


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy of its own: administrators' requests may leave traces in it. The limits are tested elsewhere."""
    settings = tmp_path_factory.mktemp("authorisation") / "uc.yaml"
    settings.write_text("limits: {failed_keys_per_minute: null, api_requests_per_minute: null}\n")
    with paid_proxy(bank.url, config(running.url), UC_CONFIG=str(settings)) as proxy:
        # Makes the document once, which takes LiteLLM seconds and loads what it loads late.
        httpx.get(f"{proxy.url}/openapi.json", trust_env=False, timeout=SECONDS)
        yield proxy


@pytest.fixture(scope="module")
def callers(proxy: Proxy, bank: Bank) -> dict[Role, Caller]:
    keys: dict[Role, dict[str, str]] = {
        "anonymous": {}, "user": bank.open().headers,
        "service": bank.open(role="service").headers, "admin": bank.open(role="admin").headers,
    }  # fmt: skip
    return {role: Caller(proxy, headers) for role, headers in keys.items()}


def everything() -> list[Served]:
    """Our routes and LiteLLM's; those that end or drain something come last."""
    ours = [Served(route.method, route.path, True) for route in api_routes.ROUTES]
    return sorted([*ours, *served()], key=lambda route: "drain" in route.path)


def is_right(said: Cell, role: Role, route: Served, got: Answer) -> bool:
    """Whether an answer is what the cell says."""
    if said in ("401", "403", "400"):
        return is_refused(said, route, got)
    if said == "open":
        return got.status != 0 or is_endless(route)
    if said == "named":
        return (got.status, got.code) == (403, "payer_missing")
    passed = got.code not in OURS - {"payer_missing"} or (role == "admin" and got.code == "unsupported_endpoint")
    if said == "yes":
        return passed and (role == "admin" or got.status not in (0, 401, 403))
    return passed and got.code != "payer_missing" and got.status not in (0, 401, 429, 500)


def is_refused(said: Cell, route: Served, got: Answer) -> bool:
    if route.path.startswith(BEFORE_ASKING) and got.status in (403, 404):
        return True
    codes = {"401": "invalid_api_key", "403": "route_not_allowed", "400": "unsupported_endpoint"}
    no_body = route.method in ("HEAD", "WEBSOCKET")
    return got.status == int(said) and (no_body or got.code == codes[said])


def test_every_cell(proxy: Proxy, upstream: Upstream, callers: dict[Role, Caller]) -> None:
    """Each route answers each role as the table says, and no provider hears of any of it but by administrators."""
    wrong: list[tuple[Role, str, str, Cell, Answer]] = []
    count: Counter[Cell] = Counter()
    table.begin(CELLS, "cell", "tested", "wrong")
    for role, caller in callers.items():
        if role == "admin":
            # Theirs is LiteLLM's own health check, which tries every deployment.
            assert asked(upstream) == []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for route, got in zip(everything(), pool.map(caller.ask, everything()), strict=True):
                said = cell(role, route.method, route.concrete, authenticated=route.authenticated)
                count[said] += 1
                if not is_right(said, role, route, got):
                    wrong.append((role, route.method, route.path, said, got))
    for said, tested in sorted(count.items()):
        table.add(CELLS, said, tested, sum(each[3] == said for each in wrong))
    table.add(CELLS, "all", sum(count.values()), len(wrong))
    assert wrong == []
    assert sum(count.values()) == 4 * len(everything()) > 4_000


def test_an_open_route_gives_a_user_nothing(callers: dict[Role, Caller]) -> None:
    """Where LiteLLM does not ask us, a user's or a service's key opens nothing that is closed without any."""
    opened = []
    for route in [each for each in everything() if not each.authenticated and not each.path.startswith(OWN_SECRET)]:
        if callers["anonymous"].ask(route).status not in (401, 403):
            continue
        for role in ("user", "service"):
            got = callers[role].ask(route)
            if got.status not in (401, 403):
                opened.append((role, route, got))
    assert opened == []


def test_who_is_named_is_served(callers: dict[Role, Caller], bank: Bank) -> None:
    """Services and administrators that name an account pass where the table says so; one nobody has is a 403."""
    payer, wrong = bank.open(), []
    for route in everything():
        for role in ("service", "admin"):
            if cell(role, route.method, route.concrete, authenticated=route.authenticated) != "named":
                continue
            caller = callers[role]
            named = caller.ask(route, **{"x-uc-user-id": payer.user_id})
            nobody = caller.ask(route, **{"x-uc-user-id": "nobody"})
            if named.code in OURS or named.status in (0, 401, 429, 500) or nobody.code != "unknown_account":
                wrong.append((role, route, named, nobody))
    assert wrong == []


def test_the_document_holds_the_table() -> None:
    """docs/api.md shows what the code says; `python -m uc_litellm_plugin.authorisation` prints it anew."""
    text = DOCUMENT.read_text("utf-8")
    found = re.search(r"<!-- authorisation table: begin -->\n(.*?)\n<!-- authorisation table: end -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == authorisation.markdown()
