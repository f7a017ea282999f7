"""Provider keys and API keys; a key itself only ever comes in, or goes out once."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, SecretStr, WithJsonSchema

from .models import Address, Amount, Answer, Asked, Credits, Moment, Name, Role, left_out

Fallback = Literal["never", "credits"]
ProviderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", examples=["openai"])]
WrittenKey = Annotated[
    SecretStr,
    Field(min_length=8, max_length=512),
    WithJsonSchema({"type": "string", "minLength": 8, "maxLength": 512, "writeOnly": True, "examples": ["sk-…"]}),
]


class ProviderKey(Answer):
    """A provider key of the account's own; of the key itself the last four characters."""

    id: UUID
    provider: str = Field(examples=["openai"])
    key_name: str = Field(examples=["default"])
    key_hint: str = Field(examples=["cdef"])
    api_base: str | None
    is_active: bool
    is_default: bool
    fallback: Fallback = Field(description="`credits`: a call may go on with the platform's key, and is charged.")
    monthly_cap_usd: Credits | None
    spent_this_month_usd: Credits
    total_requests: int
    total_tokens: int
    total_errors: int
    errors_in_a_row: int
    last_used: Moment | None
    last_error: str | None
    last_error_at: Moment | None
    expires_at: Moment | None
    is_expired: bool
    rotation_reminder: Moment | None
    is_rotation_due: bool
    created_at: Moment


class NewProviderKey(Asked):
    """A provider key to be stored, sealed."""

    provider: ProviderName
    api_key: WrittenKey
    key_name: Name = "default"
    is_default: bool = False
    fallback: Fallback = "never"
    monthly_cap_usd: Amount | None = Field(None, description="US dollars at the provider in a UTC month.")
    api_base: Address | None = Field(None, description="An endpoint of your own, for the provider `custom`.")
    expires_at: Moment | None = None
    rotation_reminder: Moment | None = None
    test: bool = Field(False, description="Try it at the provider first; it is stored only if that accepts it.")


class ProviderKeyChanges(Asked):
    """What is to be changed; null takes a cap or a time away."""

    key_name: Name = left_out(examples=["work"])
    is_active: bool = left_out()
    is_default: bool = left_out()
    fallback: Fallback = left_out()
    monthly_cap_usd: Amount | None = left_out()
    expires_at: Moment | None = left_out()
    rotation_reminder: Moment | None = left_out()


class KeyTest(Answer):
    """What the provider said of a key."""

    result: Literal["ok", "refused", "unreachable"]
    status: int | None = Field(description="The provider's HTTP status.", examples=[200])
    latency_ms: int


class ApiKey(Answer):
    """An API key, with which an app calls the proxy."""

    id: UUID
    name: str = Field(examples=["my app"])
    role: Role
    key_hint: str = Field(examples=["x7Qa"])
    is_active: bool = Field(description="False: revoked.")
    expires_at: Moment | None
    last_used: Moment | None
    created_at: Moment


class NewApiKey(Asked):
    """An API key to be made."""

    name: Name = Field("default", description="It becomes the app_id of its calls.", examples=["my app"])
    role: Role = Field("user", description="Service and admin keys are made by admins.")
    expires_at: Moment | None = None


class MadeApiKey(Answer):
    """A new API key; it is shown this once."""

    id: UUID
    api_key: str = Field(examples=["sk-uc-…"], description="Keep it now: it is stored nowhere.")
    name: str
    role: Role
    key_hint: str
    expires_at: Moment | None


class RevokedApiKey(Answer):
    """A revoked API key; no worker accepts it a second later."""

    id: UUID
    deleted: Literal[True] = True
    was_active: bool
