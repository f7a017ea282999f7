from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litellm.types.utils import (
    ChatCompletionDeltaToolCall,
    Choices,
    Delta,
    Function,
    Message,
    ModelResponse,
    ModelResponseStream,
    StreamingChoices,
    TextChoices,
    TextCompletionResponse,
    Usage,
)

from tests.unit.recordings import RECORDINGS
from uc_litellm_plugin import answers
from uc_litellm_plugin.call import Answer
from uc_litellm_plugin.dialects import ChatStream, MessagesStream
from uc_litellm_plugin.routes import ENDPOINTS


class _Traffic:
    """An answer of Google's, as LiteLLM hands it on."""

    def __init__(self, kind: str | None) -> None:
        self._hidden_params = {"provider_specific_fields": {"traffic_type": kind}}


FRAMES = RECORDINGS["messages"]().events
NUMBERS = ["NaN", "Infinity", "-Infinity", "-5", "true", "null", '"7"', "[]", "1e400"]


@given(st.lists(st.integers(0, len(b"".join(FRAMES))), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_frames_come_together_however_they_are_cut(cuts: list[int], line_end: bytes) -> None:
    """Bytes cut at any places, inside a character or a line end too, become the same whole events."""
    expected = [event.replace(b"\n", line_end) for event in FRAMES]
    whole = b"".join(expected)
    stream, places = MessagesStream(), [0, *sorted(cuts), len(whole)]
    events = [event for start, end in pairwise(places) for event in stream.split(whole[start:end])]
    assert events == expected
    assert list(stream.rest()) == []


def test_frames_survive_every_single_cut() -> None:
    """Cut at each byte in turn, a stream reads the same usage."""
    whole = b"".join(FRAMES)
    for at in range(len(whole)):
        stream = MessagesStream()
        for piece in (whole[:at], whole[at:]):
            for event in stream.split(piece):
                stream.read(event)
        assert (stream.complete, stream.usage) == (True, {"input_tokens": 10, "output_tokens": 3}), at
        assert stream.text == "one two three"


@pytest.mark.parametrize("data", [b"garbage", b"[]", b"{", b"\xff", b"5", b"null", b""])
def test_a_strange_frame_passes_through(data: bytes) -> None:
    """An event that is no JSON object is handed on as it is and changes nothing."""
    stream = MessagesStream()
    event = b"event: x\ndata: " + data + b"\n\n"
    assert [stream.read(each) for each in stream.split(event)] == [False]
    assert stream.priced(event, Decimal(1), True) == [event]
    assert (stream.usage, stream.text) == (None, "")


def test_text_in_place_of_bytes() -> None:
    """Frames that come as text are read like bytes."""
    stream = MessagesStream()
    for frame in FRAMES:
        for event in stream.split(frame.decode()):
            stream.read(event)
    assert stream.complete


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3},
          "completion_tokens_details": {"reasoning_tokens": 2}}, (10, 4, 14, 3, 2)),
        ({"input_tokens": 10, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3},
          "output_tokens_details": {"reasoning_tokens": 2}}, (10, 4, 14, 3, 2)),
        ({"input_tokens": 5, "output_tokens": 4, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
         (10, 4, 14, 3, 0)),
        ({"prompt_tokens": 8, "total_tokens": 8}, (8, 0, 8, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": 4, "prompt_tokens_details": None}, (0, 4, 4, 0, 0)),
        ({}, (0, 0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_the_tokens_of_every_dialect(usage: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Prompt, completion, total, cached and reasoning tokens come out alike; Anthropic's cached ones are added."""
    assert tuple(answers.tokens(usage).values()) == expected


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"])
def test_strange_numbers_are_zero(name: str, number: str) -> None:
    """What a provider reports in place of a count, whatever JSON allows, is 0 and no crash."""
    found = answers.tokens({name: json.loads(number)})
    assert set(found.values()) == {0}


@pytest.mark.parametrize(
    ("usage", "is_there"),
    [
        ({"prompt_tokens": 1}, True), ({"input_tokens": 0, "output_tokens": 2}, True), ({"total_tokens": 3}, False),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, False), ({}, False), (None, False),
        ("text", False), ([], False), (Usage(prompt_tokens=1, completion_tokens=0, total_tokens=1), True),
        (Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0), False),
    ],
)  # fmt: skip
def test_a_usage_of_zeros_is_none(usage: Any, is_there: bool) -> None:
    """Usage counts as reported only when one of its numbers is not 0."""
    assert (answers.usage_of({"usage": usage}) is not None) is is_there


@pytest.mark.parametrize("dialect", sorted({endpoint.dialect for endpoint in ENDPOINTS}))
def test_an_estimate_has_the_shape_of_its_dialect(dialect: Any) -> None:
    """What we count reads like what the provider would have said."""
    usage = answers.estimated(dialect, 10, 4)
    assert tuple(answers.tokens(usage).values()) == (10, 4, 14, 0, 0)
    assert answers.usage_of({"usage": usage}) is not None


@pytest.mark.parametrize(("known", "expected"), [(9, 9), (1, 4)])
def test_what_a_provider_said_before_it_broke_off_stays(known: int, expected: int) -> None:
    """Its input and cache counts are kept, and of two outputs the larger one is charged."""
    said = {"input_tokens": 100, "cache_read_input_tokens": 50, "output_tokens": known}
    usage = answers.estimated("anthropic", 7, 4, said)
    assert answers.tokens(usage) == {
        "prompt_tokens": 150, "completion_tokens": expected, "total_tokens": 150 + expected, "cached_tokens": 50,
        "reasoning_tokens": 0,
    }  # fmt: skip


PLAIN: list[Any] = [
    {"choices": [{"message": {"role": "assistant", "content": "the answer"}}]},
    {"choices": [{"text": "the answer"}]},
    {"content": [{"type": "text", "text": "the answer"}]},
    {"output": [{"type": "message", "content": [{"type": "output_text", "text": "the answer"}]}]},
    ModelResponse(choices=[Choices(message=Message(content="the answer"))]),
]


@pytest.mark.parametrize("answer", PLAIN, ids=["chat", "text", "messages", "responses", "object"])
def test_the_text_of_every_dialect(answer: Any) -> None:
    """All that was delivered is in the text that is counted, and little else."""
    text = answers.text_of(answer)
    assert "the answer" in text
    assert len(text) < 30


def test_the_cost_is_a_json_number() -> None:
    """`usage.cost` is written in credits into objects and dicts, and nothing happens where there is no usage."""
    as_object = ModelResponse(usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
    as_dict: dict[str, Any] = {"usage": {"input_tokens": 1}}
    for answer in (as_object, as_dict, {"usage": None}, {}):
        answers.write_cost(answer, Decimal("0.25"))
    assert json.loads(as_object.model_dump_json())["usage"]["cost"] == 0.25
    assert as_dict["usage"]["cost"] == 0.25


@pytest.mark.parametrize(
    ("answer", "tier"),
    [
        ({}, None),
        ({"service_tier": "priority", "usage": {"service_tier": "flex"}}, "priority"),
        ({"usage": {"service_tier": "flex"}}, "flex"),
        (_Traffic("ON_DEMAND_PRIORITY"), "priority"),
        (_Traffic("on_demand"), "default"),
        (_Traffic(None), None),
    ],
)
def test_served_tier(answer: object, tier: str | None) -> None:
    """What a provider says of the tier it served is read where LiteLLM leaves it."""
    assert answers.served_tier(answer) == tier


@pytest.mark.parametrize(("given", "stored"), [("resp_1", "resp_1"), ("a\0b", None), ("x" * 256, None), (3, None)])
def test_ids_that_no_row_takes(given: object, stored: str | None) -> None:
    """An id that is no id is not kept."""
    assert answers.stored_id({"id": given}) == stored


def test_absurd_counts_fit_a_row() -> None:
    """What an endpoint makes up beside the counts that are charged does not keep the charge out of the books."""
    details = {"prompt_tokens_details": {"cached_tokens": 10**15}}
    assert answers.tokens({"prompt_tokens": 3, "completion_tokens": 1, **details})["cached_tokens"] == 10**9


def test_a_blocked_answer_is_no_half_of_one() -> None:
    """What a provider says of its filter is nothing that it wrote: an output of 0 is its word."""
    choice = {
        "index": 0, "finish_reason": "content_filter", "native_finish_reason": "SAFETY", "message": {"content": None},
        "content_filter_results": {"hate": {"filtered": True, "severity": "high"}},
    }  # fmt: skip
    answer = Answer({"prompt_tokens": 10, "completion_tokens": 0}, "usage")
    assert not answer.is_half(lambda: answers.text_of({"choices": [choice]}))


CALLED = ChatCompletionDeltaToolCall(
    index=0, id="call_1", type="function", function=Function(name="find", arguments="{")
)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (Delta(), []),
        (Delta(content="", role="assistant"), []),
        (Delta(content="one", role="assistant"), ["one"]),
        (Delta(content="one", reasoning_content="two"), ["one", "two"]),
        (Delta(content=None, tool_calls=[CALLED]), ["find", "{"]),
        (Delta(content="one", provider_specific_fields={"citation": "three"}), ["one", "three"]),
        (Delta(content="one", of_its_own="four"), ["one", "four"]),
        (Delta(content="one", signature="secret", finish_reason="stop"), ["one"]),
        ({"content": "one", "role": "assistant", "id": "x"}, ["one"]),
        ("one", ["one"]),
        (None, []),
    ],
)
def test_what_a_piece_delivers(delta: Any, expected: list[str]) -> None:
    """All of its texts and nothing of its labels, however the provider's words were put into it."""
    assert sorted(answers.delivered(delta)) == sorted(expected)
    assert sorted(answers.delivered(delta)) == sorted(text for text in answers.spoken(answers.plain(delta)) if text)


CHUNK = ModelResponseStream(choices=[StreamingChoices(delta=Delta(content="one"))])


@pytest.mark.parametrize(
    "value",
    [CHUNK, CHUNK.choices[0], CHUNK.choices[0].delta, ModelResponse(usage=Usage(prompt_tokens=1)),
     Usage(prompt_tokens=1), Usage(prompt_tokens=1, of_its_own=7),
     TextCompletionResponse(choices=[TextChoices(text="one")]), {"id": 5, "usage": None}, object(), None, "text", [1]],
)  # fmt: skip
def test_a_member_is_what_python_says(value: Any) -> None:
    """Fields, extra fields, properties, methods, and what is missing: the same as `getattr` or a dict says."""
    names = ["id", "usage", "choices", "delta", "text", "content", "service_tier", "cost", "of_its_own", "model_dump",
             "_hidden_params", "response", "type", "prompt_tokens", "nobody_has_this"]  # fmt: skip
    for name in names:
        expected = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        assert answers.get(value, name) == expected, name


@pytest.mark.parametrize("delta", ["x", ["x"], [{"content": "x"}], ({"content": "x"},), 5])
def test_a_delta_without_members_delivers_nothing(delta: Any) -> None:
    """What is charged as delivered is what the client gets: such a chunk is neither."""
    stream = ChatStream()
    chunk = ModelResponseStream(choices=[])
    chunk.choices, chunk.usage = [{"delta": delta}], {"prompt_tokens": 1, "completion_tokens": 1}
    assert stream.read(chunk) is False
    assert (stream.text, stream.priced(chunk, None, False)) == ("", [])
