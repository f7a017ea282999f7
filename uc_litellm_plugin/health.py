"""What attempts tell of a provider's health: counted in memory, written to `provider_health` as deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .database import Database

_RECORD = "SELECT record_health($1)"
_MOST_LATENCIES = 500


@dataclass
class _Delta:
    """What happened at one deployment since the last write."""

    successes: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    last_error: str | None = None

    def as_row(self, provider: str, deployment: str) -> Mapping[str, Any]:
        ordered = sorted(self.latencies_ms)
        return {
            "provider": provider,
            "deployment": deployment,
            "successes": self.successes,
            "failures": self.failures,
            "failures_since_success": self.consecutive_failures,
            "avg_latency_ms": sum(ordered) / len(ordered) if ordered else None,
            # Nearest rank: the smallest latency that at least 95 % of the attempts do not exceed.
            "p95_latency_ms": ordered[-(-len(ordered) * 95 // 100) - 1] if ordered else None,
            "last_error": self.last_error,
        }


class Health:
    """The attempts of one worker since the last write.

    Parameters
    ----------
    database
        An open one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._deltas: dict[tuple[str, str], _Delta] = {}

    def succeeded(self, provider: str, deployment: str, latency_ms: float) -> None:
        """An attempt was answered; the latency is to the first output."""
        delta = self._delta(provider, deployment)
        delta.successes += 1
        delta.consecutive_failures = 0
        if len(delta.latencies_ms) < _MOST_LATENCIES:
            delta.latencies_ms.append(latency_ms)

    def failed(self, provider: str, deployment: str, error: str) -> None:
        """An attempt failed at the provider; `error` is its class, never its text, which may echo a key."""
        delta = self._delta(provider, deployment)
        delta.failures += 1
        delta.consecutive_failures += 1
        delta.last_error = error

    async def flush(self) -> None:
        """Write what has happened; on failure it is dropped: health is advice, and fails open."""
        if not self._deltas:
            return
        deltas, self._deltas = self._deltas, {}
        rows = [delta.as_row(*key) for key, delta in sorted(deltas.items())]
        await self._database.execute(_RECORD, rows)

    def _delta(self, provider: str, deployment: str) -> _Delta:
        return self._deltas.setdefault((provider, deployment), _Delta())
