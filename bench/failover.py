"""What clients notice when their first provider dies and comes back: `python -m bench.failover`.

A real proxy with one and with two workers, an embedded PostgreSQL, and a process for each of two providers. Under a
steady load the first one's process is killed (connections are refused) or begins to hang, and later is well again.
A request fails when its client gets anything but a whole answer. The provider is out of the way when the last request
that waited for it, before health knew better, has its answer; the requests that try it later are the probes.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer
from pydantic import SecretStr

from tests.acceptance import sides
from tests.acceptance.bank import Account, Bank
from tests.conftest import database_at
from tests.proxy import Json, Proxy
from tests.upstream import Upstream
from uc_litellm_plugin import embedded, migrations, settings
from uc_litellm_plugin.settings import Settings

LEVEL, FIRST, SECOND = "eco", "north", "east"
MESSAGES = [{"role": "user", "content": "say 5 words"}]
# Requests that wait for the provider at once follow each other closely; later ones are probes. Seconds.
APART_S = 0.7
COLUMNS = ("fault", "workers", "requests", "failed", "waited for it", "out of the way, s", "probes", "slowest, s",
           "back after, s")  # fmt: skip
GOALS = ("goal", "", "", "0", "", "below 1", "", "", "below 10")


@dataclass
class Sent:
    """One request; the moments are seconds from the start of the load."""

    n: int
    at: float
    done: float = 0.0
    whole: bool = False
    got: str = ""
    provider: str = ""
    attempts: int = 0


@dataclass
class Load:
    """Requests at a steady rate until it is over."""

    url: str
    account: Account
    rate: float
    mark: str
    dice: random.Random
    started: float = field(default_factory=time.monotonic)
    sent: list[Sent] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.started

    async def run(self, seconds: float) -> None:
        """So long, and until all are answered."""
        self.started = time.monotonic()
        under_way = []
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as http:
            while self.now() < seconds:
                self.sent.append(Sent(len(self.sent), self.now()))
                under_way.append(asyncio.create_task(self._ask(http, self.sent[-1])))
                await asyncio.sleep(max(0.0, len(self.sent) / self.rate - self.now()))
            await asyncio.gather(*under_way)

    async def _ask(self, http: httpx.AsyncClient, request: Sent) -> None:
        headers = {**self.account.headers, "x-power-level": LEVEL, "x-session-id": f"{self.mark}-{request.n}"}
        body = {"model": "group", "messages": MESSAGES, "max_tokens": 20, "stream": self.dice.random() < 0.5}
        try:
            # A connection of its own, so that all workers have their share.
            answer = await http.post("/v1/chat/completions", json=body, headers={**headers, "connection": "close"})
        except httpx.HTTPError as error:
            request.done, request.got = self.now(), type(error).__name__
            return
        request.done, request.got = self.now(), str(answer.status_code)
        request.whole = answer.status_code == 200 and '"error"' not in answer.text
        request.provider = answer.headers.get("x-uc-provider", "")


class Providers:
    """Two upstreams, of which the first can fail."""

    def __init__(self) -> None:
        self.first, self.second = Upstream(), Upstream()
        self.first_url = self.first.url

    def kill(self) -> None:
        self.first.kill()

    def revive(self) -> None:
        self.first = Upstream(urlsplit(self.first_url).port or 0)

    def hang(self) -> None:
        self.first.set_fault("hang")

    def recover(self) -> None:
        self.first.set_faults()

    def close(self) -> None:
        for upstream in (self.first, self.second):
            upstream.kill()


@dataclass(frozen=True)
class Variant:
    """A way to fail, and to be well again."""

    name: str
    fail: Callable[[Providers], None]
    mend: Callable[[Providers], None]


VARIANTS = (
    Variant("refuses connections", Providers.kill, Providers.revive),
    Variant("hangs", Providers.hang, Providers.recover),
)


@contextmanager
def database() -> Iterator[str]:
    """The URL of a migrated database on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="uc-bench-"))
    home.chmod(0o711)
    own = settings.load({"UC_STATE_DIR": str(home / "state")})
    try:
        url = database_at(asyncio.run(embedded.ensure(own)), "postgres")
        asyncio.run(migrations.migrate(_at(own, url)))
        yield url
    finally:
        asyncio.run(embedded.stop(own))
        shutil.rmtree(home)


def _at(own: Settings, url: str) -> Settings:
    return own.model_copy(update={"database_url": SecretStr(url)})


def config(providers: Providers, patience_s: float) -> Json:
    """Two deployments, of which the first is given up after `patience_s`."""
    model = "openai/gpt-4o-mini"
    patience: Json = {"timeout": patience_s, "stream_timeout": patience_s}
    models = [
        sides.one("group", FIRST, model, providers.first_url, **patience),
        sides.one("group", SECOND, model, providers.second.url),
    ]
    return sides.config(providers.second.url, models)


async def under_load(load: Load, events: list[tuple[float, Callable[[], Awaitable[None]]]], seconds: float) -> None:
    running = asyncio.create_task(load.run(seconds))
    for at, happen in events:
        await asyncio.sleep(max(0.0, at - load.now()))
        await happen()
    await running


@dataclass(frozen=True)
class Times:
    """The course of one run. Seconds."""

    fail_at: float = 3.0
    mend_at: float = 9.0
    end_at: float = 20.0


def observe(proxy: Proxy, bank: Bank, providers: Providers, variant: Variant, rate: float, seed: int) -> list[str]:
    """One run, as a row of the table."""
    times, moments = Times(), {}
    load = Load(proxy.url, bank.open("1000"), rate, f"{variant.name}-{proxy.workers}", random.Random(seed))  # noqa: S311

    def act(name: str, action: Callable[[Providers], None]) -> Callable[[], Awaitable[None]]:
        async def happen() -> None:
            before = load.now()
            await asyncio.to_thread(action, providers)
            # A provider fails when its fault begins, and is back when its start is over.
            moments[name] = before if name == "fail" else load.now()

        return happen

    asyncio.run(under_load(
        load, [(times.fail_at, act("fail", variant.fail)), (times.mend_at, act("mend", variant.mend))], times.end_at
    ))  # fmt: skip
    rows = bank.settled(load.account, sum(each.whole for each in load.sent))
    attempts = {row["session_id"]: row["attempts"] for row in rows}
    for each in load.sent:
        each.attempts = attempts.get(f"{load.mark}-{each.n}", 0)
    return row(load.sent, variant, proxy.workers, moments["fail"], moments["mend"])


def row(sent: list[Sent], variant: Variant, workers: int, failed_at: float, mended_at: float) -> list[str]:
    waited = [each for each in sent if each.attempts > 1 and each.done > failed_at]
    first, probes = split(waited)
    back = next((each.done for each in sent if each.at > mended_at and each.provider == sides.PROVIDERS[FIRST]), None)
    out = max((each.done for each in first), default=failed_at) - failed_at
    during = [each for each in sent if each.done > failed_at]
    return [
        variant.name, str(workers), str(len(sent)), failures(sent), str(len(first)),
        f"{out:.2f}", str(len(probes)), f"{max(each.done - each.at for each in during):.2f}",
        "never" if back is None else f"{back - mended_at:.2f}",
    ]  # fmt: skip


def failures(sent: list[Sent]) -> str:
    """How many failed, and what their clients got."""
    got = Counter(each.got for each in sent if not each.whole)
    why = ", ".join(f"{number} x {what}" for what, number in got.most_common())
    return f"{sum(got.values())} ({why})" if why else "0"


def split(waited: list[Sent]) -> tuple[list[Sent], list[Sent]]:
    """Those that were sent close upon each other at first, and those after a pause."""
    for n in range(1, len(waited)):
        if waited[n].at - waited[n - 1].at > APART_S:
            return waited[:n], waited[n:]
    return waited, []


def main(
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 20,
    patience_s: Annotated[float, typer.Option(help="The first deployment's time-out: what hanging can cost.")] = 0.4,
    workers: Annotated[list[int], typer.Option(help="Workers of the proxy; one run for each.")] = [1, 2],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Which requests are streamed.")] = 1,
) -> None:
    """Print what clients notice."""
    typer.echo(f"{rate:g} requests per second, half of them streamed, time-out {patience_s:g} s, seed {seed}\n")
    for cells in (list(COLUMNS), ["---"] * len(COLUMNS), list(GOALS)):
        echo(cells)
    with database() as url, ExitStack() as stack:
        bank, providers = Bank(url), Providers()
        stack.callback(providers.close)
        for number in workers:
            for variant in VARIANTS:
                with sides.powered_proxy(url, config(providers, patience_s), workers=number) as proxy:
                    echo(observe(proxy, bank, providers, variant, rate, seed))


def echo(cells: list[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
