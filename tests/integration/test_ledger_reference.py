"""The commands of docs/quick-reference.md, one after the other on one database."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.integration.commands import Run

DOCUMENT = (Path(__file__).parents[2] / "docs" / "quick-reference.md").read_text()
OPERATIONS = re.findall(r"^## Common operations\n\n```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_the_common_operations_run(run: Run, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command does what it says, and at the end the books are in order."""
    monkeypatch.setenv("UC_STATE_DIR", str(nowhere / "state"))
    assert len(OPERATIONS) == 1
    for line in OPERATIONS[0].splitlines():
        program, *args = shlex.split(line, comments=True)
        if args[-1] == "ID":
            args[-1] = run("keys", "list", "ann", "--json").json[0]["id"]
        result = run(*args)
        assert (program, result.code) == ("uc-litellm", 0), f"{line}\n{result}"
    history = run("credits", "history", "ann", "--json").json
    assert [row["admin_user_id"] for row in history] == ["root", "root"]
