"""Refusals as LiteLLM's exception handlers want them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from litellm.proxy._types import ProxyException

from . import routes
from .errors import DatabaseError, LedgerUnavailable, Refusal, Unexpected

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


@contextmanager
def refusing(call_type: str) -> Iterator[None]:
    """Turn whatever keeps a call from its provider into a refusal that LiteLLM passes on.

    Raises
    ------
    Refused
    """
    try:
        yield
    except Refusal as refusal:
        raise Refused(refusal, call_type) from None
    except DatabaseError as error:
        raise Refused(unreachable(error), call_type) from None
    except Exception as error:
        # LiteLLM would show the text of an unknown exception to the client.
        logger.exception("a call could not be admitted")
        raise Refused(Unexpected(), call_type) from error


def unreachable(error: DatabaseError) -> LedgerUnavailable:
    """What a client is told when PostgreSQL cannot be asked; the log has the reason."""
    logger.error("refused, since the database cannot be asked: %s", error, extra={"action": "database_unavailable"})
    return LedgerUnavailable("The credit ledger cannot be reached; please try again shortly.")
