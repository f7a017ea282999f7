"""Proxies in processes of their own: started, killed and replaced while calls go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.proxy import free_port

START_SECONDS = 180.0
STOP_SECONDS = 120.0
MADE_AT_ONCE = 2
ASK_EVERY_SECONDS = 0.05
ROOT = Path(__file__).parents[2]


@dataclass(eq=False)
class Proxy:
    """One process, never reused: who is killed comes back as another."""

    name: str
    url: str
    pid: int
    log: Path
    asked_to_end: bool = False
    killed: bool = False
    exit_code: int | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, number: int) -> None:
        if not self.gone.is_set():
            os.kill(self.pid, number)

    @property
    def fell(self) -> bool:
        """Whether it ended and nobody had asked it to."""
        return self.gone.is_set() and not self.asked_to_end


class Workshop:
    """Starts proxies: the stock `litellm` command, each in a process and a session of its own."""

    def __init__(self, config: Path, directory: Path, environment: dict[str, str]) -> None:
        self._config = config
        self._directory = directory
        self._environment = environment
        self._watching: set[asyncio.Task[None]] = set()
        self.made: list[Proxy] = []

    async def __aenter__(self) -> Workshop:
        return self

    async def __aexit__(self, *_: object) -> None:
        for proxy in self.made:
            proxy.asked_to_end = True
            proxy.send(signal.SIGKILL)
        await asyncio.gather(*self._watching)

    async def make(self) -> Proxy:
        """A new proxy, which does not serve yet."""
        port, name = free_port(), f"proxy-{len(self.made) + 1}"
        log = self._directory / f"{name}.log"
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(self._config)]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, "--host", "127.0.0.1", "--port", str(port), env=self._environment, cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        proxy = Proxy(name, f"http://127.0.0.1:{port}", process.pid, log)
        self.made.append(proxy)
        watching = asyncio.create_task(_watch(process, proxy))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        return proxy


async def _watch(process: asyncio.subprocess.Process, proxy: Proxy) -> None:
    proxy.exit_code = await process.wait()
    proxy.gone.set()


class Fleet:
    """So many proxies that serve; whoever ends is replaced, at once while there are `spares`, which are kept warm."""

    def __init__(self, workshop: Workshop, http: aiohttp.ClientSession, size: int, spares: int) -> None:
        self._workshop = workshop
        self._http = http
        self.size = size
        self.ready: list[Proxy] = []
        self.changed = asyncio.Condition()
        self._room = asyncio.Semaphore(size + spares)
        self._warm: asyncio.Queue[Proxy] = asyncio.Queue()
        self._working: list[asyncio.Task[None]] = []
        self._failure: Exception | None = None

    async def start(self) -> None:
        makers = [self._make() for _ in range(MADE_AT_ONCE)]
        self._working = [asyncio.create_task(work) for work in (*makers, *(self._keep() for _ in range(self.size)))]
        await self.have(self.size)

    async def have(self, least: int) -> None:
        """Waits until so many serve; raises what keeps one from it."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.ready) >= least or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    async def pick(self, dice: random.Random) -> Proxy:
        await self.have(1)
        return dice.choice(self.ready)

    async def kill(self, proxy: Proxy) -> None:
        """Ends it at once (SIGKILL)."""
        proxy.killed = proxy.asked_to_end = True
        proxy.send(signal.SIGKILL)
        await proxy.gone.wait()

    async def restart(self) -> None:
        """Ends all in order and waits until as many others serve."""
        before = list(self.ready)
        await self._end(before)
        async with self.changed:
            await self.changed.wait_for(lambda: self._failure or len(set(self.ready) - set(before)) >= self.size)

    async def stop(self) -> None:
        """Ends all in order, for good."""
        for work in self._working:
            work.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._end(self._workshop.made)

    async def _end(self, proxies: list[Proxy]) -> None:
        for proxy in proxies:
            proxy.asked_to_end = proxy.asked_to_end or not proxy.gone.is_set()
            proxy.send(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*(proxy.gone.wait() for proxy in proxies)), STOP_SECONDS)

    async def _make(self) -> None:
        while self._failure is None:
            await self._room.acquire()
            proxy = await self._workshop.make()
            try:
                await self._answers(proxy)
            except RuntimeError as failure:
                self._failure = failure
                async with self.changed:
                    self.changed.notify_all()
                return
            await self._warm.put(proxy)

    async def _keep(self) -> None:
        while True:
            proxy = await self._warm.get()
            await self._note(proxy, True)
            await proxy.gone.wait()
            # For those who called one that fell, it is as if somebody had killed it; that it fell is judged apart.
            proxy.killed = proxy.killed or proxy.fell
            await self._note(proxy, False)
            self._room.release()

    async def _note(self, proxy: Proxy, serves: bool) -> None:
        async with self.changed:
            self.ready.append(proxy) if serves else self.ready.remove(proxy)
            self.changed.notify_all()

    async def _answers(self, proxy: Proxy) -> None:
        for _ in range(int(START_SECONDS / ASK_EVERY_SECONDS)):
            with suppress(aiohttp.ClientError):
                async with self._http.get(f"{proxy.url}/health/liveliness") as answer:
                    if answer.status == 200:
                        return
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(proxy.gone.wait(), ASK_EVERY_SECONDS)
                break
        raise RuntimeError(f"{proxy.name} does not serve:\n{proxy.log.read_text(errors='replace')[-4000:]}")
