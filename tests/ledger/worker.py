"""A worker's ledger in a process of its own: takes orders line by line, and is killed whenever it pleases.

The first line it writes names the package it runs; each order is answered with its result and with what of each
segment was safely on disk by then, so that a power loss can be played.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import uc_litellm_plugin
from uc_litellm_plugin import settings
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseUnavailable
from uc_litellm_plugin.ledger import Ledger
from uc_litellm_plugin.outbox import Outbox, Record

LEASE_S = 120
MOST_BYTES = 1_000_000

_fsync = os.fsync
_durable: dict[int, int] = {}


def _noted_fsync(fd: Any) -> None:
    _fsync(fd)
    found = os.fstat(fd)
    _durable[found.st_ino] = found.st_size


async def _settle(ledger: Ledger, records: list[Record]) -> list[str]:
    return [str(outcome.charged) for outcome in await asyncio.gather(*map(ledger.settle, records))]


async def _flush(ledger: Ledger, _: None) -> str:
    try:
        return str(await ledger.flush())
    except DatabaseUnavailable:
        return "away"


async def _main() -> None:
    found = settings.load(os.environ)
    orders: dict[str, Any] = {"settle": _settle, "flush": _flush}
    async with Database(found) as database:
        ledger = Ledger(database, Outbox(found.state_dir / "outbox", MOST_BYTES), LEASE_S)
        print(json.dumps(uc_litellm_plugin.__file__), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order, argument = json.loads(line)
            print(json.dumps([await orders[order](ledger, argument), _durable]), flush=True)


if __name__ == "__main__":
    os.fsync = _noted_fsync
    asyncio.run(_main())
