"""One paid request in each dialect, and a client that can leave in the middle of the answer."""

from __future__ import annotations

import json
import select
import socket
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from tests.acceptance.bank import Account
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

SECONDS = 60.0
MESSAGES = [{"role": "user", "content": "say 7 words"}]
# Path and body, by the name the tables give it; the bridged ones are answered through another dialect.
ASKS: dict[str, tuple[str, Json]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-mini", "messages": MESSAGES, "max_tokens": 50}),
    "chat bridged": ("/v1/chat/completions", {"model": "claude", "messages": MESSAGES, "max_tokens": 50}),
    "completions": ("/v1/completions", {"model": "instruct", "prompt": "say 7 words", "max_tokens": 50}),
    "embeddings": ("/v1/embeddings", {"model": "embed", "input": "some words"}),
    "responses": ("/v1/responses", {"model": "gpt-mini", "input": "say 7 words", "max_output_tokens": 50}),
    "responses bridged": ("/v1/responses", {"model": "claude", "input": "say 7 words", "max_output_tokens": 50}),
    "messages": ("/v1/messages", {"model": "claude", "messages": MESSAGES, "max_tokens": 50}),
    "messages bridged": ("/v1/messages", {"model": "gpt-mini", "messages": MESSAGES, "max_tokens": 50}),
}
STREAMED = tuple(name for name in ASKS if name != "embeddings")


def request(name: str, stream: bool = False, **fields: object) -> tuple[str, Json]:
    """The path and body of one ask, with other fields."""
    path, body = ASKS[name]
    return path, {**body, **({"stream": True} if stream else {}), **fields}


def asked(upstream: Upstream) -> list[Json]:
    """What the provider was asked for; LiteLLM lists its models (a GET) on its own account."""
    return upstream.calls(method="POST")


def ask(proxy: Proxy, account: Account, name: str, stream: bool = False, **fields: object) -> httpx.Response:
    """Asks and reads the whole answer; a stream that breaks off counts as what came of it."""
    path, body = request(name, stream, **fields)
    return post(proxy, account.headers, path, body)


def post(proxy: Proxy, headers: dict[str, str], path: str, body: object) -> httpx.Response:
    """Posts JSON (bytes and text as they are) and reads what comes."""
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"content-type": "application/json", **headers}
    with (
        httpx.Client(trust_env=False, timeout=SECONDS) as client,
        client.stream("POST", f"{proxy.url}{path}", headers=headers, content=content) as response,
    ):
        parts = []
        try:
            parts += list(response.iter_raw())
        except httpx.RemoteProtocolError:
            parts.append(b"(broke off)")
        return httpx.Response(response.status_code, headers=response.headers, content=b"".join(parts))


class Visitor:
    """A client that sent a request and may leave at any time; it leaves when left as a context."""

    def __init__(self, proxy: Proxy, account: Account, path: str, body: Json) -> None:
        where = urlsplit(proxy.url)
        self._socket = socket.create_connection((where.hostname, where.port or 80), SECONDS)
        self._heard = b""
        content = json.dumps(body).encode()
        headers = {"host": where.netloc, "content-type": "application/json", "connection": "close", **account.headers}
        lines = [f"POST {path} HTTP/1.1", f"content-length: {len(content)}", *(f"{k}: {v}" for k, v in headers.items())]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + content)

    def hear(self, word: str) -> None:
        """Reads until this word came."""
        while word.encode() not in self._heard:
            received = self._socket.recv(65536)
            assert received, f"the answer ended before {word!r}: {self._heard!r}"
            self._heard += received

    def heard(self) -> str:
        """What has come so far, without waiting for more."""
        while select.select([self._socket], [], [], 0)[0] and (received := self._socket.recv(65536)):
            self._heard += received
        return self._heard.decode(errors="replace")

    def hear_all(self) -> str:
        """Reads until the proxy closes the connection; returns everything."""
        while received := self._socket.recv(65536):
            self._heard += received
        return self._heard.decode(errors="replace")

    def leave(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()
