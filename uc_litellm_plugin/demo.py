"""The account that `serve` opens, so that there is something to try."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal

from . import api_keys
from .office import Office

USER = "demo"
TIER = "starter"
CREDITS = Decimal(100)


async def ensure(office: Office, api_key: str | None) -> str:
    """Open the demo account with its credits, once, and return an API key of it.

    Parameters
    ----------
    api_key
        The key of an earlier run; a new one is made when it is unknown, revoked or expired by now.
    """
    await office.database.fetch("SELECT created FROM create_account($1, $2)", USER, TIER, idempotent=True)
    await office.add_credits(USER, CREDITS, "bonus", "credits of the demo account", key="demo-credits")
    if api_key is not None and await _is_good(office, api_key):
        return api_key
    return str((await office.create_key(USER, name="demo"))["api_key"])


async def _is_good(office: Office, api_key: str) -> bool:
    hashed = api_keys.hash_key(api_key)
    row = await office.database.fetchrow("SELECT * FROM load_caller($1)", hashed, idempotent=True)
    if row is None or row["user_id"] != USER or not row["is_active"]:
        return False
    return row["expires_at"] is None or row["expires_at"] > datetime.now(timezone.utc)
