from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from uc_litellm_plugin.level_rows import checksum, named
from uc_litellm_plugin.settings import PowerLevelSettings


def values(**section: Any) -> dict[str, Any]:
    return named(PowerLevelSettings.model_validate(section))


def test_a_section_names_what_is_written() -> None:
    """What is left out or left empty is not named; only the latency target can be none."""
    assert values() == {}
    assert values(name=None, cost_multiplier=None, preferred_providers=None) == {}
    assert values(max_latency_ms=None, cost_multiplier=0.7) == {
        "max_latency_ms": None,
        "cost_multiplier": Decimal("0.7"),
    }
    assert values(preferred_providers=[], is_active=False) == {"preferred_providers": (), "is_active": False}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cost_multiplier": 0.7}, {"cost_multiplier": "0.70"}),
        ({"cost_multiplier": 1}, {"cost_multiplier": "1.0000"}),
        ({"cost_multiplier": 100}, {"cost_multiplier": "1e2"}),
        ({"name": "a", "is_active": True}, {"is_active": True, "name": "a"}),
        ({"name": "a", "description": None}, {"name": "a"}),
    ],
)
def test_the_same_content(one: dict[str, Any], other: dict[str, Any]) -> None:
    """How a number is written, and in what order, is not content."""
    assert checksum(values(**one)) == checksum(values(**other))


def test_other_content() -> None:
    """Whatever is named counts: the value, the order of providers, a target that is none, a level without names."""
    sections: list[dict[str, Any]] = [
        {}, {"cost_multiplier": 0.7}, {"cost_multiplier": 0.71}, {"max_latency_ms": None}, {"max_latency_ms": 7},
        {"preferred_providers": ["a", "b"]}, {"preferred_providers": ["b", "a"]}, {"preferred_providers": []},
        {"name": "0.7"}, {"min_quality_score": 0.7}, {"is_active": True}, {"is_active": False},
    ]  # fmt: skip
    assert len({checksum(values(**section)) for section in sections}) == len(sections)
