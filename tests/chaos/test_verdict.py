"""The judge finds each kind of wrong, and lets pass what a kill explains."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import prices
from tests.acceptance.bank import Account
from tests.chaos.driver import Call
from tests.chaos.fleet import Proxy
from tests.chaos.trial import inspect
from tests.chaos.verdict import Verdict, judge_call
from tests.proxy import Json, upstream_key

USAGE = {"input": 9, "output": 7, "cached": 0, "written": 0, "reasoning": 0}
SENT: Json = {"finished": True, "streamed": True, "words_sent": 7}
BOOK: Json = {"api_key": upstream_key("gpt-mini"), "body": {}, "usage": USAGE, **SENT}
DUE = prices.of_call(BOOK)
CHARGE: Json = {"charged": DUE, "cost_credits": DUE, "cost_source": "usage", "user_id": "ann", "times": 1}


def a_call(killed: bool = False, **fields: Any) -> Call:
    proxy = Proxy("proxy-1", "http://127.0.0.1:1", 1, Path("log"), killed=killed)
    call = Call(1, "chat", True, Account("ann", "sk-uc-x", "id"), proxy)
    for name, value in {"status": 200, "complete": True, **fields}.items():
        setattr(call, name, value)
    return call


def judged(call: Call, books: list[Json], charges: list[Json]) -> Verdict:
    verdict = Verdict()
    judge_call(verdict, call, books, charges)
    return verdict


CUT: Json = {"complete": False, "error": "ServerDisconnectedError"}
REFUSED: Json = {"complete": False, "status": 503}


@pytest.mark.parametrize(
    ("call", "books", "charges"),
    [
        pytest.param(a_call(), [BOOK], [CHARGE], id="answered and charged"),
        pytest.param(a_call(**REFUSED), [], [], id="refused"),
        pytest.param(a_call(killed=True, **CUT), [], [], id="killed before the provider was asked"),
        pytest.param(a_call(killed=True, **CUT), [BOOK], [], id="killed before the settlement"),
        pytest.param(a_call(killed=True, **CUT), [BOOK], [CHARGE], id="killed after the settlement"),
        pytest.param(a_call(killed=True), [BOOK], [CHARGE], id="killed after the answer"),
    ],
)
def test_right(call: Call, books: list[Json], charges: list[Json]) -> None:
    """What may happen is no violation."""
    assert judged(call, books, charges).violations == []


WRONGS = [
    pytest.param(a_call(), [BOOK], [], "not charged", id="free answer"),
    pytest.param(a_call(killed=True), [BOOK], [], "not charged", id="free answer, killed later"),
    pytest.param(a_call(), [BOOK], [{**CHARGE, "times": 2}], "charged 2 times", id="two debits for a hold"),
    pytest.param(a_call(), [BOOK], [CHARGE, CHARGE], "charged 2 times", id="two holds charged"),
    pytest.param(a_call(), [BOOK, BOOK], [CHARGE], "reached the provider 2 times", id="asked twice"),
    pytest.param(a_call(), [], [CHARGE], "charged without an answer", id="charged for nothing"),
    pytest.param(a_call(**REFUSED), [], [CHARGE], "charged without an answer", id="refused and charged"),
    pytest.param(a_call(**REFUSED), [BOOK], [], "nobody killed its proxy", id="refused after an answer"),
    pytest.param(a_call(**CUT), [BOOK], [CHARGE], "nobody killed its proxy", id="cut without a kill"),
    pytest.param(a_call(), [BOOK], [{**CHARGE, "charged": DUE + 1}], "due", id="wrong charge"),
    pytest.param(a_call(), [BOOK], [{**CHARGE, "cost_credits": DUE + 1}], "due", id="wrong usage row"),
    pytest.param(a_call(), [BOOK], [{**CHARGE, "user_id": "bob"}], "instead of ann", id="another pays"),
    pytest.param(a_call(told_charge=str(DUE + 1)), [BOOK], [CHARGE], "was told", id="wrong header"),
]


@pytest.mark.parametrize(("call", "books", "charges", "said"), WRONGS)
def test_wrong(call: Call, books: list[Json], charges: list[Json], said: str) -> None:
    """Each broken rule is named."""
    assert any(said in violation for violation in judged(call, books, charges).violations)


def test_unsettled_words() -> None:
    """The words of a stream that a kill left without a charge are counted, as the client and the provider saw them."""
    cut = {**BOOK, "finished": False, "words_sent": 5, "usage": {**USAGE, "output": 5}}
    verdict = judged(a_call(killed=True, words=3, **CUT), [cut], [])
    assert verdict.counts["words delivered but not settled"] == 3
    assert verdict.counts["killed before settlement"] == verdict.counts["partial streams unsettled"] == 1
    assert len(verdict.unsettled) == 1


def test_unfinished_plain_answer_is_none() -> None:
    """A plain answer that the provider never sent may not be charged, though its input was accepted."""
    begun = {**BOOK, "finished": False, "streamed": False, "words_sent": 0}
    verdict = judged(a_call(killed=True, status=None, **CUT), [begun], [])
    assert (verdict.violations, verdict.counts["killed before the provider answered"]) == ([], 1)
    assert Decimal(verdict.counts["killed before settlement"]) == 0


CRASH = """INFO: started
Fatal Python error: Segmentation fault

Current thread 0x00007f (most recent call first):
  File "/site-packages/{where}.py", line 56 in post_response_phase
  File "/lib/python3.11/threading.py", line 982 in run

Thread 0x00007e (most recent call first):
  File "/site-packages/uc_litellm_plugin/ledger.py", line 3 in settle
"""


@pytest.mark.parametrize(
    ("said", "violations"),
    [
        pytest.param(CRASH.format(where="litellm/_internal_context"), 0, id="crash in code of others"),
        pytest.param(CRASH.format(where="uc_litellm_plugin/ledger"), 1, id="crash in ours"),
        pytest.param("Traceback: oh no", 1, id="no crash"),
    ],
)
def test_falls(tmp_path: Path, said: str, violations: int) -> None:
    """A proxy that ends unasked is a violation, unless CPython crashed in code that is not the plugin's."""
    log = tmp_path / "log"
    log.write_text(said)
    proxy = Proxy("proxy-1", "http://127.0.0.1:1", 1, log, exit_code=-11)
    proxy.gone.set()
    verdict = Verdict()
    inspect(verdict, [proxy])
    assert len(verdict.violations) == violations
    assert verdict.counts["proxies that fell by themselves"] == 1
