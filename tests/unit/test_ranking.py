"""Who answers first: each rule of the precedence by a case of its own, and what holds whatever the candidates are."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import candidate
from uc_litellm_plugin import ranking
from uc_litellm_plugin.breaker import Standing
from uc_litellm_plugin.power import PowerLevel
from uc_litellm_plugin.ranking import Option
from uc_litellm_plugin.wish import Wish

LEVEL = PowerLevel("eco", Decimal("0.7"), 2048, ("openrouter", "together"), False, 5000, Decimal(70))
PLAIN = Wish()


def option(name: str, provider: str = "together", usd: str = "1", **known: Any) -> Option:
    """A candidate with its provider, price, quality and standing; `group`, `own_key` and `quality` are its own."""
    own = {field: known.pop(field) for field in ("group", "own_key", "quality") if field in known}
    made = dataclasses.replace(candidate(name), provider=provider, **own)
    return Option(made, Standing(**known), Decimal(usd))


def order(options: list[Option], level: PowerLevel = LEVEL, wish: Wish = PLAIN) -> str:
    """The deployments' names in the order they are tried."""
    return "".join(each.candidate.deployment for each in ranking.rank(options, level, wish))


# The better one is a, though everything that weighs less speaks for b.
PRECEDENCE = {
    "not down before down": (
        option("a", "zzz", "9", group="stand-in", status="degraded", p95_ms=9000.0, load=9),
        option("b", "openrouter", status="down", own_key="key"),
    ),
    "its own group before one that stands in": (
        option("a", "zzz", "9", group="first", status="degraded", p95_ms=9000.0),
        option("b", "openrouter", group="second", own_key="key"),
    ),
    "the caller's own key": (
        option("a", "zzz", "9", own_key="key", status="degraded", p95_ms=9000.0),
        option("b", "openrouter"),
    ),
    "healthy before degraded": (
        option("a", "zzz", "9", p95_ms=9000.0, quality=Decimal(1), load=9),
        option("b", "openrouter", status="degraded"),
    ),
    "the latency target": (option("a", "zzz", "9", load=9), option("b", "openrouter", p95_ms=5001.0)),
    "the quality target": (option("a", "zzz", "9", load=9), option("b", "openrouter", quality=Decimal("69.9"))),
    "the preferred providers": (option("a", "openrouter", "9", load=9), option("b", "together")),
    "preferred before others": (option("a", "together", "9", load=9), option("b", "zzz")),
    "price": (option("a", usd="1", load=9), option("b", usd="1.000001")),
    "recent load": (option("a", load=1), option("b", load=2)),
    "the name, so that no two tie": (option("a"), option("b")),
    "down but due for a probe, as if it were healthy": (option("a", status="down", probe=True), option("b", usd="2")),
}


@pytest.mark.parametrize("rule", PRECEDENCE)
def test_precedence(rule: str) -> None:
    """Each rule outweighs all that come after it."""
    better, worse = PRECEDENCE[rule]
    groups = [worse, better] if better.candidate.group == worse.candidate.group else [better, worse]
    assert order(groups) == "ab"


def test_a_stand_in_that_is_well_comes_before_a_group_that_is_down() -> None:
    """A down deployment is kept, after everything that is not down, whatever group it is in."""
    assert order([option("b", status="down", group="first"), option("a", group="second")]) == "ab"


def test_unknown_quality_and_latency_are_no_miss() -> None:
    """What nobody has measured is not held against a deployment."""
    assert order([option("b", usd="2", p95_ms=4999.0, quality=Decimal(70)), option("a")]) == "ab"


WISHES = {
    "order": (Wish(order=("zzz", "together")), "cba"),
    "sort by price": (Wish(sort="price"), "bca"),
    "sort by latency": (Wish(sort="latency"), "cab"),
    "sort by throughput": (Wish(sort="throughput"), "acb"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_wishes(wish: str) -> None:
    """A request's own order or sort stands in for the level's preferred providers."""
    options = [
        option("a", "openrouter", "3", p95_ms=200.0, tokens_per_second=90.0),
        option("b", "together", "1", p95_ms=300.0, tokens_per_second=10.0),
        option("c", "zzz", "2", p95_ms=100.0, tokens_per_second=50.0),
    ]
    wished, expected = WISHES[wish]
    assert order(options, wish=wished) == expected


STRICT = dataclasses.replace(LEVEL, strict=True)
OBSTACLES = {
    "a provider outside of the tier": (LEVEL, PLAIN, ("openai",), "tier"),
    "a level without others": (STRICT, PLAIN, None, "not_preferred"),
    "only": (LEVEL, Wish(only=frozenset({"together"})), None, "not_in_only"),
    "ignore": (LEVEL, Wish(ignore=frozenset({"zzz"})), None, "ignored"),
    "order without fallbacks": (LEVEL, Wish(order=("together",), allow_fallbacks=False), None, "not_in_order"),
    "a prompt that is too dear": (LEVEL, Wish(max_prompt_price=Decimal("0.99")), None, "max_price"),
    "an answer that is too dear": (LEVEL, Wish(max_completion_price=Decimal("1.99")), None, "max_price"),
    "just dear enough": (LEVEL, Wish(max_prompt_price=Decimal(1), max_completion_price=Decimal(2)), None, None),
    "nothing against it": (LEVEL, PLAIN, ("zzz",), None),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_obstacles(case: str) -> None:
    """What a tier, a level or a request rules out has a name; prices are USD per million tokens."""
    level, wish, allowed, code = OBSTACLES[case]
    reason = ranking.obstacle(option("a", "zzz").candidate, level, wish, allowed)
    assert (reason.code if reason else None) == code


def test_every_demotion_has_a_reason() -> None:
    """Each thing that is worse than at the first is named, in the order in which it weighs."""
    best = option("a", "openrouter", own_key="key")
    worst = option("b", "zzz", "2", group="other", status="degraded", success_rate=50.0, p95_ms=9e3, quality=Decimal(5))
    codes = [reason.code for reason in ranking.reasons(worst, best, LEVEL, PLAIN)]
    assert codes == ["fallback_group", "no_own_key", "degraded", "slow", "low_quality", "not_preferred", "dearer"]
    assert ranking.reasons(best, best, LEVEL, PLAIN) == []


OPTIONS = st.lists(
    st.builds(
        option,
        st.uuids().map(str),
        st.sampled_from(["openrouter", "together", "openai", "zzz"]),
        st.decimals("0", "9", places=6).map(str),
        group=st.sampled_from(["one", "two"]),
        own_key=st.sampled_from([None, "key"]),
        quality=st.none() | st.decimals(0, 100, places=2),
        status=st.sampled_from(["healthy", "degraded", "down"]),
        p95_ms=st.none() | st.floats(0, 1e5),
        success_rate=st.none() | st.floats(0, 100),
        load=st.integers(0, 9),
        probe=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
ANY_WISH = st.builds(
    Wish, order=st.sampled_from([(), ("zzz", "openai")]), sort=st.sampled_from([None, "price", "latency", "throughput"])
)


@given(OPTIONS, ANY_WISH, st.randoms(use_true_random=False))
def test_ranking_is_a_total_order(options: list[Option], wish: Wish, random: Any) -> None:
    """None is lost, none is added, and the order does not depend on how they came, within the groups' own order."""
    ranked = ranking.rank(options, LEVEL, wish)
    assert sorted(map(id, ranked)) == sorted(map(id, options))
    groups = {each.candidate.group: None for each in options}
    shuffled = random.sample(options, len(options))
    again = sorted(shuffled, key=lambda each: list(groups).index(each.candidate.group))
    assert ranking.rank(again, LEVEL, wish) == ranked
    assert ranking.rank(ranked, LEVEL, wish) == ranked or len(groups) > 1


@given(OPTIONS, ANY_WISH)
def test_whoever_stands_behind_has_a_reason(options: list[Option], wish: Wish) -> None:
    """Every candidate behind the first has at least one reason, unless only its name put it there."""
    best, *others = ranking.rank(options, LEVEL, wish)
    for each in others:
        same = (each.usd, each.standing.load) == (best.usd, best.standing.load)
        assert ranking.reasons(each, best, LEVEL, wish) or same
