"""A guardrail as an operator writes one (LiteLLM's documentation, custom guardrails)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.integrations.custom_logger import CustomLogger

CUTS = "cut this"
FORBIDS = "ask forbidden"
WHOLE_CHUNKS = 15
THINKS_S = 0.5


class Guard(CustomGuardrail):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """Cuts a stream after some chunks, or refuses slowly beside the call, where the messages ask for that."""

    async def async_moderation_hook(self, data: Any, user_api_key_dict: Any, call_type: Any) -> Any:
        if FORBIDS in json.dumps(data.get("messages")):
            await asyncio.sleep(THINKS_S)
            raise _blocked()
        return data

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: Any
    ) -> AsyncIterator[Any]:
        chunks = 0
        async for part in response:
            chunks += 1
            if chunks > WHOLE_CHUNKS and CUTS in json.dumps(request_data.get("messages")):
                raise _blocked()
            yield part


class Changes(CustomLogger):  # type: ignore[misc]  # as above
    """May change a request before it is admitted."""

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> Any:
        return data


changes = Changes()


def _blocked() -> HTTPException:
    return HTTPException(400, {"error": "blocked by guardrail"})
