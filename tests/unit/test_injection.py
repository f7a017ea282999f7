"""A key leaves through one door: in the request of its own attempt, at its own provider, and for that time only."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import re
import tracemalloc
import types
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.unit.samples import candidate, held_call
from tests.unit.test_redaction import Pieces
from uc_litellm_plugin import injection, redaction
from uc_litellm_plugin.call import CURRENT, Attempt, Call
from uc_litellm_plugin.errors import DamagedKey, UnknownSealingKey, VaultError
from uc_litellm_plugin.injection import Injection
from uc_litellm_plugin.plan import OWN_KEY_MARK
from uc_litellm_plugin.provider_key import ProviderKey
from uc_litellm_plugin.refusals import Refused
from uc_litellm_plugin.vault import Sealed, Secret

KEY = "sk-cnry-0123456789abcdef"
URL = "https://api.example.com/v1/x"


def own_key(provider: str = "openai", **values: Any) -> ProviderKey:
    made = ProviderKey(
        id=uuid.uuid4(), user_id="ann", provider=provider, sealed=Sealed("id", "token"), key_name="default",
        api_base=None, is_default=True, fallback="never", expires_at=None, monthly_cap_usd=None,
        spent_this_month_usd=Decimal(0), last_reset=datetime.now(timezone.utc),
    )  # fmt: skip
    return dataclasses.replace(made, **values)


def begun(key: ProviderKey | None) -> Call:
    """A call whose latest attempt has this key."""
    call = held_call()
    made = dataclasses.replace(candidate(f"d1{OWN_KEY_MARK}"), own_key=key, provider=key.provider if key else "openai")
    call.attempts.append(Attempt(made))
    return call


@pytest.fixture
def pinned() -> httpx.AsyncClient:
    """The client for endpoints of users' own."""
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=seen(request))))


@pytest.fixture
def door(pinned: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Injection]:
    """An injection for which every key opens as KEY."""
    monkeypatch.setattr(httpx.AsyncClient, "send", httpx.AsyncClient.send)
    yield Injection(lambda key: Secret(KEY), pinned)
    CURRENT.set(None)


def seen(request: httpx.Request) -> dict[str, Any]:
    return {"headers": dict(request.headers), "url": str(request.url), "key": KEY}


Handler = Callable[[httpx.Request], httpx.Response]


def sent(
    call: Call | None, handler: Handler, headers: dict[str, str], url: str = URL, **options: Any
) -> httpx.Response:
    """Send a request from within a call, read the answer."""

    async def work() -> httpx.Response:
        CURRENT.set(call)
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler), **options) as client:
            return await client.post(url, headers=headers, json={"model": "m"})

    return asyncio.run(work())


def stand_in(door: Injection, call: Call, key: ProviderKey) -> str:
    return str(door.inject(call, key, {"model": "m", "api_key": "own-key-missing"})["api_key"])


def test_arguments_have_no_key(door: Injection) -> None:
    """What LiteLLM gets holds a stand-in that names the provider and nothing else; the shared arguments stay."""
    kwargs = {"model": "m", "api_key": "own-key-missing"}
    call = begun(key := own_key())
    made = door.inject(call, key, kwargs)
    assert set(made) == {"model", "api_key"}
    assert re.fullmatch("uc-own-key-[0-9a-f]{32}-of-openai", made["api_key"])
    assert kwargs["api_key"] == "own-key-missing"
    assert KEY not in str(vars(call))


@pytest.mark.parametrize(
    ("header", "form"), [("authorization", "Bearer {}"), ("x-api-key", "{}"), ("x-goog-api-key", "{}")]
)
def test_the_key_is_sent(door: Injection, header: str, form: str) -> None:
    """The provider gets the key; the answer, its headers and the request that is left behind do not have it."""
    call = begun(key := own_key())
    got = []

    def handler(request: httpx.Request) -> httpx.Response:
        got.append((request.headers[header], request.headers["accept-encoding"]))
        return httpx.Response(401, headers={"x-echo": KEY}, text=f"bad key {KEY}")

    answer = sent(call, handler, {header: form.format(stand_in(door, call, key))})
    assert got == [(form.format(KEY), "identity")]
    assert answer.text == "bad key [own key]"
    assert KEY not in str(answer.headers.raw)
    assert KEY not in str(answer.request.headers.raw)
    assert answer.status_code == 401


def test_in_the_url(door: Injection) -> None:
    """Where a provider has keys in the URL, it goes there, and not into the log."""
    call = begun(key := own_key("google"))
    got = []

    def handler(request: httpx.Request) -> httpx.Response:
        got.append(str(request.url))
        return httpx.Response(200)

    answer = sent(call, handler, {}, f"{URL}?key={stand_in(door, call, key)}&alt=sse")
    assert got == [f"{URL}?key={KEY}&alt=sse"]
    assert KEY not in str(answer.request.url)


@pytest.mark.parametrize("other", ["nobody", "platform's", "another provider's"])
def test_nobody_elses_request(door: Injection, other: str) -> None:
    """A request that is not of this provider's attempt goes out with the stand-in, which opens nothing."""
    call = begun(key := own_key())
    name = stand_in(door, call, key)
    later = {"nobody": None, "platform's": begun(None), "another provider's": begun(own_key("anthropic"))}[other]
    answer = sent(later, lambda request: httpx.Response(200, json=seen(request)), {"x-api-key": name})
    assert answer.json()["headers"]["x-api-key"] == name


def test_only_where_a_key_belongs(door: Injection) -> None:
    """A stand-in that a client has got to see and wrote elsewhere stays what it is: in an image's address, say."""
    call = begun(key := own_key())
    name = stand_in(door, call, key)
    headers, query = {"x-api-key": name, "x-title": name}, f"?k={name}&url=https://a.example/?key={name}"
    answer = sent(call, lambda request: httpx.Response(200, json=seen(request)), headers, f"{URL}{query}")
    assert answer.json()["headers"]["x-title"] == name
    assert KEY not in answer.json()["url"]

    async def fetched() -> dict[str, Any]:
        CURRENT.set(call)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, json=seen(request)))
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.get(f"{URL}?key={name}", headers={"authorization": name})
            return dict(answer.json())

    got = asyncio.run(fetched())
    assert (got["url"], got["headers"]["authorization"]) == (f"{URL}?key={name}", name)


def test_no_cookies(door: Injection) -> None:
    """What a provider tells one user's call does not go along with the next user's, though one client sends both."""
    call = begun(key := own_key())
    name, got = stand_in(door, call, key), []

    def handler(request: httpx.Request) -> httpx.Response:
        got.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"set-cookie": f"k={KEY}; Path=/"})

    async def work() -> dict[str, str]:
        CURRENT.set(call)
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            for _ in range(2):
                await client.post(URL, headers={"x-api-key": name, "cookie": "a=b"})
            return dict(client.cookies)

    assert asyncio.run(work()) == {}
    assert got == [None, None]


def test_redirects_are_not_followed(door: Injection) -> None:
    """A provider that points elsewhere does not get its caller's key sent there, whatever the client's habit."""
    call = begun(key := own_key())
    hosts = []

    def handler(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(307, headers={"location": "https://other.example.com/"})

    answer = sent(call, handler, {"x-api-key": stand_in(door, call, key)}, follow_redirects=True)
    assert (hosts, answer.status_code, answer.next_request) == (["api.example.com"], 307, None)


def test_a_transport_that_fails(door: Injection) -> None:
    """An error on the way keeps its kind, and nothing that is reachable from it has the key."""
    call = begun(key := own_key())

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"illegal header {request.headers['x-api-key']}", request=request)

    with pytest.raises(httpx.ConnectError) as raised:
        sent(call, handler, {"x-api-key": stand_in(door, call, key)})
    assert str(raised.value) == "illegal header [own key]"
    assert raised.value.__context__ is None
    assert KEY not in str(raised.value.request.headers.raw)
    at = raised.value.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == injection.__file__:
            assert KEY not in str(at.tb_frame.f_locals)
        at = at.tb_next


def test_a_stream_stays_one(door: Injection) -> None:
    """A client that asked for a stream reads it itself."""
    call = begun(key := own_key())
    name = stand_in(door, call, key)

    async def work() -> list[str]:
        CURRENT.set(call)
        transport = httpx.MockTransport(
            lambda request: httpx.Response(200, stream=Pieces(f"data: {KEY}\n\n".encode(), b"data: 2\n\n"))
        )
        async with (
            httpx.AsyncClient(transport=transport) as client,
            client.stream("POST", URL, headers={"authorization": f"Bearer {name}"}) as answer,
        ):
            assert not answer.is_stream_consumed
            return [line async for line in answer.aiter_lines()]

    assert asyncio.run(work()) == ["data: [own key]", "", "data: 2", ""]


def test_an_address_of_the_users_own(door: Injection, pinned: httpx.AsyncClient) -> None:
    """A key with an address goes there only, and only through the client that checks where it leads."""
    key = own_key("custom", api_base="https://llm.example.com/v1")
    call = begun(key)
    made = door.inject(call, key, {"model": "m"})
    assert (made["api_base"], made["base_url"]) == (key.api_base, key.api_base)
    assert isinstance(made["client"], AsyncOpenAI)
    assert str(made["client"].base_url) == "https://llm.example.com/v1/"
    assert made["client"].api_key == made["api_key"]
    echoed = sent(call, lambda request: httpx.Response(200, json=seen(request)), {"x-api-key": made["api_key"]})
    assert echoed.json()["headers"]["x-api-key"] == made["api_key"]

    async def work() -> httpx.Response:
        CURRENT.set(call)
        return await pinned.post(URL, headers={"authorization": f"Bearer {made['api_key']}"})

    assert asyncio.run(work()).json()["headers"]["authorization"] == "Bearer [own key]"


def test_the_pinned_client_sends_no_other_key(door: Injection, pinned: httpx.AsyncClient) -> None:
    """A key without an address does not leave through the client for users' addresses."""
    call = begun(key := own_key())
    name = stand_in(door, call, key)

    async def work() -> httpx.Response:
        CURRENT.set(call)
        return await pinned.post(URL, headers={"x-api-key": name})

    assert asyncio.run(work()).json()["headers"]["x-api-key"] == name


@pytest.mark.parametrize("fault", [DamagedKey(), UnknownSealingKey("53dae81cfabf")])
def test_a_key_that_does_not_open(
    pinned: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: VaultError
) -> None:
    """It fails before anything is asked of LiteLLM: its owner is told what to do, the operator by the log."""
    monkeypatch.setattr(httpx.AsyncClient, "send", httpx.AsyncClient.send)

    def closed(key: ProviderKey) -> Secret:
        raise fault

    call = begun(key := own_key())
    with pytest.raises(Refused, match="Your own key 'default' for openai does not open here") as raised:
        Injection(closed, pinned).inject(call, key, {})
    assert raised.value.to_dict()["code"] == fault.code
    assert raised.value.status_code == 403
    assert "53dae81cfabf" not in raised.value.message
    assert (str(key.id) in caplog.text, str(fault) in caplog.text) == (True, True)


def test_a_key_whose_time_has_come(door: Injection) -> None:
    """A key that expires between the plan and the attempt is not used."""
    call = begun(key := own_key(expires_at=datetime.now(timezone.utc)))
    with pytest.raises(Refused, match="past its time"):
        door.inject(call, key, {})


def test_a_request_that_is_cancelled(door: Injection) -> None:
    """An answer whose reader is cancelled is closed at once, and its connection with it."""
    call = begun(key := own_key())
    pieces = Hanging()

    async def work() -> None:
        CURRENT.set(call)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=pieces))
        async with httpx.AsyncClient(transport=transport) as client:
            task = asyncio.ensure_future(client.post(URL, headers={"x-api-key": stand_in(door, call, key)}))
            await pieces.read.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert pieces.closed


def test_a_request_that_is_cancelled_while_it_is_sent(door: Injection) -> None:
    """What is raised then has no frame in which the request stands as it was sent."""
    call = begun(key := own_key())
    reached = asyncio.Event()

    async def hang(request: httpx.Request) -> httpx.Response:
        sent_with = request.headers["x-api-key"]
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError(sent_with)

    async def work() -> list[str]:
        CURRENT.set(call)
        async with httpx.AsyncClient(transport=httpx.MockTransport(hang)) as client:
            task = asyncio.ensure_future(client.post(URL, headers={"x-api-key": stand_in(door, call, key)}))
            await reached.wait()
            task.cancel()
            try:
                await task
            except asyncio.CancelledError as error:
                return [name for frame in frames(error) for name in frame.f_locals]
            raise AssertionError("nothing was cancelled")

    assert "sent_with" not in asyncio.run(work())


def frames(error: BaseException) -> list[types.FrameType]:
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at.tb_frame)
        at = at.tb_next
    return found


class Hanging(Pieces):
    """A body that begins and does not go on."""

    def __init__(self) -> None:
        super().__init__(b"{")
        self.read = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"{"
        self.read.set()
        await asyncio.Event().wait()


def test_the_end_of_a_call(door: Injection) -> None:
    """What a call leaves unread is closed with it."""
    call = begun(key := own_key())
    pieces = Pieces(b"data: 1\n\n", b"data: 2\n\n")

    async def work() -> None:
        CURRENT.set(call)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=pieces))
        client = httpx.AsyncClient(transport=transport)
        request = client.build_request("POST", URL, headers={"x-api-key": stand_in(door, call, key)})
        answer = await client.send(request, stream=True)
        async for _ in answer.aiter_raw():
            break
        injection.close_unread(call)
        await asyncio.wait(injection._CLOSING)

    asyncio.run(work())
    assert pieces.closed


def test_not_in_logs(door: Injection, caplog: pytest.LogCaptureFixture) -> None:
    """httpx's own line about a request with a key in its URL has none."""
    caplog.set_level(logging.DEBUG, logger="httpx")
    before = logging.getLogRecordFactory()
    redaction.install()
    call = begun(key := own_key("google"))
    sent(call, lambda request: httpx.Response(200), {}, f"{URL}?key={stand_in(door, call, key)}")
    logging.setLogRecordFactory(before)
    assert "key=[own key]" in caplog.text
    assert KEY not in caplog.text


def test_a_deployment_without_the_platforms_key() -> None:
    """The copy of a deployment has none of its credentials, its prices, and an id of its own; the original stays."""
    params = {
        "model": "azure/gpt-4o", "api_base": "https://x", "api_key": "sk-platform", "azure_ad_token": "t",
        "aws_secret_access_key": "s", "vertex_credentials": "v", "organization": "org", "extra_headers": {"x": "k"},
        "input_cost_per_token": 1e-6, "litellm_credential_name": "c", "headers": {"authorization": "b"}, "timeout": 5,
    }  # fmt: skip
    deployment = {"model_name": "g", "litellm_params": params, "model_info": {"id": "d1", "quality_score": 5}}
    made = injection.own_deployment(deployment, candidate(f"d1{OWN_KEY_MARK}"))
    assert made["litellm_params"] == {
        "model": "azure/gpt-4o", "api_base": "https://x", "api_key": "own-key-missing",
        "input_cost_per_token": 1e-6, "timeout": 5,
    }  # fmt: skip
    assert made["model_info"] == {"id": "d1#byok", "quality_score": 5}
    assert (params["api_key"], deployment["model_info"]["id"]) == ("sk-platform", "d1")  # type: ignore[index]


def test_a_thousand_keys(door: Injection, pinned: httpx.AsyncClient) -> None:
    """What a thousand keys leave behind, half of them with addresses of their own, is next to nothing."""

    async def work(keys: int) -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"key": KEY}))
        async with httpx.AsyncClient(transport=transport) as client:
            for number in range(keys):
                key = own_key(api_base="https://llm.example.com/v1" if number % 2 else None)
                call = begun(key)
                CURRENT.set(call)
                made = door.inject(call, key, {"model": "m"})
                by = pinned if key.api_base else client
                answer = await by.post(URL, headers={"x-api-key": made["api_key"]})
                assert KEY not in answer.text

    asyncio.run(work(100))
    gc.collect()
    tracemalloc.start()
    asyncio.run(work(1_000))
    CURRENT.set(None)
    gc.collect()
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"1,000 keys more: {left / 1000:.0f} kB left, at most {peak / 1e6:.1f} MB at a time")
    assert left < 100_000
    assert not len(injection._UNREAD)
    assert not redaction._in_use


class _Failure(Exception):
    message = "refused"


def test_whose_key_failed() -> None:
    """An error of an attempt with an own key says so, once; another one's stays as it is."""
    own, platforms = _Failure(), _Failure()
    call = begun(own_key())
    injection.disclose(call, own)
    injection.disclose(call, own)
    injection.disclose(begun(None), platforms)
    assert own.message == "With your own openai key 'default': refused"
    assert platforms.message == "refused"
