"""Three books side by side, call by call: the clients', the provider's, and the ledger."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from tests.acceptance import prices
from tests.acceptance.bank import Bank
from tests.chaos.driver import Call
from tests.proxy import Json

# Every usage row with what the ledger charged for it, and every charge that has no usage row.
_CHARGES = """
SELECT u.metadata ->> 'client_request_id' AS client, u.user_id, u.cost_credits, u.cost_source, c.hold_id, c.charged,
    c.times
FROM (
    SELECT hold_id, sum(debt_delta - amount) AS charged, count(*) AS times
    FROM credit_transactions WHERE transaction_type = 'debit' GROUP BY hold_id
) AS c LEFT JOIN llm_usage_log AS u ON u.hold_id = c.hold_id"""
_NEGATIVE = """
SELECT count(*) AS n FROM credit_transactions
WHERE balance_after < 0 OR held_after < 0 OR debt_after < 0 OR held_after > balance_after"""
_COUNTS = {
    "negative rows": _NEGATIVE,
    "holds left": "SELECT count(*) AS n FROM credit_holds",
    "quarantined": "SELECT count(*) AS n FROM settlement_quarantine",
    "audit rows": "SELECT count(*) AS n FROM ledger_audit()",
    "late settlements": "SELECT count(*) AS n FROM credit_transactions WHERE metadata ? 'late'",
    "lapsed holds": "SELECT count(*) AS n FROM credit_transactions WHERE transaction_type = 'expire'",
}
_MUST_BE_ZERO = ("negative rows", "holds left", "quarantined", "audit rows")


@dataclass
class Verdict:
    """What was counted, which calls a kill left without a charge, and what must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    unsettled: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def blame(self, call: Call, why: str) -> None:
        self.violations.append(
            f"call {call.number} ({call.ask}{', streamed' if call.stream else ''}, {call.proxy.name}, hold "
            f"{call.request_id}, status {call.status}, {call.error or 'no error'}): {why} {call.body[:300]}"
        )


def judge(calls: Sequence[Call], upstream: Sequence[Json], bank: Bank, untold: Collection[str] = ()) -> Verdict:
    """Compares the books. `untold` are the ids of calls whose awaited hook never came."""
    verdict = Verdict()
    books, charges = by_call(upstream), charges_of(bank)
    for call in calls:
        call.untold = call.request_id in untold
        judge_call(verdict, call, books.pop(call.number, []), charges.pop(call.client_id, []))
    verdict.violations += [f"the provider was asked for {lost}, which nobody asked for" for lost in books]
    verdict.violations += [f"charged for {client}: {rows}" for client, rows in charges.items()]
    for name, query in _COUNTS.items():
        verdict.counts[name] = bank.rows(query)[0]["n"]
    verdict.violations += [f"{verdict.counts[n]} {n}" for n in _MUST_BE_ZERO if verdict.counts[n]]
    verdict.violations += [str(row) for row in bank.audit()[:20]]
    counts = verdict.counts
    if counts["answered by the provider"] != counts["charged"] + counts["killed before settlement"]:
        verdict.violations.append("answered by the provider <> charged + killed before settlement")
    return verdict


def by_call(upstream: Sequence[Json]) -> dict[int, list[Json]]:
    """The provider's books by the number that the prompt names. LiteLLM lists models (a GET) on its own account."""
    found = defaultdict(list)
    for book in upstream:
        if book["method"] == "POST" and (mark := re.search(r"mark (\d+) say", json.dumps(book["body"]))):
            found[int(mark[1])].append(book)
    return found


def charges_of(bank: Bank) -> dict[str, list[Json]]:
    found = defaultdict(list)
    for row in bank.rows(_CHARGES):
        found[str(row["client"])].append(row)
    return found


def judge_call(verdict: Verdict, call: Call, books: list[Json], charges: list[Json]) -> None:
    counts = verdict.counts
    counts["calls"] += 1
    counts[outcome_of(call)] += 1
    answered = [book for book in books if is_answered(book)]
    counts["reached the provider"] += len(books)
    counts["answered by the provider"] += len(answered)
    counts["charged"] += bool(charges)
    counts["doubles"] += sum(row["times"] for row in charges) > 1
    for why in wrongs(call, books, answered, charges):
        verdict.blame(call, why)
    if answered and not charges and call.proxy.killed and (call.untold or not call.complete):
        note_unsettled(verdict, call, answered[0])
    elif call.proxy.killed and not call.complete and charges:
        counts["charged, though killed before the client had it all"] += 1
    elif call.proxy.killed and not call.complete and books:
        counts["killed before the provider answered"] += 1


def outcome_of(call: Call) -> str:
    """What the client would say: answered in full, cut, without any answer, or refused with a status."""
    if call.complete:
        return "complete at the client"
    if call.status == 200:
        return "cut at the client"
    return "without an answer" if call.status is None else f"refused {call.status}"


def is_answered(book: Json) -> bool:
    """Whether a provider would say that it delivered something: a plain answer, or a word of a stream."""
    return bool(book["finished"] or (book["streamed"] and book["words_sent"]))


def wrongs(call: Call, books: list[Json], answered: list[Json], charges: list[Json]) -> Iterator[str]:
    """Each rule that this call breaks."""
    if len(books) > 1:
        yield f"reached the provider {len(books)} times"
    if (times := sum(row["times"] for row in charges)) > 1:
        yield f"charged {times} times: {charges}"
    if call.complete and not answered:
        yield "a complete answer that the provider did not give"
    if call.complete and not charges and not (call.untold and call.proxy.killed):
        yield "a complete answer was not charged"
    if call.status not in (None, 200, 402, 503):
        yield "refused as nobody expects"
    if not call.complete and not call.proxy.killed and (call.status in (None, 200) or answered):
        yield "not answered in full, though nobody killed its proxy"
    if charges and not answered:
        yield f"charged without an answer: {charges}"
    if charges and answered:
        yield from wrong_amounts(call, answered[0], charges[0])


def wrong_amounts(call: Call, book: Json, row: Json) -> Iterator[str]:
    due = prices.of_call(book)
    if not row["charged"] == row["cost_credits"] == due:
        yield f"charged {row['charged']} ({row['cost_source']}), its usage row says {row['cost_credits']}, due {due}"
    if row["user_id"] != call.account.user_id:
        yield f"charged to {row['user_id']} instead of {call.account.user_id}"
    if call.complete and call.told_charge is not None and Decimal(call.told_charge) != due:
        yield f"the client was told {call.told_charge}, due {due}"


def note_unsettled(verdict: Verdict, call: Call, book: Json) -> None:
    """A killed worker had no time to charge what the provider delivered."""
    counts = verdict.counts
    counts["killed before settlement"] += 1
    counts["killed when LiteLLM had told no hook"] += call.complete
    worth = prices.of_call(book)
    if call.words:
        counts["partial streams unsettled"] += 1
        counts["words delivered but not settled"] += call.words
    verdict.unsettled.append(
        f"call {call.number} {call.ask} {'stream' if call.stream else 'plain'} at {call.proxy.name}: "
        f"{call.words} words at the client, {book['words_sent']} from the provider, worth {worth}"
    )


_ORDER = (
    *("calls", "complete at the client", "cut at the client", "without an answer", "refused 402", "refused 503"),
    *("reached the provider", "answered by the provider", "charged", "killed before settlement"),
    *("killed before the provider answered", "charged, though killed before the client had it all"),
    *(
        "killed when LiteLLM had told no hook",
        "partial streams unsettled",
        "words delivered but not settled",
        "late settlements",
        "lapsed holds",
    ),
    *("kill", "crash", "crash_without_outbox", "terminate", "terminate_settling", "cut_hold_before", "cut_hold_after"),
    *("cut_hold_mute", "cut_settle_before", "cut_settle_after", "cut_settle_mute", "break_outbox", "freeze", "stall"),
    *("hooks that came twice", "hooks that came never", "deliver_again", "top_up", "missed"),
    *("doubles", "negative rows", "holds left", "audit rows", "quarantined"),
    *("proxies", "proxies that fell by themselves", "fell by a fault of the interpreter", "seconds"),
)


def report(verdict: Verdict, seed: int) -> list[str]:
    """The calls that a kill left without a charge, the table, and what went wrong."""
    others = sorted(name for name in verdict.counts if name not in _ORDER)
    rows = [f"| {name} | {verdict.counts[name]} |" for name in (*_ORDER, *others)]
    wrong = [f"VIOLATION {violation}" for violation in verdict.violations]
    return [*verdict.unsettled, "", "| | |", "| --- | ---: |", *rows, f"| seed | {seed} |", "", *wrong,
            f"{len(wrong)} violation(s)"]  # fmt: skip
