"""Chunks of chat and text completions, as LiteLLM passes them on and as it collects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from . import answers
from .answers import Usage, get

_NOTHING: Mapping[str, Any] = {}
# What else than words a chunk, or a choice in it, may say that matters here.
_OF_CHUNKS, _OF_CHOICES = ("usage", "service_tier"), ("finish_reason", "text")


def words_alone(chunk: Any) -> str | None:
    """The words of a chunk with one choice that brings nothing else, as most do; None for any other chunk.

    It looks where pydantic keeps members. A stream has hundreds of such chunks, and to ask each for all that a chunk
    may have takes ten times as long.
    """
    if not isinstance(chunk, BaseModel) or not _keeps_its_own(type(chunk), _OF_CHUNKS) or answers.traffic_of(chunk):
        return None
    said = _members(chunk)
    choices = said.get("choices")
    if type(choices) is not list or len(choices) != 1 or any(said.get(name) is not None for name in _OF_CHUNKS):
        return None
    choice = choices[0]
    if not isinstance(choice, BaseModel) or not _keeps_its_own(type(choice), _OF_CHOICES):
        return None
    said = _members(choice)
    delta = said.get("delta")
    if not isinstance(delta, BaseModel) or any(said.get(name) is not None for name in _OF_CHOICES):
        return None
    said = _members(delta)
    words = said.get("content")
    return words if isinstance(words, str) and list(said.values()).count(None) == len(said) - 1 else None


def collected(response: Any) -> list[Any]:
    """The chunks of the provider's chat stream, through the wrappers that LiteLLM puts around it."""
    for name in ("chunks", "collected_chat_completion_chunks"):
        if isinstance(chunks := getattr(response, name, None), list):
            return chunks
    inner = getattr(response, "completion_stream", None) or getattr(response, "inner", None)
    return [] if inner is None or inner is response else collected(inner)


def last_usage(chunks: list[Any]) -> tuple[Usage | None, bool]:
    """The last usage among chunks, None where there is none, and whether any later one says more."""
    said_more = False
    for chunk in reversed(chunks):
        if (usage := answers.usage_of(chunk)) is not None:
            return usage, said_more
        said_more = said_more or bool(answers.text_of(chunk))
    return None, said_more


def choices(chunk: Any) -> Iterable[Any]:
    """Its choices, none where it has none."""
    return get(chunk, "choices") or ()


def delta(choice: Any) -> Any:
    """What a chunk adds to a choice; None for what has no members, in which nobody sends words."""
    found = get(choice, "delta")
    return found if isinstance(found, Mapping | BaseModel) else None


def priced(chunk: Any, charged: Decimal | None) -> Any:
    """The chunk with the charge in its usage: a copy, since LiteLLM keeps the chunk for its own books."""
    return chunk if charged is None else _with_usage(chunk, _costed(get(chunk, "usage"), charged))


def without_usage(chunk: Any) -> list[Any]:
    """A chunk for a client that asked for no usage: nothing when it carries nothing else."""
    if not any(_says_something(choice) for choice in choices(chunk)):
        return []
    return [_with_usage(chunk, None)]


def _members(model: BaseModel) -> dict[str, Any]:
    return {**model.__dict__, **(model.__pydantic_extra__ or _NOTHING)}


@lru_cache(1_024)
def _keeps_its_own(kind: type[BaseModel], names: tuple[str, ...]) -> bool:
    """Whether all that objects of a class say by these names is in themselves."""
    return not any(answers.is_of_class(kind, name) for name in names)


def _says_something(choice: Any) -> bool:
    said = answers.delivered(delta(choice)) or get(choice, "text")
    return bool(said) or get(choice, "finish_reason") is not None


def _with_usage(chunk: Any, usage: Any) -> Any:
    copy = chunk.model_copy()
    copy.usage = usage
    return copy


def _costed(usage: Any, charged: Decimal) -> Any:
    if isinstance(usage, Mapping):
        return {**usage, "cost": float(charged)}
    copy = usage.model_copy()
    copy.cost = float(charged)
    return copy
