"""Who answers a call that is under way: the router's healthy deployments, in the order of the call's plan."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import litellm
from litellm.types.router import CustomRoutingStrategyBase

from . import injection, metrics, stored_responses, usage_counts
from .call import CURRENT, Call
from .plan import OWN_KEY_MARK, Candidate
from .refusals import Refused

logger = logging.getLogger(__name__)

# Each failed candidate is one hop; LiteLLM's default of 5 would end long plans early.
_MOST_HOPS = 100
_SDK_RETRIES = "DEFAULT_MAX_RETRIES"
_METHOD = "async_get_available_deployment"
_MARK = "uc_strategy"


@dataclass(frozen=True)
class Strategy:
    """How the next candidate is chosen.

    Attributes
    ----------
    claim_probe
        Takes the one probe of a candidate that is down and due for one.
    latency_timeout
        Whether a level's `max_latency_ms` ends an attempt that another candidate can take over.
    """

    claim_probe: Callable[[Candidate], bool]
    latency_timeout: bool

    def choose(self, call: Call, healthy: Collection[str | None], cooled: Collection[str | None]) -> Candidate | None:
        """The next candidate of a call, None when each that is at hand has been tried.

        One that is down and whose probe another call has taken waits until nobody else is left.

        Parameters
        ----------
        healthy, cooled
            LiteLLM's ids of deployments: those it offers, and those it holds back for the platform's own failures,
            where a key of the caller's may work all the same.
        """
        waiting = None
        for option in call.route.options:
            candidate = option.candidate
            at_hand = candidate.router_id in healthy or (
                candidate.own_key is not None and candidate.router_id in cooled
            )
            if not at_hand or candidate.deployment in call.tried:
                continue
            if not option.standing.probe or self.claim_probe(candidate):
                return candidate
            waiting = waiting or candidate
        return waiting

    def timeout_s(self, call: Call) -> float | None:
        """The time-out of the attempt that is about to begin, None for LiteLLM's own. Seconds."""
        target_ms = call.route.level.max_latency_ms
        if not self.latency_timeout or target_ms is None or call.next() is None:
            return None
        return target_ms / 1000


class PowerLevelStrategy(CustomRoutingStrategyBase):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """LiteLLM's custom routing strategy.

    It asks the router for its healthy deployments, so that aliases, wildcards, tags, cooldowns, pre-call checks and
    other filters keep working, and takes the first of the plan that has not been tried. Calls that follow no plan, and
    groups with `model_info.uc_routing: false`, are left to the router's own strategy.

    Parameters
    ----------
    router
        LiteLLM's.
    strategy
        Chooses.
    """

    def __init__(self, router: Any, strategy: Strategy) -> None:
        self.router = router
        self._stock = type(router)
        self._strategy = strategy

    async def async_get_available_deployment(
        self,
        model: str,
        messages: Any = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The deployment of the next attempt; raises what the last one failed with when the plan has no more."""
        call = CURRENT.get()
        kwargs = request_kwargs if request_kwargs is not None else {}
        asked = {"model": model, "request_kwargs": kwargs, "messages": messages, "input": input,
                 "specific_deployment": specific_deployment}  # fmt: skip
        if call is None and model.endswith(OWN_KEY_MARK):
            # A stored response that was made with a user's own key; LiteLLM would ask a wildcard's provider for it.
            raise Refused(stored_responses.not_fetched())
        if call is None or not _is_planned(call, model):
            return await self._stock.async_get_available_deployment(self.router, **asked)
        if call.first_token is not None:
            # What was delivered cannot be taken back: another attempt would answer, and cost, twice.
            raise _exhausted(call, model)
        cooled = await self._cooled(call, model)
        healthy = await self._healthy(call, asked, or_nothing=bool(cooled))
        candidate = self._strategy.choose(call, healthy.keys(), cooled.keys())
        if candidate is None:
            raise _exhausted(call, model)
        call.tried.add(candidate.deployment)
        if (timeout_s := self._strategy.timeout_s(call)) is not None:
            kwargs["timeout"] = timeout_s
        if candidate.own_key is None:
            return healthy[candidate.router_id]
        return injection.own_deployment({**cooled, **healthy}[candidate.router_id], candidate)

    def get_available_deployment(self, model: str, *args: Any, **kwargs: Any) -> Any:
        """The synchronous router is not the proxy's; it keeps its own strategy."""
        return self._stock.get_available_deployment(self.router, model, *args, **kwargs)

    async def _healthy(self, call: Call, asked: dict[str, Any], or_nothing: bool) -> dict[str | None, Any]:
        """The deployments that LiteLLM offers, by id."""
        try:
            found = await self.router.async_get_healthy_deployments(**asked)
        except Exception:
            # It offers none. What the provider said before is more to the point than that.
            if or_nothing:
                return {}
            if call.failure is not None:
                raise call.failure from None
            raise
        return {_id_of(deployment): deployment for deployment in ([found] if isinstance(found, dict) else found)}

    async def _cooled(self, call: Call, model: str) -> dict[str | None, Any]:
        """The deployments that are cooled down and fit a key of the caller's, by id."""
        wanted = {candidate.router_id for candidate in call.plan.candidates if candidate.own_key is not None}
        if not wanted:
            return {}
        cooldowns = self.router.cooldown_cache
        found = await cooldowns.async_get_active_cooldowns(model_ids=sorted(wanted), parent_otel_span=None)
        away = {deployment for deployment, _ in found}
        listed = (self.router.get_model_list(model_name=model) or []) if away else []
        return {_id_of(deployment): deployment for deployment in listed if _id_of(deployment) in away}


def install(router: Any, strategy: Strategy) -> None:
    """Put the strategy on a router, and back where something has removed it; cheap when it is there.

    LiteLLM drops a custom one when `routing_strategy` changes (litellm/router.py, `_reset_custom_routing_strategy`).
    """
    # Newer releases wrap the strategy's method (litellm/router_python_core.py, 1.108).
    current = getattr(inspect.unwrap(getattr(router, _METHOD)), "__self__", None)
    if isinstance(current, PowerLevelStrategy):
        return
    if (earlier := getattr(router, _MARK, None)) is not None:
        metrics.REINSTALLED.inc()
        logger.error("the power-level strategy was removed from the router and is put back",
                     extra={"action": "strategy_reinstalled"})  # fmt: skip
    else:
        _set_up(router)
    setattr(router, _MARK, earlier or PowerLevelStrategy(router, strategy))
    router.set_custom_routing_strategy(getattr(router, _MARK))


def _set_up(router: Any) -> None:
    """What following a plan needs of LiteLLM, where the operator has not chosen otherwise."""
    if router.max_fallbacks == litellm.ROUTER_MAX_FALLBACKS:
        router.max_fallbacks = _MOST_HOPS
        logger.info("router_settings.max_fallbacks is %d, so that every candidate of a plan can be tried", _MOST_HOPS)
    if _SDK_RETRIES not in os.environ:
        # The OpenAI client's own retries would be attempts nobody sees (litellm/llms/openai/openai.py, `aembedding`).
        litellm.DEFAULT_MAX_RETRIES = 0
        logger.info("%s is 0: the plan says who is tried next, not the OpenAI client", _SDK_RETRIES)
    # LiteLLM's errors would name deployments and the hops of our plan to clients.
    litellm.expose_router_debug_in_errors = False
    logger.info("litellm_settings.expose_router_debug_in_errors is false: errors do not list deployments and hops")
    usage_counts.install(router)
    logger.info("the power-level strategy decides who answers")


def _id_of(deployment: Mapping[str, Any]) -> str | None:
    return (deployment.get("model_info") or {}).get("id")


def _is_planned(call: Call, group: str) -> bool:
    """Whether the group follows the plan; one that the plan does not name is its first one by another name."""
    found = [candidate.ours for candidate in call.plan.candidates if candidate.group == group]
    return all(found) if found else call.plan.ours


def _exhausted(call: Call, model: str) -> Exception:
    if call.failure is not None:
        return call.failure
    message = f"No provider of '{model}' is available at the moment."
    error: Exception = litellm.ServiceUnavailableError(message=message, model=model, llm_provider="")
    return error
