from __future__ import annotations

import pytest

from uc_litellm_plugin import routes
from uc_litellm_plugin.errors import BadRequest, Forbidden, Refusal
from uc_litellm_plugin.routes import ENDPOINTS

BILLED = ["/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/v1/embeddings",
          "/embeddings", "/v1/responses", "/responses", "/v1/messages"]  # fmt: skip
FREE = ["/models", "/v1/models", "/v1/models/gpt-4o", "/models/openai/gpt-4o", "/v1/responses/resp_1", "/responses/r"]
NOT_OFFERED = ["/v1/images/generations", "/v1/audio/speech", "/audio/transcriptions", "/rerank", "/v1/rerank",
               "/v2/rerank", "/v1/moderations", "/v1/batches", "/v1/batches/b/cancel", "/v1/files", "/files/f/content",
               "/v1/fine_tuning/jobs", "/v1/assistants", "/v1/threads/t/runs", "/v1/vector_stores", "/v1/videos",
               "/v1/containers", "/v1/realtime/client_secrets", "/v1/messages/count_tokens", "/v1/messages/batches",
               "/v1/responses/compact", "/v1/responses/r/cancel", "/v1/responses/r/input_items"]  # fmt: skip
STRANGE = ["/key/generate", "/user/info", "/", "", "/v1", "/openai/deployments/gpt-4o/chat/completions",
           "/engines/gpt-4o/chat/completions", "/anthropic/v1/messages", "/mcp", "/v1/chat/completions/",
           "//v1/chat/completions", "/V1/chat/completions", "/v1/chat/completions?x", "/v1/chat/completions\n",
           "/v1/chat/../chat/completions", "/v1/chat/completions%2f", "/gemini/v1beta/models/x:generateContent",
           "/health", "/metrics", "/config/update", "/models/", "/v1/models//"]  # fmt: skip


@pytest.mark.parametrize("path", BILLED)
def test_billed_paths_are_billed_by_post_only(path: str) -> None:
    """A paid path is billed when posted to, and closed to every other method."""
    assert routes.kind("POST", path) == "billed"
    for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "post", "WEBSOCKET"):
        assert routes.kind(method, path) == "refused"


@pytest.mark.parametrize("path", FREE)
def test_free_paths_are_free_by_get_only(path: str) -> None:
    """Lists of models and stored answers can be read, and nothing else."""
    routes.check("GET", path)
    for method in ("POST", "PUT", "PATCH", "DELETE", "get"):
        assert routes.kind(method, path) != "free"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", NOT_OFFERED)
def test_paid_kinds_without_a_bound_are_told(method: str, path: str) -> None:
    """Kinds of calls that cannot be held are a 400 that names what is offered."""
    if routes.kind(method, path) == "free":
        assert (method, path) == ("GET", "/v1/responses/compact")
        return
    with pytest.raises(BadRequest, match="/v1/chat/completions") as caught:
        routes.check(method, path)
    assert caught.value.code == "unsupported_endpoint"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "WEBSOCKET"])
@pytest.mark.parametrize("path", STRANGE)
def test_everything_else_is_forbidden(method: str, path: str) -> None:
    """A path that is not in our table to the letter is closed."""
    with pytest.raises(Refusal) as caught:
        routes.check(method, path)
    assert isinstance(caught.value, Forbidden | BadRequest)


@pytest.mark.parametrize("path", ["/v1/threads/x\n{}", "/x\u2028{}", "/x\x85\x1b[31m{}", "/api/v1/users\r{}"])
def test_a_refusal_is_one_line(path: str) -> None:
    """LiteLLM logs refusals: what a client wrote into the path ends no line of the log, and is not all shown."""
    for method in ("GET", "POST"):
        with pytest.raises(Refusal) as caught:
            routes.check(method, path.format("FORGED " + "x" * 9000))
        assert caught.value.message.isprintable()
        assert "FORGED" in caught.value.message
        assert len(caught.value.message) < 600
    assert routes.shown("/v1/ä/例") == "/v1/ä/例"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.name)
def test_each_call_type_is_one_endpoint(endpoint: routes.Endpoint) -> None:
    """The call type that LiteLLM names leads back to its endpoint."""
    assert routes.billed_call(endpoint.call_type) is endpoint


@pytest.mark.parametrize("call_type", ["aimage_generation", "atranscription", "completion", "", "pass_through_endpoint",
                                       "_arealtime", "acreate_batch", "mcp_call", "None"])  # fmt: skip
def test_every_other_call_type_is_refused(call_type: str) -> None:
    """What the table of call types does not know is not let through, whatever route it came by."""
    with pytest.raises(BadRequest):
        routes.billed_call(call_type)
