"""What workers hear on the channel <schema>_changed."""

from __future__ import annotations

import json
from typing import Any

from tests.schema.conftest import Connect
from tests.schema.ledger import Ledger

_ADD_PROVIDER_KEY = """INSERT INTO user_provider_keys (user_id, provider, encrypted_api_key, key_id)
    VALUES ('ann', 'groq', 'x', 'k')"""


async def test_notifications(ledger: Ledger, connect: Connect) -> None:
    """What workers cache is announced when it changes, and calls announce nothing."""
    heard: list[tuple[str, str | None, str | None]] = []

    def listen(*event: Any) -> None:
        payload = json.loads(event[3])
        heard.append((payload["table"], payload["user_id"], payload["key_hash"]))

    listener = await connect()
    await listener.add_listener("uc_changed", listen)
    run = ledger.connection.execute
    for statement, expected in {
        "SELECT add_user_credits('ann', 5, 'bonus')": [("user_credits", "ann", None)],
        "SELECT debit_user_credits('ann', 1, 'p', 'm', 1, 1, 'eco')": [],
        "UPDATE user_credits SET tier = tier, credits_lifetime = 3": [],
        "UPDATE user_credits SET tier = 'starter'": [("user_credits", "ann", None)],
        "UPDATE user_credits SET power_level = 'eco'": [("user_credits", "ann", None)],
        "UPDATE user_credits SET power_level_downgrade = true": [("user_credits", "ann", None)],
        "UPDATE user_credits SET status = 'suspended'": [("user_credits", "ann", None)],
        "UPDATE user_credits SET monthly_cap = 5": [("user_credits", "ann", None)],
        "INSERT INTO user_api_keys (user_id, key_hash) VALUES ('ann', repeat('a', 64))": [
            ("user_api_keys", "ann", "a" * 64)
        ],
        "SELECT touch_api_keys(ARRAY(SELECT id FROM user_api_keys))": [],
        "UPDATE user_api_keys SET is_active = false": [("user_api_keys", "ann", "a" * 64)],
        "UPDATE user_api_keys SET key_hash = repeat('b', 64)": [
            ("user_api_keys", "ann", "a" * 64),
            ("user_api_keys", "ann", "b" * 64),
        ],
        "DELETE FROM user_api_keys": [("user_api_keys", "ann", "b" * 64)],
        _ADD_PROVIDER_KEY: [("user_provider_keys", "ann", None)],
        "UPDATE user_provider_keys SET total_requests = 1, total_tokens = 1, last_used = now(), last_error = 'x'": [],
        "UPDATE user_provider_keys SET encrypted_api_key = 'y'": [("user_provider_keys", "ann", None)],
        "UPDATE user_provider_keys SET monthly_cap_usd = 5": [("user_provider_keys", "ann", None)],
        "UPDATE user_provider_keys SET spent_this_month_usd = 4.99, errors_in_a_row = 1, total_errors = 1": [],
        "UPDATE user_provider_keys SET spent_this_month_usd = 5": [("user_provider_keys", "ann", None)],
        "UPDATE user_provider_keys SET spent_this_month_usd = 6": [],
        "UPDATE user_provider_keys SET spent_this_month_usd = 0": [("user_provider_keys", "ann", None)],
        "UPDATE power_level_configs SET cost_multiplier = 2 WHERE power_level = 'eco'": [
            ("power_level_configs", None, None)
        ],
        "SELECT apply_power_level('eco', '{\"cost_multiplier\": 3}', 'c')": [("power_level_configs", None, None)],
        "SELECT apply_power_level('eco', '{\"cost_multiplier\": 4}', 'c')": [],
        "SELECT apply_power_level('turbo', '{}', 'c')": [("power_level_configs", None, None)],
        "DELETE FROM power_level_configs WHERE power_level = 'turbo'": [("power_level_configs", None, None)],
        "UPDATE providers SET display_name = 'x' WHERE name = 'groq'": [("providers", None, None)],
        "UPDATE credit_packages SET is_featured = true": [],
    }.items():
        heard.clear()
        await run(statement)
        # A statement of the listener returns after what was announced before it.
        await listener.fetchval("SELECT 1")
        assert heard == expected, statement
