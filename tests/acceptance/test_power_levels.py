"""Each power level's own order of providers, whatever the first ones fail with: who answered, and who was asked."""

from __future__ import annotations

import os
import re
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import httpx
import pytest

from tests.acceptance import sides, table
from tests.acceptance.asking import asked, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.sides import ENDPOINTS, ORDERS, PROVIDERS, SIDES
from tests.proxy import Json, nobody
from tests.upstream import Upstream

TABLE = "Power level x fault x endpoint"
COLUMNS = ("level", "endpoint", "asked, in order", "answered", "client got", "charged")
AT_ONCE = 8
HANG_SECONDS = 1.0

STATUSES = ("400", "401", "402", "403", "404", "408", "422", "429", "500", "503")
# `cut` ends the connection after the headers, `closed` before them, `refused` never had one.
LEVELS = tuple(ORDERS)
EVERY_ROW = bool(os.environ.get("UC_EVERY_ROW"))
# What the others answered, where all fail.
FIRST = ("500", "429", "402")
FAULTS = ("none", *STATUSES, "cut", "closed", "refused", "hang", "error first")
# What the client is told when the first provider's fault has no status of its own.
TOLD = {"cut": 500, "closed": 500, "refused": 500, "hang": 408, "error first": 500}


@dataclass(frozen=True)
class Row:
    """One call of the table, on a group of its own: what fails at each place of the level's order."""

    n: int
    level: str
    endpoint: str
    stream: bool
    faults: tuple[str, ...]

    @property
    def group(self) -> str:
        return f"row-{self.n}"

    @property
    def order(self) -> list[tuple[str, str]]:
        """The sides in the level's order, each with its fault."""
        return list(zip(ORDERS[self.level], (*self.faults, *["none"] * len(SIDES)), strict=False))

    @property
    def reached(self) -> list[tuple[str, str]]:
        """The sides that are asked: all up to the first that does not fail."""
        failing = next((place for place, (_, fault) in enumerate(self.order) if fault == "none"), len(SIDES) - 1)
        return self.order[: failing + 1]

    @property
    def fails(self) -> bool:
        return self.reached[-1][1] != "none"

    def __str__(self) -> str:
        kind = "streamed" if self.stream else "plain"
        return f"{self.level}-{self.endpoint}-{kind}-{'-'.join(self.faults)}"


def rows() -> Iterator[Row]:
    """Every fault of the first choice at every endpoint, then calls that all fail.

    Each fault meets each level, and each endpoint each level; UC_EVERY_ROW=1 has every combination of the three.
    """
    ways = [(endpoint, stream) for endpoint, how in ENDPOINTS.items() for stream in how.streams]
    pairs = [(way, fault) for way in enumerate(ways) for fault in enumerate(FAULTS)]
    n = 0
    for (i, (endpoint, stream)), (j, fault) in pairs:
        if fault == "error first" and not stream:
            continue
        turns = LEVELS if EVERY_ROW or fault == "none" else (LEVELS[(i + j) % 3],)
        all_fail = fault != "none" and (EVERY_ROW or (i + j) % 5 == 0 or endpoint == "chat")
        last = [(LEVELS[j % 3], (*FIRST, fault))] if all_fail else []
        for level, faults in [*((level, (fault,)) for level in turns), *last]:
            n += 1
            yield Row(n, level, endpoint, stream, faults)


ROWS = tuple(rows())


# Responses have an `error` that is null when all is well.
_ERROR = re.compile(r'"error"\s*:\s*(?!null)|\(broke off\)')


class _Closer(socketserver.BaseRequestHandler):
    """Reads one request, notes its key, and closes the connection without a word."""

    def handle(self) -> None:
        heard = b""
        while b"\r\n\r\n" not in heard and (more := self.request.recv(65536)):
            heard += more
        head, _, body = heard.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        left = int(headers.get("content-length", 0)) - len(body)
        while left > 0 and (more := self.request.recv(65536)):
            left -= len(more)
        shown = headers.get("authorization", headers.get("x-api-key", "")).removeprefix("bearer ")
        if head.startswith(b"POST"):  # LiteLLM lists models on its own account.
            self.server.closed.append(shown)  # type: ignore[attr-defined]


class _Closing(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Closer)
        self.closed: list[str] = []


@contextmanager
def closing() -> Iterator[_Closing]:
    """A host that closes every connection once it has read the request."""
    with _Closing() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def deployments(row: Row, url: str, closed_url: str, refused_url: str) -> list[Json]:
    """A row's own group: LiteLLM and health remember failures, which must not reach the next row."""
    elsewhere = {"closed": closed_url, "refused": refused_url}
    bases = {side: elsewhere[fault] for side, fault in row.order if fault in elsewhere}
    made = sides.spread(row.group, ENDPOINTS[row.endpoint].models, url, bases)
    hanging = {f"dep-{row.group}-{side}" for side, fault in row.order if fault == "hang"}
    for each in made:
        # The others may take their time on a busy machine.
        if each["model_info"]["id"] in hanging:
            each["litellm_params"] |= {"timeout": HANG_SECONDS, "stream_timeout": HANG_SECONDS}
    return made


def rule(row: Row, side: str, fault: str) -> Json | None:
    """What makes a side's deployment fail in the upstream, None where it is not the upstream that fails."""
    match = {"api_key": sides.key(row.group, side)}
    if fault in STATUSES:
        return {"kind": "status", "status": int(fault), "match": match}
    kinds = {"cut": "cut", "hang": "hang", "error first": "error_first"}
    return {"kind": kinds[fault], "after": 0, "match": match} if fault in kinds else None


@dataclass(frozen=True)
class Answered:
    """What a client got."""

    status: int
    headers: httpx.Headers
    text: str

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and not _ERROR.search(self.text)


def ask(http: httpx.Client, account: Account, row: Row) -> Answered:
    """One row's call; a stream that breaks off counts as what came of it."""
    path, body = request(ENDPOINTS[row.endpoint].ask, row.stream, model=row.group)
    headers = {**account.headers, "x-power-level": row.level, "x-session-id": row.group}
    parts = []
    with http.stream("POST", path, json=body, headers=headers) as response:
        try:
            parts += list(response.iter_text())
        except httpx.RemoteProtocolError:
            parts.append("(broke off)")
    return Answered(response.status_code, response.headers, "".join(parts))


@dataclass
class Run:
    """All rows, asked: what the clients got, what the upstream's books and the usage rows say."""

    answers: dict[Row, Answered]
    books: list[Json]
    closed: list[str]
    usage: list[Json]
    account: Account

    @cached_property
    def _by_key(self) -> dict[str, list[Json]]:
        found: dict[str, list[Json]] = {}
        for call in self.books:
            found.setdefault(str(call["api_key"]), []).append(call)
        return found

    def calls(self, row: Row) -> list[Json]:
        """The calls of a row in the upstream's books, oldest first."""
        found = [call for side in SIDES for call in self._by_key.get(sides.key(row.group, side), ())]
        return sorted(found, key=lambda call: int(call["n"]))

    def usage_row(self, row: Row) -> Json:
        (found,) = (each for each in self.usage if each["session_id"] == row.group)
        return found


@pytest.fixture(scope="module")
def run(running: Upstream, bank: Bank) -> Iterator[Run]:
    """Asks all rows, some at once, with LiteLLM's cooldowns off."""
    running.reset()
    with closing() as closer, nobody() as refused_url:
        closed_url = f"http://127.0.0.1:{closer.server_address[1]}"
        models = [each for row in ROWS for each in deployments(row, running.url, closed_url, refused_url)]
        found = [rule(row, side, fault) for row in ROWS for side, fault in row.order]
        running.set_faults(*(each for each in found if each is not None))
        account = bank.open("1000")
        config = sides.config(running.url, models, disable_cooldowns=True)
        with (
            sides.powered_proxy(bank.url, config) as proxy,
            httpx.Client(base_url=proxy.url, trust_env=False, timeout=60) as http,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            answers = dict(zip(ROWS, pool.map(lambda row: ask(http, account, row), ROWS), strict=True))
            usage = bank.settled(account, len(ROWS))
        yield Run(answers, asked(running), closer.closed, usage, account)
    running.reset()


def note(run: Run, row: Row) -> None:
    table.begin(TABLE, *COLUMNS)
    answer, calls = run.answers[row], run.calls(row)
    tried = ", ".join(f"{PROVIDERS[side]} ({fault})" for side, fault in row.reached)
    kind = "streamed" if row.stream else "plain"
    who = PROVIDERS[sides.side_of(calls[-1])] if answer.is_whole and calls else "nobody"
    cost = run.usage_row(row)["cost_credits"]
    table.add(TABLE, row.level, f"{row.endpoint}, {kind}", tried, who, answer.status, cost)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(run: Run, row: Row) -> None:
    """Each candidate is asked at most once, in the level's order, and the first that can answers and is paid."""
    note(run, row)
    answer, calls, usage = run.answers[row], run.calls(row), run.usage_row(row)
    in_books = [side for side, fault in row.reached if fault not in ("closed", "refused")]
    assert sides.hits(calls) == in_books, answer
    assert_closed_once(run, row)
    assert usage["attempts"] == len(row.reached)
    assert (usage["power_level"], usage["provider"]) == (row.level, PROVIDERS[row.reached[-1][0]])
    if row.fails:
        assert_failed(row, answer, usage)
    else:
        assert answer.is_whole, answer
        assert answer.headers["x-uc-provider"] == PROVIDERS[row.reached[-1][0]]
        assert answer.headers["x-uc-power-level"] == row.level
        assert (usage["success"], usage["cost_source"]) == (True, "usage")
        assert usage["cost_credits"] == sides.charge(calls[-1], row.level) > 0


def assert_closed_once(run: Run, row: Row) -> None:
    wanted = {sides.key(row.group, side): 1 for side, fault in row.reached if fault == "closed"}
    mine = {sides.key(row.group, side).lower() for side in SIDES}
    assert Counter(each for each in run.closed if each in mine) == Counter(wanted)


def assert_failed(row: Row, answer: Answered, usage: Json) -> None:
    # LiteLLM raises the first failure when all fallbacks have failed (litellm/router.py).
    first = row.reached[0][1]
    status = TOLD.get(first) or int(first)
    # What broke inside of a stream can be told in the stream only.
    assert answer.status == status or (row.stream and answer.status == 200), answer
    assert not answer.is_whole
    assert (usage["success"], usage["cost_credits"]) == (False, NOTHING)


def test_all_is_paid_once(run: Run, bank: Bank) -> None:
    """What the balance lost is what the answers cost, and the ledger's audit finds nothing."""
    answered = [(row, run.calls(row)[-1]) for row in ROWS if not row.fails]
    cost = sum((sides.charge(call, row.level) for row, call in answered), Decimal(0))
    balance = bank.balance(run.account)
    assert (balance.remaining, balance.held, balance.debt) == (1000 - cost, NOTHING, NOTHING)
    assert len(run.usage) == len(ROWS)
    assert bank.audit() == []
