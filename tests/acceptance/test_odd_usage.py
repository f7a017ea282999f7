"""Providers that count badly: half a usage, too early, none, or for nothing delivered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import ask
from tests.acceptance.bank import Account, Bank
from tests.acceptance.conftest import config, paid_proxy
from tests.acceptance.scripted import Scripted, chat, chunk, used
from tests.proxy import GPT_MINI_PRICES, Json, Proxy, deployment
from tests.upstream import Upstream

WORDS = "beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
SHORT_MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 10, "output_tokens": 7},
}  # fmt: skip


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    with Scripted() as provider:
        yield provider


@pytest.fixture(scope="module")
def odd(running: Upstream, scripted: Scripted, bank: Bank) -> Iterator[Proxy]:
    """The proxy with groups at the scripted provider."""
    v1 = f"{scripted.url}/v1"
    groups = [
        deployment("s-gpt", "openai/gpt-4o-mini", v1, GPT_MINI_PRICES),
        deployment("s-router", "openrouter/openai/gpt-4o-mini", v1, GPT_MINI_PRICES),
        deployment("s-mistral", "mistral/mistral-small-latest", v1, GPT_MINI_PRICES),
        deployment("s-claude", "anthropic/claude-sonnet-4-6", scripted.url, GPT_MINI_PRICES),
        deployment("s-haiku", "anthropic/claude-haiku-4-5", scripted.url),
    ]
    made = config(running.url)
    with paid_proxy(bank.url, made | {"model_list": [*made["model_list"], *groups]}) as proxy:
        yield proxy


def row_of(bank: Bank, account: Account) -> Json:
    (row,) = bank.settled(account)
    return row


@pytest.mark.parametrize("model", ["s-router", "s-mistral"])
def test_translated_messages(odd: Proxy, scripted: Scripted, bank: Bank, account: Account, model: str) -> None:
    """A streamed message at a provider of chat completions is charged by the provider's usage."""
    scripted.stream(chunk("alpha "), chunk(WORDS), chunk(None, "stop"), chunk(choices=[], usage=used(1000, 7)))
    assert ask(odd, account, "messages", True, model=model).status_code == 200
    row = row_of(bank, account)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_source"]) == (1000, 7, "usage")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", [{"prompt_tokens": 10}, used(10, None), {"completion_tokens": 7}, used(-1000, 7)])
def test_half_a_usage(odd: Proxy, scripted: Scripted, bank: Bank, account: Account, usage: Json, stream: bool) -> None:
    """Where a usage lacks its input or its output, or has less than nothing, that half is counted here."""
    if stream:
        scripted.stream(chunk(WORDS), chunk(None, "stop"), chunk(choices=[], usage=usage))
    else:
        scripted.plain(chat(WORDS, usage))
    assert ask(odd, account, "chat", stream, model="s-gpt").status_code == 200
    row = row_of(bank, account)
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] > 0
    assert row["cost_source"] == "estimate"
    assert row["cost_credits"] == prices.of_tokens("gpt-mini", row["prompt_tokens"], row["completion_tokens"])


def test_usage_that_came_too_early(odd: Proxy, scripted: Scripted, bank: Bank, account: Account) -> None:
    """A usage that came before the words does not count them."""
    scripted.stream(chunk(choices=[], usage=used(10, 0)), chunk(WORDS * 5), chunk(None, "stop"))
    ask(odd, account, "chat", True, model="s-gpt")
    assert row_of(bank, account)["completion_tokens"] > 50


def test_usage_that_comes_with_each_word(odd: Proxy, scripted: Scripted, bank: Bank, account: Account) -> None:
    """Of a usage that goes on, the last one counts."""
    scripted.stream(chunk(WORDS, usage=used(10, 11)), chunk(WORDS, usage=used(10, 22)), chunk(None, "stop"))
    ask(odd, account, "chat", True, model="s-gpt")
    row = row_of(bank, account)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_source"]) == (10, 22, "usage")


def test_messages_without_a_last_usage(odd: Proxy, scripted: Scripted, bank: Bank, account: Account) -> None:
    """The one token of `message_start` is not the output of a stream whose `message_delta` has no usage."""
    start = {**SHORT_MESSAGE, "content": [], "usage": {"input_tokens": 10, "output_tokens": 1}}
    scripted.stream(
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS * 5}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
        done=False,
    )
    ask(odd, account, "messages", True, model="s-claude")
    assert row_of(bank, account)["completion_tokens"] > 50


@pytest.mark.parametrize("page", [b"", b"data: [DONE]\n\n", b"<html>down for maintenance</html>"])
@pytest.mark.parametrize(
    ("name", "model"),
    [("chat", "s-gpt"), ("chat", "s-claude"), ("responses", "s-claude"), ("completions", "s-gpt"),
     ("messages", "s-claude"), ("messages", "s-gpt"), ("responses", "s-gpt")],
)  # fmt: skip
def test_a_stream_without_an_event(
    odd: Proxy, scripted: Scripted, bank: Bank, account: Account, name: str, model: str, page: bytes
) -> None:
    """A stream in which nothing came delivered nothing, and costs nothing."""
    scripted.write("text/event-stream", page)
    ask(odd, account, name, True, model=model)
    row = row_of(bank, account)
    assert (row["cost_credits"], row["success"]) == (0, False)


def test_a_stream_that_says_nothing(odd: Proxy, scripted: Scripted, bank: Bank, account: Account) -> None:
    """An answer that its provider finished without a word and without a usage has read its input."""
    scripted.stream(chunk(""), chunk(None, "length"))
    assert ask(odd, account, "chat", True, model="s-gpt").status_code == 200
    row = row_of(bank, account)
    assert (row["success"], row["cost_source"], row["completion_tokens"]) == (True, "estimate", 0)
    assert row["cost_credits"] > 0


@pytest.mark.parametrize("usage", [[], "none"])
def test_a_usage_that_is_none(odd: Proxy, scripted: Scripted, bank: Bank, account: Account, usage: Any) -> None:
    """A usage that is no object is no reason to withhold an answer that was charged."""
    scripted.plain({**SHORT_MESSAGE, "usage": usage})
    answer = ask(odd, account, "messages", model="s-claude")
    assert (answer.status_code == 200) == (row_of(bank, account)["cost_credits"] > 0), answer.text


@pytest.mark.parametrize("level", ["balanced", "eco"])
@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "medium"},
        {"reasoning_effort": "high"},
        {"thinking": {"type": "enabled", "budget_tokens": 8000}},
    ],
)
def test_a_limit_leaves_room_to_think(
    odd: Proxy, scripted: Scripted, account: Account, fields: Json, level: str
) -> None:
    """Anthropic refuses a `max_tokens` that is not above the budget for thinking; one that nobody named is."""
    scripted.plain(SHORT_MESSAGE)
    ask(odd, account, "chat", model="s-haiku", max_tokens=None, metadata={"power_level": level}, **fields)
    (sent,) = scripted.asked
    assert sent["max_tokens"] > sent["thinking"]["budget_tokens"]
