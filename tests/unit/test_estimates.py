from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from tests.unit.recordings import RECORDINGS, Player, Recording
from tests.unit.samples import held_call
from tests.unit.tills import Till, all_dialects, all_of, at_every_event, playing, words
from uc_litellm_plugin import departures, tokens
from uc_litellm_plugin.call import Call
from uc_litellm_plugin.estimates import Estimate
from uc_litellm_plugin.tokens import Tokenizer
from uc_litellm_plugin.vocabularies import Whole

PART = Estimate("one two three", status=499, error_type="client_disconnected")
COUNTS = ("prompt_tokens", "completion_tokens", "cost_source", "status_code", "error_type", "error_message")


class Loading:
    """Vocabularies on their way, until they have come."""

    def __init__(self) -> None:
        self._come = threading.Event()
        self.begun = threading.Event()
        self.till = Till(Whole(self._load))

    def _load(self) -> Tokenizer:
        self.begun.set()
        assert self._come.wait(60)
        return words

    def come(self) -> None:
        self._come.set()


@pytest.fixture
def loading() -> Loading:
    return Loading()


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def ended(call: Call, till: Till) -> None:
    async def charged() -> None:
        while not till.records:
            await asyncio.sleep(0.001)
        assert call.ending is not None
        await call.ending

    await asyncio.wait_for(charged(), 60)


def charged(till: Till) -> tuple[Any, ...]:
    """What a record was charged for, all but the times in it."""
    return till.record["charge"], *(till.record["usage"][name] for name in COUNTS)


async def left_at(at: int, recording: Recording, till: Till) -> tuple[Call, asyncio.Task[Any]]:
    """A stream whose client leaves while it waits for an event."""
    call = held_call(recording.endpoint)
    player = Player(recording.events, hangs_before=at)
    task = asyncio.ensure_future(all_of(playing(call, till, player)))
    await player.hangs.wait()
    task.cancel()
    return call, task


@at_every_event()
async def test_leaving_costs_the_same_while_they_load(recording: Recording, at: int, loading: Loading) -> None:
    """A stream that its client leaves at any event is charged once, and the same as with vocabularies at hand."""
    at_hand = Till()
    _, task = await left_at(at, recording, at_hand)
    await asyncio.wait([task])
    call, task = await left_at(at, recording, loading.till)
    await turns()
    loading.come()
    await asyncio.wait([task])
    await ended(call, loading.till)
    assert charged(loading.till) == charged(at_hand)


@all_dialects()
async def test_leaving_while_they_load_for_a_whole_stream(recording: Recording, loading: Loading) -> None:
    """Who leaves between the end of a stream without a usage and its charge is charged once, as whoever stays."""
    events = recording.events[: recording.complete]
    stays = Till()
    await all_of(playing(held_call(recording.endpoint), stays, Player(events)))
    call = held_call(recording.endpoint)
    task = asyncio.ensure_future(all_of(playing(call, loading.till, Player(events))))
    await asyncio.to_thread(loading.begun.wait, 60)
    for _ in range(3):
        task.cancel()
        await turns()
    assert loading.till.records == []
    loading.come()
    await asyncio.wait([task])
    await ended(call, loading.till)
    assert charged(loading.till) == charged(stays)


@pytest.mark.parametrize("again", ["left", "cut_off", "release", "estimate", "closed"])
async def test_a_second_hook_while_they_load(again: str, loading: Loading) -> None:
    """Whatever comes while the first estimate is counted waits for it, and ends nothing of its own."""
    call, till = held_call(), loading.till
    stream = playing(call, till, Player(RECORDINGS["chat"]().events))
    for _ in range(3):
        await anext(stream)
    first = asyncio.ensure_future(till.estimates.charge(call, PART))
    await asyncio.to_thread(loading.begun.wait, 60)
    assert call.ending is not None
    assert call.delivery is not None
    second = asyncio.ensure_future({
        "left": call.delivery.left,
        "cut_off": lambda: call.delivery.cut_off(500, "cut"),
        "release": lambda: till.settlement.release(call, 500, "late hook"),
        "estimate": lambda: till.estimates.charge(call, Estimate("more words than it was", status=500)),
        "closed": stream.aclose,  # type: ignore[attr-defined]  # A generator, typed as what it yields.
    }[again]())  # fmt: skip
    await turns()
    assert not second.done()
    loading.come()
    await asyncio.wait([first, second])
    assert second.exception() is None
    assert till.ending == ("settle", "estimate", 499)
    assert (await first).charged == call.ending.result().charged


async def test_nobody_waits_any_more(loading: Loading) -> None:
    """Every waiting hook is cancelled while they load: the charge is made all the same, once."""
    call, till = held_call(), loading.till
    waiting = [asyncio.ensure_future(till.estimates.charge(call, PART)) for _ in range(3)]
    await asyncio.to_thread(loading.begun.wait, 60)
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    loading.come()
    await ended(call, till)
    assert till.ending == ("settle", "estimate", 499)


async def test_the_end_of_the_worker_waits_for_the_charge(loading: Loading) -> None:
    """What a worker waits for when it stops, the endings of its calls, is done when the charge is."""
    call, till = held_call(), loading.till
    waiting = asyncio.ensure_future(till.estimates.charge(call, PART))
    await turns()
    ending = call.ending
    assert ending is not None
    waiting.cancel()
    loading.come()
    await asyncio.wait([ending])
    assert till.ending == ("settle", "estimate", 499)


async def test_a_request_that_is_over_while_they_load(loading: Loading) -> None:
    """A request that is cancelled before its answer is charged its input, though nobody is left to wait for it."""
    call, till = held_call(streamed=False), loading.till

    async def request() -> None:
        departures.watch(call, till.settlement, till.estimates)
        await asyncio.Event().wait()

    task = asyncio.ensure_future(request())
    await turns()
    task.cancel()
    await asyncio.to_thread(loading.begun.wait, 60)
    loading.come()
    await ended(call, till)
    assert till.ending == ("settle", "estimate", 499)
    assert till.record["usage"]["prompt_tokens"] > 0


async def test_a_count_that_fails_leaves_the_call_open() -> None:
    """Where counting itself fails the fault is told, and another hook can still end the call."""

    def fails(text: str) -> int:
        raise ValueError("no such text")

    till, call = Till(Whole(lambda: fails)), held_call()
    with pytest.raises(ValueError, match="no such text"):
        await till.estimates.charge(call, PART)
    assert call.ending is None
    await till.settlement.release(call, 500, "unexpected")
    assert till.ending == ("release", None, 500)


async def test_short_texts_are_counted_at_once() -> None:
    """With vocabularies at hand a short answer's charge is under way before anybody else has a turn, a long one's is
    counted aside."""
    for text, at_once in (("one two", True), ("one " * tokens.LONG_TEXT, False)):
        till, call = Till(), held_call()
        begun: AsyncIterator[Any] = till.estimates.charge(call, Estimate(text)).__await__()  # type: ignore[assignment]
        with suppress(StopIteration):
            begun.send(None)  # type: ignore[attr-defined]
        assert call.ending is not None
        assert (call.ending.get_coro().__name__ == "_settle") is at_once  # type: ignore[attr-defined]
        await call.ending
        assert till.record["usage"]["completion_tokens"] == len(text.split())
