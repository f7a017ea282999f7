"""What LiteLLM's own router does keeps working beside the power levels, and what is left to it stays its own."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest

from tests.acceptance import sides
from tests.acceptance.asking import ask, asked, post, request
from tests.acceptance.bank import NOTHING, Account, Bank
from tests.acceptance.sides import ENDPOINTS, ORDERS, one, spread
from tests.proxy import Json, Proxy
from tests.upstream import Upstream

CHAT = ENDPOINTS["chat"].models
SETTINGS: Json = {"health": {"down_after": 1000, "degraded_below": 0}}
LONG = [{"role": "user", "content": "say 3 words " + "more " * 200}]
OVERFLOW = "This model's maximum context length is 10 tokens. However, your messages resulted in 900 tokens."


def models(url: str) -> list[Json]:
    made = [
        *spread("own", CHAT, url),
        *spread("theirs", CHAT, url),
        *spread("tagged", CHAT, url),
        # LiteLLM keeps the window by the model's name.
        *spread("windowed", {**CHAT, "east": "openai/gpt-4o"}, url),
        one("thin", "south", CHAT["south"], url),
        one("small", "south", CHAT["south"], url),
        one("dear", "west", CHAT["west"], url),
        one("large", "north", CHAT["north"], url),
    ]
    by_id = {each["model_info"]["id"]: each for each in made}
    for side in CHAT:
        by_id[f"dep-theirs-{side}"]["model_info"]["uc_routing"] = False
        # All of the weight is where no level would begin.
        by_id[f"dep-theirs-{side}"]["litellm_params"]["weight"] = 1 if side == "east" else 0
    for side in ("east", "west"):
        by_id[f"dep-tagged-{side}"]["litellm_params"]["tags"] = ["inside"]
    for side in ("north", "south", "west"):
        by_id[f"dep-windowed-{side}"]["model_info"]["max_input_tokens"] = 50
    return made


ROUTER: Json = {
    "disable_cooldowns": True,
    "enable_tag_filtering": True,
    "enable_pre_call_checks": True,
    "fallbacks": [{"thin": ["dear"]}],
    "context_window_fallbacks": [{"small": ["large"]}],
    "model_group_alias": {"nick": "own", "hidden-nick": {"model": "own", "hidden": True}},
    "model_group_retry_policy": {"theirs": {"InternalServerErrorRetries": 2}},
    "num_retries": 0,
}


@pytest.fixture(scope="module")
def proxy(running: Upstream, bank: Bank) -> Iterator[Proxy]:
    with sides.powered_proxy(bank.url, sides.config(running.url, models(running.url), **ROUTER), SETTINGS) as proxy:
        yield proxy


def ask_at(proxy: Proxy, account: Account, level: str, stream: bool = False, **fields: object) -> httpx.Response:
    path, body = request("chat", stream, **fields)
    return post(proxy, {**account.headers, "x-power-level": level}, path, body)


@pytest.mark.parametrize("level", ORDERS)
def test_left_to_litellm(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, level: str) -> None:
    """With `uc_routing: false` LiteLLM's weights decide at every level; the call is held, and charged by the level."""
    answers = [ask_at(proxy, account, level, model="theirs") for _ in range(4)]
    rows = bank.settled(account, 4)
    calls = asked(upstream)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert sides.hits(calls) == ["east"] * 4
    # The hold covers the dearest that LiteLLM might choose.
    assert all(Decimal(answer.headers["x-uc-credits-held"]) > 0 for answer in answers)
    assert [row["cost_credits"] for row in rows] == [sides.charge(call, level) for call in calls]


@pytest.mark.parametrize("stream", [False, True])
def test_retries_left_to_litellm(proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, stream: bool) -> None:
    """With `uc_routing: false` LiteLLM's own retries apply, and the call is paid once."""
    upstream.set_fault("status", status=500, times=2)
    answer = ask(proxy, account, "chat", stream, model="theirs")
    (row,) = bank.settled(account)
    calls = asked(upstream)
    assert (answer.status_code, sides.hits(calls)) == (200, ["east"] * 3)
    assert (row["attempts"], row["cost_credits"]) == (3, sides.charge(calls[-1], "balanced"))


def test_retries_are_not_ours(proxy: Proxy, upstream: Upstream, account: Account) -> None:
    """The same fault in a group that follows its plan goes on to the next provider each time."""
    upstream.set_fault("status", status=500, times=2)
    assert ask(proxy, account, "chat", model="own").status_code == 200
    assert tuple(sides.hits(asked(upstream))) == ORDERS["balanced"][:3]


@pytest.mark.parametrize(("level", "order"), [("eco", ("east", "west")), ("precision", ("west", "east"))])
def test_tags(proxy: Proxy, upstream: Upstream, account: Account, level: str, order: tuple[str, ...]) -> None:
    """LiteLLM's tags say which deployments may answer, the level says in which order."""
    upstream.set_fault("status", status=500)
    answer = ask_at(proxy, account, level, model="tagged", metadata={"tags": ["inside"]})
    assert (answer.status_code, tuple(sides.hits(asked(upstream)))) == (500, order)


@pytest.mark.parametrize("stream", [False, True])
def test_context_window(proxy: Proxy, upstream: Upstream, account: Account, stream: bool) -> None:
    """LiteLLM's pre-call checks leave out deployments whose context window is too small, and only those."""
    upstream.set_fault("status", status=500)
    answer = ask_at(proxy, account, "eco", stream, model="windowed", messages=LONG)
    assert (answer.status_code, sides.hits(asked(upstream))) == (500, ["east"]), answer.text
    upstream.reset()
    assert ask_at(proxy, account, "eco", stream, model="windowed").status_code == 200
    assert sides.hits(asked(upstream)) == ["north"]


@pytest.mark.parametrize("alias", ["nick", "hidden-nick"])
@pytest.mark.parametrize("level", ORDERS)
def test_aliases(proxy: Proxy, upstream: Upstream, account: Account, level: str, alias: str) -> None:
    """An alias of a group follows the level as the group does."""
    upstream.set_fault("status", status=500)
    assert ask_at(proxy, account, level, model=alias).status_code == 500
    assert tuple(sides.hits(asked(upstream))) == ORDERS[level]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("group", "status", "message", "other"),
    [("thin", 500, "Out of order.", "dear"), ("small", 400, OVERFLOW, "large")],
)
def test_fallbacks(
    proxy: Proxy, upstream: Upstream, bank: Bank, account: Account, group: str, status: int, message: str, other: str,
    stream: bool,
) -> None:  # fmt: skip
    """A group's configured fallbacks answer when it cannot, within the hold, at their own price."""
    match = {"api_key": sides.key(group, "south")}
    upstream.set_fault("status", status=status, message=message, match=match)
    answer = ask_at(proxy, account, "balanced", stream, model=group)
    (row,) = bank.settled(account)
    calls = asked(upstream)
    assert answer.status_code == 200, answer.text
    keys = [sides.key(group, "south"), sides.key(other, sides.side_of(calls[1]))]
    assert [call["api_key"] for call in calls] == keys
    assert row["cost_credits"] == sides.charge(calls[1], "balanced") > NOTHING
    assert row["cost_credits"] <= Decimal(answer.headers["x-uc-credits-held"])


def test_our_strategy_is_installed_by_itself(proxy: Proxy, upstream: Upstream, account: Account) -> None:
    """The operator's two lines are enough: what the router needs is set by the plugin, and said in the log."""
    assert ask(proxy, account, "chat", model="own").status_code == 200
    log = proxy.log()
    assert "the power-level strategy decides who answers" in log
    assert "max_fallbacks is" in log
    assert "DEFAULT_MAX_RETRIES is 0" in log
