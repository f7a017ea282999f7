"""The LiteLLM callbacks: the whole flow of a call, top to bottom."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from typing import Any, NoReturn

import litellm
from fastapi import HTTPException, Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth

from . import answers, departures, identity, inbound, injection, redaction, routes, settings, stored_responses, streams
from .call import CURRENT, Answer, Call, Caller
from .errors import BadRequest, DatabaseError, NotFound, Refusal, Unexpected, kind_of, status_of
from .estimates import Estimate
from .failover import Reopened
from .plan import Candidate
from .reception import Reception
from .refusals import Refused, unreachable
from .worker import Worker

logger = logging.getLogger(__name__)

_HOOK = "async_pre_call_hook"

# A request that may go to a provider without a hold, since it costs nothing.
_FETCHING: ContextVar[Caller | None] = ContextVar("uc_fetching", default=None)


class UcHandler(CustomLogger):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """Holds before, settles after, releases on failure. LiteLLM looks for hooks on this very class only."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker(settings.load())
        self.worker.prepare()
        redaction.install()
        self.reception = Reception(self.worker, lambda: proxy_server.llm_router)
        self._attempts = self.reception.attempts
        self._settlement = self.reception.settlement
        self._estimates = self.reception.estimates
        self._authentication = identity.Authentication(self.worker.accounts, self.worker.settings)

    async def authenticate(self, request: Request, api_key: str | None) -> UserAPIKeyAuth:
        """LiteLLM's `custom_auth`; keeps the body as the client sent it for the pre-call hook."""
        _forget_the_last()
        try:
            await self.worker.ready()
            identified = await self._authentication.authenticate(request, api_key)
        except Refusal as refusal:
            raise Refused(refusal) from None
        except DatabaseError as error:
            raise Refused(unreachable(error)) from None
        identity.IDENTIFIED.set(identified)
        endpoint = routes.billed(request.method, identity.path_of(request))
        if endpoint is not None and identified.caller is not None and self._sees_first():
            await self.reception.set_out(endpoint, identified.inbound, identified.caller)
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
        covered = {candidate.router_id for candidate in call.plan.candidates}
        return [deployment for deployment in healthy_deployments if _deployment_id(deployment) in covered]

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Note the attempt, refuse one that the hold does not cover, and cap its output."""
        call = CURRENT.get()
        if call is None:
            return self._unheld(kwargs)
        candidate = call.plan.candidate(_deployment_id(kwargs))
        if candidate is None:
            raise HTTPException(402, "This deployment is outside of what was held for the call.")
        if kwargs.get("previous_response_id"):
            await self._check_earlier(call, candidate, kwargs["previous_response_id"])
        self._attempts.begin(call, candidate)
        inbound.forget_cache(kwargs)
        attempt = inbound.capped(call, candidate, kwargs)
        if candidate.own_key is None:
            return attempt
        return self.reception.injection.inject(call, candidate.own_key, attempt)

    async def async_post_call_failure_deployment_hook(
        self, request_data: dict[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Note that the attempt failed."""
        call = CURRENT.get()
        if call is not None:
            injection.disclose(call, exception)
            self._attempts.failed(call, exception)

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: UserAPIKeyAuth, response: Any
    ) -> Any:
        """Settle a plain answer before it leaves, and write its cost into it."""
        call = CURRENT.get()
        if (fetching := _FETCHING.get()) is not None:
            await self._check_maker(fetching, response, "response_id")
        elif call is not None and call.delivery is None:
            self._attempts.succeeded(call, response)
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
        call.cached = inbound.is_cached(request_data)
        if call.endpoint is routes.COMPLETIONS:
            response = Reopened(response, lambda error: self._reopen(call, request_data, error))
        drain_s = self.worker.settings.holds.abort_drain_s
        stream = streams.settled(
            call, response, self._settlement, self._estimates, drain_s, lambda: self._attempts.succeeded(call, response)
        )
        try:
            async for chunk in stream:
                yield chunk
        except Exception as error:
            injection.disclose(call, error)
            self._attempts.failed(call, error)
            raise
        finally:
            self._attempts.ended(call)
            # Closed here, since a generator that is merely dropped would settle whenever it is collected.
            await stream.aclose()  # type: ignore[attr-defined]
            injection.close_unread(call)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: UserAPIKeyAuth,
        traceback_str: str | None = None,
    ) -> HTTPException | None:
        """Release the hold of a call that failed, or charge what was delivered before and what the client left."""
        call = CURRENT.get()
        if call is not None:
            injection.disclose(call, original_exception)
        if call is None or call.ending is not None:
            return None
        self._attempts.ended(call)
        status = status_of(original_exception)
        if status == departures.CLIENT_LEFT:
            await departures.left(call, self._settlement, self._estimates)
        elif call.delivery is not None:
            await call.delivery.cut_off(status, kind_of(original_exception))
        else:
            await self._settlement.release(call, status, kind_of(original_exception))
        return None

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The backstop: settle a plain answer that no awaited hook has seen, unless its request fails after all."""
        call = CURRENT.get()
        if call is None or call.ending is not None or call.streamed:
            return
        call.unseen = partial(self._settle_plain, call, response_obj, cached=kwargs.get("cache_hit") is True)
        if call.over:
            await call.unseen()

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,
        response: Any,
        request_headers: dict[str, str] | None = None,
    ) -> dict[str, str] | None:
        """Our headers; what was charged is known on plain answers only."""
        call = CURRENT.get()
        return None if call is None else inbound.headers(call)

    async def _reopen(self, call: Call, data: dict[str, Any], error: Exception) -> Any:
        """The stream of the plan's next candidate; the fault where there is none."""
        self._attempts.failed(call, error)
        if (candidate := call.next()) is None:
            raise error
        return await proxy_server.llm_router.atext_completion(**{**data, "model": candidate.group})

    async def _admit(self, auth: UserAPIKeyAuth, data: dict[str, Any], call_type: str) -> dict[str, Any]:
        await self.worker.ready()
        if call_type == routes.FETCH_RESPONSE:
            return await self._admit_fetch(auth, data)
        endpoint = routes.billed_call(call_type)
        sent, caller = await identity.identify(auth, data, self.worker.accounts)
        await self._end_earlier()
        _forget_the_last()
        call = await self.reception.admit(endpoint, sent, caller, str(data.get("model")))
        self.worker.calls.add(call)
        CURRENT.set(call)
        departures.watch(call, self._settlement, self._estimates)
        return inbound.prepared(
            call, data, self.worker.settings.requests.extra_fields, ours=identity.IDENTIFIED.get() is not None
        )

    def _sees_first(self) -> bool:
        """Whether no other callback has a pre-call hook that runs before ours, and may change the request."""
        before = takewhile(lambda each: each is not self, litellm.callbacks)
        return all(getattr(type(each), _HOOK, None) is getattr(CustomLogger, _HOOK) for each in before)

    async def _admit_fetch(self, auth: UserAPIKeyAuth, data: dict[str, Any]) -> dict[str, Any]:
        """Fetching a stored answer is free; whose it is shows when it comes."""
        if data.get("stream"):
            raise BadRequest("Stored responses are fetched whole: leave out stream.", param="stream")
        _, caller = await identity.identify(auth, data, self.worker.accounts)
        await self.reception.look_around()
        _FETCHING.set(caller)
        return data

    async def _check_maker(self, caller: Caller, response: Any, param: str) -> None:
        """A stored answer is of use to the user whose settled call made it, and to nobody else."""
        response_id = answers.stored_id(response)
        if response_id is None or not await self.worker.accounts.made_response(caller.user_id, response_id):
            raise Refused(NotFound("No such response of yours.", code="response_not_found", param=param))

    async def _check_earlier(self, call: Call, candidate: Candidate, response_id: str) -> None:
        """A call goes on from a stored answer of its own caller only, and only with the key that made it."""
        if (own := stored_responses.is_own(response_id)) not in (None, candidate.own_key is not None):
            raise Refused(stored_responses.not_continued(own=bool(own)))
        await self._check_maker(call.caller, {"id": response_id}, "previous_response_id")

    def _unheld(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What may go to a provider without a hold: the fetching of a stored answer, and LiteLLM's health checks."""
        if _FETCHING.get() is None and not inbound.is_health_check(kwargs):
            _refuse_unheld()
        if stored_responses.is_own(kwargs.get("response_id")):
            raise Refused(stored_responses.not_fetched())
        return kwargs

    async def _end_earlier(self) -> None:
        """LiteLLM may run this hook again for a fallback model: the first hold must not stay behind."""
        earlier = CURRENT.get()
        if earlier is not None and earlier.ending is None:
            await self._settlement.release(earlier, 429, "rate_limited")

    async def _settle_plain(self, call: Call, response: Any, cached: bool = False) -> Any:
        call.response_id = answers.stored_id(response)
        usage = answers.usage_of(response)
        tier = answers.served_tier(response)
        if cached:
            return await self._settlement.charge(call, Answer(usage or {}, "cache"))
        answer = Answer(usage or {}, "usage", service_tier=tier)
        if answer.is_half(lambda: answers.text_of(response) if call.demand.writes else ""):
            wrote = answers.text_of(response) if call.demand.writes else ""
            return await self._estimates.charge(call, Estimate(wrote, usage, service_tier=tier))
        return await self._settlement.charge(call, answer)


def _forget_the_last() -> None:
    """A request that a client pipelines starts in the context of the one before it (uvicorn's httptools protocol)."""
    CURRENT.set(None)
    _FETCHING.set(None)


def _deployment_id(deployment: Mapping[str, Any]) -> str | None:
    return (deployment.get("model_info") or {}).get("id")


def _refuse_unheld() -> NoReturn:
    raise HTTPException(400, "This kind of call is not offered here: nothing was held for it.")
