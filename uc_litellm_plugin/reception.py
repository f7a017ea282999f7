"""Where calls come in: what admission, attempts and settlement stand on, made of one worker and LiteLLM's router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from . import costs, endpoints, head_start, requests, strategy, vocabularies
from .admission import Admission
from .attempts import Attempts
from .call import Call, Caller
from .catalog import Catalog
from .estimates import Estimates
from .head_start import HeadStart
from .injection import Injection
from .key_health import KeyHealth
from .planner import Known, Planner
from .requests import Inbound
from .routes import Endpoint
from .settlement import Settlement
from .strategy import Strategy
from .worker import Worker

# An endpoint of a user's own may be slow; LiteLLM's own time-out of a call is the same. Seconds.
_OWN_ENDPOINT_S = 600.0
# Where LiteLLM calls all models something else (`completion_model`), clients make up the names.
_MOST_RENAMED = 1_000


class Reception:
    """One per process, like its worker.

    Parameters
    ----------
    worker
        Of the process.
    router
        Returns LiteLLM's router; it is built after the callbacks are imported, and read anew each time.
    """

    def __init__(self, worker: Worker, router: Callable[[], Any]) -> None:
        settings = worker.settings
        self.worker = worker
        self._heads = vocabularies.Heads()
        self.attempts = Attempts(worker.health, KeyHealth(settings.health), worker.note_key_fault)
        self.injection = Injection(worker.open_key, endpoints.client(settings.byok, timeout_s=_OWN_ENDPOINT_S))
        self.settlement = Settlement(worker.ledger.settle, costs.cost, self.attempts.measured)
        self.estimates = Estimates(self.settlement, vocabularies.whole(otherwise=self._heads.by_both))
        self._router = router
        self._provider_names: Mapping[str, str] = {}
        self._renamed: set[str] = set()
        self._catalog = Catalog(router, self._provider_name)
        self._strategy = Strategy(self.attempts.claim_probe, settings.routing.latency_timeout)
        self.admission = Admission(settings, worker.ledger, Planner(settings, self._known()))

    async def set_out(self, endpoint: Endpoint, sent: Inbound, caller: Caller) -> None:
        """Begin to admit a call for the request of the current task, whose `admit` will take it.

        One with an idempotency key waits: a request that LiteLLM refuses before it is admitted must not use the key.
        So does one for a model that LiteLLM calls something else by then (`litellm_settings.model_alias_map`).
        """
        # A request that a client pipelines starts in the context of the one before it, and would keep all of them.
        head_start.UNDER_WAY.set(None)
        model = sent.body.get("model")
        if not isinstance(model, str) or len(model) > requests.LONGEST_MODEL or model in self._renamed:
            return
        if requests.IDEMPOTENCY_HEADER in sent.headers:
            return
        admission = self._admit(endpoint, sent, caller, model)
        head_start.UNDER_WAY.set(HeadStart(endpoint, sent, model, admission, self._give_back))
        # The event loop comes to it now, and not when LiteLLM happens to wait for something.
        await asyncio.sleep(0)

    async def admit(self, endpoint: Endpoint, sent: Inbound, caller: Caller, model: str) -> Call:
        """The held call of a request, which may have set out already; parameters and errors as `Admission.admit`."""
        if (begun := head_start.UNDER_WAY.get()) is not None and begun.waits_for(sent):
            if begun.is_for(endpoint, model):
                return await begun.take()
            if begun.model != model and len(self._renamed) < _MOST_RENAMED:
                self._renamed.add(begun.model)
            # Its credits may be the very ones that this call needs.
            await begun.withdraw()
        return await self._admit(endpoint, sent, caller, model)

    async def _admit(self, endpoint: Endpoint, sent: Inbound, caller: Caller, model: str) -> Call:
        await self.look_around()
        return await self.admission.admit(endpoint, sent, caller, model)

    def _give_back(self, call: Call) -> Awaitable[object]:
        return self.worker.ledger.give_back(call.id, call.caller.user_id)

    async def look_around(self) -> None:
        """What has to be so before a call is planned: names of providers at hand, our strategy on the router.

        Raises
        ------
        DatabaseUnavailable
            The names are not cached and PostgreSQL does not answer.
        """
        self._provider_names = await self.worker.accounts.provider_names()
        if (router := self._router()) is not None:
            strategy.install(router, self._strategy)

    def _known(self) -> Known:
        return Known(
            levels=self.worker.accounts.levels,
            candidates=self._catalog.candidates,
            is_model=self._catalog.is_model,
            providers=self._providers,
            standing=self.attempts.standing,
            own_keys=self.worker.own_keys,
            heads=self._heads,
        )

    def _providers(self) -> Mapping[str, str]:
        """Every name of a provider to ours: LiteLLM's, those of the deployments, and ours to themselves."""
        known = {**self._catalog.providers(), **self._provider_names}
        return {**known, **{name: name for name in known.values()}}

    def _provider_name(self, litellm_name: str) -> str:
        return self._provider_names.get(litellm_name, litellm_name)
