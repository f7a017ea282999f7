"""How users' own keys fare, each by itself, in this worker's memory: never in a row, never against a provider."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from . import faults
from .breaker import Breaker, Standing
from .plan import Candidate
from .settings import HealthSettings

# Some 2 kB each.
_MOST = 2_000
_UNKNOWN = Standing()


class KeyHealth:
    """The breakers of users' own keys; the least used are forgotten.

    Parameters
    ----------
    settings
        Window and thresholds, as for deployments.
    clock
        Monotonic seconds.
    """

    def __init__(self, settings: HealthSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._breakers: OrderedDict[tuple[str, str], Breaker] = OrderedDict()

    def begun(self, candidate: Candidate) -> None:
        """An attempt begins."""
        self._breaker(candidate).begun(self._clock())

    def succeeded(self, candidate: Candidate, latency_ms: float) -> None:
        """The first output of an attempt is here, after so many milliseconds."""
        self._breaker(candidate).succeeded(self._clock(), latency_ms)

    def failed(self, candidate: Candidate, error: BaseException, began: float) -> None:
        """An attempt that began then failed."""
        self._breaker(candidate).failed(self._clock(), faults.classify(error), faults.retry_after_s(error), began)

    def abandoned(self, candidate: Candidate) -> None:
        """An attempt ended without a verdict."""
        self._breaker(candidate).abandoned(self._clock())

    def standing(self, candidate: Candidate) -> Standing:
        """How a key stands at a deployment; healthy when nothing is known."""
        breaker = self._breakers.get(_name(candidate))
        return _UNKNOWN if breaker is None else breaker.standing(self._clock())

    def claim_probe(self, candidate: Candidate) -> bool:
        """Take the one probe of a key that is down; True once per period."""
        breaker = self._breakers.get(_name(candidate))
        return breaker is not None and breaker.claim_probe(self._clock())

    def _breaker(self, candidate: Candidate) -> Breaker:
        name = _name(candidate)
        breaker = self._breakers.setdefault(name, Breaker(self._settings))
        self._breakers.move_to_end(name)
        if len(self._breakers) > _MOST:
            self._breakers.popitem(last=False)
        return breaker


def _name(candidate: Candidate) -> tuple[str, str]:
    return str(candidate.own_key.id) if candidate.own_key else "", candidate.deployment
