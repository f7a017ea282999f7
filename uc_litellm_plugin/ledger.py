"""Hold, settle, release, extend, expire: one SQL function each (`sql/functions.sql`), and never a lost settlement."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID

from . import metrics
from .call import Outcome
from .database import Database
from .errors import DatabaseError, DatabaseUnavailable, LedgerUnavailable
from .holds import Held, Once
from .outbox import Outbox, Record, Segment
from .threads import aside

logger = logging.getLogger(__name__)

_HOLD = "SELECT * FROM hold_credits($1, $2, $3, $4, make_interval(secs => $5), $6, $7)"
_HOLD_ONCE = """
SELECT * FROM hold_credits_once(
    $8, $9, make_interval(hours => $10), $1, $2, $3, $4, make_interval(secs => $5), $6, $7
)"""
_REHEARSE = "SELECT * FROM rehearse_hold($1, $2, $3, $4)"
_FORGET_KEYS = "SELECT forget_idempotency_keys()"
_SETTLE = "SELECT * FROM settle_credits($1)"
_EXTEND = "SELECT hold_id FROM extend_holds($1, make_interval(secs => $2))"
_EXPIRE = "SELECT hold_id, user_id, amount FROM expire_holds($1)"
_QUARANTINE = "INSERT INTO settlement_quarantine (hold_id, user_id, record, error) VALUES ($1::text::uuid, $2, $3, $4)"

_LARGEST_BATCH = 100
_STRANGE = ("conflict", "unknown_account", "invalid_amount")


class Ledger:
    """The ledger of one worker.

    Settlements that arrive while one is under way travel together in the next statement.

    Parameters
    ----------
    database
        An open one.
    outbox
        Takes what PostgreSQL does not.
    lease_s
        How long a hold lives unless extended. Seconds.
    """

    def __init__(self, database: Database, outbox: Outbox, lease_s: float) -> None:
        self._database = database
        self._outbox = outbox
        self._lease_s = lease_s
        self._waiting: list[tuple[Record, asyncio.Future[Outcome]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._stranded: list[Record] = []
        self._flushing = asyncio.Lock()
        self._outbox_fault: str | None = None

    async def hold(
        self,
        hold_id: UUID,
        user_id: str,
        amount: Decimal,
        least: Decimal,
        power_level: str,
        facts: dict[str, Any],
        once: Once | None = None,
    ) -> Held:
        """Hold `amount` credits, or what is available if that is at least `least`; with `once`, for one call per key.

        A hold whose answer is lost, or that nobody waits for any more, is released in the background.

        Raises
        ------
        LedgerUnavailable
            PostgreSQL or the outbox cannot do its part; nothing may be sent.
        """
        if self._stranded or self._outbox_fault:
            raise LedgerUnavailable("Settlements cannot be written down at the moment; please try again shortly.")
        try:
            held = (hold_id, user_id, amount, least, self._lease_s, power_level, facts)
            key = (once.key, once.body_hash, once.remember_h) if once else ()
            row = await self._database.fetchrow(_HOLD_ONCE if once else _HOLD, *held, *key, idempotent=True)
        except asyncio.CancelledError:
            self._abandon(hold_id, user_id)
            raise
        except DatabaseError as error:
            if isinstance(error, DatabaseUnavailable) and error.in_doubt:
                self._abandon(hold_id, user_id)
            logger.error("no hold for user %s: %s", user_id, error, extra={"action": "hold_failed"})
            raise LedgerUnavailable("The credit ledger cannot be reached; please try again shortly.") from error
        assert row is not None  # noqa: S101 - hold_credits answers with exactly one row
        metrics.HOLDS.labels(row["error"] or "held").inc()
        return Held.from_row(row)

    async def rehearse(self, user_id: str, amount: Decimal, least: Decimal, power_level: str) -> Held:
        """What `hold` would answer now; nothing is held.

        Raises
        ------
        DatabaseError
            PostgreSQL cannot say.
        """
        row = await self._database.fetchrow(_REHEARSE, user_id, amount, least, power_level, idempotent=True)
        assert row is not None  # noqa: S101 - rehearse_hold answers with exactly one row
        return Held.from_row(row)

    def settle(self, record: Record) -> asyncio.Future[Outcome]:
        """Charge or release a hold; what is returned is done when that is in PostgreSQL, or fsynced in the outbox.

        Safe to call twice with the same hold id. It is under way at once, and goes on when nobody waits for it.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return future

    def give_back(self, hold_id: UUID, user_id: str) -> asyncio.Future[Outcome]:
        """Release a hold for which nothing was asked of a provider, and of which no usage row tells; as `settle`."""
        return self.settle(
            {"hold_id": str(hold_id), "user_id": user_id, "action": "release", "charge": "0", "usage": None}
        )

    async def extend(self, hold_ids: Iterable[UUID]) -> set[UUID]:
        """Renew the leases of live calls; returns those that still were open."""
        rows = await self._database.fetch(_EXTEND, list(hold_ids), self._lease_s, idempotent=True)
        return {row["hold_id"] for row in rows}

    async def expire(self) -> int:
        """Free lapsed holds and forget lapsed keys, by the database's clock; returns how many holds."""
        rows = await self._database.fetch(_EXPIRE, _LARGEST_BATCH, idempotent=True)
        metrics.EXPIRED.inc(len(rows))
        for row in rows:
            logger.warning("hold %s of user %s lapsed: %s credits freed", *row, extra={"action": "hold_expired"})
        await self._database.execute(_FORGET_KEYS, idempotent=True)
        return len(rows)

    async def check_outbox(self) -> None:
        """Find out whether the outbox could take a settlement; while it could not, no call is held."""
        try:
            waiting = await aside(self._outbox.check)
        except OSError as error:
            if self._outbox_fault is None:
                logger.critical("new calls are refused: %s", error, extra={"action": "outbox_failed"})
            self._outbox_fault = str(error)
        else:
            self._outbox_fault = None
            metrics.OUTBOX_BYTES.set(waiting.size)
            metrics.OUTBOX_AGE.set(waiting.age_s)

    async def flush(self) -> int:
        """Settle what waits in the outbox, dead processes' segments included; returns how many records.

        Raises
        ------
        DatabaseUnavailable
            PostgreSQL is still away; nothing is lost.
        """
        async with self._flushing:
            if self._stranded:
                stranded, self._stranded = self._stranded, []
                await self._settle_or_keep(stranded)
                metrics.STRANDED.set(len(self._stranded))
            segments = await aside(lambda: list(self._outbox.claim()))
            done = 0
            try:
                while segments:
                    done += await self._flush_segment(segments.pop(0))
            finally:
                for segment in segments:
                    segment.release()
            return done

    async def _flush_segment(self, segment: Segment) -> int:
        try:
            records = await aside(segment.records)
            for start in range(0, len(records), _LARGEST_BATCH):
                await self._settle_all(records[start : start + _LARGEST_BATCH])
        except DatabaseUnavailable:
            segment.release()
            raise
        except (DatabaseError, OSError):
            segment.release()
            logger.critical("outbox segment %s cannot be settled", segment.path, exc_info=True)
            return 0
        await aside(segment.delete)
        return len(records)

    async def drain(self) -> None:
        """Wait until every settlement that was asked for is written."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    def confess(self) -> None:
        """Log what would be lost with this process, so that an operator can settle it by hand."""
        for record in self._stranded:
            logger.critical("settlement lost with this process: %s", json.dumps(record), extra={"action": "lost"})

    def _abandon(self, hold_id: UUID, user_id: str) -> None:
        """Release a hold of which nobody knows whether it is there; one that comes later finds itself released."""
        logger.warning("hold %s of user %s is in doubt and released", hold_id, user_id, extra={"action": "hold_lost"})
        metrics.HOLDS.labels("lost").inc()
        self.give_back(hold_id, user_id)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            outcomes = await self._settle_or_keep([record for record, _ in batch])
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)

    async def _settle_or_keep(self, records: list[Record]) -> list[Outcome]:
        try:
            return await self._settle_all(records)
        except asyncio.CancelledError:
            # The loop is ending: what is not written now is not written at all.
            self._outbox.append(records + [record for record, _ in self._waiting])
            raise
        except Exception as error:
            # Not only DatabaseUnavailable: whatever it was, an answer was delivered and its charge must not be lost.
            logger.error("%d settlement(s) go to the outbox: %s", len(records), error, extra={"action": "outbox"})
            await self._put_aside(records)
            return [Outcome(Decimal(record["charge"]), None) for record in records]

    async def _settle_all(self, records: list[Record]) -> list[Outcome]:
        try:
            rows = await self._database.fetch(_SETTLE, records, idempotent=True)
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            # One bad row must not stop the others' settlements.
            if len(records) == 1:
                return [await self._settle_bare(records[0], error)]
            return [outcome for record in records for outcome in await self._settle_all([record])]
        for record, row in zip(records, rows, strict=True):
            metrics.SETTLEMENTS.labels(row["outcome"]).inc()
            if _is_strange(record, row["outcome"]):
                await self._quarantine(record, row["outcome"])
        return [Outcome(row["charged"] or Decimal(0), row["credits_remaining"]) for row in rows]

    async def _settle_bare(self, record: Record, error: DatabaseError) -> Outcome:
        """Settle a record that PostgreSQL refuses, without its usage row, and keep the original for an operator."""
        await self._quarantine(record, str(error))
        bare = {**record, "usage": None if record["usage"] is None else {"metadata": {"quarantined": True}}}
        try:
            row = await self._database.fetchrow(_SETTLE, [bare], idempotent=True)
        except DatabaseUnavailable:
            raise
        except DatabaseError:
            row = None  # It is in quarantine whole; it must not stop the settlements behind it.
        if row is None:
            return Outcome(Decimal(record["charge"]), None)
        return Outcome(row["charged"] or Decimal(0), row["credits_remaining"])

    async def _quarantine(self, record: Record, why: str) -> None:
        logger.critical(
            "settlement of hold %s needs an operator: %s", record["hold_id"], why, extra={"action": "quarantine"}
        )
        metrics.QUARANTINED.inc()
        # JSON as text keeps what jsonb refuses (NUL, lone surrogates), as escapes.
        written = json.dumps(record)
        try:
            await self._database.execute(_QUARANTINE, record["hold_id"], record["user_id"], written, why)
        except DatabaseUnavailable:
            raise
        except DatabaseError:
            # Even its ids are refused: the text alone is not.
            await self._database.execute(_QUARANTINE, None, None, written, why.replace("\0", ""))

    async def _put_aside(self, records: list[Record]) -> None:
        try:
            await aside(self._outbox.append, records)
            metrics.OUTBOXED.inc(len(records))
        except Exception as error:
            # Whatever kept them from the disk, in memory they are still safer than nowhere.
            self._stranded += records
            metrics.STRANDED.set(len(self._stranded))
            logger.critical("the outbox cannot be written, %d settlement(s) are kept in memory and new calls are "
                            "refused: %s", len(self._stranded), error, extra={"action": "outbox_failed"})  # fmt: skip


def _is_strange(record: Record, outcome: str) -> bool:
    """Whether an operator must look at it; a release takes nothing from an account that was never opened."""
    return outcome in _STRANGE and (record["action"], outcome) != ("release", "unknown_account")
