"""What one proxy worker runs beside its requests: the database, the ledger's beats, the outbox, the caches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable

from . import changes, heap, levels, migrations, vault
from .accounts import Accounts
from .call import Call, Caller
from .database import Database
from .errors import DatabaseError, DatabaseUnavailable, LedgerUnavailable, SettingsError, UnknownSealingKey
from .faults import Fault
from .health import Health
from .ledger import Ledger
from .levels import LevelFile
from .outbox import Outbox
from .patience import Patience
from .provider_key import ProviderKey
from .provider_keys import ProviderKeys, is_entitled
from .settings import Settings
from .vault import Secret, Vault

logger = logging.getLogger(__name__)

_HEALTH_EVERY_S = 1.0
_OUTBOX_EVERY_S = 1.0
_CONNECTIONS = 2
# Settlements end within two tries at PostgreSQL and one fsync; this is for a disk that hangs.
_LAST_WORDS_S = 10.0
_ONCE_MORE_S = 0.5


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
        self.levels = LevelFile(settings, self.database)
        self.health = Health(self.database, settings.health)
        byok = settings.byok.enabled and settings.sealing_keys
        self._vault = Vault(settings.sealing_keys) if byok else None
        self._provider_keys = ProviderKeys(self.database, self._vault, settings.byok) if self._vault else None
        # Weak, so that a call nobody holds any more is not extended for ever: its lease lapses.
        self.calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._starting: asyncio.Task[None] | None = None
        self._migrated = False
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: set[asyncio.Task[None]] = set()

    def prepare(self) -> None:
        """Bring the schema up to date before the proxy takes requests; blocks.

        An unreachable PostgreSQL is not fatal: calls are refused until it is there.

        Raises
        ------
        DatabaseError, SettingsError
            The schema and this code do not fit, or provider keys are stored and no sealing key is set; the proxy must
            not start.
        """
        failure: list[DatabaseError | SettingsError] = []
        thread = threading.Thread(target=self._migrate, args=(failure,), name="uc-migrate")
        thread.start()
        thread.join()
        if failure and not isinstance(failure[0], DatabaseUnavailable):
            raise failure[0]

    async def own_keys(self, caller: Caller) -> tuple[ProviderKey, ...]:
        """The active provider keys of a caller; none where own keys are off or not part of the caller's tier.

        Raises
        ------
        DatabaseUnavailable
            They are not cached and PostgreSQL does not answer.
        """
        rules = self.settings.byok
        if not rules.enabled or not is_entitled(caller.tier, rules):
            return ()
        return await self.accounts.provider_keys(caller.user_id)

    def open_key(self, key: ProviderKey) -> Secret:
        """A provider key for one attempt.

        Raises
        ------
        VaultError
            It does not open with the sealing keys of this process.
        """
        if self._provider_keys is None:
            raise UnknownSealingKey(key.sealed.key_id)
        return self._provider_keys.open(key)

    def note_key_fault(self, key: ProviderKey, fault: Fault) -> None:
        """Note in a key's row, soon, that an attempt with it failed."""
        if self._provider_keys is not None:
            task = asyncio.create_task(self._provider_keys.note_error(key, fault.value))
            self._notes.add(task)
            task.add_done_callback(self._noted)

    def _noted(self, task: asyncio.Task[None]) -> None:
        self._notes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a fault of a provider key could not be noted: %s", error)

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
            await Patience(self.settings.database.timeout_s).wait_for(asyncio.shield(self._starting))
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
        await _end(self._tasks)
        self._tasks = []
        await self.database.close()

    def _migrate(self, failure: list[DatabaseError | SettingsError]) -> None:
        # In a thread with a loop of its own: LiteLLM imports callbacks inside its running loop, which cannot wait.
        try:
            applied = asyncio.run(self._make_ready())
        except (DatabaseError, SettingsError) as error:
            logger.critical("the database is not ready: %s", error)
            failure.append(error)
        else:
            self._migrated = True
            logger.info("database schema is up to date; applied now: %s", ", ".join(applied) or "nothing")

    async def _make_ready(self) -> list[str]:
        applied = await migrations.migrate(self.settings)
        async with Database(self.settings) as database:
            await vault.check_at_start(database, self.settings.sealing_keys, enabled=self.settings.byok.enabled)
        return applied

    async def _start(self) -> None:
        if not self._migrated:
            await migrations.migrate(self.settings)
            self._migrated = True
        await self.database.open()
        await self._connect()
        await self.ledger.check_outbox()
        await self.levels.apply()
        holds, usage = self.settings.holds, self.settings.usage
        listening = changes.listen(
            self.settings,
            on_payload=self._changed,
            on_ready=self.accounts.heard,
            on_lost=self.accounts.deaf,
        )
        self._tasks = [
            asyncio.create_task(listening),
            self._beat(levels.LOOK_EVERY_S, self.levels.refresh),
            self._beat(holds.extend_every_s, self._extend),
            self._beat(holds.sweep_every_s, self.ledger.expire),
            self._beat(_OUTBOX_EVERY_S, self.ledger.flush),
            self._beat(_OUTBOX_EVERY_S, self.ledger.check_outbox),
            self._beat(_HEALTH_EVERY_S, self.health.flush),
            self._beat(usage.summary_every_s, self._refresh_summary),
        ]
        if self.settings.process.collects_between_steps:
            self._tasks.append(asyncio.create_task(heap.collect_between_steps(self._is_idle)))
        if self.settings.process.freeze_after_start:
            logger.info("%d objects are left out of garbage collections", heap.freeze())

    def _changed(self, payload: str) -> None:
        if not self.health.heard(payload):
            self.accounts.changed(payload)

    async def _connect(self) -> None:
        """Have connections at hand before the first calls come, which LiteLLM answers slowly enough."""
        try:
            await asyncio.gather(*(self.database.execute("SELECT", idempotent=True) for _ in range(_CONNECTIONS)))
        except DatabaseUnavailable as error:
            logger.warning("PostgreSQL cannot be reached yet: %s", error)

    def _is_idle(self) -> bool:
        return all(call.ending is not None for call in self.calls)

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


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they are done: `asyncio.wait_for` may swallow a cancellation before 3.12 (bpo-37658)."""
    going_on = set(tasks)
    while going_on:
        for task in going_on:
            task.cancel()
        _, going_on = await asyncio.wait(going_on, timeout=_ONCE_MORE_S)
