"""The back office: accounts and API keys as an operator handles them. Amounts are `Decimal` credits."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from . import api_keys
from .database import Database
from .errors import CommandRefused
from .settings import TIERS, Tier

ROLES = ("user", "service", "admin")
ADDITIONS = ("bonus", "purchase", "refund", "adjustment")
TAKING = ("refund", "adjustment")  # additions whose amount may be negative
STATUSES = ("active", "suspended", "closed")
NO_CAP: Literal["none"] = "none"
USER_ID_MAX = 255
KEY_NAME_MAX = 100
NOTES_MAX = 1000

_AMOUNT = re.compile(r"[+-]?\d{1,14}(\.\d{1,6})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PAYMENT_METHODS = {"bonus": "bonus"}

_ACCOUNT = """
SELECT user_id, credits_remaining, credits_held, credits_available, credits_debt, credits_lifetime, credits_spent,
       monthly_cap, spent_this_month, tier, power_level, power_level_downgrade, status, created_at
FROM user_credits WHERE user_id = $1"""
_ADD = """
SELECT * FROM add_user_credits(
    $1, $2, $3, p_payment_method => $4, p_notes => $5, p_idempotency_key => $6, p_admin_user_id => $7)"""
_SET = """
UPDATE user_credits AS a SET
    tier = coalesce($2, a.tier), power_level = coalesce($3, a.power_level), status = coalesce($4, a.status),
    power_level_downgrade = coalesce($5, a.power_level_downgrade),
    monthly_cap = CASE WHEN $6 THEN $7::numeric ELSE a.monthly_cap END
FROM (SELECT * FROM user_credits WHERE user_id = $1 FOR UPDATE) AS before
WHERE a.user_id = before.user_id
RETURNING before.tier, before.power_level, before.power_level_downgrade, before.status, before.monthly_cap"""
_HISTORY = """
SELECT id, created_at, transaction_type, amount, held_delta, debt_delta, balance_after, held_after, debt_after,
       provider, model, tokens_used, power_level, hold_id, request_id, idempotency_key, notes, admin_user_id
FROM account_history($1, $2)"""
_CREATE_KEY = """
INSERT INTO user_api_keys (user_id, key_hash, key_hint, name, role, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING id, user_id, key_hint, name, role, expires_at"""
_LIST_KEYS = """
SELECT id, user_id, key_hint, name, role, is_active, expires_at, last_used, created_at
FROM user_api_keys WHERE user_id = $1 ORDER BY created_at, id"""
_REVOKE_KEY = """
UPDATE user_api_keys AS k SET is_active = false FROM user_api_keys AS before
WHERE k.id = $1 AND before.id = k.id RETURNING k.id, k.user_id, k.key_hint, k.name, before.is_active AS was_active"""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Changes:
    """Settings of an account to be changed; None leaves one as it is.

    Attributes
    ----------
    monthly_cap
        Credits per month (UTC), or `NO_CAP`.
    downgrade
        Whether a call that does not fit is tried at cheaper power levels.
    """

    tier: Tier | None = None
    power_level: str | None = None
    monthly_cap: Decimal | Literal["none"] | None = None
    status: str | None = None
    downgrade: bool | None = None


@dataclass(frozen=True)
class Office:
    """What an operator can do; each method raises `CommandRefused` where it is not to be done.

    Parameters
    ----------
    database
        An open one.
    """

    database: Database

    async def open(self, user_id: str, tier: Tier | None = None, power_level: str | None = None) -> Facts:
        """Open an account; the same again changes nothing.

        Returns
        -------
        dict
            The account, and `created`.
        """
        checked_user_id(user_id)
        row = await self.database.fetchrow(
            "SELECT * FROM create_account($1, $2, $3)", user_id, tier or TIERS[0], power_level or "balanced",
            idempotent=True,
        )  # fmt: skip
        if row is None or row["error"]:
            raise _refusal(row["error"] if row else "no_answer", user_id)
        account = await self.show(user_id)
        for name, asked in (("tier", tier), ("power_level", power_level)):
            if asked is not None and account[name] != asked:
                raise CommandRefused(
                    f"{user_id} exists with {name} {account[name]}, not {asked}; nothing was changed.",
                    code="account_exists",
                )
        return {**account, "created": row["created"]}

    async def show(self, user_id: str) -> Facts:
        """The account with its balance."""
        row = await self.database.fetchrow(_ACCOUNT, checked_user_id(user_id), idempotent=True)
        if row is None:
            raise _refusal("unknown_account", user_id)
        return dict(row)

    async def change(self, user_id: str, changes: Changes) -> Facts:
        """Change an account's settings; what `changes` leaves open stays.

        Returns
        -------
        dict
            The account, and `changed`: of each setting that is another now, `before` and `after`.
        """
        _checked_changes(changes, user_id)
        cap = None if changes.monthly_cap == NO_CAP else changes.monthly_cap
        if changes.power_level is not None and not await self._is_level(changes.power_level):
            raise _refusal("invalid_power_level", user_id)
        before = await self.database.fetchrow(
            _SET, checked_user_id(user_id), changes.tier, changes.power_level, changes.status,
            changes.downgrade, changes.monthly_cap is not None, cap,
        )  # fmt: skip
        if before is None:
            raise _refusal("unknown_account", user_id)
        account = await self.show(user_id)
        changed = {
            name: {"before": was, "after": account[name]} for name, was in before.items() if was != account[name]
        }
        return {**account, "changed": changed}

    async def add_credits(
        self,
        user_id: str,
        amount: Decimal,
        kind: str = "bonus",
        notes: str | None = None,
        key: str | None = None,
        by: str | None = None,
    ) -> Facts:
        """Add credits to an account that exists (a typo must not open one), or take some back.

        Parameters
        ----------
        amount
            Credits; below zero only for a refund or an adjustment, and what is not there becomes debt.
        key
            An idempotency key: the same again with the same key adds nothing. Made up when it is None, so that a broken
            connection in this call cannot add twice.
        notes, by
            Why and who; a refund or an adjustment needs the reason.
        """
        if kind not in ADDITIONS:
            raise _refusal("invalid_transaction_type", user_id)
        if amount == 0 or (amount < 0 and kind not in TAKING):
            raise _refusal("invalid_amount", user_id)
        if kind in TAKING and notes is None:
            raise CommandRefused(f"Say why: a {kind} needs --notes.", code="notes_needed")
        checked_text("notes", notes, NOTES_MAX)
        checked_text("who does it", by, USER_ID_MAX)
        checked_text("the idempotency key", key, USER_ID_MAX)
        await self.show(user_id)
        method = _PAYMENT_METHODS.get(kind, "manual")
        key = key or f"operator-{uuid4()}"
        row = await self.database.fetchrow(_ADD, user_id, amount, kind, method, notes, key, by, idempotent=True)
        if row is None or not row["success"]:
            raise _refusal(row["error_message"] if row else "no_answer", user_id)
        return {"transaction_id": row["transaction_id"], "amount": amount, **await self.show(user_id)}

    async def _is_level(self, power_level: str) -> bool:
        asked = "SELECT EXISTS (SELECT FROM power_level_configs WHERE power_level = $1)"
        return bool(await self.database.fetchval(asked, power_level, idempotent=True))

    async def history(self, user_id: str, limit: int) -> list[Facts]:
        """The newest rows of the account's ledger."""
        await self.show(user_id)
        return [dict(row) for row in await self.database.fetch(_HISTORY, user_id, limit, idempotent=True)]

    async def create_key(
        self, user_id: str, role: str = "user", name: str = "default", expires_at: datetime | None = None
    ) -> Facts:
        """Make an API key for an account; `api_key` in the answer is shown this once and stored nowhere."""
        if role not in ROLES:
            raise CommandRefused(f"{role!r} is no role; use one of {', '.join(ROLES)}.", code="invalid_role")
        if expires_at is not None and expires_at <= datetime.now(timezone.utc):
            raise CommandRefused(f"The key would have expired already, on {expires_at:%Y-%m-%d}.", code="invalid_time")
        checked_text("the key's name", name, KEY_NAME_MAX)
        await self.show(user_id)
        api_key = api_keys.generate()
        row = await self.database.fetchrow(
            _CREATE_KEY, user_id, api_keys.hash_key(api_key), api_keys.hint(api_key), name, role, expires_at
        )
        if row is None:
            raise _refusal("no_answer", user_id)
        return {**dict(row), "api_key": api_key}

    async def keys(self, user_id: str) -> list[Facts]:
        """The account's API keys, oldest first."""
        await self.show(user_id)
        return [dict(row) for row in await self.database.fetch(_LIST_KEYS, user_id, idempotent=True)]

    async def revoke_key(self, key_id: str) -> Facts:
        """Switch an API key off for good; `was_active` tells whether it was on."""
        try:
            row = await self.database.fetchrow(_REVOKE_KEY, UUID(key_id))
        except ValueError:
            row = None
        if row is None:
            raise CommandRefused(
                f"There is no API key {key_id!r}; `uc-litellm keys list USER` shows the ids.", code="unknown_key"
            )
        return dict(row)


def checked_user_id(user_id: str) -> str:
    """The user id, if it can be one: 1 to 255 characters without control characters."""
    if not 1 <= len(user_id) <= USER_ID_MAX or _CONTROL.search(user_id):
        raise _refusal("invalid_user_id", user_id)
    return user_id


def _checked_changes(changes: Changes, user_id: str) -> None:
    if changes == Changes():
        raise _refusal("nothing_to_set", user_id)
    if changes.status is not None and changes.status not in STATUSES:
        raise _refusal("invalid_status", user_id)
    if isinstance(changes.monthly_cap, Decimal) and changes.monthly_cap < 0:
        raise _refusal("invalid_monthly_cap", user_id)


def parse_amount(text: str) -> Decimal:
    """Credits from a plain decimal with up to 14 digits before the point and 6 after it."""
    if not _AMOUNT.fullmatch(text):
        raise CommandRefused(
            f"{text[:40]!r} is no amount of credits: write a plain decimal such as 100 or 0.25, "
            "with at most 14 digits before the point and 6 after it.",
            code="invalid_amount",
        )
    return Decimal(text)


def system_user() -> str:
    """Who runs this process, for the record of who did it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # A container's user may have no name.
        return f"uid {os.getuid()}"


def checked_text(what: str, text: str | None, most: int) -> None:
    """Refuse a text that is empty, too long, or holds control characters; None is no text."""
    if text is not None and (not 1 <= len(text) <= most or _CONTROL.search(text)):
        raise CommandRefused(
            f"Write {what} with 1 to {most} characters and without control characters.", code="invalid_text"
        )


_WHY = {
    "unknown_account": "There is no account {user}. `uc-litellm users add` opens one.",
    "invalid_user_id": "{user} cannot be a user id: use 1 to 255 characters, none of them a control character.",
    "invalid_tier": f"There is no such tier; use one of {', '.join(TIERS)}.",
    "invalid_power_level": "There is no such power level; the built-in ones are eco, balanced and precision.",
    "nothing_to_set": "Nothing was to be set; name the tier, power level, downgrade, monthly cap or status.",
    "invalid_status": f"There is no such status; use one of {', '.join(STATUSES)}.",
    "invalid_monthly_cap": "A monthly cap is an amount of credits from 0 on, or none.",
    "invalid_transaction_type": f"There is no such type of credits; use one of {', '.join(ADDITIONS)}.",
    "invalid_amount": "The amount must be above zero, or below it for a refund or an adjustment.",
    "idempotency_conflict": "This idempotency key was used before, with another amount or account.",
}


def _refusal(code: str, user_id: str) -> CommandRefused:
    shown = repr(user_id if len(user_id) <= 80 else f"{user_id[:80]}…")
    return CommandRefused(_WHY.get(code, f"The database refused it: {code}.").format(user=shown), code=code)
