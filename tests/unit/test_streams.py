from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from typing import Any

import anyio
import pytest
from litellm.types.utils import Usage

from tests.unit.recordings import RECORDINGS, WORDS, Player, Recording, chunk, frame
from tests.unit.samples import held_call
from uc_litellm_plugin import answers, streams
from uc_litellm_plugin.call import Call, Outcome
from uc_litellm_plugin.outbox import Record
from uc_litellm_plugin.routes import CHAT, MESSAGES, RESPONSES
from uc_litellm_plugin.settlement import Settlement


class Till:
    """A settlement whose records stay here."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.settlement = Settlement(self._settle, lambda candidate, usage, *_: Decimal("0.1"))

    async def _settle(self, record: Record) -> Outcome:
        await asyncio.sleep(0)
        self.records.append(record)
        return Outcome(Decimal(record["charge"]), Decimal(99))

    @property
    def record(self) -> Record:
        """The only record."""
        (record,) = self.records
        return record

    @property
    def ending(self) -> tuple[str, str | None, int]:
        """How the only record ended: action, source of the cost, status."""
        usage = self.record["usage"]
        return self.record["action"], usage.get("cost_source"), usage["status_code"]


@pytest.fixture
def till() -> Till:
    return Till()


def words(text: str) -> int:
    return len(text.split())


def playing(call: Call, till: Till, player: Any, drain_s: float = 5) -> AsyncIterator[Any]:
    return streams.settled(call, player, till.settlement, words, drain_s, lambda: None)


async def all_of(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def all_dialects() -> Iterable[Any]:
    return pytest.mark.parametrize("recording", [make() for make in RECORDINGS.values()], ids=RECORDINGS)  # type: ignore[return-value]


def at_every_event() -> Any:
    """Each dialect, at each of its events."""
    made = {name: make() for name, make in RECORDINGS.items()}
    cases = [pytest.param(recording, at, id=f"{name}-{at}")
             for name, recording in made.items() for at in range(len(recording.events) + 1)]  # fmt: skip
    return pytest.mark.parametrize(("recording", "at"), cases)


@all_dialects()
async def test_settled_before_the_last_word(recording: Recording, till: Till) -> None:
    """No event up to the one before the usage settles anything, and the one with the usage comes after the settlement."""
    seen = []
    async for _ in playing(held_call(recording.endpoint), till, Player(recording.events)):
        seen.append(len(till.records))
    assert seen == [0] * recording.complete + [1] * (len(recording.events) - recording.complete)
    assert till.ending == ("settle", "usage", 200)
    tokens = [till.record["usage"][name] for name in ("prompt_tokens", "completion_tokens")]
    assert tokens == [10, 3]


@all_dialects()
async def test_a_settlement_that_takes_long_holds_the_last_word_back(recording: Recording) -> None:
    """As long as the settlement is not done, the client does not get the event with the usage."""
    done = asyncio.Event()

    async def slow(record: Record) -> Outcome:
        await done.wait()
        return Outcome(Decimal(1), None)

    settlement = Settlement(slow, lambda *_: Decimal("0.1"))
    stream = streams.settled(held_call(recording.endpoint), Player(recording.events), settlement, words, 1, print)
    for _ in range(recording.complete):
        await stream.__anext__()
    last = asyncio.ensure_future(stream.__anext__())  # type: ignore[arg-type]
    for _ in range(20):
        await asyncio.sleep(0)
    assert not last.done()
    done.set()
    await last
    await stream.aclose()  # type: ignore[attr-defined]


@at_every_event()
async def test_a_client_that_leaves_at_any_event(recording: Recording, at: int, till: Till) -> None:
    """Closed after any number of events, a call settles exactly once, by the usage if it came, else by what was sent."""
    stream = playing(held_call(recording.endpoint), till, Player(recording.events, hangs_before=at))
    for _ in range(at):
        await stream.__anext__()
    if at == 0:
        waiting = asyncio.ensure_future(stream.__anext__())  # type: ignore[arg-type]
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
    assert till.ending == ("settle", *(("usage", 200) if at > recording.complete else ("estimate", 499)))


@at_every_event()
async def test_a_provider_that_breaks_at_any_event(recording: Recording, at: int, till: Till) -> None:
    """An error in the stream reaches the client; the call settles once: for what was delivered, or for nothing."""
    error = ConnectionError("gone")
    stream = playing(held_call(recording.endpoint), till, Player(recording.events[:at], error))
    with pytest.raises(ConnectionError):
        await all_of(stream)
    if at > recording.complete:
        assert till.ending == ("settle", "usage", 200)
    elif recording.words_before(at):
        assert till.ending == ("settle", "estimate", 502)
    else:
        assert till.ending == ("release", None, 502)
        assert till.record["charge"] == "0"


@at_every_event()
async def test_a_provider_that_stops_early(recording: Recording, at: int, till: Till) -> None:
    """A stream that just ends, at whatever event, settles once; without a usage the delivered part is counted."""
    await all_of(playing(held_call(recording.endpoint), till, Player(recording.events[:at])))
    action, source, _ = till.ending
    assert action == "settle"
    assert source == ("usage" if at > recording.complete else "estimate")
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
    assert till.ending == ("settle", "usage", 200 if at > recording.complete else 499)
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


@pytest.mark.parametrize("said", [True, False])
async def test_a_failed_response(said: bool, till: Till) -> None:
    """A response that the provider calls failed is charged for what it delivered, and released when that is nothing."""
    delta = [{"type": "response.output_text.delta", "delta": "one two"}] if said else []
    failed = {"type": "response.failed", "response": {"id": "r", "usage": None}}
    await all_of(playing(held_call(RESPONSES), till, Player([*delta, failed])))
    assert till.ending == (("settle", "estimate", 502) if said else ("release", None, 502))


@pytest.mark.parametrize("said", [True, False])
async def test_an_error_event_of_messages(said: bool, till: Till) -> None:
    """So is a message that ends in Anthropic's error event."""
    start, _, delta = RECORDINGS["messages"]().events[:3]
    error = frame("error", error={"type": "overloaded_error"})
    await all_of(playing(held_call(MESSAGES), till, Player([start, *([delta] if said else []), error])))
    assert till.ending == (("settle", "estimate", 502) if said else ("release", None, 502))


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
    stream = streams.settled(call, Player(recording.events), till.settlement, words, 1, lambda: firsts.append(1))
    for number in range(len(recording.events)):
        await stream.__anext__()
        assert len(firsts) == (number >= 2)
    await all_of(stream)
    assert call.first_token is not None
