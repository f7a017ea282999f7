"""A hold that is under way while LiteLLM prepares the call, which may come to nothing or become another call."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.acceptance.asking import ASKS, ask, asked, post, request
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

# LiteLLM reads it between the authentication and the pre-call hook, and stumbles over it.
UNREADABLE = {"x-litellm-timeout": "soon"}
CHANGES = "tests.acceptance.guards.changes"


@pytest.fixture(scope="module")
def renaming(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """A proxy in which LiteLLM calls a model something else."""
    aliases = {"model_alias_map": {"mini": "gpt-mini", "dear": "gpt-mini", "retried": "gpt-mini"}}
    with paid_proxy(bank.url, config(running.url, litellm_settings=aliases)) as proxy:
        yield proxy


def of_holds(entries: list[Json]) -> list[str]:
    """What happened to holds, oldest first."""
    return [entry["transaction_type"] for entry in entries if entry["hold_id"] is not None]


def unread(proxy: Proxy, bank: Bank, model: str = "gpt-mini") -> Account:
    """A new user whose only request LiteLLM could not read."""
    account = bank.open()
    assert post(proxy, {**account.headers, **UNREADABLE}, *request("chat", model=model)).status_code == 500
    return account


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "completions", "responses", "messages"])
def test_litellm_refuses_the_request(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool
) -> None:
    """What was held for a request that LiteLLM cannot read is given back at once; no usage row tells of it."""
    answer = post(proxy, {**account.headers, **UNREADABLE}, *request(name, stream))
    assert answer.status_code >= 400
    assert asked(upstream) == []
    assert of_holds(bank.released(account)) == ["hold", "release"]
    balance = bank.balance(account)
    assert balance.remaining == 100
    assert balance.held == 0
    assert bank.usage(account) == []
    assert bank.audit() == []


def test_idempotency_key_of_a_refused_request(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """A request that LiteLLM refused has not used its key: sent again without the fault, it is answered and charged."""
    headers = {**account.headers, "idempotency-key": "once"}
    assert post(proxy, {**headers, **UNREADABLE}, *request("chat")).status_code == 500
    assert of_holds(bank.transactions(account)) == []
    assert post(proxy, headers, *request("chat")).status_code == 200
    bank.settled(account)
    assert of_holds(bank.transactions(account)) == ["hold", "debit"]


@pytest.mark.parametrize(("alias", "first"), [("mini", []), ("dear", ["hold", "release"])])
def test_model_that_litellm_renames(
    renaming: Proxy, upstream: Upstream, bank: Bank, alias: str, first: list[str]
) -> None:
    """A call by an alias is held and charged as what it stands for. Where that hides a model of that name, the first
    such call gives back what was held for it, and from the second on nothing is."""
    for begun in (first, [], []):
        account = bank.open()
        answer = ask(renaming, account, "chat", model=alias)
        assert answer.status_code == 200, answer.text
        (row,) = bank.settled(account)
        assert row["model_group"] == "gpt-mini"
        assert sorted(of_holds(bank.transactions(account))) == sorted([*begun, "hold", "debit"])
    assert bank.audit() == []


def test_alias_of_somebody_with_little(renaming: Proxy, upstream: Upstream, bank: Bank) -> None:
    """What was held for the name alone is there again when the call itself is held: it is not refused for it."""
    first = ask(renaming, bank.open(), "chat", model="gpt-mini", max_tokens=2000)
    needed = Decimal(first.headers["x-uc-credits-held"])
    account = bank.open(str((needed * Decimal("1.2")).quantize(needed)))
    answer = ask(renaming, account, "chat", model="retried", max_tokens=2000)
    assert answer.status_code == 200, answer.text
    bank.settled(account)
    assert sorted(of_holds(bank.transactions(account))) == ["debit", "hold", "hold", "release"]


def test_fallback_of_a_user_at_his_rate_limit(
    running: Upstream, upstream: Upstream, bank: Bank, tmp_path: Path
) -> None:
    """LiteLLM tries the models of `fallbacks` when a user is at his limit; they are no other names of the first."""
    settings = tmp_path / "uc.yaml"
    settings.write_text("tiers: {starter: {rpm_limit: 2}}\n")
    with paid_proxy(bank.url, config(running.url), UC_CONFIG=str(settings)) as proxy:
        account = bank.open()
        assert {ask(proxy, account, "chat", model="cheap").status_code for _ in range(5)} == {200, 429}
        assert of_holds(bank.released(unread(proxy, bank, "cheap"))) == ["hold", "release"]


def test_another_callback_before_ours(running: Upstream, upstream: Upstream, bank: Bank) -> None:
    """Where another callback may change a request before it is admitted, the admission waits for that."""
    made = config(running.url)
    made["litellm_settings"]["callbacks"].insert(0, CHANGES)
    with paid_proxy(bank.url, made) as proxy:
        account = unread(proxy, bank)
        assert ask(proxy, account, "chat").status_code == 200
        bank.settled(account)
        assert of_holds(bank.transactions(account)) == ["hold", "debit"]


@pytest.mark.parametrize("name", ASKS)
def test_one_hold_per_call(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """There is one hold for a call in each dialect: the hook takes the one that was begun."""
    assert ask(proxy, account, name).status_code == 200
    bank.settled(account)
    assert of_holds(bank.transactions(account)) == ["hold", "debit"]
