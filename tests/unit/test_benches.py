"""The benches: what documents say of their commands is so, and what measures is fast enough to be believed."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import random
import re
import shlex
import socket
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import cast

import pytest
import typer
from typer.testing import CliRunner

from bench import ab, load, processes, records, stock, timings
from bench.contenders import Stage
from bench.provider import ProviderProcess
from bench.records import Record

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted({
    command
    for document in DOCUMENTS
    for command in re.findall(r"python -m (bench\.[^`\n]+)", document.read_text())
})  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_documents_exist(command: str) -> None:
    """Each bench that a document names is there, with the options that it names."""
    name, *arguments = shlex.split(command, comments=True)
    module = importlib.import_module(name)
    application = typer.Typer()
    application.command()(getattr(module, "main", None) or module.measure)
    known = {option for parameter in typer.main.get_command(application).params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


@pytest.mark.parametrize("streamed", [False, True])
def test_load_and_provider_are_fast(streamed: bool) -> None:
    """Load generator and provider are some times faster than any proxy, whose hundred calls a second they measure."""
    with ProviderProcess() as provider:
        before_s = processes.cpu_s([provider.pid])
        slice_ = load.run(provider.url, ["sk-none"], streamed=streamed, connections=4, seconds=0.3)
        # In the time that both had a processor: others may want it, too.
        busy_s = max(slice_.cpu_s, processes.cpu_s([provider.pid]) - before_s)
        assert processes.memory_mb(provider.pid) > 1
    assert len(slice_.milliseconds) > 1000 * busy_s
    assert 0 < load.quantile(slice_.milliseconds, 0.5) <= load.quantile(slice_.milliseconds, 0.99)


def test_each_connection_has_its_share() -> None:
    """However short a slice is, answers to the first requests, which come all at once, are a third of it at most."""
    with ProviderProcess() as provider:
        slice_ = load.run(provider.url, ["sk-none"], streamed=True, connections=32, seconds=0)
    assert len(slice_.milliseconds) == 3 * 32


def test_a_failed_answer_ends_the_measurement() -> None:
    """What is not answered is not measured: the load generator raises."""
    with ProviderProcess() as provider:
        url = provider.url
    with pytest.raises((load.LoadFailed, OSError)):
        load.run(url, ["sk-none"], streamed=False, connections=1, seconds=0.1)


def test_stock_is_what_litellm_brings() -> None:
    """The stock side has LiteLLM's own requirements, and not what only ours needs."""
    names = {stock.canonical(each.name) for each in stock.closure("litellm", "proxy")}
    assert {"litellm", "uvicorn", "fastapi", "openai"} <= names
    assert not {"opentelemetry-sdk", "prisma", "asyncpg", "uc-litellm-plugin"} & names
    assert names < {stock.canonical(each.name) for each in distributions()}


def test_quantiles_are_by_nearest_rank() -> None:
    """The 99th of a hundred is its p99, and the first of two their median."""
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [load.quantile(hundred, share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    assert load.quantile([2, 1], 0.5) == 1
    assert load.quantile([7], 0.99) == 7


def test_a_proxy_that_hangs_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is answered the load generator gives up, and says so."""
    monkeypatch.setattr(load, "_PATIENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(load.LoadFailed, match="no answer for"):
            load.run(url, ["sk-none"], streamed=False, connections=2, seconds=0.1)


def test_ratios_are_those_of_one_round(tmp_path: Path) -> None:
    """A slice is compared with stock's of its own round, also when sittings are put together."""
    file = tmp_path / "records"
    first = {"stock": 100, "quiet": 101, "tuned": 110, "bare": 105, "plugin": 99}
    records.keep(file, [made(name, number) for name, number in first.items()])
    records.keep(file, [made(name, 20 if name == "plugin" else 10) for name in first])
    both = records.kept(file)
    assert records.ratios(both, "stock", "plugin", (False, 8), "requests/s") == {(0, 0): 0.99, (1, 0): 2.0}
    # The median of 1.1 and 1; of sittings drawn anew it is one of them, or that.
    assert any(
        line.startswith("| tuned / stock | requests/s | 1.05 [1.00-1.10]") for line in records.tables(both, "stock")
    )


def test_rare_answers_are_sought_in_a_whole_sitting() -> None:
    """One slice has too few answers to say which is the hundredth; p99 is that of all rounds of a sitting."""
    rounds = [replace(made(name, 100), round=number) for name in ("stock", "plugin") for number in range(3)]
    for each in rounds:
        if each.name == "plugin":
            each.milliseconds = [10.0] * 97 + [50.0] * (3 if each.round else 0)
    (ratio,) = records.ratios(rounds, "stock", "plugin", (False, 8), "p99").items()
    assert ratio == ((0,), 5.0)


def test_all_mixes_are_taken_together() -> None:
    """The last column is the geometric mean of a round's ratios: twice as fast in one and half in another is 1."""
    found = [made("stock", 100), made("plugin", 200)]
    found += [
        replace(each, streamed=True, milliseconds=[10.0] * (100 if each.name == "stock" else 50)) for each in found
    ]
    line = next(each for each in records.tables(found, "stock") if each.startswith("| plugin / stock | requests/s"))
    assert [cell.split()[0] for cell in line.strip("| ").split(" | ")[2:]] == ["2.00", "0.50", "1.00"]


@pytest.mark.parametrize("fault", [load.LoadFailed("tuned: closed"), RuntimeError("litellm ended with 3 at its start")])
def test_a_proxy_that_dies_costs_its_sitting_only(
    fault: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sittings before and after it count and are in the file as two; it is said which one broke off, and why."""

    def sitting(number: int, *_: object) -> list[Record]:
        if number == 1:
            raise fault
        return [made("stock", number)]

    monkeypatch.setattr(ab, "sitting", sitting)
    file = tmp_path / "new" / "records"
    found = ab.load_phase(cast(Stage, None), 0, 3, 1, 1.0, random.Random(1), file)
    assert [len(each.milliseconds) for each in found] == [0, 2]
    assert [(each.sitting, len(each.milliseconds)) for each in records.kept(file)] == [(0, 0), (1, 2)]
    assert f"sitting 1 broke off and does not count: {fault}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "laod"], "laod"),
        (["--only", "report"], "--records"),
        (["--only", "report", "--records", "/nowhere/slices"], "--records"),
        (["--plot", "/nowhere/plot.png"], "--plot"),
    ],
)
def test_what_cannot_be_printed_is_said_at_once(options: list[str], said: str) -> None:
    """Not after forty minutes, and not with the exit code of a success."""
    application = typer.Typer()
    application.command()(ab.main)
    result = CliRunner().invoke(application, options)
    assert result.exit_code == 2
    assert said in result.output


def test_a_run_without_a_whole_sitting_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that asks for the tables learns from the exit code that there are none."""

    def sitting(*_: object) -> list[Record]:
        raise load.LoadFailed("tuned: the connection was closed")

    monkeypatch.setattr(ab, "sitting", sitting)
    with pytest.raises(load.LoadFailed, match="No sitting"):
        ab.load_phase(cast(Stage, None), 0, 2, 1, 1.0, random.Random(1), None)


def made(name: str, answers: int) -> Record:
    return Record(name, False, 8, 1.0, [10.0] * answers, 0.5, 0.1, 0.01, 0.01)


async def test_clocked_functions_do_what_they_did() -> None:
    """A clock around a function changes nothing of it: results, errors, waits; it counts calls and adds up time."""

    async def waiting(number: int) -> int:
        await asyncio.sleep(0)
        return number if number else failing()

    def failing() -> int:
        raise LookupError("none")

    clocked = timings._clocked(waiting)
    assert inspect.iscoroutinefunction(clocked) or asyncio.iscoroutinefunction(clocked)
    assert list(await asyncio.gather(clocked(3), asyncio.create_task(clocked(4)))) == [3, 4]
    with pytest.raises(LookupError):
        await clocked(0)
    with pytest.raises(LookupError):
        timings._clocked(failing)()
    (spent,) = [each for name, each in timings._spent.items() if name.endswith("waiting")]
    whole, own, calls = spent
    assert (whole >= own > 0, calls) == (True, 3)
