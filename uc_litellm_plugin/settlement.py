"""After the call: one record per call, charged or released, whichever hook comes first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any

from . import metrics, prices, pricing
from .call import Answer, Call, Outcome
from .outbox import Record
from .plan import Candidate

logger = logging.getLogger(__name__)

CostFunction = Callable[[Candidate, Mapping[str, Any], str, str | None], Decimal]

_GOOGLES = ("gemini", "vertex_ai")
_FASTEST = 999_999_999.0


class Settlement:
    """Ends calls.

    Parameters
    ----------
    settle
        Takes a record and returns when it is safe: `Ledger.settle`.
    cost
        Prices a provider's usage in USD: `costs.cost`.
    on_whole
        Told of each whole answer's output tokens: `Attempts.measured`.
    """

    def __init__(
        self,
        settle: Callable[[Record], Awaitable[Outcome]],
        cost: CostFunction,
        on_whole: Callable[[Call, int], None] = lambda call, tokens: None,
    ) -> None:
        self._settle = settle
        self._cost = cost
        self._on_whole = on_whole

    async def charge(self, call: Call, answer: Answer) -> Outcome:
        """Charge what was delivered; every caller waits for the same outcome, the first one's."""
        return await self._end(call, lambda: self._charge(call, answer))

    def begin(self, call: Call, answer: Answer) -> Decimal:
        """Have a call that has not ended charged meanwhile, for which `charge` waits.

        Returns
        -------
        Decimal
            The credits; what PostgreSQL charges differs from them only where the record goes to quarantine.
        """
        record = self._charge(call, answer)
        self._begin(call, record)
        return Decimal(record["charge"])

    async def release(self, call: Call, status: int, error_type: str) -> Outcome:
        """Give the hold back: nothing was delivered."""
        return await self._end(call, lambda: _record(call, "release", Decimal(0), _failed(call, status, error_type)))

    async def _end(self, call: Call, record: Callable[[], Record]) -> Outcome:
        return await asyncio.shield(call.ending or self._begin(call, record()))

    def _begin(self, call: Call, record: Record) -> asyncio.Future[Outcome]:
        # Set before anybody awaits anything, so that a second hook finds it.
        call.ending = asyncio.ensure_future(self._settle(record))
        return call.ending

    def _charge(self, call: Call, answer: Answer) -> Record:
        candidate = call.answering
        usd = Decimal(0) if candidate is None or answer.source == "cache" else self._usd(call, candidate, answer)
        credits = self._credits(call, usd if candidate is None else pricing.part(usd, candidate.share))
        if credits > call.held:
            metrics.BEYOND_HOLD.inc()
            logger.warning("hold %s was %s but the call cost %s", call.id, call.held, credits,
                           extra={"action": "hold_exceeded"})  # fmt: skip
        if answer.error_type is None and answer.source == "usage":
            self._on_whole(call, answer.tokens["completion_tokens"])
        return _record(call, "settle", credits, _answered(call, answer, usd))

    def _usd(self, call: Call, candidate: Candidate, answer: Answer) -> Decimal:
        tiers = _tiers(candidate, answer.service_tier, call.demand.tier)
        try:
            return max(self._cost(candidate, answer.usage, call.endpoint.call_type, tier) for tier in tiers)
        except Exception:
            # Whatever LiteLLM stumbles over, a delivered answer is not free: the plan's dearest rates apply.
            logger.exception("LiteLLM cannot price call %s; charging the plan's dearest rates", call.id)
            read, wrote = answer.tokens["prompt_tokens"], answer.tokens["completion_tokens"]
            rates = prices.dearest(candidate.prices, prices.Trigger(read))
            return pricing.usd(pricing.worst_usd(rates, read, wrote))

    def _credits(self, call: Call, usd: Decimal) -> Decimal:
        try:
            return pricing.credits(usd, call.plan.terms)
        except ArithmeticError:
            logger.critical(
                "call %s reports a cost of %s USD, which no ledger row holds; charging its hold", call.id, usd
            )
            return call.held


def _tiers(candidate: Candidate, served: str | None, asked: str | None) -> tuple[str | None, ...]:
    """The service tiers that an answer may have been served at; the dearest counts.

    Where LiteLLM translates between two dialects it may lose what was asked for, or what was served
    (litellm/responses/litellm_completion_transformation/transformation.py): no wish makes such an answer cheaper.
    """
    if served or not asked:
        return (served,)
    if asked.lower() != "auto":
        return None, asked
    # Google's `priority`, by LiteLLM's translation of Anthropic's word; elsewhere it is the account's own default.
    return (None, "priority") if candidate.litellm_provider.startswith(_GOOGLES) else (None,)


def _record(call: Call, action: str, charge: Decimal, usage: Mapping[str, Any]) -> Record:
    return {
        "hold_id": str(call.id),
        "user_id": call.caller.user_id,
        "action": action,
        "charge": f"{charge:f}",
        "usage": dict(usage),
    }


def _answered(call: Call, answer: Answer, usd: Decimal) -> dict[str, Any]:
    tokens = answer.tokens
    latency_ms = call.latency_ms()
    # What a user's own endpoint makes up of its usage must not keep the charge out of the books.
    usd = min(max(usd, prices.ZERO), pricing.LARGEST_USD) if usd.is_finite() else prices.ZERO
    return {
        **_facts(call),
        **tokens,
        "cost_usd": f"{usd:f}",
        "cost_per_token": f"{usd / tokens['total_tokens']:.12f}" if tokens["total_tokens"] else None,
        "cost_source": "usage" if answer.source == "cache" else answer.source,
        "latency_ms": latency_ms,
        "time_to_first_token_ms": call.time_to_first_token_ms(),
        "tokens_per_second": _per_second(tokens["completion_tokens"], latency_ms),
        "success": answer.error_type is None,
        "status_code": answer.status,
        "error_type": answer.error_type,
        "error_message": answer.error_message,
    }


def _per_second(count: int, milliseconds: int) -> float | None:
    """A rate as its column takes it; a provider that makes up its usage is faster."""
    return min(round(count * 1000 / milliseconds, 3), _FASTEST) if milliseconds else None


def _failed(call: Call, status: int, error_type: str) -> dict[str, Any]:
    return {
        **_facts(call),
        "cost_usd": "0",
        "latency_ms": call.latency_ms(),
        "success": False,
        "status_code": status,
        "error_type": error_type,
        "error_message": f"{error_type} after {len(call.attempts)} attempt(s); nothing was charged",
    }


def _facts(call: Call) -> dict[str, Any]:
    candidate = call.answering
    own_key = candidate.own_key if candidate else None
    return {
        "provider": candidate.provider if candidate else "none",
        "model": candidate.model if candidate else call.model,
        "model_group": call.model,
        "power_level": call.plan.terms.power_level,
        "byok_used": own_key is not None,
        "provider_key_id": str(own_key.id) if own_key else None,
        "session_id": call.names.session,
        "app_id": call.names.app,
        "endpoint": call.endpoint.name,
        "call_type": call.endpoint.call_type,
        "streamed": call.streamed,
        "attempts": len(call.attempts),
        "user_agent": call.names.user_agent,
        "ip_address": call.names.ip_address,
        "metadata": _metadata(call),
    }


def _metadata(call: Call) -> dict[str, Any]:
    """The terms the charge rests on, and the client's own ids."""
    terms, candidate = call.plan.terms, call.answering
    facts = {
        "credits_per_usd": str(terms.credits_per_usd),
        "cost_multiplier": str(terms.multiplier),
        "tier": call.caller.tier,
        "markup": str(terms.markup),
        "held": str(call.held),
        "max_output_tokens": call.cap or None,
        "deployment": candidate.deployment if candidate else None,
        "group": candidate.group if candidate else None,
        "prices": prices.of(candidate.prices).written if candidate else None,
        "api_key_id": call.caller.api_key_id,
        "acted_by": call.caller.acted_by,
        "acted_as": call.caller.role if call.caller.acted_by else None,
        "power_level_wished": None if call.route.wished == terms.power_level else call.route.wished,
        "client_request_id": call.names.request,
        "response_id": call.response_id,
    }
    return {key: value for key, value in facts.items() if value is not None}
