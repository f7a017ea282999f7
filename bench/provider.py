"""A provider that answers at once with fixed bytes, so that it is not what is measured.

`python -m bench.provider` prints its URL and serves until its standard input closes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

from tests.upstream import exit_with_stdin

WORDS = 20
USAGE = {"prompt_tokens": 12, "completion_tokens": WORDS, "total_tokens": 12 + WORDS}
_HEAD = {"id": "chatcmpl-bench", "created": 1_750_000_000, "model": "gpt-4o-mini", "system_fingerprint": "fp"}


def _plain() -> bytes:
    message = {"role": "assistant", "content": "word " * WORDS}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _streamed(with_usage: bool) -> tuple[bytes, ...]:
    """The head, then each event as a chunk of its own."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": "word "} for _ in range(WORDS))]
    events: list[dict[str, object]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if with_usage:
        events.append({"choices": [], "usage": USAGE})
    lines = [json.dumps({**_HEAD, "object": "chat.completion.chunk", **event}) for event in events]
    data = [f"data: {line}\n\n".encode() for line in (*lines, "[DONE]")]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head, *(b"%x\r\n%b\r\n" % (len(each), each) for each in data), b"0\r\n\r\n"


PLAIN, STREAMED, STREAMED_USAGE = _plain(), _streamed(False), _streamed(True)


class Provider(asyncio.Protocol):
    """One connection: any request is a chat completion, streamed when its body says so."""

    def __init__(self) -> None:
        self._read = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (request := self._take()) is not None:
            self._answer(request)

    def _take(self) -> bytes | None:
        """The next whole request's body."""
        head, found, _ = self._read.partition(b"\r\n\r\n")
        if not found:
            return None
        start = len(head) + 4
        end = start + _length(bytes(head).lower())
        if len(self._read) < end:
            return None
        body = bytes(self._read[start:end])
        del self._read[:end]
        return body

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body.replace(b" ", b""):
            self._transport.write(PLAIN)
            return
        for part in STREAMED_USAGE if b"include_usage" in body else STREAMED:
            self._transport.write(part)


def _length(head: bytes) -> int:
    _, found, rest = head.partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


class ProviderProcess:
    """The provider in a process of its own; ends when left as a context."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "bench.provider"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self._process.kill)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> ProviderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.__exit__(None, None, None)
        atexit.unregister(self._process.kill)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    threading.Thread(target=exit_with_stdin, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve())
