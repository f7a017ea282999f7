"""Two hundred mixed calls at once: every credit agrees with the provider's own books, to the last decimal."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import pytest

from tests.acceptance import prices
from tests.acceptance.asking import asked
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.calls import KINDS, Ask, Client, Told
from tests.acceptance.conftest import anthropic_client, openai_client
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

CALLS = 200
AT_ONCE = 8
OPENING = Decimal(100)


@dataclass(frozen=True)
class Paid:
    """One call of the mix from three sides: the client's, the provider's, the database's."""

    kind: str
    told: Told
    book: Json
    row: Json

    def __str__(self) -> str:
        read = {name: self.row[name] for name in ("model_group", "prompt_tokens", "completion_tokens", "cost_source")}
        return f"{self.kind} {read} provider: {self.book['usage']}"


@pytest.fixture(scope="module")
def payer(bank: Bank) -> Account:
    """Whoever pays for the mix."""
    return bank.open(str(OPENING))


@pytest.fixture(scope="module")
def mix(running: Upstream, proxy: Proxy, bank: Bank, payer: Account) -> list[Paid]:
    """All calls of the mix, made eight at a time; a seed that is printed decides what they are."""
    running.reset()
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the mix: {seed}")
    dice = random.Random(seed)
    kinds = [KINDS[n % len(KINDS)] for n in range(CALLS)]
    dice.shuffle(kinds)
    told = _made(proxy, payer, kinds, dice)
    books = {_mark(call): call for call in asked(running)}
    rows = {str(row["request_id"]): row for row in bank.settled(payer, CALLS)}
    return [
        Paid(kind.__name__, said, books[str(n)], rows[said.headers["x-uc-request-id"]])
        for n, (kind, said) in enumerate(zip(kinds, told, strict=True))
    ]


def _made(proxy: Proxy, payer: Account, kinds: list[Ask], dice: random.Random) -> list[Told]:
    with (
        openai_client(proxy, payer) as openai,
        anthropic_client(proxy, payer) as anthropic,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        clients = [Client(openai, anthropic, random.Random(dice.random()), str(n)) for n in range(len(kinds))]
        return list(pool.map(lambda kind, client: kind(client), kinds, clients))


def _mark(call: Json) -> str:
    found = re.search(r"mark (\d+) ", json.dumps(call["body"]))
    assert found, call
    return found[1]


def test_every_credit_agrees(mix: list[Paid], running: Upstream, bank: Bank, payer: Account) -> None:
    """What is left is what there was, less the provider's own count priced independently and rounded up per call."""
    calls = asked(running)
    assert len(calls) == CALLS
    balance = bank.balance(payer)
    assert balance.remaining == OPENING - sum(map(prices.of_call, calls))
    assert (balance.held, balance.debt) == (NOTHING, NOTHING)


def test_every_call_agrees(mix: list[Paid]) -> None:
    """Each usage row has the provider's tokens and their price."""
    wrong = [
        f"{paid}: {paid.row['cost_credits']} instead of {prices.of_call(paid.book)}"
        for paid in mix
        if paid.row["cost_credits"] != prices.of_call(paid.book)
        or (paid.row["prompt_tokens"], paid.row["completion_tokens"])
        != (paid.book["usage"]["input"], paid.book["usage"]["output"])
        or paid.row["cost_source"] != "usage"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_row_counts_the_details(mix: list[Paid]) -> None:
    """Cached and reasoning tokens stand in the row as the provider counted them."""
    wrong = [
        f"{paid}: {paid.row['cached_tokens']} cached, {paid.row['reasoning_tokens']} reasoning"
        for paid in mix
        if paid.row["cached_tokens"] != paid.book["usage"]["cached"]
        or (paid.row["model_group"] == "reason" and paid.row["reasoning_tokens"] != paid.book["usage"]["reasoning"])
    ]
    assert not wrong, "\n".join(wrong)


def test_one_row_per_call(mix: list[Paid], bank: Bank, payer: Account) -> None:
    """Every call has one usage row that says it succeeded, and every hold one end."""
    rows = bank.usage(payer)
    assert len(rows) == len({row["request_id"] for row in rows}) == CALLS
    assert all(row["success"] and row["status_code"] == 200 and row["attempts"] == 1 for row in rows)
    kinds = [row["transaction_type"] for row in bank.transactions(payer)]
    assert kinds.count("hold") == CALLS
    assert sum(row["ends_hold"] for row in bank.transactions(payer)) == CALLS


def test_the_audit_finds_nothing(mix: list[Paid], bank: Bank) -> None:
    """Every invariant of the ledger holds after the mix."""
    assert bank.audit() == []


def test_the_client_is_told_the_cost(mix: list[Paid]) -> None:
    """`usage.cost` and the header with the charge say what the row says, wherever they can be."""
    wrong = []
    for paid in mix:
        charged = paid.row["cost_credits"]
        header = paid.told.headers.get("x-uc-credits-charged")
        if paid.told.wants_cost and paid.told.cost != charged:
            wrong.append(f"{paid}: usage.cost is {paid.told.cost}, charged {charged}")
        if (None if header is None else Decimal(header)) != (None if paid.told.streamed else charged):
            wrong.append(f"{paid}: x-uc-credits-charged is {header}, charged {charged}")
    assert not wrong, "\n".join(wrong)


def test_usage_chunks_come_to_those_who_asked(mix: list[Paid]) -> None:
    """A stream reports its usage once where the client asked for it, and never where it did not."""
    streams = [paid for paid in mix if paid.told.streamed]
    assert [str(paid) for paid in streams if paid.told.reports != int(paid.told.wants_cost)] == []


def test_headers(mix: list[Paid]) -> None:
    """Every answer carries the headers of the design; what was charged only plain ones can know."""
    always = {"x-uc-request-id", "x-uc-credits-held", "x-uc-power-level", "x-uc-provider", "x-uc-byok"}
    for paid in mix:
        ours = {name for name in paid.told.headers if name.startswith("x-uc-")}
        plain = set() if paid.told.streamed else {"x-uc-credits-charged", "x-uc-credits-remaining"}
        capped = {"x-uc-max-output-tokens"} if paid.told.capped else set()
        assert ours == always | plain | capped, str(paid)
        assert paid.told.headers["x-uc-power-level"] == "balanced"
        assert paid.told.headers["x-uc-provider"] == paid.row["provider"]
        assert paid.told.headers["x-uc-byok"] == "false"
        assert Decimal(paid.told.headers["x-uc-credits-held"]) >= paid.row["cost_credits"]
