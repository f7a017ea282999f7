"""How providers fare: what this worker's attempts tell, shared with the other workers through `provider_health`.

Health is advice and fails open: nothing here raises into a request, and without a database each worker goes by what it
sees itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from . import faults, metrics
from .breaker import Breaker, Standing, Status
from .database import Database
from .deltas import Delta, Row
from .errors import DatabaseError, DatabaseUnavailable
from .faults import Fault
from .settings import HealthSettings

logger = logging.getLogger(__name__)

_TABLE = "provider_health"
_RECORD = "SELECT * FROM record_health($1, $2)"
# A deployment that nothing was heard of for so long is forgotten; its row stays.
_FORGET_AFTER_S = 3600.0
_MOST_DEPLOYMENTS = 10_000
_UNKNOWN = Standing()
_LEVELS: Mapping[Status, int] = {"healthy": 0, "degraded": 1, "down": 2}


@dataclass
class _Deployment:
    breaker: Breaker
    delta: Delta = field(default_factory=Delta)
    used: float = 0.0
    # The status last written, and the moment of the newest one that was read, by the database's clock.
    written: Status = "healthy"
    shown: Status | None = None
    read_since: float = 0.0


class Health:
    """The deployments of one worker.

    Parameters
    ----------
    database
        An open one, or one that will be.
    settings
        Window and thresholds.
    clock
        Monotonic seconds.
    """

    def __init__(
        self, database: Database, settings: HealthSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._worker = uuid.uuid4().hex
        self._deployments: dict[tuple[str, str], _Deployment] = {}
        self._writing = asyncio.Lock()
        self._hurrying: asyncio.Task[None] | None = None
        self._is_urgent = False
        self._is_cut_off = False

    def begun(self, provider: str, deployment: str) -> None:
        """An attempt begins."""
        now = self._clock()
        self._known(provider, deployment, now).breaker.begun(now)

    def succeeded(
        self, provider: str, deployment: str, latency_ms: float, rate_limit_remaining: int | None = None
    ) -> None:
        """The first output of an attempt is here.

        Parameters
        ----------
        latency_ms
            The time to it. Milliseconds.
        rate_limit_remaining
            What the provider said was left, None when it said nothing.
        """
        now = self._clock()
        known = self._known(provider, deployment, now)
        metrics.ATTEMPTS.labels(provider, "success").inc()
        known.delta.successes += 1
        known.delta.streak = 0
        was_down = known.breaker.is_down
        known.breaker.succeeded(now, latency_ms, rate_limit_remaining)
        self._note_turn(known, was_down)

    def measured(self, provider: str, deployment: str, tokens_per_second: float) -> None:
        """An answer was written at this speed."""
        self._known(provider, deployment, self._clock()).breaker.measured(tokens_per_second)

    def failed(self, provider: str, deployment: str, error: Exception | Fault, began: float | None = None) -> None:
        """An attempt failed; whether that speaks against the provider is told by the error.

        Parameters
        ----------
        error
            As LiteLLM raised it, or what it means.
        began
            When the attempt began by the clock, None where nobody knows: one that began before the deployment
            recovered says nothing any more.
        """
        now = self._clock()
        known = self._known(provider, deployment, now)
        fault, retry_after_s = _read(error)
        metrics.ATTEMPTS.labels(provider, fault.value).inc()
        if fault.counts:
            known.delta.failures += 1
            known.delta.streak += 1
            known.delta.last_error = fault.value
        was_down = known.breaker.is_down
        known.breaker.failed(now, fault, retry_after_s, began)
        self._note_turn(known, was_down)

    def abandoned(self, provider: str, deployment: str) -> None:
        """An attempt ended without a verdict: the client left, we refused, or the fault is that of a user's own key."""
        now = self._clock()
        metrics.ATTEMPTS.labels(provider, "abandoned").inc()
        self._known(provider, deployment, now).breaker.abandoned(now)

    def standing(self, provider: str, deployment: str) -> Standing:
        """How a deployment stands, as far as this worker knows; healthy when it knows nothing."""
        known = self._deployments.get((provider, deployment))
        return _UNKNOWN if known is None else known.breaker.standing(self._clock())

    def claim_probe(self, provider: str, deployment: str) -> bool:
        """Take the one probe of a deployment that is down; True once per period."""
        known = self._deployments.get((provider, deployment))
        return known is not None and known.breaker.claim_probe(self._clock())

    async def flush(self) -> None:
        """Write what has happened and read what other workers saw, in one round trip.

        What cannot be written is kept, as counts: a few numbers per deployment.
        """
        async with self._writing:
            self._forget_idle()
            self._show()
            taken = self._take()
            try:
                found = await self._database.fetch(_RECORD, [row for _, row in taken.values()], self._worker)
            except DatabaseError as error:
                # What PostgreSQL refuses, it would refuse again.
                if isinstance(error, DatabaseUnavailable):
                    self._put_back(taken, error.in_doubt)
                self._note_silence(error)
                return
            self._is_cut_off = False
            for row in found:
                since = row["status_since"].timestamp()
                self._learn(row["provider"], row["deployment"], row["status"], since, row["reported_by"])

    def heard(self, payload: str) -> bool:
        """A notification of the database; False where it is none about health, and somebody else's business.

        Parameters
        ----------
        payload
            JSON as `announce_health` of sql/functions.sql sends it: a deployment went down or came back.
        """
        try:
            news = json.loads(payload)
            if news["table"] != _TABLE:
                return False
            self._learn(news["provider"], news["deployment"], news["status"], float(news["since"]), news["by"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _known(self, provider: str, deployment: str, now: float) -> _Deployment:
        known = self._deployments.get((provider, deployment))
        if known is None:
            known = _Deployment(Breaker(self._settings))
            if len(self._deployments) < _MOST_DEPLOYMENTS:
                self._deployments[(provider, deployment)] = known
        known.used = now
        return known

    def _learn(self, provider: str, deployment: str, status: str, since: float, worker: str | None) -> None:
        """Take over whether a deployment is down, once per report and not from ourselves."""
        now = self._clock()
        known = self._deployments.get((provider, deployment))
        if known is None:
            if status != "down":
                return
            known = self._known(provider, deployment, now)
        if since <= known.read_since:
            return
        known.read_since = since
        if worker == self._worker:
            return
        if status == "down":
            known.breaker.reported_down(now)
        else:
            known.breaker.reported_up(now)

    def _note_turn(self, known: _Deployment, was_down: bool) -> None:
        if known.breaker.is_down == was_down:
            return
        known.delta.turned = True
        self._is_urgent = True
        if self._hurrying is None or self._hurrying.done():
            try:
                self._hurrying = asyncio.get_running_loop().create_task(self._hurry())
            except RuntimeError:  # No loop runs here: the next beat writes it.
                self._hurrying = None

    async def _hurry(self) -> None:
        while self._is_urgent:
            self._is_urgent = False
            await self.flush()

    def _take(self) -> dict[tuple[str, str], tuple[Delta, Row]]:
        """The deployments that there is news of, with their deltas, which begin anew, and rows."""
        taken = {}
        for key, known in self._deployments.items():
            standing = known.breaker.standing(self._clock())
            if known.delta != Delta() or standing.status != known.written:
                taken[key] = known.delta, known.delta.row(*key, standing, known.breaker.window.mean_ms)
                known.delta, known.written = Delta(), standing.status
        return taken

    def _put_back(self, taken: Mapping[tuple[str, str], tuple[Delta, Row]], in_doubt: bool) -> None:
        """Keep what was not written; of what may have been, only what does not count twice."""
        for key, (delta, _) in taken.items():
            if (known := self._deployments.get(key)) is not None:
                kept = Delta(turned=delta.turned) if in_doubt else delta
                kept.add(known.delta)
                known.delta, known.written = kept, "healthy"

    def _show(self) -> None:
        for (provider, deployment), known in self._deployments.items():
            status = known.breaker.standing(self._clock()).status
            if status != known.shown:
                known.shown = status
                metrics.PROVIDER_STATUS.labels(provider, deployment).set(_LEVELS[status])

    def _note_silence(self, error: DatabaseError) -> None:
        if not self._is_cut_off:
            logger.warning("health is not shared with other workers for now: %s", error)
        self._is_cut_off = True

    def _forget_idle(self) -> None:
        now = self._clock()
        for key in [key for key, known in self._deployments.items() if known.used < now - _FORGET_AFTER_S]:
            if self._deployments.pop(key).shown is not None:
                metrics.PROVIDER_STATUS.remove(*key)


def _read(error: Exception | Fault) -> tuple[Fault, float | None]:
    if isinstance(error, Fault):
        return error, None
    try:
        return faults.classify(error), faults.retry_after_s(error)
    except Exception:
        # An exception of any provider's may fail to tell its own text; that must not reach the request.
        logger.warning("an error of class %s could not be read", type(error).__name__)
        return Fault.UNREADABLE, None
