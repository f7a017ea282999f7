"""docs/ledger.md says what is so: its states, its SQL and its commands."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest

from tests.integration.bills import USER, Shop
from tests.integration.commands import Run
from uc_litellm_plugin import billing, cost_export
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.settings import Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
CALL = UUID("11111111-1111-4111-8111-111111111111")
STATES = re.findall(
    r"^\| (none|held|settled|released|expired|late_settled) \| (.+?) \| (\w+) \| (\w+) \| (?:`(\w+)` )?\|$",
    DOCUMENT,
    re.MULTILINE,
)
HOLD = (
    "SELECT coalesce(error, CASE WHEN duplicate THEN 'duplicate' ELSE 'held' END) FROM hold_credits($1, $2, $3, $3, $4)"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


class Driver:
    """One hold, driven from state to state; each event answers as the database does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hold(self, amount: str = "1") -> Any:
        return await self._database.fetchval(HOLD, CALL, USER, Decimal(amount), timedelta(seconds=-1))

    async def settle(self, charge: str = "0.5", action: str = "settle") -> Any:
        settlement = {"hold_id": str(CALL), "user_id": USER, "action": action, "charge": charge, "usage": {}}
        return await self._database.fetchval("SELECT outcome FROM settle_credits($1)", [settlement])

    async def lapse(self) -> str:
        """The lease has ended already; the sweeper comes."""
        return "expired" if await self._database.fetch("SELECT * FROM expire_holds()") else "nothing"

    async def reach(self, state: str) -> None:
        paths: dict[str, list[Callable[[], Awaitable[Any]]]] = {
            "none": [],
            "held": [self.hold],
            "settled": [self.hold, self.settle],
            "released": [self.hold, lambda: self.settle(action="release")],
            "expired": [self.hold, self.lapse],
            "late_settled": [self.settle],
        }
        for step in paths[state]:
            await step()

    async def happen(self, event: str) -> Any:
        events: dict[str, Callable[[], Awaitable[Any]]] = {
            "hold": self.hold,
            "hold, same amounts": self.hold,
            "hold, other amounts": lambda: self.hold("2"),
            "settle": self.settle,
            "settle, same charge": self.settle,
            "settle, other charge": lambda: self.settle("0.7"),
            "release": lambda: self.settle(action="release"),
            "lapse": self.lapse,
        }
        return await events[event]()

    async def rows(self) -> list[str]:
        rows = await self._database.fetch(
            "SELECT transaction_type FROM credit_transactions WHERE hold_id = $1 ORDER BY id", CALL
        )
        return [row[0] for row in rows]

    async def state(self) -> str:
        """The state, read from the ledger."""
        rows = await self.rows()
        last = rows[-1] if rows else "none"
        named = {"hold": "held", "release": "released", "expire": "expired", "none": "none"}
        return named.get(last) or ("settled" if rows == ["hold", "debit"] else "late_settled")


def test_the_diagram_is_the_table() -> None:
    """The diagram has the transitions of the table that lead to another state, and no other."""
    (diagram,) = blocks("mermaid")
    arrows = {(before.replace("[*]", "none"), event, after)
              for before, after, event in re.findall(r"(\S+) --> (\w+): (\w+)", diagram)}  # fmt: skip
    assert len(STATES) > 20
    assert arrows == {(state, event, after) for state, event, after, *_ in STATES if state != after}


@pytest.mark.parametrize(("state", "event", "after", "answer", "row"), STATES)
async def test_a_transition(db: Database, state: str, event: str, after: str, answer: str, row: str) -> None:
    """Each row of the table is what the database does."""
    await db.fetch("SELECT * FROM add_user_credits($1, 10, 'bonus')", USER)
    driver = Driver(db)
    await driver.reach(state)
    before = await driver.rows()
    assert await driver.state() == state
    assert await driver.happen(event) == answer
    assert (await driver.state(), await driver.rows()) == (after, before + ([row] if row else []))
    assert await db.fetch("SELECT * FROM ledger_audit()") == []


async def test_the_sql_runs(db: Database, settings: Settings) -> None:
    """Every block runs on a database in use, in order; none of its checks finds anything."""
    shop = Shop(db, settings)
    await shop.add()
    await shop.call(call_id=CALL)
    assert len(blocks("sql")) >= 6
    for statement in (part for block in blocks("sql") for part in block.split(";\n")):
        if statement.strip():
            await db.fetch(statement)
    assert await shop.audit() == []


def test_the_commands_run(run: Run, nowhere: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs, in order, on a database with the call of the example bill; exit codes are as told."""

    async def charge() -> None:
        async with Database(settings) as database:
            shop = Shop(database, settings)
            await shop.add()
            await shop.call("0.05", call_id=CALL)

    asyncio.run(charge())
    monkeypatch.setenv("UC_STATE_DIR", str(nowhere / "state"))
    (nowhere / "march.csv").write_text(blocks("csv")[0])
    for line in COMMANDS:
        program, *args = shlex.split(line, comments=True)
        told = re.search(r"# exit code (\d)", line)
        result = run(*args)
        assert (program, result.code) == ("uc-litellm", int(told[1]) if told else 0), f"{line}\n{result}"
    history = run("credits", "history", USER, "--json").json
    corrections = [row["amount"] for row in history if row["notes"] == "bill of March"]
    assert corrections == ["-0.231000"]


def table(heading: str) -> list[str]:
    """The names in the first column of the first table after a heading."""
    rows = DOCUMENT.split(heading)[1].split("| --- |")[1].split("\n\n")[0]
    return re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE)))


def test_the_columns_of_a_bill() -> None:
    """The table of columns names those that are read."""
    assert tuple(table("### A provider's bill")) == (*cost_export.REQUIRED, *cost_export.OPTIONAL)


def test_the_reasons_of_no_correction() -> None:
    """The table of reasons names all there are."""
    assert set(table("**Only what is certain")) == set(get_args(billing.Reason))
