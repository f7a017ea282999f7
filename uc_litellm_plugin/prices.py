"""Entries of LiteLLM's price map: what they charge for, and the dearest of it that a request can set off.

They stand in `litellm/model_prices_and_context_window_backup.json`, USD per unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

ZERO = Decimal(0)

_ABOVE = re.compile(r"_above_(\d+)(k?)_tokens|_above_1hr")
# The units a token can be priced by; a longer key ends in the name of a service tier (priority, flex, batches, …).
_UNITS = frozenset(
    {f"{way}_cost_per_{kind}token" for way in ("input", "output") for kind in ("", "audio_", "image_", "video_")}
    | {"output_cost_per_reasoning_token", "cache_creation_input_token_cost", "cache_read_input_token_cost"}
    | {"cache_creation_input_audio_token_cost", "input_cost_per_audio_per_token", "cache_read_input_audio_token_cost"}
)
# Tiers at the base rates or below; any other one, `auto` too, may be served at any tier's rates.
_PLAIN_TIERS = ("", "default", "standard", "standard_only", "flex", "batch")
_DEAR_OUTPUT = ("output_cost_per_reasoning_token", "output_cost_per_image_token")
# Rates by time or by other units have no bound in tokens: such a deployment has no price for us.
_UNBOUNDED = ("input_cost_per_second", "output_cost_per_second")
_FEES = ("input_cost_per_request", "input_cost_per_query")
# Sets of rates within an entry: by the size of the input, by the hour.
_STEPS, _HOURS = "tiered_pricing", "off_peak_pricing"
# What else in an entry is a table, and has no say in what a token costs but by what a usage says of more than tokens.
_OTHER_TABLES = frozenset(
    {"search_context_cost_per_query", "search_free_requests", "provider_specific_entry", "token_count_model"}
    | {"metadata", "audio_transcription_config"}
)


@dataclass(frozen=True)
class Trigger:
    """What a request can set off in a price entry.

    Attributes
    ----------
    input_tokens
        The input bound; decides which long-context rates can apply.
    caches, images, speech
        May write the prompt cache; holds images; holds or asks for audio.
    tier
        The service tier asked for, None when none was.
    """

    input_tokens: int
    caches: bool = False
    images: bool = False
    speech: bool = False
    tier: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is served at the base rates or below."""
        return self.tier is None or self.tier.lower() in _PLAIN_TIERS


@dataclass(frozen=True)
class Rates:
    """The dearest USD per input token and per output token that a request can trigger, and a fee per request."""

    input: Decimal
    output: Decimal
    fee: Decimal = ZERO

    def times(self, share: Decimal) -> Rates:
        """A part of each of them."""
        return self if share == 1 else Rates(self.input * share, self.output * share, self.fee * share)


@dataclass(frozen=True)
class _Rate:
    """One rate of a price entry, and what a request must do to set it off."""

    usd: Decimal
    is_input: bool
    is_output: bool
    above: int = 0
    of_tier: bool = False
    of_cache_write: bool = False
    of_speech: bool = False
    of_image: bool = False

    @classmethod
    def read(cls, key: str, usd: Decimal) -> _Rate:
        is_output = _is_output(key)
        return cls(
            usd=usd,
            is_input=_is_input(key),
            is_output=is_output,
            above=_threshold(key),
            of_tier=_ABOVE.sub("", key) not in _UNITS,
            of_cache_write=key.startswith("cache_creation"),
            of_speech="_audio" in key,
            # A model with a price for drawing may draw unasked.
            of_image="_image" in key and not is_output,
        )

    def can_happen(self, trigger: Trigger) -> bool:
        return not (
            trigger.input_tokens < self.above
            or (self.of_tier and trigger.is_plain)
            or (self.of_cache_write and not trigger.caches)
            or (self.of_speech and not trigger.speech)
            or (self.of_image and not trigger.images)
        )


@dataclass(frozen=True)
class Flat:
    """The rates of calls that are priced by their tokens alone, each token like the other.

    Attributes
    ----------
    input, output
        USD per token.
    below
        Only calls of fewer input tokens are priced so; None for all.
    even
        Nothing says that tokens of reasoning are unlike the others.
    """

    input: Decimal
    output: Decimal
    below: int | None
    even: bool


class PriceEntry(dict[str, Any]):
    """A price entry that is edited no more, so that its rates are read once."""

    @cached_property
    def rates(self) -> tuple[_Rate, ...]:
        """What it charges per unit."""
        return tuple(_rates(self))

    def dearest(self, trigger: Trigger) -> Rates:
        """See `dearest`; found once for all triggers that set off the same."""
        passed = sum(trigger.input_tokens >= above for above in self._thresholds)
        key = (passed, trigger.caches, trigger.images, trigger.speech, trigger.is_plain)
        if (known := self._dearest.get(key)) is None:
            can_happen = [rate for rate in self.rates if rate.can_happen(trigger)]
            reads = [rate.usd for rate in can_happen if rate.is_input]
            writes = [rate.usd for rate in can_happen if rate.is_output]
            fee = exact(next((fee for name in _FEES if (fee := self.get(name))), 0))
            known = self._dearest[key] = Rates(max(reads, default=ZERO), max(writes, default=ZERO), fee)
        return known

    @cached_property
    def _thresholds(self) -> frozenset[int]:
        return frozenset(rate.above for rate in self.rates)

    @cached_property
    def _dearest(self) -> dict[tuple[int | bool, ...], Rates]:
        return {}

    @cached_property
    def flat(self) -> Flat | None:
        """What it charges for a token in the simplest of calls; None where no call is simple."""
        # LiteLLM's router writes all that an entry could have into it, as None.
        said = [key for key, value in self.items() if value is not None]
        tables = {key for key in said if isinstance(self[key], Mapping)}
        if self.get(_STEPS) or tables - _OTHER_TABLES or any("character" in key for key in said):
            return None
        if any(self.get(fee) for fee in _FEES):
            return None
        reads, writes = (self.get(f"{way}_cost_per_token") or 0 for way in ("input", "output"))
        if not all(type(rate) in (int, float) for rate in (reads, writes)):
            return None
        if not writes and self.get("output_cost_per_image_token"):
            return None  # LiteLLM takes all output for images then (`_get_token_base_cost`).
        thresholds = [rate.above for rate in self.rates if rate.above]
        # A rate of its own, or knowledge by which LiteLLM may reckon in another way.
        apart = any("reasoning" in key for key in said)
        return Flat(exact(reads), exact(writes), min(thresholds, default=None), even=not apart)

    def times(self, factor: Decimal) -> PriceEntry:
        """The same with each rate multiplied; itself where that changes nothing."""
        if factor == 1:
            return self
        tables: dict[str, Any] = {}
        if steps := self.get(_STEPS):
            tables[_STEPS] = [_times(step, factor) for step in steps]
        if by_hour := _by_hour(self):
            tables[_HOURS] = _times(by_hour, factor)
        return PriceEntry({**_times(self, factor), **tables})

    @cached_property
    def written(self) -> dict[str, str]:
        """Its rates, for a usage row; those by the hour under `off_peak_pricing.…`."""
        rates = {**self, **{f"{_HOURS}.{key}": rate for key, rate in _by_hour(self).items()}}
        return {key: str(value) for key, value in rates.items() if "_cost" in key and isinstance(value, int | float)}


def names(model: str, provider: str) -> tuple[str, str, str]:
    """The keys under which a model's entry may stand, in the order in which they are tried."""
    bare = model.removeprefix(f"{provider}/")
    return f"{provider}/{bare}", model, bare


def of(entry: Mapping[str, Any]) -> PriceEntry:
    """An entry with what was read of it."""
    return entry if isinstance(entry, PriceEntry) else PriceEntry(entry)


def dearest(entry: Mapping[str, Any], trigger: Trigger) -> Rates:
    """The worst rates of a price entry for one request.

    Every rate whose condition the request can meet counts, the dearest wins: base rates, long-context rates where the
    input can reach the threshold, cache writes, audio, images, reasoning, and service tiers that were asked for.
    """
    return of(entry).dearest(trigger)


def is_priced(entry: Mapping[str, Any] | None, *, written_by_operator: bool) -> bool:
    """Whether a price entry can be charged by: 0 is a price only where the operator wrote it."""
    if entry is None or any(entry.get(key) for key in _UNBOUNDED):
        return False
    if entry.get(_STEPS):
        return True
    rates = [entry.get("input_cost_per_token")]
    if entry.get("mode") != "embedding":
        rates.append(entry.get("output_cost_per_token"))
    return all(rate is not None for rate in rates) if written_by_operator else all(rates)


def is_uneven(entry: Mapping[str, Any]) -> bool:
    """Whether some output tokens, of reasoning or of images, are dearer than those of text."""
    plain = dict(_numbers(entry))
    # What a table does not name stays as it is.
    steps = [plain, *({**plain, **dict(_numbers(table))} for table in _tables(entry))]
    return any(
        step.get(rate, ZERO) > step.get("output_cost_per_token", ZERO) for step in steps for rate in _DEAR_OUTPUT
    )


def is_free(entry: Mapping[str, Any]) -> bool:
    """Whether nothing in the entry costs anything."""
    return not any(rate.usd for rate in of(entry).rates) and not entry.get(_STEPS)


def exact(value: Any) -> Decimal:
    """A number as the Decimal of its shortest form, so that 0.1 is 0.1."""
    return value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else str(value))


def _rates(entry: Mapping[str, Any]) -> Iterator[_Rate]:
    for key, usd in _numbers(entry):
        yield _Rate.read(key, usd)
    for table in _tables(entry):
        for key, usd in _numbers(table):
            # Which one applies is not ours to say: each counts.
            yield _Rate(usd, _is_input(key), _is_output(key))


def _tables(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The sets of rates within an entry."""
    yield from entry.get(_STEPS) or ()
    yield _by_hour(entry)


def _by_hour(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its rates by the hour; what is no table is nothing, as LiteLLM takes it."""
    by_hour = entry.get(_HOURS)
    return by_hour if isinstance(by_hour, Mapping) else {}


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, Decimal]]:
    for key, value in entry.items():
        if "_cost" in key and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                yield key, exact(value)
            except ArithmeticError:
                continue


def _times(rates: Mapping[str, Any], factor: Decimal) -> dict[str, Any]:
    return {**rates, **{key: float(usd * factor) for key, usd in _numbers(rates)}}


def _is_input(key: str) -> bool:
    return "token" in key and (key.startswith(("input_cost_per", "cache_creation_input", "cache_read_input")))


def _is_output(key: str) -> bool:
    return "token" in key and key.startswith("output_cost_per")


def _threshold(key: str) -> int:
    above = _ABOVE.search(key)
    return int(above[1]) * (1000 if above[2] else 1) if above and above[1] else 0
