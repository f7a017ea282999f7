"""The ledger's SQL against the model. UC_LEDGER_EXAMPLES=5000 plays a longer form than the default, UC_LEDGER_SEED=N
the same games again.
"""

from __future__ import annotations

import os

from tests.ledger import machine, snapshot

EXAMPLES = int(os.environ.get("UC_LEDGER_EXAMPLES", "100"))


def test_the_ledger_is_its_model(url: str) -> None:
    """Holds, settlements, releases, lapses, additions and debits in any order leave what the model says."""
    machine.run(url, examples=EXAMPLES, seed=snapshot.seed())
