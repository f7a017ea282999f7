"""docs/api.md has every route, and what it shows is so: each example runs against the proxy, in each language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.asking import ask
from tests.acceptance.bank import Bank
from tests.acceptance.test_api import examples
from tests.acceptance.test_api.examples import DOCUMENT, Heard
from tests.proxy import Json, Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import api_routes
from uc_litellm_plugin.api import api_keys, calls, envelope, pages
from uc_litellm_plugin.api_routes import ROUTES, ApiRoute
from uc_litellm_plugin.errors import Refusal
from uc_litellm_plugin.settings import LimitSettings

SOURCE = Path(api_routes.__file__).parent
WHO = {"user": "every key", "service": "service and admin keys", "admin": "admin keys"}
SECTIONS = examples.of_routes()

Environment = dict[str, str]
_HELD = "SELECT * FROM hold_credits(gen_random_uuid(), $1, 1.5, 1.5, interval '2 minutes', 'balanced', $2)"


def named(route: ApiRoute) -> str:
    return f"{route.method} {route.path.replace(':path', '')}"


@pytest.fixture
def at_home(bank: Bank, running: Upstream) -> Iterator[None]:
    """Provider keys are tried at the tests' own provider."""
    (before,) = bank.rows("SELECT key_test_url FROM providers WHERE name = 'openai'")
    change = "UPDATE providers SET key_test_url = $1 WHERE name = 'openai'"
    bank.rows(change, f"{running.url}/v1/models")
    yield
    bank.rows(change, before["key_test_url"])


@pytest.fixture
def environment(proxy: Proxy, bank: Bank, at_home: None, levels: None) -> Callable[[], Environment]:
    """What the examples need: an account that has made a call and is at another, and a key of each role."""

    def make() -> Environment:
        account = bank.open()
        answer = ask(proxy, account, "chat", model="gpt-4o-mini")
        bank.settled(account)
        bank.rows(_HELD, account.user_id, json.dumps({"model": "gpt-4o-mini", "endpoint": "chat"}))
        keys = {f"{role.upper()}_KEY": bank.open("0", role=role).api_key for role in ("service", "admin")}
        return {"BASE_URL": proxy.url, "API_KEY": account.api_key, "USER_ID": account.user_id,
                "REQUEST_ID": answer.headers["x-uc-request-id"], **keys}  # fmt: skip

    return make


def check(heard: list[Heard]) -> None:
    """Each section's example asked its route, and got the status and the shape that are shown there."""
    asked = {each.section for each in heard}
    assert SECTIONS.keys() <= asked, SECTIONS.keys() - asked
    for each in heard:
        section = SECTIONS.get(each.section)
        if section is None:
            assert each.status == 200, each
            continue
        route = api_routes.find(each.method, each.path)
        assert route is not None, each
        assert (named(route), each.status) == (section.name, section.status), each
        assert list(examples.differences(section.answer, json.loads(each.body))) == [], each


def test_curl(environment: Callable[[], Environment], tmp_path: Path) -> None:
    """Every curl example is answered as the document shows."""
    check(examples.run_curl(environment(), tmp_path))


def test_python(environment: Callable[[], Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python example is answered as the document shows."""
    with monkeypatch.context() as patch:
        check(examples.run_python(environment(), patch))


def test_javascript(environment: Callable[[], Environment], tmp_path: Path) -> None:
    """Every JavaScript example is answered as the document shows."""
    check(examples.run_javascript(environment(), tmp_path))


def test_setup_is_named(environment: Callable[[], Environment]) -> None:
    """The variables that the examples are run with are those that the document has the reader set, and two ids."""
    exported = set(re.findall(r"^export (\w+)=", DOCUMENT, re.MULTILINE))
    assert environment().keys() == exported | {"REQUEST_ID"}
    for name in ("REQUEST_ID", "KEY_ID"):
        assert f"`{name}`" in DOCUMENT


def test_every_route_has_its_section() -> None:
    """No route is without a section, no section without a route, and each says who may call."""
    assert SECTIONS.keys() == {named(route) for route in ROUTES}
    for route in ROUTES:
        about = ", about one account" if route.account else ""
        assert f"\nWho: {WHO[route.audience]}{about}.\n" in SECTIONS[named(route)].text, route


def test_every_parameter_is_named(document: Json) -> None:
    """A section names each parameter of its route and each field of its body."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            wanted = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
            wanted |= set(_fields(document, operation))
            text = SECTIONS[f"{method.upper()} {path}"].text
            assert {name for name in wanted if f"`{name}`" not in text} == set(), (method, path)


def _fields(document: Json, operation: Json) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {})
    for body in content.values():
        name = body["schema"]["$ref"].removeprefix("#/components/schemas/")
        yield from document["components"]["schemas"][name]["properties"]


_RAISING = ("api/*", "identity", "bearers", "oidc", "routes", "provider_keys", "provider_form")
# Of calls of models, which these routes make none of; and the words of classes that always get a word of their own.
_ELSEWHERE = {"unsupported_endpoint", "not_offered", "forbidden", "taken", "invalid_request"}


def test_every_code_is_named() -> None:
    """The table of errors names every code that our routes answer with, under its status where a class has one."""
    table = DOCUMENT.split("\n## Errors\n")[1].split("\n## ")[0]
    files = [file for name in _RAISING for file in SOURCE.glob(f"{name}.py")]
    raised = {code for file in files for code in re.findall(r'code="(\w+)"', file.read_text())}
    assert {code for code in raised - _ELSEWHERE if f"`{code}`" not in table} == set()
    rows = dict(re.findall(r"^\| (\d{3}) \| (.*) \|$", table, re.MULTILINE))
    for kind in _kinds(Refusal):
        if (code := kind.__dict__.get("default_code")) and code not in _ELSEWHERE:
            assert f"`{code}`" in rows[str(kind.status)], kind


def _kinds(base: type[Refusal]) -> Iterator[type[Refusal]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def test_limits_are_those_of_the_code() -> None:
    """The table of limits has the numbers of the code and of the settings' defaults."""
    table = DOCUMENT.split("\n## Limits\n")[1].split("\n## ")[0]
    limits = LimitSettings()  # type: ignore[call-arg]
    for number in (f"{envelope.MOST_BYTES} bytes", f"api_requests_per_minute` ({limits.api_requests_per_minute})",
                   f"failed_keys_per_minute` ({limits.failed_keys_per_minute})", f"list | {pages.MOST_ROWS} |",
                   f"report | {calls.MOST_GROUPS} |", f"account | {api_keys.MOST_KEYS} |"):  # fmt: skip
        assert number in table, number


def test_differences_are_seen() -> None:
    """A name too many, another type, a number in place of a decimal string are differences; null and order are none."""
    shown = {"a": "1.50", "b": [{"c": None}], "d": "x"}
    assert not list(examples.differences(shown, {"d": None, "b": [{"c": 1}, {}], "a": "2"}))
    for other in ({**shown, "e": 1}, {**shown, "a": 1.5}, {**shown, "a": "x"}, {**shown, "b": [{}]}, {"a": "1"}):
        assert list(examples.differences(shown, other)), other
