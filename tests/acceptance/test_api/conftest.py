"""One proxy for all tests of the REST API, with a sealing key and without limits of pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_api.client import Client
from tests.proxy import GPT_MINI_PRICES, Json, Proxy, deployment
from tests.upstream import Upstream
from uc_litellm_plugin import vault
from uc_litellm_plugin.api_routes import PREFIX

SETTINGS = """
limits: {{api_requests_per_minute: null, failed_keys_per_minute: null}}
health: {{down_after: 1000}}
tiers: {{free: {{power_levels: [eco, balanced]}}}}
byok: {{allow_http: true, allowed_hosts: ["{host}"]}}
"""


@pytest.fixture(scope="session")
def proxy(running: Upstream, bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The stock proxy with the plugin in it; provider keys may point at the upstream."""
    settings = Path(tmp_path_factory.mktemp("api"), "uc.yaml")
    settings.write_text(SETTINGS.format(host=running.url.removeprefix("http://")))
    key = vault.new_sealing_key()
    served = config(running.url)
    served["model_list"].append(deployment("gpt-4o-mini", "openai/gpt-4o-mini", f"{running.url}/v1", GPT_MINI_PRICES))
    with paid_proxy(bank.url, served, UC_CONFIG=str(settings), UC_SEALING_KEYS=key) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _faultless(upstream: Upstream) -> None:
    """What an earlier test told the provider is over."""


@pytest.fixture
def user(proxy: Proxy, account: Account) -> Client:
    """The account's own key."""
    return Client(proxy, account.api_key)


@pytest.fixture
def other(proxy: Proxy, bank: Bank) -> Client:
    """Another user's key."""
    return Client(proxy, bank.open().api_key)


@pytest.fixture
def as_role(proxy: Proxy, bank: Bank, account: Account) -> Callable[[str], Client]:
    """Makes a key with a role, of an account of its own, that names the account."""

    def make(role: str) -> Client:
        own = bank.open("0")
        return Client(proxy, bank.key(own.user_id, role).api_key, account.user_id)

    return make


@pytest.fixture
def service(as_role: Callable[[str], Client]) -> Client:
    """A service key that names the account."""
    return as_role("service")


@pytest.fixture
def admin(as_role: Callable[[str], Client]) -> Client:
    """An admin key that names the account."""
    return as_role("admin")


@pytest.fixture(scope="session")
def document(proxy: Proxy) -> Json:
    """The proxy's own OpenAPI document, with our paths only."""
    whole: Json = httpx.get(f"{proxy.url}/openapi.json", trust_env=False, timeout=180).json()
    paths = {path: item for path, item in whole["paths"].items() if path.startswith(f"{PREFIX}/")}
    return {**whole, "paths": paths}


@pytest.fixture
def levels(bank: Bank) -> Iterator[None]:
    """Puts back what is done to the power levels, which all tests share."""
    columns = "name description preferred_providers fallback_strategy cost_multiplier max_latency_ms min_quality_score "
    columns += "default_max_output_tokens is_active"
    bank.execute("CREATE TABLE uc.levels_before AS SELECT * FROM uc.power_level_configs")
    yield
    bank.execute(
        f"UPDATE uc.power_level_configs AS c SET {', '.join(f'{name} = b.{name}' for name in columns.split())} "
        "FROM uc.levels_before AS b WHERE b.power_level = c.power_level; DROP TABLE uc.levels_before"
    )
