"""Accounts, as administrators see and change them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .models import Amount, Answer, Asked, Credits, LongText, Moment, PowerLevelName, Status, Tier, left_out


class User(Answer):
    """An account."""

    user_id: str = Field(examples=["ann"])
    tier: Tier
    status: Status
    power_level: str
    downgrade: bool
    credits_remaining: Credits
    credits_held: Credits
    credits_available: Credits
    credits_debt: Credits
    credits_lifetime: Credits
    credits_spent: Credits
    monthly_cap: Credits | None
    spent_this_month: Credits
    created_at: Moment


class UserChanges(Asked):
    """What is to be changed of an account; the rest stays."""

    tier: Tier = left_out()
    monthly_cap: Amount | None = left_out(description="Credits per UTC month; null takes the cap away.")
    status: Status = left_out(description="`suspended` and `closed` accounts can make no calls.")
    power_level: PowerLevelName = left_out()
    downgrade: bool = left_out(description="Whether calls that do not fit are tried at cheaper levels.")
    reason: LongText = left_out(description="Why; it stands in the log.", examples=["Upgrade"])


class ChangedUser(User):
    """The account after the change."""

    changed: dict[str, dict[str, Any]] = Field(
        description="Of each setting that is another now, `before` and `after`.",
        examples=[{"tier": {"before": "free", "after": "starter"}}],
    )
