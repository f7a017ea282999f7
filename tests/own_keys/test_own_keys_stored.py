"""Stored responses: what was made with a user's own key is fetched and gone on from with no other key.

LiteLLM's own guard of response ids is off here, and a wildcard and a default fallback would take whatever comes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import yaml

from tests.acceptance import keyring, sides
from tests.acceptance.asking import asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import paid_proxy
from tests.acceptance.keyring import Keyring
from tests.acceptance.sides import MIXED
from tests.proxy import GPT_MINI_PRICES, Json, Proxy, deployment, litellm_config
from tests.upstream import Upstream

SEED = 8
PLATFORM = sides.key("solo", "south")


@pytest.fixture(scope="module")
def ring(bank: Bank) -> Keyring:
    return keyring.made(bank)


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank, ring: Keyring) -> Iterator[Proxy]:
    made = litellm_config(running.url, general_settings={"disable_responses_id_security": True})
    made["router_settings"] = {"num_retries": 0, "default_fallbacks": ["solo"]}
    every = deployment("*", "openai/*", f"{running.url}/wild/v1", GPT_MINI_PRICES, "every")
    made["model_list"] = [sides.one("solo", "south", MIXED["south"], running.url), every]
    with tempfile.TemporaryDirectory(prefix="uc-stored-") as directory:
        file = Path(directory, "uc.yaml")
        file.write_text(yaml.safe_dump({"holds": {"unbounded_input": "hold"}}))
        with paid_proxy(bank.url, made, UC_SEALING_KEYS=ring.sealing_key, UC_CONFIG=str(file)) as proxy:
            yield proxy


@pytest.fixture
def owner(bank: Bank, ring: Keyring) -> Account:
    """A user with a key of their own."""
    account = bank.open()
    ring.add(account, "openai", keyring.canary(SEED, 0, "openai"))
    return account


def respond(proxy: Proxy, who: Account, **fields: object) -> httpx.Response:
    path, body = request("responses", model="solo")
    return post(proxy, who.headers, path, body | fields)


def made_by(proxy: Proxy, bank: Bank, who: Account) -> str:
    """The id of a response that this user has made."""
    answer = respond(proxy, who)
    bank.settled(who)
    return str(answer.json()["id"])


def later(proxy: Proxy, who: Account, method: str, path: str) -> tuple[int, Json]:
    answer = httpx.request(method, f"{proxy.url}/v1/responses/{path}", headers=who.headers, timeout=30, trust_env=False)
    return answer.status_code, answer.json()


def test_fetching(proxy: Proxy, upstream: Upstream, bank: Bank, owner: Account) -> None:
    """What was made with an own key is fetched with no key at all, by its owner or others, and the owner is told why;
    what the platform's key made is fetched as ever."""
    made = made_by(proxy, bank, owner)
    status, said = later(proxy, owner, "GET", made)
    assert (status, said["error"]["code"]) == (403, "own_key_response")
    assert later(proxy, bank.open(), "GET", made)[0] == 403
    assert not [call for call in upstream.calls() if call["method"] == "GET" and "resp_" in call["path"]]
    platforms = bank.open()
    status, said = later(proxy, platforms, "GET", made_by(proxy, bank, platforms))
    assert (status, said["status"]) == (200, "completed")


@pytest.mark.parametrize(("method", "end"), [("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")])
def test_what_is_not_offered(
    proxy: Proxy, upstream: Upstream, bank: Bank, owner: Account, method: str, end: str
) -> None:
    """Deleting, cancelling and listing are refused before anything is sent."""
    made = made_by(proxy, bank, owner)
    before = len(upstream.calls())
    status, said = later(proxy, owner, method, made + end)
    assert (status, said["error"]["code"]) == (400, "unsupported_endpoint")
    assert len(upstream.calls()) == before


def test_going_on(proxy: Proxy, upstream: Upstream, bank: Bank, owner: Account) -> None:
    """The owner goes on from a response, with the key that made it."""
    assert respond(proxy, owner, previous_response_id=made_by(proxy, bank, owner)).status_code == 200
    first, second = asked(upstream)
    assert first["api_key"] == second["api_key"] != PLATFORM
    assert second["body"]["previous_response_id"].startswith("resp_")


@pytest.mark.parametrize("key", ["own", "the platform's"])
def test_another_users(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, owner: Account, key: str) -> None:
    """Nobody goes on from another user's response, whoever's key made it and whatever key they have."""
    maker = owner if key == "own" else bank.open()
    other = bank.open()
    if key == "own":
        ring.add(other, "openai", keyring.canary(SEED, 1, "openai"))
    made = made_by(proxy, bank, maker)
    answer = respond(proxy, other, previous_response_id=made)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    assert len(asked(upstream)) == 1
    bank.settled(other)
    assert (bank.balance(other).remaining, bank.balance(other).held) == (Decimal(100), Decimal(0))


def test_with_another_key(proxy: Proxy, upstream: Upstream, bank: Bank, ring: Keyring, owner: Account) -> None:
    """A response is not gone on from with a key that did not make it, whichever made it, and the client is told so."""
    made = made_by(proxy, bank, owner)
    bank.rows("DELETE FROM user_provider_keys WHERE user_id = $1", owner.user_id)
    answer = respond(proxy, owner, previous_response_id=made)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "response_of_another_key")
    platforms = bank.open()
    made = made_by(proxy, bank, platforms)
    ring.add(platforms, "openai", keyring.canary(SEED, 2, "openai"))
    answer = respond(proxy, platforms, previous_response_id=made)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "response_of_another_key")
    bank.rows("UPDATE user_provider_keys SET fallback = 'credits' WHERE user_id = $1", platforms.user_id)
    assert respond(proxy, platforms, previous_response_id=made).status_code == 200
    assert [call["api_key"] for call in asked(upstream)][1:] == [PLATFORM, PLATFORM]
