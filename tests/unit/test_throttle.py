"""Who guesses keys, or asks too often, waits; who does not, does not."""

from __future__ import annotations

import ipaddress

import pytest

from tests.clock import Clock
from uc_litellm_plugin import throttle
from uc_litellm_plugin.errors import TooManyRequests
from uc_litellm_plugin.settings import LimitSettings
from uc_litellm_plugin.throttle import Buckets, Throttle, client_address


@pytest.fixture
def clock() -> Clock:
    return Clock()


def throttled(clock: Clock, failed: int | None = 6, requests: int | None = 6) -> Throttle:
    limits = LimitSettings.model_validate({"failed_keys_per_minute": failed, "api_requests_per_minute": requests})
    return Throttle(limits, clock)


def fail(checking: Throttle, address: str, api_key: str) -> None:
    checking.wrong(checking.guess(address, api_key))


def refused(checking: Throttle, address: str, api_key: str) -> str | None:
    """The retry-after of a refusal, None where there is none."""
    try:
        checking.guess(address, api_key)
    except TooManyRequests as refusal:
        return refusal.headers["retry-after"]
    return None


def test_guesses_from_one_address(clock: Clock) -> None:
    """After so many different wrong keys in a minute the address waits, and others do not."""
    checking = throttled(clock)
    for n in range(6):
        fail(checking, "1.2.3.4", f"{n}" * 40)
    assert refused(checking, "1.2.3.4", "x" * 40) == "10"
    assert refused(checking, "1.2.3.5", "x" * 40) is None
    clock.now += 10
    fail(checking, "1.2.3.4", "y" * 40)
    assert refused(checking, "1.2.3.4", "x" * 40) == "10"


def test_guesses_of_one_beginning(clock: Clock) -> None:
    """From however many addresses, what begins alike is guessed so many times in a minute."""
    checking = throttled(clock)
    for n in range(6):
        fail(checking, f"1.2.3.{n}", f"sk-uc-abcdef{n}")
    assert refused(checking, "9.9.9.9", "sk-uc-abcdefg") == "10"
    assert refused(checking, "9.9.9.9", "sk-uc-bcdefgh") is None


def test_one_wrong_key_again_and_again(clock: Clock) -> None:
    """A client with a key of the day before yesterday shuts out itself, not all who share its address."""
    checking = throttled(clock)
    for _ in range(6):
        fail(checking, "1.2.3.4", "sk-uc-revoked-long-ago")
    assert refused(checking, "1.2.3.4", "sk-uc-revoked-long-ago") == "10"
    assert refused(checking, "1.2.3.4", "sk-uc-a-good-one") is None
    for n in range(5):
        fail(checking, "1.2.3.4", f"{n}" * 40)
    assert refused(checking, "1.2.3.4", "sk-uc-a-good-one") == "10"


def test_what_was_under_way_is_owed(clock: Clock) -> None:
    """Many at once get through before the first is known to be wrong, and the next ones wait for that."""
    checking = throttled(clock)
    guesses = [checking.guess("1.2.3.4", f"{n}" * 40) for n in range(10)]
    for guess in guesses:
        checking.wrong(guess)
    assert refused(checking, "1.2.3.4", "x" * 40) == "50"
    clock.now += 10_000
    assert refused(checking, "1.2.3.4", "x" * 40) is None


def test_requests(clock: Clock) -> None:
    """Each caller may ask so many times a minute."""
    checking = throttled(clock)
    for _ in range(6):
        checking.pace("user ann")
    with pytest.raises(TooManyRequests) as caught:
        checking.pace("user ann")
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "10")
    checking.pace("user bob")
    clock.now += 10
    checking.pace("user ann")


def test_no_limit(clock: Clock) -> None:
    """Null is no limit."""
    checking = throttled(clock, None, None)
    for n in range(1000):
        fail(checking, "1.2.3.4", f"{n}")
        checking.pace("user ann")


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses and keys there are, only the latest are remembered."""
    monkeypatch.setattr(throttle, "_MOST_NAMES", 100)
    buckets = Buckets(5, clock)
    for n in range(1000):
        buckets.take("often")
        buckets.take(str(n))
    assert len(buckets) == 100
    assert buckets.wait_s("often") > 0
    assert buckets.wait_s("0") == 0


PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "named", "address"),
    [
        ("1.2.3.4", [], "1.2.3.4"),
        ("1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["8.8.8.8, 9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["8.8.8.8", "9.9.9.9,10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9, unknown"], "unknown"),
        ("fd00::1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", ["::ffff:9.9.9.9"], "9.9.9.9"),
        (None, [], ""),
        ("x" * 1000, [], "x" * 64),
    ],
)
def test_who_the_client_is(peer: str | None, named: list[str], address: str) -> None:
    """What a header says counts as far as proxies of ours have written it."""
    assert client_address(peer, named, PROXIES) == address
