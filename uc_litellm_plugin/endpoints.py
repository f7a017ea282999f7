"""Addresses that users name (`api_base`): checked against SSRF, and connected to exactly as they were checked.

A name is resolved when a connection is made, every address it has must be a public one, and the connection goes to one
of the addresses that were checked, so that a name server which answers otherwise a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

from .errors import BadRequest
from .settings import ByokSettings

Address = IPv4Address | IPv6Address
# From a host and a port to its addresses; raises OSError.
Resolve = Callable[[str, int], Awaitable[list[str]]]

# Threads of their own: name servers that users choose can be slow, and all other names are looked up in the loop's.
_RESOLVERS = ThreadPoolExecutor(8, "uc-resolve")

URL_MAX = 512
_PORTS = {"https": 443, "http": 80}
TIMEOUT_S = 5.0
_MOST_TRIED = 4
# A long answer with all the probabilities of its tokens has a few megabytes. Bytes.
LARGEST_ANSWER = 32 * 1024 * 1024

# No user information, query, fragment, escape or backslash, nothing that is not ASCII: parsers disagree on those.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(/[A-Za-z0-9._~:-]*)*)"
)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)+")
# `inet_aton` reads 127.1, 0177.0.0.1, 0x7f.1 and 2130706433 as 127.0.0.1.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRIVATE_ENDINGS = frozenset(
    {"localhost", "local", "localdomain", "internal", "intranet", "private", "corp", "home", "lan"}
    | {"arpa", "onion", "test", "invalid"}
)
_METADATA_NAMES = frozenset({"metadata", "instance-data"})

# What is not global: https://www.iana.org/assignments/iana-ipv4-special-registry, multicast, and Azure's host agent.
_NOT_GLOBAL_4 = [
    IPv4Network(each)
    for each in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",
    )
]
# https://www.iana.org/assignments/iana-ipv6-special-registry: only 2000::/3 is global unicast, and this not.
_GLOBAL_6 = IPv6Network("2000::/3")
_NOT_GLOBAL_6 = [IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")]
# Where an IPv6 address carries an IPv4 one that is reached in its place, and how many bits follow it.
_CARRIERS = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


@dataclass(frozen=True)
class Base:
    """An `api_base` whose form is in order; where its name leads is not yet known.

    Attributes
    ----------
    url
        Without a slash at the end; the host in lower case.
    may_be_private
        The operator allows this host, wherever it leads.
    """

    url: str
    host: str
    port: int
    may_be_private: bool


@dataclass(frozen=True)
class PinnedBase:
    """An `api_base` with addresses of it, the preferred one first; all that it has were checked."""

    base: Base
    addresses: tuple[str, ...]


async def resolve(host: str, port: int) -> list[str]:
    """A host's addresses from the system's resolver, the preferred one first."""
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, lookup)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def parse_base(url: str, rules: ByokSettings) -> Base:
    """Check the form of an `api_base`.

    Raises
    ------
    BadRequest
        Code `invalid_api_base`; the message says what is wrong and the way out.
    """
    if len(url) > URL_MAX or not (match := _URL.fullmatch(url)):
        raise _refusal(
            f"write it as https://host/path, in ASCII, with at most {URL_MAX} characters and without user, query, "
            "fragment or escapes"
        )
    scheme, host, path = match["scheme"], match["host"].lower(), match["path"].rstrip("/")
    if scheme != "https" and not rules.allow_http:
        raise _refusal("it must begin with https://")
    port = int(match["port"] or _PORTS[scheme])
    if not 1 <= port <= 65535:
        raise _refusal(f"{port} is no port")
    allowed = not rules.allowed_hosts.isdisjoint({host, f"{host}:{port}"})
    if not allowed:
        _check_host(host)
    # Written anew, so that every later reader sees the parts that were checked.
    written = f"{scheme}://{host}{'' if port == _PORTS[scheme] else f':{port}'}{path}"
    return Base(written, host.strip("[]"), port, allowed)


async def check_base(url: str, rules: ByokSettings, resolver: Resolve = resolve) -> PinnedBase:
    """Check an `api_base` and where its name leads.

    Raises
    ------
    BadRequest
        Code `invalid_api_base`: its form is wrong, or an address of it is not a public one.
        Code `unresolved_api_base`: its name cannot be resolved now.
    """
    base = parse_base(url, rules)
    try:
        addresses = await asyncio.wait_for(resolver(base.host, base.port), TIMEOUT_S)
    except (OSError, UnicodeError, asyncio.TimeoutError):
        addresses = []
    if not addresses:
        raise BadRequest(f"The host {base.host} has no address now.", code="unresolved_api_base", param="api_base")
    if not base.may_be_private and not all(map(is_public, addresses)):
        # Which address it is would tell a stranger about the network here.
        raise _refusal(f"{base.host} does not lead to a public address; an operator can allow it in byok.allowed_hosts")
    return PinnedBase(base, tuple(addresses[:_MOST_TRIED]))


def is_public(address: str) -> bool:
    """Whether an address is one of the public Internet; an IPv6 address that carries an IPv4 one is as that is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _NOT_GLOBAL_4)
    if parsed.scope_id is not None:
        return False
    for network, bits in _CARRIERS:
        if parsed in network:
            return is_public(str(IPv4Address(int(parsed) >> bits & 0xFFFFFFFF)))
    return parsed in _GLOBAL_6 and not any(parsed in network for network in _NOT_GLOBAL_6)


class PinnedTransport(httpx.AsyncBaseTransport):
    """Sends each request to an address that was checked just before, under the name in its URL.

    Parameters
    ----------
    rules
        The settings `byok`.
    resolver
        For tests.
    """

    def __init__(self, rules: ByokSettings, resolver: Resolve = resolve) -> None:
        self._rules = rules
        self._resolver = resolver
        # The environment's certificates count (SSL_CERT_FILE); its proxies would make connections we cannot check. No
        # connection is used twice: two names at one address may have two owners.
        self._network = httpx.AsyncHTTPTransport(trust_env=True, limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Check the request's host, and connect to one of its addresses; raises `BadRequest` as `check_base`."""
        url = request.url
        pinned = await check_base(f"{url.scheme}://{url.netloc.decode('ascii')}", self._rules, self._resolver)
        request.extensions = {**request.extensions, "sni_hostname": pinned.base.host}
        try:
            return await self._send(request, pinned.addresses)
        finally:
            request.url = url

    async def _send(self, request: httpx.Request, addresses: Sequence[str]) -> httpx.Response:
        first, *others = addresses
        request.url = request.url.copy_with(host=first)
        try:
            return await _bounded(await self._network.handle_async_request(request))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if not others:
                raise
        return await self._send(request, others)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._network.aclose()


async def _bounded(response: httpx.Response) -> httpx.Response:
    """The same answer, which ends with an error where it grows too large; a compressed one could do so at once."""
    if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        await response.aclose()  # Its connection would stay in use for good.
        raise httpx.RemoteProtocolError("The answer is compressed, which was not asked for.")
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - a network's always is
    response.stream = _Bounded(response.stream)
    return response


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LARGEST_ANSWER:
                raise httpx.ReadError(f"The answer is larger than {LARGEST_ANSWER} bytes.")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def client(rules: ByokSettings, resolver: Resolve = resolve, timeout_s: float = TIMEOUT_S) -> httpx.AsyncClient:
    """An HTTP client for addresses that users name: pinned, no redirects, no cookies kept, no proxies."""
    return httpx.AsyncClient(
        transport=PinnedTransport(rules, resolver),
        timeout=timeout_s,
        follow_redirects=False,
        trust_env=False,
        headers={"accept-encoding": "identity"},
        # One client is everybody's: what a server tells one user must not go along with another's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


_unheard: ContextVar[bool] = ContextVar("unheard", default=False)


@contextmanager
def unheard() -> Iterator[None]:
    """Keep httpx and httpcore from logging in this task: what a stranger's server answers may echo a key."""
    for name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy"):
        logging.getLogger(name).addFilter(_is_heard)
    token = _unheard.set(True)
    try:
        yield
    finally:
        _unheard.reset(token)


def _is_heard(_: logging.LogRecord) -> bool:
    return not _unheard.get()


def _check_host(host: str) -> None:
    if host.startswith("["):
        if not is_public(host.strip("[]")):
            raise _refusal(f"{host} is not a public address")
        return
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        if not is_public(host):
            raise _refusal(f"{host} is not a public address")
        return
    if not _NAME.fullmatch(host):
        raise _refusal(f"{host[:100]} is no full host name, such as api.example.com, without a dot at the end")
    if labels[-1] in _PRIVATE_ENDINGS or labels[0] in _METADATA_NAMES:
        raise _refusal(f"{host} is a name of private networks; an operator can allow it in byok.allowed_hosts")


def _refusal(reason: str) -> BadRequest:
    return BadRequest(f"This api_base is refused: {reason}.", code="invalid_api_base", param="api_base")
