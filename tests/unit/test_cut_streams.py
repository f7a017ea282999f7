from __future__ import annotations

import asyncio
from decimal import Decimal

import anyio
import pytest

from tests.unit.recordings import RECORDINGS, Player, Recording, frame
from tests.unit.samples import held_call
from tests.unit.tills import Till, all_dialects, all_of, at_every_event, playing
from uc_litellm_plugin import departures
from uc_litellm_plugin.routes import MESSAGES, RESPONSES


@pytest.fixture
def till() -> Till:
    return Till()


@at_every_event()
async def test_a_client_that_leaves_at_any_event(recording: Recording, at: int, till: Till) -> None:
    """Closed after any number of events, a call settles once: by the usage if it came, else by what was sent."""
    stream = playing(held_call(recording.endpoint), till, Player(recording.events))
    for _ in range(at):
        await stream.__anext__()
    if at == 0:
        waiting = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    await stream.aclose()  # type: ignore[attr-defined]
    if at > recording.complete:
        assert till.ending == ("settle", "usage", 200)
    else:
        assert till.ending == ("settle", "estimate", 499)
        assert till.record["usage"]["completion_tokens"] >= recording.words_before(at)
        assert till.record["usage"]["prompt_tokens"] > 0


@all_dialects()
async def test_leaving_a_cached_stream_is_free(recording: Recording, till: Till) -> None:
    """What LiteLLM plays from its cache costs nothing to whoever leaves it, either."""
    call = held_call(recording.endpoint)
    call.cached = True
    stream = playing(call, till, Player(recording.events))
    for _ in range(recording.complete - 1):
        await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # A generator, typed as what it yields.
    assert Decimal(till.record["charge"]) == 0


@pytest.mark.parametrize("canceller", ["asyncio", "anyio"])
@at_every_event()
async def test_a_client_that_is_cancelled_at_any_event(
    recording: Recording, at: int, till: Till, canceller: str
) -> None:
    """Cancelled while it waits for any event, by either library, a call settles exactly once."""
    player = Player(recording.events, hangs_before=at)
    stream = playing(held_call(recording.endpoint), till, player)
    scope = anyio.CancelScope()

    async def consume() -> None:
        with scope:
            await all_of(stream)

    task = asyncio.ensure_future(consume())
    await player.hangs.wait()
    task.cancel() if canceller == "asyncio" else scope.cancel()
    await asyncio.wait([task])
    source = "usage" if at > recording.complete else "estimate"
    assert till.ending == ("settle", source, 200 if at > recording.ended else 499)


@all_dialects()
async def test_a_stream_that_nobody_takes_any_more(recording: Recording, till: Till) -> None:
    """A stream whose first event was read, and that is dropped then, is settled when its request is over, and not when
    Python gets round to collecting it."""
    call = held_call(recording.endpoint)
    stream = playing(call, till, Player(recording.events))

    async def request() -> None:
        departures.watch(call, till.settlement, till.estimates)
        await anext(stream)

    async def ended() -> None:
        while call.ending is None or not call.ending.done():
            await asyncio.sleep(0)

    await asyncio.create_task(request())
    await asyncio.wait_for(ended(), 60)
    assert till.ending[2] == 499
    await stream.aclose()  # type: ignore[attr-defined]  # A generator, typed as what it yields.
    assert len(till.records) == 1


@at_every_event()
async def test_a_provider_that_breaks_at_any_event(recording: Recording, at: int, till: Till) -> None:
    """An error in the stream reaches the client; the call settles once: for what was delivered, or for nothing."""
    error = ConnectionError("gone")
    stream = playing(held_call(recording.endpoint), till, Player(recording.events[:at], error))
    with pytest.raises(ConnectionError):
        await all_of(stream)
    if at > recording.complete:
        assert till.ending == ("settle", "usage", 200 if at > recording.ended else 502)
    elif recording.words_before(at):
        assert till.ending == ("settle", "estimate", 502)
    else:
        assert till.ending == ("release", None, 502)
        assert till.record["charge"] == "0"


@at_every_event()
async def test_a_provider_that_stops_early(recording: Recording, at: int, till: Till) -> None:
    """A stream that just ends, at whatever event, ends the call once: by its usage, else by what it delivered.

    A messages stream has an event for its end, so that one without it broke off.
    """
    await all_of(playing(held_call(recording.endpoint), till, Player(recording.events[:at])))
    if at > recording.complete:
        assert till.ending == ("settle", "usage", 200)
    elif recording.words_before(at):
        assert till.ending == ("settle", "estimate", 502 if recording.endpoint is MESSAGES else 200)
    else:
        assert till.ending == ("release", None, 502)
    if till.record["action"] == "settle":
        assert till.record["usage"]["completion_tokens"] >= recording.words_before(at)


@at_every_event()
async def test_a_reasoning_model_is_read_on(recording: Recording, at: int, till: Till) -> None:
    """When the client of a model that reasons unseen leaves, the provider's own usage is awaited."""
    player = Player(recording.events, hangs_before=at)
    stream = playing(held_call(recording.endpoint, reasons=True), till, player)
    task = asyncio.ensure_future(all_of(stream))
    await player.hangs.wait()
    task.cancel()
    await asyncio.sleep(0)
    player.go_on.set()
    await asyncio.wait([task])
    assert till.ending == ("settle", "usage", 200 if at > recording.ended else 499)
    assert till.record["usage"]["completion_tokens"] == 3


@all_dialects()
async def test_a_reasoning_model_is_not_read_on_for_ever(recording: Recording, till: Till) -> None:
    """When the usage does not come in time, what was delivered is counted."""
    player = Player(recording.events, hangs_before=recording.complete)
    stream = playing(held_call(recording.endpoint, reasons=True), till, player, drain_s=0.05)
    task = asyncio.ensure_future(all_of(stream))
    await player.hangs.wait()
    task.cancel()
    await asyncio.wait([task])
    assert till.ending == ("settle", "estimate", 499)
    assert till.record["usage"]["completion_tokens"] >= 3


@all_dialects()
@pytest.mark.parametrize("reasons", [False, True])
async def test_a_source_that_is_cancelled(recording: Recording, reasons: bool, till: Till) -> None:
    """What was delivered is charged, too, where the reading itself ends by a cancellation, as when the loop stops."""
    player = Player(recording.events[: recording.complete], asyncio.CancelledError())
    task = asyncio.ensure_future(all_of(playing(held_call(recording.endpoint, reasons=reasons), till, player)))
    await asyncio.wait([task])
    assert task.cancelled()
    assert till.ending == ("settle", "estimate", 499)


@all_dialects()
async def test_a_provider_that_breaks_while_it_is_read_on(recording: Recording, till: Till) -> None:
    """An error after the client has left changes nothing but the number."""
    player = Player(recording.events[: recording.complete], ConnectionError(), hangs_before=3)
    task = asyncio.ensure_future(all_of(playing(held_call(recording.endpoint, reasons=True), till, player)))
    await player.hangs.wait()
    task.cancel()
    await asyncio.sleep(0)
    player.go_on.set()
    await asyncio.wait([task])
    assert till.ending == ("settle", "estimate", 499)


@pytest.mark.parametrize("said", [True, False])
async def test_a_failed_response(said: bool, till: Till) -> None:
    """A response that the provider calls failed is charged for what it delivered, and released when that is nothing."""
    delta = [{"type": "response.output_text.delta", "delta": "one two"}] if said else []
    failed = {"type": "response.failed", "response": {"id": "r", "usage": None}}
    await all_of(playing(held_call(RESPONSES), till, Player([*delta, failed])))
    assert till.ending == (("settle", "estimate", 502) if said else ("release", None, 502))


@pytest.mark.parametrize("leaves", [True, False])
async def test_half_a_usage_of_messages(leaves: bool, till: Till) -> None:
    """Who leaves after the usage, before the end, pays no less than who stays: a missing half is counted for both."""
    events = [
        frame("message_start", message={"id": "m", "usage": {"input_tokens": 0, "output_tokens": 0}}),
        frame("content_block_delta", index=0, delta={"type": "text_delta", "text": "one two three"}),
        frame("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
        frame("message_stop"),
    ]
    stream = playing(
        held_call(MESSAGES), till, Player(events[:3] if leaves else events, hangs_before=3 if leaves else None)
    )
    if leaves:
        for _ in range(2):
            await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    else:
        await all_of(stream)
    usage = till.record["usage"]
    assert usage["prompt_tokens"] > 0
    assert (usage["completion_tokens"], usage["cost_source"]) == (3, "estimate")


@pytest.mark.parametrize("said", [True, False])
async def test_an_error_event_of_messages(said: bool, till: Till) -> None:
    """So is a message that ends in Anthropic's error event."""
    start, _, delta = RECORDINGS["messages"]().events[:3]
    error = frame("error", error={"type": "overloaded_error"})
    await all_of(playing(held_call(MESSAGES), till, Player([start, *([delta] if said else []), error])))
    assert till.ending == (("settle", "estimate", 502) if said else ("release", None, 502))
