from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bills import Shop
from tests.integration.commands import Run
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.outbox import Outbox
from uc_litellm_plugin.settings import Settings


@pytest.fixture
def state(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of the commands."""
    monkeypatch.setenv("UC_STATE_DIR", str(nowhere / "state"))
    return nowhere / "state"


@pytest.fixture
def charged(settings: Settings) -> str:
    """The request id of one call that cost 0.05 USD, 0.385 credits."""

    async def charge() -> str:
        async with Database(settings) as database:
            shop = Shop(database, settings)
            await shop.add()
            return await shop.call("0.05")

    return asyncio.run(charge())


@pytest.fixture
def bill(tmp_path: Path, charged: str) -> Path:
    """An export in which the call costs 0.08 USD."""
    file = tmp_path / "costs.csv"
    file.write_text(f"date,provider,model,cost_usd,request_id\n2026-03-05,openai,gpt-4o-mini,0.08,{charged}\n")
    return file


def test_books_that_agree(run: Run, state: Path, charged: str) -> None:
    """Exit code 0, and a program gets the same fields as for books that do not."""
    result = run("ledger", "reconcile", "--json")
    assert (result.code, result.json["agrees"], result.json["charges_compared"]) == (0, True, 1)
    assert {*result.json} == {
        "agrees", "since", "until", "charges_compared", "findings", "provider_days", "provider_calls", "corrections",
    }  # fmt: skip
    assert "All agrees; 1 charge(s)" in run("ledger", "reconcile").err


def test_a_bill_that_differs(run: Run, state: Path, charged: str, bill: Path) -> None:
    """Exit code 1 with both sides and what would be written; nothing is written."""
    result = run("ledger", "reconcile", "--provider-costs", str(bill), "--json")
    assert result.code == 1
    (day,), (call,) = result.json["provider_days"], result.json["provider_calls"]
    assert (day["provider_usd"], day["difference_usd"]) == ("0.08", "0.030000000000")
    assert (call["request_id"], call["correction"], call["reason"]) == (charged, "-0.231000", None)
    shown = run("ledger", "reconcile", "--provider-costs", str(bill))
    assert "-0.231000" in shown.out
    assert "--apply" in shown.err
    assert run("credits", "balance", "ann", "--json").json["credits_remaining"] == "99.615000"


def test_corrections_are_applied_once(run: Run, state: Path, bill: Path) -> None:
    """--apply writes who and why and ends with books that agree; again, it writes nothing."""
    command = ("ledger", "reconcile", "--provider-costs", str(bill), "--apply", "--reason", "bill of March")
    applied = run(*command, "--by", "root", "--json")
    assert (applied.code, [row["amount"] for row in applied.json["corrections"]]) == (0, ["-0.231000"])
    again = run(*command, "--json")
    assert (again.code, again.json["corrections"]) == (0, [])
    newest = run("credits", "history", "ann", "--limit", "1", "--json").json[0]
    assert (newest["transaction_type"], newest["notes"], newest["admin_user_id"]) == (
        "adjustment", "bill of March", "root",
    )  # fmt: skip
    assert run("ledger", "audit").code == 0


def test_the_system_user_stands_in(run: Run, state: Path, bill: Path) -> None:
    """Who runs the command is who did it, unless --by says otherwise."""
    run("ledger", "reconcile", "--provider-costs", str(bill), "--apply", "--reason", "bill of March")
    assert run("credits", "history", "ann", "--limit", "1", "--json").json[0]["admin_user_id"] == getpass.getuser()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--apply",), 2),
        (("--since", "2026-03-06", "--until", "2026-03-05"), 2),
        (("--since", "soon"), 1),
        (("--since", "0001-01-01T00:00:00+14:00"), 1),
        (("--until", "9999-12-31T23:59:59-14:00"), 1),
        (("--tolerance", "-1"), 2),
        (("--tolerance", "NaN"), 2),
        (("--provider-costs", "nowhere.csv"), 1),
        (("--apply", "--reason", "a\tb"), 1),
        (("--apply", "--reason", "why", "--by", ""), 1),
    ],
)
def test_wrong_reconciliations(run: Run, state: Path, args: tuple[str, ...], code: int) -> None:
    """What is not to be compared is told before the database is asked."""
    refused = run("ledger", "reconcile", *args, "--json")
    assert (refused.code, bool(refused.error["message"])) == (code, True)


def test_a_bill_needs_whole_days(run: Run, state: Path, bill: Path) -> None:
    """A provider's day cannot be compared with a part of ours."""
    command = ("ledger", "reconcile", "--provider-costs", str(bill), "--json")
    assert run(*command, "--since", "2026-03-05T12:00:00Z").error["code"] == "usage"
    assert run(*command, "--since", "2026-03-05", "--until", "2026-03-06").code == 1
    assert run(*command, "--until", "2026-03-05").error["code"] == "invalid_export"


@pytest.mark.parametrize("period", [("--since", "0001-01-01", "--until", "9999-12-31"), ("--until", "0001-01-02")])
def test_a_bill_of_all_times(run: Run, state: Path, bill: Path, period: tuple[str, ...]) -> None:
    """A period may begin and end where times do."""
    compared = run("ledger", "reconcile", "--provider-costs", str(bill), *period, "--json")
    assert compared.code == 1
    assert "provider_days" in compared.json if len(period) == 4 else compared.error["code"] == "invalid_export"


def test_the_outbox(run_anywhere: Run, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is shown while PostgreSQL is away, with exit code 1; an empty outbox is exit code 0."""
    monkeypatch.setenv("UC_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    empty: Any = run_anywhere("ledger", "outbox", "--json")
    assert (empty.code, empty.json["records"], empty.json["oldest_s"]) == (0, 0, None)
    Outbox(state / "outbox", 1000).append([{"hold_id": "1"}])
    waiting = run_anywhere("ledger", "outbox", "--json")
    assert (waiting.code, waiting.json["segments"], waiting.json["records"]) == (1, 1, 1)
    assert waiting.json["bytes"] > 0
    assert run_anywhere("ledger", "outbox").code == 1
