"""Addresses that users name: what is let through, and where a connection goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest
import respx

from uc_litellm_plugin import endpoints
from uc_litellm_plugin.endpoints import PinnedTransport, check_base, is_public, parse_base
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.settings import ByokSettings

PUBLIC = "93.184.215.14"


def rules(**options: object) -> ByokSettings:
    return ByokSettings.model_validate(options)


def names(**hosts: list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver: `a_example_com=[...]` for a.example.com, and one public address for every other name."""

    async def resolver(host: str, _: int) -> list[str]:
        return hosts.get(host.replace(".", "_"), [PUBLIC])

    return resolver


def addresses_in(text: str) -> list[str]:
    return text.split()


# Whether the text is refused must not depend on what the name resolves to: here everything is public.
REFUSED_TEXTS = [
    "http://api.example.com/v1",
    "HTTPS://api.example.com",
    "ftp://api.example.com",
    "file:///etc/passwd",
    "gopher://api.example.com/_x",
    "//api.example.com",
    "api.example.com/v1",
    "https:api.example.com",
    "https:/api.example.com",
    "https:///v1",
    "https://",
    "",
    "https://user@api.example.com",
    "https://user:password@api.example.com/v1",
    "https://api.example.com@127.0.0.1/v1",
    "https://api.example.com/v1?key=1",
    "https://api.example.com/v1?",
    "https://api.example.com/v1#fragment",
    "https://api.example.com#@127.0.0.1",
    "https://api.example.com\\@127.0.0.1",
    "https://api.example.com/v1%2f..",
    "https://127.0.0.1%2f.example.com",
    "https://%31%32%37.0.0.1",
    "https://api.example.com\t/v1",
    "https://api.example.com\n.evil.example",
    " https://api.example.com",
    "https://api.example.com ",
    "https://api.example.com/\r\nHost: localhost",
    "https://api.example.com\x00.local/",
    "https://api.example.com:0/v1",
    "https://api.example.com:65536",
    "https://api.example.com:",
    "https://api.example.com:443:80",
    "https://api.example.com:-1",
    "https://api.example.com:٤٤٣",
    f"https://api.example.com/{'a' * 512}",
    f"https://{'a' * 64}.example.com",
    f"https://{'a.' * 130}com",
    "https://api..example.com",
    "https://.example.com",
    "https://api.example.com.",
    "https://localhost.",
    "https://127.0.0.1.",
    "https://-api.example.com",
    "https://localhost",
    "https://localhost:8080/v1",
    "https://LOCALHOST",
    "https://a.localhost",
    "https://localhost.localdomain",
    "https://vllm",
    "https://vllm:8000/v1",
    "https://db.internal",
    "https://printer.local",
    "https://nas.lan",
    "https://wiki.corp",
    "https://router.home.arpa",
    "https://hidden.onion",
    "https://metadata",
    "https://metadata.google.internal/computeMetadata/v1",
    "https://metadata.tencentyun.com",
    "https://METADATA.example.com",
    "https://instance-data.ec2.internal",
    "https://instance-data.example.com",
    "https://127.0.0.1",
    "https://127.1",
    "https://127.0.1",
    "https://2130706433",
    "https://0x7f000001",
    "https://0x7f.0.0.1",
    "https://0X7F.1",
    "https://0177.0.0.1",
    "https://017700000001",
    "https://127.0.0.0x1",
    "https://example.0x7f",
    "https://8.8.8",
    "https://08.8.8.8",
    "https://8.8.8.8.8",
    "https://256.256.256.256",
    "https://0",
    "https://0.0.0.0",
    "https://10.0.0.1",
    "https://172.16.5.4",
    "https://192.168.1.1",
    "https://169.254.169.254/latest/meta-data",
    "https://100.100.100.200",
    "https://168.63.129.16",
    "https://[::1]",
    "https://[::]",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:7f00:1]",
    "https://[::127.0.0.1]",
    "https://[64:ff9b::10.0.0.1]",
    "https://[2002:7f00:1::]",
    "https://[fe80::1]",
    "https://[fe80::1%25eth0]",
    "https://[fd00:ec2::254]",
    "https://[ff02::1]",
    "https://[::1",
    "https://::1/",
    "https://[8.8.8.8]",
    "https://[zz::1]",
    "https://①②⑦.⓪.⓪.①",
    "https://\uff11\uff12\uff17.0.0.1",
    "https://127。0。0。1",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "https://loc\u0430lhost.example.com",
    "https://bücher.example",
    "https://a\u00ad.example.com",
    "https://api.example.com\u2024internal",
    "https://\u202eapi.example.com",
]


@pytest.mark.parametrize("url", REFUSED_TEXTS)
async def test_refused_by_its_text(url: str) -> None:
    """What is not a plain https address of a public host is refused, before any name is looked up."""

    async def never(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    with pytest.raises(BadRequest) as refused:
        await check_base(url, rules(), never)
    assert (refused.value.code, refused.value.param) == ("invalid_api_base", "api_base")


NOT_PUBLIC = addresses_in("""
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.0.1
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1
    198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1
    64:ff9b::a00:1 64:ff9b:1::1 64:ff9b:1::808:808 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1
    2001:20::1 2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101::1 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254
    fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 2130706433 0177.0.0.1 localhost 8.8.8.8%eth0""")


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_refused_by_where_it_leads(address: str) -> None:
    """A public name that leads to one address that is not public is refused, whatever its others; which is not told."""
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        with pytest.raises(BadRequest, match=r"api\.example\.com") as refused:
            await check_base("https://api.example.com/v1", rules(), names(api_example_com=addresses))
        assert refused.value.code == "invalid_api_base"
        assert address not in refused.value.message


PUBLIC_ADDRESSES = addresses_in("""
    8.8.8.8 1.1.1.1 93.184.215.14 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 11.0.0.1 126.255.255.255
    128.0.0.1 168.63.129.17 223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
    2002:808:808::1""")


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_public_addresses(address: str) -> None:
    """Addresses of the Internet are public, also just beside those that are not."""
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "written", "host", "port"),
    [
        ("https://api.example.com", "https://api.example.com", "api.example.com", 443),
        ("https://api.example.com/", "https://api.example.com", "api.example.com", 443),
        ("https://API.Example.COM:443/v1/", "https://api.example.com/v1", "api.example.com", 443),
        ("https://api.example.com:8443/openai/v1", "https://api.example.com:8443/openai/v1", "api.example.com", 8443),
        (
            "https://xn--bcher-kva.example.org/v1",
            "https://xn--bcher-kva.example.org/v1",
            "xn--bcher-kva.example.org",
            443,
        ),
        ("https://1.2.3.4.example.com", "https://1.2.3.4.example.com", "1.2.3.4.example.com", 443),
        ("https://8.8.8.8/v1", "https://8.8.8.8/v1", "8.8.8.8", 443),
        ("https://[2606:4700:4700::1111]/v1", "https://[2606:4700:4700::1111]/v1", "2606:4700:4700::1111", 443),
    ],
)
async def test_taken(url: str, written: str, host: str, port: int) -> None:
    """Plain public addresses are taken, written in one form, with the addresses they lead to."""
    pinned = await check_base(url, rules(), names())
    assert (pinned.base.url, pinned.base.host, pinned.base.port) == (written, host, port)
    assert pinned.addresses == (PUBLIC,)


async def test_what_an_operator_allows() -> None:
    """A host in allowed_hosts may be private, for its port only where one is named; http needs allow_http."""
    private = names(vllm=["10.0.0.5"])
    listed = rules(allowed_hosts=["vllm:8000", "127.0.0.1", "[::1]"])
    assert (await check_base("https://vllm:8000/v1", listed, private)).addresses == ("10.0.0.5",)
    for url in ("https://127.0.0.1:9000", "https://[::1]/v1"):
        assert (await check_base(url, listed, names())).base.may_be_private
    for url in ("https://vllm:8001/v1", "https://vllm/v1", "https://vllm.:8000", "http://vllm:8000", "https://[::2]"):
        with pytest.raises(BadRequest):
            await check_base(url, listed, private)
    plain = rules(allow_http=True)
    assert parse_base("http://api.example.com/v1", plain).port == 80
    with pytest.raises(BadRequest, match="public"):
        parse_base("http://127.0.0.1", plain)


async def test_a_name_without_an_address() -> None:
    """A name that is unknown now is told apart from one that is refused."""

    async def unknown(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    for resolver in (unknown, names(api_example_com=[])):
        with pytest.raises(BadRequest) as refused:
            await check_base("https://api.example.com", rules(), resolver)
        assert refused.value.code == "unresolved_api_base"


async def test_a_slow_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that does not end is given up."""
    monkeypatch.setattr(endpoints, "TIMEOUT_S", 0.01)

    async def slow(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(BadRequest, match="no address now"):
        await check_base("https://api.example.com", rules(), slow)


async def test_the_systems_resolver() -> None:
    """The system's answers are addresses, each once."""
    assert set(await endpoints.resolve("localhost", 443)) <= {"127.0.0.1", "::1"}


@respx.mock(using="httpcore")
async def test_the_connection_goes_to_the_checked_address(respx_mock: respx.MockRouter) -> None:
    """The network sees the address that was checked, under the name for TLS and Host; the answer has the name again."""
    route = respx_mock.get(f"https://{PUBLIC}/v1/models?limit=1").respond(200)
    async with endpoints.client(rules(), names()) as client:
        answer = await client.get("https://api.example.com/v1/models?limit=1")
    (call,) = route.calls
    assert call.request.headers["host"] == "api.example.com"
    assert call.request.extensions["sni_hostname"] == "api.example.com"
    assert str(answer.request.url) == "https://api.example.com/v1/models?limit=1"


@respx.mock(using="httpcore")
async def test_a_name_that_changes_its_mind(respx_mock: respx.MockRouter) -> None:
    """Each connection is checked anew: a name that was public a moment ago reaches nothing when it is private."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    asked = []

    async def rebinding(host: str, _: int) -> list[str]:
        asked.append(host)
        return next(answers)

    respx_mock.get(f"https://{PUBLIC}/").respond(200)
    async with endpoints.client(rules(), rebinding) as client:
        assert (await client.get("https://api.example.com/")).status_code == 200
        with pytest.raises(BadRequest, match="public"):
            await client.get("https://api.example.com/")
    assert asked == ["api.example.com"] * 2


@respx.mock(using="httpcore")
async def test_no_cookies(respx_mock: respx.MockRouter) -> None:
    """What a server sets for one user's request does not go along with the next."""
    route = respx_mock.get(f"https://{PUBLIC}/").respond(200, headers={"set-cookie": "session=ann; Path=/"})
    async with endpoints.client(rules(), names()) as client:
        for _ in range(2):
            await client.get("https://api.example.com/")
        assert not list(client.cookies.jar)
    assert ["cookie" in call.request.headers for call in route.calls] == [False, False]


def transport_of(client: httpx.AsyncClient) -> PinnedTransport:
    assert isinstance(client._transport, PinnedTransport)
    return client._transport


@respx.mock(using="httpcore")
async def test_answers_are_bounded(respx_mock: respx.MockRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers without end, or compressed though nobody asked for that, does not fill the memory."""
    monkeypatch.setattr(endpoints, "LARGEST_ANSWER", 1000)
    respx_mock.get(f"https://{PUBLIC}/small").respond(200, content=b"x" * 1000)
    respx_mock.get(f"https://{PUBLIC}/large").respond(200, content=b"x" * 1001)
    respx_mock.get(f"https://{PUBLIC}/zip").respond(200, content=b"", headers={"content-encoding": "gzip"})
    async with endpoints.client(rules(), names()) as client:
        assert len((await client.get("https://api.example.com/small")).content) == 1000
        with pytest.raises(httpx.ReadError, match="1000 bytes"):
            await client.get("https://api.example.com/large")
        with pytest.raises(httpx.RemoteProtocolError, match="compressed"):
            await client.get("https://api.example.com/zip")
        assert not transport_of(client)._network._pool.connections


@respx.mock(using="httpcore")
async def test_redirects_are_not_followed(respx_mock: respx.MockRouter) -> None:
    """A server that sends the caller elsewhere is answered by nobody: the redirect is the answer."""
    respx_mock.get(f"https://{PUBLIC}/").respond(302, headers={"location": "https://169.254.169.254/"})
    async with endpoints.client(rules(), names()) as client:
        assert (await client.get("https://api.example.com/")).status_code == 302
    assert respx_mock.calls.call_count == 1


@respx.mock(using="httpcore")
async def test_another_address_of_the_name(respx_mock: respx.MockRouter) -> None:
    """Where one address does not answer, the next one that was checked is tried, and no more than four."""
    respx_mock.get("https://1.1.1.1/").mock(side_effect=httpx.ConnectError("down"))
    respx_mock.get("https://8.8.8.8/").respond(204)
    async with endpoints.client(rules(), names(two_example_com=["1.1.1.1", "8.8.8.8"])) as client:
        assert (await client.get("https://two.example.com/")).status_code == 204
    async with endpoints.client(rules(), names(ten_example_com=["1.1.1.1"] * 10)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("https://ten.example.com/")
    assert respx_mock.calls.call_count == 2 + 4


@pytest.mark.parametrize("path", ["/v1/a%2Fb", "/v1/models/x?api-version=1&q=%20", "/"])
@respx.mock(using="httpcore")
async def test_paths_of_requests_are_free(respx_mock: respx.MockRouter, path: str) -> None:
    """What a client calls below an api_base may have escapes and a query; host and port decide."""
    route = respx_mock.get(f"https://{PUBLIC}{path}").respond(200)
    async with httpx.AsyncClient(transport=PinnedTransport(rules(), names())) as client:
        await client.get(f"https://api.example.com{path}")
    assert route.called


def test_quiet_and_loud(caplog: pytest.LogCaptureFixture) -> None:
    """httpx and httpcore are quiet inside of `unheard`, and as before outside of it."""
    for name in ("httpx", "httpcore.http11"):
        # LiteLLM raises httpx's level when it is imported.
        caplog.set_level(logging.DEBUG, logger=name)
        with endpoints.unheard():
            logging.getLogger(name).info("inside %s", name)
        logging.getLogger(name).info("outside %s", name)
    assert [record.getMessage() for record in caplog.records] == ["outside httpx", "outside httpcore.http11"]
