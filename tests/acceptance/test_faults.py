"""Providers that fail: the hold ends every time, what was delivered is charged, the usage row says what happened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

import pytest

from tests.acceptance import prices, table
from tests.acceptance.asking import ASKS, STREAMED, Visitor, ask, asked, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.proxy import Json, Proxy, upstream_key
from tests.upstream import Upstream

FAULTS = "Providers that fail"
COLUMNS = ("fault", "call", "client got", "charged", "tokens", "row: success", "status", "error", "cost from")
DEPLOYMENTS = {name: body["model"] for name, (_, body) in ASKS.items()}
GATE_WORD = "went"
WORDS_BEFORE = 4


@dataclass(frozen=True)
class Ended:
    """A call that is over: its only usage row, and its account."""

    row: Json
    charged: Decimal

    def note(self, fault: str, name: str, got: object) -> None:
        """Writes the call into the table at the end of the run."""
        table.begin(FAULTS, *COLUMNS)
        row = self.row
        tokens = f"{row['prompt_tokens']} + {row['completion_tokens']}"
        facts = (row["success"], row["status_code"], row["error_type"] or "", row["cost_source"])
        table.add(FAULTS, fault, name, got, self.charged, tokens, *facts)


def ended(bank: Bank, account: Account) -> Ended:
    """The end of an account's only call: nothing is held, the charge is what the balance lost, the audit is empty."""
    (row,) = bank.settled(account)
    balance = bank.balance(account)
    assert balance.held == 0
    assert bank.audit() == []
    charged = 100 - balance.remaining + balance.debt
    assert row["cost_credits"] == charged
    return Ended(row, charged)


def kind(stream: bool) -> str:
    return "streamed" if stream else "plain"


PLAIN_AND_STREAMED = [(name, False) for name in ASKS] + [(name, True) for name in STREAMED]


@pytest.mark.parametrize(("name", "stream"), PLAIN_AND_STREAMED)
@pytest.mark.parametrize("status", [401, 429, 500])
def test_refused(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, status: int, name: str, stream: bool
) -> None:
    """A provider that refuses is not paid, and the row has its status."""
    upstream.set_fault("status", status=status)
    answer = ask(proxy, account, name, stream)
    over = ended(bank, account)
    over.note(f"answers {status}", f"{name}, {kind(stream)}", answer.status_code)
    assert answer.status_code >= 400
    assert over.charged == 0
    assert (over.row["success"], over.row["status_code"]) == (False, status)
    assert over.row["error_type"]


@pytest.mark.parametrize("stream", [False, True])
def test_timed_out(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, stream: bool) -> None:
    """A provider that does not answer within the deployment's time-out is not paid."""
    upstream.set_fault("hang")
    answer = ask(proxy, account, "chat", stream, model="timed")
    over = ended(bank, account)
    over.note("no answer in 1 s", f"chat, {kind(stream)}", answer.status_code)
    assert (answer.status_code, over.charged) == (408, NOTHING)
    assert (over.row["success"], over.row["status_code"]) == (False, 408)


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_keys_stay_here(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A provider that repeats our key in its refusal does not hand it to the client, nor to the row."""
    upstream.set_fault("echo_key")
    answer = ask(proxy, account, name)
    over = ended(bank, account)
    over.note("401 that repeats the key", name, answer.status_code)
    key = upstream_key(DEPLOYMENTS[name])
    assert key not in answer.text
    assert key not in str(over.row)


@pytest.mark.parametrize("name", ASKS)
def test_plain_answer_cut(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """A plain answer of which only the headers came is not charged."""
    upstream.set_fault("cut")
    answer = ask(proxy, account, name)
    over = ended(bank, account)
    over.note("cut after the headers", f"{name}, plain", answer.status_code)
    assert answer.status_code >= 400
    assert (over.charged, over.row["success"]) == (NOTHING, False)


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("fault", ["cut", "error_first"])
def test_stream_without_a_word(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, fault: str, name: str
) -> None:
    """A stream that breaks off before its first word is not charged, and does not count as a success."""
    upstream.set_fault(fault)
    answer = ask(proxy, account, name, stream=True)
    over = ended(bank, account)
    over.note({"cut": "cut after the headers", "error_first": "error as first event"}[fault], f"{name}, streamed",
              answer.status_code)  # fmt: skip
    assert (over.charged, over.row["success"]) == (NOTHING, False)
    assert over.row["error_type"]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("fault", ["cut", "error_event"])
def test_stream_broken_off(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, fault: str, name: str
) -> None:
    """Of a stream that breaks off, the input and the words that came are charged."""
    upstream.set_faults({"kind": "gate", "after": WORDS_BEFORE}, {"kind": fault, "after": WORDS_BEFORE})
    with Visitor(proxy, account, *request(name, stream=True)) as visitor:
        visitor.hear(GATE_WORD)
        upstream.open()
        visitor.hear_all()
    over = ended(bank, account)
    over.note({"cut": "cut after 4 words", "error_event": "error event after 4 words"}[fault], f"{name}, streamed", 200)
    assert_delivered(over, name, WORDS_BEFORE)
    assert (over.row["success"], over.row["error_type"]) == (False, "provider_stream_broken")


def assert_delivered(over: Ended, name: str, words: int) -> None:
    """The row counts the words that came, and the charge is their price."""
    row = over.row
    assert row["completion_tokens"] == words
    assert row["prompt_tokens"] > 0
    assert over.charged == prices.of_tokens(DEPLOYMENTS[name], row["prompt_tokens"], words)


# LiteLLM itself turns these answers of an Anthropic deployment into errors when they have no usage.
UNREADABLE = [("chat bridged", False), ("responses bridged", False)]
UNCOUNTED = [
    (fault, name, stream)
    for fault in ("zero_usage", "no_usage")
    for name, stream in PLAIN_AND_STREAMED
    if name != "embeddings" and not (fault == "no_usage" and (name, stream) in UNREADABLE)
]


@pytest.mark.parametrize(("fault", "name", "stream"), UNCOUNTED)
def test_uncounted(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, fault: str, name: str, stream: bool
) -> None:
    """An answer whose provider did not count it is charged by a count made here, marked as such.

    A messages stream that LiteLLM translates carries LiteLLM's count and nothing that tells it from a provider's.
    """
    upstream.set_fault(fault)
    answer = ask(proxy, account, name, stream)
    over = ended(bank, account)
    over.note(fault.replace("_", " "), f"{name}, {kind(stream)}", answer.status_code)
    assert_delivered(over, name, 7)
    told_apart = (fault, name, stream) != ("no_usage", "messages bridged", True)
    assert (answer.status_code, over.row["success"]) == (200, True)
    assert over.row["cost_source"] == ("estimate" if told_apart else "usage")


@pytest.mark.parametrize("name", [name for name, _ in UNREADABLE])
def test_unreadable(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str) -> None:
    """An answer that LiteLLM cannot read reaches nobody and is not charged."""
    upstream.set_fault("no_usage")
    answer = ask(proxy, account, name)
    over = ended(bank, account)
    over.note("no usage, LiteLLM fails on it", f"{name}, plain", answer.status_code)
    assert (answer.status_code, over.charged, over.row["success"]) == (500, NOTHING, False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "messages", "responses", "completions"])
def test_cap_ignored(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool) -> None:
    """A provider that writes beyond the cap is paid in full, and the balance pays what goes beyond the hold."""
    upstream.set_fault("ignore_cap")
    field = {"completions": "prompt", "responses": "input"}.get(name, "messages")
    text = "say 3000 words"
    ask(proxy, account, name, stream, **{field: text if field != "messages" else [{"role": "user", "content": text}]})
    over = ended(bank, account)
    over.note("3000 words beyond a cap of 50", f"{name}, {kind(stream)}", 200)
    (book,) = asked(upstream)
    assert (over.charged, over.row["cost_source"]) == (prices.of_call(book), "usage")
    assert over.charged > Decimal(json.loads(over.row["metadata"])["held"])


def test_beyond_the_balance(proxy: Proxy, upstream: Upstream, bank: Bank) -> None:
    """What a call costs beyond the balance becomes debt, and the next call is refused with 402 in_debt."""
    poor = bank.open("0.01")
    upstream.set_fault("ignore_cap")
    messages = [{"role": "user", "content": "say 3000 words"}]
    assert ask(proxy, poor, "chat", messages=messages).status_code == 200
    bank.settled(poor)
    (book,) = asked(upstream)
    balance = bank.balance(poor)
    assert (balance.remaining, balance.debt) == (NOTHING, prices.of_call(book) - Decimal("0.01"))
    refused = ask(proxy, poor, "chat")
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "in_debt")
    assert len(asked(upstream)) == 1
    assert bank.audit() == []


@pytest.mark.parametrize(("name", "stream"), PLAIN_AND_STREAMED)
def test_wrong_model(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, name: str, stream: bool) -> None:
    """A provider that says another model answered is paid the price of the deployment that was asked."""
    upstream.set_fault("wrong_model", model="gpt-4")
    answer = ask(proxy, account, name, stream)
    over = ended(bank, account)
    over.note("answers as another model", f"{name}, {kind(stream)}", answer.status_code)
    (book,) = asked(upstream)
    assert (answer.status_code, over.charged, over.row["success"]) == (200, prices.of_call(book), True)
