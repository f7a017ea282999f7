"""What one proxy worker runs beside its requests: the database, the ledger's beats, the outbox, the caches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable

from . import changes, migrations
from .accounts import Accounts
from .call import Call
from .database import Database
from .errors import DatabaseError, DatabaseUnavailable, LedgerUnavailable
from .health import Health
from .ledger import Ledger
from .outbox import Outbox
from .settings import Settings

logger = logging.getLogger(__name__)

_HEALTH_EVERY_S = 1.0
_OUTBOX_EVERY_S = 1.0
# Settlements end within two tries at PostgreSQL and one fsync; this is for a disk that hangs.
_LAST_WORDS_S = 10.0


class Worker:
    """One per process.

    Parameters
    ----------
    settings
        Of the process.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.outbox = Outbox(settings.state_dir / "outbox", settings.outbox.most_mb * 1_000_000)
        self.ledger = Ledger(self.database, self.outbox, settings.holds.lease_s)
        self.accounts = Accounts(self.database)
        self.health = Health(self.database)
        # Weak, so that a call nobody holds any more is not extended for ever: its lease lapses.
        self.calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._starting: asyncio.Task[None] | None = None
        self._migrated = False
        self._tasks: list[asyncio.Task[None]] = []

    def prepare(self) -> None:
        """Bring the schema up to date before the proxy takes requests; blocks.

        An unreachable PostgreSQL is not fatal: calls are refused until it is there.

        Raises
        ------
        DatabaseError
            The schema and this code do not fit; the proxy must not start.
        """
        failure: list[DatabaseError] = []
        thread = threading.Thread(target=self._migrate, args=(failure,), name="uc-migrate")
        thread.start()
        thread.join()
        if failure and not isinstance(failure[0], DatabaseUnavailable):
            raise failure[0]

    async def ready(self) -> None:
        """Open the database and start the beats, once.

        Raises
        ------
        LedgerUnavailable
            PostgreSQL has not been reached since the start.
        """
        if self._tasks:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait_for(asyncio.shield(self._starting), self.settings.database.timeout_s)
        except (DatabaseError, asyncio.TimeoutError) as error:
            raise LedgerUnavailable("The credit ledger cannot be reached; please try again shortly.") from error

    async def stop(self) -> None:
        """Write down what was asked for, stop the beats, close the database."""
        endings = [call.ending for call in self.calls if call.ending is not None and not call.ending.done()]
        if endings:
            await asyncio.wait(endings, timeout=_LAST_WORDS_S)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ledger.drain(), _LAST_WORDS_S)
        self.ledger.confess()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.database.close()

    def _migrate(self, failure: list[DatabaseError]) -> None:
        # In a thread with a loop of its own: LiteLLM imports callbacks inside its running loop, which cannot wait.
        try:
            applied = asyncio.run(migrations.migrate(self.settings))
        except DatabaseError as error:
            logger.critical("the database is not ready: %s", error)
            failure.append(error)
        else:
            self._migrated = True
            logger.info("database schema is up to date; applied now: %s", ", ".join(applied) or "nothing")

    async def _start(self) -> None:
        if not self._migrated:
            await migrations.migrate(self.settings)
            self._migrated = True
        await self.database.open()
        await self.ledger.check_outbox()
        holds, usage = self.settings.holds, self.settings.usage
        listening = changes.listen(
            self.settings,
            on_payload=self.accounts.changed,
            on_ready=self.accounts.heard,
            on_lost=self.accounts.deaf,
        )
        self._tasks = [
            asyncio.create_task(listening),
            self._beat(holds.extend_every_s, self._extend),
            self._beat(holds.sweep_every_s, self.ledger.expire),
            self._beat(_OUTBOX_EVERY_S, self.ledger.flush),
            self._beat(_OUTBOX_EVERY_S, self.ledger.check_outbox),
            self._beat(_HEALTH_EVERY_S, self.health.flush),
            self._beat(usage.summary_every_s, self._refresh_summary),
        ]

    async def _extend(self) -> None:
        live = [call.id for call in self.calls if call.ending is None]
        if live:
            await self.ledger.extend(live)

    async def _refresh_summary(self) -> None:
        await self.database.execute("SELECT refresh_usage_summary()", timeout=self.settings.usage.summary_every_s)

    def _beat(self, every_s: float, work: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(every_s)
                try:
                    await work()
                except DatabaseError as error:
                    logger.warning("%s: %s", work.__qualname__, error)
                except Exception:
                    # A beat that stops would let leases lapse and settlements wait: it must go on whatever happened.
                    logger.exception("%s failed", work.__qualname__)

        return asyncio.create_task(beat())
