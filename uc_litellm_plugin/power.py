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
    """

    name: str
    multiplier: Decimal
    default_max_output: int


def from_row(row: Mapping[str, Any]) -> PowerLevel:
    """A level from its row in `power_level_configs`."""
    return PowerLevel(row["power_level"], row["cost_multiplier"], row["default_max_output_tokens"])
