"""How long Python's garbage collector stops a worker: `python -m bench.pauses`, `--short` for a try.

Stock without its log, stock with our recommended settings, the plugin with them, the plugin that collects between the
steps of its loop, and one that also freezes its heap after the start, each under the same number of calls. A hook in
the process (gc.callbacks) notes each collection; at the end it makes a full one, which comes by itself once in many
thousand calls.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench import contenders, load, records
from bench.contenders import PLUGIN, QUIET, TUNED, Stage
from bench.provider import ProviderProcess

ANYWHERE = "process: {collect_between_steps: false}\n"
BETWEEN = "process: {collect_between_steps: true}\n"
FROZEN = "process: {collect_between_steps: true, freeze_after_start: true}\n"
# uvicorn ends by the signal that it got, so nothing can be written at the end.
_HOOK = """
import gc, os, threading, time

began, file = 0.0, open(os.environ["BENCH_PAUSES"], "w", buffering=1)

def note(phase, info):
    global began
    if phase == "start":
        began = time.monotonic()
    else:
        file.write(f"{began} {info['generation']} {time.monotonic() - began} {gc.get_freeze_count()}\\n")

def collect():
    while not os.path.exists(file.name + ".now"):
        time.sleep(0.1)
    gc.collect()

gc.callbacks.append(note)
threading.Thread(target=collect, daemon=True).start()
"""
COLUMNS = ("what", "calls", "collections of gen 0, 1, 2", "time in them", "longest of gen 0, 1, 2, ms",
           "slowest calls: p99, max, ms", "objects frozen", "a full collection then, ms")  # fmt: skip
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Variant:
    """One way to run."""

    name: str
    contender: str
    env: Mapping[str, str]
    config: str = ""


VARIANTS = (
    Variant("stock without its log", QUIET, {}),
    Variant("tuned", TUNED, {}),
    Variant("plugin", PLUGIN, {}, ANYWHERE),
    Variant("plugin, between steps", PLUGIN, {}, BETWEEN),
    Variant("plugin, between steps, frozen", PLUGIN, {}, FROZEN),
)


def observe(stage: Stage, variant: Variant, calls: int) -> list[str]:
    """One run, as a row of the table."""
    with tempfile.TemporaryDirectory(prefix="uc-bench-") as hook:
        Path(hook, "sitecustomize.py").write_text(_HOOK)
        file = Path(hook, "pauses")
        env = {**variant.env, "PYTHONPATH": hook, "BENCH_PAUSES": str(file)}
        with stage.running(variant.contender, variant.config, env=env) as one:
            keys = [one.keys[n % len(one.keys)] for n in range(calls)]
            load.once_each(one.proxy.url, keys[: calls // 10])
            began = time.monotonic()
            slice_ = load.once_each(one.proxy.url, keys)
            ended = time.monotonic()
            Path(f"{file}.now").touch()
            full = _full_collection(file, ended)
            noted = _noted(file)
    during = [each for each in noted if began < each[0] < ended]
    return [*row(variant.name, slice_, during), f"{noted[-1][3]:.0f}", f"{1000 * full:.0f}"]


def _noted(file: Path) -> list[tuple[float, ...]]:
    """When each collection began, its generation, its seconds, and how many objects were frozen."""
    return [tuple(map(float, line.split())) for line in file.read_text().splitlines()]


def _full_collection(file: Path, asked: float) -> float:
    """Seconds of the one that was asked for."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := [each for each in _noted(file) if each[0] > asked and each[1] == 2]:
            return found[-1][2]
        time.sleep(0.2)
    raise RuntimeError(f"no full collection within {PATIENCE_S} s")


def row(name: str, slice_: load.Slice, pauses: list[tuple[float, ...]]) -> list[str]:
    """What one run showed."""
    by_generation = [[took for _, generation, took, _ in pauses if generation == number] for number in range(3)]
    longest = " / ".join(f"{1000 * max(each, default=0):.0f}" for each in by_generation)
    slowest = " / ".join(f"{each:.0f}" for each in (load.quantile(slice_.milliseconds, 0.99), max(slice_.milliseconds)))
    share = sum(took for _, _, took, _ in pauses) / slice_.seconds
    numbers = " / ".join(str(len(each)) for each in by_generation)
    return [name, str(len(slice_.milliseconds)), numbers, f"{share:.1%}", longest, slowest]


def main(
    calls: Annotated[int, typer.Option(help="Calls of each variant, 8 at a time.")] = 6000,
    short: Annotated[bool, typer.Option(help="200 calls each.")] = False,
) -> None:
    """Print the table."""
    typer.echo(f"{records.machine()}\n")
    typer.echo(f"{records.row(COLUMNS)}\n{records.rule(len(COLUMNS))}")
    with ProviderProcess() as provider, contenders.stage(provider.url, 200) as stage:
        for variant in VARIANTS:
            typer.echo(records.row(observe(stage, variant, 200 if short else calls)))


if __name__ == "__main__":
    typer.run(main)
