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
# Where LiteLLM keeps what it knows of a chunk.
_KEPT = "_hidden_params"


def words_alone(chunk: Any, answer_id: Any) -> str | None:
    """The words of a chunk with one choice that brings nothing else, as most do; None for any other chunk.

    It looks where pydantic keeps members. A stream has hundreds of such chunks, and to ask each for all that a chunk
    may have takes ten times as long.

    Parameters
    ----------
    answer_id
        Of the chunks before it.
    """
    kind: type[BaseModel] = type(chunk)
    if not _is_chunk(kind):
        return None
    # Google's kind of traffic, which is a tier, too, stands there.
    kept = (chunk.__pydantic_private__ or _NOTHING).get(_KEPT)
    said = {**chunk.__dict__, **(chunk.__pydantic_extra__ or _NOTHING)}
    choices = said.get("choices")
    if said.get("usage") is not None or said.get("service_tier") is not None or said.get("id") != answer_id:
        return None
    if type(choices) is not list or len(choices) != 1:
        return None
    if kept and (not isinstance(kept, dict) or kept.get("provider_specific_fields")):
        return None
    return _words_of(choices[0])


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


def _words_of(choice: Any) -> str | None:
    kind: type[BaseModel] = type(choice)
    if not _is_choice(kind):
        return None
    said = {**choice.__dict__, **(choice.__pydantic_extra__ or _NOTHING)}
    delta = said.get("delta")
    if said.get("finish_reason") is not None or said.get("text") is not None or not isinstance(delta, BaseModel):
        return None
    said = {**delta.__dict__, **(delta.__pydantic_extra__ or _NOTHING)}
    words = said.get("content")
    return words if isinstance(words, str) and list(said.values()).count(None) == len(said) - 1 else None


@lru_cache(1_024)
def _is_chunk(kind: type[BaseModel]) -> bool:
    """Whether objects of a class keep themselves what matters here."""
    return _keeps(kind, "usage", "service_tier") and _KEPT in kind.__private_attributes__


@lru_cache(1_024)
def _is_choice(kind: type[BaseModel]) -> bool:
    return _keeps(kind, "finish_reason", "text")


def _keeps(kind: type[BaseModel], *names: str) -> bool:
    return issubclass(kind, BaseModel) and not any(answers.is_of_class(kind, name) for name in names)


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
