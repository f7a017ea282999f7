"""Is a provider key any good? One free call to its provider, of whose answer nothing but the status is read."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

import httpx

from . import endpoints
from .endpoints import Resolve, resolve
from .errors import BadRequest
from .settings import ByokSettings
from .vault import Secret

Result = Literal["ok", "refused", "unreachable"]

# How providers say that a key is wrong (Google: 400), may not, or has nothing left.
_REFUSALS = frozenset({400, 401, 402, 403})


@dataclass(frozen=True)
class Outcome:
    """What a provider said of a key.

    Attributes
    ----------
    result
        `ok`, `refused`, or `unreachable` where it said neither.
    status
        Its HTTP status; None without an answer in time.
    """

    result: Result
    status: int | None
    latency_ms: int


async def probe(url: str, provider: str, key: Secret, rules: ByokSettings, resolver: Resolve = resolve) -> Outcome:
    """Ask a provider for what it lists for this key; at most `endpoints.TIMEOUT_S` seconds, no redirects, no retries.

    Raises
    ------
    BadRequest
        The address must not be called, see `endpoints.check_base`.
    """
    started = time.monotonic()
    with endpoints.unheard():
        try:
            status = await asyncio.wait_for(_status(url, provider, key, rules, resolver), endpoints.TIMEOUT_S)
        except BadRequest as error:
            if error.code != "unresolved_api_base":
                raise
            status = None
        # Their texts may hold what was sent, or what the server made of it.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, asyncio.TimeoutError):
            status = None
    return Outcome(_result(status), status, round((time.monotonic() - started) * 1000))


async def _status(url: str, provider: str, key: Secret, rules: ByokSettings, resolver: Resolve) -> int:
    async with endpoints.client(rules, resolver) as client:
        headers = {"user-agent": "uc-litellm-plugin", **_credentials(provider, key.reveal())}
        async with client.stream("GET", url, headers=headers) as answer:
            return answer.status_code


def _credentials(provider: str, key: str) -> dict[str, str]:
    """Never in the URL: those are logged everywhere."""
    if provider == "anthropic":
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"x-goog-api-key": key} if provider == "google" else {"authorization": f"Bearer {key}"}


def _result(status: int | None) -> Result:
    if status is not None and 200 <= status < 300:
        return "ok"
    return "refused" if status in _REFUSALS else "unreachable"
