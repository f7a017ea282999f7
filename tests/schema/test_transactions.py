"""The ledger's rows: never changed, complete, and proven by the audit."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from tests.schema.ledger import Ledger, settlement


@pytest.mark.parametrize(
    "statement",
    ["UPDATE credit_transactions SET notes = 'x'", "DELETE FROM credit_transactions",
    "TRUNCATE credit_transactions CASCADE",
     "UPDATE credit_transactions SET amount = 1 WHERE false"],
)  # fmt: skip
async def test_append_only(ledger: Ledger, statement: str) -> None:
    """No row of the ledger is changed or removed, and the refusal names the way to correct a mistake."""
    await ledger.add("ann", "1")
    with pytest.raises(asyncpg.RaiseError, match="append-only") as refusal:
        await ledger.connection.execute(statement)
    assert "adjustment" in str(refusal.value.hint)


async def test_history_is_complete(ledger: Ledger) -> None:
    """Each row says the state after it, and a user's rows are numbered without a gap."""
    await ledger.add("ann", "10", "purchase")
    hold = await ledger.held("ann", "4")
    await ledger.settle(settlement(hold, "ann", "12"))
    await ledger.add("ann", "5", "refund")
    rows = await ledger.connection.fetch("SELECT * FROM credit_transactions ORDER BY user_version")
    columns = ("user_version", "transaction_type", "amount", "held_delta", "debt_delta")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        (1, "purchase", 10, 0, 0), (2, "hold", 0, 4, 0), (3, "debit", -10, -4, 2), (4, "refund", 3, 0, -2),
    ]  # fmt: skip
    states = [(row["balance_after"], row["held_after"], row["debt_after"]) for row in rows]
    assert states == [(10, 0, 0), (10, 4, 0), (0, 0, 2), (3, 0, 0)]


async def test_dates_are_the_moment(ledger: Ledger) -> None:
    """Two rows of one transaction have their own moments, not the transaction's start."""
    async with ledger.connection.transaction():
        await ledger.add("ann", "1")
        await ledger.add("ann", "1")
    assert await ledger.connection.fetchval("SELECT count(DISTINCT created_at) FROM credit_transactions") == 2


async def broken(ledger: Ledger, *statements: str) -> set[str]:
    """The invariants the audit finds broken after tampering past all triggers and constraints."""
    await ledger.add("ann", "10", "purchase")
    await ledger.held("ann", "2")
    await ledger.settle(settlement(await ledger.held("ann", "4"), "ann", "3", provider="openai"))
    assert await ledger.audit() == []
    await ledger.connection.execute(
        "ALTER TABLE credit_transactions DISABLE TRIGGER USER; ALTER TABLE credit_transactions DROP "
        "CONSTRAINT valid_deltas,"
        " DROP CONSTRAINT valid_state_after; ALTER TABLE user_credits DROP CONSTRAINT positive_credits;"
        "DROP INDEX one_charge_per_hold, one_end_per_hold, one_row_per_user_version"
    )
    for statement in statements:
        await ledger.connection.execute(statement)
    return {line.split()[0] for line in await ledger.audit()}


COPY = """user_id, amount, held_delta, debt_delta, balance_after, held_after, debt_after, hold_id, transaction_type,
    ends_hold"""


@pytest.mark.parametrize(
    ("statement", "invariant"),
    [
        ("UPDATE user_credits SET credits_remaining = 8", "balance_is_sum"),
        ("UPDATE user_credits SET credits_held = 1", "held_is_sum"),
        ("UPDATE user_credits SET credits_debt = 1", "debt_is_sum"),
        ("UPDATE user_credits SET credits_debt = 1", "debt_without_available"),
        ("UPDATE user_credits SET credits_spent = 1", "spent_is_sum"),
        ("UPDATE user_credits SET credits_lifetime = 1", "lifetime_is_sum"),
        ("UPDATE user_credits SET version = 9", "version_is_count"),
        ("UPDATE user_credits SET credits_remaining = 8", "conservation"),
        ("UPDATE credit_transactions SET user_version = 9 WHERE user_version = 4", "version_gapless"),
        ("UPDATE credit_transactions SET balance_after = 11 WHERE user_version = 2", "state_follows"),
        ("UPDATE credit_transactions SET held_after = 11 WHERE user_version = 3", "state_possible"),
        ("DELETE FROM credit_holds", "open_hold_has_lease"),
        ("UPDATE credit_holds SET amount = 9", "open_hold_has_lease"),
        ("UPDATE credit_holds SET user_id = 'bob'", "one_account_per_hold"),
        ("INSERT INTO credit_holds VALUES (gen_random_uuid(), 'ann', 1, now())", "lease_has_open_hold"),
        ("UPDATE credit_transactions SET hold_id = gen_random_uuid() WHERE transaction_type = 'debit'",
        "end_names_hold"),
        ("UPDATE credit_transactions SET held_delta = -3 WHERE transaction_type = 'debit'", "freed_exactly"),
        ("UPDATE llm_usage_log SET cost_credits = 2", "usage_is_charge"),
        ("DELETE FROM llm_usage_log", "usage_is_charge"),
        ("INSERT INTO llm_usage_log (user_id, request_id, hold_id, cost_credits) "
         "VALUES ('ann', 'x', gen_random_uuid(), 1)",
         "usage_is_charge"),
        (f"INSERT INTO credit_transactions (user_version, {COPY}) SELECT 5, {COPY} FROM credit_transactions "
         "WHERE transaction_type = 'debit'", "one_charge"),
        (f"INSERT INTO credit_transactions (user_version, {COPY}) SELECT 5, {COPY} FROM credit_transactions "
         "WHERE transaction_type = 'debit'", "one_end"),
        (f"INSERT INTO credit_transactions (user_version, {COPY}) SELECT 5, {COPY} FROM credit_transactions "
         "WHERE user_version = 2", "one_hold"),
    ],
)  # fmt: skip
async def test_audit_finds(ledger: Ledger, statement: str, invariant: str) -> None:
    """Each invariant is found broken when somebody breaks it."""
    assert invariant in await broken(ledger, statement)


async def test_audit_of_a_missed_history(ledger: Ledger) -> None:
    """A state that was impossible for one row only is found, though the end state is right."""
    found = await broken(
        ledger,
        "UPDATE credit_transactions SET held_delta = 12, held_after = 12 WHERE user_version = 2",
        "UPDATE credit_transactions SET held_delta = -6, held_after = 6 WHERE user_version = 3",
    )
    assert "state_possible" in found


async def test_debits_without_hold_need_no_usage(ledger: Ledger) -> None:
    """The audit asks for usage rows of calls only, not of a debit made by another system."""
    await ledger.add("ann", "10")
    await ledger.debit("ann", "1", {"request_id": str(uuid.uuid4())})
    assert await ledger.audit() == []
