"""The plan of a call: the deployments it may use, what the dearest of them can cost, and the output that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from . import prices, pricing
from .demand import Demand
from .errors import BadRequest
from .prices import Rates
from .pricing import Terms
from .provider_key import ProviderKey
from .requests import LARGEST_CAP
from .tokens import input_bound, unseen

# Ends the id of a candidate with an own key.
OWN_KEY_MARK = "#byok"


@dataclass(frozen=True)
class Candidate:
    """A deployment that may answer, with its prices as they stand when the call is held.

    Attributes
    ----------
    deployment
        LiteLLM's `model_info.id`.
    group
        The model group it was found in.
    model
        The model's name at its provider, with LiteLLM's prefix.
    provider
        The company behind it, by our name for it.
    litellm_provider
        LiteLLM's name for the same.
    price_name
        The entry's key in LiteLLM's price map.
    prices
        The entry itself, USD per unit.
    custom_prices
        The operator wrote the prices on the deployment.
    max_output, context
        The model's limits in tokens, None when unknown.
    reasons
        It may spend output tokens on reasoning that it does not show.
    quality
        `model_info.quality_score`, 0 to 100, None where the operator gave none.
    own_key
        The caller's own provider key that pays for it, None for the platform's.
    share
        The part of the price that is charged: 1, or less with an own key.
    own_key_only
        The platform has no key of its own for it.
    by_pattern
        A wildcard of the operator's found it: its model is what the client wrote, and may not exist.
    ours
        Whether its group follows the plan; False leaves the group to LiteLLM's own strategy.
    """

    deployment: str
    group: str
    model: str
    provider: str
    litellm_provider: str
    price_name: str
    prices: Mapping[str, Any]
    custom_prices: bool
    max_output: int | None
    context: int | None
    reasons: bool = False
    quality: Decimal | None = None
    own_key: ProviderKey | None = None
    share: Decimal = Decimal(1)
    own_key_only: bool = False
    ours: bool = True
    by_pattern: bool = False

    @property
    def router_id(self) -> str:
        """LiteLLM's id of the deployment, which a candidate with an own key shares with the platform's."""
        return self.deployment.removesuffix(OWN_KEY_MARK)


@dataclass(frozen=True)
class Bound:
    """One candidate's worst case: what it may read, and at which rates."""

    candidate: Candidate
    input_tokens: int
    rates: Rates

    def output(self, cap: int) -> int:
        """The most output tokens of one answer under a cap."""
        return min(cap, self.candidate.max_output or cap)


@dataclass(frozen=True)
class Plan:
    """What a call may use and cost.

    Attributes
    ----------
    terms
        USD to credits, frozen.
    bounds
        The candidates in the order in which they are tried, each with its worst case.
    answers
        How many answers may be generated.
    wanted_cap
        Output tokens per answer if credits allow: what the client named, else the level's default; 0 without output.
    smallest_cap
        What the cap may be lowered to; equal to `wanted_cap` when the client named it.
    least_output
        What is priced at least, since the provider may be asked for it whatever the cap. Tokens.
    """

    terms: Terms
    bounds: tuple[Bound, ...]
    answers: int
    wanted_cap: int
    smallest_cap: int
    least_output: int = 0

    def candidate(self, deployment: str | None) -> Candidate | None:
        """The candidate with this deployment id, None when the plan has none."""
        return next((b.candidate for b in self.bounds if b.candidate.deployment == deployment), None)

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates in the order in which they are tried."""
        return [bound.candidate for bound in self.bounds]

    @property
    def ours(self) -> bool:
        """Whether the plan decides who answers, rather than LiteLLM's own strategy."""
        return self.bounds[0].candidate.ours

    def ordered(self, deployments: Sequence[str]) -> Plan:
        """The same plan with its candidates in this order of deployment ids; those not named are left out."""
        bounds = {bound.candidate.deployment: bound for bound in self.bounds}
        return dataclasses.replace(self, bounds=tuple(bounds[deployment] for deployment in deployments))

    def usd(self, bound: Bound) -> Decimal:
        """The most USD the call can cost at one candidate with the output that is wanted."""
        return self._usd_of(bound, self.wanted_cap)

    @cached_property
    def wanted_cost(self) -> Decimal:
        """The most credits the call can cost with the output that is wanted, over all candidates."""
        return self.cost(self.wanted_cap)

    def cost(self, cap: int) -> Decimal:
        """The most credits the call can cost with `cap` output tokens per answer, over all candidates."""
        return max(self._cost_of(bound, cap) for bound in self.bounds)

    def affordable(self, available: Decimal) -> int:
        """The most output tokens per answer that `available` credits cover at every candidate; below 0 for none."""
        return min(self._affordable_at(bound, available) for bound in self.bounds)

    def cap_within(self, held: Decimal) -> int:
        """The cap to write into the request when `held` credits are held."""
        if held >= self.wanted_cost:
            return self.wanted_cap
        return max(0, min(self.wanted_cap, self.affordable(held)))

    def _affordable_at(self, bound: Bound, available: Decimal) -> int:
        most = bound.candidate.max_output
        if most is not None and self._cost_of(bound, most) <= available:
            return LARGEST_CAP  # The model's own limit is what keeps it from costing more.
        fits = pricing.affordable_output(bound.rates, bound.input_tokens, available, self.terms, self.answers)
        return fits if fits >= self.least_output else -1

    def _cost_of(self, bound: Bound, cap: int) -> Decimal:
        return pricing.credits(self._usd_of(bound, cap), self.terms)

    def _usd_of(self, bound: Bound, cap: int) -> Decimal:
        output = max(bound.output(cap), self.least_output) * self.answers
        return pricing.worst_usd(bound.rates, bound.input_tokens, output)


def make(
    demand: Demand,
    counted: int,
    candidates: Sequence[Candidate],
    terms: Terms,
    *,
    default_cap: int,
    min_cap: int,
    least_output: int,
    unbounded_input: str,
) -> Plan:
    """Bound a request over its candidates.

    Parameters
    ----------
    demand, counted
        What was asked, and its text in tokens.
    candidates
        The priced deployments of the group and its fallbacks.
    terms
        USD to credits.
    default_cap, min_cap
        The level's output limit and the smallest useful one, for requests that name none. Tokens.
    least_output
        What the provider may be asked for whatever the cap. Tokens.
    unbounded_input
        `refuse` or `hold`, for input whose size cannot be seen.

    Raises
    ------
    BadRequest
        The input has no bound at any candidate.
    """
    bounds = tuple(_bound(demand, counted, candidate, unbounded_input) for candidate in candidates)
    if not demand.writes:
        return Plan(terms, bounds, demand.answers, 0, 0)
    if demand.cap is not None:
        return Plan(terms, bounds, demand.answers, demand.cap, demand.cap, least_output)
    # Anthropic refuses a limit that is not above the budget for thinking; nobody else's output is short of it.
    budget = demand.thinking if any("claude" in candidate.model.lower() for candidate in candidates) else 0
    least = min_cap + budget
    wanted = max(min(default_cap + budget, *(_room(bound) for bound in bounds)), least)
    return Plan(terms, bounds, demand.answers, wanted, least, least_output)


def _room(bound: Bound) -> int:
    """What a small context window leaves for output; a limit that the client did not name must not overflow it."""
    context = bound.candidate.context
    return LARGEST_CAP if context is None else context - bound.input_tokens


def _bound(demand: Demand, counted: int, candidate: Candidate, unbounded_input: str) -> Bound:
    tokens = input_bound(demand, counted, candidate.model)
    hidden = unseen(demand, candidate.model)
    if hidden and unbounded_input == "refuse":
        raise BadRequest(
            f"The cost of this input cannot be bounded in advance ({', '.join(hidden)}): send the content itself, "
            "or ask the operator for holds.unbounded_input: hold.",
            code="unbounded_input",
        )
    if hidden or demand.whole_context:
        tokens = max(tokens, _whole_context(candidate))
    trigger = prices.Trigger(
        input_tokens=tokens,
        caches=demand.caches or _caches_unasked(candidate),
        images=bool(demand.images or demand.remote_images or demand.whole_context),
        speech=bool(demand.audio_bytes or demand.speaks),
        tier=demand.tier,
    )
    return Bound(candidate, tokens, prices.dearest(candidate.prices, trigger).times(candidate.share))


def _whole_context(candidate: Candidate) -> int:
    if candidate.context is None:
        raise BadRequest(
            f"The context window of {candidate.group} is not known, so this input cannot be bounded; "
            "the operator can set model_info.max_input_tokens.",
            code="unbounded_input",
        )
    return candidate.context


def _caches_unasked(candidate: Candidate) -> bool:
    """Anthropic's models write the prompt cache only when asked; others may by themselves."""
    return "claude" not in candidate.model.lower()
