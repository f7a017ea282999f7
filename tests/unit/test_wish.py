"""What a request may wish for: where a level may stand, and what a preference may be."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from uc_litellm_plugin import wish
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.requests import Inbound
from uc_litellm_plugin.wish import Wish

LEVELS = ("balanced", "eco", "precision")
PROVIDERS = {"openai": "openai", "together": "together", "together_ai": "together"}


def read(body: dict[str, Any] | None = None, header: str | None = None, suffix: str | None = None) -> Wish:
    """The wish of a request."""
    return wish.read(
        Inbound(body or {}, {"x-power-level": header} if header is not None else {}), suffix, LEVELS, PROVIDERS
    )


PLACES: dict[str, tuple[dict[str, Any], str | None]] = {
    "nowhere": ({}, None),
    "the header": ({"header": "eco"}, "eco"),
    "the header, in capitals": ({"header": " ECO "}, "eco"),
    "an empty header": ({"header": ""}, None),
    "the metadata": ({"body": {"metadata": {"power_level": "eco"}}}, "eco"),
    "the suffix": ({"suffix": "eco"}, "eco"),
    "the header before the metadata": ({"header": "eco", "body": {"metadata": {"power_level": "precision"}}}, "eco"),
    "the metadata before the suffix": (
        {"suffix": "eco", "body": {"metadata": {"power_level": "precision"}}},
        "precision",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_a_level_stands(place: str) -> None:
    """The header counts before the metadata, the metadata before the suffix."""
    given, expected = PLACES[place]
    assert read(**given).power_level == expected


@pytest.mark.parametrize("value", ["turbo", 7, None, ["eco"], {"eco": 1}, True, "eco,precision"])
def test_unknown_levels(value: Any) -> None:
    """What is no level is refused with the list of those that are; null is as good as nothing."""
    if value is None:
        assert read({"metadata": {"power_level": None}}).power_level is None
        return
    with pytest.raises(BadRequest, match="balanced, eco, precision") as refused:
        read({"metadata": {"power_level": value}})
    assert (refused.value.code, refused.value.param) == ("unknown_power_level", "metadata.power_level")


SUFFIXES = {
    "gpt:eco": ("gpt", "eco"),
    "gpt": ("gpt", None),
    "gpt:": ("gpt:", None),
    ":eco": (":eco", None),
    "llama3:8b": ("llama3:8b", None),
    "llama3:8b:eco": ("llama3:8b", "eco"),
    "gpt:ECO": ("gpt:ECO", None),
}


@pytest.mark.parametrize("model", SUFFIXES)
def test_suffixes(model: str) -> None:
    """Only what is a level's name after the last colon is a suffix."""
    assert wish.split_suffix(model, LEVELS) == SUFFIXES[model]


def test_preferences() -> None:
    """Providers may be called by our names or LiteLLM's, in any case; prices by number or by text."""
    made = read(
        {
            "provider": {
                "order": ["Together_AI", "openai", "together"],
                "only": ["openai", "together"],
                "ignore": [],
                "sort": "latency",
                "allow_fallbacks": False,
                "max_price": {"prompt": "0.5", "completion": 2},
            }
        }
    )
    assert made == Wish(
        order=("together", "openai"),
        only=frozenset({"openai", "together"}),
        sort="latency",
        allow_fallbacks=False,
        max_prompt_price=Decimal("0.5"),
        max_completion_price=Decimal(2),
    )


def test_nulls_ask_for_nothing() -> None:
    """A preference that is null is as good as none."""
    assert (
        read({"provider": dict.fromkeys(("order", "only", "ignore", "sort", "allow_fallbacks", "max_price"))}) == Wish()
    )


WRONG = {
    "a text": ("openai", "provider"),
    "a list": (["openai"], "provider"),
    "an unknown preference": ({"quantizations": ["fp8"]}, "provider.quantizations"),
    "an unknown provider": ({"only": ["acme"]}, "provider.only"),
    "providers as a text": ({"order": "openai"}, "provider.order"),
    "a provider that is a number": ({"ignore": [1]}, "provider.ignore"),
    "an unknown sort": ({"sort": "luck"}, "provider.sort"),
    "a sort that is a list": ({"sort": ["price"]}, "provider.sort"),
    "a switch that is a text": ({"allow_fallbacks": "no"}, "provider.allow_fallbacks"),
    "a switch that is a number": ({"allow_fallbacks": 0}, "provider.allow_fallbacks"),
    "a price that is a number": ({"max_price": 3}, "provider.max_price"),
    "a price of something else": ({"max_price": {"image": 1}}, "provider.max_price"),
    "a price below 0": ({"max_price": {"prompt": -1}}, "provider.max_price.prompt"),
    "a price that is no number": ({"max_price": {"prompt": "cheap"}}, "provider.max_price.prompt"),
    "a price that is true": ({"max_price": {"prompt": True}}, "provider.max_price.prompt"),
    "a price without end": ({"max_price": {"completion": "Infinity"}}, "provider.max_price.completion"),
    "a price that is NaN": ({"max_price": {"completion": "NaN"}}, "provider.max_price.completion"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_preferences(case: str) -> None:
    """What is no preference is refused, and the refusal names it."""
    value, param = WRONG[case]
    with pytest.raises(BadRequest) as refused:
        read({"provider": value})
    assert refused.value.param == param
