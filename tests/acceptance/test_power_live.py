"""Power levels edited while the proxy serves: the row and the settings file, seen by the calls of every worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.acceptance import sides, table
from tests.acceptance.asking import request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import clone
from tests.acceptance.sides import ENDPOINTS, spread
from tests.pace import Seconds
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

TABLE = "Edits of a power level until every call obeys"
COLUMNS = ("edit", "workers", "seconds to the last call that did not")
# What is printed should be below one second.
MOST_SECONDS = 3.0
# Every worker has answered at least once among the calls in a row that obey, and they are at least so many.
IN_A_ROW = 12
AT_ONCE = 4
MAX_TOKENS = 50


@dataclass
class Living:
    """A proxy with a database and a settings file of its own."""

    proxy: Proxy
    bank: Bank
    file: Path
    account: Account
    pool: ThreadPoolExecutor

    def ask(self, level: str = "eco") -> httpx.Response:
        return self.ask_one(level)[0]

    def ask_one(self, level: str) -> tuple[httpx.Response, int]:
        """An answer over a connection of its own, and the worker that gave it."""
        path, body = request("chat", model="live", max_tokens=MAX_TOKENS)
        headers = {**self.account.headers, "x-power-level": level}
        # No certificates: loading them takes longer than the request.
        with httpx.Client(base_url=self.proxy.url, trust_env=False, timeout=60, verify=False) as http:
            answer = http.post(path, json=body, headers=headers)
            return answer, self.proxy.worker_at(answer)

    def ask_some(self, level: str = "eco") -> tuple[list[httpx.Response], set[int]]:
        """As many answers as must obey in a row, and the workers that gave them."""
        answers, workers = zip(*self.pool.map(self.ask_one, [level] * IN_A_ROW), strict=True)
        return list(answers), set(workers)

    def held(self, level: str = "eco") -> Decimal:
        """What a call holds: it moves with the level's multiplier."""
        answer = self.ask(level)
        assert answer.status_code == 200, answer.text
        return Decimal(answer.headers["x-uc-credits-held"])

    def until(self, obeys: Callable[[httpx.Response], bool], level: str = "eco") -> float:
        """Calls until all workers obey; returns the seconds after which the first call was sent since which all did.
        Whatever is sent when MOST_SECONDS have passed must obey."""
        edited, in_time = time.monotonic(), Seconds(MOST_SECONDS)
        since, met = 0.0, set[int]()
        while not met >= set(self.proxy.worker_pids()):
            sent, is_late = time.monotonic() - edited, in_time.are_over
            answers, workers = self.ask_some(level)
            if all(map(obeys, answers)):
                since, met = (since if met else sent), met | workers
                continue
            assert not is_late, "an edit is not obeyed"
            met = set()
        return since

    def note(self, edit: str, seconds: float) -> None:
        print(f"{edit}, {self.proxy.workers} worker(s): {seconds:.3f} s")
        table.begin(TABLE, *COLUMNS)
        table.add(TABLE, edit, self.proxy.workers, f"{seconds:.3f}")

    def write(self, **levels: Json) -> str:
        """The settings file's text with these levels."""
        return yaml.safe_dump({"power_levels": levels})


@pytest.fixture(scope="module", params=[1, 2], ids=lambda workers: f"workers={workers}")
def living(
    request: Any, running: Upstream, server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Living]:
    running.reset()
    bank = Bank(clone(server_url, template))
    file = tmp_path_factory.mktemp("live") / "uc.yaml"
    config = sides.config(running.url, spread("live", ENDPOINTS["chat"].models, running.url))
    account = bank.open("1000")
    with (
        sides.powered_proxy(bank.url, config, {}, request.param, file) as proxy,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        made = Living(proxy, bank, file, account, pool)
        made.until(lambda answer: answer.status_code == 200)
        assert len(proxy.worker_pids()) == request.param
        yield made


def holds(amount: Decimal) -> Callable[[httpx.Response], bool]:
    return lambda answer: Decimal(answer.headers["x-uc-credits-held"]) == amount


def comes_from(provider: str) -> Callable[[httpx.Response], bool]:
    return lambda answer: answer.headers.get("x-uc-provider") == provider


def rename_over(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def write_in_place(file: Path, text: str) -> None:
    with file.open("r+") as opened:
        opened.truncate()
        opened.write(text)
        os.fsync(opened.fileno())


WAYS: dict[str, Callable[[Path, str], None]] = {"in place": write_in_place, "by rename": rename_over}


def test_the_row(living: Living) -> None:
    """An UPDATE of the row: the next calls are held at its multiplier and go where it says, in every worker."""
    before = living.held()
    living.bank.execute("UPDATE uc.power_level_configs SET cost_multiplier = 1.4 WHERE power_level = 'eco'")
    living.note("row: multiplier", living.until(lambda answer: not holds(before)(answer)))
    # Rounded up at each end.
    assert abs(living.held() - 2 * before) <= Decimal("0.000002")
    assert living.ask().headers["x-uc-provider"] == "openrouter"
    living.bank.execute(
        """UPDATE uc.power_level_configs SET preferred_providers = '["anthropic"]' WHERE power_level = 'eco'"""
    )
    living.note("row: providers", living.until(comes_from("anthropic")))


@pytest.mark.parametrize("way", WAYS)
def test_the_file(living: Living, way: str) -> None:
    """An edit of the file, in place or by rename, does the same, and the last edit stands whichever it was."""
    edit = WAYS[way]
    edit(living.file, living.write(eco={"preferred_providers": ["openai"], "cost_multiplier": 0.9}))
    living.note(f"file, {way}: providers", living.until(comes_from("openai")))
    before = living.held()
    edit(living.file, living.write(eco={"preferred_providers": ["openai"], "cost_multiplier": 1.8}))
    living.note(f"file, {way}: multiplier", living.until(lambda answer: not holds(before)(answer)))
    living.bank.execute(
        """UPDATE uc.power_level_configs SET preferred_providers = '["together"]' WHERE power_level = 'eco'"""
    )
    living.note(f"row, after the file {way}", living.until(comes_from("together")))


BAD = {
    "no YAML": ("power_levels: {eco: [", "is not valid YAML"),
    "an unknown key": ("power_levels: {eco: {cost_multiplyer: 2}}\n", "cost_multiplyer"),
    "a wrong value": ("power_levels: {eco: {cost_multiplier: -1}}\n", "cost_multiplier"),
    "a wrong provider": ("power_levels: {eco: {preferred_providers: [Not A Name]}}\n", "preferred_providers"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_edit(living: Living, what: str) -> None:
    """A bad edit is refused with a line in the log that says what is wrong, and the level stays as it was."""
    text, said = BAD[what]
    before, logged = living.held(), len(living.proxy.log())
    rename_over(living.file, text)
    deadline = time.monotonic() + 60
    while not (refused := refusals(living.proxy.log()[logged:])):
        assert living.held() == before
        assert time.monotonic() < deadline, "the edit was not refused"
    assert said in refused[0]
    living.until(holds(before))


def refusals(log: str) -> list[str]:
    return [line for line in log.splitlines() if "the edit is refused" in line]


def test_a_fourth_level(living: Living) -> None:
    """A level that only the file names can be wished for, at its own multiplier and providers."""
    unknown = living.ask("lavish")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_power_level")
    lavish = {"cost_multiplier": 3, "preferred_providers": ["anthropic"], "default_max_output_tokens": 100}
    rename_over(living.file, living.write(eco={"cost_multiplier": 0.7}, lavish=lavish))
    living.note("file: a fourth level", living.until(lambda answer: answer.status_code == 200, "lavish"))
    answer = living.ask("lavish")
    assert (answer.headers["x-uc-power-level"], answer.headers["x-uc-provider"]) == ("lavish", "anthropic")
    assert abs(living.held("lavish") - 2 * living.held("precision")) <= Decimal("0.000002")
