"""LiteLLM's cooldowns and health at work: a first choice that fails is soon out of the way, and back when well."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.acceptance import sides, table
from tests.acceptance.asking import asked, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.sides import ENDPOINTS, ORDERS, PROVIDERS
from tests.proxy import Json, Proxy, nobody
from tests.upstream import Upstream

TABLE = "A first choice that fails, with cooldowns and health"
COLUMNS = ("fault", "workers", "calls", "answered", "asked the first", "then first again after")
LEVEL = "eco"
FIRST, SECOND = ORDERS[LEVEL][:2]
ROUNDS = 8
HANG_SECONDS = 1.5
TRY_AGAIN_SECONDS = 3.0
BACK_SECONDS = 45.0
# What is known of a request that is wrong says nothing of its provider, which is asked every time.
CLIENTS_OWN = ("400", "422")
# Only an operator can mend these: one is enough.
LASTING = ("401", "402", "404")
# Of the others so many in a row take a provider out of the way.
DOWN_AFTER = 3
FAULTS = (*CLIENTS_OWN, *LASTING, "429", "500", "503", "refused", "hang")
WORKERS = (1, 2)
# Degraded ones are not probed, they wait for the window to pass.
SETTINGS: Json = {"health": {"window_s": 5}}


@dataclass
class Case:
    """A fault at one proxy, in a group of its own, and what came of it."""

    fault: str
    workers: int
    statuses: list[int] = field(default_factory=list)
    hits: list[Json] = field(default_factory=list)
    asked_first: int = 0
    took_s: float = 0.0
    back_s: float | None = None

    @property
    def group(self) -> str:
        return f"ill-{self.fault}-{self.workers}"


CASES = [Case(fault, workers) for workers in WORKERS for fault in FAULTS]


def deployments(case: Case, url: str, refused_url: str) -> list[Json]:
    bases = {FIRST: refused_url} if case.fault == "refused" else {}
    made = sides.spread(case.group, ENDPOINTS["chat"].models, url, bases)
    if case.fault == "hang":
        # The others may take their time on a busy machine.
        (hanging,) = (each for each in made if each["model_info"]["id"] == f"dep-{case.group}-{FIRST}")
        hanging["litellm_params"]["timeout"] = HANG_SECONDS
    return made


def rule(case: Case) -> Json:
    match = {"api_key": sides.key(case.group, FIRST)}
    if case.fault.isdigit():
        return {"kind": "status", "status": int(case.fault), "match": match}
    return {"kind": "hang", "match": match}


@contextmanager
def client(proxy: Proxy, account: Account) -> Iterator[httpx.Client]:
    headers = {**account.headers, "x-power-level": LEVEL}
    with httpx.Client(base_url=proxy.url, headers=headers, trust_env=False, timeout=60) as http:
        yield http


def ask(http: httpx.Client, group: str) -> httpx.Response:
    path, body = request("chat", model=group)
    # A connection for each call, so that the workers take turns.
    return http.post(path, json=body, headers={"connection": "close"})


@pytest.fixture(scope="module")
def cases(running: Upstream, bank: Bank) -> Iterator[list[Case]]:
    """Asks every group some times at proxies of one and of two workers, then mends what failed and asks on."""
    running.reset()
    running.set_faults(*(rule(case) for case in CASES if case.fault != "refused"))
    account = bank.open("1000")
    with ExitStack() as stack:
        refused_url = stack.enter_context(nobody())
        proxies = {workers: stack.enter_context(proxy_of(workers, running, bank, refused_url)) for workers in WORKERS}
        clients = {workers: stack.enter_context(client(proxy, account)) for workers, proxy in proxies.items()}
        started = time.monotonic()
        for case in CASES * ROUNDS:
            case.statuses.append(ask(clients[case.workers], case.group).status_code)
            case.took_s = time.monotonic() - started
        books, rows = asked(running), bank.settled(account, len(CASES) * ROUNDS)
        for case in CASES:
            keys = [sides.key(case.group, side) for side in ORDERS[LEVEL]]
            case.hits = [call for call in books if call["api_key"] in keys]
            case.asked_first = sum(row["attempts"] > 1 for row in rows if row["model_group"] == case.group)
        running.set_faults()
        with ThreadPoolExecutor(len(WORKERS)) as pool:
            list(pool.map(lambda workers: wait_for_all(clients[workers], workers), WORKERS))
    yield CASES
    running.reset()


def proxy_of(workers: int, running: Upstream, bank: Bank, refused_url: str) -> AbstractContextManager[Proxy]:
    mine = [case for case in CASES if case.workers == workers]
    models = [each for case in mine for each in deployments(case, running.url, refused_url)]
    return sides.powered_proxy(bank.url, sides.config(running.url, models), SETTINGS, workers)


def wait_for_all(http: httpx.Client, workers: int) -> None:
    """Asks until the first choice answers again, in each group of a proxy that can be well again."""
    waiting = [case for case in CASES if case.workers == workers and case.fault != "refused"]
    started = time.monotonic()
    while waiting and time.monotonic() - started < BACK_SECONDS:
        for case in tuple(waiting):
            if ask(http, case.group).headers.get("x-uc-provider") == PROVIDERS[FIRST]:
                case.back_s = time.monotonic() - started
                waiting.remove(case)


@pytest.mark.parametrize("n", range(len(CASES)), ids=lambda n: f"{CASES[n].fault}-{CASES[n].workers}")
def test_out_of_the_way(cases: list[Case], n: int) -> None:
    """No call fails; a provider that fails is soon asked only to see whether it is well again."""
    case = cases[n]
    firsts = sides.hits(case.hits).count(FIRST)
    others = {sides.side_of(call) for call in case.hits} - {FIRST}
    back = "-" if case.back_s is None else f"{case.back_s:.1f} s"
    table.begin(TABLE, *COLUMNS)
    table.add(TABLE, case.fault, case.workers, ROUNDS, case.statuses.count(200), case.asked_first, back)
    assert case.statuses == [200] * ROUNDS
    assert others == {SECOND}
    # Where nobody listens, only the usage rows know.
    assert firsts == (0 if case.fault == "refused" else case.asked_first)
    if case.fault in CLIENTS_OWN:
        assert case.asked_first == ROUNDS
    else:
        # Until it is out of the way, and then, where this took long, whenever it was due for another try.
        until_out = 1 if case.fault in LASTING else DOWN_AFTER
        assert 1 <= case.asked_first <= case.workers * (until_out + case.took_s // TRY_AGAIN_SECONDS)
    if case.fault != "refused":
        assert case.back_s is not None, f"not asked again within {BACK_SECONDS} s"
