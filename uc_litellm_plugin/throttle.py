"""Slowing who guesses keys or asks too often: token buckets in this process's memory."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import TooManyRequests
from .settings import LimitSettings

# Names that are remembered; who has not been heard of for the longest is forgotten first.
_MOST_NAMES = 20_000
# Of a key, as much as tells two keys apart without being worth anything: `sk-uc-` and six of 43 characters.
_BEGINNING = 12

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Buckets:
    """A bucket of tokens for each name: so many at once, and so many again in each minute.

    Parameters
    ----------
    per_minute
        How many; None for no limit.
    clock
        Seconds, from any start.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute or 0)
        self._limited = per_minute is not None
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def wait_s(self, name: str) -> float:
        """Seconds until this name has a token; 0 when it has one."""
        if not self._limited or (missing := 1 - self._level(name)) <= 0:
            return 0
        return missing * 60 / self._most

    def take(self, name: str) -> None:
        """Take a token; what requests under way together take beyond the last one is owed, up to a minute's."""
        if not self._limited:
            return
        level = max(self._level(name) - 1, -self._most)
        self._levels.pop(name, None)
        if len(self._levels) >= _MOST_NAMES:
            del self._levels[next(iter(self._levels))]
        self._levels[name] = (level, self._clock())

    def _level(self, name: str) -> float:
        level, since = self._levels.get(name, (self._most, 0.0))
        return min(self._most, level + (self._clock() - since) * self._most / 60)


@dataclass(frozen=True)
class Guess:
    """An API key that nobody has used here lately, and where it comes from."""

    address: str
    beginning: str
    hashed: str


class Throttle:
    """What one worker remembers of wrong keys, and of who asks how often.

    The same wrong key again and again is a client that nobody has told, not somebody who guesses: it uses up what its
    own beginning may, and not what others behind the same address may.

    Parameters
    ----------
    limits
        The settings' section.
    clock
        Seconds, from any start.
    """

    def __init__(self, limits: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = Buckets(limits.failed_keys_per_minute, clock)
        self._beginnings = Buckets(limits.failed_keys_per_minute, clock)
        self._callers = Buckets(limits.api_requests_per_minute, clock)
        self._wrong: dict[str, str] = {}

    def guess(self, address: str, api_key: str) -> Guess:
        """A key that is about to be looked up.

        Raises
        ------
        TooManyRequests
            Too many wrong ones came from this address, or with this beginning.
        """
        hashed = hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()
        guess = Guess(address, api_key[:_BEGINNING], hashed)
        waits = self._addresses.wait_s(address), self._beginnings.wait_s(guess.beginning)
        if wait_s := max(waits):
            raise _too_many("Too many wrong API keys came from there", wait_s)
        return guess

    def wrong(self, guess: Guess) -> None:
        """Note that it was nobody's key, or no longer."""
        self._beginnings.take(guess.beginning)
        if self._wrong.pop(guess.beginning, None) != guess.hashed:
            self._addresses.take(guess.address)
        if len(self._wrong) >= _MOST_NAMES:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[guess.beginning] = guess.hashed

    def pace(self, caller: str) -> None:
        """Count a request to the REST API.

        Raises
        ------
        TooManyRequests
            This caller has made as many as it may.
        """
        if wait_s := self._callers.wait_s(caller):
            raise _too_many("Too many requests", wait_s)
        self._callers.take(caller)


def _too_many(what: str, wait_s: float) -> TooManyRequests:
    seconds = max(1, math.ceil(wait_s))
    return TooManyRequests(f"{what}; try again in {seconds} s.", headers={"retry-after": str(seconds)})


def networks(trusted: Sequence[str]) -> tuple[Network, ...]:
    """The networks of `limits.trusted_proxies`, which the settings have checked."""
    return tuple(ipaddress.ip_network(each) for each in trusted)


def client_address(peer: str | None, named: Sequence[str], trusted: Sequence[Network]) -> str:
    """Who counts as the client.

    Parameters
    ----------
    peer
        Who opened the connection.
    named
        The lines of the header that proxies write, in their order: each adds whom it heard from at the end.
    trusted
        The proxies.

    Returns
    -------
    str
        The last address that is no proxy of ours, an IPv6 one as its /64: that is one customer's.
    """
    heard = [peer or "", *reversed([each.strip() for line in named for each in line.split(",")])]
    believed = next((each for each in heard if not _is_in(each, trusted)), heard[-1])
    address = _parsed(believed)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address) if address else believed[:64]


def _is_in(text: str, trusted: Sequence[Network]) -> bool:
    address = _parsed(text)
    return address is not None and any(address in network for network in trusted)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
