"""A user's provider key: as it is brought, as it is changed, and as a call needs it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Final, Literal
from uuid import UUID

from .vault import Sealed, Secret

Fallback = Literal["never", "credits"]


class Unset(Enum):
    """The mark of what is not to be changed; None clears a value."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class NewKey:
    """A provider key as its owner brings it.

    Attributes
    ----------
    monthly_cap_usd
        US dollars that calls on it may cost at the provider in a UTC month; None for no cap.
    api_base
        An address of the owner's own, where the provider allows one.
    """

    provider: str
    api_key: Secret
    key_name: str = "default"
    is_default: bool = False
    fallback: Fallback = "never"
    monthly_cap_usd: Decimal | None = None
    api_base: str | None = None
    expires_at: datetime | None = None
    rotation_reminder: datetime | None = None


@dataclass(frozen=True)
class KeyChanges:
    """What is to be changed of a provider key; see `NewKey`."""

    key_name: str | Unset = UNSET
    is_active: bool | Unset = UNSET
    is_default: bool | Unset = UNSET
    fallback: Fallback | Unset = UNSET
    monthly_cap_usd: Decimal | Unset | None = UNSET
    expires_at: datetime | Unset | None = UNSET
    rotation_reminder: datetime | Unset | None = UNSET


@dataclass(frozen=True)
class ProviderKey:
    """An active provider key as a call needs it, still sealed.

    Attributes
    ----------
    spent_this_month_usd
        Since `last_reset`, as of when it was read. Reaching the cap is announced on the database's channel.
    """

    id: UUID
    user_id: str
    provider: str
    sealed: Sealed
    key_name: str
    api_base: str | None
    is_default: bool
    fallback: Fallback
    expires_at: datetime | None
    monthly_cap_usd: Decimal | None
    spent_this_month_usd: Decimal
    last_reset: datetime

    def is_usable(self, now: datetime) -> bool:
        """Neither past its time nor at its monthly cap."""
        return (self.expires_at is None or self.expires_at > now) and not self.is_capped(now)

    def is_capped(self, now: datetime) -> bool:
        """Whether calls of this UTC month have cost what they may."""
        if self.monthly_cap_usd is None:
            return False
        utc = now.astimezone(timezone.utc)
        is_of_this_month = self.last_reset >= utc.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return self.monthly_cap_usd <= (self.spent_this_month_usd if is_of_this_month else 0)
