"""How a call's cost in the database grows with users and rows, and with workers: `python -m bench.scale`.

Two databases on one embedded server: a small one stays as it is, the other one grows. Both get the same pairs of hold
and settlement in turn, through the real modules, each user in turn; what is printed is the large one's figure by the
small one's of the same round, so that only growth shows. Each usage row comes with the two rows of the ledger that a
call leaves. Then one and two processes ask one database, and one and two workers of the proxy answer.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated

import asyncpg
import typer

from bench import contenders, load, processes, records
from bench.contenders import PLUGIN, USERS
from bench.ledger import Contender, server, started
from bench.provider import ProviderProcess
from tests.conftest import database_at

SMALL = (1_000, 100_000)
STEPS = ((1_000, 100_000), (100_000, 100_000), (1_000_000, 100_000), (1_000_000, 1_000_000), (1_000_000, 10_000_000))
SHORT = ((1_000, 1_000), (2_000, 2_000))
PHASES = ["growth", "ledgers", "proxies"]
CALLERS = 8
BATCH = 250_000

_USERS = """
WITH new AS (
    INSERT INTO user_credits (user_id, tier, credits_remaining, credits_lifetime, version)
    SELECT 'pair-' || n, 'starter', 100000, 100000, 1 FROM generate_series($1::int, $2::int - 1) AS n RETURNING user_id
)
INSERT INTO credit_transactions (user_id, transaction_type, amount, balance_after, held_after, debt_after, user_version)
SELECT user_id, 'bonus', 100000, 100000, 0, 0, 1 FROM new"""
# Versions below zero, so that the accounts' own go on where they are.
_LEDGER = """
INSERT INTO credit_transactions (user_id, transaction_type, amount, held_delta, balance_after, held_after, debt_after,
    user_version, hold_id, ends_hold, provider, model, power_level, created_at)
SELECT 'pair-' || n % $3::int, kind, CASE kind WHEN 'hold' THEN 0 ELSE -0.5 END,
    CASE kind WHEN 'hold' THEN 0.5 ELSE -0.5 END, 100000, 1, 0,
    CASE kind WHEN 'hold' THEN -2 * n - 1 ELSE -2 * n - 2 END,
    md5(n::text)::uuid, kind = 'debit', 'openai', 'gpt-4o-mini', 'balanced', now() - n * interval '1 second'
FROM generate_series($1::int, $2::int - 1) AS n, unnest(ARRAY['hold', 'debit']) AS kind"""
_USAGE = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    cost_credits, cost_usd, cost_source, request_id, app_id, latency_ms, tokens_per_second, success, created_at)
SELECT 'pair-' || n % $3::int, 'openai', 'model-' || n % 40, 'balanced', 100, 50, 150, 0.5, 0.05, 'usage', 'r' || n,
    'app' || n % 7, n % 3000, 40, true, now() - n * interval '1 second'
FROM generate_series($1::int, $2::int - 1) AS n"""

# What a row that is filled in would be held against one by one, all but the primary keys.
_CONSTRAINTS = """
SELECT conrelid::regclass::text AS "table", quote_ident(conname) AS name,
    pg_get_constraintdef(oid) || CASE WHEN contype = 'c' AND convalidated THEN ' NOT VALID' ELSE '' END AS made
FROM pg_constraint WHERE conrelid = ANY ($1::regclass[]) AND contype IN ('c', 'f', 'u') ORDER BY contype DESC"""
_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS made FROM pg_index
WHERE indrelid = ANY ($1::regclass[]) AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
_LARGE = ["credit_transactions", "llm_usage_log"]


class Database:
    """One that is filled as far as it is asked to be."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.users = self.rows = 0

    def grow(self, users: int, rows: int) -> float:
        """Adds what is missing; returns the seconds it took."""
        began = time.monotonic()
        asyncio.run(self._grow(users, rows))
        self.users, self.rows = users, rows
        return time.monotonic() - began

    async def _grow(self, users: int, rows: int) -> None:
        connection = await asyncpg.connect(self._url, server_settings={"search_path": "uc"})
        for first in range(self.users, users, BATCH):
            await connection.execute(_USERS, first, min(users, first + BATCH))
        async with without_indexes(connection):
            for first in range(self.rows, rows, BATCH):
                for statement in (_LEDGER, _USAGE):
                    await connection.execute(statement, first, min(rows, first + BATCH), users)
        await connection.execute("VACUUM (ANALYZE) user_credits, credit_transactions, llm_usage_log")
        await connection.execute("CHECKPOINT")
        await connection.close()


@asynccontextmanager
async def without_indexes(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """The large tables without indexes and constraints meanwhile: filling in ten million rows takes a tenth."""
    constraints = await connection.fetch(_CONSTRAINTS, _LARGE)
    indexes = await connection.fetch(_INDEXES, _LARGE)
    for each in constraints:
        await connection.execute(f"ALTER TABLE {each['table']} DROP CONSTRAINT {each['name']}")
    for each in indexes:
        await connection.execute(f"DROP INDEX {each['name']}")
    yield
    await connection.execute("SET maintenance_work_mem = '1GB'")
    for each in indexes:
        await connection.execute(each["made"])
    for each in reversed(constraints):
        await connection.execute(f"ALTER TABLE {each['table']} ADD CONSTRAINT {each['name']} {each['made']}")


def growth(steps: list[tuple[int, int]], rounds: int, seconds: float, dice: random.Random) -> None:
    """The table of ratios, a line when it is there."""
    columns = ("users", "usage rows", "pairs/s", "p50", "p99", "CPU of PostgreSQL per pair", "filled in, s")
    typer.echo(f"ratio to {steps[0][0]} users and {steps[0][1]} rows, {CALLERS} callers, {rounds} rounds\n\n"
               + records.row(columns) + "\n" + records.rule(len(columns)))  # fmt: skip
    with ExitStack() as stack:
        url, postmaster, _ = stack.enter_context(server())
        small = stack.enter_context(started("ours", None, url, 0, "small"))
        large = stack.enter_context(started("ours", None, url, 0, "large"))
        databases = {one.name: Database(database_at(url, f"pairs_{one.name}")) for one in (small, large)}
        databases["small"].grow(*steps[0])
        for users, rows in steps:
            took = databases["large"].grow(users, rows)
            found = [one_round(small, large, steps[0][0], users, postmaster, seconds, dice) for _ in range(rounds)]
            cells = [records.spread([each[figure] for each in found]) for figure in ("rate", "p50", "p99", "cpu")]
            typer.echo(records.row([f"{users:,}", f"{rows:,}", *cells, f"{took:.0f}"]))


def one_round(
    small: Contender, large: Contender, few: int, many: int, postmaster: int, seconds: float, dice: random.Random
) -> dict[str, float]:
    """One slice of each, as ratios."""
    found = {}
    for one, users in dice.sample([(small, few), (large, many)], 2):
        before = processes.cpu_s(processes.tree(postmaster))
        slice_ = one.ask(CALLERS, users, seconds)
        used = processes.cpu_s(processes.tree(postmaster)) - before
        rate = slice_["pairs"] / slice_["seconds"]
        found[one] = {"rate": rate, "p50": slice_["p50"], "p99": slice_["p99"], "cpu": used / slice_["pairs"]}
    return {figure: found[large][figure] / found[small][figure] for figure in found[large]}


def ledgers(rounds: int, seconds: float, dice: random.Random) -> None:
    """One and two processes on one database."""
    typer.echo("\n" + records.row(["ledger processes", "pairs/s, all together", "p50, ms"]) + "\n" + records.rule(3))
    rates: dict[int, list[float]] = {1: [], 2: []}
    p50s: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        url, _, _ = stack.enter_context(server())
        first = stack.enter_context(started("ours", None, url, 1000, "workers"))
        second = stack.enter_context(started("ours", None, url, 0, "workers", make=False))
        aside = stack.enter_context(ThreadPoolExecutor())
        for _ in range(rounds):
            for used in dice.sample([(first,), (first, second)], 2):
                found = list(aside.map(lambda one: one.ask(CALLERS, 1000, seconds), used))
                rates[len(used)].append(sum(each["pairs"] / each["seconds"] for each in found))
                p50s[len(used)].append(statistics.mean(each["p50"] for each in found))
    for number in rates:
        typer.echo(records.row([str(number), records.spread(rates[number], 0), records.spread(p50s[number], 1)]))


def proxies(rounds: int, seconds: float, dice: random.Random) -> None:
    """One and two workers of the proxy."""
    heading = ("workers", "requests/s", "p50, ms", "CPU of the workers, ms/request", "of PostgreSQL")
    typer.echo("\n" + records.row(heading) + "\n" + records.rule(len(heading)))
    with ExitStack() as stack:
        provider = stack.enter_context(ProviderProcess())
        stage = stack.enter_context(contenders.stage(provider.url, USERS))
        running = [stack.enter_context(stage.running(PLUGIN, workers=workers)) for workers in (1, 2)]
        found: list[list[list[float]]] = [[] for _ in running]
        for one in running:
            answered(one, stage, 3 * seconds)
        for _ in range(rounds):
            for number in dice.sample(range(len(running)), len(running)):
                found[number].append(answered(running[number], stage, seconds))
        for one, slices in zip(running, found, strict=True):
            columns = zip(*slices, strict=True)
            cells = [records.spread(each, digits) for each, digits in zip(columns, (0, 1, 2, 2), strict=True)]
            typer.echo(records.row([str(one.proxy.workers), *cells]))


def answered(one: contenders.Contender, stage: contenders.Stage, seconds: float) -> list[float]:
    """One slice: requests per second; median latency and CPU per request of workers and PostgreSQL. Milliseconds."""
    pids = one.proxy.worker_pids()
    before = [processes.cpu_s(pids), processes.cpu_s(stage.postgres())]
    slice_ = load.run(one.proxy.url, one.keys, streamed=False, connections=16, seconds=seconds)
    after = [processes.cpu_s(pids), processes.cpu_s(stage.postgres())]
    cpu = [1000 * (b - a) / len(slice_.milliseconds) for a, b in zip(before, after, strict=True)]
    return [slice_.per_second, load.quantile(slice_.milliseconds, 0.5), *cpu]


def main(
    most_rows: Annotated[int, typer.Option(help="Largest number of usage rows.")] = 10_000_000,
    rounds: Annotated[int, typer.Option(help="Rounds of each step.")] = 7,
    seconds: Annotated[float, typer.Option(help="Length of a slice.")] = 2,
    short: Annotated[bool, typer.Option(help="Few users and rows, no proxy: to see that it works.")] = False,
    only: Annotated[list[str], typer.Option(help="growth, ledgers, proxies.")] = PHASES,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 1,
) -> None:
    """Print the tables."""
    typer.echo(f"{records.machine()}\nseed {seed}\n")
    rounds, seconds = (1, 0.2) if short else (rounds, seconds)
    steps = list(SHORT) if short else [step for step in STEPS if step[1] <= most_rows]
    if "growth" in only:
        growth(steps, rounds, seconds, random.Random(seed))  # noqa: S311
    if "ledgers" in only:
        ledgers(rounds, seconds, random.Random(seed))  # noqa: S311
    if "proxies" in only and not short:
        proxies(rounds, seconds, random.Random(seed))  # noqa: S311


if __name__ == "__main__":
    typer.run(main)
