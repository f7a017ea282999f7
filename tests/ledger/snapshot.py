"""The whole ledger as the database has it, to be compared with the model's."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.ledger.model import Account, Books
from tests.schema.ledger import Connection

_ACCOUNT = (
    "remaining", "held", "debt", "lifetime", "spent", "spent_this_month", "rows",
)  # fmt: skip

_SNAPSHOT = """
    SELECT jsonb_build_object(
        'accounts', (SELECT jsonb_object_agg(user_id, jsonb_build_array(credits_remaining, credits_held, credits_debt,
            credits_lifetime, credits_spent, spent_this_month, version)) FROM user_credits),
        'leases', (SELECT jsonb_object_agg(hold_id, amount) FROM credit_holds),
        'usage', (SELECT jsonb_object_agg(hold_id, jsonb_build_array(user_id, cost_credits)) FROM llm_usage_log),
        'negative rows', (SELECT jsonb_agg(id) FROM credit_transactions
            WHERE least(balance_after, held_after, balance_after - held_after, debt_after) < 0),
        'audit', (SELECT jsonb_agg(concat_ws(' ', invariant, user_id, hold_id, detail)) FROM ledger_audit())
    )::text
"""

# Written in replica mode, in which the trigger that keeps the ledger append-only is silent.
_WIPE = """
    SET session_replication_role = replica;
    DELETE FROM llm_usage_log; DELETE FROM credit_holds; DELETE FROM idempotency_keys;
    DELETE FROM credit_transactions; DELETE FROM user_credits;
    SET session_replication_role = origin;
"""


@dataclass(frozen=True)
class Snapshot:
    """Accounts, open leases and usage rows; and what must not be, as the database itself finds it."""

    accounts: dict[str, list[Decimal]]
    leases: dict[str, Decimal]
    usage: dict[str, list[Any]]
    faults: dict[str, list[Any]]


async def taken(connection: Connection) -> Snapshot:
    text = await connection.fetchval(_SNAPSHOT)
    parts: dict[str, Any] = {
        name: part or {} for name, part in json.loads(text, parse_float=Decimal, parse_int=Decimal).items()
    }
    faults = {name: parts[name] for name in ("audit", "negative rows") if parts[name]}
    return Snapshot(parts["accounts"], parts["leases"], parts["usage"], faults)


def expected(books: Books) -> Snapshot:
    return Snapshot(
        {user: _figures(account) for user, account in books.accounts.items()},
        {str(hold_id): hold.amount for hold_id, hold in books.holds.items() if hold.is_open},
        {str(hold_id): list(row) for hold_id, row in books.usage.items()},
        {},
    )


async def wipe(connection: Connection) -> None:
    """Empty the ledger for the next example."""
    await connection.execute(_WIPE)


def seed() -> int:
    """A number to begin from, printed so that a failure can be had again."""
    number = int(os.environ.get("UC_LEDGER_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {number}")
    return number


def _figures(account: Account) -> list[Decimal]:
    return [Decimal(getattr(account, name)) for name in _ACCOUNT]
