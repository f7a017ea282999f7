"""Hold and settle per second, through the real modules: `python -m bench.ledger`, `--short` for a try.

One hot user, and 1000 users in turn, at 1 to 128 concurrent callers in one process, on one embedded PostgreSQL that
commits durably. Beside it, in random order in each round, what the index has of the kind: `credit-ledger`, which knows
no holds (its pair is a spend of the worst case and a grant of the rest), and `snipz` (Python 3.13; a reservation and
its commit, checked against a sum over the month). Ours writes a usage row, too, and the others do not. Each has eight
connections. They are installed into environments of their own, which `--peers` keeps for the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer

from bench import processes, records
from tests.conftest import database_at
from uc_litellm_plugin import embedded, migrations, settings
from uc_litellm_plugin.settings import Settings

CALLERS, USERS = (1, 8, 32, 128), 1000
PEERS = {"credit-ledger": "credit-ledger[postgres]==0.3.0", "snipz": "snipz[postgres]==0.2.0"}
DRIVER = Path(__file__).with_name("pairs.py")


@dataclass(eq=False)
class Contender:
    """A ledger in its process, and what was measured of it."""

    name: str
    process: subprocess.Popen[str]
    found: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)

    def ask(self, callers: int, users: int, seconds: float) -> Any:
        """One slice."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([callers, users, seconds]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Its next line."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended")
        return json.loads(line)


@contextmanager
def server() -> Iterator[tuple[str, int, Settings]]:
    """An embedded PostgreSQL of its own: its URL, its process, its settings."""
    home = Path(tempfile.mkdtemp(prefix="uc-bench-"))
    home.chmod(0o711)
    own = settings.load({"UC_STATE_DIR": str(home / "state")})
    try:
        url = asyncio.run(embedded.ensure(own))
        yield url, int((home / "state/postgres/data/postmaster.pid").read_text().split()[0]), own
    finally:
        asyncio.run(embedded.stop(own))
        shutil.rmtree(home, ignore_errors=True)


def interpreters(home: Path, python313: str | None) -> dict[str, str]:
    """Each ledger's interpreter; peers that cannot be installed are left out, and said so."""
    found = {"ours": sys.executable}
    for name, requirement in PEERS.items():
        python = home / name / "bin" / "python"
        base = sys.executable if name != "snipz" or sys.version_info >= (3, 13) else python313
        if base is None:
            typer.echo("snipz needs Python 3.13: name one with --python313. It is left out.\n")
            continue
        if not python.exists():
            subprocess.run([base, "-m", "venv", str(home / name)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True)
        found[name] = str(python)
    return found


@contextmanager
def started(
    ledger: str, python: str | None, server_url: str, users: int, name: str = "", *, make: bool = True
) -> Iterator[Contender]:
    """A ledger with a database of its own, `pairs_<name>`, on the common server, and so many users in it."""
    name = name or ledger
    database = f"pairs_{name.replace('-', '_')}"
    url = database_at(server_url, database)
    if make:
        asyncio.run(_execute(server_url, f"CREATE DATABASE {database}"))
    if make and ledger == "ours":
        asyncio.run(migrations.migrate(settings.load({"UC_DATABASE_URL": url})))
    what = ["-m", "bench.pairs"] if ledger == "ours" else [str(DRIVER)]
    command = [python or sys.executable, *what, ledger, url, str(users)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=DRIVER.parents[1], **pipes)
    made = Contender(name, process)
    try:
        made.answer()
        yield made
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)  # Its input is closed, so it ends by itself.
        process.kill()
        process.wait()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


def measure(
    contenders: Sequence[Contender], postmaster: int, rounds: int, seconds: float, dice: random.Random
) -> list[tuple[int, int]]:
    """All rounds; returns the mixes of users and callers."""
    mixes = [(users, callers) for users in (1, USERS) for callers in CALLERS]
    for one in contenders:
        one.ask(8, USERS, seconds)
    for _ in range(rounds):
        for users, callers in dice.sample(mixes, len(mixes)):
            for one in dice.sample(list(contenders), len(contenders)):
                before = processes.cpu_s(processes.tree(postmaster))
                slice_ = one.ask(callers, users, seconds)
                slice_["postgres_s"] = processes.cpu_s(processes.tree(postmaster)) - before
                one.found.setdefault((users, callers), []).append(slice_)
    return mixes


def table(contenders: Sequence[Contender], mixes: Sequence[tuple[int, int]]) -> list[str]:
    """Pairs per second with their spread, latency, and CPU."""
    columns = ("users", "callers", "ledger", "pairs/s", "p50, ms", "p99, ms", "CPU of it + PostgreSQL, ms/pair")
    lines = [records.row(columns), records.rule(len(columns))]
    for users, callers in mixes:
        for one in contenders:
            found = one.found[users, callers]
            pairs = sum(each["pairs"] for each in found)
            cpu = " + ".join(
                f"{1000 * sum(each[who] for each in found) / pairs:.2f}" for who in ("cpu_s", "postgres_s")
            )
            rate = records.spread([each["pairs"] / each["seconds"] for each in found], 0)
            latencies = (records.spread([each[name] for each in found], 1) for name in ("p50", "p99"))
            lines.append(records.row([str(users), str(callers), one.name, rate, *latencies, cpu]))
    return lines


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of all mixes.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a slice.")] = 1.5,
    short: Annotated[bool, typer.Option(help="One round of short slices, ours alone.")] = False,
    peers: Annotated[Path | None, typer.Option(help="Keep the peers' environments here.")] = None,
    python313: Annotated[str | None, typer.Option(help="A Python 3.13, for snipz.")] = shutil.which("python3.13"),
    seed: Annotated[int, typer.Option(help="Of the order.")] = 1,
) -> None:
    """Print the table."""
    rounds, seconds = (1, 0.2) if short else (rounds, seconds)
    dice = random.Random(seed)  # noqa: S311
    typer.echo(f"{records.machine()}\n{rounds} rounds of {seconds:g} s slices, seed {seed}\n")
    with ExitStack() as stack:
        home = peers or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uc-peers-")))
        pythons = {"ours": sys.executable} if short else interpreters(home, python313)
        url, postmaster, _ = stack.enter_context(server())
        contenders = [stack.enter_context(started(name, python, url, USERS)) for name, python in pythons.items()]
        mixes = measure(contenders, postmaster, rounds, seconds, dice)
        typer.echo("\n".join(table(contenders, mixes)))


if __name__ == "__main__":
    typer.run(main)
