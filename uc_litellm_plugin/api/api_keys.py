"""`/api-keys`: the keys with which the account's apps call the proxy."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query

from ..database import Database
from ..errors import Forbidden, NotFound, Taken
from ..office import Office
from .callers import Account, At, OpenAccount, note
from .envelope import EnvelopeRoute
from .models import ERRORS, Page
from .models_keys import ApiKey, MadeApiKey, NewApiKey, RevokedApiKey
from .pages import Cursor, Limit, cut, place_in

routing = APIRouter(prefix="/api-keys", tags=["uc: API keys"], route_class=EnvelopeRoute, responses=ERRORS)

MOST_KEYS = 100

_KEYS = """
SELECT id, name, role, key_hint, is_active, expires_at, last_used, created_at FROM user_api_keys
WHERE user_id = $1 AND ($2::boolean IS NULL OR is_active = $2)
    AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
ORDER BY created_at DESC, id DESC LIMIT $5"""
_ACTIVE = "SELECT count(*) FROM user_api_keys WHERE user_id = $1 AND is_active"
# An account's own only, whoever knows the id of another's.
_ROLE = "SELECT role FROM user_api_keys WHERE user_id = $1 AND id = $2"
_REVOKE = """
UPDATE user_api_keys AS k SET is_active = false FROM user_api_keys AS before
WHERE k.id = $2 AND k.user_id = $1 AND before.id = k.id RETURNING k.id, before.is_active AS was_active"""


@routing.get("")
async def listed(
    account: Account,
    at: At,
    limit: Limit = 50,
    cursor: Cursor = None,
    status: Annotated[Literal["active", "revoked"] | None, Query(description="Else both.")] = None,
) -> Page[ApiKey]:
    """The account's API keys, newest first. New keys do not shift what a cursor goes on with."""
    is_active = None if status is None else status == "active"
    before = place_in(cursor, datetime, UUID) or (None, None)
    rows = await at.worker.database.fetch(_KEYS, account.user_id, is_active, *before, limit + 1, idempotent=True)
    shown, after = cut(rows, limit, lambda row: (row["created_at"], row["id"]))
    return Page(data=[ApiKey.model_validate(dict(row)) for row in shown], next_cursor=after)


@routing.post("", status_code=201)
async def make(account: OpenAccount, at: At, new: NewApiKey) -> MadeApiKey:
    """Make an API key. The key is in this answer and nowhere else."""
    if new.role != "user" and account.actor.role != "admin":
        raise Forbidden(f"Only an admin can make {new.role} keys.", code="role_not_allowed")
    await _require_room(at.worker.database, account.user_id)
    made = await Office(at.worker.database).create_key(account.user_id, new.role, new.name, new.expires_at)
    note(account.actor, f"made {new.role} key {made['id']}", account.user_id)
    return MadeApiKey.model_validate(made)


@routing.delete("/{key_id}")
async def revoke(
    account: Account, at: At, key_id: Annotated[UUID, Path(description="The API key's id.")]
) -> RevokedApiKey:
    """Revoke an API key; within a second no worker accepts it. The key that asks may be this one."""
    role = await at.worker.database.fetchval(_ROLE, account.user_id, key_id, idempotent=True)
    if role not in (None, "user") and account.actor.role != "admin" and account.actor.key_id != str(key_id):
        raise Forbidden(f"Only an admin can revoke {role} keys.", code="role_not_allowed")
    row = await at.worker.database.fetchrow(_REVOKE, account.user_id, key_id, idempotent=True)
    if row is None:
        raise NotFound("There is no such API key.", code="unknown_key")
    note(account.actor, f"revoked key {key_id}", account.user_id)
    return RevokedApiKey(id=row["id"], was_active=row["was_active"])


async def _require_room(database: Database, user_id: str) -> None:
    if await database.fetchval(_ACTIVE, user_id, idempotent=True) >= MOST_KEYS:
        raise Taken(f"The account has {MOST_KEYS} active API keys: revoke one.", code="too_many_keys")
