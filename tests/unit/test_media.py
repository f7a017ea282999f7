from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.texts import PNG, bound, chat, taken
from uc_litellm_plugin import tokens
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.routes import CHAT, MESSAGES, RESPONSES, Endpoint

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
        assert (stock.images, stock.whole_context, stock.unbounded) == (0, False, ())


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
    assert tokens.input_bound(stock, 10, "gpt-4o-audio") >= 60 * 32


def test_remote_images_are_seen_where_only_images_can_be() -> None:
    """A URL is an image for models that read nothing else from one; for others it may be a film."""
    stock = taken(chat([{"type": "image_url", "image_url": {"url": "https://a/b"}}]))
    assert tokens.unseen(stock, "gpt-4o") == ()
    assert tokens.unseen(stock, "gemini/gemini-2.5-pro") == ("remote image",)
