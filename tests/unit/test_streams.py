from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from litellm.types.utils import Usage

from tests.unit.recordings import RECORDINGS, WORDS, Player, Recording, chunk, frame
from tests.unit.samples import held_call
from tests.unit.tills import Till, all_dialects, all_of, counting_words, playing
from uc_litellm_plugin import answers, streams
from uc_litellm_plugin.call import Outcome
from uc_litellm_plugin.estimates import Estimates
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.routes import CHAT, MESSAGES
from uc_litellm_plugin.settlement import Settlement


@pytest.fixture
def till() -> Till:
    return Till()


@all_dialects()
async def test_settled_before_the_last_word(recording: Recording, till: Till) -> None:
    """No event before the one with the usage settles anything, and that one comes after the settlement, or while it is
    under way where `[DONE]` is to follow."""
    seen, call = [], held_call(recording.endpoint)
    async for _ in playing(call, till, Player(recording.events)):
        seen.append((call.ending is not None, len(till.records)))
    last = (True, 0 if recording.endpoint is CHAT else 1)
    assert seen == [(False, 0)] * recording.complete + [last] * (len(recording.events) - recording.complete)
    assert till.ending == ("settle", "usage", 200)
    tokens = [till.record["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    assert tokens == [10, 3]
    ids = {"openai": "chat-1", "responses": "resp-1", "anthropic": "msg-1"}
    assert till.record["usage"]["metadata"]["response_id"] == ids[recording.endpoint.dialect]


@all_dialects()
async def test_a_settlement_that_takes_long_holds_the_last_word_back(recording: Recording) -> None:
    """As long as the settlement is not done, the client does not get the event with the usage, or `[DONE]` after it."""
    done = asyncio.Event()

    async def slow(record: Record) -> Outcome:
        await done.wait()
        return Outcome(Decimal(1), None)

    settlement = Settlement(slow, lambda *_: Decimal("0.1"))
    estimates = Estimates(settlement, counting_words())
    stream = streams.settled(held_call(recording.endpoint), Player(recording.events), settlement, estimates, 1, print)
    for _ in range(recording.complete + (recording.endpoint is CHAT)):
        await stream.__anext__()
    last = asyncio.ensure_future(anext(stream, None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not last.done()
    done.set()
    assert (await last is None) == (recording.endpoint is CHAT)
    await stream.aclose()  # type: ignore[attr-defined]


@all_dialects()
async def test_the_first_word_is_noted_once(recording: Recording, till: Till) -> None:
    """When the first word passes by, and not before it: that is the time to the first token."""
    call, noted, passed = held_call(recording.endpoint), [], 0
    stream = streams.settled(
        call, Player(recording.events), till.settlement, till.estimates, 1, lambda: noted.append(passed)
    )
    async for _ in stream:
        passed += 1
    assert noted == [recording.speaks[0]]
    assert call.first_token is not None


@all_dialects()
async def test_closing_again_settles_nothing_more(recording: Recording, till: Till) -> None:
    """After its end a stream can be closed, and its call ended by other hooks, without a second record."""
    call = held_call(recording.endpoint)
    stream = playing(call, till, Player(recording.events))
    await all_of(stream)
    for _ in range(2):
        await stream.aclose()  # type: ignore[attr-defined]
    await till.settlement.release(call, 500, "late hook")
    assert till.ending == ("settle", "usage", 200)


@all_dialects()
async def test_a_call_ended_elsewhere_is_not_ended_twice(recording: Recording, till: Till) -> None:
    """Where another hook was first, the stream goes through and waits for that ending."""
    call = held_call(recording.endpoint)
    await till.settlement.release(call, 500, "early hook")
    assert len(await all_of(playing(call, till, Player(recording.events)))) == len(recording.events)
    assert till.ending == ("release", None, 500)


async def test_what_the_client_did_not_ask_for_is_stripped(till: Till) -> None:
    """A chat client that asked for no usage gets every chunk but the one that carries nothing else."""
    recording = RECORDINGS["chat"]()
    seen = await all_of(playing(held_call(CHAT, wants_usage=False), till, Player(recording.events)))
    assert [event.choices[0].delta.content for event in seen] == ["", *WORDS, None]
    assert all(getattr(event, "usage", None) is None for event in seen)
    assert till.ending == ("settle", "usage", 200)


async def test_the_cost_is_written_into_every_dialect(till: Till) -> None:
    """The event with the usage carries the charge in credits, as a number."""
    costs = []
    for make in RECORDINGS.values():
        recording = make()
        seen = await all_of(playing(held_call(recording.endpoint), till, Player(recording.events)))
        event = seen[recording.complete]
        if isinstance(event, bytes):
            event = json.loads(event.split(b"data: ", 1)[1])
        usage = answers.get(answers.get(event, "response") or event, "usage")
        costs.append(answers.get(usage, "cost"))
    assert costs == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [1, 7, 64])
async def test_bytes_cut_anywhere_settle_alike(step: int, till: Till) -> None:
    """Anthropic's events arrive whole and settle by their usage, however the network cut them."""
    recording = RECORDINGS["messages"]()
    whole = b"".join(recording.events)
    pieces = [whole[start : start + step] for start in range(0, len(whole), step)]
    seen = await all_of(playing(held_call(MESSAGES), till, Player(pieces)))
    assert len(seen) == len(recording.events)
    assert till.ending == ("settle", "usage", 200)


async def test_a_last_event_without_its_blank_line(till: Till) -> None:
    """An event that the end of the stream cuts off from its blank line still counts, and comes after the settlement."""
    recording = RECORDINGS["messages"]()
    pieces = [*recording.events[:6], recording.events[6].rstrip(b"\n")]
    seen = []
    async for event in playing(held_call(MESSAGES), till, Player(pieces)):
        seen.append((b"message_delta" in event, len(till.records)))
    assert seen[-1] == (True, 1)
    assert till.ending == ("settle", "usage", 200)


async def test_usage_on_every_chunk_counts_at_the_last(till: Till) -> None:
    """Where a provider reports usage as it goes, the last report is charged, not the first."""
    reports = [{"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n} for n in (1, 2, 3)]
    events: list[Any] = []
    for number, report in enumerate(reports):
        event = chunk(WORDS[number], finish="stop" if number == 2 else None)
        event.usage = Usage(**report)
        events.append(event)
    await all_of(playing(held_call(CHAT), till, Player(events)))
    assert till.record["usage"]["completion_tokens"] == 3


async def test_usage_that_is_all_zero_is_none(till: Till) -> None:
    """A usage of zeros is no usage: what was delivered is counted."""
    nothing = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    events = [*map(chunk, WORDS), chunk(finish="stop"), chunk(usage=nothing)]
    await all_of(playing(held_call(CHAT), till, Player(events)))
    assert till.ending == ("settle", "estimate", 200)
    assert till.record["usage"]["completion_tokens"] == 3


async def test_reasoning_and_tools_are_output(till: Till) -> None:
    """Shown reasoning and the arguments of tools count as delivered when no usage comes."""
    deltas = [
        {"type": "thinking_delta", "thinking": "one two"},
        {"type": "input_json_delta", "partial_json": "three four"},
        {"type": "signature_delta", "signature": "not said"},
    ]
    events = [frame("content_block_delta", index=0, delta=delta) for delta in deltas]
    await all_of(playing(held_call(MESSAGES), till, Player(events)))
    assert 3 <= till.record["usage"]["completion_tokens"] <= 4


async def test_the_first_output_is_noted_once(till: Till) -> None:
    """The moment of the first word is reported once, not that of the first event."""
    recording = RECORDINGS["messages"]()
    call, firsts = held_call(MESSAGES), []
    stream = streams.settled(
        call, Player(recording.events), till.settlement, till.estimates, 1, lambda: firsts.append(1)
    )
    for number in range(len(recording.events)):
        await stream.__anext__()
        assert len(firsts) == (number >= 2)
    await all_of(stream)
    assert call.first_token is not None


async def test_left_between_two_attempts(till: Till) -> None:
    """A client that leaves after one provider's fault and before the next attempt leaves no hold behind."""
    call = held_call()
    call.attempts[-1].failed = True
    player = Player(RECORDINGS["chat"]().events, hangs_before=0)
    stream = playing(call, till, player)
    waiting = asyncio.ensure_future(anext(stream))
    await player.hangs.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.aclose()  # type: ignore[attr-defined]
    assert [record["action"] for record in till.records] == ["release"]


async def test_left_between_two_attempts_with_a_part(till: Till) -> None:
    """What was delivered before a fault is charged, though the client leaves while the next attempt is looked for."""
    call = held_call()
    player = Player(RECORDINGS["chat"]().events, hangs_before=3)
    stream = playing(call, till, player)
    for _ in range(3):
        await anext(stream)
    call.attempts[-1].failed = True
    waiting = asyncio.ensure_future(anext(stream))
    await player.hangs.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    await stream.aclose()  # type: ignore[attr-defined]
    assert [record["action"] for record in till.records] == ["settle"]
