"""What a call takes of a worker in instructions: `python -m bench.instructions`; a quarter of an hour.

Seconds move with whoever else is on the machine; the number of instructions of a call is the same to one per cent. It
says nothing of waiting, of the kernel's work, and of how long an instruction takes that finds its data in no cache, so
that it stands beside the seconds and not in their place. Valgrind's callgrind counts, and slows the proxy down a lot.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench import contenders, load, records
from bench.contenders import BARE, PLUGIN, STOCK, TUNED, Contender, Stage
from bench.provider import ProviderProcess

ORDER = (STOCK, TUNED, BARE, PLUGIN)
_WARM_UP = 30
_CONTROL = shutil.which("callgrind_control") or ""
_SUMMARY = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


@contextmanager
def counted(stage: Stage, name: str) -> Iterator[tuple[Contender, Path]]:
    """A contender whose instructions can be counted, and where its counts are written."""
    with tempfile.TemporaryDirectory(prefix="uc-bench-") as home:
        under = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={home}/counts"]
        with stage.running(name, under=under) as one:
            yield one, Path(home)


def millions(one: Contender, home: Path, streamed: bool, calls: int) -> float:
    """Instructions of a call, one after the other at one connection. Millions."""
    _control(one, "--instr=on")
    _control(one, "--zero")
    _ask(one, streamed, calls)
    before = set(home.iterdir())
    _control(one, "--dump")
    _control(one, "--instr=off")
    (written,) = set(home.iterdir()) - before
    found = _SUMMARY.search(written.read_text(errors="replace"))
    if found is None:
        raise RuntimeError(f"{written} has no total")
    return int(found[1]) / calls / 1e6


def _ask(one: Contender, streamed: bool, calls: int) -> None:
    keys = [one.keys[number % len(one.keys)] for number in range(calls)]
    load.once_each(one.proxy.url, keys, connections=1, streamed=streamed)


def _control(one: Contender, command: str) -> None:
    # It answers when the process has done what is asked.
    subprocess.run([_CONTROL, command, str(one.worker)], check=True, capture_output=True)


def main(
    calls: Annotated[int, typer.Option(help="Calls of each kind.")] = 25,
    only: Annotated[list[str], typer.Option(help="Some of the contenders.")] = list(ORDER),  # noqa: B006
) -> None:
    """Print the table."""
    if not _CONTROL:
        raise typer.BadParameter("valgrind is not installed: on Debian and Ubuntu run `apt install valgrind`.")
    typer.echo(records.row(["millions of instructions per call", "plain", "streamed, 23 chunks"]))
    typer.echo(records.rule(3))
    with ProviderProcess() as provider, contenders.stage(provider.url, 50) as stage:
        for name in only:
            with counted(stage, name) as (one, home):
                for streamed in (False, True):
                    _ask(one, streamed, _WARM_UP)
                found = [f"{millions(one, home, streamed, calls):.2f}" for streamed in (False, True)]
                typer.echo(records.row([name, *found]))


if __name__ == "__main__":
    typer.run(main)
