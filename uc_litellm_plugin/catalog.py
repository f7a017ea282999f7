"""The deployments the proxy serves and what they cost, read from LiteLLM's router and price map."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import litellm
from litellm.types.router import CustomPricingLiteLLMParams

from . import prices, regions
from .errors import BadRequest
from .plan import Candidate
from .prices import PriceEntry

logger = logging.getLogger(__name__)

# Models that search the web unasked: their fee is not in the usage, and their findings have no bound.
_SEARCHERS = ("sonar", "search-preview", "search-api", "deep-research")
_CUSTOM_PRICES = frozenset(CustomPricingLiteLLMParams.model_fields)
_OF_PARAMS = _CUSTOM_PRICES | regions.PARAMS | {"model", "custom_llm_provider", "base_model"}


class Catalog:
    """Looks up candidates by model name.

    Parameters
    ----------
    router
        Returns LiteLLM's router; it is built after the callbacks are imported, and read anew each time.
    provider_name
        Maps LiteLLM's name of a provider to ours.
    """

    def __init__(self, router: Callable[[], Any], provider_name: Callable[[str], str]) -> None:
        self._router = router
        self._provider_name = provider_name
        self._announced_free: set[str] = set()
        self._snapshots: dict[str, PriceEntry] = {}
        self._made: dict[tuple[str, str], _Made] = {}

    def candidates(self, model: str) -> list[Candidate]:
        """The priced deployments of a model group and of all groups it can fall back to.

        Raises
        ------
        BadRequest
            Nobody serves the name, or no deployment of the group itself has a price.
        """
        router = self._router()
        primary = _deployments(router, model)
        if not primary:
            raise BadRequest(
                f"'{model}' is not a model here; see GET /v1/models.", code="model_not_found", param="model"
            )
        found = [candidate for d in primary if (candidate := self._candidate(router, d, model))]
        if not found:
            raise BadRequest(f"'{model}' has no price, so it cannot be charged; the operator must set one.",
                             code="unpriced_model", param="model")  # fmt: skip
        for group in _fallback_groups(router, model):
            stand_ins = _deployments(router, group)
            found += [candidate for d in stand_ins if (candidate := self._candidate(router, d, group))]
        return list({candidate.deployment: candidate for candidate in reversed(found)}.values())[::-1]

    def is_model(self, name: str) -> bool:
        """Whether a whole name is a model's: a group, an alias, or a known model's that a wildcard serves."""
        router = self._router()
        if router is None:
            return False
        return _is_named(router, name) or (name in litellm.model_cost and bool(_deployments(router, name)))

    def providers(self) -> Mapping[str, str]:
        """The providers of all deployments, by our names and LiteLLM's, to ours."""
        router = self._router()
        found = [self._provider(deployment) for deployment in (router.model_list if router is not None else ())]
        return {name: ours for litellms, ours in found for name in (litellms, ours)}

    def _provider(self, deployment: Mapping[str, Any]) -> tuple[str, str]:
        litellms = _split(deployment["litellm_params"])[1]
        info = deployment.get("model_info") or {}
        return litellms, str(info.get("uc_provider") or self._provider_name(litellms))

    def _candidate(self, router: Any, deployment: Mapping[str, Any], group: str) -> Candidate | None:
        params, info = deployment["litellm_params"], deployment.get("model_info") or {}
        if not _is_named(router, group):
            return self._make(params, info, group, by_pattern=True)
        facts = _Facts.of(params, info)
        made = self._made.get((group, info["id"]))
        if made is not None and made.facts == facts and self._is_current(made):
            return made.candidate
        candidate = self._make(params, info, group, by_pattern=False)
        if candidate is not None:
            model, provider = candidate.model, candidate.litellm_provider
            names = {candidate.price_name, *prices.names(_base(params, info, model), provider)}
            entries = {name: self._snapshot(name) for name in names.union(prices.names(model, provider))}
            self._made[group, info["id"]] = _Made(facts, entries, candidate)
        return candidate

    def _is_current(self, made: _Made) -> bool:
        """Whether what a candidate rests on beside its deployment is as it was."""
        provider = made.facts.info.get("uc_provider") or self._provider_name(made.candidate.litellm_provider)
        return made.candidate.provider == provider and all(
            litellm.model_cost.get(name) == entry for name, entry in made.entries.items()
        )

    def _make(
        self, params: Mapping[str, Any], info: Mapping[str, Any], group: str, *, by_pattern: bool
    ) -> Candidate | None:
        model, provider = _split(params)
        custom = any(source[key] is not None for source in (params, info) for key in _CUSTOM_PRICES & source.keys())
        name = info["id"] if custom else _price_name(_base(params, info, model), provider)
        entry = self._snapshot(name)
        if name is None or entry is None or not prices.is_priced(entry, written_by_operator=custom):
            logger.warning("deployment %s of %s has no price: it gets no calls", info.get("id"), group)
            return None
        if any(part in model for part in _SEARCHERS):
            logger.warning(
                "deployment %s of %s searches the web at a fee of its own: it gets no calls", info.get("id"), group
            )
            return None
        self._announce_free(group, info["id"], entry)
        known = _known_limits(model, provider)
        return Candidate(
            deployment=info["id"],
            group=group,
            model=model,
            provider=info.get("uc_provider") or self._provider_name(provider),
            litellm_provider=provider,
            price_name=name,
            prices=entry.times(regions.multiplier(entry, params, model, provider)),
            custom_prices=custom,
            max_output=_limit("max_output_tokens", info, entry, known) or _limit("max_tokens", info, entry, known),
            context=_limit("max_input_tokens", info, entry, known),
            reasons=bool(info.get("supports_reasoning", known.get("supports_reasoning"))),
            quality=_quality(info),
            own_key_only=info.get("uc_own_key_only") is True,
            ours=info.get("uc_routing") is not False,
            by_pattern=by_pattern,
        )

    def _snapshot(self, name: str | None) -> PriceEntry | None:
        """A copy of a price entry that no later edit of the price map reaches; the same one until it is edited."""
        if name is None or (entry := litellm.model_cost.get(name)) is None:
            return None
        if self._snapshots.get(name) != entry:
            self._snapshots[name] = PriceEntry(copy.deepcopy(dict(entry)))
        return self._snapshots[name]

    def _announce_free(self, group: str, deployment: str, entry: Mapping[str, Any]) -> None:
        if deployment not in self._announced_free and prices.is_free(entry):
            self._announced_free.add(deployment)
            logger.warning("deployment %s of %s is free of charge: its operator set its price to 0", deployment, group)


@dataclass(frozen=True)
class _Facts:
    """What of a deployment makes its candidate; `==` takes 1 for `true`, so the types are here, too."""

    params: Mapping[str, Any]
    info: Mapping[str, Any]
    types: tuple[type, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any], info: Mapping[str, Any]) -> _Facts:
        """Copies; the deployment's key is not kept here."""
        kept = {key: value for key, value in params.items() if key in _OF_PARAMS}
        return cls(kept, dict(info), tuple(map(type, (*kept.values(), *info.values()))))


@dataclass(frozen=True)
class _Made:
    """A candidate with what it was made of: the entries it has, would rather have had, and takes limits from."""

    facts: _Facts
    entries: Mapping[str, PriceEntry | None]
    candidate: Candidate


def _base(params: Mapping[str, Any], info: Mapping[str, Any], model: str) -> str:
    """The model whose prices the operator wants."""
    return str(info.get("base_model") or params.get("base_model") or model)


def _deployments(router: Any, group: str) -> list[Mapping[str, Any]]:
    return (router.get_model_list(model_name=group) or []) if router is not None else []


def _is_named(router: Any, group: str) -> bool:
    """Whether the operator wrote this very name, rather than a pattern that it matches."""
    return group in router.model_names or group in (router.model_group_alias or {})


def _fallback_groups(router: Any, model: str) -> list[str]:
    """Every group the router may turn to when `model` fails (litellm/router.py, `async_function_with_fallbacks`)."""
    tables = [getattr(router, name, None) or [] for name in
              ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")]  # fmt: skip
    aliases = getattr(router, "model_group_alias", None) or {}
    found: dict[str, None] = {}
    ahead = [model]
    while ahead:
        group = ahead.pop(0)
        for name in (group, _alias_target(aliases.get(group)), "*"):
            for target in _targets(tables, name):
                if target not in found and target != model:
                    found[target] = None
                    ahead.append(target)
    return list(found)


def _alias_target(alias: Any) -> str | None:
    return alias.get("model") if isinstance(alias, Mapping) else alias


def _targets(tables: Iterable[Iterable[Any]], group: str | None) -> Iterator[str]:
    for table in tables:
        for row in table:
            for target in row.get(group, ()) if isinstance(row, Mapping) else ():
                yield target["model"] if isinstance(target, Mapping) else target


def _split(params: Mapping[str, Any]) -> tuple[str, str]:
    """A deployment's model and LiteLLM's name of its provider."""
    model = str(params["model"])
    if provider := params.get("custom_llm_provider"):
        return model, str(provider)
    prefix = model.split("/", 1)[0]
    if "/" in model and prefix in litellm.provider_list:
        return model, prefix
    try:
        return model, str(litellm.get_llm_provider(model=model, api_base=params.get("api_base"))[1])
    except litellm.BadRequestError:
        return model, model.split("/", 1)[0]


def _price_name(model: str, provider: str) -> str | None:
    """The key of a model's priced entry in the price map, None when it has none."""
    entries = ((name, litellm.model_cost.get(name)) for name in prices.names(model, provider))
    return next((name for name, entry in entries if prices.is_priced(entry, written_by_operator=False)), None)


def _quality(info: Mapping[str, Any]) -> Decimal | None:
    score = info.get("quality_score")
    is_score = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 100
    return prices.exact(score) if is_score else None


def _known_limits(model: str, provider: str) -> Mapping[str, Any]:
    return litellm.model_cost.get(_price_name(model, provider) or "") or {}


def _limit(key: str, *sources: Mapping[str, Any]) -> int | None:
    return next((int(value) for source in sources if isinstance(value := source.get(key), int | float)), None)
