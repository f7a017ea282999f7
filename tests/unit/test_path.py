"""The path by which a request is let through is the one that the application as a whole routes."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request

from uc_litellm_plugin.identity import path_of


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/v1/models"}, "/v1/models"),
        ({"path": "/genai/v1/models", "root_path": "/genai"}, "/v1/models"),
        ({"path": "/genai/v1/models", "root_path": "/genai/"}, "/v1/models"),
        ({"path": "/genai", "root_path": "/genai"}, "/"),
        ({"path": "/genaiv1/models", "root_path": "/genai"}, "/genaiv1/models"),
        ({"path": "/mcp/v1/models", "root_path": "/mcp", "app_root_path": ""}, "/mcp/v1/models"),
        ({"path": "/genai/mcp/v1/models", "root_path": "/genai/mcp", "app_root_path": "/genai"}, "/mcp/v1/models"),
    ],
)
def test_path(scope: dict[str, Any], path: str) -> None:
    """A prefix of the whole proxy is cut off, by whole segments; a mount within it, as LiteLLM's MCP is, stays."""
    assert path_of(Request({"type": "http", "method": "GET", "headers": [], **scope})) == path
