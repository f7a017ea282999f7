from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.texts import CL100K, KINDS, O200K, TOKENIZER, bound, bound_or_code, chat, some_code, taken
from uc_litellm_plugin import tokens
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "encoding"), [("gpt-4o", O200K), ("gpt-3.5-turbo", CL100K), ("gpt-6", O200K),
                                                 ("gpt-6", CL100K)])  # fmt: skip
def test_the_input_bound_holds_for_random_text(kind: str, model: str, encoding: tiktoken.Encoding) -> None:
    """Whatever is written, OpenAI's own tokenizers count no more than the bound, framing included."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for length in (1, 30, 500, 5_000, 9_000):
        text = KINDS[kind](rng, length)
        assert len(encoding.encode(text, disallowed_special=())) + 8 <= bound(chat(text), model), length


@given(st.text(max_size=300))
def test_the_input_bound_holds_for_odd_text(text: str) -> None:
    """The same for the texts that break programs."""
    text = text or "x"
    assert len(O200K.encode(text, disallowed_special=())) + 8 <= bound(chat(text))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=20))
def test_each_message_is_framed(texts: list[str]) -> None:
    """Many small messages cost their framing too: at least four tokens each, and three for the answer."""
    body = {"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}
    counted = sum(len(O200K.encode(text, disallowed_special=())) + 4 for text in texts) + 3
    assert counted <= bound(body)


@pytest.mark.parametrize("model", ["gpt-4o", "claude-sonnet-4-5", "gemini/gemini-2.5-pro", "vendor/unknown-model"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_not_wild(kind: str, model: str) -> None:
    """A text never needs more tokens than it has bytes, beyond the framing."""
    text = KINDS[kind](random.Random(7), 3_000)
    assert bound(chat(text), model) <= len(json.dumps(text, ensure_ascii=False).encode()) + 200


@pytest.mark.parametrize(("text", "most"), [("3f9a07be41d8", 0.87), ("a.b,c;d(e)f", 0.95), ("ab12", 0.72)])
def test_letters_between_digits_and_symbols(text: str, most: float) -> None:
    """Tokenizers that cut letters off digits and symbols, as Gemma's does, count no more than the bound."""
    assert bound(chat(text * 200), "gemini-2.5-pro") >= most * len(text) * 200


def test_long_texts_are_counted_in_pieces() -> None:
    """A text of many pieces counts at least what it counts as a whole, and very long ones their bytes."""
    text = some_code(random.Random(3), 60_000)
    assert tokens.count(text, TOKENIZER) >= len(CL100K.encode(text, disallowed_special=()))
    assert tokens.count("é" * 2_000_001, TOKENIZER) == 4_000_002
    assert tokens.count("", TOKENIZER) == 0
    assert tokens.count("<|endoftext|>\ud800", TOKENIZER) > 1


def test_whole_pieces_are_counted_once() -> None:
    """A conversation that goes on is counted from where it went on, to the same sum."""
    asked: list[str] = []

    def tokenizer(text: str) -> int:
        asked.append(text)
        return TOKENIZER(text)

    remembering = tokens.remembering(tokenizer)
    begun = some_code(random.Random(5), 30_000)
    gone_on = begun + begun[:3_000]
    tokens.count(begun, remembering)
    before = len(asked)
    assert tokens.count(gone_on, remembering) == tokens.count(gone_on, TOKENIZER)
    assert len(asked) - before <= 2


def test_few_counts_are_remembered() -> None:
    """What is kept has a bound: the oldest count goes first."""
    asked: list[str] = []

    def tokenizer(text: str) -> int:
        asked.append(text)
        return 1

    remembering = tokens.remembering(tokenizer, most=2)
    first, second, third = (letter * 5_000 for letter in "abc")
    for text in (first, second, third, third, first):
        remembering(text)
    assert asked == [first, second, third, first]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"description": "word " * 500}}}]),
        ("functions", [{"name": "f", "parameters": {"description": "word " * 500}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"description": "word " * 500}}),
    ],
)
def test_all_that_is_read_counts(field: str, value: Any) -> None:
    """Tools, schemas and predictions are read by the model, so they are counted."""
    assert bound(chat("hi", **{field: value})) > 500


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (COMPLETIONS, {"prompt": "word " * 500}),
        (COMPLETIONS, {"prompt": ["word " * 250, "word " * 250]}),
        (COMPLETIONS, {"prompt": "x", "suffix": "word " * 500}),
        (EMBEDDINGS, {"input": ["word"] * 501}),
        (RESPONSES, {"input": "word " * 500}),
        (RESPONSES, {"input": "x", "instructions": "word " * 500}),
        (MESSAGES, {"messages": [], "system": [{"type": "text", "text": "word " * 500}]}),
        (COMPLETIONS, {"prompt": [1] * 501}),
        (COMPLETIONS, {"prompt": [[1] * 250, [2] * 251]}),
        (EMBEDDINGS, {"input": [7] * 501}),
        (EMBEDDINGS, {"input": [[7] * 250, [8] * 251]}),
    ],
)
def test_every_dialects_input_counts(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Each endpoint's own fields are counted, and tokens sent as numbers are one each."""
    assert 500 < bound(body, endpoint=endpoint) < 1_250


CALLERS_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f"}},
    {"function": {"name": "f"}},
    {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}},
    {"type": "function", "name": "f", "parameters": {}, "strict": True},
    {"type": "bash_20250124", "name": "bash"},
]
PROVIDERS_TOOLS: list[dict[str, Any]] = [
    {"type": "web_search_20250305", "name": "w", "max_uses": 3},
    {"type": "web_search"},
    {"type": "mcp", "server_url": "litellm_proxy", "require_approval": "never"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"googleSearch": {}},
    {"url_context": {}},
    {"type": "function", "urlContext": {}},
    {"type": "custom", "googleSearch": {}},
    {"type": "function", "function": {"name": "f"}, "enterpriseWebSearch": {}},
    {},
]


@pytest.mark.parametrize("tool", CALLERS_TOOLS)
def test_a_callers_tool_is_text(tool: dict[str, Any]) -> None:
    """A tool that the caller runs costs its description."""
    assert json.dumps(tool, separators=(",", ":")) in taken(chat("hi", tools=[tool])).text


@pytest.mark.parametrize("tool", PROVIDERS_TOOLS)
def test_a_providers_tool_is_refused(tool: dict[str, Any]) -> None:
    """A tool that runs at the provider reads and charges what has no bound, however it is spelled."""
    with pytest.raises(BadRequest) as refused:
        taken(chat("hi", tools=[{"type": "function", "function": {"name": "f"}}, tool]))
    assert refused.value.code == "unsupported_tool"


def test_web_search_options_are_refused() -> None:
    """So is the search that is asked for by a field of its own."""
    with pytest.raises(BadRequest):
        taken(chat("hi", web_search_options={}))


@pytest.mark.parametrize("tools", [["f"], [None], [{"type": 5}], [{"type": ["a"]}]])
def test_a_strange_tool_is_refused(tools: list[Any]) -> None:
    """A tool that is no object, or whose type is no string, is a 400."""
    with pytest.raises(BadRequest):
        taken(chat("hi", tools=tools))


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt"])
def test_input_that_lives_elsewhere_is_named(field: str) -> None:
    """What is stored at the provider cannot be seen from here."""
    assert field in taken({"input": "hi", field: "x"}, RESPONSES).unbounded
    assert taken({"input": [{"type": "item_reference", "id": "x"}]}, RESPONSES).unbounded == ("item_reference",)


def test_what_a_request_asks_for() -> None:
    """Answers, cap, tier and audio are taken from the body."""
    stock = taken(chat("hi", n=3, max_tokens=50, max_completion_tokens=40, service_tier="flex", modalities=["audio"]))
    assert (stock.answers, stock.cap, stock.tier, stock.speaks, stock.writes) == (3, 40, "flex", True, True)
    assert not taken({"input": "a"}, EMBEDDINGS).writes
    assert taken({"prompt": ["a", "b"], "n": 2, "best_of": 5}, COMPLETIONS).answers == 10


@pytest.mark.parametrize("depth", [10, 200, 900, 5_000])
def test_a_deep_nest_is_measured_or_refused(depth: int) -> None:
    """Nesting that is too deep to be measured is a 400, and no crash."""
    content: Any = "x"
    for number in range(depth):
        content = [content] if number % 2 else {"a": content}
    if (measured := bound_or_code(chat([content]))) == "invalid_value":
        assert depth > 200
    else:
        assert int(measured) > depth


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda each: st.lists(each) | st.dictionaries(st.sampled_from(
                        ["type", "text", "image_url", "source", "input", "content", "url", "data", "file_id"]), each),
                    max_leaves=30))  # fmt: skip
def test_any_content_is_measured_or_refused(content: Any) -> None:
    """No JSON in the place of a content makes it crash."""
    for endpoint in (CHAT, MESSAGES, RESPONSES):
        field = "input" if endpoint is RESPONSES else "messages"
        body = {field: [{"role": "user", "content": content}]}
        assert bound_or_code(body, endpoint) == "invalid_value" or bound(body, endpoint=endpoint) > 0
