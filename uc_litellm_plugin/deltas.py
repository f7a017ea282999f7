"""What one worker saw of a deployment since its last write, as `record_health` of sql/functions.sql takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .breaker import Standing

Row = Mapping[str, Any]

_MOST_INTEGER = 2**31 - 1


@dataclass
class Delta:
    """Attempts at one deployment.

    Attributes
    ----------
    successes, failures
        How many were answered, and how many failed by the provider's fault.
    streak
        Failures since the last success.
    last_error
        What the last failure was: a word, never the error's text, which may repeat a key.
    turned
        Whether this worker itself found that the deployment went down, or came back.
    """

    successes: int = 0
    failures: int = 0
    streak: int = 0
    last_error: str | None = None
    turned: bool = False

    def add(self, later: Delta) -> None:
        """Take in what happened after this."""
        self.streak = later.streak if later.successes else self.streak + later.streak
        self.successes += later.successes
        self.failures += later.failures
        self.last_error = later.last_error or self.last_error
        self.turned = self.turned or later.turned

    def row(self, provider: str, deployment: str, standing: Standing, mean_ms: float | None) -> Row:
        """The row to write; latencies are those of the worker's window, in milliseconds."""
        remaining = standing.rate_limit_remaining
        return {
            "provider": provider,
            "deployment": deployment,
            "successes": self.successes,
            "failures": self.failures,
            "failures_since_success": self.streak,
            "avg_latency_ms": mean_ms,
            "p95_latency_ms": standing.p95_ms,
            "rate_limit_remaining": None if remaining is None else min(remaining, _MOST_INTEGER),
            "last_error": self.last_error,
            "status": standing.status,
            "turned": self.turned,
        }
