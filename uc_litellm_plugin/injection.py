"""The caller's own key on its way into one attempt, past LiteLLM, which never has it.

LiteLLM and the OpenAI client work with a stand-in for the key. All their requests pass `httpx.AsyncClient.send`: there
the stand-in becomes the key for as long as it takes to send one request, and what the provider repeats of it is taken
out of the answer. So there is no key in arguments, errors, tracebacks, logs, caches, and connections of anybody else's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import httpx
from openai import AsyncOpenAI

from . import redaction
from .call import CURRENT, Call
from .errors import DamagedKey, Forbidden, UnknownSealingKey, VaultError
from .plan import Candidate
from .provider_key import ProviderKey
from .redaction import CleanStream
from .refusals import Refused
from .vault import Secret

logger = logging.getLogger(__name__)

# What a copy of a deployment takes along: how its model is called, and nothing that opens the platform's account.
_KEPT = frozenset(
    {"model", "custom_llm_provider", "api_base", "api_version", "timeout", "stream_timeout", "drop_params"}
    | {"additional_drop_params", "allowed_openai_params", "use_chat_completions_api", "max_parallel_requests"}
    | {"merge_reasoning_content_in_choices"}
)
# Stands where the platform's key stood, so that an attempt without the caller's key fails rather than uses it.
_NO_KEY = "own-key-missing"
# Begins what stands for a key until it is sent; the name of its provider follows. Nobody can guess it: LiteLLM sends
# requests to addresses that a prompt names, too, to fetch an image.
_MARK = f"uc-own-key-{secrets.token_hex(16)}-of-"
# Where providers take a key; anywhere else a stand-in stays what it is.
_KEY_HEADERS = frozenset({"authorization", "x-api-key", "x-goog-api-key", "api-key"})
_KEY_PARAMETER = "key"

# For a key's owner; the log has the operator's.
_WAY_OUT = {
    UnknownSealingKey.code: "what it was sealed with is missing. It is not lost: tell whoever runs this proxy.",
    DamagedKey.code: "its row was altered. Delete it and add it again.",
}

Send = Callable[..., Awaitable[httpx.Response]]
# Handed about in place of the key, which then is in no frame of a traceback.
Open = Callable[[], Secret]

# What is still to be read, by its call. What has failed stays unread, and LiteLLM keeps it in tracebacks; what follows
# a stream's last word is never read, and waits for the garbage collector.
_UNREAD: WeakKeyDictionary[Call, WeakSet[CleanStream]] = WeakKeyDictionary()
# The loop alone would let go of them.
_CLOSING: set[asyncio.Task[None]] = set()


class Injection:
    """Puts keys into attempts.

    Parameters
    ----------
    open_key
        Opens a sealed key: `Worker.open_key`.
    client
        Connects to endpoints of users' own, to checked addresses only: `endpoints.client`.
    """

    def __init__(self, open_key: Callable[[ProviderKey], Secret], client: httpx.AsyncClient) -> None:
        self._open_key = open_key
        self._client = client
        _let_out(self._key_of)

    def inject(self, call: Call, key: ProviderKey, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt's arguments with a stand-in for the caller's key, and its endpoint where the key has one.

        Raises
        ------
        Refused
            The key does not open, or its time has come since the call was planned.
        """
        close_unread(call)
        self._check(call, key)
        stand_in = f"{_MARK}{key.provider}"
        made = {**kwargs, "api_key": stand_in}
        if key.api_base is not None:
            made["api_base"] = made["base_url"] = key.api_base
            made["client"] = AsyncOpenAI(
                api_key=stand_in, base_url=key.api_base, http_client=self._client, max_retries=0
            )
        return made

    def _check(self, call: Call, key: ProviderKey) -> None:
        """For the error, which should come before LiteLLM is asked; the key itself is opened when it is sent."""
        whose = f"Your own key '{key.key_name}' for {key.provider}"
        about = {"provider": key.provider, "key_id": str(key.id)}
        if not key.is_usable(datetime.now(timezone.utc)):
            refusal = Forbidden(f"{whose} is past its time: renew it.", code="own_key_unusable", metadata=about)
            raise Refused(refusal, call.endpoint.call_type)
        try:
            self._open_key(key)
        except VaultError as error:
            logger.error("the provider key %s does not open: %s", key.id, error, extra={"action": "key_closed"})
            refusal = Forbidden(f"{whose} does not open here: {_WAY_OUT[error.code]}", code=error.code, metadata=about)
            raise Refused(refusal, call.endpoint.call_type) from None

    def _key_of(self, provider: str, client: httpx.AsyncClient) -> Open | None:
        """What opens the key for a request with a provider's stand-in.

        None where the attempt under way has no such key: the stand-in goes out as it is, and the provider refuses it.
        """
        key = _key_in_use()
        if key is None or key.provider != provider:
            return None
        # To an address of the user's own only through the client that checks where it leads.
        if (client is self._client) != (key.api_base is not None):
            return None
        return partial(self._open_key, key)


def own_deployment(deployment: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """A copy of a deployment of LiteLLM's router for an attempt with the caller's own key.

    It has an id of its own, which LiteLLM never cools down, and none of the platform's credentials.
    """
    params = {name: value for name, value in deployment["litellm_params"].items() if name in _KEPT or "_cost" in name}
    info = {**(deployment.get("model_info") or {}), "id": candidate.deployment}
    return {**deployment, "litellm_params": {**params, "api_key": _NO_KEY}, "model_info": info}


def disclose(call: Call, error: Exception) -> None:
    """Say whose key it was that failed, where it was the caller's own."""
    close_unread(call)
    candidate = call.answering
    if candidate is None or candidate.own_key is None:
        return
    message = getattr(error, "message", None)
    whose = f"With your own {candidate.provider} key '{candidate.own_key.key_name}': "
    if isinstance(message, str) and not message.startswith(whose):
        error.message = whose + message  # type: ignore[attr-defined]  # LiteLLM's errors have one


def close_unread(call: Call) -> None:
    """Close what is left unread of a call's answers: a connection remembers the request as it was sent."""
    for stream in _UNREAD.pop(call, ()):
        task = asyncio.get_running_loop().create_task(stream.aclose())
        _CLOSING.add(task)
        task.add_done_callback(_CLOSING.discard)


def _let_out(key_of: Callable[[str, httpx.AsyncClient], Open | None]) -> None:
    """Put keys into requests as `httpx.AsyncClient.send` sends them; a second time, by another rule."""
    stock: Send = getattr(httpx.AsyncClient.send, "stock", httpx.AsyncClient.send)

    async def send(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        provider = None if _key_in_use() is None else _provider_asked(request)
        open_key = None if provider is None else key_of(provider, self)
        if provider is None or open_key is None:
            return await stock(self, request, **options)
        return await _send(stock, self, request, f"{_MARK}{provider}", open_key, options)

    send.stock = stock  # type: ignore[attr-defined]
    httpx.AsyncClient.send = send  # type: ignore[method-assign]


def _key_in_use() -> ProviderKey | None:
    """The caller's own key that the attempt under way is made with."""
    call = CURRENT.get()
    candidate = None if call is None else call.answering
    return None if candidate is None else candidate.own_key


def _provider_asked(request: httpx.Request) -> str | None:
    """The provider whose stand-in a request carries: in a header or, as Google has it, in the URL."""
    if request.method != "POST":
        return None
    headers = (value for name, value in request.headers.items() if name in _KEY_HEADERS)
    for text in (*headers, request.url.params.get(_KEY_PARAMETER, "")):
        _, mark, provider = text.partition(_MARK)
        if mark:
            return str(provider)
    return None


async def _send(
    stock: Send,
    client: httpx.AsyncClient,
    request: httpx.Request,
    stand_in: str,
    open_key: Open,
    options: Mapping[str, Any],
) -> httpx.Response:
    """Send a request with the key, which stands in it no longer than that, and clean the answer."""
    as_made = request.headers, request.url
    request.headers = _with_key(request.headers, stand_in, open_key())
    if request.url.params.get(_KEY_PARAMETER) == stand_in:
        request.url = request.url.copy_set_param(_KEY_PARAMETER, open_key().reveal())
    _forget_cookies(client)
    response, fault = None, None
    try:
        with redaction.in_use(open_key().reveal()):
            # A redirect may lead to another host, and httpx takes all headers but one along.
            response = await stock(client, request, **{**options, "stream": True, "follow_redirects": False})
    except BaseException as error:
        # Whatever it is, the client's leaving too: its text and its frames show the request as it was sent.
        fault = redaction.bare(error, open_key())
    finally:
        request.headers, request.url = as_made
    if fault is not None or response is None:
        raise fault or RuntimeError("httpx answered nothing")
    redaction.clean_answer(response, open_key())
    if (call := CURRENT.get()) is not None and isinstance(response.stream, CleanStream):
        _UNREAD.setdefault(call, WeakSet()).add(response.stream)
    if not options.get("stream"):
        await _read(response)
    return response


def _forget_cookies(client: httpx.AsyncClient) -> None:
    """All users' calls leave by one client: what a provider tells one of them must not go along with another's."""
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))
    client.cookies.clear()


async def _read(response: httpx.Response) -> None:
    """Read an answer; one that is not read to its end is closed, as httpx does it."""
    try:
        await response.aread()
    except BaseException:
        # A cancelled request's, too: its connection would stay in use, and the key with it.
        await response.aclose()
        raise


def _with_key(headers: httpx.Headers, stand_in: str, secret: Secret) -> httpx.Headers:
    """The headers as they are sent; an answer that is compressed could repeat the key where nobody sees it."""
    key = secret.reveal()
    sent = httpx.Headers(
        [
            (name, value.replace(stand_in, key) if name in _KEY_HEADERS else value)
            for name, value in headers.multi_items()
            if name != "cookie"
        ]
    )
    sent["accept-encoding"] = "identity"
    return sent
