"""The LiteLLM callbacks: the whole flow of a call, top to bottom."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

from fastapi import HTTPException, Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth

from . import answers, catalog, identity, inbound, routes, settings, streams
from .admission import Admission
from .call import CURRENT, Answer, Call, Caller
from .catalog import Catalog
from .errors import BadRequest, DatabaseError, NotFound, Refusal, Unexpected, kind_of, status_of
from .refusals import Refused, unreachable
from .requests import Inbound
from .settlement import Settlement
from .tokens import count
from .worker import Worker

logger = logging.getLogger(__name__)

# Set by our authentication and seen by the hooks of the same request; not set where LiteLLM authenticates itself.
_IDENTIFIED: ContextVar[identity.Identified | None] = ContextVar("uc_identified", default=None)
# A request that may go to a provider without a hold, since it costs nothing.
_FETCHING: ContextVar[Caller | None] = ContextVar("uc_fetching", default=None)


class UcHandler(CustomLogger):  # type: ignore[misc]  # as above
    """Holds before, settles after, releases on failure. LiteLLM looks for hooks on this very class only."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(settings.load())
        self.worker.prepare()
        self._catalog = Catalog(lambda: proxy_server.llm_router, self._provider_name)
        self._tokenizer = catalog.tokenizer()
        self._admission = Admission(
            self.worker.settings, self.worker.accounts, self.worker.ledger, self._catalog.candidates, self._tokenizer
        )
        self._settlement = Settlement(self.worker.ledger.settle, catalog.cost)
        self._provider_names: Mapping[str, str] = {}
        self._booting = _start_soon(self.worker)

    async def authenticate(self, request: Request, api_key: str | None) -> UserAPIKeyAuth:
        """LiteLLM's `custom_auth`; keeps the body as the client sent it for the pre-call hook."""
        _forget_the_last()
        try:
            await self.worker.ready()
            identified = await identity.authenticate(request, api_key, self.worker.accounts, self.worker.settings)
        except Refusal as refusal:
            raise Refused(refusal) from None
        except DatabaseError as error:
            raise Refused(unreachable(error)) from None
        _IDENTIFIED.set(identified)
        return identified.auth

    async def async_pre_call_hook(
        self, user_api_key_dict: UserAPIKeyAuth, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        """Check the request, hold its worst case, and write the output cap into it."""
        try:
            return await self._admit(user_api_key_dict, data, call_type)
        except Refusal as refusal:
            raise Refused(refusal, call_type) from None
        except DatabaseError as error:
            raise Refused(unreachable(error), call_type) from None
        except Exception as error:
            # LiteLLM would show the text of an unknown exception to the client.
            logger.exception("a call could not be admitted")
            raise Refused(Unexpected(), call_type) from error

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """Keep the deployments that the hold covers."""
        call = CURRENT.get()
        if call is None:
            return healthy_deployments
        return [d for d in healthy_deployments if call.plan.candidate(_deployment_id(d)) is not None]

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Note the attempt, refuse one that the hold does not cover, and cap its output."""
        call = CURRENT.get()
        if call is None:
            return kwargs if _FETCHING.get() is not None or inbound.is_health_check(kwargs) else _refuse_unheld()
        candidate = call.plan.candidate(_deployment_id(kwargs))
        if candidate is None:
            raise HTTPException(402, "This deployment is outside of what was held for the call.")
        call.begin(candidate)
        return inbound.capped(call, candidate, kwargs)

    async def async_post_call_failure_deployment_hook(
        self, request_data: dict[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Note that the attempt failed."""
        call = CURRENT.get()
        if call is not None and call.attempt is not None and not call.attempt.failed:
            call.attempt.failed = True
            candidate = call.attempt.candidate
            self.worker.health.failed(candidate.provider, candidate.deployment, kind_of(exception))

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: UserAPIKeyAuth, response: Any
    ) -> Any:
        """Settle a plain answer before it leaves, and write its cost into it."""
        call = CURRENT.get()
        if (fetching := _FETCHING.get()) is not None:
            await self._check_fetched(fetching, response)
        elif call is not None and not call.listening:
            self._note_success(call)
            outcome = await self._settle_plain(call, response, cached=inbound.is_cached(data))
            answers.write_cost(response, outcome.charged)
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: UserAPIKeyAuth, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """Pass a stream on; it settles before its last word."""
        call = CURRENT.get()
        if call is None:
            async for chunk in response:
                yield chunk
            return
        call.listening, call.cached = True, inbound.is_cached(request_data)
        drain_s = self.worker.settings.holds.abort_drain_s
        stream = streams.settled(
            call, response, self._settlement, self._tokenizer, drain_s, lambda: self._note_success(call)
        )
        try:
            async for chunk in stream:
                yield chunk
        finally:
            # Closed here, since a generator that is merely dropped would settle whenever it is collected.
            await stream.aclose()  # type: ignore[attr-defined]

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: UserAPIKeyAuth,
        traceback_str: str | None = None,
    ) -> HTTPException | None:
        """Release the hold of a call that failed; charge its input when the client left while it was answered."""
        call = CURRENT.get()
        if call is None or call.ending is not None:
            return None
        status = status_of(original_exception)
        if status == streams.CLIENT_LEFT and call.under_way:
            usage = answers.estimated(call.endpoint.dialect, call.estimated_input(self._tokenizer), 0)
            await self._settlement.charge(
                call, Answer(usage, "estimate", status, "client_disconnected", "the client left before the answer")
            )
        else:
            await self._settlement.release(call, status, kind_of(original_exception))
        return None

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The backstop: settle a plain answer that no awaited hook has seen."""
        call = CURRENT.get()
        if call is not None and call.ending is None and not call.streamed:
            await self._settle_plain(call, response_obj, cached=kwargs.get("cache_hit") is True)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,
        response: Any,
        request_headers: dict[str, str] | None = None,
    ) -> dict[str, str] | None:
        """Our headers; what was charged is known on plain answers only."""
        call = CURRENT.get()
        return None if call is None else call.headers()

    async def _admit(self, auth: UserAPIKeyAuth, data: dict[str, Any], call_type: str) -> dict[str, Any]:
        await self.worker.ready()
        if call_type == routes.FETCH_RESPONSE:
            return await self._admit_fetch(auth, data)
        endpoint = routes.billed_call(call_type)
        sent, caller = await self._identify(auth, data)
        self._provider_names = await self.worker.accounts.provider_names()
        await self._end_earlier()
        _forget_the_last()
        call = await self._admission.admit(endpoint, sent, caller, str(data.get("model")))
        self.worker.calls.add(call)
        CURRENT.set(call)
        return inbound.prepared(
            call, data, self.worker.settings.requests.extra_fields, ours=_IDENTIFIED.get() is not None
        )

    async def _identify(self, auth: UserAPIKeyAuth, data: dict[str, Any]) -> tuple[Inbound, Caller]:
        """What was sent and who pays, by our own authentication or by LiteLLM's."""
        if (identified := _IDENTIFIED.get()) is not None:
            return identified.inbound, identity.payer_of(identified)
        sent = inbound.from_litellm(data)
        return sent, await identity.caller_of_litellms(auth, sent.headers, self.worker.accounts)

    async def _admit_fetch(self, auth: UserAPIKeyAuth, data: dict[str, Any]) -> dict[str, Any]:
        """Fetching a stored answer is free; whose it is shows when it comes."""
        if data.get("stream"):
            raise BadRequest("Stored responses are fetched whole: leave out stream.", param="stream")
        _, caller = await self._identify(auth, data)
        _FETCHING.set(caller)
        return data

    async def _check_fetched(self, fetching: Caller, response: Any) -> None:
        """A stored answer goes to the user whose settled call made it, and to nobody else."""
        response_id = answers.stored_id(response)
        if response_id is None or not await self.worker.accounts.made_response(fetching.user_id, response_id):
            raise Refused(NotFound("No such response of yours.", code="response_not_found", param="response_id"))

    async def _end_earlier(self) -> None:
        """LiteLLM may run this hook again for a fallback model: the first hold must not stay behind."""
        earlier = CURRENT.get()
        if earlier is not None and earlier.ending is None:
            await self._settlement.release(earlier, 429, "rate_limited")

    async def _settle_plain(self, call: Call, response: Any, cached: bool = False) -> Any:
        call.response_id = answers.stored_id(response)
        usage = answers.usage_of(response)
        tier = answers.get(response, "service_tier")
        if cached or answers.is_cached(response):
            return await self._settlement.charge(call, Answer(usage or {}, "cache"))
        if usage is None:
            wrote = count(answers.text_of(response), self._tokenizer)
            usage = answers.estimated(call.endpoint.dialect, call.estimated_input(self._tokenizer), wrote)
            return await self._settlement.charge(call, Answer(usage, "estimate", service_tier=tier))
        return await self._settlement.charge(call, Answer(usage, "usage", service_tier=tier))

    def _note_success(self, call: Call) -> None:
        if call.attempt is not None:
            latency_ms = (time.monotonic() - call.attempt.started) * 1000
            self.worker.health.succeeded(call.attempt.candidate.provider, call.attempt.candidate.deployment, latency_ms)

    def _provider_name(self, litellm_name: str) -> str:
        return self._provider_names.get(litellm_name, litellm_name)


def _start_soon(worker: Worker) -> asyncio.Task[None] | None:
    """Open the database before the first request, if a loop runs (LiteLLM imports callbacks inside its lifespan)."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None

    async def boot() -> None:
        try:
            await worker.ready()
        except Refusal as refusal:
            logger.warning("not ready yet: %s", refusal.message)

    return loop.create_task(boot())


def _is_ours() -> bool:
    """Whether our own authentication let this request in."""
    return _IDENTIFIED.get() is not None


def _forget_the_last() -> None:
    """A request that a client pipelines starts in the context of the one before it (uvicorn's httptools protocol)."""
    CURRENT.set(None)
    _FETCHING.set(None)


def _deployment_id(deployment: Mapping[str, Any]) -> str | None:
    return (deployment.get("model_info") or {}).get("id")


def _refuse_unheld() -> NoReturn:
    raise HTTPException(400, "This kind of call is not offered here: nothing was held for it.")
