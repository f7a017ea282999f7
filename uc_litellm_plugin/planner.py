"""From a request to its plan: what it may use, in which order, and what that can cost. Nothing is held."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import lru_cache, partial

from . import demand, own_keys, plan, prices, ranking, requests, routes, tokens, wish
from .breaker import Standing
from .call import Call, Caller, Names, Route
from .demand import Demand
from .errors import BadRequest, Forbidden
from .plan import Candidate, Plan
from .power import PowerLevel
from .pricing import Terms
from .provider_key import ProviderKey
from .ranking import LeftOut, Option, Reason
from .requests import Inbound
from .routes import Endpoint
from .settings import Settings, TierSettings
from .vocabularies import Heads
from .wish import Wish

# Long texts are counted in threads of their own: attempts that LiteLLM prepares need the common ones.
_COUNTERS = ThreadPoolExecutor(2, thread_name_prefix="uc-count")


@dataclass(frozen=True)
class Known:
    """What a planner looks up.

    Attributes
    ----------
    levels
        All active power levels by name.
    candidates
        The priced deployments of a model group and its fallbacks.
    is_model
        Whether a whole name is a model's.
    providers
        Every name of a provider to ours.
    standing
        The health of a candidate.
    own_keys
        The active provider keys of a caller, none where they may have none.
    heads
        Count a text: no fewer tokens than OpenAI's models.
    """

    levels: Callable[[], Awaitable[Mapping[str, PowerLevel]]]
    candidates: Callable[[str], list[Candidate]]
    is_model: Callable[[str], bool]
    providers: Callable[[], Mapping[str, str]]
    standing: Callable[[Candidate], Standing]
    own_keys: Callable[[Caller], Awaitable[Sequence[ProviderKey]]]
    heads: Heads


@dataclass(frozen=True)
class _Question:
    """A request, read: all that is the same at every power level."""

    endpoint: Endpoint
    inbound: Inbound
    caller: Caller
    model: str
    wish: Wish
    demand: Demand
    candidates: Sequence[Candidate]
    counted: int
    own_keys: Sequence[ProviderKey]


class Planner:
    """Makes calls that are planned and not yet held.

    Parameters
    ----------
    settings
        Of the worker.
    known
        Where everything else is looked up.
    """

    def __init__(self, settings: Settings, known: Known) -> None:
        self._settings = settings
        self._known = known

    async def plan(self, endpoint: Endpoint, inbound: Inbound, caller: Caller, model: str) -> Call:
        """Check a request and plan its call.

        Parameters
        ----------
        model
            The model group, after LiteLLM's aliases; it may end in a power level.

        Raises
        ------
        Refusal
            400 for what cannot be understood, priced or served, 403 for what the caller's tier does not include.
        DatabaseError
            The power levels cannot be read.
        """
        requests.check_body(endpoint, inbound.body, self._settings.requests.extra_fields)
        requests.check_model(model)
        levels = await self._known.levels()
        name, suffix = (
            (model, None) if ":" not in model or self._known.is_model(model) else wish.split_suffix(model, levels)
        )
        providers = self._known.providers() if inbound.body.get("provider") is not None else {}
        wished = wish.read(inbound, suffix, levels, providers)
        asked, level = demand.measure(endpoint, inbound.body), self._level(caller, wished, levels)
        return self._call(await self._question(endpoint, inbound, caller, name, wished, asked), level)

    async def cheaper(self, call: Call) -> list[Call]:
        """The same call at each cheaper level that the caller's tier includes, the dearest of them first."""
        levels = await self._known.levels()
        allowed = self._tier(call.caller).power_levels
        now = call.route.level.multiplier
        cheaper = [level for level in levels.values()
                   if level.multiplier < now and (allowed is None or level.name in allowed)]  # fmt: skip
        cheaper.sort(key=lambda level: (-level.multiplier, level.name))
        if not cheaper:
            return []
        question = await self._question(
            call.endpoint, call.inbound, call.caller, call.model, call.route.wish, call.demand
        )
        return [made for level in cheaper if (made := self._again(call, question, level)) is not None]

    def _again(self, call: Call, question: _Question, level: PowerLevel) -> Call | None:
        try:
            made = self._call(question, level)
        except (BadRequest, Forbidden):
            return None  # Nobody serves it at this level.
        made.id, made.started = call.id, call.started
        made.route = replace(made.route, wished=call.route.wished)
        return made

    def _tier(self, caller: Caller) -> TierSettings:
        return self._settings.tier(caller.tier)

    def _level(self, caller: Caller, wished: Wish, levels: Mapping[str, PowerLevel]) -> PowerLevel:
        name = wished.power_level or caller.power_level
        if (level := levels.get(name)) is None:
            raise Forbidden(f"Power level '{name}' is not active; active are {', '.join(sorted(levels))}.",
                            code="power_level_inactive")  # fmt: skip
        tier = self._tier(caller)
        if tier.power_levels is not None and name not in tier.power_levels:
            raise _not_in_tier(f"Power level '{name}'", caller, tier.power_levels, "power_level_not_in_tier")
        return level

    async def _question(
        self, endpoint: Endpoint, inbound: Inbound, caller: Caller, model: str, wished: Wish, asked: Demand
    ) -> _Question:
        candidates = self._known.candidates(model)
        vocabulary = tokens.vocabulary((candidate.litellm_provider, candidate.model) for candidate in candidates)
        counted = await self._count(asked, vocabulary)
        own = await self._known.own_keys(caller)
        return _Question(endpoint, inbound, caller, model, wished, asked, candidates, counted, own)

    async def _count(self, asked: Demand, vocabulary: str | None) -> int:
        heads = self._known.heads
        if (tokenizer := heads.at_hand(vocabulary)) is None:
            tokenizer = await asyncio.get_running_loop().run_in_executor(_COUNTERS, heads.of, vocabulary)
        if len(asked.text) < tokens.LONG_TEXT:
            return tokens.count(asked.text, tokenizer)
        # Tokenizing releases the GIL, so that other requests go on.
        in_turn = partial(asyncio.get_running_loop().run_in_executor, _COUNTERS)
        await in_turn(tokens.prepare, asked)
        return sum([await in_turn(tokens.count, part, tokenizer) for part in tokens.shares(asked.text)])

    def _call(self, question: _Question, level: PowerLevel) -> Call:
        kept, left_out = self._permitted(question, level)
        made = self._bounded(question, level, kept)
        standing = self._known.standing
        options = ranking.rank(
            [Option(each.candidate, standing(each.candidate), made.usd(each)) for each in made.bounds],
            level,
            question.wish,
        )
        options, left_out = _first_only(options, left_out, question.wish)
        body = question.inbound.body
        return Call(
            caller=question.caller,
            endpoint=question.endpoint,
            plan=made.ordered([option.candidate.deployment for option in options]),
            model=question.model,
            names=_names(question.inbound, question.caller),
            streamed=body.get("stream") is True,
            wants_usage=(body.get("stream_options") or {}).get("include_usage") is True,
            demand=question.demand,
            inbound=question.inbound,
            route=Route(level, question.wish, level.name, tuple(options), tuple(left_out)),
        )

    def _permitted(self, question: _Question, level: PowerLevel) -> tuple[list[Candidate], list[LeftOut]]:
        tier, caller = self._tier(question.caller), question.caller
        if tier.models is not None and not _includes(tier.models, question.model):
            raise _not_in_tier(f"'{question.model}'", caller, tier.models, "model_not_in_tier")
        kept, left_out = [], []
        for candidate in question.candidates:
            reason = ranking.obstacle(candidate, level, question.wish, tier.providers)
            if reason is None and question.endpoint is routes.MESSAGES and prices.is_uneven(candidate.prices):
                # LiteLLM's translation to Anthropic's usage does not say which tokens they were.
                reason = Reason("uneven_rates", "its price needs details of the usage that /v1/messages does not have")
            if reason is None and not _includes(tier.models, candidate.group):
                reason = Reason("tier", f"the caller's tier does not include {candidate.group}")
            if reason is None:
                kept.append(candidate)
            else:
                left_out.append(LeftOut(candidate, reason))
        if not kept:
            raise _nobody(question.model, left_out)
        # A key at a provider that this call does not use has no say in it.
        fee = self._settings.byok.fee_percent / 100
        now = datetime.now(timezone.utc)
        return own_keys.spread(kept, question.own_keys, question.endpoint, fee, now), left_out

    def _bounded(self, question: _Question, level: PowerLevel, candidates: Sequence[Candidate]) -> Plan:
        terms = Terms(
            power_level=level.name,
            multiplier=level.multiplier,
            markup=self._tier(question.caller).markup,
            credits_per_usd=self._settings.credits.credits_per_usd,
        )
        return plan.make(
            question.demand,
            question.counted,
            candidates,
            terms,
            default_cap=level.default_max_output,
            min_cap=self._settings.holds.min_output_tokens,
            least_output=question.endpoint.least_output,
            unbounded_input=self._settings.holds.unbounded_input,
        )


def _first_only(options: list[Option], left_out: list[LeftOut], wished: Wish) -> tuple[list[Option], list[LeftOut]]:
    """Without fallbacks and without an order, the first choice is the only one."""
    if wished.allow_fallbacks or wished.order:
        return options, left_out
    reason = Reason("no_fallbacks", "provider.allow_fallbacks is false")
    return options[:1], [*left_out, *(LeftOut(option.candidate, reason) for option in options[1:])]


def _includes(patterns: Sequence[str] | None, name: str) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _not_in_tier(what: str, caller: Caller, included: Sequence[str], code: str) -> Forbidden:
    return Forbidden(f"{what} is not part of the tier '{caller.tier}', which has {', '.join(included)}.", code=code)


def _nobody(model: str, left_out: Sequence[LeftOut]) -> BadRequest | Forbidden:
    why = "; ".join(dict.fromkeys(f"{each.candidate.provider}: {each.reason.detail}" for each in left_out))
    message = f"No provider of '{model}' may answer this call: {why}."
    if all(each.reason.code == "tier" for each in left_out):
        return Forbidden(message, code="provider_not_in_tier")
    return BadRequest(message, code="no_provider", param="provider")


def _names(inbound: Inbound, caller: Caller) -> Names:
    metadata = inbound.body.get("metadata")
    session = inbound.headers.get("x-session-id") or (
        metadata.get("session_id") if isinstance(metadata, dict) else None
    )
    return Names(
        app=caller.api_key_name or requests.clean(inbound.headers.get("x-title"), 255),
        session=requests.clean(session, 255),
        request=requests.clean(inbound.headers.get("x-request-id"), 255),
        user_agent=requests.clean(inbound.headers.get("user-agent"), 255),
        ip_address=_address(inbound.ip_address),
    )


@lru_cache(1_024)
def _address(host: str | None) -> str | None:
    """The peer's address; a proxy in front may have named something that is none."""
    try:
        return str(ipaddress.ip_address((host or "").partition("%")[0]))
    except ValueError:
        return None
