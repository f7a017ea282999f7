"""The caller's own provider keys as candidates: a copy of each deployment that a key fits. Pure.

The copy has an id of its own, which keeps cooldowns, retry skips and health of the platform's deployment untouched by
a user's key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import groupby

from .errors import Forbidden
from .plan import OWN_KEY_MARK, Candidate
from .provider_key import ProviderKey
from .routes import CHAT, EMBEDDINGS, Endpoint

# Where LiteLLM calls through the OpenAI client, which can be given one that connects to checked addresses only.
_OWN_ADDRESSES = (CHAT, EMBEDDINGS)
_OPENAI_CLIENTS = ("openai", "custom_openai")
# LiteLLM's providers that are asked with an API key and nothing else. Others (Vertex AI, Bedrock, Azure with Active
# Directory) are asked as whoever the proxy's machine is, whatever key they are given: that would be the platform.
_BY_KEY_ALONE = frozenset(
    {"openai", "text-completion-openai", "anthropic", "anthropic_text", "openrouter", "gemini", "cohere", "cohere_chat"}
    | {"together_ai", "groq", "mistral", "codestral", "text-completion-codestral", "perplexity", "fireworks_ai"}
    | {"huggingface", "anyscale", "deepinfra", "custom", "custom_openai", "openai_like"}
)


def spread(
    candidates: Sequence[Candidate], keys: Sequence[ProviderKey], endpoint: Endpoint, fee: Decimal, now: datetime
) -> list[Candidate]:
    """The candidates of a call whose caller has these keys.

    Parameters
    ----------
    candidates
        The platform's that the call may use, a model group's own before those of the groups it falls back to. A key
        for none of these providers is not in play.
    keys
        The caller's active ones, by provider and the default first.
    endpoint
        What is called: keys with an endpoint of their own serve some of them only.
    fee
        The part of the usual price that a call with an own key costs, 0 to 1.

    Returns
    -------
    list
        Group by group, own keys first. From the first group on in which a key is in play that may not fall back,
        the platform's are not among them.

    Raises
    ------
    Forbidden
        The only keys that fit cannot be used now, and may not fall back; or the platform has no key and the caller has
        none.
    """
    chosen = _by_provider(keys, now)
    fitting = {each.provider: chosen[each.provider] for each in candidates if each.ours and each.provider in chosen}
    found: list[Candidate] = []
    barring: ProviderKey | None = None
    for _, members in groupby(candidates, key=lambda each: each.group):
        group = list(members)
        found += [
            dataclasses.replace(each, deployment=f"{each.deployment}{OWN_KEY_MARK}", own_key=key, share=fee)
            for each in group
            if (key := fitting.get(each.provider)) is not None and key.is_usable(now) and _fits(key, each, endpoint)
        ]
        barring = barring or _barring(group, fitting)
        if barring is None:
            found += [each for each in group if not each.own_key_only]
    if not found:
        raise _refusal_without_key(candidates) if barring is None else _unusable(barring, endpoint, now)
    return found


def _barring(group: Sequence[Candidate], keys: Mapping[str, ProviderKey]) -> ProviderKey | None:
    """A key in play in a group that keeps credits from being spent."""
    found = (keys.get(each.provider) for each in group if each.ours)
    return next((key for key in found if key is not None and key.fallback == "never"), None)


def _by_provider(keys: Sequence[ProviderKey], now: datetime) -> dict[str, ProviderKey]:
    """For each provider the first key that can be used, else the first."""
    ordered = sorted(keys, key=lambda key: not key.is_usable(now))
    return {key.provider: key for key in reversed(ordered)}


def _fits(key: ProviderKey, candidate: Candidate, endpoint: Endpoint) -> bool:
    """Whether a key can serve a candidate: an address of its owner's only where LiteLLM takes our connection to it."""
    if not candidate.ours or candidate.litellm_provider not in _BY_KEY_ALONE:
        return False
    return key.api_base is None or (endpoint in _OWN_ADDRESSES and candidate.litellm_provider in _OPENAI_CLIENTS)


def _refusal_without_key(candidates: Sequence[Candidate]) -> Forbidden:
    providers = " or ".join(dict.fromkeys(each.provider for each in candidates))
    return Forbidden(
        f"'{candidates[0].group}' is answered with keys of users only: add one of yours for {providers}, or renew it.",
        code="own_key_needed",
    )


def _unusable(key: ProviderKey, endpoint: Endpoint, now: datetime) -> Forbidden:
    why = "is past its time"
    if key.is_capped(now):
        why = "has reached its monthly cap"
    elif key.is_usable(now):
        why = f"has an endpoint of its own, which does not serve {endpoint.name}"
        if key.api_base is None:
            why = "cannot be used there: the proxy is known to that deployment by other means than a key"
    return Forbidden(
        f"Your own key '{key.key_name}' for {key.provider} {why}, and it may not fall back on credits: renew it, "
        "deactivate it, or set its fallback to credits.",
        code="own_key_unusable",
        metadata={"provider": key.provider, "key_id": str(key.id)},
    )
