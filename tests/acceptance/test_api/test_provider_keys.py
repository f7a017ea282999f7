"""Users' own provider keys over the API: sealed on arrival, never shown again, and nobody else's."""

from __future__ import annotations

import secrets
import uuid

import pytest

from tests.acceptance.asking import asked, post
from tests.acceptance.bank import Account, Bank
from tests.acceptance.test_api.client import Client
from tests.proxy import Json, Proxy
from tests.upstream import Upstream


def new(**fields: object) -> Json:
    return {"provider": "openai", "api_key": f"sk-{secrets.token_hex(20)}", **fields}


def test_life_of_a_key(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, user: Client) -> None:
    """A stored key is used for calls, shown by its hint only, changed, and gone when deleted."""
    body = new(key_name="work", monthly_cap_usd="20.5", rotation_reminder="2030-01-01T00:00:00Z")
    answer = user.ask("POST", "/provider-keys", json=body)
    made = answer.json()
    assert answer.status_code == 201
    assert (made["key_hint"], made["monthly_cap_usd"]) == (str(body["api_key"])[-4:], "20.500000")
    assert made["rotation_reminder"] == "2030-01-01T00:00:00.000000Z"
    ask = {"model": "gpt-mini", "messages": [{"role": "user", "content": "say 2 words"}], "max_tokens": 9}
    assert post(proxy, account.headers, "/v1/chat/completions", ask).headers["x-uc-byok"] == "true"
    assert asked(upstream)[0]["api_key"] == body["api_key"]
    bank.settled(account)
    changed = user.patch(f"/provider-keys/{made['id']}", {"key_name": "home", "monthly_cap_usd": None})
    assert (changed["key_name"], changed["monthly_cap_usd"], changed["total_requests"]) == ("home", None, 1)
    assert user.get("/provider-keys")["data"] == [changed]
    assert user.delete(f"/provider-keys/{made['id']}") == {"id": made["id"], "deleted": True}
    assert user.get("/provider-keys")["data"] == []
    for text in (answer.text, proxy.log(), str(bank.rows("SELECT * FROM user_provider_keys"))):
        assert str(body["api_key"]) not in text


def test_keys_of_others(user: Client, other: Client, service: Client) -> None:
    """Another user's key is not found, whatever is done; a service that names the owner reaches it."""
    made = user.post("/provider-keys", new())
    for method, path, body in (
        ("PATCH", "", {"is_active": False}),
        ("DELETE", "", None),
        ("POST", "/test", None),
    ):
        answer = other.refused(method, f"/provider-keys/{made['id']}{path}", json=body)
        assert answer == (404, "unknown_provider_key")
    assert other.get("/provider-keys")["data"] == []
    assert service.get("/provider-keys")["data"] == [made]
    assert service.patch(f"/provider-keys/{made['id']}", {"is_active": False})["is_active"] is False


def test_try_a_key(upstream: Upstream, user: Client) -> None:
    """A key is tried at its own address; what the provider said is told, and counted in its row."""
    base = f"{upstream.url}/v1"
    made = user.post("/provider-keys", new(provider="custom", api_base=base))
    assert made["api_base"] == base
    upstream.set_fault("status", status=401)
    tried = user.post(f"/provider-keys/{made['id']}/test")
    assert (tried["result"], tried["status"]) == ("refused", 401)
    (row,) = user.get("/provider-keys")["data"]
    assert (row["errors_in_a_row"], row["last_error"]) == (1, "refused when tested (401)")
    refused = new(provider="custom", api_base=base, key_name="b", test=True)
    assert user.refused("POST", "/provider-keys", json=refused) == (400, "key_refused")
    assert len(user.get("/provider-keys")["data"]) == 1


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"provider": "nobody"}, (400, "unknown_provider")),
        ({"provider": "anthropic"}, (400, "invalid_api_key")),
        ({"api_key": "sk-\u0000-and-more"}, (400, "invalid_api_key")),
        ({"api_key": "sk-shrt"}, (400, "invalid_value")),
        ({"api_key": ""}, (400, "invalid_value")),
        ({"api_key": "x" * 513}, (400, "invalid_value")),
        ({"monthly_cap_usd": "-1"}, (400, "invalid_value")),
        ({"monthly_cap_usd": "9" * 14}, (400, "invalid_monthly_cap_usd")),
        ({"expires_at": "2020-01-01T00:00:00Z"}, (400, "invalid_expires_at")),
        ({"expires_at": "2030-01-01T00:00:00"}, (400, "invalid_value")),
        ({"expires_at": 1900000000}, (400, "invalid_value")),
        ({"expires_at": "2030-02-30T00:00:00Z"}, (400, "invalid_value")),
        ({"fallback": "always"}, (400, "invalid_value")),
        ({"provider": "custom", "api_base": "http://169.254.169.254/v1"}, (400, "invalid_api_base")),
        ({"key_id": "x"}, (400, "invalid_value")),
    ],
)
def test_keys_that_cannot_be(user: Client, change: Json, answer: tuple[int, str]) -> None:
    """A key that cannot be is a 400 that names the field, without what was sent, and nothing is stored."""
    body = new(**change)
    said = user.ask("POST", "/provider-keys", json=body)
    assert (said.status_code, said.json()["error"]["code"]) == answer
    assert len(str(body["api_key"])) < 4 or str(body["api_key"]) not in said.text
    assert user.get("/provider-keys")["data"] == []


def test_an_address_of_any_length_that_byok_md_names(upstream: Upstream, user: Client) -> None:
    """An `api_base` may have 512 characters, and no more."""
    base = f"{upstream.url}/v1/"
    made = user.post("/provider-keys", new(provider="custom", api_base=base.ljust(512, "x")))
    assert len(made["api_base"]) == 512
    longer = new(provider="custom", api_base=base.ljust(513, "x"))
    assert user.refused("POST", "/provider-keys", json=longer) == (400, "invalid_value")


def test_not_for_this_tier(proxy: Proxy, bank: Bank) -> None:
    """Own keys begin at the tier that the settings say."""
    free = Client(proxy, bank.open(tier="free").api_key)
    assert free.refused("POST", "/provider-keys", json=new()) == (403, "tier")
    assert free.get("/provider-keys") == {"data": []}


def test_names_are_taken_once(user: Client) -> None:
    """A second key of the same name at the same provider is a conflict."""
    user.post("/provider-keys", new())
    assert user.refused("POST", "/provider-keys", json=new()) == (409, "key_name_taken")
    assert user.refused("DELETE", f"/provider-keys/{uuid.uuid4()}") == (404, "unknown_provider_key")


def test_api_base_is_no_control_of_litellms(proxy: Proxy, user: Client) -> None:
    """LiteLLM refuses `api_base` in any body; on our route it is our field, and our rules say what it may be."""
    body = new(provider="custom", api_base="https://127.0.0.1/v1")
    assert user.refused("POST", "/provider-keys", json=body) == (400, "invalid_api_base")
    call = {"model": "gpt-mini", "messages": [], "api_base": "https://127.0.0.1/v1"}
    assert 400 <= post(proxy, user.headers, "/v1/chat/completions", call).status_code < 500
