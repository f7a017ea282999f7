"""What it costs to ask how deployments stand: `python -m tests.unit.standing_cost` prints microseconds."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.faults import Fault
from uc_litellm_plugin.health import Health

DEPLOYMENTS = [(f"provider-{i % 5}", f"deployment-{i}") for i in range(50)]
ROUNDS = 2000


def microseconds(work: Callable[[], object]) -> tuple[float, float]:
    """The median and the 99th percentile of a piece of work, after some rounds to warm up."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - began) / 1000)
    times = sorted(times[ROUNDS // 10 :])
    return statistics.median(times), times[len(times) * 99 // 100]


async def main() -> None:
    settings = settings_module.load({"UC_STATE_DIR": str(Path("nowhere"))})
    health = Health(Database(settings), settings.health)
    dice = random.Random(1)

    def attempt() -> None:
        where = dice.choice(DEPLOYMENTS)
        health.begun(*where)
        if dice.random() < 0.9:
            health.succeeded(*where, dice.expovariate(1 / 400), 100)
        else:
            health.failed(*where, Fault.SERVER_ERROR)

    def ask() -> None:
        for provider, deployment in DEPLOYMENTS:
            health.standing(provider, deployment)

    def ask_after_a_change_of_all() -> None:
        for where in DEPLOYMENTS:
            health._deployments[where].breaker._holds_until = 0
        ask()

    for _ in range(20_000):
        attempt()
    print(f"Python {sys.version.split()[0]}, 50 deployments, full windows; median and 99th percentile in microseconds")
    for name, work, parts in (
        ("standing(), nothing new since", ask, len(DEPLOYMENTS)),
        ("standing(), an attempt since, at each", ask_after_a_change_of_all, len(DEPLOYMENTS)),
        ("begun() and succeeded() or failed()", attempt, 1),
    ):
        median, p99 = microseconds(work)
        print(f"  {name:40} {median / parts:6.2f} {p99 / parts:6.2f}   together {median:7.1f} {p99:7.1f}")


if __name__ == "__main__":
    asyncio.run(main())
