from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from uc_litellm_plugin import cost_export
from uc_litellm_plugin.cost_export import Cost
from uc_litellm_plugin.errors import CommandRefused

HEADER = "date,provider,model,cost_usd,request_id\n"


def read(tmp_path: Path, text: str | bytes) -> list[Cost]:
    file = tmp_path / "costs.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return cost_export.read(file)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Any order, case, further columns, empty lines and a byte order mark are read alike."""
    rows = read(tmp_path, "\ufeffCost_USD, Model ,invoice,PROVIDER,Date\n0.5,o3,x,openai,2026-03-05\n\n,,,,\n")
    assert rows == [Cost(date(2026, 3, 5), "openai", "o3", Decimal("0.5"), None)]


def test_a_request_id_may_be_there(tmp_path: Path) -> None:
    """An empty request id is none."""
    rows = read(tmp_path, HEADER + "2026-03-05,openai,o3,1.2e-05,call-1\n2026-03-05,openai,o3,-3,\n")
    assert [(row.usd, row.request_id) for row in rows] == [(Decimal("0.000012"), "call-1"), (Decimal(-3), None)]


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-03-05T23:59:59Z", 5),
        ("2026-03-05 23:59:59", 5),
        ("2026-03-05T23:00:00-02:00", 6),
        ("2026-03-06T01:00:00+02:00", 5),
    ],
)
def test_a_time_counts_on_its_utc_day(tmp_path: Path, text: str, day: int) -> None:
    """A time is UTC unless it says otherwise."""
    (row,) = read(tmp_path, f"{HEADER}{text},openai,o3,1,\n")
    assert row.day == date(2026, 3, day)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column date, provider, model, cost_usd"),
        ("date,provider,model\n", "no column cost_usd"),
        (HEADER + "2026-03-05,openai,o3,,x\n", "line 2: cost_usd is empty"),
        (HEADER + "2026-03-05,openai\n", "line 2: model, cost_usd is empty"),
        (HEADER + "5.3.2026,openai,o3,1,\n", "line 2: '5.3.2026' is no date"),
        (HEADER + "9999-12-31,openai,o3,1,\n", "line 2: '9999-12-31' is the day of no bill"),
        (HEADER + "0001-01-01,openai,o3,1,\n", "line 2: '0001-01-01' is the day of no bill"),
        (HEADER + "9999-12-31T23:00:00-05:00,openai,o3,1,\n", "line 2: '9999-12-31T23:00:00-05:00' is no date"),
        (HEADER + "\n2026-03-05,openai,o3,$1,\n", "line 3: '$1' is no cost"),
        (HEADER + "2026-03-05,openai,o3,NaN,\n", "no cost"),
        (HEADER + "2026-03-05,openai,o3,-Infinity,\n", "no cost"),
        (HEADER + "2026-03-05,openai,o3,1e10,\n", "no cost"),
        (HEADER + "2026-03-05,openai,o3,1,a\x00b\n", "control character|NUL"),
        (HEADER.encode() + b"2026-03-05,openai,\xff,1,\n", "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str | bytes, told: str) -> None:
    """A wrong file is refused as a whole, with the line and what is wrong there."""
    with pytest.raises(CommandRefused, match=told.replace("$", "[$]")):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is refused by name."""
    with pytest.raises(CommandRefused, match=r"nowhere\.csv"):
        cost_export.read(tmp_path / "nowhere.csv")
