"""What all requests and answers are made of: amounts as decimal strings, times in UTC, bounded texts, the error."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from ..endpoints import URL_MAX

T = TypeVar("T")

_DECIMAL = r"^-?[0-9]+(\.[0-9]+)?$"
# RFC 3339, as JSON Schema's `date-time` is.
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,6})?\d*([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
# asyncpg and Python disagree about what lies beyond.
_FIRST, _LAST = (datetime(year, 1, 2, tzinfo=timezone.utc) for year in (1, 9999))


def _plain(number: Decimal) -> str:
    return f"{number:f}"


def _moment(value: Any) -> Any:
    """A time as text only (pydantic would take numbers, too), in UTC."""
    if isinstance(value, datetime) or value is None:
        return value
    found = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a time with its time zone, such as 2026-01-31T12:00:00Z")
    day, time, fraction, zone = found.groups()
    text = f"{day}T{time}{(fraction or '.0').ljust(7, '0')}{'+00:00' if zone in 'Zz' else zone}"
    try:
        return min(max(datetime.fromisoformat(text), _FIRST), _LAST).astimezone(timezone.utc)
    except ValueError:
        raise ValueError("must be a time that there is") from None


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _amount(example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": _DECIMAL, "examples": [example]})


# Of answers.
Credits = Annotated[Decimal, PlainSerializer(_plain, return_type=str), _amount("12.500000")]
Usd = Annotated[Decimal, PlainSerializer(_plain, return_type=str), _amount("0.000123400000")]
Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(_iso, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000000Z"]}),
]
Number = Annotated[float, Field(allow_inf_nan=False)]

# Of requests. Amounts are text, since a JSON number may be rounded on its way.
AMOUNT = r"^[0-9]{1,14}(\.[0-9]{1,6})?$"
SIGNED_AMOUNT = r"^-?[0-9]{1,14}(\.[0-9]{1,6})?$"
Amount = Annotated[str, Field(pattern=AMOUNT, max_length=21)]
SignedAmount = Annotated[str, Field(pattern=SIGNED_AMOUNT, max_length=22)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=_NO_CONTROLS)]
Text = Annotated[str, Field(min_length=1, max_length=255, pattern=_NO_CONTROLS)]
Address = Annotated[str, Field(min_length=1, max_length=URL_MAX, pattern=_NO_CONTROLS)]
LongText = Annotated[str, Field(min_length=1, max_length=1000, pattern=_NO_CONTROLS)]
# As design.md has it for calls: printable ASCII.
IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[ -~]+$")]
PowerLevelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$", examples=["eco"])]

Tier = Literal["free", "starter", "professional", "enterprise"]
Status = Literal["active", "suspended", "closed"]
Role = Literal["user", "service", "admin"]


def left_out(**facts: Any) -> Any:
    """A field that may be left out of a change, and then stays as it is; null is no value for it."""

    def without_default(schema: dict[str, Any]) -> None:
        schema.pop("default", None)

    return Field(None, json_schema_extra=without_default, **facts)


class Asked(BaseModel):
    """The body of a request: fields that are not named here are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)


class Answer(BaseModel):
    """The body of an answer."""

    model_config = ConfigDict(from_attributes=True, defer_build=True)


class Page(Answer, Generic[T]):
    """Part of a list."""

    data: list[T]
    next_cursor: str | None = Field(
        None, description="Ask again with it as `cursor` for the next part; null at the end.", examples=[None]
    )


class Everything(Answer, Generic[T]):
    """A list as a whole."""

    data: list[T]


class Deleted(Answer):
    """What was deleted."""

    id: str
    deleted: Literal[True] = True


class ErrorFacts(Answer):
    """What went wrong, as OpenAI's API says it."""

    message: str = Field(examples=["There is no such call."])
    type: str = Field(examples=["not_found_error"])
    code: str | None = Field(examples=["not_found"], description="A word programs can switch on.")
    param: str | None = Field(None, description="The field at fault, if one is.")
    metadata: dict[str, Any] | None = Field(None, description="Facts for programs; amounts are decimal strings.")


class ErrorBody(Answer):
    """Every error of this API."""

    error: ErrorFacts


def _error(description: str) -> dict[str, Any]:
    shape = {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}
    return {"description": description, "content": {"application/json": shape}}


# FastAPI would add a 422 of its own shape without the 4XX. The model itself is named once: each time costs each route a
# validator of answers that never pass it.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("Something in the request cannot be; `param` names it"),
    401: _error("No key, or one that is not known, revoked or expired"),
    403: _error("Not with this key, tier or account"),
    404: _error("There is no such thing, or it is not the account's"),
    429: _error("Too many requests, or too many wrong keys; `retry-after` says when to go on"),
    "4XX": {"description": "Another refusal", "model": ErrorBody},
    "5XX": _error("The database does not answer, or what was asked for is not offered"),
}
