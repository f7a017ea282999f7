from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uc_litellm_plugin import requests
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.routes import CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, MESSAGES, RESPONSES, Endpoint

SMALLEST: dict[Endpoint, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    RESPONSES: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
}


def check(endpoint: Endpoint = CHAT, extra: frozenset[str] = frozenset(), **fields: Any) -> None:
    requests.check_body(endpoint, {**SMALLEST[endpoint], **fields}, extra)


def refusal(endpoint: Endpoint = CHAT, extra: frozenset[str] = frozenset(), **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        check(endpoint, extra, **fields)
    return caught.value


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.name)
def test_the_smallest_body_passes(endpoint: Endpoint) -> None:
    """A body with the required fields alone is fine at every endpoint."""
    check(endpoint)


DOCUMENTED: list[tuple[Endpoint, str, Any]] = [
    (CHAT, "temperature", 0.5), (CHAT, "tools", []), (CHAT, "stream", True), (CHAT, "max_tokens", None),
    (CHAT, "logit_bias", {}), (CHAT, "metadata", {"session_id": "s"}), (CHAT, "stream_options", None),
    (CHAT, "reasoning_effort", "low"), (CHAT, "max_completion_tokens", 10_000_000), (CHAT, "n", 128),
    (COMPLETIONS, "best_of", 5), (COMPLETIONS, "prompt", ["a"] * 2048), (COMPLETIONS, "prompt", [1] * 5000),
    (RESPONSES, "background", False), (RESPONSES, "max_output_tokens", 5), (RESPONSES, "previous_response_id", "r"),
    (MESSAGES, "system", "s"), (MESSAGES, "thinking", {"type": "enabled", "budget_tokens": 1024}),
    (EMBEDDINGS, "dimensions", 5), (EMBEDDINGS, "input", [[1, 2], [3]]),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "field", "value"), DOCUMENTED)
def test_documented_fields_pass(endpoint: Endpoint, field: str, value: Any) -> None:
    """What OpenAI and Anthropic document is let through, null included."""
    check(endpoint, **{field: value})


@pytest.mark.parametrize("field", sorted(requests.CONTROLS))
def test_controls_of_the_proxy_never_pass(field: str) -> None:
    """What steers LiteLLM is refused by name, even where the operator added it."""
    fields: dict[str, Any] = {field: True}
    found = refusal(CHAT, frozenset({field}), **fields)
    assert (found.code, found.param) == ("unknown_field", field)
    assert field in found.message


@pytest.mark.parametrize(
    "field", ["nonsense", "Model", "max_output_tokens", "maxOutputTokens", "_private", "prompt", "", "a\0b", "\ud800"]
)
def test_unknown_fields_are_named(field: str) -> None:
    """A field nobody documented at this endpoint is a 400 that names it, fit to be sent."""
    fields: dict[str, Any] = {field: 1}
    found = refusal(CHAT, frozenset(), **fields)
    assert found.code == "unknown_field"
    found.message.encode()
    assert "\0" not in found.message


def test_operators_may_add_fields() -> None:
    """A name in requests.extra_fields passes, and only that one."""
    check(extra=frozenset({"chat_template_kwargs"}), chat_template_kwargs={})
    assert refusal(extra=frozenset({"a"}), b=1).param == "b"


def test_the_same_body_is_refused_for_the_same_field() -> None:
    """In every worker: which of several wrong numbers is named does not depend on how Python hashes names."""
    with pytest.raises(BadRequest) as caught:
        check(CHAT, frozenset({"best_of"}), best_of=0, n=0, max_completion_tokens=0, max_tokens=0)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize("value", [0, -5, 10_000_001, 1.0, "5", True, False, [], {}, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_cap_is_a_whole_number(field: str, value: Any) -> None:
    """An output limit is a whole number from 1 on; nothing is rounded or guessed."""
    found = refusal(**{field: value})
    assert (found.code, found.param) == ("invalid_value", field)


@pytest.mark.parametrize("value", [0, -1, 129, 2.0, "2", True])
@pytest.mark.parametrize("field", ["n", "best_of"])
def test_answers_are_whole_numbers(field: str, value: Any) -> None:
    """So are the numbers of answers, up to 128."""
    assert refusal(COMPLETIONS, **{field: value}).param == field


@pytest.mark.parametrize("value", [None, "", " ", 5, ["m"], "a,b", "a\nb", "a\0", "x" * 513])
def test_the_model_is_one_name(value: Any) -> None:
    """A model is one name without commas and control characters."""
    assert refusal(model=value).code == "invalid_model"


SHAPES: list[tuple[Endpoint, str, Any, str]] = [
    (CHAT, "messages", "hi", "invalid_value"), (CHAT, "messages", [], "missing_field"),
    (CHAT, "messages", None, "missing_field"), (CHAT, "stream", "true", "invalid_value"),
    (CHAT, "stream", 1, "invalid_value"), (CHAT, "stream_options", [], "invalid_value"),
    (CHAT, "tools", {}, "invalid_value"), (CHAT, "metadata", "m", "invalid_value"),
    (CHAT, "service_tier", 5, "invalid_value"), (CHAT, "modalities", "audio", "invalid_value"),
    (COMPLETIONS, "prompt", "", "missing_field"), (COMPLETIONS, "prompt", ["a"] * 2049, "invalid_value"),
    (EMBEDDINGS, "input", [], "missing_field"), (RESPONSES, "input", None, "missing_field"),
    (RESPONSES, "background", True, "unsupported_value"), (RESPONSES, "max_tool_calls", "5", "invalid_value"),
    (CHAT, "tools", -1, "invalid_value"), (CHAT, "response_format", "json", "invalid_value"),
    (CHAT, "tool_choice", 5, "invalid_value"), (RESPONSES, "text", "json", "invalid_value"),
    (CHAT, "messages", [{"role": "user", "content": [{"type": None}]}], "invalid_value"),
    (EMBEDDINGS, "input", [[1], []], "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "field", "value", "code"), SHAPES)
def test_shapes_are_checked(endpoint: Endpoint, field: str, value: Any, code: str) -> None:
    """A field of the wrong kind, an empty prompt or a background answer is a 400 that names the field."""
    found = refusal(endpoint, **{field: value})
    assert (found.code, found.param) == (code, field)


def test_a_stored_prompt_needs_no_input() -> None:
    """A response may be made from a stored prompt alone."""
    check(RESPONSES, input=None, prompt={"id": "p"})


def test_the_smallest_cap_counts() -> None:
    """Where several output limits are named, the smallest one is meant."""
    assert requests.named_cap({"max_tokens": 9, "max_completion_tokens": 7}) == 7
    assert requests.named_cap({"max_tokens": None}) is None
    assert requests.named_cap({}) is None


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"prompt": [[1], [2, 3]]}, 2),
        ({"prompt": "a", "n": 4, "best_of": 2}, 4),
        ({"prompt": ["a"] * 100, "n": 2, "best_of": 5}, 500),
        ({"prompt": "a", "n": None}, 1),
    ],
)
def test_how_many_answers(body: dict[str, Any], number: int) -> None:
    """Answers are prompts times the larger of n and best_of."""
    assert requests.answers(COMPLETIONS, body) == number


def test_elsewhere_a_list_is_one_prompt() -> None:
    """Many messages or inputs are one prompt."""
    assert requests.answers(CHAT, {"messages": [{}] * 5, "n": 2}) == 2
    assert requests.answers(EMBEDDINGS, {"input": ["a"] * 5}) == 1


@given(st.text(), st.integers(0, 50))
def test_clean_names_are_fit_for_a_row(text: str, longest: int) -> None:
    """A cleaned name is short enough, has no control character and no surrogate, and is None rather than empty."""
    found = requests.clean(text, longest)
    if found is not None:
        assert 0 < len(found) <= longest
        found.encode()
        assert not {unicodedata.category(char) for char in found} & {"Cc", "Cs"}


@pytest.mark.parametrize("value", [None, 5, [], {}, "", "  ", "\0", "\ud800"])
def test_what_is_no_name_is_none(value: Any) -> None:
    """Anything but a string with something in it is no name."""
    assert requests.clean(value, 10) is None


def test_ordinary_names_stay() -> None:
    """Letters of any language and emoji stay as they are."""
    assert requests.clean(" Größe 東京 🙂 ", 20) == "Größe 東京 🙂"


def test_an_hour_of_cache() -> None:
    """Writes for an hour are refused where the answer would not tell them from those for five minutes."""
    part = {"type": "input_text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    with pytest.raises(BadRequest, match="ttl"):
        requests.check_body(RESPONSES, body, frozenset())
    part["cache_control"] = {"type": "ephemeral", "ttl": "5m"}
    requests.check_body(RESPONSES, body, frozenset())
    requests.check_body(CHAT, {"model": "m", "messages": body["input"]}, frozenset())
