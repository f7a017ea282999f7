"""LiteLLM's counts of what each deployment uses per minute, kept for those alone that have a limit on it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

_METHOD = "_increment_deployment_usage"
# LiteLLM 1.109 remembers for itself which deployments have limits.
_REMEMBERED_BY_LITELLM = "_deployment_tracks_usage"
_REMEMBERED_S = 1.0


class UsageCounts:
    """Asks LiteLLM to count, but not for a deployment of which it has just found that nothing is to be counted.

    Before 1.109 the router gathers all facts of a deployment, twice per call and with a deep copy, to look whether it
    has a `tpm` or `rpm` (litellm/router.py, `_increment_deployment_usage`): one part in fifteen of a plain call. What
    is counted stays the same, but that a limit which was just added counts from the next second on.

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
        self._known_until = 0.0

    async def increment(
        self, *, deployment_id: str, model_group: str, total_tokens: float, rpm_increment: int, **rest: Any
    ) -> str | None:
        """Count a call; the same arguments and the same answer as the router's own method."""
        if (now := self._clock()) >= self._known_until:
            self._unlimited.clear()
            self._known_until = now + _REMEMBERED_S
        asked = (deployment_id, model_group)
        if asked in self._unlimited:
            return None
        counted = await self._count(
            deployment_id=deployment_id, model_group=model_group, total_tokens=total_tokens,
            rpm_increment=rpm_increment, **rest,
        )  # fmt: skip
        if counted is None and (total_tokens > 0 or rpm_increment > 0):
            self._unlimited.add(asked)
        return counted


def install(router: Any) -> None:
    """Put it on a router whose LiteLLM does not remember by itself; one that counts in another way is left alone."""
    count = getattr(router, _METHOD, None)
    if inspect.iscoroutinefunction(count) and not hasattr(router, _REMEMBERED_BY_LITELLM):
        setattr(router, _METHOD, UsageCounts(count).increment)
