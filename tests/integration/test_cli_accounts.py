from __future__ import annotations

import getpass
import os

import pytest

from tests.integration.commands import Run
from uc_litellm_plugin import office


@pytest.fixture
def ann(run: Run) -> None:
    """An account."""
    run("users", "add", "ann", "--tier", "starter")


def test_settings_of_an_account(run: Run, ann: None) -> None:
    """What is named is changed and told with what it was; what is not named stays."""
    command = ("users", "set", "ann", "--tier", "professional", "--monthly-cap", "50", "--power-level", "balanced")
    account = run(*command, "--json").json
    assert account["changed"] == {
        "tier": {"before": "starter", "after": "professional"},
        "monthly_cap": {"before": None, "after": "50.000000"},
    }
    assert (account["status"], account["power_level"]) == ("active", "balanced")
    assert run("users", "set", "ann", "--monthly-cap", "none", "--json").json["monthly_cap"] is None
    assert run("users", "show", "ann", "--json").json["tier"] == "professional"


def test_an_account_may_go_down_a_level(run: Run, ann: None) -> None:
    """Downgrading is off, can be switched on and off, and stays as it is when it is not named."""
    assert run("users", "show", "ann", "--json").json["power_level_downgrade"] is False
    on = run("users", "set", "ann", "--downgrade", "--json").json
    assert on["changed"] == {"power_level_downgrade": {"before": False, "after": True}}
    assert run("users", "set", "ann", "--tier", "free", "--json").json["power_level_downgrade"] is True
    assert run("users", "set", "ann", "--no-downgrade", "--json").json["power_level_downgrade"] is False


def test_an_account_is_suspended_and_back(run: Run, ann: None) -> None:
    """Each status can be set, the answer is a table of what changed, and the same again changes nothing."""
    shown = run("users", "set", "ann", "--status", "suspended")
    assert ("active" in shown.out, "suspended" in shown.out) == (True, True)
    again = run("users", "set", "ann", "--status", "suspended")
    assert (again.code, again.out, "so before" in again.err) == (0, "", True)
    assert run("users", "set", "ann", "--status", "active", "--json").json["status"] == "active"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), "nothing_to_set"),
        (("--tier", "gold"), "invalid_tier"),
        (("--power-level", "turbo"), "invalid_power_level"),
        (("--status", "gone"), "invalid_status"),
        (("--monthly-cap", "-1"), "invalid_monthly_cap"),
        (("--monthly-cap", "lots"), "invalid_amount"),
    ],
)
def test_impossible_settings(run: Run, ann: None, args: tuple[str, ...], code: str) -> None:
    """What cannot be is refused, and the account stays as it was."""
    before = run("users", "show", "ann", "--json").json
    refused = run("users", "set", "ann", *args, "--json")
    assert (refused.code, refused.error["code"]) == (1, code)
    assert run("users", "show", "ann", "--json").json == before


def test_settings_of_nobody(run: Run) -> None:
    """A typo changes nothing and says so."""
    assert run("users", "set", "nan", "--tier", "free", "--json").error["code"] == "unknown_account"


@pytest.mark.parametrize("kind", ["refund", "adjustment"])
def test_taking_and_giving_need_a_reason(run: Run, ann: None, kind: str) -> None:
    """A refund and an adjustment say why, or are refused."""
    refused = run("credits", "add", "ann", "5", "--type", kind, "--json")
    assert (refused.code, refused.error["code"]) == (1, "notes_needed")
    assert run("credits", "add", "ann", "5", "--type", kind, "--notes", "an outage").code == 0


def test_who_did_it_is_kept(run: Run, ann: None) -> None:
    """Each addition names who made it: --by, else the system user."""
    run("credits", "add", "ann", "5", "--by", "root@office")
    run("credits", "add", "ann", "6")
    history = run("credits", "history", "ann", "--json").json
    assert [row["admin_user_id"] for row in history] == [getpass.getuser(), "root@office"]
    assert run("credits", "add", "ann", "5", "--by", "a\nb", "--json").error["code"] == "invalid_text"


def test_a_system_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user has no name, its number stands for it."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert office.system_user() == f"uid {os.getuid()}"
