from __future__ import annotations

import pytest

from tests.integration.commands import Run


def test_all_levels(run: Run) -> None:
    """The levels from the cheapest on, with who edited them last; as a table, providers are a list of names."""
    listed = run("levels", "list", "--json").json
    assert [(row["power_level"], row["cost_multiplier"], row["source"], row["edited_at"]) for row in listed] == [
        ("eco", "0.7000", "seed", None), ("balanced", "1.0000", "seed", None), ("precision", "1.5000", "seed", None),
    ]  # fmt: skip
    assert "openrouter, together, deepinfra" in run("levels", "list").out


def test_one_level(run: Run) -> None:
    """A level with all that can be set."""
    eco = run("levels", "show", "eco", "--json").json
    assert (eco["preferred_providers"], eco["max_latency_ms"]) == (["openrouter", "together", "deepinfra"], 5000)
    assert (eco["min_quality_score"], eco["is_active"]) == ("70.00", True)
    assert "Lowest cost" in run("levels", "show", "eco").out


def test_an_edit(run: Run) -> None:
    """What is named is changed and told with what it was, the row says who edited it, and again is no change."""
    command = ("levels", "set", "eco", "cost_multiplier=0.8", "preferred_providers=groq, together",
               "max_latency_ms=none", "is_active=yes", "description=")  # fmt: skip
    eco = run(*command, "--json").json
    assert eco["changed"] == {
        "cost_multiplier": {"before": "0.7000", "after": "0.8000"},
        "preferred_providers": {"before": ["openrouter", "together", "deepinfra"], "after": ["groq", "together"]},
        "max_latency_ms": {"before": 5000, "after": None},
        "description": {"before": "Lowest cost", "after": ""},
    }
    assert (eco["source"], eco["edited_at"] is None, eco["warnings"]) == ("database", False, [])
    again = run(*command)
    assert (again.code, again.out, "so before" in again.err) == (0, "", True)
    assert "0.9000" in run("levels", "set", "eco", "cost_multiplier=0.9").out
    assert run("levels", "show", "eco", "--json").json["preferred_providers"] == ["groq", "together"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("turbo", "cost_multiplier=1"), "unknown_power_level", "eco, balanced, precision"),
        (("eco", "price=1"), "invalid_level_setting", "use one of name, description, preferred_providers"),
        (("eco", "cost_multiplier=0"), "invalid_level_setting", "greater than 0"),
        (("eco", "cost_multiplier=NaN"), "invalid_level_setting", "cost_multiplier"),
        (("eco", "cost_multiplier=0.12345"), "invalid_level_setting", "4 decimal places"),
        (("eco", "cost_multiplier=none"), "invalid_level_setting", "cost_multiplier"),
        (("eco", "preferred_providers=Open AI"), "invalid_level_setting", "preferred_providers.0"),
        (("eco", "fallback_strategy=any"), "invalid_level_setting", "next_available"),
        (("eco", "is_active=perhaps"), "invalid_level_setting", "is_active"),
        (("eco", "min_quality_score=101", "max_latency_ms=0"), "invalid_level_setting", "max_latency_ms"),
        (("eco", "cost_multiplier"), "invalid_level_setting", "KEY=VALUE"),
        (("eco", "name=a", "name=b"), "invalid_level_setting", "once"),
        (("eco", "name="), "invalid_level_setting", "name"),
        (("eco", "name=\x1b[31m"), "invalid_text", "control characters"),
        (("eco", "description=\udcff"), "invalid_text", "not text in UTF-8"),
    ],
)
def test_impossible_edits(run: Run, args: tuple[str, ...], code: str, says: str) -> None:
    """What cannot be is refused with the way out, and all rows stay as they were."""
    before = run("levels", "list", "--json").json
    refused = run("levels", "set", *args, "--json")
    assert (refused.code, refused.error["code"]) == (1, code)
    assert says in refused.error["message"]
    assert run("levels", "list", "--json").json == before


def test_an_unknown_level(run: Run) -> None:
    """Showing what is not there names what is, and how to make one."""
    refused = run("levels", "show", "turbo", "--json")
    assert (refused.code, refused.error["code"]) == (1, "unknown_power_level")
    assert "eco, balanced, precision" in refused.error["message"]
    assert "power_levels" in refused.error["message"]


def test_doubtful_edits(run: Run) -> None:
    """An unknown provider and a withdrawn default are done, with a warning each."""
    run("users", "add", "ann")
    done = run("levels", "set", "balanced", "preferred_providers=xai", "is_active=false")
    assert (done.code, done.err.count("Warning: ")) == (0, 2)
    assert ("prefers xai" in done.err, "default of 1 account(s)" in done.err) == (True, True)
    assert len(run("levels", "set", "balanced", "is_active=false", "--json").json["warnings"]) == 1


def test_usage(run: Run) -> None:
    """Nothing to set is wrong usage."""
    assert run("levels", "set", "eco", "--json").error["code"] == "usage"
    assert run("levels").code == 2
