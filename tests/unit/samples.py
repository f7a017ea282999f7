"""Calls, candidates and prices as the unit tests need them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from uc_litellm_plugin import demand
from uc_litellm_plugin.breaker import Standing
from uc_litellm_plugin.call import Attempt, Call, Caller, Names, Route
from uc_litellm_plugin.plan import Candidate, Plan, make
from uc_litellm_plugin.power import PowerLevel
from uc_litellm_plugin.pricing import Terms
from uc_litellm_plugin.ranking import Option
from uc_litellm_plugin.requests import Body, Inbound
from uc_litellm_plugin.routes import CHAT, Endpoint
from uc_litellm_plugin.wish import Wish

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
TERMS = Terms("balanced", Decimal(1), Decimal(1), Decimal(10))
LEVEL = PowerLevel("balanced", Decimal(1), 4096)
HELLO: Mapping[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def candidate(
    deployment: str = "d1",
    prices: Mapping[str, Any] = PRICES,
    *,
    model: str = "gpt-4o",
    max_output: int | None = None,
    context: int | None = None,
    reasons: bool = False,
) -> Candidate:
    """A deployment with prices of its own."""
    return Candidate(
        deployment=deployment,
        group="group",
        model=model,
        provider="openai",
        litellm_provider="openai",
        price_name=deployment,
        prices=prices,
        custom_prices=True,
        max_output=max_output,
        context=context,
        reasons=reasons,
    )


def planned(
    *candidates: Candidate,
    body: Body = HELLO,
    endpoint: Endpoint = CHAT,
    counted: int = 10,
    terms: Terms = TERMS,
    default_cap: int = 4096,
    min_cap: int = 256,
    unbounded_input: str = "refuse",
) -> Plan:
    """The plan of a body over some candidates."""
    return make(
        demand.measure(endpoint, body),
        counted,
        candidates or (candidate(),),
        terms,
        default_cap=default_cap,
        min_cap=min_cap,
        least_output=endpoint.least_output,
        unbounded_input=unbounded_input,
    )


def held_call(
    endpoint: Endpoint = CHAT, *, streamed: bool = True, wants_usage: bool = True, reasons: bool = False
) -> Call:
    """A call that is held and has begun its first attempt."""
    plan = planned(candidate(reasons=reasons))
    call = Call(
        caller=Caller("ann", "free", "balanced"),
        endpoint=endpoint,
        plan=plan,
        model="group",
        names=Names(),
        streamed=streamed,
        wants_usage=wants_usage,
        demand=demand.measure(CHAT, HELLO),
        inbound=Inbound(HELLO),
        route=Route(
            LEVEL, Wish(), LEVEL.name, tuple(Option(b.candidate, Standing(), plan.usd(b)) for b in plan.bounds)
        ),
        held=Decimal(1),
        cap=plan.wanted_cap,
    )
    call.attempts.append(Attempt(plan.bounds[0].candidate))
    return call
