"""Whether one deployment is healthy, degraded or down, as its attempts tell. Pure: the time is handed in.

Down is a circuit breaker: it opens after some faults in a row, at once for a fault that will not heal by itself, or
when another worker says so. After a pause one live call may try the deployment (half-open). A success closes it and
clears the window; when the try fails, the next pause is twice as long. A degraded one is tried in the same way, since
nobody may ask it otherwise; it takes as many successes in a row as make a verdict to clear its window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .faults import Fault
from .settings import HealthSettings
from .window import FEWEST_ENDS, Window

Status = Literal["healthy", "degraded", "down"]

# A probe that has not reported by then is taken for lost (its client left), and another call may try. Seconds.
PROBE_LEASE_S = 5.0
# The same, when an attempt was left meanwhile. Seconds.
PROBE_LEFT_S = 1.0
# The longest pause between probes. Where a probe costs its caller next to nothing (a refused connection, a 5xx) it is
# shorter, so that the deployment is back within ten seconds of its recovery however long it was gone. Seconds.
PAUSE_MOST_S = 30.0
PAUSE_MOST_SUDDEN_S = 8.0
# A longer Retry-After is not believed: quotas are raised and bought; and none is no pause at all. Seconds.
REST_MOST_S = 300.0
REST_LEAST_S = 1.0

# The weight of the newest answer in the mean of speeds.
_NEWEST = 0.2

_NEVER = -math.inf


@dataclass(frozen=True)
class Standing:
    """How a deployment stands now.

    Attributes
    ----------
    status
        Down ones are tried last, degraded ones after the healthy.
    p95_ms
        95th percentile of the time to the first token over the window, None where too few were answered. Milliseconds.
    success_rate
        Over the window, 0 to 100; None where too few ended.
    load
        Attempts of this worker in flight, plus those it began within the window; to break ties.
    rate_limit_remaining
        What the provider last said was left, None when it has said nothing within the window.
    probe
        It is down or degraded, and the next call may try it as if it were not.
    tokens_per_second
        Output of the latest answers, a running mean; None where nothing was counted.
    """

    status: Status = "healthy"
    p95_ms: float | None = None
    success_rate: float | None = None
    load: int = 0
    rate_limit_remaining: int | None = None
    probe: bool = False
    tokens_per_second: float | None = None


class Breaker:
    """The attempts of one worker at one deployment. All times are monotonic seconds and never go back.

    Parameters
    ----------
    settings
        Window and thresholds.

    Attributes
    ----------
    is_down
        Whether the circuit is open.
    window
        What happened lately.
    """

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self.window = Window(settings.window_s)
        self.is_down = False
        self._in_flight = 0
        self._streak = 0
        self._is_own_finding = False
        self._pause_s = settings.probe_after_s
        self._probe_at = math.inf
        self._probing_since: float | None = None
        self._passed = 0
        self._rests_until = _NEVER
        self._remaining: int | None = None
        self._remaining_until = _NEVER
        self._healed_at = _NEVER
        self._tokens_per_second: float | None = None
        self._standing = Standing()
        self._holds_until = math.inf

    def begun(self, now: float) -> None:
        """An attempt begins."""
        self._holds_until = _NEVER
        self._in_flight += 1
        self.window.add_beginning(now)

    def succeeded(self, now: float, first_token_ms: float, rate_limit_remaining: int | None = None) -> None:
        """The first output of an attempt is here, which closes an open circuit and counts for a degraded one.

        Parameters
        ----------
        first_token_ms
            How long it took. Milliseconds.
        rate_limit_remaining
            What the provider said was left, None when it said nothing.
        """
        self._end_one()
        if self.is_down:
            self._close(now)
        self._streak = 0
        self.window.add_success(now, first_token_ms)
        if rate_limit_remaining is not None:
            self._remaining = rate_limit_remaining
            self._remaining_until = now + self._settings.window_s
        if rate_limit_remaining == 0:
            self._put_off(now, self._settings.probe_after_s)
        elif self._probing_since is not None:
            self._note_passed(now)

    def measured(self, tokens_per_second: float) -> None:
        """An answer was written at this speed; the newest ones weigh most."""
        known = self._tokens_per_second
        self._tokens_per_second = tokens_per_second if known is None else known + (tokens_per_second - known) * _NEWEST
        self._holds_until = _NEVER

    def failed(self, now: float, fault: Fault, retry_after_s: float | None = None, began: float | None = None) -> None:
        """An attempt failed.

        Parameters
        ----------
        fault
            What went wrong; one that does not count is no verdict.
        retry_after_s
            The provider's `Retry-After`, None where it sent none. Seconds.
        began
            When the attempt began, None where nobody knows. One from before the last recovery says nothing any more,
            and one from before the probe is not the probe's verdict.
        """
        self._end_one()
        if not fault.counts and self._is_probes(began):
            # No verdict: the next call may try, or whoever sends bad requests would keep the provider out.
            self._probing_since, self._probe_at = None, now
        if not fault.counts or (began is not None and began < self._healed_at):
            return
        self._streak += 1
        self._passed = 0
        self.window.add_failure(now)
        rest_s = math.inf
        if fault is Fault.RATE_LIMITED and retry_after_s is not None:
            rest_s = min(max(retry_after_s, REST_LEAST_S), REST_MOST_S)
            self._rests_until = max(self._rests_until, now + rest_s)
        if not self.is_down and (fault.is_lasting or self._streak >= self._settings.down_after):
            self._open(now, min(self._settings.probe_after_s, rest_s))
        elif self._is_probes(began):
            self._note_probe_failed(now, fault, rest_s)
        elif not self.is_down and not now < self._probe_at < math.inf:
            self._pause_s = self._settings.probe_after_s
            self._probe_at = now + self._pause_s
        self._is_own_finding = self.is_down

    def abandoned(self, now: float) -> None:
        """An attempt ended without a verdict: the client left, or we refused. It may have been the one that probes."""
        self._end_one()
        if self._probing_since is not None:
            self._probe_at = min(self._probe_at, now + PROBE_LEFT_S)

    def standing(self, now: float) -> Standing:
        """How the deployment stands; kept until something happens or time changes it, so asking is cheap."""
        return self._standing if now < self._holds_until else self._look(now)

    def claim_probe(self, now: float) -> bool:
        """Take the one probe of this half-open period; True once per period."""
        if not self.standing(now).probe:
            return False
        self._holds_until = _NEVER
        self._probing_since = now
        self._probe_at = now + PROBE_LEASE_S
        return True

    def reported_down(self, now: float) -> None:
        """Another worker found it down. That one probes first: here, the first pause is twice as long."""
        if not self.is_down:
            self._open(now, 2 * self._settings.probe_after_s)
            self._is_own_finding = False

    def reported_up(self, now: float) -> None:
        """Another worker has seen it recover: what was only heard is forgotten, what was found here is probed at once.

        The two may differ for good, when only this host cannot reach the provider.
        """
        if self.is_down and not self._is_own_finding:
            self._close(now)
        elif self.is_down and self._probing_since is None:
            self._holds_until = _NEVER
            self._probe_at = min(self._probe_at, now)

    def _open(self, now: float, pause_s: float) -> None:
        self._holds_until = _NEVER
        self.is_down = True
        self._pause_s = self._settings.probe_after_s
        self._put_off(now, pause_s)

    def _close(self, now: float) -> None:
        self._holds_until = _NEVER
        self.is_down = False
        self._healed_at = now
        self._streak = 0
        self._rests_until = self._remaining_until = _NEVER
        self._put_off(now, math.inf)
        self.window.clear()

    def _put_off(self, now: float, pause_s: float) -> None:
        self._passed = 0
        self._probing_since = None
        self._probe_at = now + pause_s

    def _is_probes(self, began: float | None) -> bool:
        """Whether an attempt that began then is the one that probes."""
        return self._probing_since is not None and (began is None or began >= self._probing_since)

    def _note_probe_failed(self, now: float, fault: Fault, rest_s: float) -> None:
        most_s = PAUSE_MOST_SUDDEN_S if fault.is_sudden else PAUSE_MOST_S
        self._pause_s = max(self._settings.probe_after_s, min(2 * self._pause_s, most_s))
        self._put_off(now, min(self._pause_s, rest_s))

    def _note_passed(self, now: float) -> None:
        """A degraded one was probed well: the next call may try it, too, until it has done so often enough."""
        self._passed += 1
        self._probing_since = None
        self._probe_at = now
        if self._passed >= FEWEST_ENDS:
            self._close(now)

    def _end_one(self) -> None:
        self._holds_until = _NEVER
        self._in_flight = max(0, self._in_flight - 1)

    def _look(self, now: float) -> Standing:
        self.window.move_to(now)
        remaining = self._remaining if now < self._remaining_until else None
        self._standing = Standing(
            status=self._status(now, remaining),
            p95_ms=self.window.p95_ms,
            success_rate=self.window.success_rate,
            load=self._in_flight + self.window.begun,
            rate_limit_remaining=remaining,
            probe=self._offers_probe(now, remaining),
            tokens_per_second=self._tokens_per_second,
        )
        moments = (self._rests_until, self._remaining_until, self._probe_at)
        self._holds_until = min((each for each in moments if each > now), default=math.inf)
        self._holds_until = min(self._holds_until, self.window.changes_at)
        return self._standing

    def _offers_probe(self, now: float, remaining: int | None) -> bool:
        if now < self._probe_at or self._status(now, remaining) == "healthy":
            return False
        return self.is_down or now >= self._rests_until

    def _status(self, now: float, remaining: int | None) -> Status:
        if self.is_down:
            return "down"
        rate = self.window.success_rate
        failing = rate is not None and rate < self._settings.degraded_below
        return "degraded" if failing or remaining == 0 or now < self._rests_until else "healthy"
