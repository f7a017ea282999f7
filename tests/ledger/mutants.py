"""The ledger with one rule broken, as replacements in its text; the tests' worth is that each of these is found."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SQL = "sql/functions.sql"
LEDGER = "uc_litellm_plugin/ledger.py"
OUTBOX = "uc_litellm_plugin/outbox.py"


class Rotten(Exception):
    """The code has changed, and what the mutant replaces is no longer there once."""


@dataclass(frozen=True)
class Mutant:
    """Broken code.

    Attributes
    ----------
    breaks
        The rule that does not hold in it.
    edits
        What is replaced, which must be there exactly once, and by what.
    """

    name: str
    breaks: str
    file: str
    edits: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """The broken file."""
        text = (ROOT / self.file).read_text("utf-8")
        for old, new in self.edits:
            if (count := text.count(old)) != 1:
                raise Rotten(f"{self.name} ({self.breaks}) replaces in {self.file} what is there {count} times:\n{old}")
            text = text.replace(old, new)
        return text

    def package_in(self, directory: Path) -> Path:
        """A copy of the package in this directory, broken if it is not the SQL that is."""
        copy = package_in(directory)
        if self.file != SQL:
            (copy / self.file).write_text(self.text(), "utf-8")
        return copy


def package_in(directory: Path) -> Path:
    """A directory from which Python imports a copy of the package, with what ships beside it."""
    for name in ("uc_litellm_plugin", "sql", "config"):
        shutil.copytree(ROOT / name, directory / name)
    return directory


_CHARGED_AGAIN = """
        WHEN p_action = 'settle' AND p_charged <> p_charge THEN 'conflict'
        WHEN p_action = 'settle' AND p_charged IS NOT NULL THEN 'duplicate'"""
_LOCK_ONE = "SELECT * INTO account FROM user_credits WHERE user_id = p_user_id FOR UPDATE;"
_LOCK_BATCH = """
    ORDER BY user_id FOR UPDATE;
    FOR run IN"""
_OWED = "THEN charge ELSE 0 END AS owed"
_NOT_OPEN = "WHEN NOT is_open OR p_charged IS NOT NULL THEN 'duplicate'"
_ENDED = """s WHERE s.outcome IN ('settled', 'released', 'expired')
    ));"""
_BY_PAYMENT = "AND transaction_type = p_transaction_type;"
_BY_KEY = "WHERE user_id = p_user_id AND idempotency_key = p_idempotency_key;"
_KEYS = "changed.credits_debt, changed.version, p_idempotency_key, p_payment_method, p_stripe_transaction_id,"
_DUE = "FROM credit_holds AS h WHERE h.expires_at < clock_timestamp() ORDER BY h.expires_at LIMIT p_limit"
_STILL_DUE = "h.user_id = ANY (locked) AND h.expires_at < clock_timestamp()"
_HELD_AGAIN = """
        WHERE t.hold_id = p_hold_id AND t.transaction_type = 'hold';
    ELSE"""
_ONCE = """
    PERFORM lock_account(p_user_id);
    SELECT * INTO earlier FROM idempotency_keys"""
_BATCH = """
    run jsonb;
BEGIN"""
_EXTEND = """
    RETURN QUERY
    UPDATE credit_holds AS h SET expires_at = clock_timestamp() + p_ttl"""
_ROOM = "account.monthly_cap - account.spent_this_month - account.credits_held;"
_MONTH = "CASE WHEN a.last_reset < this_month THEN 0 ELSE a.spent_this_month END"
_REPLACED = "WHERE log.metadata ->> 'ended_by' = 'release' AND NOT excluded.metadata ? 'ended_by';"
_FSYNC = """
            self._file.flush()
            os.fsync(self._file.fileno())"""
_READ = """
            records = await asyncio.to_thread(segment.records)"""
_CRC = ' or checksum != b"%08x" % zlib.crc32(body)'
_LOCK_SEGMENT = """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"""

# M1 to M7, M9, M11 and M12 bear the numbers they have wherever ledgers of this kind are compared.
MUTANTS = (
    Mutant("M1", "a settlement is charged once", SQL, ((_CHARGED_AGAIN, ""),)),
    Mutant("M2", "a hold reads under the account's lock", SQL, ((_LOCK_ONE, _LOCK_ONE.replace(" FOR UPDATE", "")),)),
    Mutant("M3", "a settlement locks its accounts", SQL, ((_LOCK_BATCH, _LOCK_BATCH.replace(" FOR UPDATE", "")),)),
    Mutant("M4", "what PostgreSQL did not take goes to the outbox", LEDGER, (
        ("await asyncio.to_thread(self._outbox.append, records)", "pass"),
    )),
    Mutant("M5", "what was not covered becomes debt", SQL, (
        (_OWED, """THEN least(charge, greatest(net + CASE WHEN outcome = 'settled' THEN held ELSE 0 END, 0))
                    ELSE 0 END AS owed"""),
    )),
    Mutant("M6", "the sweeper leaves ended holds alone", SQL, (
        (_NOT_OPEN, "WHEN p_action = 'release' AND (NOT is_open OR p_charged IS NOT NULL) THEN 'duplicate'"),
        (_ENDED, _ENDED.replace("'settled', ", "")),
    )),
    Mutant("M7", "a late settlement is charged", SQL, (
        ("AND NOT is_open THEN 'late_settled'", "AND NOT is_open THEN 'duplicate'"),
    )),
    Mutant("M8", "the charge is charged, not the hold", SQL, (
        (_OWED, "THEN coalesce(held, charge) ELSE 0 END AS owed"),
    )),
    Mutant("M9", "an addition with a key is made once", SQL, (
        (_BY_PAYMENT, _BY_PAYMENT.replace(";", " AND false;")),
        (_BY_KEY, _BY_KEY.replace(";", " AND false;")),
        (_KEYS, _KEYS.replace("p_idempotency_key", "NULL").replace("p_stripe_transaction_id", "NULL")),
    )),
    Mutant("M10", "the sweeper sees what was extended", SQL, (
        (_DUE, """FROM credit_holds AS h JOIN credit_transactions AS t ON t.hold_id = h.hold_id
        WHERE t.expires_at < clock_timestamp() ORDER BY t.expires_at LIMIT p_limit"""),
        (_STILL_DUE, "h.user_id = ANY (locked)"),
    )),
    Mutant("M11", "a hold that is sent again holds nothing more", SQL, ((_HELD_AGAIN, """
        WHERE t.hold_id = p_hold_id AND t.transaction_type = 'hold';
        account.credits_held := account.credits_held + held;
        PERFORM save_account(account);
    ELSE"""),)),
    Mutant("M12", "a settlement is flushed before it is acknowledged", SQL, (
        (_BATCH, f"{_BATCH}\n    PERFORM set_config('synchronous_commit', 'off', true);"),
    )),
    Mutant("M13", "a batch locks its accounts in one order", SQL, (
        (_LOCK_BATCH, _LOCK_BATCH.replace("user_id", "strpos(p_settlements::text, user_id)")),
    )),
    Mutant("M14", "the sweeper passes over busy accounts", SQL, (
        ("ORDER BY a.user_id FOR UPDATE SKIP LOCKED", "ORDER BY a.user_id FOR UPDATE"),
    )),
    Mutant("M15", "an ended hold is not extended", SQL, ((_EXTEND, f"""
    INSERT INTO credit_holds (hold_id, user_id, amount, expires_at)
    SELECT t.hold_id, t.user_id, t.held_delta, clock_timestamp() FROM credit_transactions AS t
    WHERE t.hold_id = ANY (p_hold_ids) AND t.transaction_type = 'hold'
    ON CONFLICT ON CONSTRAINT credit_holds_pkey DO NOTHING;{_EXTEND}"""),)),
    Mutant("M16", "the monthly cap counts what is held", SQL, ((_ROOM, _ROOM.replace(" - account.credits_held", "")),)),
    Mutant("M17", "a settlement in a new month begins its count", SQL, ((_MONTH, "a.spent_this_month"),)),
    Mutant("M18", "debt blocks new holds", SQL, (("        WHEN p_account.credits_debt > 0 THEN 'in_debt'\n", ""),)),
    Mutant("M19", "a late settlement takes over the usage row of a release", SQL, ((_REPLACED, "WHERE false;"),)),
    Mutant("M20", "a hold is ended by its own account only", SQL, (
        ("        WHEN NOT p_same_user THEN 'conflict'\n", ""),
    )),
    Mutant("M21", "each account of a batch has its own sum", SQL, (
        ("WINDOW so_far AS (PARTITION BY user_id ORDER BY position)", "WINDOW so_far AS (ORDER BY position)"),
    )),
    Mutant("M22", "calls with one idempotency key wait for each other", SQL, (
        (_ONCE, "\n    SELECT * INTO earlier FROM idempotency_keys"),
    )),
    Mutant("M23", "a record counts when it is on the disk", OUTBOX, ((_FSYNC, "\n            self._file.flush()"),)),
    Mutant("M24", "a segment stays until it is settled", LEDGER, (
        (_READ, f"{_READ}\n            await asyncio.to_thread(segment.delete)"),
    )),
    Mutant("M25", "a record that does not match its CRC is not settled", OUTBOX, ((_CRC, ""),)),
    Mutant("M26", "a living process keeps its segments", OUTBOX, ((_LOCK_SEGMENT, "\n        pass"),)),
    Mutant("M27", "a bad usage row stops no charge", LEDGER, (
        ("return [await self._settle_bare(records[0], error)]", "return [Outcome(Decimal(0), None)]"),
    )),
    Mutant("M28", "a hold that arrives after its release is none", SQL, (
        ("p_charged IS NULL THEN 'released'", "p_charged IS NULL THEN 'duplicate'"),
    )),
)  # fmt: skip
