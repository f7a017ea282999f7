"""A load generator that is lean enough not to be what is measured: closed loop, keep-alive, no parsing of bodies."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say twenty words."}], "max_tokens": 64}
PATH = "/v1/chat/completions"
_STREAM_END = b"0\r\n\r\n"
# No answer on any connection for so long is none any more; under valgrind one takes some seconds.
_PATIENCE_S = 120.0
# Answers that each connection has to have.
_LEAST = 3


class LoadFailed(RuntimeError):
    """An answer was not what was measured: not 200, or not whole."""


@dataclass
class Slice:
    """What one slice of load saw.

    Attributes
    ----------
    seconds
        From the first request to the last answer.
    milliseconds
        Of each request, from its first byte to its answer's last.
    cpu_s
        What the load generator itself used. Seconds.
    """

    seconds: float
    milliseconds: list[float]
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return len(self.milliseconds) / self.seconds


def quantile(milliseconds: Sequence[float], share: float) -> float:
    """By nearest rank: the least that so large a share does not exceed. Milliseconds."""
    return sorted(milliseconds)[max(0, math.ceil(len(milliseconds) * share) - 1)]


def requests(host: str, keys: Sequence[str], streamed: bool) -> list[bytes]:
    """The bytes of one request per API key."""
    body = json.dumps({**BODY, "stream": True} if streamed else BODY).encode()
    lines = f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return [f"{lines}authorization: Bearer {key}\r\n\r\n".encode() + body for key in keys]


class _Client(asyncio.Protocol):
    """One connection: sends the next request when the answer is whole, until it is time and it has had its share."""

    def __init__(self, turns: Iterator[bytes], until: float, least: int, took: list[float]) -> None:
        self._turns, self._until, self._least, self._took = turns, until, least, took
        self._read = bytearray()
        self._length = -1
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(LoadFailed(f"the connection was closed: {exc}"))

    def _ask(self) -> None:
        request = next(self._turns, None)
        if request is None or (self._least <= 0 and time.perf_counter() >= self._until):
            self.ended.set_result(None)
            self._transport.close()
            return
        self._read.clear()
        self._length = -1
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._length < 0 and not self._read_head():
            return
        if self._length and len(self._read) < self._length:
            return
        if not self._length and not self._read.endswith(_STREAM_END):
            return
        self._took.append((time.perf_counter() - self._began) * 1000)
        self._least -= 1
        if not self._read.startswith(b"HTTP/1.1 200") or b'"error"' in self._read:
            self.ended.set_exception(LoadFailed(bytes(self._read[:2000]).decode(errors="replace")))
            self._transport.close()
            return
        self._ask()

    def _read_head(self) -> bool:
        """Whether the head is there; then the answer's whole length is known, or 0 for one in chunks."""
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._read[:end]).lower()
        _, found, rest = head.partition(b"content-length:")
        self._length = end + 4 + int(rest.split(b"\r\n", 1)[0]) if found else 0
        return True


async def _run(url: str, turns: Iterator[bytes], connections: int, seconds: float) -> Slice:
    loop = asyncio.get_running_loop()
    host, _, port = urlsplit(url).netloc.partition(":")
    took: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()

    def client() -> _Client:
        return _Client(turns, began + seconds, _LEAST, took)

    made = [await loop.create_connection(client, host, int(port)) for _ in range(connections)]
    await _ended({protocol.ended for _, protocol in made}, took)
    return Slice(time.perf_counter() - began, took, time.process_time() - cpu)


async def _ended(connections: set[asyncio.Future[None]], took: list[float]) -> None:
    """Wait for all of them; a proxy that hangs must not hang the bench."""
    while connections:
        answers = len(took)
        done, connections = await asyncio.wait(connections, timeout=_PATIENCE_S, return_when=asyncio.FIRST_EXCEPTION)
        for each in done:
            each.result()
        if connections and len(took) == answers:
            raise LoadFailed(f"no answer for {_PATIENCE_S:.0f} s")


def run(url: str, keys: Sequence[str], *, streamed: bool, connections: int, seconds: float) -> Slice:
    """Ask as fast as so many connections can, each its next request when it has its answer.

    Parameters
    ----------
    keys
        API keys, used in turn.
    seconds
        For how long new requests are sent, and longer until each connection has had three answers: those to the first
        requests, which come all at once, must not be most of them.

    Raises
    ------
    LoadFailed
        An answer was not 200 and whole, or none came; nothing was measured.
    """
    turns = itertools.cycle(requests(urlsplit(url).netloc, keys, streamed))
    gc.disable()
    try:
        return uvloop.run(_run(url, turns, connections, seconds))
    finally:
        gc.enable()


def once_each(url: str, keys: Sequence[str], connections: int = 8, *, streamed: bool = False) -> Slice:
    """One request per API key; raises as `run`."""
    turns = iter(requests(urlsplit(url).netloc, keys, streamed))
    return uvloop.run(_run(url, turns, connections, math.inf))
