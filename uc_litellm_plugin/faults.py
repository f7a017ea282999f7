"""What went wrong in an attempt, and whether it speaks against the provider.

LiteLLM's exceptions are told by their names and statuses, without importing LiteLLM. Its own mapping goes by the text
of an error, which may repeat what the client sent, so the status that the provider really answered with counts where
the chain of causes still has it (litellm/litellm_core_utils/exception_mapping_utils.py raises in the provider error's
`except` block; seen on 1.106.2 with OpenAI, OpenRouter and Anthropic, plain and streamed).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from email.utils import mktime_tz, parsedate_tz
from enum import Enum
from typing import Any

from .errors import status_of

_NOT_THE_PROVIDERS = {
    *("bad_request", "content_policy", "context_window", "unreadable", "refused_by_us", "client_left", "callers_key"),
}


class Fault(Enum):
    """Why an attempt failed; the value is the word in rows and metrics.

    Attributes
    ----------
    counts
        Whether it speaks against the provider.
    is_lasting
        Whether it will not heal by itself: an operator must act.
    is_sudden
        Whether it may be over at any moment, and trying costs next to no time.
    """

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    OUT_OF_FUNDS = "out_of_funds"
    MODEL_GONE = "model_gone"
    SERVER_ERROR = "server_error"
    BAD_REQUEST = "bad_request"
    CONTENT_POLICY = "content_policy"
    CONTEXT_WINDOW = "context_window"
    # LiteLLM itself stumbled, over a request as well as over an answer. Which of them cannot be told, and a client can
    # send such a request on purpose.
    UNREADABLE = "unreadable"
    REFUSED_BY_US = "refused_by_us"
    CLIENT_LEFT = "client_left"
    CALLERS_KEY = "callers_key"

    def __init__(self, word: str) -> None:
        self.counts = word not in _NOT_THE_PROVIDERS
        self.is_lasting = word in ("unauthorized", "out_of_funds", "model_gone")
        self.is_sudden = word in ("connection", "server_error")


_BY_CLASS = {
    "CancelledError": Fault.CLIENT_LEFT,
    "ContextWindowExceededError": Fault.CONTEXT_WINDOW,
    "ContentPolicyViolationError": Fault.CONTENT_POLICY,
    "JSONSchemaValidationError": Fault.UNREADABLE,
    "CallerCredentialAuthenticationError": Fault.CALLERS_KEY,
    "CallerCredentialRateLimitError": Fault.CALLERS_KEY,
    # Ours.
    "Refusal": Fault.REFUSED_BY_US,
    "DatabaseError": Fault.REFUSED_BY_US,
    # What this proxy, its guardrails and its limits answer.
    "ProxyException": Fault.REFUSED_BY_US,
    "HTTPException": Fault.REFUSED_BY_US,
    "RouterRateLimitError": Fault.REFUSED_BY_US,
    "RouterRateLimitErrorBasic": Fault.REFUSED_BY_US,
    "BudgetExceededError": Fault.REFUSED_BY_US,
    "RejectedRequestError": Fault.REFUSED_BY_US,
    "GuardrailRaisedException": Fault.REFUSED_BY_US,
    "BlockedPiiEntityError": Fault.REFUSED_BY_US,
    "ModifyResponseException": Fault.REFUSED_BY_US,
    "SensitiveDataRouteException": Fault.REFUSED_BY_US,
}

_BY_STATUS = {
    401: Fault.UNAUTHORIZED,
    402: Fault.OUT_OF_FUNDS,
    403: Fault.FORBIDDEN,
    404: Fault.MODEL_GONE,
    408: Fault.TIMEOUT,
    429: Fault.RATE_LIMITED,
    499: Fault.CLIENT_LEFT,
    504: Fault.TIMEOUT,
}

# Classes of httpx, aiohttp, openai, botocore and Python, by the names in their MROs.
_TIMEOUTS = {"TimeoutException", "TimeoutError", "APITimeoutError", "ReadTimeoutError", "ConnectTimeoutError"}
_CONNECTIONS = {
    *("TransportError", "ClientConnectionError", "ClientPayloadError", "APIConnectionError", "HTTPClientError"),
    *("ConnectionError", "gaierror", "SSLError"),
}
_LITELLMS_OWN = "litellm.exceptions"
_PROVIDERS_OWN = ("litellm.llms", "openai", "httpx", "aiohttp", "anthropic", "botocore")
_LONGEST_CHAIN = 16

# Anthropic says with a 400 that the platform has run out of credits, and LiteLLM hands on the body as it came. Only as
# the message itself: what a client sent and the provider repeats is in a JSON string, where quotes have backslashes.
_NO_FUNDS = re.compile(r'(?<!\\)"message"\s*:\s*"Your credit balance is too low')
_MODERATED = re.compile(r"moderation|flagged", re.IGNORECASE)


def classify(error: BaseException) -> Fault:
    """What an attempt's error means.

    Parameters
    ----------
    error
        As LiteLLM hands it to its hooks or raises it; a `MidStreamFallbackError` is what it wraps.
    """
    chain = list(_chain(error))
    names = {each.__name__ for each in type(error).__mro__}
    status = _status(chain)
    if (known := next((fault for name, fault in _BY_CLASS.items() if name in names), None)) and _fits(known, status):
        return known
    if _is_litellms_limit(chain[0]):
        return Fault.REFUSED_BY_US
    if status is None or status >= 500 or status == 408:
        return _of_network(chain) or _of_status(status, chain)
    return _of_status(status, chain)


def retry_after_s(error: BaseException) -> float | None:
    """The seconds from now that a `Retry-After` of the provider asks for, None where it asks for none.

    A number of seconds or an HTTP date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    for each in _chain(error):
        response = getattr(each, "response", None)
        for headers in (getattr(each, "litellm_response_headers", None), getattr(response, "headers", None)):
            if (seconds := _seconds(headers)) is not None:
                return seconds
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, then what it wraps and what it was raised for, each once."""
    waiting = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _LONGEST_CHAIN:
        each = waiting.pop(0)
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            links = (getattr(each, "original_exception", None), each.__cause__, each.__context__)
            waiting += [link for link in links if isinstance(link, BaseException)]


def _status(chain: list[BaseException]) -> int | None:
    """The status that the provider answered with, as far as anybody still knows it."""
    # aiohttp's errors have numbers of their own: an answer that broke off is a 400.
    known = [each for each in chain if not type(each).__module__.startswith("aiohttp")]
    inside = [each for each in known if _is_providers(each)]
    found = (_http_status(each) for each in [*inside, *known])
    return next((status for status in found if status is not None), None)


def _http_status(error: BaseException) -> int | None:
    status = status_of(error, unknown=0) if isinstance(error, Exception) else 0
    return status if 200 <= status <= 599 else None


def _is_providers(error: BaseException) -> bool:
    return type(error).__module__.startswith(_PROVIDERS_OWN)


def _fits(fault: Fault, status: int | None) -> bool:
    """Whether LiteLLM's reading of a text can be: a provider that is out of order does not judge contents."""
    return fault not in (Fault.CONTEXT_WINDOW, Fault.CONTENT_POLICY) or status is None or status < 500


def _is_litellms_limit(error: BaseException) -> bool:
    """Whether a rate limit is this proxy's own (litellm/exceptions.py, `RateLimitErrorCategory`)."""
    if type(error).__name__ != "RateLimitError":
        return False
    return str(getattr(error, "category", "")).startswith("litellm") or getattr(error, "llm_provider", None) == ""


def _of_network(chain: list[BaseException]) -> Fault | None:
    if type(chain[0]).__name__ == "Timeout":
        return Fault.TIMEOUT
    names = {
        name.__name__
        for each in chain
        if type(each).__module__ != _LITELLMS_OWN
        for name in type(each).__mro__
    }  # fmt: skip
    if names & _TIMEOUTS:
        return Fault.TIMEOUT
    return Fault.CONNECTION if names & _CONNECTIONS else None


def _of_status(status: int | None, chain: list[BaseException]) -> Fault:
    text = str(chain[0])
    if status == 400 and getattr(chain[0], "llm_provider", None) == "anthropic" and _NO_FUNDS.search(text):
        return Fault.OUT_OF_FUNDS
    if status == 429 and "insufficient_quota" in text:
        # https://platform.openai.com/docs/guides/error-codes
        return Fault.OUT_OF_FUNDS
    if status == 403 and _MODERATED.search(text):
        # OpenRouter's answer to input that a moderation flagged: https://openrouter.ai/docs/api-reference/errors
        return Fault.CONTENT_POLICY
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status is not None and 400 <= status < 500:
        return Fault.BAD_REQUEST
    return Fault.UNREADABLE if _is_unexplained(status, chain) else Fault.SERVER_ERROR


def _is_unexplained(status: int | None, chain: list[BaseException]) -> bool:
    """Whether nothing shows that a provider was asked. LiteLLM calls all it does not know `APIConnectionError`."""
    is_known = status is not None and type(chain[0]).__name__ != "APIConnectionError"
    return not is_known and not any(_is_providers(each) for each in chain)


def _seconds(headers: Any) -> float | None:
    try:
        value = headers.get("retry-after")
    except AttributeError:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        date = parsedate_tz(value) if isinstance(value, str) else None
        seconds = mktime_tz(date) - time.time() if date else -1
    return seconds if 0 <= seconds < float("inf") else None
