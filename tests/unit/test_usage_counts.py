"""What LiteLLM counts for the limits of deployments, with ours in its router: the same, asked for less often."""

from __future__ import annotations

import asyncio
from collections import Counter
from importlib import metadata
from typing import Any

import litellm
import pytest
from litellm import Router

from tests.clock import Clock
from uc_litellm_plugin import strategy, usage_counts
from uc_litellm_plugin.contract import release
from uc_litellm_plugin.strategy import Strategy
from uc_litellm_plugin.usage_counts import UsageCounts

REMEMBERS = release(metadata.version("litellm")) >= (1, 109)
where_it_is_used = pytest.mark.skipif(REMEMBERS, reason="this LiteLLM remembers by itself")
COUNT = "_increment_deployment_usage"


def deployment(number: str, group: str = "group", **params: Any) -> dict[str, Any]:
    made = {"model": "openai/gpt-4o-mini", "api_key": "none", "mock_response": "Hello.", **params}
    return {"model_name": group, "litellm_params": made, "model_info": {"id": number}}


def a_router(**params: Any) -> Router:
    return Router(model_list=[deployment("one", **params)])


def ours(router: Router, clock: Clock | None = None) -> UsageCounts:
    """Ours before a router's own method, by a clock of the test's."""
    return UsageCounts(getattr(router, COUNT), clock or Clock())


async def counted(
    counts: UsageCounts, tokens: float = 10, requests: int = 1, number: str = "one", group: str = "group"
) -> str | None:
    return await counts.increment(
        deployment_id=number, deployment_name="openai/gpt-4o-mini", model_group=group, total_tokens=tokens,
        rpm_increment=requests, parent_otel_span=None,
    )  # fmt: skip


def sums(router: Router) -> Counter[str]:
    """What the router has counted, by kind, in whichever minute."""
    found: Counter[str] = Counter()
    for key, value in router.cache.in_memory_cache.cache_dict.items():
        for kind in ("tpm", "rpm"):
            found[kind] += value if f":{kind}:" in key else 0
    return found


def looked_up(router: Router, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each time that the facts of a deployment are gathered."""
    seen: list[str] = []
    stock = router.get_router_model_info

    def facts(*args: Any, **kwargs: Any) -> Any:
        seen.append("facts")
        return stock(*args, **kwargs)

    monkeypatch.setattr(router, "get_router_model_info", facts)
    return seen


@where_it_is_used
async def test_an_unlimited_deployment_is_looked_up_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment without limits is looked up for the first of a second's calls, and again in the next second."""
    router, clock = a_router(), Clock()
    counts, seen = ours(router, clock), looked_up(router, monkeypatch)
    for tokens, requests in ((10, 1), (0, 1), (10, 0), (0, 0)):
        assert await counted(counts, tokens, requests) is None
    assert len(seen) == 1
    clock.now += 0.99
    await counted(counts)
    assert len(seen) == 1
    clock.now += 0.01
    await counted(counts)
    assert len(seen) == 2


@where_it_is_used
@pytest.mark.parametrize(("tokens", "requests"), [(0, 1), (10, 0)], ids=["request", "tokens"])
async def test_whatever_was_to_be_counted_tells(tokens: int, requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's begin counts a request without tokens, its end tokens without a request: each tells of no limit."""
    router = a_router()
    counts, seen = ours(router), looked_up(router, monkeypatch)
    for _ in range(2):
        await counted(counts, tokens, requests)
    assert len(seen) == 1


@where_it_is_used
@pytest.mark.parametrize("limit", [{"rpm": 100}, {"tpm": 100_000}, {"itpm": 5, "otpm": 5}], ids=["rpm", "tpm", "io"])
async def test_a_limited_deployment_is_counted_as_ever(limit: dict[str, int]) -> None:
    """Of a deployment with a limit every call is counted, to the same sums as LiteLLM's own."""
    mine, stock = a_router(**limit), a_router(**limit)
    counts = ours(mine)
    for tokens in (10, 20, 0):
        assert await counted(counts, tokens) is not None
        await counted(UsageCounts(getattr(stock, COUNT), Clock()), tokens)
    assert sums(mine) == sums(stock) == {"tpm": 30, "rpm": 3}


@where_it_is_used
async def test_limits_are_each_deployments_own() -> None:
    """What is believed of one deployment is believed of no other, of no other group and of no other router."""
    listed = [deployment("one"), deployment("two", rpm=100), deployment("one-b", "other", rpm=100)]
    router = Router(model_list=listed)
    counts, another = ours(router), ours(a_router(rpm=100))
    assert await counted(counts) is None
    assert await counted(counts, number="two") is not None
    assert await counted(counts, number="one-b", group="other") is not None
    assert await counted(another) is not None


async def test_a_group_is_asked_for_by_itself() -> None:
    """A deployment that several groups share is looked at for each: a wildcard's facts depend on what was asked."""
    asked: list[str] = []

    async def count(**given: Any) -> None:
        asked.append(given["model_group"])

    counts = UsageCounts(count, Clock())
    for group in ("a", "b", "a"):
        await counted(counts, group=group)
    assert asked == ["a", "b"]


@where_it_is_used
async def test_nothing_to_count_says_nothing_of_limits() -> None:
    """A call that has nothing to count does not make its deployment pass for an unlimited one."""
    counts = ours(a_router(rpm=100))
    assert await counted(counts, tokens=0, requests=0) is None
    assert await counted(counts) is not None


@where_it_is_used
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


async def test_calls_through_the_router_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that our strategy was put on counts the calls of its limited deployment, with ours in it or without."""
    for name in ("DEFAULT_MAX_RETRIES", "expose_router_debug_in_errors"):
        monkeypatch.setattr(litellm, name, getattr(litellm, name))  # Put back what the strategy sets.
    router = a_router(rpm=100)
    before = getattr(router, COUNT)
    strategy.install(router, Strategy(claim_probe=lambda _: True, latency_timeout=False))
    assert (getattr(router, COUNT) == before) == REMEMBERS
    message = [{"role": "user", "content": "Hello?"}]
    await asyncio.gather(*(router.acompletion(model="group", messages=message) for _ in range(3)))
    assert sums(router)["rpm"] == 3


@where_it_is_used
def test_it_is_installed_once() -> None:
    """To install it again changes nothing: two of them would believe for two seconds."""
    router = a_router()
    usage_counts.install(router)
    first = getattr(router, COUNT)
    usage_counts.install(router)
    assert getattr(router, COUNT) == first


async def _asks_for_more(*, deployment_id: str, **_: Any) -> str:
    return deployment_id


def _is_no_coroutine(
    *, deployment_id: str, deployment_name: str, model_group: str, total_tokens: float, rpm_increment: int,
    parent_otel_span: Any,
) -> str:  # fmt: skip
    return deployment_id


@pytest.mark.parametrize("other", [_asks_for_more, _is_no_coroutine, None], ids=["signature", "function", "none"])
def test_another_way_of_counting_is_left_alone(other: Any) -> None:
    """A router that counts in another way than we know keeps its own."""
    router = a_router()
    setattr(router, COUNT, other)
    usage_counts.install(router)
    assert getattr(router, COUNT) is other


def test_a_newer_litellm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1.109 on LiteLLM remembers by itself, whatever its method looks like."""
    router = a_router()
    before = getattr(router, COUNT)
    monkeypatch.setattr(metadata, "version", lambda _: "1.109.0")
    usage_counts.install(router)
    assert getattr(router, COUNT) == before
