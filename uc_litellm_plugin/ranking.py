"""Who answers first: the candidates of a call in order, and why each stands where it stands. Pure.

A candidate's place is decided by, in this order: not down; its model group before the groups that stand in for it; the
caller's own key; healthy before degraded; the level's targets; its provider's place among the preferred ones; price;
recent load. What ties in all of them is ordered by deployment id, so that the order is total.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from . import prices
from .breaker import Standing
from .plan import Candidate
from .power import PowerLevel
from .wish import Wish

_MILLION = Decimal(1_000_000)
_UNKNOWN = float("inf")


@dataclass(frozen=True)
class Option:
    """A candidate with what is known of it now.

    Attributes
    ----------
    candidate
        The deployment.
    standing
        Its health, as far as this worker knows.
    usd
        The most that this request can cost there.
    """

    candidate: Candidate
    standing: Standing
    usd: Decimal


@dataclass(frozen=True)
class Reason:
    """Why a candidate stands behind another, or is left out: a word for programs and a sentence for people."""

    code: str
    detail: str


@dataclass(frozen=True)
class LeftOut:
    """A candidate that a request may not use."""

    candidate: Candidate
    reason: Reason


def obstacle(candidate: Candidate, level: PowerLevel, wish: Wish, allowed: Sequence[str] | None) -> Reason | None:
    """Why a candidate may not be used for a request, None when it may.

    Parameters
    ----------
    allowed
        The providers of the caller's tier, None for all.
    """
    provider = candidate.provider
    if allowed is not None and provider not in allowed:
        return Reason("tier", f"the caller's tier does not include {provider}")
    if level.strict and provider not in level.preferred_providers:
        return Reason("not_preferred", f"{level.name} uses none but its preferred providers")
    if wish.only is not None and provider not in wish.only:
        return Reason("not_in_only", "provider.only names others")
    if provider in wish.ignore:
        return Reason("ignored", "provider.ignore names it")
    if wish.order and not wish.allow_fallbacks and provider not in wish.order:
        return Reason("not_in_order", "provider.order names others and allow_fallbacks is false")
    if _too_dear(candidate.prices, wish):
        return Reason("max_price", "dearer than provider.max_price")
    return None


def rank(options: Sequence[Option], level: PowerLevel, wish: Wish) -> list[Option]:
    """The options in the order they are tried; the same ones, none lost.

    Parameters
    ----------
    options
        In the order of the router: a group's own deployments, then those of the groups it falls back to.
    """
    if len(options) == 1:
        return list(options)
    groups: dict[str, int] = {}
    places = _places(level, wish)
    fast, good, sort = level.max_latency_ms or _UNKNOWN, level.min_quality, wish.sort
    keyed = []
    for option in options:
        candidate, standing = option.candidate, option.standing
        rough = standing.status != "healthy"
        misses = (candidate.quality is not None and candidate.quality < good) + (
            standing.p95_ms is not None and standing.p95_ms > fast
        )
        key = (
            rough and standing.status == "down" and not standing.probe,
            groups.setdefault(candidate.group, len(groups)),
            candidate.own_key is None,
            rough and not standing.probe,
            misses,
            places.get(candidate.provider, len(places)),
            _sorted_by(sort, option) if sort else 0,
            option.usd,
            standing.load,
            candidate.deployment,
        )
        keyed.append((key, option))
    keyed.sort(key=_key)
    return [option for _, option in keyed]


def reasons(option: Option, best: Option, level: PowerLevel, wish: Wish) -> list[Reason]:
    """Every demotion of an option, in the order in which they weigh; `best` is the one that stands first."""
    return list(_reasons(option, best, level, wish))


def _reasons(option: Option, best: Option, level: PowerLevel, wish: Wish) -> Iterator[Reason]:
    candidate, standing = option.candidate, option.standing
    probe = "; the next call may try it" if standing.probe else ""
    if standing.status == "down":
        yield Reason("down", f"{candidate.provider} has failed repeatedly{probe}")
    if candidate.group != best.candidate.group:
        yield Reason("fallback_group", f"{candidate.group} stands in for {best.candidate.group}")
    if candidate.own_key is None and best.candidate.own_key is not None:
        yield Reason("no_own_key", "the caller has a key of their own elsewhere")
    if standing.status == "degraded":
        rate = "" if standing.success_rate is None else f" (success rate {standing.success_rate:.0f} %)"
        yield Reason("degraded", f"{candidate.provider} is degraded{rate}{probe}")
    yield from _missed(option, level)
    places = _places(level, wish)
    if places and candidate.provider not in places:
        yield Reason("not_preferred", f"{candidate.provider} is not preferred {_by(wish, level)}")
    elif places and places[candidate.provider] > places.get(best.candidate.provider, len(places)):
        yield Reason("less_preferred", f"{candidate.provider} is preferred less {_by(wish, level)}")
    if wish.sort and _sorted_by(wish.sort, option) > _sorted_by(wish.sort, best):
        yield Reason("sort", f"stands behind by {wish.sort}")
    if option.usd > best.usd:
        yield Reason("dearer", f"up to {option.usd:f} USD, {best.usd:f} at the first")
    elif option.usd == best.usd and standing.load > best.standing.load:
        yield Reason("busier", f"{standing.load} recent attempts, {best.standing.load} at the first")


def _missed(option: Option, level: PowerLevel) -> Iterator[Reason]:
    p95, quality = option.standing.p95_ms, option.candidate.quality
    if p95 is not None and level.max_latency_ms is not None and p95 > level.max_latency_ms:
        yield Reason("slow", f"p95 of the time to the first token is {p95:.0f} ms, the target {level.max_latency_ms}")
    if quality is not None and quality < level.min_quality:
        yield Reason("low_quality", f"quality {quality.normalize():f}, the target {level.min_quality.normalize():f}")


def _key(keyed: tuple[Any, Option]) -> Any:
    return keyed[0]


def _places(level: PowerLevel, wish: Wish) -> Mapping[str, int]:
    preferred = () if wish.sort else level.preferred_providers
    return {provider: place for place, provider in enumerate(dict.fromkeys((*wish.order, *preferred)))}


def _by(wish: Wish, level: PowerLevel) -> str:
    return "by provider.order" if wish.order else f"by {level.name}"


def _sorted_by(sort: str, option: Option) -> Decimal | float:
    """The number that a sort compares; what is not known yet comes last."""
    if sort == "price":
        return option.usd
    if sort == "latency":
        return _UNKNOWN if option.standing.p95_ms is None else option.standing.p95_ms
    speed = option.standing.tokens_per_second
    return _UNKNOWN if speed is None else -speed


def _too_dear(entry: Mapping[str, Any], wish: Wish) -> bool:
    """By the plain rates; a deployment that has none (priced in steps) is compared by its dearest step."""
    limits = ((wish.max_prompt_price, "input_cost_per_token"), (wish.max_completion_price, "output_cost_per_token"))
    return any(most is not None and _rate(entry, key) * _MILLION > most for most, key in limits)


def _rate(entry: Mapping[str, Any], key: str) -> Decimal:
    steps = [step.get(key) for step in entry.get("tiered_pricing") or ()]
    return max((prices.exact(rate) for rate in [entry.get(key), *steps] if rate is not None), default=Decimal(0))
