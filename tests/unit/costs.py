"""Entries of LiteLLM's price map, one per kind of price they hold, and random usages for them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from uc_litellm_plugin.prices import Trigger, is_priced

# LiteLLM logs in at the first two over the network as soon as it is asked about one of their models, and does not find
# models of the third under their own names.
_LEFT_OUT = ("github_copilot", "chatgpt", "ai21")
_MODES = ("chat", "completion", "responses", "embedding")


def sample(price_map: Mapping[str, Mapping[str, Any]], number: int) -> list[str]:
    """Names of priced entries, one per provider and set of rates, those with most kinds of rates first."""
    kinds: dict[tuple[Any, ...], str] = {}
    for name, entry in sorted(price_map.items()):
        provider = entry.get("litellm_provider")
        rates = sorted(key for key in entry if "cost" in key or "pricing" in key)
        if provider in _LEFT_OUT or entry.get("mode") not in _MODES or not is_priced(entry, written_by_operator=False):
            continue
        kinds.setdefault((-len(rates), provider, *rates), name)
    ordered = [name for _, name in sorted(kinds.items())]
    return ordered[:: max(1, len(ordered) // number)]


def random_trigger(rng: random.Random) -> Trigger:
    """A request that may or may not cache, show images, speak and ask for a tier."""
    return Trigger(
        input_tokens=rng.choice([1, 1_000, 128_000, 200_001, 272_001, 600_000]),
        caches=rng.random() < 0.5,
        images=rng.random() < 0.5,
        speech=rng.random() < 0.5,
        tier=rng.choice([None, None, "auto", "default", "priority", "flex", "fast", "PRIORITY"]),
    )


def random_usage(rng: random.Random, trigger: Trigger, most_output: int) -> dict[str, Any]:
    """What a provider may report for such a request, within its bounds."""
    read = rng.choice([trigger.input_tokens, rng.randint(0, trigger.input_tokens)])
    wrote = rng.choice([most_output, rng.randint(0, most_output)])
    cached, short, long, heard, seen, _ = _parts(rng, read, 6)
    thought, said, _ = _parts(rng, wrote, 3)
    details: dict[str, Any] = {"cached_tokens": cached}
    usage: dict[str, Any] = {"cache_read_input_tokens": cached}
    if trigger.caches:
        lives = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
        details |= {"cache_creation_tokens": short + long, "cache_creation_token_details": lives}
        usage["cache_creation_input_tokens"] = short + long
    if trigger.images:
        details["image_tokens"] = seen
    if trigger.speech:
        details["audio_tokens"] = heard
    written = {"reasoning_tokens": thought, **({"audio_tokens": said} if trigger.speech else {})}
    return {
        "prompt_tokens": read,
        "completion_tokens": wrote,
        "total_tokens": read + wrote,
        "prompt_tokens_details": details,
        "completion_tokens_details": written,
        **usage,
    }


def _parts(rng: random.Random, whole: int, number: int) -> list[int]:
    cuts = [0, *sorted(rng.randint(0, whole) for _ in range(number - 1)), whole]
    return [end - start for start, end in pairwise(cuts)]
