"""Requests that try to get more than they pay for, or to break something, and what each must get."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.asking import ASKS
from tests.proxy import Json


@dataclass(frozen=True)
class Hostile:
    """One request.

    `status` is what it must get; `says` must stand in the message; `reaches` is whether it may go to the provider.
    """

    name: str
    path: str
    body: object
    status: int
    says: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    reaches: bool = False


def refused(name: str, ask: str, fields: Json, says: str = "", status: int = 400) -> Hostile:
    """A request that is refused, by default with a message that names its first strange field."""
    path, body = ASKS[ask]
    return Hostile(name, path, {**body, **fields}, status, says or next(iter(fields)))


def allowed(name: str, ask: str, fields: Json, headers: dict[str, str] | None = None) -> Hostile:
    """A request that is harmless: it is answered and paid."""
    path, body = ASKS[ask]
    return Hostile(name, path, {**body, **fields}, 200, headers=headers or {}, reaches=True)


def raw(name: str, content: bytes, status: int = 400, kind: str = "application/json") -> Hostile:
    """A body that is not what it should be."""
    return Hostile(name, "/v1/chat/completions", content, status, headers={"content-type": kind})


def content(*parts: Json) -> Json:
    return {"messages": [{"role": "user", "content": list(parts)}]}


# LiteLLM refuses these itself, before any callback, and calls it a failed authentication.
LITELLMS = {"api_base", "base_url", "model_list", "user_config", "input_cost_per_token"}
STEERING: list[Json] = [
    {"extra_body": {"max_tokens": 100000}}, {"extra_headers": {"x": "y"}}, {"api_key": "sk-mine"},
    {"api_base": "http://127.0.0.1:9"}, {"base_url": "http://127.0.0.1:9"}, {"fallbacks": ["claude"]},
    {"num_retries": 50}, {"mock_response": "free"}, {"no-log": True}, {"timeout": 0.001}, {"cache": {"ttl": 9}},
    {"specific_deployment": True}, {"model_list": []}, {"user_config": {}}, {"custom_llm_provider": "ollama"},
    {"input_cost_per_token": 0}, {"litellm_metadata": {}}, {"proxy_server_request": {}}, {"guardrails": []},
    {"litellm_call_id": "1"}, {"drop_params": True}, {"frobnicate": 1}, {"best_of": 5}, {"max_output_tokens": 9},
    {"prompt": "beside messages"}, {"allowed_openai_params": ["x"]}, {"mock_tool_calls": []}, {"": 1},
]  # fmt: skip
CONTROLS = [
    refused(f"field {next(iter(fields))!r}", "chat", fields, status=401 if LITELLMS & fields.keys() else 400)
    for fields in STEERING
]
MODELS = [
    refused(f"model {model!r}", "chat", {"model": model})
    for model in ("gpt-mini,claude", "openai/gpt-4o-mini", "*", "", 5, ["gpt-mini"], None, "gpt-mini\0")
] + [refused("a deployment's id as model", "chat", {"model": "dep-gpt-mini"})]
MODELS += [refused(f"model {model!r}", "chat", {"model": model}, model) for model in ("image", "speech", "unpriced")]
LIMITS = [
    *(refused(f"max_tokens {cap!r}", "chat", {"max_tokens": cap}) for cap in (-5, 0, True, "5", 1e3, 10**30, 1.5, [5])),
    refused("max_output_tokens -1", "responses", {"max_output_tokens": -1}),
    refused("messages with max_tokens 0", "messages", {"max_tokens": 0}),
    refused("max_completion_tokens true", "chat", {"max_completion_tokens": True}),
    *(refused(f"n {n!r}", "chat", {"n": n}) for n in (0, -1, 1000, "2", True)),
    refused("best_of 1000", "completions", {"best_of": 1000}),
    refused("3000 prompts", "completions", {"prompt": ["a"] * 3000}),
]
ODD_MESSAGES: list[Any] = [{}, [], None, "hello", 5, [5], ["hello"], [{"role": "user", "content": 5}]]
STRANGE: list[Any] = [-1, [], "json"]
SHAPES = [
    refused('stream "yes"', "chat", {"stream": "yes"}),
    refused("stream 1", "messages", {"stream": 1}),
    *(refused(f"messages {odd!r}", "chat", {"messages": odd}) for odd in ODD_MESSAGES),
    *(refused(f"messages {odd!r}, Anthropic's", "messages", {"messages": odd}) for odd in ODD_MESSAGES),
    refused("tools {}", "chat", {"tools": {}}),
    refused("tools [5]", "chat", {"tools": [5]}, "tool"),
    *(refused(f"response_format {odd!r}", "chat", {"response_format": odd}) for odd in STRANGE),
    *(refused(f"tool_choice {odd!r}", "chat", {"tool_choice": odd}) for odd in STRANGE[:2]),
    *(
        refused(f"part {part!r}", "chat", {"messages": [{"role": "user", "content": [part]}]})
        for part in ({"type": None}, {}, 5, "hi")
    ),
    refused("thinking text", "messages", {"thinking": "enabled"}),
    refused("reasoning text", "responses", {"reasoning": "high"}),
    refused("text text", "responses", {"text": "json"}),
    refused("an empty input", "embeddings", {"input": [[]]}),
    refused("metadata text", "chat", {"metadata": "x"}),
    refused("stream_options text", "chat", {"stream": True, "stream_options": "x"}, "stream_options"),
    refused("background", "responses", {"background": True}),
    refused("prompt {}", "completions", {"prompt": {"a": 1}}, "prompt"),
    refused("input 5", "embeddings", {"input": 5}),
    refused("input {}", "responses", {"input": {"role": "user"}}),
]
FILE = {"type": "file", "file": {"file_id": "file-1"}}
DOCUMENT = {"type": "document", "source": {"type": "url", "url": "http://a/b"}}
IMAGE = [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]
MCP = {"type": "mcp", "server_label": "x", "server_url": "http://a"}
CODE = {"type": "code_execution_20250522", "name": "code_execution"}
UNSEEN = [
    refused("previous_response_id", "responses", {"previous_response_id": "resp_1"}),
    refused("conversation", "responses", {"conversation": "conv_1"}),
    refused("stored prompt", "responses", {"prompt": {"id": "pmpt_1"}}),
    refused("file id", "chat", content(FILE), "file"),
    refused("document by URL", "messages", content(DOCUMENT), "file"),
    refused("image by file id", "responses", {"input": IMAGE}, "image"),
    refused("web_search tool", "responses", {"tools": [{"type": "web_search"}]}, "web_search"),
    refused("web_search_options", "chat", {"web_search_options": {}}),
    refused("mcp tool", "responses", {"tools": [MCP]}, "mcp"),
    refused("mcp_servers", "messages", {"mcp_servers": []}),
    refused("code tool", "messages", {"tools": [CODE]}, "code_execution"),
]
BODIES = [
    # LiteLLM itself fails on JSON that is no object, before it asks any callback.
    raw("JSON array", b"[1]", status=500),
    raw("JSON string", b'"hello"', status=500),
    raw("JSON null", b"null", status=500),
    raw("invalid JSON", b'{"model": '),
    raw("empty body", b""),
    raw("not UTF-8", b'{"model": "gpt-mini", "messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    raw("10000 levels deep", b'{"model": "gpt-mini", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    raw("a form", b"model=gpt-mini&messages=hello", kind="application/x-www-form-urlencoded"),
    raw("NaN", b'{"model": "gpt-mini", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}'),
]
OTHER_ROUTES = [
    *(Hostile(f"POST {path}", path, {"model": "gpt-mini", "messages": [], "input": "x", "prompt": "x"}, status)
      for path, status in (
          ("/v1/chat/completions/", 307), ("/engines/gpt-mini/chat/completions", 403), ("//v1/chat/completions", 404),
          ("/openai/deployments/gpt-mini/chat/completions", 403), ("/v1/images/generations", 400),
          ("/v1/audio/speech", 400), ("/v1/audio/transcriptions", 400), ("/v1/rerank", 400), ("/v2/rerank", 400),
          ("/v1/moderations", 400), ("/v1/batches", 400), ("/v1/files", 400), ("/v1/messages/count_tokens", 400),
          ("/v1/responses/compact", 400), ("/openai/v1/chat/completions", 403), ("/anthropic/v1/messages", 403),
          ("/openai_passthrough/v1/chat/completions", 403), ("/queue/chat/completions", 403), ("/key/generate", 403),
          ("/v1/Chat/Completions", 404), ("/v1/chat%2Fcompletions", 400), ("/v1/a2a/x/message/send", 403),
      )),
]  # fmt: skip
SURROGATES = (
    b'{"model": "gpt-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "say 7 words \\ud800"}]}',
    b'{"model": "gpt-mini", "metadata": {"session_id": "\\ud800"}, "messages": [{"role": "user", "content": "hello"}]}',
    b'{"model": "gpt-mini", "metadata": {"\\udfff": "x"}, "messages": [{"role": "user", "content": "hello"}]}',
)
TWICE = (
    b'{"model": "free", "model": "gpt-mini", "max_tokens": 5, "max_tokens": 50,'
    b' "messages": [{"role": "user", "content": "say 7 words"}]}'
)
ALLOWED = [
    allowed("a limit beyond the model's", "chat", {"max_tokens": 9_000_000}),
    allowed("NUL in metadata.session_id", "chat", {"metadata": {"session_id": "a\0b"}}),
    allowed("a session id of 10000 letters", "chat", {"metadata": {"session_id": "s" * 10_000}}),
    allowed("x-litellm-timeout: 0.001", "chat", {}, {"x-litellm-timeout": "0.001"}),
    allowed("x-litellm-stream-timeout: 0.001", "chat", {}, {"x-litellm-stream-timeout": "0.001"}),
    allowed("x-litellm-num-retries: 50", "chat", {}, {"x-litellm-num-retries": "50"}),
    allowed("x-litellm-tags", "chat", {}, {"x-litellm-tags": "a,b"}),
    allowed("x-litellm-disable-callbacks", "chat", {}, {"x-litellm-disable-callbacks": "uc_litellm_plugin,UcHandler"}),
    allowed("service_tier priority", "chat", {"model": "gpt-mini-map", "service_tier": "priority"}),
    Hostile("another model in the query", "/v1/chat/completions?model=claude", ASKS["chat"][1], 400, "model"),
    Hostile("many models in the query", "/v1/chat/completions?model=claude,free", ASKS["chat"][1], 400, "model"),
    allowed(
        "image by URL",
        "chat",
        content(
            {"type": "text", "text": "say 7 words"}, {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}
        ),
    ),
    allowed("thinking beyond max_tokens", "chat bridged", {"thinking": {"type": "enabled", "budget_tokens": 30_000}}),
    allowed("reasoning_effort high", "chat bridged", {"reasoning_effort": "high"}),
    allowed(
        "litellm keys in metadata",
        "chat",
        {"metadata": {"model_info": {"id": "dep-free"}, "tags": ["free"], "litellm_api_base": "x"}},
    ),
    Hostile("keys given twice", "/v1/chat/completions", TWICE, 200, reaches=True),
]
EVERY = [*CONTROLS, *MODELS, *LIMITS, *SHAPES, *UNSEEN, *BODIES, *OTHER_ROUTES, *ALLOWED]


def shown(body: object) -> str:
    """A body as text for messages of tests."""
    return (body.decode(errors="replace") if isinstance(body, bytes) else json.dumps(body))[:200]
