"""What users see and do with their own account, by their own key or by a service that names them."""

from __future__ import annotations

import csv
import io
import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import httpx
import pytest

from tests.acceptance.asking import Visitor, ask, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.test_api.client import Client
from tests.pace import Seconds
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

WITHIN_SECONDS = 1.0


def called(proxy: Proxy, bank: Bank, account: Account, times: int = 1) -> list[Json]:
    """So many calls of the account, and their usage rows."""
    before = len(bank.usage(account))
    for _ in range(times):
        assert ask(proxy, account, "chat").status_code == 200
    return bank.settled(account, before + times)[before:]


@pytest.mark.usefixtures("one_day")
def test_balance(proxy: Proxy, bank: Bank, account: Account, user: Client, service: Client, admin: Client) -> None:
    """The balance is the ledger's, by the user's key, a service's and an admin's alike."""
    called(proxy, bank, account)
    balance = user.get("/credits/balance")
    assert balance == service.get("/credits/balance") == admin.get("/credits/balance")
    assert balance["user_id"] == account.user_id
    assert Decimal(balance["credits_remaining"]) == bank.balance(account).remaining
    assert Decimal(balance["credits_spent"]) == 100 - bank.balance(account).remaining > 0
    assert balance["spent_this_month"] == balance["credits_spent"]


def test_without_a_payer(proxy: Proxy, service: Client, admin: Client) -> None:
    """A service or admin key that names nobody, or somebody unknown, sees no account."""
    for client in (service, admin):
        nobody = Client(proxy, client.api_key)
        assert nobody.refused("GET", "/credits/balance") == (403, "payer_missing")
        assert Client(proxy, client.api_key, "who").refused("GET", "/credits/balance") == (403, "unknown_account")
        assert len(nobody.get("/credits/packages")["data"]) == 4
        assert {level["power_level"] for level in nobody.get("/power-levels")["data"]} >= {"eco", "balanced"}


@pytest.mark.parametrize("user_id", ["例え", "Ωmega", "müller", "à"])
def test_payers_in_any_language(proxy: Proxy, bank: Bank, service: Client, user_id: str) -> None:
    """Who has an account can be named in X-UC-User-Id: in UTF-8, or in Latin-1, as `fetch` writes it."""
    bank.rows("SELECT * FROM create_account($1)", user_id)
    for coding in ("utf-8", "latin-1"):
        named = user_id.encode(coding, "ignore")
        if named.decode(coding) == user_id:
            answer = service.ask("GET", "/credits/balance", headers={"x-uc-user-id": named})
            assert (answer.status_code, answer.json().get("user_id")) == (200, user_id), coding


def test_header_of_a_user_says_nothing(proxy: Proxy, bank: Bank, account: Account) -> None:
    """A user who names another account still sees their own."""
    client = Client(proxy, account.api_key, bank.open("7").user_id)
    assert client.get("/credits/balance")["user_id"] == account.user_id


def test_transactions(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """The ledger comes newest first, in parts by cursor or offset, and filtered."""
    (call, *_) = called(proxy, bank, account, 3)
    ledger = [row["id"] for row in reversed(bank.transactions(account))]
    assert len(ledger) == 7
    assert [row["id"] for row in user.get("/credits/transactions")["data"]] == ledger
    for limit in (1, 2, 3, 7):
        assert [row["id"] for row in user.all_pages("/credits/transactions", limit=limit)] == ledger
    assert [row["id"] for row in user.get("/credits/transactions", limit=2, offset=3)["data"]] == ledger[3:5]
    debits = user.get("/credits/transactions", type="debit")["data"]
    assert [row["transaction_type"] for row in debits] == ["debit"] * 3
    assert user.get("/credits/transactions", model=call["model"], provider="openai")["data"] == debits
    assert user.get("/credits/transactions", model="no-such")["data"] == []


def test_transactions_of_a_period(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """A period holds its beginning and not its end."""
    called(proxy, bank, account)
    rows = user.get("/credits/transactions")["data"]
    moment = rows[1]["created_at"]
    assert user.get("/credits/transactions", **{"from": moment})["data"] == rows[:2]
    assert user.get("/credits/transactions", to=moment)["data"] == rows[2:]
    assert user.get("/credits/transactions", **{"from": moment, "to": moment})["data"] == []


def test_cursor_over_changing_data(bank: Bank, account: Account, user: Client) -> None:
    """Rows that are written between two parts neither repeat nor push out a row of the list that was begun."""
    for _ in range(9):
        bank.add(account.user_id, "1")
    expected = [row["id"] for row in reversed(bank.transactions(account))]
    seen, cursor = [], None
    while True:
        page = user.get("/credits/transactions", limit=3, **({} if cursor is None else {"cursor": cursor}))
        seen += [row["id"] for row in page["data"]]
        bank.add(account.user_id, "1")
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == expected


STRANGE = ("x", "W10", "WyIxIl0", "bnVsbA", "WzFlMzA5XQ", "WzFdWzFd", "é", "W" * 900)


@pytest.mark.parametrize("path", ["/credits/transactions", "/credits/holds", "/usage"])
def test_strange_cursors(user: Client, path: str) -> None:
    """A cursor that no answer held is refused."""
    for cursor in STRANGE:
        assert user.refused("GET", path, params={"cursor": cursor}) == (400, "invalid_cursor"), cursor


def test_holds(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, user: Client, other: Client) -> None:
    """A call under way shows as a hold and as a story that is not over; after it the hold is gone."""
    upstream.set_fault("gate")
    path, body = request("chat")
    with Visitor(proxy, account, path, body) as visitor:
        held = bank.held(account)
        (hold,) = user.get("/credits/holds")["data"]
        assert Decimal(hold["amount"]) == held == Decimal(user.get("/credits/balance")["credits_held"])
        assert (hold["model"], hold["endpoint"]) == ("gpt-mini", "chat")
        story = user.get(f"/usage/{hold['hold_id']}")
        assert (story["state"], story["call"], story["charged"]) == ("running", None, None)
        assert story["hold"] == hold
        assert other.get("/credits/holds")["data"] == []
        assert other.refused("GET", f"/usage/{hold['hold_id']}") == (404, "not_found")
        upstream.open()
        visitor.hear("usage")
    bank.settled(account)
    assert user.get("/credits/holds")["data"] == []
    assert user.get(f"/usage/{hold['hold_id']}")["state"] == "settled"


def test_usage_and_story(proxy: Proxy, bank: Bank, account: Account, user: Client, other: Client) -> None:
    """Each call is listed, and its story tells its terms, what it was charged and its rows in the ledger."""
    answer = ask(proxy, account, "chat")
    (row,) = bank.settled(account)
    (listed,) = user.get("/usage")["data"]
    story = user.get(f"/usage/{answer.headers['x-uc-request-id']}")
    assert story["call"] == listed
    assert story["state"] == "settled"
    assert Decimal(story["charged"]) == row["cost_credits"] == 100 - bank.balance(account).remaining
    assert [entry["transaction_type"] for entry in story["transactions"]] == ["hold", "debit"]
    assert story["terms"]["cost_multiplier"] == "1.0000"
    assert Decimal(story["terms"]["held"]) == Decimal(story["transactions"][0]["held_delta"])
    assert story["terms"]["deployment"] == "dep-gpt-mini"
    assert story["terms"]["prices"]["input_cost_per_token"] == "0.0000017"
    assert (other.get("/usage")["data"], other.refused("GET", f"/usage/{row['request_id']}")) == (
        [],
        (404, "not_found"),
    )


def test_story_of_a_failure(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, user: Client) -> None:
    """A call that no provider answered has a story, too: released, and charged nothing."""
    upstream.set_fault("status", status=500)
    assert ask(proxy, account, "chat").status_code == 500
    (row,) = bank.settled(account)
    story = user.get(f"/usage/{row['request_id']}")
    assert (story["state"], story["charged"], story["call"]["success"]) == ("released", "0", False)
    assert story["call"]["error_type"] == row["error_type"]


def test_story_of_a_correction(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """A correction that an operator booked for a call is part of its story."""
    (row,) = called(proxy, bank, account)
    key = f"reconcile:{row['request_id']}:1"
    bank.rows(
        "SELECT * FROM add_user_credits($1, 0.0001, 'adjustment', p_notes => 'x', p_idempotency_key => $2)",
        account.user_id, key,
    )  # fmt: skip
    story = user.get(f"/usage/{row['request_id']}")
    assert [entry["transaction_type"] for entry in story["transactions"]] == ["hold", "debit", "adjustment"]
    assert story["state"] == "settled"
    assert Decimal(story["charged"]) == row["cost_credits"]


def test_usage_in_parts(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """Calls come newest first, in parts, and new ones do not disturb what was begun."""
    rows = [row["request_id"] for row in reversed(called(proxy, bank, account, 5))]
    page = user.get("/usage", limit=2)
    called(proxy, bank, account)
    rest = user.get("/usage", limit=4, cursor=page["next_cursor"])
    assert [row["request_id"] for row in page["data"] + rest["data"]] == rows
    assert rest["next_cursor"] is None


_OLD = """
INSERT INTO llm_usage_log (user_id, provider, model, power_level, prompt_tokens, completion_tokens, total_tokens,
    reasoning_tokens, cost_credits, cost_usd, request_id, app_id, latency_ms, success, byok_used, created_at)
SELECT $1, (ARRAY['openai', 'groq'])[1 + n % 2], 'model-' || n % 3, 'eco', n, 2 * n, 3 * n, n % 7,
    n * 0.01, n * 0.001, gen_random_uuid()::text, CASE WHEN n % 4 > 0 THEN (ARRAY['=1+1', 'b', 'c'])[n % 4] END,
    10 * n, n % 5 > 0, n % 2 = 0, date_trunc('day', now(), 'UTC') - n * interval '12 hours' + interval '11 hours'
FROM generate_series(1, 40) AS n"""


@pytest.mark.usefixtures("one_day")
@pytest.mark.parametrize("group_by", ["provider", "model", "power_level", "app", "day"])
def test_analytics(bank: Bank, user: Client, account: Account, group_by: str) -> None:
    """Sums are those of the log, whether they come from it or from the summary, and only of the account."""
    bank.rows(_OLD, account.user_id)
    bank.rows("SELECT refresh_usage_summary()")
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = bank.usage(account)
    for days in (1, 2, 7, 30):
        since = today - timedelta(days=days - 1)
        _check_report(
            user.get("/analytics/usage", days=days, group_by=group_by),
            [row for row in rows if row["created_at"] >= since],
        )


def _check_report(report: Json, rows: list[Json]) -> None:
    column = "app_id" if report["group_by"] == "app" else str(report["group_by"])
    keyed = [(row["created_at"].date().isoformat() if column == "day" else row[column], row) for row in rows]
    assert {group["key"] for group in report["data"]} == {key for key, _ in keyed}
    for group in report["data"]:
        mine = [row for key, row in keyed if key == group["key"]]
        assert group["requests"] == len(mine)
        assert group["errors"] == sum(not row["success"] for row in mine)
        assert group["total_tokens"] == sum(row["total_tokens"] for row in mine)
        assert Decimal(group["cost_credits"]) == sum(row["cost_credits"] for row in mine)
        assert group["avg_latency_ms"] == pytest.approx(sum(row["latency_ms"] for row in mine) / len(mine), abs=0.01)
    assert report["totals"]["requests"] == len(rows)
    assert Decimal(report["totals"]["cost_credits"]) == sum(row["cost_credits"] for row in rows)


@pytest.mark.usefixtures("one_day")
def test_analytics_as_csv(bank: Bank, user: Client, account: Account) -> None:
    """CSV has the same sums, asked for by a parameter or by Accept, and no cell that a spreadsheet would run."""
    bank.rows(_OLD, account.user_id)
    groups = user.get("/analytics/usage", group_by="app")["data"]
    by_format = user.ask("GET", "/analytics/usage", params={"group_by": "app", "format": "csv"})
    by_accept = user.ask("GET", "/analytics/usage", params={"group_by": "app"}, headers={"accept": "text/csv"})
    assert by_format.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_accept.text == by_format.text
    lines = list(csv.DictReader(io.StringIO(by_format.text)))
    assert [line["cost_credits"] for line in lines] == [group["cost_credits"] for group in groups]
    assert {line["app"] for line in lines} == {"'=1+1", "b", "c", ""}
    wanted = {"group_by": "app", "format": "json"}
    plain = user.ask("GET", "/analytics/usage", params=wanted, headers={"accept": "text/csv"})
    assert plain.json()["data"] == groups


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json, text/csv;q=0", "application/json"),
        ("application/json, text/csv; header=present; q=0.5", "application/json"),
        ("*/*", "application/json"),
        ("text/csv;q=0.000", "application/json"),
        ("text/csv; q=0.9, application/json;q=0.8", "text/csv"),
        ("TEXT/CSV, */*;q=0.1", "text/csv"),
    ],
)
def test_csv_is_for_who_prefers_it(user: Client, accept: str, kind: str) -> None:
    """An `Accept` is read with its weights."""
    answer = user.ask("GET", "/analytics/usage", headers={"accept": accept})
    assert answer.headers["content-type"].split(";")[0] == kind


def test_power_level(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """The level a user chooses is the one that the next call runs at."""
    assert user.get("/power-level") == {"power_level": "balanced", "downgrade": False}
    assert user.put("/power-level", {"power_level": "eco", "downgrade": True}) == user.get("/power-level")
    # Whoever asks later than that is answered at the new level.
    in_time, is_late = Seconds(WITHIN_SECONDS), False
    while ask(proxy, account, "chat").headers["x-uc-power-level"] != "eco":
        assert not is_late
        is_late = in_time.are_over
    assert user.put("/power-level", {"power_level": "balanced"}) == {"power_level": "balanced", "downgrade": True}


def test_power_levels_that_cannot_be_chosen(proxy: Proxy, bank: Bank, user: Client) -> None:
    """A level that does not exist is a 400, one that the tier does not include a 403."""
    assert user.refused("PUT", "/power-level", json={"power_level": "turbo"}) == (400, "invalid_power_level")
    free = Client(proxy, bank.open(tier="free").api_key)
    assert free.refused("PUT", "/power-level", json={"power_level": "precision"}) == (403, "tier")
    assert free.put("/power-level", {"power_level": "eco"})["power_level"] == "eco"


def works(proxy: Proxy, api_key: str) -> bool:
    """Whether a key is accepted."""
    headers = {"authorization": f"Bearer {api_key}"}
    return httpx.get(f"{proxy.url}/v1/models", headers=headers, trust_env=False, timeout=60).status_code == 200


def test_api_keys(proxy: Proxy, user: Client, other: Client) -> None:
    """A key is shown once, works, is listed by its hint, and is refused a second after it was revoked."""
    made = user.post("/api-keys", {"name": "my app"})
    assert works(proxy, made["api_key"])
    (listed,) = [key for key in user.get("/api-keys")["data"] if key["id"] == made["id"]]
    assert (listed["name"], listed["role"], listed["is_active"]) == ("my app", "user", True)
    assert made["api_key"].endswith(listed["key_hint"])
    assert made["api_key"] not in user.ask("GET", "/api-keys").text
    assert other.refused("DELETE", f"/api-keys/{made['id']}") == (404, "unknown_key")
    assert works(proxy, made["api_key"])
    in_time, is_late = Seconds(WITHIN_SECONDS), False
    assert user.delete(f"/api-keys/{made['id']}") == {"id": made["id"], "deleted": True, "was_active": True}
    while works(proxy, made["api_key"]):
        assert not is_late
        is_late = in_time.are_over
    assert user.delete(f"/api-keys/{made['id']}")["was_active"] is False


def test_api_keys_that_cannot_be_made(user: Client, service: Client, admin: Client) -> None:
    """Only an admin makes keys that act for others, and no key has expired before it is made."""
    for role in ("service", "admin"):
        assert user.refused("POST", "/api-keys", json={"role": role}) == (403, "role_not_allowed")
        assert service.refused("POST", "/api-keys", json={"role": role}) == (403, "role_not_allowed")
        assert admin.post("/api-keys", {"role": role})["role"] == role
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    assert user.refused("POST", "/api-keys", json=past) == (400, "invalid_time")
    assert service.post("/api-keys", {"name": "for my user"})["role"] == "user"


def test_api_keys_are_bounded(bank: Bank, account: Account, user: Client) -> None:
    """An account has a hundred active keys at most."""
    bank.rows(
        "INSERT INTO user_api_keys (user_id, key_hash) SELECT $1, encode(sha256(($1 || n)::bytea), 'hex') "
        "FROM generate_series(1, 99) AS n",
        account.user_id,
    )
    assert user.refused("POST", "/api-keys", json={}) == (409, "too_many_keys")


@pytest.mark.usefixtures("one_day")
def test_api_keys_in_parts(bank: Bank, account: Account, user: Client, other: Client) -> None:
    """However many keys were revoked: they come newest first, in parts, by their status, and only the account's."""
    bank.rows(
        "INSERT INTO user_api_keys (user_id, key_hash, is_active, created_at) SELECT $1, "
        "encode(sha256(($1 || n)::bytea), 'hex'), n % 100 = 0, now() - n / 2 * interval '1 second' "
        "FROM generate_series(1, 500) AS n",
        account.user_id,
    )
    rows = bank.rows(
        "SELECT * FROM user_api_keys WHERE user_id = $1 ORDER BY created_at DESC, id DESC", account.user_id
    )
    keys = [str(row["id"]) for row in rows]
    first = user.get("/api-keys")
    assert [key["id"] for key in first["data"]] == keys[:50]
    user.post("/api-keys", {"name": "meanwhile"})
    rest = user.get("/api-keys", cursor=first["next_cursor"], limit=200)
    assert [key["id"] for key in rest["data"]] == keys[50:250]
    assert [key["id"] for key in user.all_pages("/api-keys", limit=7, status="active")][1:] == [
        str(row["id"]) for row in rows if row["is_active"]
    ]
    assert len(user.all_pages("/api-keys", limit=200, status="revoked")) == 495
    assert len(other.get("/api-keys")["data"]) == 1
    for name, value in (("status", "x"), ("limit", "201"), ("cursor", "x")):
        assert user.refused("GET", "/api-keys", params={name: value})[0] == 400


def test_openrouter_shapes(proxy: Proxy, bank: Bank, account: Account, user: Client, other: Client) -> None:
    """Clients of OpenRouter find their numbers where they look for them."""
    bank.rows(_OLD, account.user_id)
    (row,) = [row for row in called(proxy, bank, account) if row["hold_id"]]
    balance = bank.balance(account)
    credits = user.get("/credits")["data"]
    assert credits["total_credits"] - credits["total_usage"] == pytest.approx(float(balance.remaining))
    assert credits["total_usage"] == pytest.approx(float(row["cost_credits"]))
    key = user.get("/key")["data"]
    assert (key["label"], key["is_free_tier"], key["limit"], key["limit_remaining"]) == ("default", False, None, None)
    assert key["usage"] == pytest.approx(float(row["cost_credits"]))
    assert key["usage_monthly"] >= key["usage_daily"] > 0
    made = user.get("/generation", id=row["request_id"])["data"]
    assert (made["id"], made["model"], made["provider_name"]) == (row["request_id"], row["model"], row["provider"])
    assert made["total_cost"] == pytest.approx(float(row["cost_credits"]))
    assert other.refused("GET", f"/generation?id={row['request_id']}") == (404, "not_found")


@pytest.mark.usefixtures("one_day")
def test_openrouter_sums(bank: Bank, account: Account, user: Client) -> None:
    """Activity and periods are the sums of the log, though days before yesterday come from the summary."""
    bank.rows(_OLD, account.user_id)
    bank.rows("SELECT refresh_usage_summary()")
    today, rows = datetime.now(timezone.utc).date(), bank.usage(account)
    old = [row for row in rows if today - timedelta(days=30) <= row["created_at"].date() < today]
    days = user.get("/activity")["data"]
    by_place: dict[tuple[str, ...], list[Json]] = {}
    for row in old:
        by_place.setdefault((str(row["created_at"].date()), row["model"], row["provider"]), []).append(row)
    places = [(day["date"], day["model"], day["provider_name"]) for day in days]
    assert sorted(places) == sorted(by_place)
    for day, place in zip(days, places, strict=True):
        mine = by_place[place]
        assert day["requests"] == len(mine)
        assert day["usage"] == pytest.approx(float(sum(row["cost_credits"] for row in mine)))
        own = sum(row["cost_usd"] for row in mine if row["byok_used"])
        assert day["byok_usage_inference"] == pytest.approx(float(own))
        for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens"):
            assert day[name] == sum(row[name] for row in mine)
    for name in {day["date"] for day in days}:
        assert user.get("/activity", date=name)["data"] == [day for day in days if day["date"] == name]
    assert user.refused("GET", "/activity?date=2020-01-01") == (400, "invalid_value")
    _check_periods(user.get("/key")["data"], rows, today)


def _check_periods(key: Json, rows: list[Json], today: date) -> None:
    week, month = today - timedelta(days=today.weekday()), today.replace(day=1)
    for name, since in (("daily", today), ("weekly", week), ("monthly", month)):
        mine = [row for row in rows if row["created_at"].date() >= since]
        own = sum(row["cost_usd"] for row in mine if row["byok_used"])
        assert key[f"usage_{name}"] == pytest.approx(float(sum(row["cost_credits"] for row in mine)))
        assert key[f"byok_usage_{name}"] == pytest.approx(float(own))


@pytest.mark.usefixtures("one_day")
def test_limit_of_a_key(proxy: Proxy, bank: Bank, account: Account, user: Client) -> None:
    """OpenRouter's limit is the monthly cap."""
    bank.rows("UPDATE user_credits SET monthly_cap = 30 WHERE user_id = $1", account.user_id)
    called(proxy, bank, account)
    key = user.get("/key")["data"]
    assert (key["limit"], key["limit_reset"]) == (30, "monthly")
    assert key["limit_remaining"] == pytest.approx(30 - key["usage"])


def test_health(proxy: Proxy, bank: Bank, account: Account, user: Client, admin: Client) -> None:
    """Users see how providers fare; how much they are used is for admins."""
    called(proxy, bank, account)
    provider = f"p{uuid.uuid4().hex[:8]}"
    bank.rows("INSERT INTO provider_health (provider, status, last_error) VALUES ($1, 'down', 'timeout')", provider)
    bank.rows("INSERT INTO provider_health (provider, deployment, status) VALUES ($1, 'dep', 'down')", provider)
    (seen,) = [row for row in user.get("/providers/health")["data"] if row["provider"] == provider]
    assert (seen["status"], seen["last_error"], seen["requests_last_hour"]) == ("down", "timeout", None)
    assert [each["deployment"] for each in seen["deployments"]] == ["dep"]
    (full,) = [row for row in admin.get("/providers/health")["data"] if row["provider"] == provider]
    assert full["requests_last_hour"] == 0


def test_explain(user: Client, upstream: Upstream) -> None:
    """A rehearsal tells the candidates and the hold, and asks nobody."""
    body = {"model": "gpt-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    told = user.post("/route/explain", body)
    assert told["outcome"] == {"status": 200, "error": None}
    assert told["candidates"][0]["deployment"] == "dep-gpt-mini"
    assert user.post("/route/explain", {"model": "no-such"})["outcome"]["status"] == 400
    assert upstream.calls(method="POST") == []


def test_purchase(user: Client) -> None:
    """Buying says clearly that it is not offered yet."""
    assert user.refused("POST", "/credits/purchase", json={"package_id": 1}) == (501, "purchases_not_offered")
