"""Proxies end, asked or not: what was answered is charged once, and what was not is given back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.acceptance import prices
from tests.acceptance.asking import Visitor, ask, asked, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import ENVIRONMENT, config
from tests.acceptance.test_faults import GATE_WORD, WORDS_BEFORE
from tests.chaos.postgres import Server
from tests.proxy import Json, Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import migrations, settings

LEASE_SECONDS = 6.0
# For a busy machine: what is waited for comes in a moment otherwise.
PATIENCE_SECONDS = 60.0
UC_YAML = f"holds: {{lease_s: {LEASE_SECONDS}, extend_every_s: 1.5, sweep_every_s: 1, abort_drain_s: 2}}\n"
# Plain calls wait before their first byte, streams after four words.
GATES: list[Json] = [
    *({"kind": "gate", "after": WORDS_BEFORE, "match": {"path": path}} for path in ("/v1/messages", "/v1/responses")),
    {"kind": "gate"},
]
PLAIN, STREAM, LEFT = ("chat", False), ("messages", True), ("responses", True)
KINDS = (PLAIN, STREAM, LEFT)
# Of each kind so many, so that both of two workers have some to end.
OF_EACH = 3
# What uvicorn logs when it has heard the signal.
BEGUN = "Shutting down"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that outlives a proxy, with short leases in its settings."""
    (tmp_path / "uc.yaml").write_text(UC_YAML)
    return tmp_path


@contextmanager
def proxy_at(state: Path, url: str, upstream: Upstream, workers: int = 1) -> Iterator[Proxy]:
    ours = {"UC_STATE_DIR": str(state), "UC_DATABASE_URL": url, "UC_CONFIG": str(state / "uc.yaml")}
    with Proxy(config(upstream.url), {**ENVIRONMENT, **ours}, workers=workers, cwd=state) as proxy:
        yield proxy


def warm(proxy: Proxy, bank: Bank, upstream: Upstream) -> None:
    """The proxy has answered each kind of call: on a machine that is busy enough, the first ones may be refused."""
    account = bank.open()
    for kind in KINDS:
        until(lambda kind=kind: ask(proxy, account, *kind).status_code == 200)  # type: ignore[misc]
    until(lambda: bank.balance(account).held == 0)
    upstream.reset()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("workers", [1, 2], ids=["default server", "num_workers 2"])
def test_asked_to_end(state: Path, bank: Bank, upstream: Upstream, workers: int, number: signal.Signals) -> None:
    """Calls under way get their answers first, and each has been charged once when the proxy has ended."""
    accounts = [(kind, bank.open()) for kind in KINDS for _ in range(OF_EACH)]
    with proxy_at(state, bank.url, upstream, workers) as proxy, ExitStack() as stack:
        warm(proxy, bank, upstream)
        upstream.set_faults(*GATES)
        visitors = [(kind, stack.enter_context(Visitor(proxy, a, *request(*kind)))) for kind, a in accounts]
        upstream.wait(gated=len(visitors), timeout=PATIENCE_SECONDS)
        end(proxy, upstream, visitors, number)
    assert waiting(state) == 0
    assert_all_charged(bank, upstream, accounts)


def end(
    proxy: Proxy, upstream: Upstream, visitors: Sequence[tuple[tuple[str, bool], Visitor]], number: signal.Signals
) -> None:
    """Some clients leave in mid-stream, the signal comes at once, and the others hear their answers to the end."""
    for kind, visitor in visitors:
        if kind == LEFT:
            visitor.hear(GATE_WORD)
            visitor.leave()
    proxy.send_signal(number)
    until(lambda: proxy.log().count(BEGUN) >= proxy.workers)
    upstream.open()
    for kind, visitor in visitors:
        if kind != LEFT:
            assert ("message_stop" if kind == STREAM else '"usage"') in visitor.hear_all()
    proxy.wait()


def assert_all_charged(bank: Bank, upstream: Upstream, accounts: Sequence[tuple[tuple[str, bool], Account]]) -> None:
    """Each account paid once: for the whole answer as the provider counts it, or for what was delivered."""
    books = asked(upstream)
    assert len(books) == len(accounts)
    for kind, account in accounts:
        (row,) = bank.usage(account)
        charges = [entry for entry in bank.transactions(account) if entry["transaction_type"] == "debit"]
        assert [-entry["amount"] for entry in charges] == [row["cost_credits"]]
        assert bank.balance(account).held == 0
        assert row["cost_credits"] == due(kind, row, books), kind
    assert bank.audit() == []


def due(kind: tuple[str, bool], row: Json, books: Sequence[Json]) -> object:
    if kind == LEFT:
        assert (row["status_code"], row["completion_tokens"]) == (499, WORDS_BEFORE)
        return prices.of_tokens("gpt-mini", row["prompt_tokens"], row["completion_tokens"])
    path, _ = request(*kind)
    return prices.of_call(next(book for book in books if book["path"] == path and book["finished"]))


def test_asked_to_end_without_postgres(state: Path, upstream: Upstream) -> None:
    """With PostgreSQL away the charges go to the outbox, and the next start settles them."""
    with Server() as server:
        bank = migrated(server.url)
        accounts = [(kind, bank.open()) for kind in KINDS]
        with proxy_at(state, server.url, upstream) as proxy, ExitStack() as stack:
            warm(proxy, bank, upstream)
            upstream.set_faults(*GATES)
            visitors = [(kind, stack.enter_context(Visitor(proxy, a, *request(*kind)))) for kind, a in accounts]
            upstream.wait(gated=len(visitors), timeout=PATIENCE_SECONDS)
            server.crash()
            end(proxy, upstream, visitors, signal.SIGTERM)
        assert waiting(state) == len(accounts)
        server.start()
        with proxy_at(state, server.url, upstream):
            for _, account in accounts:
                bank.settled(account)
            until(lambda: waiting(state) == 0)
        assert_all_charged(bank, upstream, accounts)


def test_killed(state: Path, bank: Bank, upstream: Upstream) -> None:
    """A killed proxy's holds are freed by another when their lease is over; that one's own calls keep theirs."""
    lost, kept = bank.open(), bank.open()
    with proxy_at(state, bank.url, upstream) as survivor, proxy_at(state, bank.url, upstream) as victim:
        for proxy in (survivor, victim):
            warm(proxy, bank, upstream)
        upstream.set_faults(*GATES)
        with Visitor(survivor, kept, *request(*PLAIN)) as waits, Visitor(victim, lost, *request(*STREAM)) as cut:
            cut.hear(GATE_WORD)
            upstream.wait(gated=2, timeout=PATIENCE_SECONDS)
            victim.kill()
            until(lambda: bank.balance(lost).held == 0)
            assert bank.balance(kept).held > 0
            upstream.open()
            assert '"usage"' in waits.hear_all()
        bank.settled(kept)
    assert [row["transaction_type"] for row in bank.transactions(lost)] == ["bonus", "hold", "expire"]
    assert [row["transaction_type"] for row in bank.transactions(kept)] == ["bonus", "hold", "debit"]
    assert lived(bank.transactions(kept)) > LEASE_SECONDS
    assert bank.balance(lost).remaining == 100
    assert bank.balance(kept).remaining == 100 - prices.of_call(
        next(book for book in asked(upstream) if book["finished"])
    )
    assert bank.audit() == []


def lived(transactions: Sequence[Json]) -> float:
    """Seconds from a hold to its charge."""
    _, hold, debit = (row["created_at"] for row in transactions)
    return float((debit - hold).total_seconds())


def migrated(url: str) -> Bank:
    """The tables in a database that is this test's own."""
    asyncio.run(migrations.migrate(settings.load({}).model_copy(update={"database_url": SecretStr(url)})))
    return Bank(url)


def waiting(state: Path) -> int:
    """How many settlements wait in the outbox."""
    return sum(len(segment.read_bytes().splitlines()) for segment in (state / "outbox").glob("*.outbox"))


def until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Asks again and again, of what tells nobody when it changes: a log, a directory, an account."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)
