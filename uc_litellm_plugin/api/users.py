"""`/users`: the accounts, for administrators."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query

from ..database import Database
from ..errors import NotFound
from ..office import NO_CAP, Changes, Office, checked_user_id
from .callers import Asking, At, note
from .envelope import EnvelopeRoute
from .models import ERRORS, Page, Status, Tier
from .models_users import ChangedUser, User, UserChanges
from .pages import Cursor, Limit, cut, place_in

routing = APIRouter(prefix="/users", tags=["uc: users"], route_class=EnvelopeRoute, responses=ERRORS)

_USER = """
SELECT user_id, tier, status, power_level, power_level_downgrade AS downgrade, credits_remaining, credits_held,
    credits_available, credits_debt, credits_lifetime, credits_spent, monthly_cap,
    CASE WHEN last_reset < date_trunc('month', clock_timestamp(), 'UTC') THEN 0 ELSE spent_this_month END
        AS spent_this_month, created_at
FROM user_credits"""
_ALL = f"""
{_USER}
WHERE ($1::text IS NULL OR user_id > $1) AND ($2::text IS NULL OR tier = $2) AND ($3::text IS NULL OR status = $3)
ORDER BY user_id LIMIT $4"""
_ONE = f"{_USER} WHERE user_id = $1"

UserId = Annotated[str, Path(max_length=255, description="The account.", examples=["ann"])]


@routing.get("")
async def listed(
    asking: Asking,
    at: At,
    limit: Limit = 50,
    cursor: Cursor = None,
    tier: Annotated[Tier | None, Query()] = None,
    status: Annotated[Status | None, Query()] = None,
) -> Page[User]:
    """The accounts, by user id. For admins."""
    place = place_in(cursor, str)
    after = place[0] if place else None
    rows = await at.worker.database.fetch(_ALL, after, tier, status, limit + 1, idempotent=True)
    shown, more = cut(rows, limit, lambda row: (row["user_id"],))
    return Page(data=[User.model_validate(dict(row)) for row in shown], next_cursor=more)


@routing.get("/{user_id:path}")
async def show(asking: Asking, at: At, user_id: UserId) -> User:
    """One account. For admins."""
    return await _user(at.worker.database, checked_user_id(user_id))


@routing.patch("/{user_id:path}")
async def change(asking: Asking, at: At, user_id: UserId, changes: UserChanges) -> ChangedUser:
    """Change an account; workers follow at once, calls under way end on the terms they were held with. For admins."""
    cap: Decimal | Literal["none"] | None = None
    if "monthly_cap" in changes.model_fields_set:
        cap = NO_CAP if changes.monthly_cap is None else Decimal(changes.monthly_cap)
    asked = Changes(changes.tier, changes.power_level, cap, changes.status, changes.downgrade)
    changed: dict[str, Any] = (await Office(at.worker.database).change(user_id, asked))["changed"]
    note(asking, f"changed {', '.join(changed) or 'nothing'}", user_id, changes.reason)
    user = await _user(at.worker.database, user_id)
    return ChangedUser(**user.model_dump(), changed={name: _shown(pair) for name, pair in changed.items()})


async def _user(database: Database, user_id: str) -> User:
    row = await database.fetchrow(_ONE, user_id, idempotent=True)
    if row is None:
        raise NotFound("There is no such account.", code="unknown_account")
    return User.model_validate(dict(row))


def _shown(pair: dict[str, Any]) -> dict[str, Any]:
    """Before and after, amounts as decimal strings."""
    return {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in pair.items()}
