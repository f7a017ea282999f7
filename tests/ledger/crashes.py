"""The fourth and the fifth layer: PostgreSQL crashes; workers are killed while it is away, and machines lose power."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg

from tests.ledger import snapshot
from tests.ledger.server import Server
from tests.schema.ledger import Ledger, settlement

ROOT = Path(__file__).parents[2]
USER = "ann"


async def database_crash(server: Server, url: str) -> None:
    """What a settlement acknowledged is there after a crash of the server."""
    ledger = await _open(url)
    holds = [await ledger.held(USER, "1") for _ in range(3)]
    for hold in holds:
        await ledger.settle(settlement(hold, USER, "1"))
    await asyncio.to_thread(server.crash)
    ledger.connection.terminate()
    await _judge(url, dict.fromkeys(holds, Decimal(1)))


async def outbox(url: str, package: Path) -> None:
    """What was acknowledged while PostgreSQL was away is charged once when it is back, whoever was killed meanwhile."""
    ledger = await _open(url)
    ledger.connection.terminate()
    with tempfile.TemporaryDirectory(prefix="uc-worker-") as directory:
        home = Path(directory)
        (home / "outbox").mkdir()
        with worker(package, home, url) as heir:
            charges = _killed_while_away(package, home, heir)
            charges |= _lived_while_another_flushed(package, home, heir)
        await _judge(url, charges)


def _killed_while_away(package: Path, home: Path, heir: Worker) -> dict[uuid.UUID, Decimal]:
    """Settles, fails to flush, dies, and the machine loses power; the heir flushes, twice from the same segments."""
    with worker(package, home, _nowhere(home)) as dead:
        records = [_record("1"), _record("2", prompt_tokens="many"), _record("3")]
        dead.ask("settle", records)
        dead.ask("flush", None)
        torn = _record("4")
        dead.ask("settle", [torn])
    _lose_power(home, dead)
    _spoil(home, torn)
    kept = shutil.copytree(home / "outbox", home / "kept")
    heir.ask("flush", None)
    # As if the heir had been killed between the settlement and the removal of the segment.
    shutil.copytree(kept, home / "outbox", dirs_exist_ok=True)
    heir.ask("flush", None)
    return _charges(records)


def _lived_while_another_flushed(package: Path, home: Path, heir: Worker) -> dict[uuid.UUID, Decimal]:
    """A segment is its process's own as long as that lives, and is adopted when it is dead."""
    records = [_record("5"), _record("6")]
    with worker(package, home, _nowhere(home)) as live:
        for record in records:
            live.ask("settle", [record])
            heir.ask("flush", None)
    heir.ask("flush", None)
    return _charges(records)


class Worker:
    """The process of worker.py."""

    def __init__(self, package: Path, home: Path, url: str) -> None:
        environ = {
            **os.environ, "UC_STATE_DIR": str(home), "UC_DATABASE_URL": url, "PYTHONPATH": f"{package}:{ROOT}",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger.worker"], cwd=package, env=environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.durable: dict[str, int] = {}
        if not Path(found := self._answer()).is_relative_to(package):
            raise ChildProcessError(f"the worker runs {found}, which is not in {package}")

    def ask(self, order: str, argument: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([order, argument]) + "\n")
        self.process.stdin.flush()
        answer, self.durable = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the worker died: {self.process.communicate()[1]}")
        return json.loads(line)


@contextmanager
def worker(package: Path, home: Path, url: str) -> Iterator[Worker]:
    """A worker that is killed at the end."""
    started = Worker(package, home, url)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def _nowhere(home: Path) -> str:
    """The URL of a server that is away."""
    return f"postgresql://uc@/uc?host={home}"


def _record(charge: str, **usage: Any) -> dict[str, Any]:
    return settlement(uuid.uuid4(), USER, charge, provider="openai", model="m", **usage)


def _charges(records: list[dict[str, Any]]) -> dict[uuid.UUID, Decimal]:
    return {uuid.UUID(record["hold_id"]): Decimal(record["charge"]) for record in records}


def _lose_power(home: Path, dead: Worker) -> None:
    """Of each segment, what was never flushed to the disk is gone."""
    for path in (home / "outbox").glob("*.outbox"):
        os.truncate(path, dead.durable.get(str(path.stat().st_ino), 0))


def _spoil(home: Path, record: dict[str, Any]) -> None:
    """The disk changes one digit of a record, so that it charges another amount."""
    written = f'"charge":"{record["charge"]}"'.encode()
    for path in (home / "outbox").glob("*.outbox"):
        path.write_bytes(path.read_bytes().replace(written, written.replace(b"4", b"9")))


async def _open(url: str) -> Ledger:
    """A ledger with one account in it."""
    ledger = Ledger(await asyncpg.connect(url, server_settings={"search_path": "uc"}))
    await snapshot.wipe(ledger.connection)
    await ledger.add(USER, "100")
    return ledger


def _amounts(charges: dict[uuid.UUID, Decimal]) -> str:
    return ", ".join(f"{amount:.0f}" for amount in sorted(charges.values())) or "nothing"


async def _judge(url: str, charges: dict[uuid.UUID, Decimal]) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "uc"})
    try:
        found = await snapshot.taken(connection)
    finally:
        connection.terminate()
    charged = {uuid.UUID(hold): row[1] for hold, row in found.usage.items()}
    assert charged == charges, f"charged {_amounts(charged)} and not {_amounts(charges)}"
    assert (found.faults, found.leases) == ({}, {}), f"{found.faults}, still held: {found.leases}"
    assert found.accounts[USER][0] == 100 - sum(charges.values())
