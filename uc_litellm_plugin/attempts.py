"""What each attempt of a call tells of its provider's health, or of the caller's own key."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from . import answers, faults
from .breaker import Standing
from .call import Attempt, Call
from .errors import StreamBroken
from .faults import Fault
from .health import Health
from .key_health import KeyHealth
from .plan import Candidate
from .provider_key import ProviderKey


class Attempts:
    """Notes how attempts begin and end.

    Parameters
    ----------
    health
        Of the platform's deployments.
    key_health
        Of users' own keys.
    on_key_fault
        Told when an attempt with a user's own key failed, and how.
    """

    def __init__(
        self, health: Health, key_health: KeyHealth, on_key_fault: Callable[[ProviderKey, Fault], object]
    ) -> None:
        self._health = health
        self._key_health = key_health
        self._on_key_fault = on_key_fault

    def standing(self, candidate: Candidate) -> Standing:
        """The health of a candidate, as far as this worker knows."""
        if candidate.own_key is not None:
            return self._key_health.standing(candidate)
        return self._health.standing(candidate.provider, candidate.deployment)

    def claim_probe(self, candidate: Candidate) -> bool:
        """Take the one probe of a candidate that is down and due for one."""
        if candidate.own_key is not None:
            return self._key_health.claim_probe(candidate)
        return self._health.claim_probe(candidate.provider, candidate.deployment)

    def begin(self, call: Call, candidate: Candidate) -> None:
        """An attempt at a candidate; LiteLLM announces some of them twice."""
        earlier = call.attempt
        if not call.begin(candidate):
            return
        if earlier is not None and not earlier.failed:
            # LiteLLM goes on without a word when a stream breaks before its first chunk.
            self._fail(call, earlier, StreamBroken())
        if candidate.own_key is not None:
            self._key_health.begun(candidate)
        else:
            self._health.begun(candidate.provider, candidate.deployment)

    def succeeded(self, call: Call, response: Any) -> None:
        """The first output of the latest attempt is here."""
        attempt = call.attempt
        if attempt is None or attempt.verdict is not None:
            return
        attempt.verdict = "succeeded"
        latency_ms = (time.monotonic() - attempt.started) * 1000
        candidate = attempt.candidate
        if candidate.own_key is not None:
            self._key_health.succeeded(candidate, latency_ms)
            return
        left = answers.requests_left(response)
        self._health.succeeded(candidate.provider, candidate.deployment, latency_ms, left)

    def measured(self, call: Call, output_tokens: int) -> None:
        """The latest attempt's answer is whole, and so long."""
        attempt = call.attempt
        if attempt is None or attempt.candidate.own_key is not None or not output_tokens:
            return
        took_s = time.monotonic() - (call.first_token or attempt.started)
        if took_s > 0:
            self._health.measured(attempt.candidate.provider, attempt.candidate.deployment, output_tokens / took_s)

    def failed(self, call: Call, error: Exception) -> None:
        """The latest attempt failed, before its first output or after it."""
        if (attempt := call.attempt) is not None and not attempt.failed:
            call.failure = error
            self._fail(call, attempt, error)

    def ended(self, call: Call) -> None:
        """The call is over; an attempt that nobody has judged says nothing of its provider."""
        attempt = call.attempt
        if attempt is None or attempt.verdict is not None:
            return
        attempt.verdict = "abandoned"
        if attempt.candidate.own_key is not None:
            self._key_health.abandoned(attempt.candidate)
        else:
            self._health.abandoned(attempt.candidate.provider, attempt.candidate.deployment)

    def _fail(self, call: Call, attempt: Attempt, error: Exception) -> None:
        attempt.failed = True
        if attempt.verdict == "failed":
            return
        attempt.verdict = "failed"
        candidate = attempt.candidate
        if candidate.own_key is not None:
            self._key_health.failed(candidate, error, attempt.started)
            self._on_key_fault(candidate.own_key, faults.classify(error))
            return
        told: Exception | Fault = error
        if _may_be_the_clients(call, candidate) and faults.classify(error) is Fault.MODEL_GONE:
            told = Fault.BAD_REQUEST
        self._health.failed(candidate.provider, candidate.deployment, told, attempt.started)


def _may_be_the_clients(call: Call, candidate: Candidate) -> bool:
    """Whether a 404 may mean what the client named: a model through a wildcard, or something stored at the provider."""
    return candidate.by_pattern or bool(call.demand.unbounded)
