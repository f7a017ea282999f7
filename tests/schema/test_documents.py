"""The documents say what is there, and their SQL runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.schema.ledger import Connection, Ledger

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = (DOCS / "schema.md").read_text()
QUICK_REFERENCE = (DOCS / "quick-reference.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", SCHEMA, re.MULTILINE | re.DOTALL))
FUNCTIONS = SCHEMA.split("\n## Functions\n")[1].split("\n## ")[0]


async def test_tables_are_documented(db: Connection) -> None:
    """Each table and view has its section, and no section is of something that is not there."""
    rows = await db.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'uc'::regnamespace AND relkind IN ('r', 'm')"
    )
    assert {row["relname"] for row in rows} == set(SECTIONS)


@pytest.mark.parametrize("table", SECTIONS)
async def test_columns_are_documented(db: Connection, table: str) -> None:
    """A section names every column with its type, and every constraint."""
    rows = await db.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute "
        "WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
        table,
    )
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+?)(?:, null)? \|", SECTIONS[table], re.MULTILINE)
    assert set(documented) == {(row["attname"], row["type"]) for row in rows}
    constraints = await db.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = $1::regclass AND contype <> 'n'", table
    )
    line = re.search(r"^Constraints: (.*)$", SECTIONS[table], re.MULTILINE)
    named = re.findall(r"`(\w+)`", line.group(1)) if line else []
    assert set(named) == {row["conname"] for row in constraints}


async def test_functions_are_documented(db: Connection) -> None:
    """Each function is named, the ones to be called with their arguments as they are."""
    rows = await db.fetch(
        "SELECT proname, pg_get_function_arguments(oid) AS arguments FROM pg_proc WHERE pronamespace = "
        "'uc'::regnamespace"
    )
    actual = {row["proname"]: re.sub(r"::\w+( with time zone)?", "", row["arguments"]) for row in rows}
    called = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`|]*)`)? ?\| [^|]+ \|$", FUNCTIONS, re.MULTILINE))
    steps = re.findall(r"^\| `(\w+)` \| [^|]+ \|$", FUNCTIONS, re.MULTILINE)
    assert set(called) | set(steps) == set(actual)
    assert called == {name: actual[name] for name in called}


async def test_quick_reference_runs(ledger: Ledger) -> None:
    """Every block of SQL in the quick reference runs, in order, on one database, and the books balance after it."""
    blocks = re.findall(r"^```sql\n(.*?)^```", QUICK_REFERENCE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        await ledger.connection.execute(block)
    assert await ledger.types("ann") == [
        "purchase", "bonus", "refund", "debit", "hold", "debit", "adjustment",
    ]  # fmt: skip
    assert await ledger.audit() == []


async def test_quick_reference_is_answered(ledger: Ledger) -> None:
    """No documented statement is a silent refusal."""
    statements = re.findall(
        r"^SELECT \* FROM (?:add|debit)_user_credits.*?;$", QUICK_REFERENCE, re.MULTILINE | re.DOTALL
    )
    for statement in statements[:-1]:
        row = await ledger.connection.fetchrow(statement)
        assert row is not None
        assert row["success"], statement
