"""The caller's own key on its way into one attempt, and what keeps it there."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from openai import AsyncOpenAI

from . import redaction
from .call import Call
from .plan import Candidate
from .provider_key import ProviderKey
from .vault import Secret

# What a copy of a deployment takes along: how its model is called, and nothing that opens the platform's account.
_KEPT = frozenset(
    {"model", "custom_llm_provider", "api_base", "api_version", "timeout", "stream_timeout", "drop_params"}
    | {"additional_drop_params", "allowed_openai_params", "use_chat_completions_api", "max_parallel_requests"}
    | {"merge_reasoning_content_in_choices"}
)
# Stands where the platform's key stood, so that an attempt without the caller's key fails rather than uses it.
_NO_KEY = "own-key-missing"


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

    def inject(self, call: Call, key: ProviderKey, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt's arguments with the caller's key in them, and its endpoint where the key has one.

        From here on the key stands in no log line, and what LiteLLM keeps of the call for its callbacks is freed of it
        as it is written.

        Raises
        ------
        VaultError
            The key does not open.
        """
        secret = self._open_key(key)
        call.secrets.append(secret)
        text = secret.reveal()
        redaction.take(text)
        # LiteLLM writes about a call after it has ended; the call's object lives until then.
        weakref.finalize(call, redaction.give_back, text)
        logged = kwargs.get("litellm_logging_obj")
        if logged is not None:
            logged.model_call_details = redaction.KeyFree(logged.model_call_details, text)
        made = {**kwargs, "api_key": text}
        if key.api_base is not None:
            made["api_base"] = made["base_url"] = key.api_base
            made["client"] = AsyncOpenAI(api_key=text, base_url=key.api_base, http_client=self._client, max_retries=0)
        return made


def own_deployment(deployment: Mapping[str, Any], candidate: Candidate) -> dict[str, Any]:
    """A copy of a deployment of LiteLLM's router for an attempt with the caller's own key.

    It has an id of its own, which LiteLLM never cools down, and none of the platform's credentials.
    """
    params = {name: value for name, value in deployment["litellm_params"].items() if name in _KEPT or "_cost" in name}
    info = {**(deployment.get("model_info") or {}), "id": candidate.deployment}
    return {**deployment, "litellm_params": {**params, "api_key": _NO_KEY}, "model_info": info}


def disclose(call: Call, error: Exception) -> None:
    """Take the caller's keys out of an error, and say whose key it was that failed."""
    for secret in call.secrets:
        redaction.clean_error(error, secret.reveal())
    candidate = call.answering
    if candidate is None or candidate.own_key is None:
        return
    message = getattr(error, "message", None)
    whose = f"With your own {candidate.provider} key '{candidate.own_key.key_name}': "
    if isinstance(message, str) and not message.startswith(whose):
        error.message = whose + message  # type: ignore[attr-defined]  # LiteLLM's errors have one


def uncached(set_cache: Callable[..., Any], is_own: Callable[[], bool]) -> Callable[..., Any]:
    """LiteLLM's `set_cache` of provider clients, which keeps none that was made for a user's own key.

    It would keep the key, in the client and in the cache's key, for an hour (litellm/llms/openai/common_utils.py).
    """

    def set_unless_own(key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if hasattr(value, "api_key") and is_own():
            return None
        return set_cache(key, value, *args, **kwargs)

    return set_unless_own
