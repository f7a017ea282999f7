"""Hold and settle, again and again, through one ledger: the process that `bench.ledger` starts for each of them.

It runs in that ledger's own environment, so it imports nothing of the bench. Each line of its standard input is a JSON
list: concurrent callers, users, seconds; each line of output what came of it.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import itertools
import json
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

CONNECTIONS = 8
STRIDE = 7919
HELD, CHARGED = Decimal("0.5000"), Decimal("0.1234")
PLENTY = Decimal("100000000")

Pair = Callable[[int], Awaitable[None]]

_CREDIT_LEDGER_TABLES = """
CREATE TABLE tenants (id uuid PRIMARY KEY);
CREATE TABLE credit_balance (tenant_id uuid PRIMARY KEY REFERENCES tenants, credits numeric(18, 4) NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE credit_ledger (id uuid PRIMARY KEY, tenant_id uuid NOT NULL REFERENCES tenants,
    delta numeric(18, 4) NOT NULL, reason varchar(120) NOT NULL, idempotency_key varchar(200),
    balance_after numeric(18, 4), created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (tenant_id, idempotency_key));
CREATE INDEX ON credit_ledger (tenant_id);
"""


async def ours(url: str, users: int) -> Pair:
    """A hold and its settlement with a whole usage row, coalesced as in a worker of the proxy."""
    from uc_litellm_plugin import settings
    from uc_litellm_plugin.database import Database
    from uc_litellm_plugin.ledger import Ledger
    from uc_litellm_plugin.outbox import Outbox

    state = tempfile.mkdtemp(prefix="uc-bench-ledger-")
    atexit.register(shutil.rmtree, state, ignore_errors=True)
    own = settings.load({"UC_STATE_DIR": state, "UC_DATABASE_URL": url})
    database = await Database(own).open()
    ledger = Ledger(database, Outbox(Path(state, "outbox"), 1 << 28), own.holds.lease_s)
    for call in ("create_account('pair-' || n, 'starter')", "add_user_credits('pair-' || n, 10000000, 'bonus')"):
        made = f"SELECT count(*) FROM generate_series(0, $1::int - 1) AS n, LATERAL {call}"  # noqa: S608
        await database.fetch(made, users, timeout=600)

    async def pair(user: int) -> None:
        hold_id, name = uuid.uuid4(), f"pair-{user}"
        held = await ledger.hold(hold_id, name, HELD, HELD, "balanced", {"model": "gpt-4o-mini", "endpoint": "chat"})
        assert held.error is None, held
        await ledger.settle(
            {"hold_id": str(hold_id), "user_id": name, "action": "settle", "charge": f"{CHARGED}", "usage": USAGE}
        )

    return pair


async def credit_ledger(url: str, users: int) -> Pair:
    """It has no holds: the worst case is spent, and what was not used is granted back; two commits, as a hold has."""
    from credit_ledger import metering
    from sqlalchemy import create_engine, text

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), pool_size=CONNECTIONS,
                           max_overflow=0, pool_timeout=60)  # fmt: skip
    names = [str(uuid.uuid4()) for _ in range(users)]
    with engine.begin() as connection:
        for statement in filter(str.strip, _CREDIT_LEDGER_TABLES.split(";")):
            connection.execute(text(statement))
        connection.execute(text("INSERT INTO tenants SELECT unnest(CAST(:n AS uuid[]))"), {"n": names})
        connection.execute(text("INSERT INTO credit_balance SELECT id, :all FROM tenants"), {"all": PLENTY})
    threads = ThreadPoolExecutor(256)

    def blocking(name: str) -> None:
        key = str(uuid.uuid4())
        assert metering.decrement(name, HELD, idempotency_key=f"{key}-hold", engine=engine).ok
        assert metering.grant(name, HELD - CHARGED, idempotency_key=f"{key}-rest", engine=engine).ok

    async def pair(user: int) -> None:
        await asyncio.get_running_loop().run_in_executor(threads, blocking, names[user])

    return pair


async def snipz(url: str, users: int) -> Pair:
    """A reservation and its commit."""
    from snipz import Budget, Scope
    from snipz.storage.postgres import PostgresBackend

    budget = Budget(PostgresBackend(url, min_size=CONNECTIONS, max_size=CONNECTIONS, pool_warn_threshold=1.0))
    await budget.migrate()
    scopes = [Scope("user", f"pair-{user}") for user in range(users)]
    await asyncio.gather(*(budget.set_limit(scope, PLENTY) for scope in scopes))

    async def pair(user: int) -> None:
        reservation = await budget.reserve(scopes[user], HELD)
        await reservation.commit(CHARGED)

    return pair


LEDGERS = {"ours": ours, "credit-ledger": credit_ledger, "snipz": snipz}

# As the proxy writes it for a chat call.
USAGE: dict[str, Any] = {
    "provider": "openai", "model": "gpt-4o-mini", "model_group": "gpt-4o-mini", "power_level": "balanced",
    "byok_used": False, "app_id": "default", "endpoint": "chat", "call_type": "acompletion", "streamed": False,
    "attempts": 1, "user_agent": "bench", "ip_address": "127.0.0.1", "prompt_tokens": 12, "completion_tokens": 20,
    "total_tokens": 32, "cost_usd": "0.01234", "cost_per_token": "0.000385625000", "cost_source": "usage",
    "latency_ms": 14, "tokens_per_second": 1428.571, "success": True, "status_code": 200,
    "metadata": {
        "credits_per_usd": "10", "cost_multiplier": "1.0", "tier": "starter", "markup": "1", "held": "0.5",
        "max_output_tokens": 64, "deployment": "dep-1", "group": "gpt-4o-mini",
        "prices": {"input_cost_per_token": "1.5e-07", "output_cost_per_token": "6e-07"},
    },
}  # fmt: skip


async def measure(pair: Pair, callers: int, users: int, seconds: float) -> dict[str, float]:
    """Pairs per second of so many callers, each its next pair when the last is done, and their latencies."""
    took: list[float] = []
    # All users in turn, neighbours far apart.
    turns, until = (n * STRIDE % users for n in itertools.count()), time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < until:
            await pair(next(turns))
            took.append((time.perf_counter() - began) * 1000)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    whole = time.perf_counter() - began
    took.sort()
    return {
        "pairs": len(took), "seconds": whole, "p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)],
        "cpu_s": time.process_time() - cpu,
    }  # fmt: skip


async def serve(name: str, url: str, users: int) -> None:
    """Answer until the standard input closes."""
    pair = await LEDGERS[name](url, users)
    gc.freeze()
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await measure(pair, *json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
