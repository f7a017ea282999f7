"""A real proxy, a provider and a database for each test module that pays for calls."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.acceptance import table
from tests.acceptance.bank import SEALING, Account, Bank
from tests.conftest import database_at
from tests.proxy import GPT_MINI_PRICES, Json, Proxy, deployment, litellm_config
from tests.upstream import Upstream

DEAR_PRICES = {name: price * 10 for name, price in GPT_MINI_PRICES.items()}
# How long a stream that may reason unseen is read on when its client has left.
DRAIN_SECONDS = 5
NEVER = 1000
# As `uc-litellm serve` sets it: the OpenAI client's own retries would be attempts that nobody sees.
ENVIRONMENT = {"DEFAULT_MAX_RETRIES": "0", **SEALING}


@pytest.fixture(scope="session")
def running() -> Iterator[Upstream]:
    """The provider's process."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(running: Upstream) -> Upstream:
    """The provider, without calls and faults."""
    running.reset()
    return running


@pytest.fixture(scope="session")
def bank(server_url: str, template: str) -> Bank:
    """A migrated database that all tests of this directory share; each test has its own accounts."""
    return Bank(clone(server_url, template))


@pytest.fixture(scope="session")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """The stock proxy with the plugin in it."""
    with paid_proxy(bank.url, config(running.url)) as proxy:
        yield proxy


@pytest.fixture
def account(bank: Bank) -> Account:
    """A user with 100 credits."""
    return bank.open()


@pytest.fixture
def client(proxy: Proxy, account: Account) -> Iterator[OpenAI]:
    """The official OpenAI client with the account's key."""
    with openai_client(proxy, account) as client:
        yield client


@pytest.fixture
def claude(proxy: Proxy, account: Account) -> Iterator[Anthropic]:
    """The official Anthropic client with the account's key."""
    with anthropic_client(proxy, account) as client:
        yield client


def openai_client(proxy: Proxy, account: Account) -> OpenAI:
    return OpenAI(base_url=f"{proxy.url}/v1", api_key=account.api_key, max_retries=0, timeout=60)


def anthropic_client(proxy: Proxy, account: Account) -> Anthropic:
    return Anthropic(base_url=proxy.url, api_key=account.api_key, max_retries=0, timeout=60)


def config(upstream_url: str, **extra: Any) -> Json:
    """The tests' config with groups that time out, are retried, and fall back to a dearer one."""
    v1 = f"{upstream_url}/v1"
    timed, retried, cheap = (
        deployment(name, "openai/gpt-4o-mini", v1, GPT_MINI_PRICES) for name in ("timed", "retried", "cheap")
    )
    timed["litellm_params"]["timeout"] = 1
    # Retries of one deployment are LiteLLM's own strategy; a plan tries each candidate once.
    retried["model_info"]["uc_routing"] = False
    router = {
        "num_retries": 0,
        "disable_cooldowns": True,
        "fallbacks": [{"cheap": ["dear"]}],
        "model_group_retry_policy": {"retried": {"InternalServerErrorRetries": 2}},
    }
    dear = deployment("dear", "openai/gpt-4o-mini", v1, DEAR_PRICES)
    made = litellm_config(upstream_url, model_list=[timed, retried, cheap, dear], router_settings=router)
    return {**made, **{section: {**made.get(section, {}), **value} for section, value in extra.items()}}


@contextmanager
def paid_proxy(database_url: str, config: Json, workers: int = 1, **env: str) -> Iterator[Proxy]:
    """A proxy with the plugin, on this database."""
    with tempfile.TemporaryDirectory(prefix="uc-state-") as state:
        settings = Path(state, "uc.yaml")
        # Tests make the same deployments fail again and again, and each wants them tried.
        health = f"health: {{down_after: {NEVER}}}\n"
        settings.write_text(f"holds: {{abort_drain_s: {DRAIN_SECONDS}}}\n{health}")
        ours = {"UC_STATE_DIR": state, "UC_DATABASE_URL": database_url, "UC_CONFIG": str(settings)}
        environment = {**ENVIRONMENT, **ours, **env}
        with Proxy(config, environment, workers=workers, cwd=Path(state)) as proxy:
            yield proxy


def clone(server_url: str, template: str) -> str:
    """The URL of a new copy of the migrated template; it goes with the server."""
    name = f"uc_acceptance_{uuid.uuid4().hex[:8]}"

    async def make() -> None:
        connection = await asyncpg.connect(server_url)
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        finally:
            await connection.close()

    asyncio.run(make())
    return database_at(server_url, name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The tables that the tests filled, ready to be copied."""
    for title, lines in table.rendered():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
