"""What services and administrators do: debits, grants, accounts, power levels; and what users may not."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from tests.acceptance.asking import ask
from tests.acceptance.bank import Account, Bank
from tests.acceptance.test_api.client import Client
from tests.proxy import Json, Proxy

AT_ONCE = 12


def debit(amount: str = "1.5", **fields: object) -> Json:
    return {"amount": amount, "reason": "OCR of 5 pages", "idempotency_key": uuid.uuid4().hex, **fields}


def test_debit(bank: Bank, account: Account, service: Client, user: Client) -> None:
    """A debit is a ledger row with who and why, and the user sees it."""
    body = debit(provider="mistral", model="ocr", prompt_tokens=5, completion_tokens=2, metadata={"pages": "5"})
    made = service.post("/credits/debit", body)
    assert (made["amount"], made["credits_remaining"]) == ("-1.500000", "98.500000")
    row = bank.transactions(account)[-1]
    assert (row["id"], row["amount"], row["notes"]) == (made["transaction_id"], Decimal("-1.5"), "OCR of 5 pages")
    assert (row["provider"], row["model"], row["tokens_used"]) == ("mistral", "ocr", 7)
    (shown,) = user.get("/credits/transactions", type="debit")["data"]
    (key,) = bank.rows("SELECT user_id FROM user_api_keys WHERE right(key_hint, 4) = $1", str(service.api_key)[-4:])
    assert (shown["by"], shown["notes"], shown["model"]) == (key["user_id"], "OCR of 5 pages", "ocr")
    assert bank.audit() == []


def test_debits_at_once(bank: Bank, account: Account, service: Client) -> None:
    """The same key charges once, however many ask at the same moment, by header or body, and all get one answer."""
    body = debit("10")
    without = {name: value for name, value in body.items() if name != "idempotency_key"}

    def ask_once(n: int) -> Json:
        if n % 2:
            return dict(service.post("/credits/debit", body))
        return dict(service.post("/credits/debit", without, **{"Idempotency-Key": str(body["idempotency_key"])}))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask_once, range(AT_ONCE)))
    assert all(answer == answers[0] for answer in answers)
    assert bank.balance(account).remaining == 90
    assert service.refused("POST", "/credits/debit", json={**body, "amount": "11"}) == (409, "idempotency_conflict")


def test_debits_do_not_overdraw(bank: Bank, account: Account, service: Client) -> None:
    """Debits at once never take more than there is, and the refusal tells the amounts."""

    def status(n: int) -> int:
        return service.ask("POST", "/credits/debit", json=debit("30")).status_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = sorted(pool.map(status, range(AT_ONCE)))
    assert statuses == [200] * 3 + [402] * (AT_ONCE - 3)
    refused = service.ask("POST", "/credits/debit", json=debit("10.000001")).json()["error"]
    assert refused["metadata"] == {"required": "10.000001", "available": "10.000000"}
    assert bank.balance(account).remaining == 10
    assert bank.audit() == []


def test_a_debit_beyond_any_balance(bank: Bank, account: Account, service: Client) -> None:
    """An amount that no account can have is a 402, and one that nobody can spend a second time a 400."""
    bank.add(account.user_id, "99999999999000")
    service.post("/credits/debit", debit("99999999998000"))
    bank.add(account.user_id, "99999999990000")
    refused = service.refused("POST", "/credits/debit", json=debit("99999999999999"))
    assert refused == (402, "insufficient_credits")
    assert service.refused("POST", "/credits/debit", json=debit("99999999990000")) == (400, "invalid_amount")
    assert bank.audit() == []


@pytest.mark.parametrize("status", ["suspended", "closed"])
def test_a_debit_of_who_is_locked_out(bank: Bank, account: Account, service: Client, status: str) -> None:
    """A suspended or closed account pays for nothing; a debit of before is answered as it was."""
    body = debit()
    made = service.post("/credits/debit", body)
    bank.rows("UPDATE user_credits SET status = $2 WHERE user_id = $1", account.user_id, status)
    assert service.refused("POST", "/credits/debit", json=debit()) == (403, f"account_{status}")
    assert service.post("/credits/debit", body) == made


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"idempotency_key": None}, "idempotency_key_missing"),
        ({"amount": "0"}, "invalid_amount"),
        ({"amount": "-1"}, "invalid_value"),
        ({"amount": "1e3"}, "invalid_value"),
        ({"amount": "NaN"}, "invalid_value"),
        ({"amount": 1.5}, "invalid_value"),
        ({"amount": "0.0000001"}, "invalid_value"),
        ({"reason": ""}, "invalid_value"),
        ({"reason": "a\u0000b"}, "invalid_value"),
        ({"surprise": 1}, "invalid_value"),
        ({"prompt_tokens": 2**31}, "invalid_value"),
        ({"prompt_tokens": -1}, "invalid_value"),
    ],
)
def test_debits_that_cannot_be(bank: Bank, account: Account, service: Client, change: Json, code: str) -> None:
    """A debit that cannot be is a 400 that says why, and moves nothing."""
    assert service.refused("POST", "/credits/debit", json={**debit(), **change}) == (400, code)
    assert bank.balance(account).remaining == 100


def test_keys_that_differ(service: Client) -> None:
    """Two idempotency keys for one debit are refused."""
    headers = {"Idempotency-Key": "another"}
    answer = service.refused("POST", "/credits/debit", json=debit(), headers=headers)
    assert answer == (400, "invalid_idempotency_key")


def test_cost_per_token_that_no_column_holds(bank: Bank, account: Account, service: Client) -> None:
    """A large debit for a single token goes through."""
    bank.add(account.user_id, "9000000000")
    service.post("/credits/debit", debit("8000000000", prompt_tokens=1, completion_tokens=0))
    assert bank.balance(account).remaining == 1000000100


def test_grant(bank: Bank, account: Account, admin: Client) -> None:
    """A grant adds once per key, with who and why; a refund below zero takes back."""
    body = {"amount": "25", "reason": "Welcome", "idempotency_key": "welcome"}
    first = admin.post("/credits/grant", body)
    assert admin.post("/credits/grant", body)["transaction_id"] == first["transaction_id"]
    assert (first["amount"], first["credits_remaining"]) == ("25.000000", "125.000000")
    taken = admin.post("/credits/grant", {"amount": "-130", "type": "adjustment", "reason": "A mistake"})
    assert (taken["credits_remaining"], taken["credits_debt"]) == ("0.000000", "5.000000")
    row = bank.transactions(account)[1]
    assert (row["notes"], row["transaction_type"]) == ("Welcome", "bonus")
    assert row["admin_user_id"]
    assert bank.audit() == []


@pytest.mark.parametrize(
    "change",
    [{"amount": "0"}, {"amount": "-1"}, {"type": "debit"}, {"reason": None}, {"amount": "9" * 15}, {"amount": "1.5e1"}],
)
def test_grants_that_cannot_be(bank: Bank, account: Account, admin: Client, change: Json) -> None:
    """A grant that cannot be is a 400, and moves nothing."""
    status, _ = admin.refused("POST", "/credits/grant", json={"amount": "1", "reason": "x", **change})
    assert status == 400
    assert bank.balance(account).remaining == 100


def test_grant_beyond_any_balance(account: Account, bank: Bank, admin: Client) -> None:
    """An amount that the balance could not hold is refused."""
    most = {"amount": "99999999999999.999999", "reason": "x"}
    assert admin.refused("POST", "/credits/grant", json=most) == (400, "invalid_amount")
    assert bank.balance(account).remaining == 100


def test_users(bank: Bank, account: Account, admin: Client) -> None:
    """All accounts are listed in parts, each one once, and one can be shown."""
    expected = [row["user_id"] for row in bank.rows('SELECT user_id FROM user_credits ORDER BY user_id COLLATE "C"')]
    assert sorted(row["user_id"] for row in admin.all_pages("/users", limit=7)) == expected
    assert {row["tier"] for row in admin.all_pages("/users", tier="free")} <= {"free"}
    shown = admin.get(f"/users/{account.user_id}")
    assert (shown["user_id"], shown["credits_remaining"], shown["status"]) == (account.user_id, "100.000000", "active")
    assert admin.refused("GET", "/users/nobody") == (404, "unknown_account")
    assert admin.refused("PATCH", "/users/nobody", json={"tier": "free"}) == (404, "unknown_account")


def test_users_after_a_long_name(bank: Bank, admin: Client) -> None:
    """The list goes on after every account that there can be."""
    names = sorted("界" * 254 + end for end in "ab")
    for name in names:
        bank.rows("SELECT * FROM create_account($1, 'enterprise')", name)
    listed = [row["user_id"] for row in admin.all_pages("/users", limit=1, tier="enterprise")]
    assert [name for name in listed if name in names] == names


def test_user_ids_with_slashes(bank: Bank, admin: Client) -> None:
    """A user id may hold what paths are made of."""
    user_id = f"org/{uuid.uuid4().hex}/ann ü"
    bank.rows("SELECT * FROM create_account($1)", user_id)
    assert admin.get(f"/users/{user_id}")["user_id"] == user_id
    assert admin.patch(f"/users/{user_id}", {"tier": "starter"})["tier"] == "starter"


def test_change_a_user(proxy: Proxy, bank: Bank, account: Account, admin: Client) -> None:
    """Tier, cap, status, level and downgrade change, what is left out stays, and the log says who did it."""
    changes = {
        "tier": "enterprise",
        "monthly_cap": "50.5",
        "power_level": "eco",
        "downgrade": True,
        "reason": "Upgrade",
    }
    changed = admin.patch(f"/users/{account.user_id}", changes)
    assert changed["changed"]["monthly_cap"] == {"before": None, "after": "50.500000"}
    assert changed["changed"]["tier"] == {"before": "starter", "after": "enterprise"}
    assert (changed["power_level"], changed["downgrade"], changed["status"]) == ("eco", True, "active")
    assert admin.patch(f"/users/{account.user_id}", {"monthly_cap": None})["monthly_cap"] is None
    assert admin.patch(f"/users/{account.user_id}", {"monthly_cap": None})["changed"] == {}
    assert f"for {account.user_id}: changed" in proxy.log()
    assert "(Upgrade)" in proxy.log()


def test_suspend(proxy: Proxy, bank: Bank, account: Account, admin: Client, user: Client) -> None:
    """A suspended account can look and take keys away, and neither call nor change anything, from the next call on."""
    spare = user.post("/api-keys", {"name": "spare"})
    admin.patch(f"/users/{account.user_id}", {"status": "suspended"})
    assert ask(proxy, account, "chat").status_code == 403
    assert user.get("/credits/balance")["status"] == "suspended"
    assert user.refused("POST", "/api-keys", json={"name": "later"}) == (403, "account_suspended")
    stored = {"provider": "openai", "api_key": f"sk-{'x' * 40}"}
    assert user.refused("POST", "/provider-keys", json=stored) == (403, "account_suspended")
    assert user.refused("PUT", "/power-level", json={"power_level": "eco"}) == (403, "account_suspended")
    assert user.get("/power-level")["power_level"] == "balanced"
    assert user.delete(f"/api-keys/{spare['id']}")["was_active"] is True
    admin.patch(f"/users/{account.user_id}", {"status": "active"})
    assert ask(proxy, account, "chat").status_code == 200
    bank.settled(account)


@pytest.mark.parametrize(
    "changes", [{}, {"tier": "gold"}, {"tier": None}, {"status": "gone"}, {"monthly_cap": "-1"}, {"credits_held": "1"},
                {"power_level": "turbo"}, {"downgrade": "yes"}, {"reason": "only"}]
)  # fmt: skip
def test_changes_that_cannot_be(account: Account, admin: Client, changes: Json) -> None:
    """A change that cannot be is a 400 and changes nothing."""
    before = admin.get(f"/users/{account.user_id}")
    assert admin.refused("PATCH", f"/users/{account.user_id}", json=changes)[0] == 400
    assert admin.get(f"/users/{account.user_id}") == before


@pytest.fixture
def level(bank: Bank) -> Iterator[str]:
    """A power level of the test's own."""
    name = f"l{uuid.uuid4().hex[:8]}"
    bank.rows("INSERT INTO power_level_configs (power_level, name) VALUES ($1, 'Test')", name)
    yield name
    bank.rows("DELETE FROM power_level_configs WHERE power_level = $1", name)


def test_power_levels(admin: Client, level: str) -> None:
    """An edit changes what it names, and tells what was probably not meant."""
    edit = {"cost_multiplier": "1.25", "max_latency_ms": 900, "preferred_providers": ["openai", "nobody"]}
    edited = admin.put(f"/power-levels/{level}", edit)
    assert (edited["cost_multiplier"], edited["max_latency_ms"], edited["name"]) == ("1.2500", 900, "Test")
    assert "nobody" in edited["warnings"][0]
    assert admin.put(f"/power-levels/{level}", {"max_latency_ms": None})["max_latency_ms"] is None
    (listed,) = [row for row in admin.get("/power-levels")["data"] if row["power_level"] == level]
    assert listed["cost_multiplier"] == "1.2500"
    assert admin.refused("PUT", "/power-levels/nowhere", json=edit) == (404, "unknown_power_level")


@pytest.mark.parametrize(
    "edit", [{}, {"cost_multiplier": "0"}, {"cost_multiplier": "99999999"}, {"min_quality_score": "101"},
             {"max_latency_ms": 0}, {"max_latency_ms": 10**30}, {"source": "seed"}, {"name": "a\u0000"},
             {"preferred_providers": ["Not A Name"]}, {"is_active": 1}]
)  # fmt: skip
def test_edits_that_cannot_be(admin: Client, level: str, edit: Json) -> None:
    """An edit that cannot be is a 400 and edits nothing."""
    assert admin.refused("PUT", f"/power-levels/{level}", json=edit)[0] == 400


OF_ADMINS = [
    ("POST", "/credits/grant"),
    ("GET", "/users"),
    ("GET", "/users/ann"),
    ("PATCH", "/users/ann"),
    ("PUT", "/power-levels/eco"),
]


def test_closed_to_others(user: Client, service: Client, as_role: Callable[[str], Client]) -> None:
    """Routes of administrators are closed to users and services, and debits to users."""
    for method, path in OF_ADMINS:
        for client in (user, service, as_role("user")):
            assert client.refused(method, path, json={}) == (403, "route_not_allowed")
    assert user.refused("POST", "/credits/debit", json=debit()) == (403, "route_not_allowed")


def test_master_key(proxy: Proxy, account: Account) -> None:
    """LiteLLM's master key is an administrator's."""
    master = Client(proxy, proxy.master_key, account.user_id)
    assert master.get(f"/users/{account.user_id}")["tier"] == "starter"
    assert master.post("/credits/grant", {"amount": "1", "reason": "x"})["credits_remaining"] == "101.000000"
    assert master.get("/credits/transactions", limit=1)["data"][0]["by"] == "master"
