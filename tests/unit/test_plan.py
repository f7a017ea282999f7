from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import HELLO, TERMS, candidate, planned
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.plan import Candidate
from uc_litellm_plugin.pricing import Terms
from uc_litellm_plugin.routes import EMBEDDINGS, MESSAGES, RESPONSES

CHEAP = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5}
DEAR = {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-4}

rates = st.decimals("0.000000001", "0.001", places=9)
limits = st.none() | st.integers(1, 200_000)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    number = draw(st.integers(1, 4))
    return [
        candidate(
            f"d{n}",
            {"input_cost_per_token": float(draw(rates)), "output_cost_per_token": float(draw(rates))},
            max_output=draw(limits),
        )
        for n in range(number)
    ]


def named(cap: int, **fields: Any) -> dict[str, Any]:
    return {**HELLO, "max_tokens": cap, **fields}


def test_the_hold_covers_the_dearest_candidate() -> None:
    """The cost of a plan is that of the candidate that would cost most."""
    plan = planned(candidate("a", CHEAP), candidate("b", DEAR), body=named(1000))
    alone = planned(candidate("b", DEAR), body=named(1000))
    assert plan.cost(1000) == alone.cost(1000) > planned(candidate("a", CHEAP), body=named(1000)).cost(1000)


@given(candidates(), st.integers(1, 200_000), st.integers(1, 8))
def test_what_is_held_in_full_is_not_lowered(among: list[Candidate], cap: int, answers: int) -> None:
    """Whatever limits the candidates have, holding a cap's full cost gives that very cap."""
    plan = planned(*among, body=named(cap, n=answers))
    assert plan.cap_within(plan.cost(cap)) == cap


def test_a_small_model_does_not_lower_the_cap_of_a_large_one() -> None:
    """A dear candidate that can write little limits the others by nothing."""
    plan = planned(candidate("a", DEAR, max_output=4096), candidate("b", CHEAP), body=named(100_000))
    assert plan.cap_within(plan.cost(100_000)) == 100_000
    assert plan.affordable(plan.cost(100_000)) >= 100_000


@given(candidates(), st.decimals("0", "50", places=6), st.integers(1, 8))
def test_what_is_affordable_can_be_held(among: list[Candidate], available: Decimal, answers: int) -> None:
    """The affordable cap costs no more than what is available, and one token more would, or nothing limits it."""
    plan = planned(*among, body=named(10_000_000, n=answers))
    affordable = min(plan.affordable(available), 10_000_000)
    if affordable >= 0:
        assert plan.cost(affordable) <= available
    if 0 <= affordable < 10_000_000:
        assert plan.cost(affordable + 1) > available
    if affordable < 0:
        assert plan.cost(0) > available


@pytest.mark.parametrize("available", ["0.000300", "0.000400", "0.000700", "0.001000"])
def test_a_floor_under_the_output_is_affordable_or_nothing_is(available: str) -> None:
    """Where a provider is asked for 16 tokens whatever the cap, what is called affordable can be held."""
    plan = planned(candidate("a", CHEAP), body=named(500), endpoint=MESSAGES)
    affordable = plan.affordable(Decimal(available))
    assert affordable < 0 or plan.cost(affordable) <= Decimal(available)


def test_the_floor_is_held() -> None:
    """A cap below what the provider is asked for costs as much as that."""
    plan = planned(body=named(3), endpoint=MESSAGES)
    assert plan.cost(3) == plan.cost(16) < plan.cost(17)
    assert plan.cap_within(plan.cost(3)) == 3


def test_a_named_cap_is_all_or_nothing() -> None:
    """A limit the client named is wanted and smallest at once."""
    plan = planned(body=named(7))
    assert (plan.wanted_cap, plan.smallest_cap) == (7, 7)


@pytest.mark.parametrize(
    ("default", "least", "context", "wanted", "smallest"),
    [(4096, 256, None, 4096, 256), (100, 256, None, 256, 256), (4096, 256, 1_000, 900, 256), (4096, 256, 60, 256, 256)],
)
def test_a_cap_nobody_named(default: int, least: int, context: int | None, wanted: int, smallest: int) -> None:
    """The level's default applies, made smaller for a small context window, but never below the smallest."""
    plan = planned(candidate(context=context), default_cap=default, min_cap=least)
    assert abs(plan.wanted_cap - wanted) <= 100 if context == 1_000 else plan.wanted_cap == wanted
    assert plan.smallest_cap == smallest


@pytest.mark.parametrize(
    ("model", "fields", "wanted", "smallest"),
    [
        ("claude-haiku-4-5", {"reasoning_effort": "high"}, 4096 + 4096, 256 + 4096),
        ("claude-haiku-4-5", {"reasoning": {"effort": "low"}}, 4096 + 1024, 256 + 1024),
        ("claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 8000}}, 4096 + 8000, 256 + 8000),
        ("claude-haiku-4-5", {"thinking": {"type": "disabled"}}, 4096, 256),
        ("claude-haiku-4-5", {"reasoning_effort": "high", "max_tokens": 5000}, 5000, 5000),
        ("gpt-5", {"reasoning_effort": "high"}, 4096, 256),
    ],
)
def test_a_cap_leaves_claude_room_to_think(model: str, fields: dict[str, Any], wanted: int, smallest: int) -> None:
    """Anthropic refuses a limit that is not above the budget for thinking; the default is, and is not lowered to it."""
    plan = planned(candidate(model=model), body={**HELLO, **fields})
    assert (plan.wanted_cap, plan.smallest_cap) == (wanted, smallest)


def test_no_output_no_cap() -> None:
    """Embeddings are held for their input alone."""
    plan = planned(body={"input": "hello"}, endpoint=EMBEDDINGS)
    assert (plan.wanted_cap, plan.smallest_cap, plan.cap_within(plan.cost(0))) == (0, 0, 0)
    assert plan.cost(0) > 0


def test_terms_multiply() -> None:
    """Level, markup and credits per dollar are factors of the cost."""
    dear = Terms("precision", Decimal("1.5"), Decimal(2), Decimal(10))
    assert planned(body=named(1000), terms=dear).cost(1000) == 3 * planned(body=named(1000), terms=TERMS).cost(1000)


def test_answers_multiply_output_only() -> None:
    """Ten answers cost ten outputs and one input."""
    one, ten = planned(body=named(100)), planned(body=named(100, n=10))
    assert ten.cost(100) - ten.cost(0) == 10 * (one.cost(100) - one.cost(0))
    assert ten.cost(0) == one.cost(0)


STORED = {"input": "hi", "previous_response_id": "r"}


def test_unseen_input_is_refused_by_default() -> None:
    """Input that nobody can measure is a 400 that names it."""
    with pytest.raises(BadRequest, match="previous_response_id") as caught:
        planned(candidate(context=128_000), body=STORED, endpoint=RESPONSES)
    assert caught.value.code == "unbounded_input"


def test_unseen_input_can_be_held_at_the_context() -> None:
    """Where the operator allows it, the whole context window is held; without a known one it is refused still."""
    plan = planned(candidate(context=128_000), body=STORED, endpoint=RESPONSES, unbounded_input="hold")
    assert plan.bounds[0].input_tokens == 128_000
    with pytest.raises(BadRequest, match="max_input_tokens"):
        planned(candidate(), body=STORED, endpoint=RESPONSES, unbounded_input="hold")


def test_a_document_is_held_at_the_context() -> None:
    """A document's pages are bounded by the context window, without the operator's leave."""
    part = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    assert planned(candidate(context=9_999), body=body).bounds[0].input_tokens == 9_999


def test_a_deployment_outside_is_not_in_the_plan() -> None:
    """Only the plan's own deployments are found in it."""
    plan = planned(candidate("a"), candidate("b"))
    found = plan.candidate("b")
    assert found is not None
    assert found.deployment == "b"
    assert plan.candidate("c") is None
    assert plan.candidate(None) is None


def test_cache_writes_are_held_where_a_model_may_write_unasked() -> None:
    """Claude writes its cache only when asked; another model's cache rate counts always."""
    prices = {**CHEAP, "cache_creation_input_token_cost": 1e-3}
    claude = planned(candidate(prices=prices, model="claude-sonnet-4-5"))
    other = planned(candidate(prices=prices, model="gpt-4o"))
    assert claude.bounds[0].rates.input == Decimal("0.000001")
    assert other.bounds[0].rates.input == Decimal("0.001")
