"""What an answer cost: LiteLLM's own arithmetic on the prices of the plan.

Most answers hold nothing but tokens that cost all the same: there it is two products, and LiteLLM, which takes twenty
times as long, is not asked. Both are held against each other over all kinds of prices (tests/unit/test_flat_costs.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import litellm
from litellm.types.utils import ModelResponse, Usage

from . import prices, pricing
from .plan import Candidate
from .prices import Rates

logger = logging.getLogger(__name__)

# Providers that LiteLLM prices by something else than the rates of an entry: the size in a model's name, the time that
# an answer took, or not at all (litellm/cost_calculator.py, `completion_cost`, `cost_per_token`).
_PRICED_OTHERWISE = frozenset({"together_ai", "replicate", "huggingface", "lemonade"})
# Priced by its rates and nothing else.
_PLAIN = "openai"
# Where they are served at the base rates.
_BASE_TIERS = (None, "", "default", "standard")
_KINDS = frozenset({"text_tokens", "reasoning_tokens"})
# Anthropic's names.
_CACHED = frozenset({"cache_creation_input_tokens", "cache_read_input_tokens"})


def cost(candidate: Candidate, usage: Mapping[str, Any], call_type: str, service_tier: str | None) -> Decimal:
    """What an answer cost, in USD at 1e-12: what LiteLLM's own `completion_cost` says on the prices of the plan.

    Parameters
    ----------
    candidate
        The deployment that answered.
    usage
        The provider's usage object in any dialect; a cost stated in it is ignored, the tokens count.
    call_type
        LiteLLM's name of the kind of call.
    service_tier
        The tier the provider served, else the one asked for.
    """
    if (usd := _flat_cost(candidate, usage, service_tier)) is not None:
        return usd
    seen = chat_usage(usage)
    usd = None
    if candidate.litellm_provider not in _PRICED_OTHERWISE:
        usd = _providers_cost(candidate, seen, call_type, service_tier)
    # LiteLLM holds some providers for free whatever the price is.
    if usd is None or not (usd or prices.is_free(candidate.prices)):
        return _plain_cost(candidate, seen, call_type, service_tier)
    return usd


def _flat_cost(candidate: Candidate, usage: Mapping[str, Any], service_tier: str | None) -> Decimal | None:
    """Tokens by their rates, where nothing else has a say in it; None where LiteLLM must be asked."""
    flat = prices.of(candidate.prices).flat
    if flat is None or service_tier not in _BASE_TIERS or litellm.cost_discount_config or litellm.cost_margin_config:
        return None
    counts = _flat_counts(usage, even=flat.even)
    if counts is None or (flat.below is not None and counts[0] >= flat.below):
        return None
    return pricing.usd(pricing.worst_usd(Rates(flat.input, flat.output), *counts))


def _flat_counts(usage: Mapping[str, Any], *, even: bool) -> tuple[int, int] | None:
    """Input and output tokens of a usage that says nothing of other kinds of tokens; None where it does."""
    said = {name: value for name, value in usage.items() if value is not None and name != "cost"}
    reading, writing = ("input_tokens", "output_tokens")
    if "prompt_tokens" in said or "completion_tokens" in said:
        reading, writing = ("prompt_tokens", "completion_tokens")
    read, wrote = said.pop(reading, 0), said.pop(writing, 0)
    if type(read) is not int or type(wrote) is not int or read < 0 or wrote < 0:
        return None
    # A total that is not the sum has tokens that cost, too (litellm/llms/xai/cost_calculator.py).
    if (total := said.pop("total_tokens", None)) is not None and total != read + wrote:
        return None
    even = even and total is not None
    wholes = {f"{reading}_details": read, f"{writing}_details": wrote, "cache_creation": 0}
    flat = all(_is_flat(details, wholes.get(name), even=even) for name, details in said.items() if details)
    return (read, wrote) if flat else None


def _is_flat(details: Any, whole: int | None, *, even: bool) -> bool:
    """Whether details of a usage name no tokens but of text and, where these cost the same, of reasoning."""
    if whole is None or not isinstance(details, Mapping):
        return False
    said = {kind: count for kind, count in details.items() if count}
    if not said:
        return True
    if said.keys() - _KINDS or any(type(count) is not int or count < 0 for count in said.values()):
        return False
    thought = said.get("reasoning_tokens", 0)
    return (even or not thought) and said.get("text_tokens", whole - thought) == whole - thought >= 0


def _providers_cost(candidate: Candidate, usage: Usage, call_type: str, service_tier: str | None) -> Decimal | None:
    """As LiteLLM prices the provider, None where it cannot."""
    model, provider = candidate.model, candidate.litellm_provider
    name = _price_name_now(candidate)
    custom = candidate.custom_prices or name != candidate.price_name
    if not custom and name not in prices.names(model, provider):
        # LiteLLM 1.106 prices by the model's own entry where it has one, whatever the operator's `base_model` says; and
        # so does any release where that is another provider's.
        name, custom = _registered({**candidate.prices, "litellm_provider": provider}), True
    try:
        return _cost(model, provider, usage, call_type, service_tier, name, custom=custom)
    except litellm.NotFoundError:
        # Some names LiteLLM cannot find again by the key they stand under; a copy under a name of ours it can.
        return _cost(model, provider, usage, call_type, service_tier, _registered(candidate.prices), custom=True)
    except Exception as error:
        # LiteLLM's errors for this are of no class of their own in all releases; the rates do without its knowledge.
        logger.warning("LiteLLM cannot price %s as %s does: %s", model, provider, error)
        return None


def _plain_cost(candidate: Candidate, usage: Usage, call_type: str, service_tier: str | None) -> Decimal:
    """By the plan's rates alone, without what LiteLLM knows of the provider."""
    name = _registered({**candidate.prices, "litellm_provider": _PLAIN})
    return _cost(name, _PLAIN, usage, call_type, service_tier, name, custom=True)


def _cost(
    model: str, provider: str, usage: Usage, call_type: str, service_tier: str | None, name: str, *, custom: bool
) -> Decimal:
    value = litellm.completion_cost(
        completion_response=ModelResponse(model=model, usage=usage),
        model=model,
        custom_llm_provider=provider,
        custom_pricing=custom,
        base_model=None if custom else name,
        router_model_id=name if custom else None,
        call_type=call_type,
        service_tier=service_tier,
    )
    return pricing.usd(value)


def chat_usage(usage: Mapping[str, Any]) -> Usage:
    """A usage object of any dialect in the shape of chat completions (as litellm/cost_calculator.py does)."""
    plain = {key: value for key, value in usage.items() if key != "cost" and value is not None}
    if "prompt_tokens" in plain or "completion_tokens" in plain:
        return Usage(**plain)
    if "input_tokens_details" in plain or "output_tokens_details" in plain:
        return _responses_usage(plain)
    # Some that speak Anthropic's dialect give a total, too; their input leaves cached tokens out.
    if "total_tokens" in plain and _CACHED.isdisjoint(plain):
        return _responses_usage(plain)
    return litellm.AnthropicConfig().calculate_usage(usage_object=plain, reasoning_content=None)


def _responses_usage(plain: Mapping[str, Any]) -> Usage:
    read, written = plain.get("input_tokens_details") or {}, plain.get("output_tokens_details") or {}
    return Usage(
        prompt_tokens=plain.get("input_tokens") or 0,
        completion_tokens=plain.get("output_tokens") or 0,
        total_tokens=plain.get("total_tokens") or 0,
        prompt_tokens_details={key: value for key, value in dict(read).items() if value is not None},
        completion_tokens_details={key: value for key, value in dict(written).items() if value is not None},
    )


def _price_name_now(candidate: Candidate) -> str:
    """The name under which the price map holds the plan's prices: its own, or a copy's if that was edited since."""
    if litellm.model_cost.get(candidate.price_name) == candidate.prices:
        return candidate.price_name
    return _registered(candidate.prices)


def _registered(prices: Mapping[str, Any]) -> str:
    """Put a copy of prices into the price map, under the digest of what they are.

    In decimal: LiteLLM reads a name with 8b in it as a model's size.
    """
    written = json.dumps(prices, sort_keys=True, default=str)
    name = f"uc-frozen-{int(hashlib.sha256(written.encode()).hexdigest()[:16], 16)}"
    litellm.model_cost.setdefault(name, dict(prices))
    return name
