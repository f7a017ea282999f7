"""Proxies in processes of their own: started, killed and replaced while calls go on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.proxy import free_port

START_SECONDS = 60.0
STOP_SECONDS = 60.0
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
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def watch(self) -> None:
        """Notices the process's end. It is no child of ours, so that there is nothing to wait for."""
        descriptor, loop = os.pidfd_open(self.pid), asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self.gone.set()

        loop.add_reader(descriptor, ended)


class Nursery:
    """The process that forks proxies; see tests/chaos/nursery.py."""

    def __init__(self, config: Path, directory: Path, environment: dict[str, str]) -> None:
        self._config = config
        self._directory = directory
        self._environment = environment
        self._born = 0
        self._ordering = asyncio.Lock()

    async def __aenter__(self) -> Nursery:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.nursery", stdin=pipe, stdout=pipe, cwd=ROOT, env=self._environment,
            start_new_session=True,
        )  # fmt: skip
        await self._hear()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _hear(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the nursery ended"
        heard: dict[str, int] = json.loads(line)
        return heard

    async def bear(self) -> Proxy:
        """A new proxy, which does not serve yet."""
        self._born += 1
        port, log = free_port(), self._directory / f"proxy-{self._born}.log"
        arguments = ["--config", str(self._config), "--host", "127.0.0.1", "--port", str(port)]
        order = {"arguments": arguments, "directory": str(self._directory), "log": str(log)}
        async with self._ordering:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = (await self._hear())["pid"]
        proxy = Proxy(f"proxy-{self._born}", f"http://127.0.0.1:{port}", pid, log)
        proxy.watch()
        return proxy


class Fleet:
    """So many proxies that serve; whoever ends is replaced at once."""

    def __init__(self, nursery: Nursery, http: aiohttp.ClientSession, size: int) -> None:
        self._nursery = nursery
        self._http = http
        self.size = size
        self.ready: list[Proxy] = []
        self.changed = asyncio.Condition()
        self.fell: list[Proxy] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._failure: Exception | None = None

    async def start(self) -> None:
        self._keepers = [asyncio.create_task(self._keep()) for _ in range(self.size)]
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
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._end(self.ready)

    async def _end(self, proxies: list[Proxy]) -> None:
        for proxy in proxies:
            proxy.asked_to_end = True
            proxy.send(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*(proxy.gone.wait() for proxy in proxies)), STOP_SECONDS)

    async def _keep(self) -> None:
        while self._failure is None:
            proxy = await self._nursery.bear()
            try:
                await self._answers(proxy)
            except RuntimeError as failure:
                self._failure = failure
                async with self.changed:
                    self.changed.notify_all()
                return
            await self._note(proxy, True)
            await proxy.gone.wait()
            await self._note(proxy, False)
            if not proxy.asked_to_end:
                # For those who called it, it is as if somebody had killed it.
                proxy.killed = True
                self.fell.append(proxy)

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
