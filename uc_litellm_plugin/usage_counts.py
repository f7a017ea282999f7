"""LiteLLM's counts of what calls use of a deployment per minute, not asked for where it has just found no limit."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

from .contract import release

_METHOD = "_increment_deployment_usage"
_PARAMETERS = {"deployment_id", "deployment_name", "model_group", "total_tokens", "rpm_increment", "parent_otel_span"}
# From here on LiteLLM remembers by itself which deployments have limits.
_REMEMBERS_SINCE = (1, 109)
_BELIEVED_S = 1.0


class UsageCounts:
    """Asks one router to count, but not for a deployment of which it has just found that nothing is to be counted.

    Before 1.109 a router gathers all facts of a deployment, twice per call and with a deep copy, to look whether it has
    any limit per minute (litellm/router.py, `_increment_deployment_usage`): one part in thirteen of what a plain call
    takes. What is counted stays the same, but that a limit, or a deployment, that has just been added counts from the
    next second on.

    Parameters
    ----------
    count
        The router's own method; returns None where it has counted nothing.
    clock
        Monotonic. Seconds.
    """

    def __init__(
        self, count: Callable[..., Awaitable[str | None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._clock = clock
        self._unlimited: set[tuple[str, str]] = set()
        self._believed_until = 0.0

    async def increment(
        self, *, deployment_id: str, model_group: str, total_tokens: float, rpm_increment: int, **rest: Any
    ) -> str | None:
        """Count a call; the same arguments and the same answer as the router's own method."""
        if (now := self._clock()) >= self._believed_until:
            self._unlimited.clear()
            self._believed_until = now + _BELIEVED_S
        asked = (deployment_id, model_group)
        if asked in self._unlimited:
            return None
        counted = await self._count(
            deployment_id=deployment_id, model_group=model_group, total_tokens=total_tokens,
            rpm_increment=rpm_increment, **rest,
        )  # fmt: skip
        if counted is None and (rpm_increment > 0 or total_tokens > 0):
            self._unlimited.add(asked)
        return counted


def install(router: Any) -> None:
    """Put it on a router, unless its LiteLLM remembers by itself or counts in another way than we know."""
    count = getattr(router, _METHOD, None)
    if release(metadata.version("litellm")) >= _REMEMBERS_SINCE or not inspect.iscoroutinefunction(count):
        return
    if inspect.signature(count).parameters.keys() == _PARAMETERS:
        setattr(router, _METHOD, UsageCounts(count).increment)
