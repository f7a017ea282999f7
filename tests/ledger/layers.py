"""The layers of proof, from the quickest to the slowest. Each raises when it finds something wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.ledger import checks, crashes, machine, races
from tests.ledger.server import Server

EXAMPLES = 30


@dataclass(frozen=True)
class Suspect:
    """A ledger under test: its database, and the directory its Python package is imported from."""

    server: Server
    url: str
    package: Path
    seed: int


def run_checks(suspect: Suspect) -> None:
    asyncio.run(checks.run(suspect.url))


def run_machine(suspect: Suspect) -> None:
    machine.run(suspect.url, examples=EXAMPLES, seed=suspect.seed, shrink=False)


def run_races(suspect: Suspect) -> None:
    asyncio.run(races.one_key(suspect.url))
    asyncio.run(races.crossing(suspect.url))
    asyncio.run(races.overlaps(suspect.url))
    asyncio.run(races.storm(suspect.url, suspect.seed))


def run_crash(suspect: Suspect) -> None:
    asyncio.run(crashes.database_crash(suspect.server, suspect.url))


def run_outbox(suspect: Suspect) -> None:
    asyncio.run(crashes.outbox(suspect.url, suspect.package))


LAYERS: dict[str, Callable[[Suspect], None]] = {
    "checks": run_checks,
    "model": run_machine,
    "races": run_races,
    "crash": run_crash,
    "outbox": run_outbox,
}
