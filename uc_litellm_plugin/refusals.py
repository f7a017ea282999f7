"""Refusals as LiteLLM's exception handlers want them."""

from __future__ import annotations

import json
import logging
from typing import Any

from litellm.proxy._types import ProxyException

from . import routes
from .errors import DatabaseError, LedgerUnavailable, Refusal

logger = logging.getLogger(__name__)


class Refused(ProxyException):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """A refusal as LiteLLM's exception handlers want it; its body is ours.

    A message that already is an Anthropic error passes through LiteLLM's mapping unchanged
    (litellm/anthropic_interface/exceptions/exception_mapping_utils.py, `transform_to_anthropic_error`).
    """

    def __init__(self, refusal: Refusal, call_type: str | None = None) -> None:
        anthropic = call_type == routes.MESSAGES.call_type
        super().__init__(
            message=json.dumps(refusal.anthropic_body()) if anthropic else refusal.message,
            type=refusal.type,
            param=refusal.param,
            code=refusal.status,
            headers=dict(refusal.headers),
        )
        # Older releases take the status from here on some routes (1.100: /v1/completions).
        self.status_code = refusal.status
        self._error = refusal.error()

    def to_dict(self) -> dict[str, Any]:
        return self._error


def unreachable(error: DatabaseError) -> LedgerUnavailable:
    """What a client is told when PostgreSQL cannot be asked; the log has the reason."""
    logger.error("refused, since the database cannot be asked: %s", error, extra={"action": "database_unavailable"})
    return LedgerUnavailable("The credit ledger cannot be reached; please try again shortly.")
