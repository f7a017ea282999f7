"""What LiteLLM is told of who calls."""

from __future__ import annotations

from typing import Any

from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth

from uc_litellm_plugin import identity
from uc_litellm_plugin.api_keys import generate, hash_key

FIELDS: dict[str, Any] = {
    "user_id": "alice", "end_user_id": "alice", "user_role": LitellmUserRoles.INTERNAL_USER, "key_alias": "app",
    "user_rpm_limit": 5, "user_tpm_limit": None,
}  # fmt: skip


def test_a_blank_filled_in_is_what_litellm_makes() -> None:
    """A copy of a blank has all that the checked way has, and says the same of what was set."""
    hashed = hash_key(generate())
    made = identity._filled_in(api_key=hashed, token=hashed, **FIELDS)
    checked = UserAPIKeyAuth(api_key=hashed, **FIELDS)
    assert made.__dict__ == checked.__dict__
    assert made.__pydantic_private__ == checked.__pydantic_private__
    assert made.model_dump(exclude_unset=True) == {**checked.model_dump(exclude_unset=True), "token": hashed}


def test_requests_share_nothing_that_litellm_writes_into() -> None:
    """What LiteLLM writes into one request's lists and dicts is in no other's."""
    one, other = identity._filled_in(user_id="alice"), identity._filled_in(user_id="bob")
    shared = [name for name, value in vars(one).items()
              if isinstance(value, list | dict | set) and value is vars(other)[name]]  # fmt: skip
    assert not shared
    one.metadata["spend"] = 1
    one.models.append("gpt")
    one._managed_delegation_verified = True
    assert (other.metadata, other.models, other._managed_delegation_verified) == ({}, [], False)
    assert identity._filled_in().metadata == {}
