"""What a routing decision costs: `python -m bench.ranking`.

The ranking alone, the plan around it (price, worst case, order, health), and the plan with the deployments looked up in
LiteLLM's own router, for 50 deployments of one group. The least of some repetitions: the others had company.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import typer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from litellm import Router

from uc_litellm_plugin import ranking, routes, settings, vocabularies
from uc_litellm_plugin.breaker import Standing, Status
from uc_litellm_plugin.call import Caller
from uc_litellm_plugin.catalog import Catalog
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.planner import Known, Planner
from uc_litellm_plugin.power import PowerLevel
from uc_litellm_plugin.ranking import Option
from uc_litellm_plugin.requests import Inbound
from uc_litellm_plugin.wish import Wish

PROVIDERS = ("openai", "anthropic", "openrouter", "together", "deepinfra", "groq", "mistral")
STATUSES: tuple[Status, ...] = (*["healthy"] * 5, "degraded", "down")  # type: ignore[arg-type]
LEVEL = PowerLevel("eco", Decimal("0.7"), 2048, ("openrouter", "together", "deepinfra"), False, 5000, Decimal(70))
CALLER = Caller("user", "starter", "eco")
BODY: Mapping[str, Any] = {"model": "group", "messages": [{"role": "user", "content": "Tell me of Prague. " * 20}]}
ASKED = Inbound(BODY)


def deployments(number: int, dice: random.Random) -> list[dict[str, Any]]:
    """As an operator writes them, each with its own price."""
    return [
        {
            "model_name": "group",
            "litellm_params": {
                "model": "openai/gpt-4o-mini",
                "api_key": "sk-none",
                "input_cost_per_token": dice.randint(1, 300) / 1e8,
                "output_cost_per_token": dice.randint(1, 900) / 1e8,
            },
            "model_info": {
                "id": f"dep-{n}", "uc_provider": dice.choice(PROVIDERS), "quality_score": dice.randint(50, 99),
            },
        }
        for n in range(number)
    ]  # fmt: skip


def standings(number: int, dice: random.Random) -> dict[str, Standing]:
    return {
        f"dep-{n}": Standing(status=dice.choice(STATUSES), p95_ms=dice.uniform(100, 6000), load=dice.randint(0, 9))
        for n in range(number)
    }


def microseconds(work: Callable[[], object], times: int, repeat: int) -> float:
    """The least time of one run."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        for _ in range(times):
            work()
        best = min(best, time.perf_counter() - started)
    return best / times * 1e6


async def plan_microseconds(planner: Planner, times: int, repeat: int) -> float:
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        for _ in range(times):
            await planner.plan(routes.CHAT, ASKED, CALLER, "group")
        best = min(best, time.perf_counter() - started)
    return best / times * 1e6


def planner_of(candidates: Callable[[str], list[Candidate]], known: Mapping[str, Standing]) -> Planner:
    async def levels() -> Mapping[str, PowerLevel]:
        return {"eco": LEVEL}

    async def no_keys(caller: Caller) -> tuple[()]:
        return ()

    # A database is not asked for anything here, and must not be.
    with tempfile.TemporaryDirectory() as state:
        own = settings.load({"UC_STATE_DIR": state})
    return Planner(
        own,
        Known(
            levels=levels,
            candidates=candidates,
            is_model=lambda name: True,
            providers=lambda: {name: name for name in PROVIDERS},
            standing=lambda candidate: known[candidate.deployment],
            own_keys=no_keys,
            heads=vocabularies.Heads(),
        ),
    )


def measure(number: int = 50, seed: int = 1, times: int = 300, repeat: int = 15) -> None:
    """Print what a decision among so many deployments costs."""
    dice = random.Random(seed)  # noqa: S311
    router = Router(model_list=deployments(number, dice))
    looked_up = Catalog(lambda: router, lambda name: name)
    found, known = looked_up.candidates("group"), standings(number, dice)
    options = [Option(replace(each), known[each.deployment], Decimal(dice.randint(1, 900)) / 1000) for each in found]
    wish = Wish()
    rows = [
        ("ranking", microseconds(lambda: ranking.rank(options, LEVEL, wish), 10 * times, repeat), "below 50"),
        ("plan: count, bound, price, rank", asyncio.run(plan_of(lambda _: found, known, times, repeat)), ""),
        ("looking the deployments up", microseconds(lambda: looked_up.candidates("group"), times, repeat), ""),
        ("plan, deployments looked up", asyncio.run(plan_of(looked_up.candidates, known, times, repeat)), ""),
    ]
    typer.echo(f"{number} deployments, seed {seed}, least of {repeat} repetitions\n")
    typer.echo("| what | microseconds | goal |\n| --- | --- | --- |")
    for what, took, goal in rows:
        typer.echo(f"| {what} | {took:.1f} | {goal} |")


async def plan_of(
    candidates: Callable[[str], list[Candidate]], known: Mapping[str, Standing], times: int, repeat: int
) -> float:
    return await plan_microseconds(planner_of(candidates, known), times, repeat)


if __name__ == "__main__":
    typer.run(measure)
