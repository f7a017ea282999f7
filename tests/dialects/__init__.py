"""What the upstream answers on each path, its error bodies, and the faults that change an answer's content."""

from collections.abc import Callable
from typing import Any

from tests.dialects.chat import chat, completions
from tests.dialects.counting import Answer, Ask, Chunk, Json, Usage
from tests.dialects.media import embeddings, images, models, moderations, rerank, speech, transcriptions
from tests.dialects.messages import count_tokens, messages
from tests.dialects.responses import responses

DIALECTS: dict[tuple[str, str], Callable[[Ask], Answer]] = {
    ("POST", "/v1/chat/completions"): chat,
    ("POST", "/v1/completions"): completions,
    ("POST", "/v1/embeddings"): embeddings,
    ("POST", "/v1/responses"): responses,
    ("POST", "/v1/images/generations"): images,
    ("POST", "/v1/audio/speech"): speech,
    ("POST", "/v1/audio/transcriptions"): transcriptions,
    ("POST", "/v1/moderations"): moderations,
    ("POST", "/v1/rerank"): rerank,
    ("POST", "/v2/rerank"): rerank,
    ("POST", "/v1/messages"): messages,
    ("POST", "/v1/messages/count_tokens"): count_tokens,
    ("GET", "/v1/models"): models,
}

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}

__all__ = ["DIALECTS", "Answer", "Ask", "Chunk", "Json", "Usage", "error", "error_chunk", "strip_usage", "zero_usage"]


def error(path: str, status: int, message: str) -> Json:
    """The body of an error, shaped as the provider that owns the path shapes it."""
    if "/v1/messages" in path:
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_upstream"}
    kind, code = OPENAI_TYPES.get(status, ("server_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_chunk(path: str, message: str, number: int) -> Chunk:
    """An error as event `number` of a stream that had already answered 200.

    OpenAI documents the error of a responses stream as flat but sends it nested (openai/openai-dotnet#881).
    """
    if path.endswith("/v1/responses"):
        nested = {"type": "server_error", "code": "server_error", "message": message, "param": None}
        return Chunk({"type": "error", "error": nested, "sequence_number": number})
    return Chunk(error(path, 529 if path.endswith("/v1/messages") else 500, message))


def reports(payload: Json) -> list[Json]:
    """The places of a body where a dialect puts its usage."""
    inner = (payload.get(name) for name in ("response", "message"))
    return [place for place in (payload, *inner) if isinstance(place, dict) and "usage" in place]


def strip_usage(answer: Answer) -> None:
    """The fault `no_usage`: a provider that never says what it counted."""
    answer.chunks = [chunk for chunk in answer.chunks if not chunk.only_usage]
    for place in places(answer):
        del place["usage"]


def zero_usage(answer: Answer) -> None:
    """The fault `zero_usage`: a provider whose every count is 0."""
    for place in places(answer):
        place["usage"] = zeroed(place["usage"])


def places(answer: Answer) -> list[Json]:
    payloads = [answer.plain, *(chunk.data for chunk in answer.chunks)]
    found = [place for payload in payloads if isinstance(payload, dict) for place in reports(payload)]
    return list({id(place): place for place in found}.values())


def zeroed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: zeroed(inner) for name, inner in value.items()}
    return 0 if isinstance(value, int | float) else value
