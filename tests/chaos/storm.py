"""What dies, when, and how: a plan from a seed, carried out while the calls go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg

from tests.acceptance.bank import Account
from tests.chaos.driver import Driver
from tests.chaos.fleet import Fleet
from tests.chaos.postgres import Server, Wire

# A settlement that neither PostgreSQL nor the disk takes waits in memory for the next beat of its worker (1 s); a kill
# then is the one loss that nobody can prevent, so none happens until those beats are over.
BEATS_SECONDS = 3.0
OURS = "application_name = 'uc_litellm_plugin'"
SETTLING = f"{OURS} AND state = 'active' AND query LIKE '%settle_credits%'"
# Longer than a lease, so that settlements come when their holds have lapsed.
LONG_SECONDS = 8.0
TOP_UP = Decimal("0.02")
# How many kills there are for each of these.
KILLS_FOR_EACH = {
    "terminate": 2,
    "terminate_settling": 4,
    "deliver_again": 2,
    "top_up": 2,
    "cut_hold_before": 8,
    "cut_hold_after": 8,
    "cut_hold_mute": 8,
    "cut_settle_before": 4,
    "cut_settle_after": 4,
    "cut_settle_mute": 8,
    "break_outbox": 20,
    "freeze": 20,
    "stall": 20,
}
# Rounds of half a second in which a settlement may come that waits for an account.
ROUNDS = 10


@dataclass(frozen=True)
class Plan:
    """How often what happens. The kinds that are not named follow from the kills; each comes once at least."""

    kills: int
    crashes: int

    def shuffled(self, dice: random.Random) -> list[str]:
        events = ["kill"] * self.kills + ["crash"] * self.crashes
        for kind, kills in KILLS_FOR_EACH.items():
            events += [kind] * max(self.kills // kills, 1)
        dice.shuffle(events)
        return events


class Storm:
    """Events spread evenly over the calls, in an order and at targets that the seed decides."""

    def __init__(
        self, fleet: Fleet, driver: Driver, server: Server, wire: Wire, outbox: Path, poor: list[Account], seed: int
    ) -> None:
        self._fleet = fleet
        self._driver = driver
        self._server = server
        self._wire = wire
        self._outbox = outbox
        self._poor = poor
        self._dice = random.Random(f"{seed} storm")
        self._recovery: asyncio.Task[None] | None = None
        self._stalls: list[asyncio.Task[None]] = []
        self.happened: Counter[str] = Counter()
        self.strange: list[str] = []
        self._top_ups: list[tuple[str, str]] = []

    async def rage(self, plan: Plan, calls: int) -> None:
        """Carries the plan out, as the number of answers grows to `calls`."""
        events = plan.shuffled(self._dice)
        try:
            for number, kind in enumerate(events):
                if not await self._driver.reached(calls * number // len(events)):
                    return
                await self._cause(kind)
        finally:
            await self._recovered()
            await asyncio.gather(*self._stalls)

    async def _cause(self, kind: str) -> None:
        if kind.startswith("cut_"):
            _, statement, when = kind.split("_")
            self.happened[kind] += await self._wire.cut(statement, when)
            return
        work: Callable[[], Awaitable[int]] = getattr(self, f"_{kind}")
        try:
            self.happened[kind] += await work()
        except (OSError, asyncio.TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError,
                asyncpg.InternalClientError):  # fmt: skip
            # PostgreSQL is down, or our own connection was among those that died.
            self.happened["missed"] += 1

    async def _kill(self) -> int:
        await self._fleet.have(min(2, self._fleet.size))
        await self._fleet.kill(self._dice.choice(self._fleet.ready))
        return 1

    async def _stall(self) -> int:
        """A proxy stands still for longer than its leases last, and goes on."""
        await self._fleet.have(min(2, self._fleet.size))
        proxy = self._dice.choice(self._fleet.ready)

        async def stand_still() -> None:
            proxy.send(signal.SIGSTOP)
            await asyncio.sleep(LONG_SECONDS)
            proxy.send(signal.SIGCONT)

        self._stalls.append(asyncio.create_task(stand_still()))
        return 1

    async def _freeze(self) -> int:
        """PostgreSQL stands still; what it is asked meanwhile it reads afterwards."""
        await self._recovered()
        with self._server.frozen():
            await asyncio.sleep(self._dice.uniform(0.5, 4))
        return 1

    async def _crash(self) -> int:
        await self._recovered()
        await asyncio.to_thread(self._server.crash)
        away = LONG_SECONDS if self._dice.random() < 0.2 else self._dice.uniform(0, 2.5)
        self._recovery = asyncio.create_task(self._recover(away))
        return 1

    async def _recover(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._server.start)

    async def _recovered(self) -> None:
        if self._recovery is not None:
            await self._recovery

    async def _terminate(self) -> int:
        """Any of the plugin's connections, busy or idle, the listening one too."""
        most = self._dice.randint(1, 3)
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS} ORDER BY random() LIMIT {most}"
        async with connection(self._server) as asked:
            return len(await asked.fetch(query))

    async def _terminate_settling(self) -> int:
        """Connections that wait in the middle of a settlement, for an account that somebody else has locked."""
        async with connection(self._server) as locking, connection(self._server) as asked:
            for _ in range(ROUNDS):
                if ended := await _terminate_waiting(locking, asked):
                    return ended
        return 0

    async def _break_outbox(self) -> int:
        """A file stands where the directory was; half of the time PostgreSQL is away as well."""
        await self._recovered()
        away = self._outbox.with_name("outbox.away")
        self._outbox.mkdir(exist_ok=True)
        self._outbox.rename(away)
        self._outbox.write_text("")
        try:
            if self._dice.random() < 0.5:
                await asyncio.to_thread(self._server.crash)
                self.happened["crash_without_outbox"] += 1
                await asyncio.sleep(self._dice.uniform(0.2, 2))
                await asyncio.to_thread(self._server.start)
            await asyncio.sleep(self._dice.uniform(0.5, 2))
        finally:
            self._outbox.unlink()
            away.rename(self._outbox)
        await asyncio.sleep(BEATS_SECONDS)
        return 1

    async def _deliver_again(self) -> int:
        """Settlements that are in the ledger come again, as they were and otherwise, over two connections at once."""
        query = "SELECT hold_id, user_id, cost_credits FROM llm_usage_log WHERE success ORDER BY random() LIMIT 5"
        async with connection(self._server) as one, connection(self._server) as other:
            rows = await one.fetch(query)
            same = [delivery(row, row["cost_credits"]) for row in rows]
            wrong = [delivery(row, row["cost_credits"] + 1) for row in rows]
            released = [{**each, "action": "release"} for each in same]
            answers = await asyncio.gather(settle(one, same + wrong + released), settle(other, released + same))
        outcomes = answers[0] + answers[1]
        count = len(rows)
        expected = ["duplicate"] * count + ["conflict"] * count + ["duplicate"] * 3 * count
        if outcomes != expected:
            self.strange.append(f"settlements delivered again ended {Counter(outcomes)}")
        return len(outcomes)

    async def _top_up(self) -> int:
        """A poor account gets a little, under one key twice."""
        user, key = self._dice.choice(self._poor).user_id, f"top-up-{len(self._top_ups)}"
        query = "SELECT success FROM add_user_credits($1, $2, 'bonus', p_idempotency_key => $3)"
        self._top_ups.append((user, key))
        async with connection(self._server) as one, connection(self._server) as other:
            answers = await asyncio.gather(*(each.fetchval(query, user, TOP_UP, key) for each in (one, other)))
        if answers != [True, True]:
            self.strange.append(f"a top-up delivered twice was answered {answers}")
        return 1


async def _terminate_waiting(locking: Any, asked: Any) -> int:
    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {SETTLING} AND wait_event_type = 'Lock'"
    async with locking.transaction():
        await locking.execute("SELECT FROM user_credits ORDER BY user_id FOR UPDATE")
        for _ in range(50):
            if ended := len(await asked.fetch(query)):
                return ended
            await asyncio.sleep(0.01)
    return 0


@contextlib.asynccontextmanager
async def connection(server: Server) -> Any:
    """A connection that no wire cuts, looking at the plugin's schema."""
    opened = await asyncpg.connect(server.url, server_settings={"search_path": "uc"}, timeout=5, command_timeout=10)
    try:
        yield opened
    finally:
        opened.terminate()


def delivery(row: Any, charge: Decimal) -> dict[str, Any]:
    ids = {"hold_id": str(row["hold_id"]), "user_id": row["user_id"]}
    return {**ids, "action": "settle", "charge": f"{charge:f}", "usage": None}


async def settle(opened: Any, deliveries: list[dict[str, Any]]) -> list[str]:
    rows = await opened.fetch("SELECT outcome FROM settle_credits($1::text::jsonb)", json.dumps(deliveries))
    return [row["outcome"] for row in rows]
