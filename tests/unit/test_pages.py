"""Cursors of the REST API."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import get_args
from uuid import uuid4

import pytest
from annotated_types import MaxLen

from uc_litellm_plugin.api import pages
from uc_litellm_plugin.office import USER_ID_MAX

(LONGEST,) = (each.max_length for each in get_args(pages.Cursor)[1].metadata if isinstance(each, MaxLen))


@pytest.mark.parametrize("text", ["x", "é", "界", "🦊", '"', "\\"])
def test_every_place_has_a_cursor(text: str) -> None:
    """Whatever an account is called, the cursor of an answer is one that the next request may bring."""
    cursor = pages.cursor_after(text * USER_ID_MAX)
    assert len(cursor) <= LONGEST
    assert pages.place_in(cursor, str) == (text * USER_ID_MAX,)


def test_a_place_comes_back_as_it_was() -> None:
    """Times to the microsecond, numbers and ids."""
    place = (datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=timezone.utc), 7, uuid4())
    assert pages.place_in(pages.cursor_after(*place), *(type(part) for part in place)) == place


def test_cursors_of_before_stay_good() -> None:
    """A cursor in which a name stands escaped, as they once did, is read like any other."""
    assert pages.place_in("WyJcdTc1NGMiXQ", str) == ("界",)
