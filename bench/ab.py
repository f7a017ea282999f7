"""What the plugin costs: `python -m bench.ab`, and `python -m bench.ab --short` for a try of a few minutes.

The stock proxy, stock without its log, stock with our recommended settings, that with two commits per call (of the
least that can be committed, and of the ledger's own), and the proxy with the plugin run side by side over the same
provider and answer in turn: in each round every mix of connections and streaming is put to all of them, in random
order. Each slice is compared with stock's of the same round, so that a machine that slows down slows all; and since two
starts of one proxy differ, too, there are several sittings, each with processes of its own. Printed are medians of
the ratios, each with where it lies with 95 % confidence; `--records` keeps every slice, and what an earlier run left in
that file counts.
"""

from __future__ import annotations

import random
import statistics
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from bench import contenders, load, processes, records
from bench.contenders import NAMES, PLUGIN, STOCK, USERS, Contender, Stage
from bench.provider import ProviderProcess
from bench.records import Record

_WARM_UP_S = 0.5


class Phase(str, Enum):
    """What can be measured; `report` prints what is kept."""

    LOAD = "load"
    MEMORY = "memory"
    START = "start"
    REPORT = "report"


PHASES = [Phase.LOAD, Phase.MEMORY, Phase.START]
MIXES = [(streamed, connections) for streamed in (False, True) for connections in (1, 8, 32)]


def headroom(url: str, seconds: float) -> list[str]:
    """How much faster load generator and provider are than any proxy."""
    rows = []
    for streamed, connections in MIXES:
        slice_ = load.run(url, ["sk-none"], streamed=streamed, connections=connections, seconds=seconds)
        what = [records.mix(streamed, connections), f"{slice_.per_second:.0f}", f"{slice_.cpu_s / slice_.seconds:.0%}"]
        rows.append(records.row(what))
    return [records.row(["directly at the provider", "requests/s", "load generator's CPU"]), records.rule(3), *rows]


def asked(one: Contender, streamed: bool, connections: int, seconds: float) -> load.Slice:
    """A slice of load; where that fails it is said of whom, and what the proxy's log ends with."""
    try:
        return load.run(one.proxy.url, one.keys[:USERS], streamed=streamed, connections=connections, seconds=seconds)
    except (load.LoadFailed, OSError) as fault:
        raise load.LoadFailed(f"{one.name}: {fault}\n{one.proxy.tail()}") from fault


def measure(one: Contender, stage: Stage, provider: int, streamed: bool, connections: int, seconds: float) -> Record:
    """One slice, and what it cost whom."""
    watched = {"worker": [one.worker], "postgres": stage.postgres(), "provider": [provider]}
    before = {name: processes.cpu_s(pids) for name, pids in watched.items()}
    slice_ = asked(one, streamed, connections, seconds)
    used = {name: processes.cpu_s(pids) - before[name] for name, pids in watched.items()}
    return Record(
        one.name, streamed, connections, slice_.seconds, [round(each, 2) for each in slice_.milliseconds],
        used["worker"], used["postgres"], used["provider"], slice_.cpu_s,
    )  # fmt: skip


def sitting(number: int, stage: Stage, provider: int, rounds: int, seconds: float, dice: random.Random) -> list[Record]:
    """All rounds over one set of processes."""
    found = []
    with ExitStack() as stack:
        running = [stack.enter_context(stage.running(name)) for name in records.ORDER]
        for one in running:
            for streamed, connections in MIXES:
                asked(one, streamed, connections, min(seconds, _WARM_UP_S))
        for turn in range(rounds):
            for streamed, connections in dice.sample(MIXES, len(MIXES)):
                for one in dice.sample(running, len(running)):
                    record = measure(one, stage, provider, streamed, connections, seconds)
                    found.append(replace(record, sitting=number, round=turn))
    return found


def load_phase(
    stage: Stage, provider: int, sittings: int, rounds: int, seconds: float, dice: random.Random, file: Path | None
) -> list[Record]:
    """All sittings, each kept when it has ended; one in which a proxy fails is told of and does not count.

    Raises
    ------
    LoadFailed
        None of them came to its end.
    """
    found: list[Record] = []
    for number in range(sittings):
        try:
            ended = sitting(number, stage, provider, rounds, seconds, dice)
        except RuntimeError as fault:  # LoadFailed is one, and so is what a proxy raises that does not come up.
            typer.echo(f"sitting {number} broke off and does not count: {fault}\n")
            continue
        found += ended
        if file:
            records.keep(file, ended)
    if not found:
        raise load.LoadFailed("No sitting came to its end: the reasons stand above.")
    return found


def memory_phase(stage: Stage, users: int, warm_up: int, times: int, dice: random.Random) -> list[str]:
    """Megabytes per worker after a warm-up, and after so many users more have called once each."""
    warm: dict[str, list[float]] = {name: [] for name in NAMES}
    grown: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(times):
        for name in dice.sample(NAMES, len(NAMES)):
            with stage.running(name) as one:
                everybody = [*one.keys] if name == PLUGIN else [one.keys[0]] * (warm_up + users)
                load.once_each(one.proxy.url, everybody[:warm_up])
                warm[name].append(processes.memory_mb(one.worker))
                load.once_each(one.proxy.url, everybody[warm_up : warm_up + users])
                grown[name].append(processes.memory_mb(one.worker))
    heading = ["memory per worker, MB", f"after {warm_up} calls", f"after {users} more", "beside stock", "workers"]
    rows = [records.row(heading), records.rule(len(heading))]
    for name in NAMES:
        more = statistics.median(grown[name]) - statistics.median(grown[STOCK])
        rows.append(
            records.row(
                [name, records.spread(warm[name], 0), records.spread(grown[name], 0), f"{more:+.0f}", str(times)]
            )
        )
    return rows


def start_phase(stage: Stage, times: int, dice: random.Random) -> list[str]:
    """Seconds from the start of the process to its first answer."""
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(times):
        for name in dice.sample(NAMES, len(NAMES)):
            with stage.running(name) as one:
                took[name].append(one.start_s)
    rows = [records.row(["start-up, s", "median [quartiles]", "least", "starts"]), records.rule(4)]
    for name, seconds in took.items():
        rows.append(records.row([name, records.spread(seconds), f"{min(seconds):.1f}", str(times)]))
    return rows


def main(
    sittings: Annotated[int, typer.Option(help="How often all proxies are started.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds of all mixes in each sitting.")] = 2,
    seconds: Annotated[float, typer.Option(help="Length of a slice.")] = 1,
    many: Annotated[int, typer.Option("--users", help="Users whose calls fill the memory.")] = 10_000,
    workers: Annotated[int, typer.Option(help="Workers of each side whose memory is filled.")] = 3,
    starts: Annotated[int, typer.Option(help="Starts of each side.")] = 5,
    short: Annotated[bool, typer.Option(help="A try: one sitting, 300 users, one worker, one start.")] = False,
    only: Annotated[list[Phase], typer.Option(help="Some of them; `report` prints what --records has.")] = PHASES,
    kept: Annotated[Path | None, typer.Option("--records", help="Keep slices in this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the plot here (PNG).")] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 1,
) -> None:
    """Print the tables."""
    if short:
        sittings, many, workers, starts = 1, 300, 1, 1
    if Phase.REPORT in only and (kept is None or not kept.exists()):
        raise typer.BadParameter("`--only report` prints the slices of --records, a file that is there.")
    if plot and (find_spec("matplotlib") is None or not plot.parent.is_dir()):
        raise typer.BadParameter("--plot needs matplotlib (`pip install --group bench`) and a directory that is there.")
    dice = random.Random(seed)  # noqa: S311
    typer.echo(f"{records.machine()}\nseed {seed}\n")
    found: list[Record] = []
    if {*PHASES} & {*only}:
        warm_up = many // 10
        with ProviderProcess() as provider, contenders.stage(provider.url, max(USERS, warm_up + many)) as stage:
            typer.echo(f"PostgreSQL {stage.server_version}\n")
            if Phase.LOAD in only:
                echo(headroom(provider.url, seconds))
                found = load_phase(stage, provider.pid, sittings, rounds, seconds, dice, kept)
            if Phase.MEMORY in only:
                echo(memory_phase(stage, many, warm_up, workers, dice))
            if Phase.START in only:
                echo(start_phase(stage, starts, dice))
    everything = records.kept(kept) if kept else found
    if everything:
        echo(records.tables(everything, STOCK))
    if everything and plot:
        records.plot(everything, STOCK, plot)


def echo(lines: list[str]) -> None:
    """A table and an empty line."""
    typer.echo("\n".join([*lines, ""]))


if __name__ == "__main__":
    typer.run(main)
