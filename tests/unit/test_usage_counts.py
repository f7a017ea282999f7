"""What LiteLLM counts for the limits of deployments, with ours in its router: the same, asked for less often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from litellm import Router

from uc_litellm_plugin import usage_counts
from uc_litellm_plugin.usage_counts import UsageCounts

pytestmark = pytest.mark.skipif(
    hasattr(Router, "_deployment_tracks_usage"),
    reason="this LiteLLM remembers by itself, and ours is not in its router",
)


class Clock:
    """Monotonic seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_router(**params: Any) -> Router:
    limited = {"model": "openai/gpt-4o-mini", "api_key": "none", "mock_response": "Hello.", **params}
    return Router(model_list=[{"model_name": "group", "litellm_params": limited, "model_info": {"id": "one"}}])


def ours(router: Router, clock: Callable[[], float]) -> UsageCounts:
    """Ours on a router, by a clock of the test's."""
    return UsageCounts(router._increment_deployment_usage, clock)


async def counted(counts: UsageCounts, tokens: float = 10, requests: int = 1) -> str | None:
    return await counts.increment(
        deployment_id="one", deployment_name="openai/gpt-4o-mini", model_group="group", total_tokens=tokens,
        rpm_increment=requests, parent_otel_span=None,
    )  # fmt: skip


def looked_up(router: Router, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each time that the facts of a deployment are gathered."""
    seen: list[str] = []
    stock = router.get_router_model_info

    def facts(*args: Any, **kwargs: Any) -> Any:
        seen.append("facts")
        return stock(*args, **kwargs)

    monkeypatch.setattr(router, "get_router_model_info", facts)
    return seen


async def test_an_unlimited_deployment_is_looked_up_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment without limits is looked up for the first of a second's calls, and again in the next second."""
    router, clock = a_router(), Clock()
    counts, seen = ours(router, clock), looked_up(router, monkeypatch)
    assert [await counted(counts) for _ in range(5)] == [None] * 5
    assert len(seen) == 1
    clock.now += 1
    await counted(counts)
    assert len(seen) == 2


@pytest.mark.parametrize("limit", [{"rpm": 100}, {"tpm": 100_000}, {"itpm": 5, "otpm": 5}], ids=["rpm", "tpm", "io"])
async def test_a_limited_deployment_is_counted_as_ever(limit: dict[str, int]) -> None:
    """Of a deployment with a limit every call is counted, under the same keys and to the same sums as LiteLLM's own."""
    mine, stock = a_router(**limit), a_router(**limit)
    counts = ours(mine, Clock())
    for tokens in (10, 20, 0):
        key = await counted(counts, tokens)
        assert key is not None
        assert await counted(UsageCounts(stock._increment_deployment_usage, Clock()), tokens) is not None
    assert await mine.cache.async_get_cache(key) == await stock.cache.async_get_cache(key) == 30


async def test_nothing_to_count_says_nothing_of_limits() -> None:
    """A call that has nothing to count does not make its deployment pass for an unlimited one."""
    counts = ours(a_router(rpm=100), Clock())
    assert await counted(counts, tokens=0, requests=0) is None
    assert await counted(counts) is not None


async def test_a_new_limit_counts_from_the_next_second_on() -> None:
    """A limit that a deployment gets while calls are under way is counted for a second later at the latest."""
    router, clock = a_router(), Clock()
    counts = ours(router, clock)
    assert await counted(counts) is None
    router.model_list[0]["litellm_params"]["rpm"] = 100
    clock.now += 1
    assert await counted(counts) is not None


async def test_a_failure_is_litellms_and_not_remembered() -> None:
    """What goes wrong in LiteLLM's own count is raised as it is, and the next call is counted."""
    answers: list[Any] = [RuntimeError("no cache"), "key"]

    async def count(**_: Any) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    counts = UsageCounts(count, Clock())
    with pytest.raises(RuntimeError, match="no cache"):
        await counted(counts)
    assert await counted(counts) == "key"


async def test_calls_through_the_router_are_counted() -> None:
    """With ours in its place a router counts the calls of its limited deployment, and no others, where it should."""
    router = a_router(rpm=100)
    usage_counts.install(router)
    message = [{"role": "user", "content": "Hello?"}]
    await asyncio.gather(*(router.acompletion(model="group", messages=message) for _ in range(3)))
    (requests,) = [value for key, value in router.cache.in_memory_cache.cache_dict.items() if ":rpm:" in key]
    assert requests == 3


@pytest.mark.parametrize("other", [{"_deployment_tracks_usage": lambda: True}, {"_increment_deployment_usage": None}],
                         ids=["remembers", "moved"])  # fmt: skip
def test_another_litellm_is_left_alone(other: dict[str, Any]) -> None:
    """A router that remembers by itself, or counts in another way, keeps its own."""
    router = a_router()
    for name, value in other.items():
        setattr(router, name, value)
    before = router._increment_deployment_usage
    usage_counts.install(router)
    assert router._increment_deployment_usage == before
