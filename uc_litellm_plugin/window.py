"""What happened lately: attempts counted in buckets of time, and the times to first token they took."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

# The window moves on by one bucket at a time, so what it covers is up to a twelfth shorter than its length.
BUCKETS = 12
# Of each bucket, the newest so many latencies are kept: enough for a 95th percentile, and a bound on memory.
SAMPLES = 32
# Fewer say nothing: one slow or failed attempt must not send everybody elsewhere for as long as it is remembered.
FEWEST_SAMPLES = 3
FEWEST_ENDS = 5


@dataclass
class _Bucket:
    tick: int
    begun: int = 0
    successes: int = 0
    failures: int = 0
    samples: deque[float] = field(default_factory=deque)


class Window:
    """A sliding window with running totals: reading it costs nothing, whatever went through it.

    Parameters
    ----------
    length_s
        How far back it reaches. Seconds.

    Attributes
    ----------
    begun, successes, failures
        The totals, as of the last call that was given the time.
    """

    def __init__(self, length_s: float) -> None:
        self._width_s = length_s / BUCKETS
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.begun = self.successes = self.failures = 0
        self._buckets: deque[_Bucket] = deque()
        self._ordered: list[float] = []

    @property
    def changes_at(self) -> float:
        """When the oldest bucket will leave the window; monotonic seconds, infinity when it is empty."""
        return (self._buckets[0].tick + BUCKETS) * self._width_s if self._buckets else math.inf

    @property
    def p95_ms(self) -> float | None:
        """By nearest rank: the smallest latency that at least 95 % of the samples do not exceed. Milliseconds.

        None for fewer than `FEWEST_SAMPLES`.
        """
        ordered = self._ordered
        return ordered[-(-len(ordered) * 95 // 100) - 1] if len(ordered) >= FEWEST_SAMPLES else None

    @property
    def mean_ms(self) -> float | None:
        """The mean of the samples. Milliseconds."""
        return sum(self._ordered) / len(self._ordered) if self._ordered else None

    @property
    def success_rate(self) -> float | None:
        """0 to 100, None for fewer than `FEWEST_ENDS`."""
        ended = self.successes + self.failures
        return 100 * self.successes / ended if ended >= FEWEST_ENDS else None

    def add_beginning(self, now: float) -> None:
        """An attempt began."""
        self._newest(now).begun += 1
        self.begun += 1

    def add_success(self, now: float, latency_ms: float) -> None:
        """An attempt was answered."""
        bucket = self._newest(now)
        bucket.successes += 1
        self.successes += 1
        if len(bucket.samples) == SAMPLES:
            self._forget_sample(bucket.samples.popleft())
        bucket.samples.append(latency_ms)
        insort(self._ordered, latency_ms)

    def add_failure(self, now: float) -> None:
        """An attempt failed, and the provider is to blame."""
        self._newest(now).failures += 1
        self.failures += 1

    def move_to(self, now: float) -> None:
        """Drop what has become too old."""
        oldest = int(now / self._width_s) - BUCKETS
        while self._buckets and self._buckets[0].tick <= oldest:
            bucket = self._buckets.popleft()
            self.begun -= bucket.begun
            self.successes -= bucket.successes
            self.failures -= bucket.failures
            for sample in bucket.samples:
                self._forget_sample(sample)

    def _newest(self, now: float) -> _Bucket:
        tick = int(now / self._width_s)
        if not self._buckets or self._buckets[-1].tick < tick:
            self.move_to(now)
            self._buckets.append(_Bucket(tick))
        return self._buckets[-1]

    def _forget_sample(self, sample: float) -> None:
        del self._ordered[bisect_left(self._ordered, sample)]
