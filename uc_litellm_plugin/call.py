"""One client request while it is under way: who asked, what it may use and cost, what was tried, how it ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .demand import Demand
from .plan import Candidate, Plan
from .pricing import ZERO
from .routes import Endpoint
from .tokens import Tokenizer, input_estimate


@dataclass(frozen=True)
class Caller:
    """Who pays for a call, from authentication only.

    Attributes
    ----------
    user_id
        The account.
    tier, power_level
        The account's.
    role
        Of the API key: user, service or admin.
    api_key_id, api_key_name
        Our API key's, None for LiteLLM's own keys.
    """

    user_id: str
    tier: str
    power_level: str
    role: str = "user"
    api_key_id: str | None = None
    api_key_name: str | None = None


@dataclass(frozen=True)
class Names:
    """What the client calls things; all of it cleaned, none of it trusted."""

    app: str | None = None
    session: str | None = None
    request: str | None = None
    user_agent: str | None = None
    ip_address: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a call ended in the ledger.

    Attributes
    ----------
    charged
        Credits, 0 for a release.
    remaining
        The balance after it, None when the record is in the outbox and nobody knows yet.
    """

    charged: Decimal
    remaining: Decimal | None


@dataclass
class Attempt:
    """One try at one deployment."""

    candidate: Candidate
    started: float = field(default_factory=time.monotonic)
    failed: bool = False


@dataclass(eq=False)
class Call:
    """A held call; the only mutable state of a request, shared by all its hooks through a ContextVar."""

    caller: Caller
    endpoint: Endpoint
    plan: Plan
    model: str
    names: Names
    streamed: bool
    wants_usage: bool
    demand: Demand
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    held: Decimal = ZERO
    cap: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    response_id: str | None = None
    ending: asyncio.Future[Outcome] | None = None
    listening: bool = False
    cached: bool = False

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def under_way(self) -> bool:
        """Whether a provider has the request, or has answered it; not while LiteLLM waits to try again."""
        return self.attempt is not None and not self.attempt.failed

    @property
    def answering(self) -> Candidate | None:
        """The deployment of the latest attempt."""
        return self.attempts[-1].candidate if self.attempts else None

    def begin(self, candidate: Candidate) -> None:
        """Note an attempt. LiteLLM announces one twice when it translates between two providers' dialects."""
        latest = self.attempt
        if latest is None or latest.failed or latest.candidate.deployment != candidate.deployment:
            self.attempts.append(Attempt(candidate))

    @property
    def reasons_unseen(self) -> bool:
        """Whether the model may spend output tokens that its stream does not show.

        Claude reasons only when asked; the other models that can, do.
        """
        candidate = self.answering
        if candidate is None or not candidate.reasons:
            return False
        return self.demand.reasoning_asked or "claude" not in candidate.model

    def estimated_input(self, tokenizer: Tokenizer) -> int:
        """Input tokens to charge where the provider did not say."""
        candidate = self.answering
        model, context = (candidate.model, candidate.context) if candidate else (self.model, None)
        return input_estimate(self.demand, tokenizer, model, context)

    def output_cap(self, candidate: Candidate) -> int:
        """The cap for one candidate: the held one, or the model's own limit where that is smaller."""
        return min(self.cap, candidate.max_output or self.cap)

    def headers(self) -> dict[str, str]:
        """What a client is told in HTTP headers; what was charged, once it is."""
        candidate = self.answering
        headers = {
            "x-uc-request-id": str(self.id),
            "x-uc-credits-held": f"{self.held:f}",
            "x-uc-power-level": self.plan.terms.power_level,
            "x-uc-byok": "false",
        }
        if candidate is not None:
            headers["x-uc-provider"] = candidate.provider
        if self.cap:
            headers["x-uc-max-output-tokens"] = str(self.cap)
        if self.ending is not None and self.ending.done() and not self.ending.cancelled():
            outcome = self.ending.result()
            headers["x-uc-credits-charged"] = f"{outcome.charged:f}"
            if outcome.remaining is not None:
                headers["x-uc-credits-remaining"] = f"{outcome.remaining:f}"
        return headers

    def latency_ms(self) -> int:
        """Milliseconds since the request came in."""
        return round((time.monotonic() - self.started) * 1000)

    def time_to_first_token_ms(self) -> int | None:
        """Milliseconds from the start of the answering attempt to its first output, None before that."""
        if self.first_token is None or self.attempt is None:
            return None
        return round((self.first_token - self.attempt.started) * 1000)

    def saw_output(self) -> None:
        """Note the time of the first output."""
        if self.first_token is None:
            self.first_token = time.monotonic()


# Set in the pre-call hook and seen by every later hook of the same request, in child tasks and the logging worker too.
CURRENT: ContextVar[Call | None] = ContextVar("uc_call", default=None)


@dataclass(frozen=True)
class Answer:
    """What a provider delivered, as the settlement needs it.

    Attributes
    ----------
    usage
        The provider's usage object, or an estimate in its shape.
    source
        `usage` when the provider reported it, `estimate` when we counted, `cache` when LiteLLM answered from its cache.
    status
        The HTTP status the client got, 499 when it left.
    error_type, error_message
        Set when the answer was cut.
    """

    usage: Mapping[str, Any]
    source: str
    status: int = 200
    error_type: str | None = None
    error_message: str | None = None
    service_tier: str | None = None
