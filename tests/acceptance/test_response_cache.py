"""LiteLLM's response cache: a hit is free, whatever the endpoint, and only a hit is."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ASKS, STREAMED, ask, asked
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.scripted import Scripted, chat, used
from tests.proxy import GPT_MINI_PRICES, Proxy, deployment
from tests.upstream import Upstream


@pytest.fixture(scope="module")
def caching(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    """The proxy with a cache in its memory."""
    extra = {"cache": True, "cache_params": {"type": "local"}}
    with paid_proxy(bank.url, config(running.url, litellm_settings=extra)) as proxy:
        yield proxy


def charges(bank: Bank, account: Account, calls: int) -> list[Decimal]:
    return [row["cost_credits"] for row in bank.settled(account, calls)]


@pytest.mark.parametrize(("name", "stream"), [*((name, False) for name in ASKS), *((name, True) for name in STREAMED)])
def test_a_hit_is_free(
    caching: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool
) -> None:
    """Every call is charged for which the provider was asked, and no other."""
    calls = 4
    for _ in range(calls):
        assert ask(caching, account, name, stream).status_code == 200
    paid = [charge for charge in charges(bank, account, calls) if charge]
    assert len(paid) == len(asked(upstream))


def test_a_hit_that_litellm_goes_on_from(running: Upstream, bank: Bank, account: Account) -> None:
    """Where a cached answer is filtered content and another provider answers, that answer is paid."""
    filtered = chat("", used(10, 0))
    filtered["choices"][0]["finish_reason"] = "content_filter"
    with Scripted() as first, Scripted() as second:
        made = config(
            running.url,
            litellm_settings={"cache": True, "cache_params": {"type": "local"}},
            router_settings={"content_policy_fallbacks": [{"first": ["second"]}]},
        )
        made["model_list"] += [
            deployment(name, "openai/gpt-4o-mini", f"{each.url}/v1", GPT_MINI_PRICES)
            for name, each in (("first", first), ("second", second))
        ]
        with paid_proxy(bank.url, made) as proxy:
            first.plain(filtered)
            second.write("application/json", b"{nonsense")
            assert ask(proxy, account, "chat", model="first").status_code >= 400
            second.plain(chat("a real answer", used(1000, 700)))
            assert ask(proxy, account, "chat", model="first").status_code == 200
            assert len(first.asked) == 1
            assert charges(bank, account, 2) == [0, prices.of_tokens("gpt-mini", 1000, 700)]


def test_a_list_of_which_a_part_is_known(caching: Proxy, upstream: Upstream, bank: Bank, account: Account) -> None:
    """Embeddings of a list are paid, also where the cache has one of them."""
    ask(caching, account, "embeddings", input=["known"])
    upstream.reset()
    ask(caching, account, "embeddings", input=["known", " ".join(map(str, range(3000)))])
    assert charges(bank, account, 2)[-1] == prices.of_call(asked(upstream)[0])
