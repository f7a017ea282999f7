"""Where the proxy with the plugin spends its time, and how much of it is ours: `python -m bench.hotspots`.

py-spy samples the worker under load; it is looked for beside this Python and on the PATH (`pip install py-spy`). Under
each of our entry points (the hooks that LiteLLM calls) stands what it takes per call with all that it calls, then our
functions by the time in them and below. Before that, the database's log of all statements tells what a call asks of it.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import asyncpg
import typer

import uc_litellm_plugin
from bench import contenders, load, processes, records
from bench.contenders import PLUGIN, Contender, Stage
from bench.provider import ProviderProcess

OURS = str(Path(uc_litellm_plugin.__file__).parent)
HERTZ = 200

Stack = list[str]


def sampled(
    spy: str, one: Contender, seconds: float, raw: Path | None, *, streamed: bool, connections: int
) -> tuple[list[Stack], float, float]:
    """Stacks of the worker's busy moments under load; its CPU per call in milliseconds, and calls per second, without
    the sampling, which stops the worker for each sample (otherwise a third of the stacks come out torn)."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        command = [spy, "record", "--pid", str(one.worker), "--format", "raw", "--full-filenames", "-o", file.name,
                   "--rate", str(HERTZ), "--duration", str(int(seconds)), "--gil"]  # fmt: skip
        before = processes.cpu_s([one.worker])
        slice_ = load.run(one.proxy.url, one.keys, streamed=streamed, connections=connections, seconds=seconds)
        used = processes.cpu_s([one.worker]) - before
        with ThreadPoolExecutor() as aside:
            spying = aside.submit(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            load.run(one.proxy.url, one.keys, streamed=streamed, connections=connections, seconds=seconds)
        spying.result()
        if raw is not None:
            shutil.copy(file.name, raw / f"{records.mix(streamed, connections)}.txt")
        stacks: list[Stack] = []
        for line in Path(file.name).read_text().splitlines():
            stack, _, number = line.rpartition(" ")
            stacks += [stack.split(";")] * int(number)
    return stacks, 1000 * used / len(slice_.milliseconds), slice_.per_second


def costs(stacks: list[Stack], cpu_ms: float) -> tuple[list[list[str]], list[list[str]]]:
    """Our entry points and our functions, each with its share of the samples and of a call's CPU milliseconds."""
    entries: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    ours = 0
    for stack in stacks:
        frames = [frame for frame in stack if OURS in frame]
        if frames:
            ours += 1
            entries[_name(frames[0])] += 1
            functions.update({_name(frame) for frame in frames})

    def rows(found: Counter[str], most: int) -> list[list[str]]:
        return [[name, f"{number / len(stacks):.1%}", f"{cpu_ms * number / len(stacks):.3f}"]
                for name, number in found.most_common(most)]  # fmt: skip

    total = Counter({"all of ours": ours, "everything": len(stacks)})
    return rows(total, 2) + rows(entries, 20), rows(functions, 40)


def _name(frame: str) -> str:
    """`module.function` of a frame."""
    function, _, place = frame.partition(" (")
    return f"{Path(place.rsplit(':', 1)[0]).stem}.{function}"


def statements(stage: Stage, one: Contender, calls: int) -> list[str]:
    """What the database is asked while one caller, whose key is known, calls so often."""
    log = stage.server_log
    known = [one.keys[0]] * calls
    load.once_each(one.proxy.url, known[:10], connections=1)
    asyncio.run(_execute(stage.database_url, "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()"))
    start = log.stat().st_size
    began = time.monotonic()
    load.once_each(one.proxy.url, known, connections=1)
    seconds = time.monotonic() - began
    text = log.read_bytes()[start:].decode(errors="replace")
    asyncio.run(_execute(stage.database_url, "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()"))
    found = Counter(
        " ".join(each.split())[:70] for each in re.findall(r"(?:execute [^:]*|statement): (.{1,200})", text)
    )
    lines = [records.row([f"statement, {calls} calls in {seconds:.0f} s", "times", "per call"]), records.rule(3)]
    return lines + [records.row([f"`{what}`", str(n), f"{n / calls:.2f}"]) for what, n in found.most_common()]


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def observe(spy: str, one: Contender, seconds: float, raw: Path | None, *, streamed: bool, connections: int) -> None:
    """One profile, printed."""
    stacks, cpu_ms, per_second = sampled(spy, one, seconds, raw, streamed=streamed, connections=connections)
    entries, functions = costs(stacks, cpu_ms)
    typer.echo(f"\n## {records.mix(streamed, connections)}: {per_second:.0f} requests/s, {len(stacks)} samples\n")
    for head, found in (("entry point", entries), ("function, with all below", functions)):
        typer.echo(records.row([head, "share", "CPU, ms per call"]) + "\n" + records.rule(3))
        typer.echo("\n".join(records.row(each) for each in found) + "\n")


def main(
    seconds: Annotated[float, typer.Option(help="Length of each profile.")] = 15,
    spy: Annotated[str | None, typer.Option(help="py-spy.")] = None,
    raw: Annotated[Path | None, typer.Option(help="Keep the samples in this directory.")] = None,
) -> None:
    """Print the profiles."""
    beside = Path(sys.executable).with_name("py-spy")
    found = spy or (str(beside) if beside.exists() else shutil.which("py-spy"))
    if found is None:
        raise typer.BadParameter("py-spy is not installed: pip install py-spy, or name it with --spy")
    with ProviderProcess() as provider, contenders.stage(provider.url, 200) as stage, stage.running(PLUGIN) as one:
        load.run(one.proxy.url, one.keys, streamed=False, connections=8, seconds=5)
        typer.echo("\n".join(statements(stage, one, 100)))
        for streamed, connections in ((False, 8), (True, 8), (False, 1)):
            observe(found, one, seconds, raw, streamed=streamed, connections=connections)


if __name__ == "__main__":
    typer.run(main)
