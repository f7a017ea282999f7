"""Whether the proofs prove anything: each mutant of the ledger must be found by one of their layers.

A layer after the first that finds a mutant is not asked any more. UC_LEDGER_MUTANTS=all asks every layer about every
mutant, which takes some minutes. UC_LEDGER_SEED=N plays other games than the usual ones: a mutant is no place to search
for faults, so that it is found or not does not depend on luck.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import asyncpg
import pytest

from tests.ledger import snapshot
from tests.ledger.findings import FOUND, Finding
from tests.ledger.layers import LAYERS, Suspect
from tests.ledger.mutants import MUTANTS, SQL, Mutant, Rotten, package_in
from tests.ledger.server import Server

ASK_ALL = os.environ.get("UC_LEDGER_MUTANTS") == "all"
SEED = int(os.environ.get("UC_LEDGER_SEED", "1"))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_ledger_passes(layer: str, server: Server, url: str, tmp_path: Path) -> None:
    """As it is, no layer finds anything in the ledger."""
    LAYERS[layer](Suspect(server, url, package_in(tmp_path), snapshot.seed()))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_found(mutant: Mutant, server: Server, tmp_path: Path) -> None:
    """With one rule broken, some layer says so."""
    print(f"seed {SEED}")
    findings = _asked(mutant, server, mutant.package_in(tmp_path))
    assert findings, f"nobody noticed that this no longer holds: {mutant.breaks}"
    FOUND.extend(findings)


def _asked(mutant: Mutant, server: Server, package: Path) -> list[Finding]:
    """What the layers that run the broken file say, up to the first that notices."""
    findings, began = [], time.monotonic()
    for name in LAYERS if mutant.file == SQL else ["outbox"]:
        try:
            with server.database(mutant.text() if mutant.file == SQL else None) as url:
                LAYERS[name](Suspect(server, url, package, SEED))
        except (AssertionError, asyncpg.PostgresError) as error:
            findings.append(Finding(mutant, name, time.monotonic() - began, _reason(error)))
            if not ASK_ALL:
                break
    return findings


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"


def test_a_rotten_mutant_is_no_mutant() -> None:
    """A mutant whose text is gone from the code, or stands there twice, fails instead of passing for the code."""
    for gone in ("no such line in it", "BEGIN"):
        with pytest.raises(Rotten):
            Mutant("M0", "nothing", SQL, ((gone, ""),)).text()
