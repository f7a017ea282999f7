from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import litellm
import pytest
from fastapi import HTTPException
from litellm.types.router import RouterRateLimitError, RouterRateLimitErrorBasic

from tests.upstream import Upstream
from uc_litellm_plugin.errors import BadRequest, DatabaseUnavailable, InsufficientCredits, StreamBroken
from uc_litellm_plugin.faults import Fault, classify, retry_after_s
from uc_litellm_plugin.refusals import Refused

# LiteLLM has no types for its exceptions that are worth the name.
errors: Any = litellm.exceptions
MADE: dict[str, Any] = {"message": "it failed", "model": "m", "llm_provider": "openai"}


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "http://provider"))


def made(name: str, *args: Any, **fields: Any) -> BaseException | None:
    """An exception of LiteLLM's, None where this release does not have it."""
    kind = getattr(errors, name, None)
    return None if kind is None else kind(*args, **fields)


ALL: list[tuple[Fault, BaseException | None]] = [
    (Fault.UNAUTHORIZED, made("AuthenticationError", **MADE)),
    (Fault.MODEL_GONE, made("NotFoundError", **MADE)),
    (Fault.BAD_REQUEST, made("BadRequestError", **MADE)),
    (Fault.BAD_REQUEST, made("ImageFetchError", **MADE)),
    (Fault.BAD_REQUEST, made("UnprocessableEntityError", **MADE, response=answer(422))),
    (Fault.BAD_REQUEST, made("UnsupportedParamsError", **MADE)),
    (Fault.BAD_REQUEST, made("LiteLLMUnknownProvider", "m")),
    (Fault.BAD_REQUEST, made("InvalidRequestError", **MADE)),
    (Fault.TIMEOUT, made("Timeout", **MADE)),
    (Fault.TIMEOUT, made("Timeout", **MADE, exception_status_code=504)),
    (Fault.FORBIDDEN, made("PermissionDeniedError", **MADE, response=answer(403))),
    (Fault.RATE_LIMITED, made("RateLimitError", **MADE)),
    (Fault.REFUSED_BY_US, made("RateLimitError", **MADE, category="litellm_rate_limit")),
    (Fault.REFUSED_BY_US, made("RateLimitError", "over its rpm", llm_provider="", model="m")),
    (Fault.OUT_OF_FUNDS, made("PaymentRequiredError", **MADE)),
    (Fault.CONTEXT_WINDOW, made("ContextWindowExceededError", **MADE)),
    (Fault.CONTENT_POLICY, made("ContentPolicyViolationError", **MADE)),
    (Fault.REFUSED_BY_US, made("RejectedRequestError", **MADE, request_data={})),
    (Fault.SERVER_ERROR, made("ServiceUnavailableError", **MADE)),
    (Fault.SERVER_ERROR, made("BadGatewayError", **MADE)),
    (Fault.SERVER_ERROR, made("InternalServerError", **MADE)),
    (Fault.SERVER_ERROR, made("APIError", 529, **MADE)),
    (Fault.OUT_OF_FUNDS, made("APIError", 402, **MADE)),
    (Fault.BAD_REQUEST, made("APIError", 413, **MADE)),
    (Fault.UNREADABLE, made("APIConnectionError", **MADE)),
    (Fault.SERVER_ERROR, made("APIResponseValidationError", **MADE)),
    (Fault.UNREADABLE, made("JSONSchemaValidationError", "m", "openai", "{}", "{}")),
    (Fault.UNREADABLE, made("OpenAIError")),
    (Fault.UNREADABLE, made("ModelNotMappedError", "no such model")),
    (Fault.REFUSED_BY_US, made("BudgetExceededError", 2, 1)),
    (Fault.RATE_LIMITED, made("MockException", 429, **MADE)),
    (Fault.REFUSED_BY_US, made("GuardrailRaisedException")),
    (Fault.REFUSED_BY_US, made("BlockedPiiEntityError", "EMAIL")),
    (Fault.REFUSED_BY_US, made("ModifyResponseException", "no", "m", {})),
    (Fault.REFUSED_BY_US, made("SensitiveDataRouteException", "local", "s", "g")),
    (Fault.SERVER_ERROR, made("MidStreamFallbackError", **MADE)),
    (Fault.RATE_LIMITED, made("MidStreamFallbackError", **MADE, original_exception=made("RateLimitError", **MADE))),
    (Fault.REFUSED_BY_US, RouterRateLimitErrorBasic("m")),
    (Fault.REFUSED_BY_US, RouterRateLimitError("m", 5, False, [])),
    (Fault.REFUSED_BY_US, HTTPException(402, "outside of what was held")),
    (Fault.REFUSED_BY_US, Refused(BadRequest("no such level"))),
    (Fault.REFUSED_BY_US, InsufficientCredits("too dear")),
    (Fault.REFUSED_BY_US, DatabaseUnavailable("no PostgreSQL")),
    (Fault.SERVER_ERROR, StreamBroken()),
    (Fault.CLIENT_LEFT, asyncio.CancelledError()),
    (Fault.CLIENT_LEFT, made("APIError", 499, **MADE)),
    (Fault.TIMEOUT, asyncio.TimeoutError()),
    (Fault.CONNECTION, ConnectionResetError()),
    (Fault.UNREADABLE, KeyError("content")),
    (Fault.BAD_REQUEST, made("VectorStoreSearchError", [])),
    (Fault.BAD_REQUEST, made("MalformedRequestFieldError", **MADE)),
    (Fault.BAD_REQUEST, made("UnsupportedEndpointError", **MADE)),
    (Fault.BAD_REQUEST, made("EndpointNotSupportedByModelError", **MADE)),
    (Fault.CALLERS_KEY, made("CallerCredentialAuthenticationError", **MADE)),
    (Fault.CALLERS_KEY, made("CallerCredentialRateLimitError", **MADE)),
]
RAISED = [(fault, error) for fault, error in ALL if error is not None]


@pytest.mark.parametrize(
    ("fault", "error"), RAISED, ids=[f"{type(error).__name__} {fault.value}" for fault, error in RAISED]
)
def test_every_exception(fault: Fault, error: BaseException) -> None:
    """Each exception of LiteLLM's, ours and the network's is told."""
    assert classify(error) is fault


def test_none_is_forgotten() -> None:
    """The table has every exception that LiteLLM's module defines."""
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert defined <= {type(error).__name__ for _, error in RAISED}


def test_what_counts() -> None:
    """Refusals of ours, clients that leave, their requests and keys, and riddles never speak against a provider."""
    assert {fault.value for fault in Fault if not fault.counts} == {
        "bad_request", "content_policy", "context_window", "unreadable", "refused_by_us", "client_left", "callers_key",
    }  # fmt: skip


Ask = Callable[[Any, list[Any]], Awaitable[Any]]
ASKS: dict[str, Ask] = {
    "chat": lambda router, messages: router.acompletion(model="gpt", messages=messages),
    "openrouter": lambda router, messages: router.acompletion(model="openrouter", messages=messages),
    "claude": lambda router, messages: router.acompletion(model="claude", messages=messages),
    "embeddings": lambda router, messages: router.aembedding(model="embed", input="some words"),
    "responses": lambda router, messages: router.aresponses(model="gpt", input="some words"),
    "messages": lambda router, messages: router.aanthropic_messages(model="claude", messages=messages, max_tokens=9),
}
STREAMS: dict[str, Ask] = {
    "chat": lambda router, messages: router.acompletion(model="gpt", messages=messages, stream=True),
    "claude": lambda router, messages: router.acompletion(model="claude", messages=messages, stream=True),
    "responses": lambda router, messages: router.aresponses(model="gpt", input="some words", stream=True),
}
WORDS = [{"role": "user", "content": "say 7 words"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's SDK would wait and try embeddings again by itself."""
    monkeypatch.setattr(litellm, "DEFAULT_MAX_RETRIES", 0)
    monkeypatch.setattr(litellm, "suppress_debug_info", True)


def router_to(url: str, timeout: float = 5) -> Any:
    def deployment(name: str, model: str, path: str = "/v1") -> dict[str, Any]:
        return {
            "model_name": name,
            "litellm_params": {"model": model, "api_key": "k", "api_base": url + path, "timeout": timeout},
        }

    return litellm.Router(
        model_list=[
            deployment("gpt", "openai/gpt-4o-mini"),
            deployment("openrouter", "openrouter/openai/gpt-4o-mini"),
            deployment("claude", "anthropic/claude-sonnet-4-5", ""),
            deployment("embed", "openai/text-embedding-3-small"),
        ],
        num_retries=0,
        disable_cooldowns=True,
    )


async def failure(ask: Ask, router: Any, messages: list[Any] = WORDS) -> Exception:
    """What a call, or its stream, fails with."""
    try:
        answered = await ask(router, messages)
        if isinstance(answered, AsyncIterator):
            async for _ in answered:
                pass
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


ANSWERED = {
    400: Fault.BAD_REQUEST,
    401: Fault.UNAUTHORIZED,
    402: Fault.OUT_OF_FUNDS,
    403: Fault.FORBIDDEN,
    404: Fault.MODEL_GONE,
    408: Fault.TIMEOUT,
    413: Fault.BAD_REQUEST,
    422: Fault.BAD_REQUEST,
    429: Fault.RATE_LIMITED,
    500: Fault.SERVER_ERROR,
    502: Fault.SERVER_ERROR,
    503: Fault.SERVER_ERROR,
    504: Fault.TIMEOUT,
    529: Fault.SERVER_ERROR,
}


@pytest.mark.parametrize(("status", "fault"), ANSWERED.items())
async def test_answered(upstream: Upstream, status: int, fault: Fault) -> None:
    """A provider's status means the same through every endpoint and LiteLLM's mapping, and its Retry-After is found."""
    upstream.set_fault("status", status=status, headers={"retry-after": "7"})
    router = router_to(upstream.url)
    for name, ask in {**ASKS, **{f"{name} streamed": ask for name, ask in STREAMS.items()}}.items():
        error = await failure(ask, router)
        assert (classify(error), retry_after_s(error)) == (fault, 7), name


# Texts that LiteLLM takes for something worse than the bad request they come with.
ECHOES = [
    "Invalid value: 'Invalid API Key'",
    "Invalid value: 'Request too large'",
    "Invalid value: 'Overloaded'",
    "Invalid value: 'The api_key client option must be set either by passing api_key to the client or by setting the "
    "OPENAI_API_KEY environment variable'",
    'Invalid value: \'"message": "Your credit balance is too low\'',
    "insufficient_quota",
]


@pytest.mark.parametrize("text", ECHOES)
async def test_echoes(upstream: Upstream, text: str) -> None:
    """A client cannot speak against a provider by having it repeat a text in its refusal."""
    upstream.set_fault("status", status=400, message=text)
    router = router_to(upstream.url)
    for name, ask in ASKS.items():
        assert not classify(await failure(ask, router)).counts, name


async def test_out_of_funds_in_other_words(upstream: Upstream) -> None:
    """Anthropic's 400 and OpenAI's 429 for an account without credits are told from others of their status."""
    router = router_to(upstream.url)
    upstream.set_fault("status", status=400, message="Your credit balance is too low to access the Anthropic API.")
    assert classify(await failure(ASKS["claude"], router)) is Fault.OUT_OF_FUNDS
    assert classify(await failure(ASKS["messages"], router)) is Fault.OUT_OF_FUNDS
    upstream.set_fault("status", status=429, message="You exceeded your current quota (insufficient_quota).")
    assert classify(await failure(ASKS["chat"], router)) is Fault.OUT_OF_FUNDS


async def test_moderation(upstream: Upstream) -> None:
    """A 403 for what the client wrote is the client's."""
    upstream.set_fault("status", status=403, message="Your input was flagged")
    assert classify(await failure(ASKS["openrouter"], router_to(upstream.url))) is Fault.CONTENT_POLICY


async def test_unreachable() -> None:
    """A refused connection is one, whatever LiteLLM makes of it."""
    router = router_to("http://127.0.0.1:1")
    for name, ask in {**ASKS, **STREAMS}.items():
        assert classify(await failure(ask, router)) is Fault.CONNECTION, name


async def test_silence(upstream: Upstream) -> None:
    """A provider that does not answer in time is timed out."""
    upstream.set_fault("hang")
    router = router_to(upstream.url, timeout=0.2)
    for name, ask in {**ASKS, **STREAMS}.items():
        assert classify(await failure(ask, router)) is Fault.TIMEOUT, name


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ({"kind": "error_first"}, Fault.SERVER_ERROR),
        ({"kind": "error_event", "after": 3}, Fault.SERVER_ERROR),
        ({"kind": "cut"}, Fault.CONNECTION),
        ({"kind": "cut", "after": 3}, Fault.CONNECTION),
    ],
    ids=str,
)
async def test_broken_streams(upstream: Upstream, rule: dict[str, Any], fault: Fault) -> None:
    """A stream that breaks off, or ends in an error, at its first event or later, is the provider's fault."""
    upstream.set_faults(rule)
    router = router_to(upstream.url)
    for name, ask in STREAMS.items():
        assert classify(await failure(ask, router)) is fault, name


MALFORMED: list[list[Any]] = [
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "weird"}]}],
    ["words"],
]


@pytest.mark.parametrize("messages", MALFORMED, ids=str)
async def test_malformed_requests(upstream: Upstream, messages: list[Any]) -> None:
    """A request that LiteLLM stumbles over, and reports as a connection error, says nothing of the provider."""
    upstream.set_faults()
    router = router_to(upstream.url)
    for name in ("chat", "openrouter", "claude"):
        error = await failure(ASKS[name], router, messages)
        assert type(error).__name__ == "APIConnectionError", name
        assert classify(error) is Fault.UNREADABLE, name


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("0", 0), ("-1", None), ("nan", None), ("inf", None), ("soon", None), ("", None)],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    """Retry-After is a number of seconds that can be waited for."""
    error = errors.RateLimitError(**MADE, response=httpx.Response(429, headers={"retry-after": header}))
    assert retry_after_s(error) == seconds


def test_retry_after_as_a_date() -> None:
    """Or it is a moment."""
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    error = errors.RateLimitError(**MADE)
    error.litellm_response_headers = httpx.Headers({"Retry-After": date})
    seconds = retry_after_s(error)
    assert seconds is not None
    assert 28 <= seconds <= 31
    assert retry_after_s(errors.MidStreamFallbackError(**MADE, original_exception=error)) is not None


def test_a_loop_of_causes_ends() -> None:
    """Errors that were raised for each other are each looked at once."""
    one, other = KeyError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert classify(one) is Fault.UNREADABLE
