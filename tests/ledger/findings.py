"""Who found which mutant, for the table at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.ledger.mutants import Mutant

WIDTH = 100


@dataclass(frozen=True)
class Finding:
    """One layer noticed one mutant, so many seconds after the first was asked."""

    mutant: Mutant
    layer: str
    seconds: float
    reason: str


FOUND: list[Finding] = []


def table() -> Iterator[str]:
    """Markdown, a line per finding."""
    yield "| mutant | this no longer holds | found by | s | seen as |"
    yield "| --- | --- | --- | ---: | --- |"
    for each in FOUND:
        reason = each.reason[:WIDTH].replace("|", "/")
        yield f"| {each.mutant.name} | {each.mutant.breaks} | {each.layer} | {each.seconds:.1f} | {reason} |"
