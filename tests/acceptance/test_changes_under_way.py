"""What is edited between the hold and the settlement counts for the next call, never for the one under way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ask, asked
from tests.acceptance.bank import Account, Bank
from tests.proxy import Proxy
from tests.upstream import Upstream

EDITS = {
    "the level costs ten times as much": (
        "UPDATE uc.power_level_configs SET cost_multiplier = 10 WHERE power_level = 'balanced'",
        "UPDATE uc.power_level_configs SET cost_multiplier = 1.0 WHERE power_level = 'balanced'",
    ),
    "the user goes to another level": (
        "UPDATE uc.user_credits SET power_level = 'precision' WHERE user_id = '{user}'",
        "",
    ),
    "the user goes to another tier": ("UPDATE uc.user_credits SET tier = 'enterprise' WHERE user_id = '{user}'", ""),
    "the user is suspended": ("UPDATE uc.user_credits SET status = 'suspended' WHERE user_id = '{user}'", ""),
    "the account is closed": ("UPDATE uc.user_credits SET status = 'closed' WHERE user_id = '{user}'", ""),
    "the monthly cap falls below the call": ("UPDATE uc.user_credits SET monthly_cap = 0 WHERE user_id = '{user}'", ""),
    "the API key is revoked": ("UPDATE uc.user_api_keys SET is_active = false WHERE user_id = '{user}'", ""),
    "the level is withdrawn": (
        "UPDATE uc.power_level_configs SET is_active = false WHERE power_level = 'balanced'",
        "UPDATE uc.power_level_configs SET is_active = true WHERE power_level = 'balanced'",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_the_frozen_terms_hold(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, edit: str, stream: bool
) -> None:
    """The call is answered and charged by the terms it was held with."""
    change, back = EDITS[edit]
    upstream.set_fault("gate", after=2) if stream else upstream.set_fault("gate")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, proxy, account, "chat", stream)
        upstream.wait(gated=1)
        try:
            bank.execute(change.format(user=account.user_id))
            upstream.open()
            assert asking.result().status_code == 200
        finally:
            bank.execute(back or "SELECT 1")
    (row,) = bank.settled(account)
    (book,) = asked(upstream)
    assert row["cost_credits"] == prices.of_call(book)
    assert row["power_level"] == "balanced"
    assert bank.balance(account).remaining == 100 - row["cost_credits"]
