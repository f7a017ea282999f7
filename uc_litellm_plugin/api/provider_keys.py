"""`/provider-keys`: the account's own keys at providers; `provider_keys.ProviderKeys` decides what they may be."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path

from ..errors import Forbidden
from ..provider_key import KeyChanges, NewKey
from ..provider_keys import ProviderKeys
from ..reception import Reception
from ..vault import Secret, Vault
from .callers import Account, At, OpenAccount, note
from .envelope import EnvelopeRoute
from .models import ERRORS, Deleted, Everything
from .models_keys import KeyTest, NewProviderKey, ProviderKey, ProviderKeyChanges

routing = APIRouter(prefix="/provider-keys", tags=["uc: provider keys"], route_class=EnvelopeRoute, responses=ERRORS)

KeyId = Annotated[UUID, Path(description="The provider key's id.")]


@routing.get("")
async def listed(account: Account, at: At) -> Everything[ProviderKey]:
    """The account's own provider keys; of each the last four characters."""
    rows = await _keys(at).all(account.user_id)
    return Everything(data=[ProviderKey.model_validate(row) for row in rows])


@routing.post("", status_code=201)
async def add(account: OpenAccount, at: At, new: NewProviderKey) -> ProviderKey:
    """Store a provider key, sealed. It cannot be read again."""
    values = {name: value for name, value in _values(new).items() if name not in ("api_key", "test")}
    key = NewKey(**values, api_key=Secret(new.api_key.get_secret_value()))
    row = await _keys(at).add(account.user_id, key, tested=new.test)
    note(account.actor, f"added provider key {row['id']} ({row['provider']})", account.user_id)
    return ProviderKey.model_validate(row)


@routing.patch("/{key_id}")
async def change(account: OpenAccount, at: At, key_id: KeyId, changes: ProviderKeyChanges) -> ProviderKey:
    """Change a provider key's name, use, cap or times. The key itself is replaced by adding another."""
    named = {name: value for name, value in _values(changes).items() if name in changes.model_fields_set}
    row = await _keys(at).change(account.user_id, key_id, KeyChanges(**named))
    note(account.actor, f"changed {', '.join(named)} of provider key {key_id}", account.user_id)
    return ProviderKey.model_validate(row)


@routing.delete("/{key_id}")
async def delete(account: Account, at: At, key_id: KeyId) -> Deleted:
    """Delete a provider key; its usage stays."""
    row = await _keys(at).delete(account.user_id, key_id)
    note(account.actor, f"deleted provider key {key_id}", account.user_id)
    return Deleted(id=str(row["id"]))


@routing.post("/{key_id}/test")
async def test(account: OpenAccount, at: At, key_id: KeyId) -> KeyTest:
    """Try a provider key at its provider, with a call that costs nothing."""
    outcome = await _keys(at).test(account.user_id, key_id)
    return KeyTest.model_validate(dataclasses.asdict(outcome))


def _keys(at: Reception) -> ProviderKeys:
    settings = at.worker.settings
    if not settings.sealing_keys:
        raise Forbidden("Own provider keys are switched off here: there is no sealing key.", code="byok_disabled")
    return ProviderKeys(at.worker.database, Vault(settings.sealing_keys), settings.byok)


def _values(body: NewProviderKey | ProviderKeyChanges) -> dict[str, Any]:
    """The body's fields, its cap as a number."""
    values = {name: getattr(body, name) for name in type(body).model_fields}
    cap = values["monthly_cap_usd"]
    return {**values, "monthly_cap_usd": None if cap is None else Decimal(cap)}
