"""One proxy for all tests of the REST API, with a sealing key and without limits of pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.test_api.client import Client
from tests.proxy import Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import vault

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
    with paid_proxy(bank.url, config(running.url), UC_CONFIG=str(settings), UC_SEALING_KEYS=key) as proxy:
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
