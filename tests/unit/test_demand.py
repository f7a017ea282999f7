from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from uc_litellm_plugin import catalog, demand
from uc_litellm_plugin.demand import Demand
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

# Importing LiteLLM (by catalog) points tiktoken to the encodings that LiteLLM ships, so nothing is downloaded.
TOKENIZER = catalog.tokenizer()
O200K = tiktoken.get_encoding("o200k_base")
CL100K = tiktoken.get_encoding("cl100k_base")
PNG = "data:image/png;base64,iVBORw0KGgo="


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def taken(body: dict[str, Any], endpoint: Endpoint = CHAT) -> Demand:
    return demand.measure(endpoint, body)


def bound(body: dict[str, Any], model: str = "gpt-4o", endpoint: Endpoint = CHAT) -> int:
    stock = taken(body, endpoint)
    return demand.input_bound(stock, demand.count(stock.text, TOKENIZER), model)


def some_base64(rng: random.Random, length: int) -> str:
    return base64.b64encode(rng.randbytes(length)).decode()


def some_code(rng: random.Random, length: int) -> str:
    lines = [f"{' ' * 4 * rng.randint(0, 6)}{rng.choice('ifx')}_{rng.randint(0, 999)} += [{rng.random()}]\t// {{}}"
             for _ in range(length // 20)]  # fmt: skip
    return "\n".join(lines)


def some_of(alphabet: str) -> Callable[[random.Random, int], str]:
    return lambda rng, length: "".join(rng.choices(alphabet, k=length))


KINDS: dict[str, Callable[[random.Random, int], str]] = {
    "base64": some_base64,
    "code": some_code,
    "CJK": some_of("".join(map(chr, range(0x4E00, 0x9FFF)))),
    "kana": some_of("".join(map(chr, range(0x3040, 0x30FF)))),
    "hangul": some_of("".join(map(chr, range(0xAC00, 0xD7A3)))),
    "emoji": some_of("".join(map(chr, range(0x1F300, 0x1F6FF))) + "\u200d\ufe0f"),
    "Arabic": some_of("".join(map(chr, range(0x0621, 0x06FF))) + " "),
    "Thai": some_of("".join(map(chr, range(0x0E01, 0x0E5B)))),
    "Georgian": some_of("".join(map(chr, range(0x10A0, 0x10FF)))),
    "rare": some_of("".join(map(chr, range(0x12000, 0x12399)))),
    "digits": some_of(string.digits),
    "blanks": some_of(" \n\t\r\u00a0\u3000"),
    "punctuation": some_of(string.punctuation),
    "letters": some_of(string.ascii_letters),
    "quotes": some_of('"\\\n'),
    "any": some_of("".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x20000)]))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", [O200K, CL100K], ids=["o200k", "cl100k"])
def test_the_input_bound_holds_for_random_text(kind: str, encoding: tiktoken.Encoding) -> None:
    """Whatever is written, OpenAI's own tokenizers count no more than the bound, framing included."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for length in (1, 30, 500, 5_000, 9_000):
        text = KINDS[kind](rng, length)
        assert len(encoding.encode(text, disallowed_special=())) + 8 <= bound(chat(text)), length


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


def test_long_texts_are_counted_in_pieces() -> None:
    """A text of many pieces counts at least what it counts as a whole, and very long ones their bytes."""
    text = some_code(random.Random(3), 60_000)
    assert demand.count(text, TOKENIZER) >= len(CL100K.encode(text, disallowed_special=()))
    assert demand.count("é" * 2_000_001, TOKENIZER) == 4_000_002
    assert demand.count("", TOKENIZER) == 0
    assert demand.count("<|endoftext|>\ud800", TOKENIZER) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"description": "word " * 500}}}]),
        ("functions", [{"name": "f", "parameters": {"description": "word " * 500}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"description": "word " * 500}}),
        ("prediction", {"type": "content", "content": "word " * 500}),
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


HUGE = 10**3000
HIDING = [
    ({"a": [HUGE] * 3}, "numbers"),
    ({"type": "image_url", "image_url": PNG, "blob": "word " * 2000}, "beside an image"),
    ({"type": "image", "source": {"type": "base64", "data": "word " * 2000}}, "in place of an image"),
    ({"type": "input_audio", "input_audio": {"data": "word " * 2000}}, "in place of audio"),
    ({"type": "text", "text": "word " * 2000}, "plainly"),
]


@pytest.mark.parametrize("value", [value for value, _ in HIDING], ids=[name for _, name in HIDING])
def test_nothing_hides_in_free_json(value: dict[str, Any]) -> None:
    """What a caller puts into a tool's input is text to the model, whatever it looks like."""
    block = {"type": "tool_use", "id": "t", "name": "f", "input": value}
    body = {"messages": [{"role": "assistant", "content": [block]}]}
    assert bound(body, "claude-sonnet-4-5", MESSAGES) >= 2_000


def test_nothing_hides_beside_an_image() -> None:
    """Text in an image part, where it does not belong, is counted."""
    part = {"type": "image_url", "image_url": {"url": PNG}, "text": "word " * 10_000}
    assert bound(chat([part])) > 10_000


SCHEMAS: list[Any] = [
    {"type": ["string", "null"]},
    {"type": "object", "properties": {"type": {"type": "string"}, "image": {"type": "string"}}},
    {"type": "object", "properties": {"kind": {"enum": [1, 2, 3]}, "file": {"type": "file"}}},
    {"type": "image"},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_is_text(schema: Any) -> None:
    """A tool's JSON Schema may name anything `type`: it is neither an image, nor a document, nor an error."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
    stocks = [
        taken(chat("hi", tools=[{"type": "function", "function": function}])),
        taken(chat("hi", tools=[{"name": "f", "input_schema": schema}]), MESSAGES),
        taken({"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": schema}]}, RESPONSES),
        taken(chat("hi", response_format={"type": "json_schema", "json_schema": {"schema": schema}})),
    ]
    for stock in stocks:
        assert (stock.images, stock.whole_context, stock.unbounded, stock.tools_named) == (0, False, (), ())


IMAGES: list[tuple[Endpoint, Any, tuple[int, int, bool, bool]]] = [
    (CHAT, {"type": "image_url", "image_url": {"url": PNG}}, (1, 0, False, False)),
    (CHAT, {"type": "image_url", "image_url": {"url": "https://a/b.png"}}, (0, 1, False, False)),
    (CHAT, {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AA"}}, (0, 0, True, False)),
    (CHAT, {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}}, (0, 0, True, False)),
    (CHAT, {"type": "file", "file": {"file_id": "file-1"}}, (0, 0, True, True)),
    (RESPONSES, {"type": "input_image", "image_url": PNG}, (1, 0, False, False)),
    (RESPONSES, {"type": "input_image", "file_id": "file-1"}, (0, 0, False, True)),
    (RESPONSES, {"type": "input_image", "image_url": None, "file_id": "file-1"}, (0, 0, False, True)),
    (RESPONSES, {"type": "input_file", "file_url": "https://a/b.pdf"}, (0, 0, True, True)),
    (MESSAGES, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
     (1, 0, False, False)),
    (MESSAGES, {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}, (0, 1, False, False)),
    (MESSAGES, {"type": "image", "source": {"type": "file", "file_id": "file_1"}}, (0, 0, False, True)),
    (MESSAGES, {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}},
     (0, 0, True, False)),
    (MESSAGES, {"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}, (0, 0, True, True)),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "part", "expected"), IMAGES)
def test_media_are_told_apart(endpoint: Endpoint, part: Any, expected: tuple[int, int, bool, bool]) -> None:
    """Inline images, remote images, documents and references each have a bound of their own, or none."""
    field = "input" if endpoint is RESPONSES else "messages"
    stock = taken({field: [{"role": "user", "content": [part]}]}, endpoint)
    found = (stock.images, stock.remote_images, stock.whole_context, bool(stock.unbounded))
    assert found == expected
    assert "base64" not in json.dumps(stock.text) or endpoint is MESSAGES


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": 5}, {"type": "image", "source": []}])
def test_a_strange_image_is_refused(part: Any) -> None:
    """A form of image that no provider documents is a 400."""
    with pytest.raises(BadRequest):
        taken(chat([part]))


def test_a_tool_result_may_hold_images() -> None:
    """Images inside a tool's result are images, too."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image, {"type": "text", "text": "seen"}]}
    assert taken(chat([result]), MESSAGES).images == 1


@pytest.mark.parametrize("kind", ["text", "image", "document"])
def test_cache_writes_are_seen_on_every_part(kind: str) -> None:
    """A cache breakpoint counts wherever it stands, on media as on text."""
    source = {"type": "base64", "media_type": "image/png", "data": "AA"}
    part = {"type": kind, **({"text": "a"} if kind == "text" else {"source": source})}
    assert not taken(chat([part]), MESSAGES).caches
    assert taken(chat([{**part, "cache_control": {"type": "ephemeral"}}]), MESSAGES).caches
    assert taken(chat("a", cache_control={"type": "ephemeral"}), MESSAGES).caches


def test_audio_counts_by_its_length() -> None:
    """A minute of audio in the densest usual coding is more than its tokens."""
    minute = "A" * (60 * 1_000 * 4 // 3)  # 8 kbit/s
    stock = taken(chat([{"type": "input_audio", "input_audio": {"data": minute, "format": "mp3"}}]))
    assert stock.audio_bytes == len(minute)
    assert demand.input_bound(stock, 10, "gpt-4o-audio") >= 60 * 32


TOOLS: list[tuple[dict[str, Any], tuple[str, ...], int]] = [
    ({"tools": [{"type": "function", "function": {}}]}, (), 0),
    ({"tools": [{"name": "f", "input_schema": {}}]}, (), 0),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, (), 0),
    ({"tools": [{"type": "web_search_20250305", "name": "w", "max_uses": 3}]}, ("web_search_20250305",), 3),
    ({"tools": [{"type": "web_search"}]}, ("web_search",), -1),
    ({"tools": [{"type": "web_search"}], "max_tool_calls": 4}, ("web_search",), 4),
    ({"tools": [{"type": "web_search", "max_uses": 0}]}, ("web_search",), -1),
    ({"tools": [{"type": "web_search", "max_uses": True}]}, ("web_search",), -1),
    ({"tools": [{"type": "a", "max_uses": 2}, {"type": "b", "max_uses": 3}]}, ("a", "b"), 5),
    ({"web_search_options": {}}, ("web_search_options",), -1),
]


@pytest.mark.parametrize(("fields", "named", "calls"), TOOLS)
def test_tools_at_the_provider(fields: dict[str, Any], named: tuple[str, ...], calls: int) -> None:
    """Tools that the caller runs cost nothing more; the others are named, with how often they may run, or -1."""
    stock = taken(chat("hi", **fields))
    assert (stock.tools_named, stock.tool_calls) == (named, calls)


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


def test_remote_images_are_seen_where_only_images_can_be() -> None:
    """A URL is an image for models that read nothing else from one; for others it may be a film."""
    stock = taken(chat([{"type": "image_url", "image_url": {"url": "https://a/b"}}]))
    assert demand.unseen(stock, "gpt-4o") == ()
    assert demand.unseen(stock, "gemini/gemini-2.5-pro") == ("remote image",)


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
    try:
        assert bound(chat([content])) > depth
    except BadRequest as refusal:
        assert depth > 200
        assert refusal.code == "invalid_value"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda each: st.lists(each) | st.dictionaries(st.sampled_from(
                        ["type", "text", "image_url", "source", "input", "content", "url", "data", "file_id"]), each),
                    max_leaves=30))  # fmt: skip
def test_any_content_is_measured_or_refused(content: Any) -> None:
    """No JSON in the place of a content makes it crash."""
    for endpoint in (CHAT, MESSAGES, RESPONSES):
        field = "input" if endpoint is RESPONSES else "messages"
        try:
            assert bound({field: [{"role": "user", "content": content}]}, endpoint=endpoint) > 0
        except BadRequest as refusal:
            assert refusal.code == "invalid_value"
