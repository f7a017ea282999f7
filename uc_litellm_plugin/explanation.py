"""Why a call would go where it would go, as JSON: candidates in order, price, hold, and what would happen."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from . import denials, ranking
from .call import Call
from .errors import Refusal
from .holds import Held
from .ranking import LeftOut, Option


def of_call(call: Call, held: Held) -> dict[str, Any]:
    """The explanation of a rehearsed call.

    Parameters
    ----------
    call
        Planned, with what its hold would be.
    held
        The ledger's answer to the rehearsal.
    """
    refusal = None if held.error is None else denials.denial(call, held)
    return {
        "model": call.model,
        "endpoint": call.endpoint.name,
        "power_level": call.route.level.name,
        "power_level_wished": call.route.wished,
        "routed_by": "plan" if call.plan.ours else "litellm",
        "candidates": [_candidate(call, place, option) for place, option in enumerate(call.route.options, 1)],
        "left_out": [_left_out(each) for each in call.route.left_out],
        "hold": _hold(call, held),
        "balance": _balance(held),
        "outcome": _outcome(refusal),
    }


def of_refusal(model: str, refusal: Refusal) -> dict[str, Any]:
    """The explanation of a call that would not get as far as a plan."""
    return {"model": model, "candidates": [], "left_out": [], "hold": None, "balance": None,
            "outcome": _outcome(refusal)}  # fmt: skip


def _candidate(call: Call, place: int, option: Option) -> dict[str, Any]:
    candidate, standing = option.candidate, option.standing
    reasons = ranking.reasons(option, call.route.options[0], call.route.level, call.route.wish)
    return {
        "place": place,
        "deployment": candidate.deployment,
        "model_group": candidate.group,
        "model": candidate.model,
        "provider": candidate.provider,
        "own_key": candidate.own_key is not None,
        "worst_case_usd": f"{option.usd:f}",
        "status": standing.status,
        "p95_ms": standing.p95_ms,
        "success_rate": standing.success_rate,
        "quality_score": None if candidate.quality is None else float(candidate.quality),
        "reasons": [{"code": reason.code, "detail": reason.detail} for reason in reasons],
    }


def _left_out(each: LeftOut) -> dict[str, Any]:
    candidate, reason = each.candidate, each.reason
    return {
        "deployment": candidate.deployment,
        "model_group": candidate.group,
        "provider": candidate.provider,
        "reason": {"code": reason.code, "detail": reason.detail},
    }


def _hold(call: Call, held: Held) -> dict[str, Any]:
    wanted = call.plan.cost(call.plan.wanted_cap)
    return {
        "credits": f"{held.amount:f}" if held.error is None else "0",
        "worst_case": f"{wanted:f}",
        "smallest": f"{call.plan.cost(call.plan.smallest_cap):f}",
        "max_output_tokens": call.cap or None,
        "input_tokens_at_most": max(bound.input_tokens for bound in call.plan.bounds),
    }


def _balance(held: Held) -> dict[str, Any]:
    """What is available before the hold and after it; the ledger's answer has the state after it."""
    after = held.available
    before = None if after is None else after + (held.amount if held.error is None else Decimal(0))
    return {
        "available": None if before is None else f"{before:f}",
        "available_after": None if after is None else f"{after:f}",
        "debt": None if held.debt is None else f"{held.debt:f}",
    }


def _outcome(refusal: Refusal | None) -> dict[str, Any]:
    if refusal is None:
        return {"status": 200, "error": None}
    return {"status": refusal.status, "error": refusal.error()}
