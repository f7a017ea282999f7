"""A whole run: the ground is prepared, the storm rages over the calls, and all is judged when it has settled."""

from __future__ import annotations

import asyncio
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import SecretStr

from tests.acceptance.bank import Account, Bank
from tests.chaos.driver import Driver
from tests.chaos.fleet import ROOT, Fleet, Proxy, Workshop
from tests.chaos.postgres import Server, Wire
from tests.chaos.storm import Plan, Storm, connection
from tests.chaos.verdict import Verdict, judge, outcome_of
from tests.proxy import environment, litellm_config
from tests.upstream import Upstream
from uc_litellm_plugin import migrations, settings

LEASE_SECONDS = 6
UC_YAML = f"holds: {{lease_s: {LEASE_SECONDS}, extend_every_s: 2, sweep_every_s: 1}}\n"
CALM_SECONDS = 90.0
RICH, POOR = 36, 4
# One attempt per call, and no deployment that rests after a failure: each book has at most one entry for a call.
ROUTER = {"num_retries": 0, "disable_cooldowns": True}
# Some hooks of the plugin come twice or never; see tests/chaos/hooks.py.
PLUGIN: dict[str, Any] = {
    "litellm_settings": {"callbacks": ["tests.chaos.hooks.proxy_handler_instance"]},
    "general_settings": {"custom_auth": "tests.chaos.hooks.user_api_key_auth"},
}
HOOKS = "hooks.log"
# Of what the plugin logs: settlements that end with their process, beats and calls with a fault that nobody thought of.
UNHEARD_OF = re.compile(
    r"^.*(settlement lost with this process|could not be admitted|(Worker|Ledger|Health)\.\w+ failed$).*(\n.*){0,40}",
    re.MULTILINE,
)
PAUSES = ({"kind": "slow", "seconds": 0.02}, {"kind": "delay", "seconds": 0.1})

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How long and how hard.

    Attributes
    ----------
    calls
        Answers until it is over.
    proxies, spares, lanes
        Processes that serve, those that are kept warm to replace them, and clients that ask at once.
    every_s
        How often progress is shown. Seconds.
    """

    kills: int
    crashes: int
    calls: int
    seed: int
    proxies: int = 2
    spares: int = 0
    lanes: int = 24
    every_s: float = 5


class Trial:
    """One run. `stop` ends it early; what has happened so far is judged all the same."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options = options
        self._say = say
        self._began = time.monotonic()
        self._driver: Driver | None = None
        self._stopped = False

    async def run(self) -> Verdict:
        async with AsyncExitStack() as stack:
            return await self._within(stack)

    def stop(self) -> None:
        self._say("asked to end: judging what has happened so far")
        self._stopped = True
        if self._driver is not None:
            self._stopping = asyncio.get_running_loop().create_task(self._driver.stop())

    async def _within(self, stack: AsyncExitStack) -> Verdict:
        options = self._options
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uc-chaos-")))
        server = await asyncio.to_thread(lambda: stack.enter_context(Server()))
        upstream = await asyncio.to_thread(lambda: stack.enter_context(Upstream()))
        await asyncio.to_thread(upstream.set_faults, *PAUSES)
        bank = await prepared(server.url)
        rich, poor = await asyncio.to_thread(opened, bank)
        wire = await stack.enter_async_context(Wire(server))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        )
        workshop = await stack.enter_async_context(workshop_of(state, upstream.url, wire.url, options.seed))
        fleet = Fleet(workshop, http, options.proxies, options.spares)
        await fleet.start()
        self._driver = driver = Driver(fleet, http, rich + poor, options.seed)
        storm = Storm(fleet, driver, server, wire, state / "outbox", poor, options.seed)
        if self._stopped:
            driver.over.set()
        await self._rage(storm, driver, fleet)
        await self._calm(fleet, server, state / "outbox")
        books = await asyncio.to_thread(upstream.calls)
        verdict = await asyncio.to_thread(judge, driver.calls, books, bank, untold(state))
        verdict.counts.update(storm.happened)
        verdict.counts.update(hooks(state))
        verdict.counts["seconds"] = round(time.monotonic() - self._began)
        verdict.violations += storm.strange
        inspect(verdict, workshop.made)
        return verdict

    async def _rage(self, storm: Storm, driver: Driver, fleet: Fleet) -> None:
        options = self._options
        telling = asyncio.create_task(self._tell(storm, driver, fleet))
        driving = asyncio.create_task(driver.drive(options.lanes))
        try:
            await storm.rage(Plan(options.kills, options.crashes), options.calls)
            await driver.reached(options.calls)
        finally:
            await driver.stop()
            telling.cancel()
            await driving

    async def _tell(self, storm: Storm, driver: Driver, fleet: Fleet) -> None:
        while True:
            await asyncio.sleep(self._options.every_s)
            outcomes = Counter(outcome_of(call) for call in driver.calls if not call.under_way)
            seen = ", ".join(f"{name} {count}" for name, count in [*outcomes.items(), *storm.happened.items()])
            self._say(f"{time.monotonic() - self._began:6.0f} s, {len(fleet.ready)} serve: {seen}")

    async def _calm(self, fleet: Fleet, server: Server, outbox: Path) -> None:
        """Until the outboxes are flushed and the leases of the dead have lapsed; then all proxies start anew once."""
        self._say(f"{time.monotonic() - self._began:6.0f} s, the storm is over")
        await _settled(server, outbox)
        self._say(f"{time.monotonic() - self._began:6.0f} s, restarting the proxies")
        await fleet.restart()
        await _settled(server, outbox)
        await fleet.stop()


async def _settled(server: Server, outbox: Path) -> None:
    deadline = time.monotonic() + CALM_SECONDS
    async with connection(server) as asked:
        while time.monotonic() < deadline and (
            waiting(outbox) or await asked.fetchval("SELECT EXISTS (SELECT FROM credit_holds)")
        ):
            await asyncio.sleep(0.2)


async def prepared(url: str) -> Bank:
    """A migrated database."""
    await migrations.migrate(settings.load({}).model_copy(update={"database_url": SecretStr(url)}))
    return await asyncio.to_thread(Bank, url)


def opened(bank: Bank) -> tuple[list[Account], list[Account]]:
    """Accounts that can pay for everything, and some that soon cannot."""
    return [bank.open("10000") for _ in range(RICH)], [bank.open("0.05") for _ in range(POOR)]


def workshop_of(state: Path, upstream_url: str, database_url: str, seed: int) -> Workshop:
    """All proxies share one configuration and one state directory, as the workers of one machine do."""
    config, ours = state / "config.yaml", state / "uc.yaml"
    config.write_text(yaml.safe_dump(litellm_config(upstream_url, router_settings=ROUTER, **PLUGIN), sort_keys=False))
    ours.write_text(UC_YAML)
    variables = {
        "LITELLM_LOG": "ERROR",
        "PYTHONFAULTHANDLER": "1",
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(24)}",
        "DEFAULT_MAX_RETRIES": "0",
        "UC_STATE_DIR": str(state),
        "UC_DATABASE_URL": database_url,
        "UC_CONFIG": str(ours),
        "PYTHONPATH": str(ROOT),
        "CHAOS_SEED": str(seed),
        "CHAOS_HOOKS": str(state / HOOKS),
    }
    return Workshop(config, state, environment(variables))


def waiting(outbox: Path) -> bool:
    return any(segment.stat().st_size for segment in outbox.glob("*.outbox"))


def untold(state: Path) -> set[str]:
    """The ids of calls whose awaited hook never came, so that they are charged after their answer."""
    return {call for hook, fate, call in fates(state) if (hook, fate) == ("async_post_call_success_hook", "never")}


def hooks(state: Path) -> Counter[str]:
    return Counter(f"hooks that came {fate}" for _, fate, _ in fates(state))


def fates(state: Path) -> list[list[str]]:
    """What each proxy wrote of the hooks that came twice or never."""
    return [line.split() for line in (state / HOOKS).read_text().splitlines()]


def inspect(verdict: Verdict, proxies: Sequence[Proxy]) -> None:
    """A proxy that ends without having been asked to is wrong, and so is whatever it says that must never happen."""
    for proxy in proxies:
        said = proxy.log.read_text(errors="replace")
        if proxy.fell and fell_elsewhere(said):
            verdict.counts["fell by a fault of the interpreter"] += 1
            verdict.unsettled.append(f"{proxy.name} ended with {proxy.exit_code}:\n{faulting(said)}")
        elif proxy.fell:
            verdict.violations.append(f"{proxy.name} ended by itself with {proxy.exit_code}:\n{said[-6000:]}")
        verdict.violations += [f"{proxy.name} says: {found[0]}" for found in UNHEARD_OF.finditer(said)]
    verdict.counts["proxies"] = len(proxies)
    verdict.counts["proxies that fell by themselves"] = sum(proxy.fell for proxy in proxies)


def faulting(said: str) -> str:
    """What CPython's faulthandler wrote of the thread in which the interpreter itself crashed; empty if it did not."""
    found = re.search(r"^Fatal Python error: .*\n\nCurrent thread .*\n(?:  .+\n)+", said, re.MULTILINE)
    return found[0] if found else ""


def fell_elsewhere(said: str) -> bool:
    """Whether the interpreter crashed in code that is not ours: to the ledger that is a kill like any other."""
    return bool(stack := faulting(said)) and "uc_litellm_plugin" not in stack
