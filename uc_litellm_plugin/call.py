"""One client request while it is under way: who asked, what it may use and cost, what was tried, how it ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, Protocol

from . import answers
from .demand import Demand
from .plan import Candidate, Plan
from .power import PowerLevel
from .prices import ZERO
from .ranking import LeftOut, Option
from .requests import Inbound
from .routes import Endpoint
from .tokens import input_estimate
from .wish import Wish


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
    downgrade
        Whether a cheaper level is tried when the hold does not fit at the wished one.
    acted_by
        Who acts for the account with a service's or an administrator's key or token; None for its own holder.
    """

    user_id: str
    tier: str
    power_level: str
    role: str = "user"
    api_key_id: str | None = None
    api_key_name: str | None = None
    downgrade: bool = False
    acted_by: str | None = None


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


@dataclass(frozen=True)
class Route:
    """How the order of a plan came about.

    Attributes
    ----------
    level
        The power level the call runs at.
    wish
        What the request asked for.
    wished
        The level it would have run at with more credits; the same one unless it was downgraded.
    options
        The candidates in order, with what was known of each.
    left_out
        Those that may not be used, and why.
    """

    level: PowerLevel
    wish: Wish
    wished: str
    options: tuple[Option, ...]
    left_out: tuple[LeftOut, ...] = ()


@dataclass
class Attempt:
    """One try at one deployment."""

    candidate: Candidate
    started: float = field(default_factory=time.monotonic)
    failed: bool = False
    # What the provider's health has heard of it.
    verdict: Literal["succeeded", "failed", "abandoned"] | None = None


class Delivery(Protocol):
    """A stream on its way to the client, which may end before its end."""

    async def cut_off(self, status: int, error: str) -> None:
        """Somebody on the way breaks it off, with this status and kind of error."""

    async def left(self) -> None:
        """Nobody takes it any more."""


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
    inbound: Inbound
    route: Route
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    held: Decimal = ZERO
    cap: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    response_id: str | None = None
    ending: asyncio.Future[Outcome] | None = None
    delivery: Delivery | None = None
    # Settles a plain answer that only the log has seen, once the request is over.
    unseen: Callable[[], Coroutine[Any, Any, Outcome]] | None = None
    over: bool = False
    cached: bool = False
    tried: set[str] = field(default_factory=set)
    failure: Exception | None = None

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

    def begin(self, candidate: Candidate) -> bool:
        """Note an attempt; False if it is noted: LiteLLM announces one twice when it translates between dialects."""
        latest = self.attempt
        if latest is not None and not latest.failed and latest.candidate.deployment == candidate.deployment:
            return False
        # LiteLLM may go on from an answer, too (`content_policy_fallbacks`).
        self.unseen = None
        self.attempts.append(Attempt(candidate))
        return True

    def next(self) -> Candidate | None:
        """The first candidate of the plan that has not been tried, None when all have been."""
        return next((each for each in self.plan.candidates if each.deployment not in self.tried), None)

    @property
    def reasons_unseen(self) -> bool:
        """Whether the model may spend output tokens that its stream does not show.

        Claude reasons only when asked; the other models that can, do.
        """
        candidate = self.answering
        if candidate is None or not candidate.reasons:
            return False
        return self.demand.reasoning_asked or "claude" not in candidate.model

    def estimated_input(self, counted: int) -> int:
        """Input tokens to charge where the provider did not say, by the count of the request's text."""
        candidate = self.answering
        model, context = (candidate.model, candidate.context) if candidate else (self.model, None)
        return input_estimate(self.demand, counted, model, context)

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
            "x-uc-byok": str(candidate is not None and candidate.own_key is not None).lower(),
        }
        if self.route.wished != self.plan.terms.power_level:
            headers["x-uc-power-level-wished"] = self.route.wished
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

    @cached_property
    def tokens(self) -> Mapping[str, int]:
        """The usage as the columns of a usage row."""
        return answers.tokens(self.usage)

    def is_half(self, text: Callable[[], str]) -> bool:
        """Whether the usage leaves out its input, or the output of an answer that has any text."""
        return not self.tokens["prompt_tokens"] or (not self.tokens["completion_tokens"] and bool(text()))
