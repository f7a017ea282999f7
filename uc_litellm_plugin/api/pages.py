"""Lists in parts: cursors that clients hand back as they got them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

from fastapi import Query

from ..errors import BadRequest
from .models import Moment, Text

T = TypeVar("T")
Part = int | str | datetime | UUID

MOST_ROWS = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of one answer.")]
Cursor = Annotated[
    str | None,
    Query(min_length=1, max_length=2048, description="`next_cursor` of the part before."),
]
From = Annotated[Moment | None, Query(alias="from", description="Not before this time.")]
To = Annotated[Moment | None, Query(description="Before this time.")]
Filter = Annotated[Text | None, Query()]


def cursor_after(*place: Part) -> str:
    """A cursor for what comes after this place."""
    parts = [_micros(part) if isinstance(part, datetime) else part for part in place]
    return base64.urlsafe_b64encode(json.dumps(parts, default=str, ensure_ascii=False).encode()).decode().rstrip("=")


def place_in(cursor: str | None, *kinds: type) -> tuple[Any, ...] | None:
    """The place that a cursor names, None without one.

    Parameters
    ----------
    kinds
        Of the place's parts: int, str, datetime or UUID.

    Raises
    ------
    BadRequest
        It is none of ours.
    """
    if cursor is None:
        return None
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return tuple(_part(*pair) for pair in zip(parts, kinds, strict=True)) if isinstance(parts, list) else _refuse()
    except (ValueError, OverflowError, RecursionError):
        return _refuse()


def _refuse() -> NoReturn:
    raise BadRequest("cursor must be the next_cursor of another answer.", code="invalid_cursor", param="cursor")


def _part(value: object, kind: type) -> Any:
    """One part, if PostgreSQL can compare with it."""
    if kind is UUID and isinstance(value, str):
        return UUID(value)
    if kind is str and isinstance(value, str) and b"\0" not in value.encode():
        return value
    if kind is int and isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if kind is datetime and isinstance(value, int):
        return _EPOCH + timedelta(microseconds=value)
    raise ValueError


def cut(rows: Sequence[T], limit: int, place: Callable[[T], tuple[Part, ...]]) -> tuple[Sequence[T], str | None]:
    """The first `limit` of the rows, and a cursor if there were more: ask the database for one row beyond."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], cursor_after(*place(rows[limit - 1]))


def _micros(moment: datetime) -> int:
    """Whole microseconds since 1970, which lose nothing."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
