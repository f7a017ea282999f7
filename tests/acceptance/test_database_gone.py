"""PostgreSQL goes away and comes back: no call is let through unpaid, none is lost, and nothing is restarted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from pydantic import SecretStr

from tests.acceptance import prices
from tests.acceptance.asking import Visitor, ask, asked, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.pace import Seconds
from tests.proxy import Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import migrations, settings
from uc_litellm_plugin.cluster import Cluster

REFUSED_WITHIN_SECONDS = 2.0
BACK_WITHIN_SECONDS = 5.0


class Server:
    """A PostgreSQL of the test's own that can be killed."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: it is closed to other users, and for root PostgreSQL runs as one.
        self.home = Path(mkdtemp(prefix="uc-gone-"))
        self.home.chmod(0o711)
        self.cluster = Cluster(self.home / "postgres")
        self.cluster.home.mkdir(mode=0o711)
        self.cluster.start()

    def crash(self) -> None:
        """Stops it at once, as `pg_ctl stop -m immediate` does: connections break, the next start recovers."""
        pid = int((self.cluster.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        while self.cluster.is_running():
            os.sched_yield()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.cluster.stop()
    shutil.rmtree(server.home)


@pytest.fixture(scope="module")
def bank(server: Server) -> Bank:
    url = server.cluster.dsn
    defaults = settings.load({})
    asyncio.run(migrations.migrate(defaults.model_copy(update={"database_url": SecretStr(url)})))
    return Bank(url)


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    with paid_proxy(bank.url, config(running.url)) as proxy:
        yield proxy


def assert_refused(proxy: Proxy, account: Account) -> None:
    """Every endpoint answers 503 in time and says when to try again."""
    for name in ("chat", "messages", "responses", "embeddings", "completions"):
        in_time = Seconds(REFUSED_WITHIN_SECONDS)
        answer = ask(proxy, account, name)
        assert (answer.status_code, in_time.are_over) == (503, False), answer.text
        assert int(answer.headers["retry-after"]) >= 1


def test_gone_and_back(proxy: Proxy, upstream: Upstream, bank: Bank, server: Server) -> None:
    """Calls under way get their answers and are charged later, new ones get 503, and all is well once it is back."""
    account = bank.open()
    assert ask(proxy, account, "chat").status_code == 200
    upstream.set_fault("gate")
    with (
        Visitor(proxy, account, *request("chat")) as plain,
        Visitor(proxy, account, *request("messages", stream=True)) as stream,
        Visitor(proxy, account, *request("responses", stream=True)) as other,
    ):
        upstream.wait(gated=3)
        server.crash()
        assert_refused(proxy, account)
        upstream.open()
        assert [visitor.hear_all().split(" ")[1] for visitor in (plain, stream, other)] == ["200"] * 3
    assert len(asked(upstream)) == 4
    server.cluster.start()
    assert_back(proxy, account)
    bank.settled(account, 5)
    assert bank.balance(account).remaining == 100 - sum(map(prices.of_call, asked(upstream)))
    assert bank.audit() == []


def assert_back(proxy: Proxy, account: Account) -> None:
    """The same process takes calls again."""
    assert refused_no_more(proxy, account).status_code == 200
    assert proxy.returncode is None


def refused_no_more(proxy: Proxy, account: Account) -> httpx.Response:
    """The first answer that is no 503; whatever is asked later than may be gets none."""
    in_time, is_late = Seconds(BACK_WITHIN_SECONDS), False
    while (answer := ask(proxy, account, "chat")).status_code == 503:
        assert not is_late, answer.text
        is_late = in_time.are_over
    return answer


def test_keys_are_not_trusted_from_memory(proxy: Proxy, upstream: Upstream, bank: Bank, server: Server) -> None:
    """A key that is revoked just after a crash does not pass for one that was seen before it."""
    account = bank.open()
    assert ask(proxy, account, "chat").status_code == 200
    server.crash()
    server.cluster.start()
    bank.execute(f"UPDATE user_api_keys SET is_active = false WHERE id = '{account.key_id}'")
    assert refused_no_more(proxy, account).status_code == 401
