"""Model groups of four deployments, each at a side of the upstream and of another provider, and what they cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from tests.acceptance.bank import SEALING
from tests.acceptance.prices import Price, credits
from tests.proxy import Json, Proxy, deployment, litellm_config, upstream_key

# No level prefers them in the order of their prices, so that a place says who decided it.
PROVIDERS = {"north": "openrouter", "east": "together", "south": "openai", "west": "anthropic"}
SIDES = tuple(PROVIDERS)
PRICES = {
    "north": Price("1.9", "6.7"),
    "east": Price("1.1", "4.3"),
    "south": Price("2.3", "7.9"),
    "west": Price("1.7", "6.1"),
}
# The seed's levels: the preferred providers first, then the others by price.
ORDERS = {
    "eco": ("north", "east", "west", "south"),
    "balanced": ("south", "west", "north", "east"),
    "precision": ("west", "south", "east", "north"),
}
MULTIPLIERS = {"eco": "0.7", "balanced": "1", "precision": "1.5"}

MIXED = {
    "north": "openrouter/openai/gpt-4o-mini",
    "east": "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "south": "openai/gpt-4o-mini",
    "west": "anthropic/claude-sonnet-4-6",
}


@dataclass(frozen=True)
class Endpoint:
    """A way to ask for an answer.

    Attributes
    ----------
    ask
        Its name in `tests.acceptance.asking.ASKS`.
    models
        The model at each side; LiteLLM's name of its provider is the provider's only where the models differ.
    """

    ask: str
    models: Mapping[str, str]

    @property
    def streams(self) -> tuple[bool, ...]:
        return (False,) if self.ask == "embeddings" else (False, True)


def _same(model: str) -> Mapping[str, str]:
    return dict.fromkeys(SIDES, model)


ENDPOINTS = {
    "chat": Endpoint("chat", _same("openai/gpt-4o-mini")),
    "chat in four dialects": Endpoint("chat", MIXED),
    "responses": Endpoint("responses", _same("openai/gpt-4o-mini")),
    "messages": Endpoint("messages", _same("anthropic/claude-sonnet-4-6")),
    "messages bridged": Endpoint("messages bridged", _same("openai/gpt-4o-mini")),
    "embeddings": Endpoint("embeddings", _same("openai/text-embedding-3-small")),
    "completions": Endpoint("completions", _same("text-completion-openai/gpt-3.5-turbo-instruct")),
}


def spread(
    group: str, models: Mapping[str, str], url: str, bases: Mapping[str, str] | None = None, **params: Any
) -> list[Json]:
    """A group of one deployment for each side that `models` names, `dep-<group>-<side>`.

    `bases` are other hosts for some sides; `params` are added to the `litellm_params` of all.
    """
    return [one(group, side, model, (bases or {}).get(side, url), **params) for side, model in models.items()]


def one(group: str, side: str, model: str, url: str, name: str = "", **params: Any) -> Json:
    """A deployment at one side."""
    base = f"{url}/{side}" if model.startswith("anthropic/") else f"{url}/{side}/v1"
    price = PRICES[side]
    rates = {"input_cost_per_token": float(price.read) / 1e6, "output_cost_per_token": float(price.write) / 1e6}
    made = deployment(group, model, base, {**rates, **params}, name or f"{group}-{side}")
    if model != MIXED.get(side):
        made["model_info"]["uc_provider"] = PROVIDERS[side]
    if "embedding" in model:
        made["model_info"]["mode"] = "embedding"
    return made


def key(group: str, side: str) -> str:
    """The provider key of a group's deployment at a side."""
    return upstream_key(f"{group}-{side}")


def side_of(call: Json) -> str:
    """The side that a call in the upstream's books came to."""
    return str(call["path"]).split("/")[1]


def hits(calls: list[Json]) -> list[str]:
    """The sides that were called, in order."""
    return [side_of(call) for call in calls]


def charge(call: Json, level: str) -> Decimal:
    """The credits that a call in the upstream's books costs at a level."""
    return credits(PRICES[side_of(call)].usd(call["usage"]), MULTIPLIERS[level])


def config(url: str, models: list[Json], **router: Any) -> Json:
    """The proxy's config: our two lines, these models, and the operator's own router settings."""
    return litellm_config(url, model_list=models, router_settings=router)


@contextmanager
def powered_proxy(
    database_url: str, config: Json, settings: Json | None = None, workers: int = 1, file: Path | None = None
) -> Iterator[Proxy]:
    """A proxy with the plugin and nothing else set for it; `settings` is its `uc.yaml`, written to `file` if told."""
    with tempfile.TemporaryDirectory(prefix="uc-state-") as state:
        file = file or Path(state, "uc.yaml")
        file.write_text(yaml.safe_dump(settings or {}))
        ours = {"UC_STATE_DIR": state, "UC_DATABASE_URL": database_url, "UC_CONFIG": str(file)}
        environment = {**SEALING, **ours}
        with Proxy(config, environment, workers=workers, cwd=Path(state)) as proxy:
            yield proxy
