from __future__ import annotations

from typing import Any

import pytest
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices, Usage

from tests.unit.recordings import chunk
from uc_litellm_plugin import chunks
from uc_litellm_plugin.dialects import ChatStream

WORDS = ["one ", "", "Ünïcode ", " "]
USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}


def of(*choices: StreamingChoices, **fields: Any) -> ModelResponseStream:
    return ModelResponseStream(id="chat-1", choices=list(choices), **fields)


def choice(finish: str | None = None, **said: Any) -> StreamingChoices:
    return StreamingChoices(index=0, delta=Delta(**said), finish_reason=finish)


def served_by_google() -> ModelResponseStream:
    made = chunk("word")
    made._hidden_params["provider_specific_fields"] = {"traffic_type": "ON_DEMAND_PRIORITY"}
    return made


def kept_as(kept: Any) -> ModelResponseStream:
    made = chunk("word")
    made._hidden_params = kept
    return made


MORE: dict[str, Any] = {
    "text": of(StreamingChoices(index=0, delta=Delta(content="word"), text="more")),
    "something unknown": kept_as(["priority"]),
    "a role": of(choice(content="word", role="assistant")),
    "no words": of(choice()),
    "its end": of(choice("stop", content="word")),
    "a tool call": of(choice(tool_calls=[CALL])),
    "words and a tool call": of(choice(content="word", tool_calls=[CALL])),
    "thoughts": of(choice(content="word", reasoning_content="thought")),
    "a field of the provider's": of(choice(content="word", provider_specific_fields={"citation": "there"})),
    "two choices": of(choice(content="word"), choice(content="other")),
    "no choice": of(),
    "a usage": of(choice(content="word"), usage=USAGE),
    "a tier": of(choice(content="word"), service_tier="priority"),
    "Google's tier": served_by_google(),
    "no pydantic object": {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": "word"}}]},
    "a text completion": {"id": "chat-1", "choices": [{"index": 0, "text": "word"}]},
    "nothing of its own": object(),
}


@pytest.mark.parametrize("words", WORDS)
def test_a_chunk_of_words_says_nothing_else(words: str) -> None:
    """It is known at a look, and what is noted of it is what a close reading notes."""
    looked, read = ChatStream(), ChatStream()
    for stream in (looked, read):
        stream.read(chunk("begun "))
    assert looked.words_alone(chunk(words)) == words
    assert read.read(chunk(words)) == bool(words)
    assert (looked.text, looked.usage, looked.service_tier) == (read.text, read.usage, read.service_tier)


@pytest.mark.parametrize("said", MORE.values(), ids=MORE)
def test_a_chunk_that_says_more_is_read_closely(said: Any) -> None:
    """A look leaves alone whatever else a chunk has: an end, a usage, a tier, calls of tools, a second choice."""
    assert chunks.words_alone(said, "chat-1") is None


def test_a_member_of_the_class_is_not_overlooked() -> None:
    """A release of LiteLLM that computes the usage of its chunks has them all read closely."""

    class Computed(ModelResponseStream):  # type: ignore[misc]  # LiteLLM's class has no types we can see
        @property
        def usage(self) -> Usage:
            return USAGE

    assert chunks.words_alone(Computed(id="chat-1", choices=[choice(content="word")]), "chat-1") is None


def test_a_member_of_the_choices_class_is_not_overlooked() -> None:
    """Nor is the end of an answer, where a release computes that."""

    class Computed(StreamingChoices):  # type: ignore[misc]  # LiteLLM's class has no types we can see
        @property
        def text(self) -> str:
            return "more"

    computed = of(Computed(index=0, delta=Delta(content="word")))
    assert chunks.words_alone(computed, "chat-1") is None


def test_a_chunk_of_another_answer_is_read_closely() -> None:
    """Its id is the answer's from then on."""
    assert chunks.words_alone(chunk("word"), "chat-1") == "word"
    assert chunks.words_alone(chunk("word"), "chat-2") is None


def test_the_first_chunk_and_those_after_the_usage_are_read_closely() -> None:
    """The one tells the answer's id, the others that the usage was not the last word."""
    stream = ChatStream()
    assert stream.words_alone(chunk("word")) is None
    for said in (chunk("word"), chunk(finish="stop"), chunk(usage=USAGE)):
        stream.read(said)
    assert stream.complete
    assert stream.words_alone(chunk("word")) is None
