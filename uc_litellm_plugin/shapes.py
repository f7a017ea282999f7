"""What kind of value each field of a paid request takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import BadRequest
from .routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

_MOST_PROMPTS = 2048

_SHAPES: Mapping[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "stream": (bool, "true or false"),
    "stream_options": (dict, "an object"),
    "messages": (list, "an array of messages"),
    "tools": (list, "an array"),
    "functions": (list, "an array"),
    "modalities": (list, "an array"),
    "metadata": (dict, "an object"),
    "response_format": (dict, "an object"),
    "thinking": (dict, "an object"),
    "reasoning": (dict, "an object"),
    "text": (dict, "an object"),
    "tool_choice": ((str, dict), "a string or an object"),
    "service_tier": (str, "a string"),
    "max_tool_calls": (int, "a whole number"),
    "input": ((str, list), "a string or an array"),
    "prompt": ((str, list, dict), "a string or an array"),
    "instructions": (str, "a string"),
}
_ANY = (object, "")
_PROMPT_FIELDS = {
    CHAT: "messages",
    MESSAGES: "messages",
    COMPLETIONS: "prompt",
    EMBEDDINGS: "input",
    RESPONSES: "input",
}


def check(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Refuse values of a kind that no provider documents, which LiteLLM would answer with a 500.

    Raises
    ------
    BadRequest
        Names the field.
    """
    for field, value in body.items():
        kind, wanted = _SHAPES.get(field, _ANY)
        if value is not None and not isinstance(value, kind):
            raise _wrong(field, wanted)
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(field, "a finite number")
    if body.get("background"):
        raise BadRequest(
            "'background' answers cannot be charged when they are done; leave it out or set it to false.",
            code="unsupported_value",
            param="background",
        )
    check_early(body)
    _check_prompt(endpoint, body)


def check_early(body: Mapping[str, Any]) -> None:
    """The same for what LiteLLM reads before its pre-call hooks (litellm/proxy/proxy_server.py, `embeddings`)."""
    if isinstance(given := body.get("input"), list) and [] in given:
        raise _wrong("input", "text or token numbers, none of them empty")


def _check_prompt(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    field = _PROMPT_FIELDS[endpoint]
    prompt = body.get(field)
    if prompt in (None, "", []) and not (endpoint is RESPONSES and body.get("prompt")):
        raise BadRequest(f"'{field}' is missing or empty.", code="missing_field", param=field)
    if field == "prompt" and isinstance(prompt, dict):
        raise _wrong(field, "a string or an array")
    if prompts(endpoint, body) > _MOST_PROMPTS:
        raise BadRequest(f"'{field}' holds more than {_MOST_PROMPTS} items.", code="invalid_value", param=field)
    for message in prompt if field == "messages" and isinstance(prompt, list) else ():
        if not isinstance(message, dict) or not isinstance(message.get("content"), str | list | None):
            raise _wrong("messages", "an array of objects whose content is a string, an array or null")
        _check_parts(message["content"] if isinstance(message.get("content"), list) else ())


def _check_parts(parts: Iterable[Any]) -> None:
    if not all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts):
        raise _wrong("messages", "an array of objects whose content, where it is an array, is of objects with a type")


def _wrong(field: str, wanted: str) -> BadRequest:
    return BadRequest(f"'{field}' must be {wanted}.", code="invalid_value", param=field)


def prompts(endpoint: Endpoint, body: Mapping[str, Any]) -> int:
    """How many prompts one completions request carries; a list of token numbers is one."""
    if endpoint is not COMPLETIONS:
        return 1
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or all(isinstance(item, int) for item in prompt):
        return 1
    return len(prompt)
