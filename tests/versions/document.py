"""The tables of docs/compatibility.md that come from the releases themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.versions.environments import CHECKOUT

DOCUMENT = CHECKOUT / "docs" / "compatibility.md"
BEGIN = "<!-- made by `python -m tests.versions --document`; do not edit -->"
END = "<!-- end -->"

Facts = Mapping[str, Mapping[str, Mapping[str, str]]]


def written(facts: Facts, results: Mapping[str, str]) -> str:
    """The document with its tables made anew."""
    before, rest = DOCUMENT.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(facts, results)}\n\n{END}{after}"


def tables(facts: Facts, results: Mapping[str, str]) -> str:
    """Routes and hooks by release, and what the tests said of each."""
    versions = list(facts)
    hooks = _rows(facts, "parts", lambda name: ".CustomLogger." in name)
    parts = _rows(facts, "parts", lambda name: ".CustomLogger." not in name)
    routes = _rows(facts, "routes", lambda name: True)
    tests = [["tests", *(results.get(version, "not run") for version in versions)]]
    return "\n\n".join(
        [_table(["hooks", *versions], _short(hooks)), _table(["routes", *versions], routes),
         _table(["other parts that differ or are missing", *versions], _differing(parts)),
         _table(["", *versions], tests)]
    )  # fmt: skip


def _rows(facts: Facts, kind: str, wanted: Any) -> list[list[str]]:
    names = list(dict.fromkeys(name for each in facts.values() for name in each[kind] if wanted(name)))
    return [[f"`{name}`" if kind == "parts" or " /" in name else name,
             *(each[kind].get(name, "-") for each in facts.values())] for name in names]  # fmt: skip


def _short(rows: list[list[str]]) -> list[list[str]]:
    return [[f"`{row[0].strip('`').rpartition('.')[2]}`", *row[1:]] for row in rows]


def _differing(rows: list[list[str]]) -> list[list[str]]:
    same = [row for row in rows if set(row[1:]) == {"as expected"}]
    others = [row for row in rows if row not in same]
    width = len(rows[0]) - 1
    return [*others, [f"all {len(same)} others" if others else f"none: all {len(same)}", *["as expected"] * width]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
