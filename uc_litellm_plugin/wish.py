"""What a request asks of routing: a power level, and preferences among providers in OpenRouter's words.

Their meaning follows https://openrouter.ai/docs/features/provider-routing; prices are USD of the provider, before the
level's multiplier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from .errors import BadRequest
from .requests import Inbound, clean

LEVEL_HEADER = "x-power-level"
SORTS = ("price", "latency", "throughput")
_FIELDS = ("order", "only", "ignore", "sort", "allow_fallbacks", "max_price")
_PRICES = ("prompt", "completion")
_MOST_PROVIDERS = 100


@dataclass(frozen=True)
class Wish:
    """Preferences of one request; the default asks for nothing.

    Attributes
    ----------
    power_level
        The level it names, None when it names none.
    order
        Providers to try first, in this order.
    only, ignore
        Providers to use at most, None for any; providers not to use.
    sort
        `price`, `latency` or `throughput`, in place of the level's preferred providers.
    allow_fallbacks
        Whether others than the first choice (those of `order`, where that is given) may be tried.
    max_prompt_price, max_completion_price
        USD per million tokens.
    """

    power_level: str | None = None
    order: tuple[str, ...] = ()
    only: frozenset[str] | None = None
    ignore: frozenset[str] = frozenset()
    sort: str | None = None
    allow_fallbacks: bool = True
    max_prompt_price: Decimal | None = None
    max_completion_price: Decimal | None = None


def read(inbound: Inbound, suffix: str | None, levels: Collection[str], providers: Mapping[str, str]) -> Wish:
    """What a request wishes for.

    Parameters
    ----------
    inbound
        The request as it was sent.
    suffix
        The level that the model's name ended in, None when it ended in none.
    levels
        The names of all active power levels.
    providers
        Every name a provider may be called by here, to ours.

    Raises
    ------
    BadRequest
        A level, a provider or a preference that does not exist; the message lists those that do.
    """
    level = _level(inbound, levels) or suffix
    preferences = inbound.body.get("provider")
    if preferences is None:
        return _PLAIN.get(level) or _PLAIN.setdefault(level, Wish(level))
    if not isinstance(preferences, Mapping):
        raise _wrong("provider", "an object", _FIELDS)
    for field in preferences:
        if field not in _FIELDS:
            raise _wrong(f"provider.{clean(field, 100)}", "one of the known preferences", _FIELDS)
    prices = _max_price(preferences.get("max_price"))
    only = _names(preferences, "only", providers)
    return Wish(
        power_level=level,
        order=tuple(dict.fromkeys(_names(preferences, "order", providers) or ())),
        only=None if only is None else frozenset(only),
        ignore=frozenset(_names(preferences, "ignore", providers) or ()),
        sort=_sort(preferences.get("sort")),
        allow_fallbacks=_flag(preferences.get("allow_fallbacks")),
        max_prompt_price=prices.get("prompt"),
        max_completion_price=prices.get("completion"),
    )


# Most requests wish for a level or for nothing: they share one object each. Levels are few, so this stays small.
_PLAIN: dict[str | None, Wish] = {}


def split_suffix(model: str, levels: Collection[str]) -> tuple[str, str | None]:
    """`name:eco` as (`name`, `eco`); any other name as it is."""
    name, colon, suffix = model.rpartition(":")
    return (name, suffix) if colon and name and suffix in levels else (model, None)


def _level(inbound: Inbound, levels: Collection[str]) -> str | None:
    """The level named by the header, else by the metadata."""
    metadata = inbound.body.get("metadata")
    named = {
        "X-Power-Level": inbound.headers.get(LEVEL_HEADER) or None,
        "metadata.power_level": metadata.get("power_level") if isinstance(metadata, Mapping) else None,
    }
    for where, value in named.items():
        if value is None:
            continue
        level = value.strip().lower() if isinstance(value, str) else None
        if level not in levels:
            raise _wrong(where, "a power level", sorted(levels), code="unknown_power_level")
        return level
    return None


def _names(preferences: Mapping[str, Any], field: str, providers: Mapping[str, str]) -> list[str] | None:
    value = preferences.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > _MOST_PROVIDERS or not all(isinstance(name, str) for name in value):
        raise _wrong(f"provider.{field}", "an array of providers' names", sorted(set(providers.values())))
    for name in value:
        if name.strip().lower() not in providers:
            raise _wrong(f"provider.{field}", f"an array of providers; '{clean(name, 100)}' is none here",
                         sorted(set(providers.values())), code="unknown_provider")  # fmt: skip
    return [providers[name.strip().lower()] for name in value]


def _sort(value: Any) -> str | None:
    if value is not None and value not in SORTS:
        raise _wrong("provider.sort", "an order", SORTS)
    return None if value is None else str(value)


def _flag(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong("provider.allow_fallbacks", "a switch", ("true", "false"))
    return value is not False


def _max_price(value: Any) -> dict[str, Decimal]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(key in _PRICES for key in value):
        raise _wrong("provider.max_price", "an object of USD per million tokens", _PRICES)
    return {key: _price(key, price) for key, price in value.items() if price is not None}


def _price(key: str, value: Any) -> Decimal:
    try:
        price = Decimal(str(value)) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except InvalidOperation:
        price = None
    if price is None or not price.is_finite() or price < 0:
        raise BadRequest(f"'provider.max_price.{key}' must be a number of USD per million tokens, 0 or more.",
                         code="invalid_value", param=f"provider.max_price.{key}")  # fmt: skip
    return price


def _wrong(where: str, wanted: str, valid: Iterable[str], code: str = "invalid_value") -> BadRequest:
    return BadRequest(f"'{where}' must be {wanted}: {', '.join(valid)}.", code=code, param=where)
