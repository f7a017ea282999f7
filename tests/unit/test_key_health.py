"""How users' own keys fare is each one's own matter, and is forgotten when there are too many."""

from __future__ import annotations

import dataclasses

import pytest

from tests.clock import Clock
from tests.unit.samples import candidate
from tests.unit.test_injection import own_key
from uc_litellm_plugin import key_health
from uc_litellm_plugin.key_health import KeyHealth
from uc_litellm_plugin.plan import OWN_KEY_MARK, Candidate
from uc_litellm_plugin.settings import HealthSettings


class Unauthorized(Exception):
    status_code = 401


def own(deployment: str = "d1") -> Candidate:
    return dataclasses.replace(candidate(f"{deployment}{OWN_KEY_MARK}"), own_key=own_key())


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def health(clock: Clock) -> KeyHealth:
    return KeyHealth(HealthSettings(), clock)  # type: ignore[call-arg]


def fail(health: KeyHealth, of: Candidate) -> None:
    health.begun(of)
    health.failed(of, Unauthorized(), 0.0)


def test_apart(health: KeyHealth) -> None:
    """A key that fails is down; another user's key at the same deployment, and this one elsewhere, are not."""
    bad, good = own(), own()
    elsewhere = dataclasses.replace(bad, deployment=f"d2{OWN_KEY_MARK}")
    for _ in range(50):
        fail(health, bad)
    assert health.standing(bad).status == "down"
    assert health.standing(good).status == health.standing(elsewhere).status == "healthy"


def test_probed(health: KeyHealth, clock: Clock) -> None:
    """A key that is down is tried again after a while, by one call; a success makes it well."""
    bad = own()
    fail(health, bad)
    assert not health.claim_probe(bad)
    clock.now = 4
    assert health.standing(bad).probe
    assert [health.claim_probe(bad), health.claim_probe(bad)] == [True, False]
    health.begun(bad)
    health.succeeded(bad, 10)
    assert health.standing(bad).status == "healthy"


def test_unknown(health: KeyHealth) -> None:
    """A key that was never used is healthy, has no probe, and takes no memory by being asked about."""
    assert health.standing(own()).status == "healthy"
    assert not health.claim_probe(own())
    assert not health._breakers


def test_forgets(health: KeyHealth, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least used are forgotten; what is used stays."""
    monkeypatch.setattr(key_health, "_MOST", 10)
    kept = own()
    fail(health, kept)
    for _ in range(30):
        health.begun(own())
        health.abandoned(kept)
    assert len(health._breakers) == 10
    assert health.standing(kept).status == "down"
