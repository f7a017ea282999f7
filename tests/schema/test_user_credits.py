"""Accounts: opening, adding, debiting, reading."""

from __future__ import annotations

from decimal import Decimal

import asyncpg
import pytest

from tests.schema.ledger import Connection, Ledger, plain


async def test_create_account(db: Connection) -> None:
    """Opening an account twice makes one, and says which time it was made."""
    rows = [await db.fetchrow("SELECT * FROM create_account('ann', 'starter', 'eco')") for _ in range(2)]
    assert [tuple(row or ()) for row in rows] == [(True, None), (False, None)]
    account = await db.fetchrow("SELECT * FROM load_account('ann')")
    assert tuple(account or ()) == ("ann", "starter", "eco", "active", None, False)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", "free", "eco"), "invalid_user_id"),
        ((None, "free", "eco"), "invalid_user_id"),
        (("x" * 256, "free", "eco"), "invalid_user_id"),
        (("a\nb", "free", "eco"), "invalid_user_id"),
        (("a\x7fb", "free", "eco"), "invalid_user_id"),
        (("ann", "gold", "eco"), "invalid_tier"),
        (("ann", None, "eco"), "invalid_tier"),
        (("ann", "free", "turbo"), "invalid_power_level"),
        (("ann", "free", None), "invalid_power_level"),
    ],
)
async def test_create_account_refusals(db: Connection, arguments: tuple[str | None, ...], error: str) -> None:
    """What cannot be an account is refused by a row and makes none."""
    row = await db.fetchrow("SELECT * FROM create_account($1, $2, $3)", *arguments)
    assert tuple(row or ()) == (False, error)
    assert await db.fetchval("SELECT count(*) FROM user_credits") == 0


async def test_longest_and_foreign_ids(db: Connection) -> None:
    """An id may have 255 characters of any script."""
    row = await db.fetchrow("SELECT * FROM create_account($1)", "é" * 254 + "漢")
    assert tuple(row or ()) == (True, None)


async def test_get_user_balance(ledger: Ledger) -> None:
    """The balance tells all its parts; an unknown account has no row."""
    await ledger.add("ann", "12.5", "purchase")
    await ledger.held("ann", "2")
    rows = await ledger.connection.fetch("SELECT * FROM get_user_balance('ann')")
    assert [dict(row) for row in rows] == [
        {
            "credits_remaining": Decimal("12.5"),
            "credits_held": Decimal(2),
            "credits_available": Decimal("10.5"),
            "credits_debt": Decimal(0),
            "credits_lifetime": Decimal("12.5"),
            "tier": "free",
            "power_level": "balanced",
        }
    ]
    assert await ledger.connection.fetch("SELECT * FROM get_user_balance('nobody')") == []


async def test_add_opens_the_account(ledger: Ledger) -> None:
    """The first credits open the account with its defaults."""
    answer = await ledger.add("ann", "0.000001")
    assert answer["success"]
    account = await ledger.account("ann")
    assert (account["tier"], account["power_level"], account["status"]) == ("free", "balanced", "active")
    assert (account["recharge_threshold"], account["recharge_amount"], account["monthly_cap"]) == (10, 100, None)
    assert answer["new_balance"] == Decimal("0.000001")


@pytest.mark.parametrize(
    ("kind", "lifetime"), [("purchase", "5"), ("bonus", "0"), ("refund", "0"), ("adjustment", "0")]
)
async def test_lifetime_counts_purchases(ledger: Ledger, kind: str, lifetime: str) -> None:
    """Only bought credits count as lifetime credits."""
    await ledger.add("ann", "5", kind)
    assert plain((await ledger.account("ann"))["credits_lifetime"]) == lifetime
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    ("amount", "kind", "options", "error"),
    [
        ("0", "bonus", {}, "invalid_amount"),
        ("-1", "bonus", {}, "invalid_amount"),
        ("-1", "purchase", {}, "invalid_amount"),
        ("NaN", "bonus", {}, "invalid_amount"),
        ("Infinity", "bonus", {}, "invalid_amount"),
        ("-Infinity", "refund", {}, "invalid_amount"),
        ("0.0000001", "bonus", {}, "invalid_amount"),
        ("100000000000000", "bonus", {}, "invalid_amount"),
        ("99999999999999", "bonus", {}, "invalid_amount"),
        ("1", "debit", {}, "invalid_transaction_type"),
        ("1", "hold", {}, "invalid_transaction_type"),
        ("1", "bonus", {"payment_method": "cash"}, "invalid_payment_method"),
        ("1", "purchase", {"package_id": 999}, "unknown_package"),
    ],
)
async def test_add_refusals(ledger: Ledger, amount: str, kind: str, options: dict[str, str], error: str) -> None:
    """What cannot be added is refused by a row that tells the balance, and changes nothing."""
    await ledger.add("ann", "5")
    before = await ledger.fingerprint()
    answer = await ledger.add("ann", amount, kind, **options)
    assert (answer["success"], answer["error_message"], answer["transaction_id"]) == (False, error, None)
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize(("user", "amount", "error"), [("nobody", "-1", "unknown_account"), ("", "1",
"invalid_user_id"),
                                                       ("a\tb", "1", "invalid_user_id")])  # fmt: skip
async def test_add_opens_no_impossible_account(ledger: Ledger, user: str, amount: str, error: str) -> None:
    """Nothing can be taken from nobody, and an impossible id gets no account."""
    answer = await ledger.add(user, amount, "refund")
    assert (answer["success"], answer["error_message"], answer["new_balance"]) == (False, error, None)
    assert await ledger.connection.fetchval("SELECT count(*) FROM user_credits") == 0


async def test_null_amount_is_refused(db: Connection) -> None:
    """No amount is no amount, neither to add nor to debit nor to hold."""
    await db.execute("SELECT create_account('ann')")
    added = await db.fetchval("SELECT error_message FROM add_user_credits('ann', NULL, 'bonus')")
    debited = await db.fetchval("SELECT error_message FROM debit_user_credits('ann', NULL, 'p', 'm', 1, 1, 'eco')")
    held = await db.fetchval("SELECT error FROM hold_credits(gen_random_uuid(), 'ann', NULL, 0, '1 min')")
    assert (added, debited, held) == ("invalid_amount",) * 3


@pytest.mark.parametrize("kind", ["refund", "adjustment"])
async def test_taking_back(ledger: Ledger, kind: str) -> None:
    """A negative refund takes what is available, never what is held, and the rest becomes debt."""
    await ledger.add("ann", "10", "purchase")
    hold = await ledger.held("ann", "4")
    answer = await ledger.add("ann", "-9", kind)
    assert (answer["success"], plain(answer["new_balance"])) == (True, "4")
    assert await ledger.balances("ann") == ("4", "4", "3")
    await ledger.release(hold, "ann")
    assert await ledger.balances("ann") == ("1", "0", "0")
    assert await ledger.audit() == []


async def test_added_credits_pay_debt_first(ledger: Ledger) -> None:
    """Debt is paid before anything becomes available, and the row says what went where."""
    await ledger.add("ann", "1")
    await ledger.add("ann", "-6", "refund")
    answer = await ledger.add("ann", "8", "purchase")
    row = await ledger.connection.fetchrow("SELECT * FROM credit_transactions WHERE id = $1", answer["transaction_id"])
    assert row is not None
    assert (row["amount"], row["debt_delta"], row["balance_after"], row["debt_after"]) == (3, -5, 3, 0)
    assert await ledger.audit() == []


async def test_stripe_id_counts_once(ledger: Ledger) -> None:
    """A repeated Stripe payment gets the first answer and adds nothing."""
    first = await ledger.add("ann", "100", "purchase", payment_method="stripe", stripe_transaction_id="pi_1")
    await ledger.add("ann", "5")
    before = await ledger.fingerprint()
    again = await ledger.add("ann", "100", "purchase", payment_method="stripe", stripe_transaction_id="pi_1")
    assert tuple(again) == tuple(first)
    assert await ledger.fingerprint() == before


@pytest.mark.parametrize(("user", "amount"), [("ann", "101"), ("bob", "100"), ("new", "100")])
async def test_stripe_id_of_something_else(ledger: Ledger, user: str, amount: str) -> None:
    """A Stripe payment that was for another amount or account is a conflict and changes nothing."""
    await ledger.add("ann", "100", "purchase", stripe_transaction_id="pi_1")
    await ledger.add("bob", "1")
    before = await ledger.fingerprint()
    answer = await ledger.add(user, amount, "purchase", stripe_transaction_id="pi_1")
    assert (answer["success"], answer["error_message"]) == (False, "idempotency_conflict")
    assert await ledger.fingerprint() == before


async def test_refund_of_a_stripe_payment(ledger: Ledger) -> None:
    """A refund may name the payment it takes back, once."""
    await ledger.add("ann", "100", "purchase", stripe_transaction_id="pi_1")
    for _ in range(2):
        assert (await ledger.add("ann", "-100", "refund", stripe_transaction_id="pi_1"))["success"]
    assert await ledger.balances("ann") == ("0", "0", "0")


async def test_idempotency_key(ledger: Ledger) -> None:
    """An idempotency key counts once per account; with other arguments it is a conflict."""
    first = await ledger.add("ann", "3", idempotency_key="k")
    assert tuple(await ledger.add("ann", "3", idempotency_key="k")) == tuple(first)
    assert (await ledger.add("ann", "4", idempotency_key="k"))["error_message"] == "idempotency_conflict"
    assert (await ledger.add("ann", "3", "adjustment", idempotency_key="k"))["error_message"] == "idempotency_conflict"
    assert (await ledger.add("bob", "4", idempotency_key="k"))["success"]
    assert await ledger.balances("ann") == ("3", "0", "0")


async def test_debit(ledger: Ledger) -> None:
    """A debit takes its amount at once, is counted as spent, and its row carries the call."""
    await ledger.add("ann", "10")
    answer = await ledger.debit("ann", "2.5", {"request_id": "r", "note": 1})
    assert (answer["success"], answer["new_balance"], answer["error_message"]) == (True, Decimal("7.5"), None)
    row = await ledger.connection.fetchrow("SELECT * FROM credit_transactions WHERE id = $1", answer["transaction_id"])
    assert row is not None
    assert (row["amount"], row["provider"], row["model"], row["tokens_used"]) == (
        Decimal("-2.5"),
        "openai",
        "gpt-4o-mini",
        30,
    )
    assert (row["request_id"], row["idempotency_key"], row["power_level"]) == ("r", "r", "balanced")
    assert row["cost_per_token"] == Decimal("0.083333333333")
    account = await ledger.account("ann")
    assert (account["credits_spent"], account["spent_this_month"]) == (Decimal("2.5"), Decimal("2.5"))
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    ("user", "amount", "tokens", "error"),
    [
        ("nobody", "1", (1, 1), "unknown_account"),
        ("ann", "-1", (1, 1), "invalid_amount"),
        ("ann", "NaN", (1, 1), "invalid_amount"),
        ("ann", "Infinity", (1, 1), "invalid_amount"),
        ("ann", "0.0000001", (1, 1), "invalid_amount"),
        ("ann", "1", (-1, 1), "invalid_tokens"),
        ("ann", "7.000001", (1, 1), "insufficient_credits"),
    ],
)
async def test_debit_refusals(ledger: Ledger, user: str, amount: str, tokens: tuple[int, int], error: str) -> None:
    """A debit that cannot be is refused by a row and changes nothing; what is held cannot be debited."""
    await ledger.add("ann", "10")
    await ledger.held("ann", "3")
    before = await ledger.fingerprint()
    answer = await ledger.debit(user, amount, tokens=tokens)
    assert (answer["success"], answer["error_message"], answer["transaction_id"]) == (False, error, None)
    assert answer["new_balance"] == (None if user == "nobody" else 10)
    assert await ledger.fingerprint() == before


async def test_debit_request_id(ledger: Ledger) -> None:
    """A request is debited once; the same again gets the first answer, another amount is a conflict."""
    await ledger.add("ann", "10")
    first = await ledger.debit("ann", "2", {"request_id": "r"})
    await ledger.debit("ann", "1")
    assert tuple(await ledger.debit("ann", "2", {"request_id": "r"})) == tuple(first)
    assert (await ledger.debit("ann", "3", {"request_id": "r"}))["error_message"] == "idempotency_conflict"
    assert await ledger.balances("ann") == ("7", "0", "0")


@pytest.mark.parametrize("status", ["suspended", "closed"])
async def test_debit_of_an_account_that_is_not_active(ledger: Ledger, status: str) -> None:
    """Who is locked out pays for nothing; a debit of before is still answered as it was."""
    await ledger.add("ann", "10")
    first = await ledger.debit("ann", "2", {"request_id": "r"})
    await ledger.connection.execute("UPDATE user_credits SET status = $1 WHERE user_id = 'ann'", status)
    assert (await ledger.debit("ann", "1"))["error_message"] == f"account_{status}"
    assert tuple(await ledger.debit("ann", "2", {"request_id": "r"})) == tuple(first)
    assert await ledger.balances("ann") == ("8", "0", "0")


async def test_debit_counts_and_passes_the_monthly_cap(ledger: Ledger) -> None:
    """A debit counts as spent this month and is not stopped by the cap, which then leaves calls nothing."""
    await ledger.add("ann", "10")
    await ledger.connection.execute("UPDATE user_credits SET monthly_cap = 1 WHERE user_id = 'ann'")
    assert (await ledger.debit("ann", "2"))["success"]
    assert (await ledger.account("ann"))["spent_this_month"] == 2
    assert (await ledger.hold("ann", "1"))["error"] == "monthly_cap"


async def test_debit_takes_the_last_credit(ledger: Ledger) -> None:
    """All that is available can be debited, a millionth more cannot."""
    await ledger.add("ann", "1.000001")
    assert (await ledger.debit("ann", "1.000001"))["success"]
    assert (await ledger.debit("ann", "0.000001"))["error_message"] == "insufficient_credits"
    assert await ledger.balances("ann") == ("0", "0", "0")


async def test_account_history(ledger: Ledger) -> None:
    """History comes newest first, in pages that neither overlap nor skip."""
    for amount in range(1, 6):
        await ledger.add("ann", str(amount))
        await ledger.add("bob", "1")
    pages, before = [], None
    while rows := await ledger.connection.fetch("SELECT * FROM account_history('ann', 2, $1)", before):
        pages.append([plain(row["amount"]) for row in rows])
        before = rows[-1]["id"]
    assert pages == [["5", "4"], ["3", "2"], ["1"]]


async def test_accounts_with_history_stay(ledger: Ledger) -> None:
    """An account that has moved a credit cannot be deleted."""
    await ledger.add("ann", "1")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await ledger.connection.execute("DELETE FROM user_credits")
