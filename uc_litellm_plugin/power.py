"""Power levels: a caller's wish for cost against quality, as the rows of `power_level_configs` define it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

DEFAULT = "balanced"


@dataclass(frozen=True)
class PowerLevel:
    """One level.

    Attributes
    ----------
    name
        `eco`, `balanced`, `precision`, or an operator's own.
    multiplier
        Factor on the provider's cost.
    default_max_output
        Output limit of a request that names none. Tokens.
    preferred_providers
        In this order, before all others.
    strict
        The others are not used at all (`fallback_strategy` none).
    max_latency_ms
        Target for the 95th percentile of the time to the first token, None for no target. Milliseconds.
    min_quality
        Target for a deployment's `model_info.quality_score`, 0 to 100.
    """

    name: str
    multiplier: Decimal
    default_max_output: int
    preferred_providers: tuple[str, ...] = ()
    strict: bool = False
    max_latency_ms: int | None = None
    min_quality: Decimal = Decimal(0)


def from_row(row: Mapping[str, Any]) -> PowerLevel:
    """A level from its row in `power_level_configs`."""
    return PowerLevel(
        name=row["power_level"],
        multiplier=row["cost_multiplier"],
        default_max_output=row["default_max_output_tokens"],
        preferred_providers=tuple(row["preferred_providers"]),
        strict=row["fallback_strategy"] == "none",
        max_latency_ms=row["max_latency_ms"],
        min_quality=row["min_quality_score"],
    )
