from __future__ import annotations

from decimal import Decimal

import pytest

from uc_litellm_plugin.verification import margin


@pytest.mark.parametrize(
    ("price", "sold", "per_usd", "multiplier", "markup", "expected"),
    [
        ("10", "100", "10", "1", "1", "1.000"),  # ten credits sold per dollar, ten charged per dollar of cost
        ("45", "500", "10", "1", "1", "0.900"),
        ("350", "5000", "10", "0.7", "1", "0.490"),
        ("350", "5000", "10", "1", "1.5", "1.050"),
        ("1", "3", "1", "1", "1", "0.333"),
    ],
)
def test_revenue_per_dollar_of_cost(
    price: str, sold: str, per_usd: str, multiplier: str, markup: str, expected: str
) -> None:
    """Credits charged per dollar of cost, over credits sold per dollar of revenue, rounded down."""
    found = margin(
        price_usd=Decimal(price),
        credits_sold=Decimal(sold),
        credits_per_usd=Decimal(per_usd),
        cost_multiplier=Decimal(multiplier),
        markup=Decimal(markup),
    )
    assert found == Decimal(expected)
