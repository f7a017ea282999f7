"""Connections to addresses that users name, over real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.integration.certificates import Authority
from uc_litellm_plugin import endpoints
from uc_litellm_plugin.settings import ByokSettings

NAME = "models.example.com"


@dataclass
class Site:
    """A TLS server, and what it saw."""

    port: int = 0
    names: list[str | None] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    connections: int = 0

    def note_name(self, _: object, name: str | None, __: ssl.SSLContext) -> None:
        self.names.append(name)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        sent = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.hosts.append(next(line[6:] for line in sent.split("\r\n") if line.lower().startswith("host: ")))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read()
        writer.close()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A site for NAME on this machine, whose authority this process trusts."""
    authority, site = Authority(tmp_path), Site()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    context = authority.server(NAME)
    context.sni_callback = site.note_name
    async with await asyncio.start_server(site.answer, "127.0.0.1", 0, ssl=context) as server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


def client(site: Site, host: str = NAME) -> httpx.AsyncClient:
    async def here(_: str, __: int) -> list[str]:
        return ["127.0.0.1"]

    rules = ByokSettings.model_validate({"allowed_hosts": [f"{host}:{site.port}"]})
    return endpoints.client(rules, here)


async def test_the_name_is_proved(site: Site) -> None:
    """The connection goes to the resolver's address past any proxy; the name is in TLS and Host, and is proved."""
    async with client(site) as one:
        answer = await one.get(f"https://{NAME}:{site.port}/v1/models")
    assert answer.json() == {}
    assert (site.names, site.hosts) == ([NAME], [f"{NAME}:{site.port}"])


async def test_another_name_is_not_believed(site: Site) -> None:
    """A server that has no certificate for the name gets no request, though it has the address."""
    async with client(site, "other.example.com") as one:
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await one.get(f"https://other.example.com:{site.port}/v1/models")
    assert site.hosts == []


async def test_no_connection_is_used_twice(site: Site) -> None:
    """Each request has a connection of its own: behind one address may be two owners."""
    async with client(site) as one:
        for _ in range(3):
            await one.get(f"https://{NAME}:{site.port}/")
    assert (site.connections, len(site.names)) == (3, 3)
