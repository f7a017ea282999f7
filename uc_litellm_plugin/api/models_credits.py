"""Balances, the ledger, holds and packages."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from .models import (
    Amount,
    Answer,
    Asked,
    Credits,
    IdempotencyKey,
    LongText,
    Moment,
    SignedAmount,
    Status,
    Text,
    Tier,
    Usd,
)

TransactionType = Literal["purchase", "debit", "refund", "bonus", "adjustment", "hold", "release", "expire"]
Addition = Literal["bonus", "purchase", "refund", "adjustment"]
Tokens = Annotated[int, Field(ge=0, le=2_147_483_647)]


class Balance(Answer):
    """What an account has. All amounts are credits."""

    user_id: str = Field(examples=["ann"])
    credits_remaining: Credits = Field(description="The balance, held credits included.")
    credits_held: Credits = Field(description="Of these, set aside for calls under way.")
    credits_available: Credits = Field(description="Remaining minus held: what new calls can hold.")
    credits_debt: Credits = Field(description="What settled calls cost beyond what was there; paid first.")
    credits_lifetime: Credits = Field(description="Ever added by purchase.")
    credits_spent: Credits = Field(description="Ever charged.")
    monthly_cap: Credits | None = Field(description="Most that may be spent in a UTC month; null is no cap.")
    spent_this_month: Credits
    tier: Tier
    power_level: str = Field(examples=["balanced"])
    status: Status


class Transaction(Answer):
    """A row of the ledger. A charge is `debt_delta - amount`."""

    id: int
    transaction_type: TransactionType
    amount: Credits = Field(description="What the balance moved by, signed.")
    held_delta: Credits
    debt_delta: Credits
    balance_after: Credits
    held_after: Credits
    debt_after: Credits
    hold_id: UUID | None
    request_id: str | None
    idempotency_key: str | None
    provider: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_used: int | None
    power_level: str | None
    byok_used: bool
    payment_method: str | None
    package_id: int | None
    notes: str | None
    by: str | None = Field(description="Who did it, where it was not a call of the account's own.")
    late: bool = Field(description="Whether a call was charged after its hold had lapsed.")
    created_at: Moment


class Hold(Answer):
    """Credits that are set aside for one call."""

    hold_id: UUID = Field(description="The call's request id.")
    amount: Credits
    model: str | None = Field(description="The model that was asked for.")
    endpoint: str | None = Field(examples=["chat"])
    power_level: str | None
    created_at: Moment
    expires_at: Moment = Field(description="Freed then, unless the call is still under way.")


class Package(Answer):
    """What can be bought."""

    id: int
    name: str = Field(examples=["Value Pack"])
    credits: Credits
    price_usd: Usd = Field(examples=["45.00"])
    discount_percent: Usd = Field(examples=["10.00"])
    min_tier: Tier
    is_featured: bool
    description: str
    badge_text: str | None = Field(examples=["MOST POPULAR"])


class Purchase(Asked):
    """Which package to buy."""

    package_id: int = Field(ge=1, le=2_147_483_647, examples=[2])


class Debit(Asked):
    """A charge at once, without a hold."""

    amount: Amount = Field(description="Credits, above 0.", examples=["1.25"])
    reason: LongText = Field(description="Why; it stands in the ledger.", examples=["OCR of 5 pages"])
    idempotency_key: IdempotencyKey | None = Field(
        None, description="The same key charges once; or the header Idempotency-Key.", examples=["invoice-17"]
    )
    provider: Text | None = Field(None, examples=["mistral"])
    model: Text | None = Field(None, examples=["mistral-ocr"])
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=16, description="Texts of yours.")


class Debited(Answer):
    """The ledger row, and the balance after it."""

    transaction_id: int
    amount: Credits
    credits_remaining: Credits = Field(description="After the row; a repeated key gets the first answer again.")


class Grant(Asked):
    """Credits for an account; below zero for a refund or an adjustment that takes them."""

    amount: SignedAmount = Field(description="Credits, not 0.", examples=["25"])
    type: Addition = "bonus"
    reason: LongText = Field(description="Why; it stands in the ledger.", examples=["Welcome"])
    idempotency_key: IdempotencyKey | None = Field(
        None, description="The same key adds once; or the header Idempotency-Key.", examples=["welcome-ann"]
    )


class Granted(Answer):
    """The ledger row, and the account after it."""

    transaction_id: int
    amount: Credits
    user_id: str
    credits_remaining: Credits
    credits_available: Credits
    credits_debt: Credits


def transaction(row: dict[str, Any]) -> Transaction:
    """A ledger row as it is shown."""
    late = isinstance(row["metadata"], dict) and row["metadata"].get("late") is True
    return Transaction.model_validate({**row, "by": row["admin_user_id"], "late": late})
