"""One free call to a provider with a user's key: what is sent, what is made of the answer, and what is left behind."""

from __future__ import annotations

import asyncio
import logging
import re

import httpx
import pytest
import respx

from tests.pace import within
from uc_litellm_plugin import endpoints, key_probe
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.key_probe import Outcome, Result
from uc_litellm_plugin.settings import ByokSettings
from uc_litellm_plugin.vault import Secret

KEY = "sk-canary-5f3a9c7e1b2d4860"
ADDRESS = "93.184.215.14"
RULES = ByokSettings()  # type: ignore[call-arg]


async def resolver(host: str, port: int) -> list[str]:
    return [ADDRESS]


async def probe(provider: str = "openai", host: str = "api.openai.com") -> Outcome:
    return await key_probe.probe(f"https://{host}/v1/models", provider, Secret(KEY), RULES, resolver)


@pytest.mark.parametrize(
    ("provider", "header", "value"),
    [
        ("openai", "authorization", f"Bearer {KEY}"),
        ("custom", "authorization", f"Bearer {KEY}"),
        ("groq", "authorization", f"Bearer {KEY}"),
        ("anthropic", "x-api-key", KEY),
        ("google", "x-goog-api-key", KEY),
    ],
)
@respx.mock(using="httpcore")
async def test_where_the_key_goes(respx_mock: respx.MockRouter, provider: str, header: str, value: str) -> None:
    """One GET to the checked address, the key in the one header its provider reads and nowhere else."""
    respx_mock.get(f"https://{ADDRESS}/v1/models").respond(200, json={"data": []})
    assert (await probe(provider)).result == "ok"
    (call,) = respx_mock.calls
    sent = call.request
    assert (sent.headers[header], sent.headers["host"]) == (value, "api.openai.com")
    assert [name for name, text in sent.headers.items() if KEY in text] == [header]
    assert KEY not in str(sent.url)
    assert sent.content == b""


@pytest.mark.parametrize(
    ("status", "result"),
    [
        *((200, "ok"), (204, "ok")),
        *((400, "refused"), (401, "refused"), (402, "refused"), (403, "refused")),
        *((301, "unreachable"), (307, "unreachable"), (404, "unreachable"), (429, "unreachable")),
        *((500, "unreachable"), (503, "unreachable"), (529, "unreachable")),
    ],
)
@respx.mock(using="httpcore")
async def test_what_is_made_of_the_answer(respx_mock: respx.MockRouter, status: int, result: Result) -> None:
    """Only a clear yes is ok and only a clear no is refused; a redirect is neither, and is not followed."""
    respx_mock.get(f"https://{ADDRESS}/v1/models").respond(status, headers={"location": "https://evil.example.com/"})
    outcome = await probe()
    assert (outcome.result, outcome.status) == (result, status)
    assert respx_mock.calls.call_count == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError(KEY), httpx.ReadTimeout(KEY), httpx.RemoteProtocolError(KEY), OSError(KEY)]
)
@respx.mock(using="httpcore")
async def test_no_answer(respx_mock: respx.MockRouter, error: Exception) -> None:
    """A provider that cannot be reached is no error, and what the network said of it is told to nobody."""
    respx_mock.get(f"https://{ADDRESS}/v1/models").mock(side_effect=error)
    outcome = await probe()
    assert (outcome.result, outcome.status) == ("unreachable", None)


async def test_a_provider_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it together takes no longer than the limit."""
    monkeypatch.setattr(endpoints, "TIMEOUT_S", 0.2)
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with within(2):
        outcome = await key_probe.probe(*local(server))
    assert (outcome.result, outcome.status) == ("unreachable", None)
    await asyncio.wait_for(left.wait(), 60)
    server.close()


def local(server: asyncio.Server) -> tuple[str, str, Secret, ByokSettings]:
    """What a probe needs for a server on this machine."""
    port = server.sockets[0].getsockname()[1]
    rules = ByokSettings.model_validate({"allow_http": True, "allowed_hosts": [f"127.0.0.1:{port}"]})
    return f"http://127.0.0.1:{port}/models", "custom", Secret(KEY), rules


async def test_a_private_address_is_refused() -> None:
    """An address that must not be called is a refusal; a name that is unknown now is only unreachable."""

    async def private(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    async def unknown(host: str, port: int) -> list[str]:
        return []

    with pytest.raises(BadRequest, match="public"):
        await key_probe.probe("https://a.example.com/models", "custom", Secret(KEY), RULES, private)
    outcome = await key_probe.probe("https://a.example.com/models", "custom", Secret(KEY), RULES, unknown)
    assert outcome.result == "unreachable"


async def test_an_echoing_server_puts_no_key_into_logs(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that sends the key back in status line, headers and body: no log has it at DEBUG, nor the outcome."""
    caplog.set_level(logging.DEBUG)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = (await reader.readuntil(b"\r\n\r\n")).decode()
        (key,) = re.findall(r"Bearer (\S+)", sent)
        heard.append(key)
        writer.write(f"HTTP/1.1 401 {key}\r\nx-echo: {key}\r\nset-cookie: k={key}\r\n\r\n{key}".encode())
        writer.close()

    heard: list[str] = []
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        outcome = await key_probe.probe(*local(server))
    assert (outcome.result, outcome.status, heard) == ("refused", 401, [KEY])
    shown = capsys.readouterr()
    assert KEY not in caplog.text + repr(outcome) + shown.out + shown.err
