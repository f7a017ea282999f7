from __future__ import annotations

import asyncio
import logging
import random
import string
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.model import MODEL_PREFIX_TO_ENCODING, MODEL_TO_ENCODING

from tests.unit.texts import CL100K, HEADS, KINDS, O200K, TOKENIZER
from uc_litellm_plugin import tokens, vocabularies
from uc_litellm_plugin.tokens import Tokenizer
from uc_litellm_plugin.vocabularies import Whole

# The same merges, with other words for the frame of a conversation.
_SAME = ("o200k_harmony", "o200k_base")
WHOLE = vocabularies.whole(otherwise=len)
# What packs well in one vocabulary and badly in the other, and what their patterns cut differently.
PACKED = [" don't we'll they're", " ontwikkeling", " საქართველოს", "ությունների", "/\n//\n", "camelCaseHTTPRequest",
          "'S'LL", ".DataGridViewColumnHeadersHeightSizeMode",
          "\u00a0\u3000 \t\n\r\n   ", "=-" * 9, "-" * 64, " " * 80 + "x",
          "8" * 7, "\U0001f469\u200d\U0001f4bb", "e\u0301\u0323", "<|endoftext|>", "\ud800"]  # fmt: skip


def by_both(text: str) -> int:
    """The larger of both whole counts, as OpenAI counts."""
    return max(len(encoding.encode(text, disallowed_special=())) for encoding in (CL100K, O200K))


def by_each_head(text: str) -> bool:
    """Whether each head alone bounds what its vocabulary counts."""
    wholes = {tokens.CL100K: CL100K, tokens.O200K: O200K}
    return all(HEADS.of(name)(text) >= len(whole.encode(text, disallowed_special=())) for name, whole in wholes.items())


def whole_of(text: str) -> int:
    (counted,) = WHOLE.count(text)
    return counted


ASCII = st.characters(max_codepoint=127)
# What is cut here rather than by tiktoken, and where a cut may go wrong.
CUTS = ["'s", "'LL", "'v", "A", "bc", "Zz", "7", "123456", " ", "  ", "\t", "\n", "\r\n", "\f", "\v", "\x1c", "/", "_",
        "...", "\x00", "\x7f"]  # fmt: skip


@given(st.one_of(st.text(max_size=400), st.text(alphabet=string.printable, max_size=400),
                 st.text(alphabet=ASCII, max_size=400), st.lists(st.sampled_from(CUTS), max_size=80).map("".join),
                 st.lists(st.sampled_from([*PACKED, *string.punctuation, "\n", " ", "a", "Z", "é", "中", "ก", "😀"]),
                          max_size=60).map("".join)))  # fmt: skip
def test_heads_bound_whatever_is_written(text: str) -> None:
    """The heads never count less than either whole vocabulary, and whole counts are OpenAI's."""
    assert TOKENIZER(text) >= by_both(text) == whole_of(text)
    assert by_each_head(text)


@pytest.mark.parametrize("kind", [*KINDS, *PACKED])
def test_heads_bound_what_is_made_to_defeat_them(kind: str) -> None:
    """Nor for random data in any script and encoding, nor for phrases that are one token in one of the vocabularies."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for length in (1, 40, 700, 4_000):
        text = KINDS[kind](rng, length) if kind in KINDS else (kind * length)[:4_096]
        assert TOKENIZER(text) >= by_both(text), length
        assert by_each_head(text), length


@pytest.mark.parametrize("encoding", [CL100K, O200K], ids=["cl100k", "o200k"])
def test_heads_bound_every_token(encoding: object) -> None:
    """Nor for any single token of the whole vocabularies, over and over."""
    assert isinstance(encoding, type(O200K))
    for token in random.Random(1).sample(range(256, 100_000), 4_000):
        text = encoding.decode_single_token_bytes(token).decode("utf-8", "ignore") * 3
        assert TOKENIZER(text) >= by_both(text), text
        assert by_each_head(text), text


def test_models_by_one_vocabulary() -> None:
    """A model is counted by one vocabulary where tiktoken says that it is that one, and by both where it does not."""
    stated = {**MODEL_TO_ENCODING, **{f"{prefix}2026-01-01": name for prefix, name in MODEL_PREFIX_TO_ENCODING.items()}}
    ours = {model: tokens.vocabulary([("openai", model)]) for model in stated}
    assert {model: name for model, name in ours.items() if name not in (None, stated[model].replace(*_SAME))} == {}
    assert [ours[model] for model in ("gpt-4o", "gpt-5", "o3", "gpt-3.5-turbo", "text-embedding-3-small")] == [
        tokens.O200K, tokens.O200K, tokens.O200K, tokens.CL100K, tokens.CL100K
    ]  # fmt: skip
    unsure = ("gpt-6", "gpt-4-prod", "gpt-4-o-preview", "claude-sonnet-4-5", "text-embedding-005")
    assert {tokens.vocabulary([("openai", each)]) for each in unsure} == {None}


def test_deployments_that_an_operator_named() -> None:
    """On Azure the name may be any: what is called gpt-4-prod or o1-prod is counted by both vocabularies."""
    for provider in ("azure", "azure_ai", "github_copilot", "openrouter", "custom_openai"):
        assert tokens.vocabulary([(provider, "gpt-4o")]) is None


def test_models_of_a_plan() -> None:
    """Candidates that count by the same vocabulary share its count, others take the larger one of both."""
    newer, older = ("openai", "gpt-4o"), ("openai", "gpt-3.5-turbo")
    assert tokens.vocabulary([newer, ("openai", "gpt-5-mini")]) == tokens.O200K
    assert tokens.vocabulary([newer, older]) is None
    assert tokens.vocabulary([newer, ("anthropic", "claude-sonnet-4-5")]) is None


def test_a_head_that_nobody_needs_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head is loaded once, when it is first needed."""
    loaded: list[str] = []

    def noted(name: str) -> object:
        loaded.append(name)
        return {tokens.CL100K: CL100K, tokens.O200K: O200K}[name]

    monkeypatch.setattr(vocabularies, "_head", noted)
    heads = vocabularies.Heads()
    assert heads.at_hand(tokens.O200K) is None
    assert heads.of(tokens.O200K)("two words") == 2
    assert heads.at_hand(tokens.O200K) is heads.of(tokens.O200K)
    assert loaded == [tokens.O200K]
    assert heads.by_both("two words") == 2
    assert sorted(loaded) == [tokens.CL100K, tokens.O200K]


def test_a_short_text_in_ascii_keeps_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only other scripts and long texts are for tiktoken's own way, which lets other threads in between."""
    lets_go: list[str] = []

    class Watched(type(O200K)):  # type: ignore[misc]  # a class of the tests
        def encode(self, text: str, **_: object) -> list[int]:
            lets_go.append(text)
            return []

    monkeypatch.setattr(O200K, "__class__", Watched)
    count = vocabularies._counter(O200K)
    others = ["naïve", "x " * (tokens.LONG_TEXT // 2)]
    assert [count(text) for text in ("Say twenty words.", *others)] == [4, 0, 0]
    assert lets_go == others


def test_whole_counts_of_long_texts() -> None:
    """A long text is counted in the same pieces as before, each by the larger of both counts."""
    text = KINDS["code"](random.Random(3), 30_000)
    pieces = [text[start : start + 4_096] for start in range(0, len(text), 4_096)]
    assert whole_of(text) == sum(map(by_both, pieces))


class Slow:
    """A load that ends when it is told to; counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()

    def __call__(self) -> Tokenizer:
        self.begun += 1
        assert self.go_on.wait(60)
        return len


async def test_the_loop_goes_on_while_they_load() -> None:
    """Other tasks have their turns while the first count waits for the vocabularies."""
    slow = Slow()
    counting = asyncio.ensure_future(Whole(slow).count_aside("four", "x"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not counting.done()
    slow.go_on.set()
    assert await counting == [4, 1]


async def test_they_load_once() -> None:
    """However many counts wait, and in whatever way, there is one load, and none later."""
    slow = Slow()
    whole = Whole(slow)
    counting = [asyncio.ensure_future(whole.count_aside("four")) for _ in range(5)]
    counting.append(asyncio.ensure_future(asyncio.to_thread(whole.count, "four")))
    await asyncio.sleep(0)
    assert not whole.is_quick("four")
    slow.go_on.set()
    assert await asyncio.gather(*counting) == [[4]] * 6
    assert slow.begun == 1
    assert whole.is_quick("four")
    assert not whole.is_quick("x" * tokens.LONG_TEXT)


async def test_a_count_that_nobody_waits_for_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """Cancelled while they load, a count leaves the others alone."""
    slow = Slow()
    whole = Whole(slow)
    left, stays = (asyncio.ensure_future(whole.count_aside("four")) for _ in range(2))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    slow.go_on.set()
    assert await stays == [4]
    assert slow.begun == 1
    assert caplog.records == []


async def test_counting_when_no_thread_begins_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Python ends, counts are made on the spot."""

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(vocabularies._COUNTERS, "submit", refuse)
    assert await Whole(lambda: len).count_aside("four") == [4]


def test_a_cache_without_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An operator's own cache directory without them: LiteLLM's files count to the same, and nothing is fetched."""
    monkeypatch.setenv("CUSTOM_TIKTOKEN_CACHE_DIR", str(tmp_path))
    text = KINDS["any"](random.Random(5), 2_000)
    assert vocabularies.whole(otherwise=len).count(text) == [by_both(text)]
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is at hand counts, and a warning says what is not."""

    def without_the_newer(name: str) -> object:
        return vocabularies._read(name) if name == "cl100k_base" else missing(name)

    def missing(name: str) -> object:
        raise FileNotFoundError(name)

    monkeypatch.setattr(vocabularies, "_whole", without_the_newer)
    text = KINDS["letters"](random.Random(5), 500)
    with caplog.at_level(logging.WARNING):
        assert vocabularies.whole(otherwise=len).count(text) == [len(CL100K.encode(text))]
    assert "o200k_base is not at hand" in caplog.text
    monkeypatch.setattr(vocabularies, "_whole", missing)
    assert vocabularies.whole(otherwise=lambda _: 7).count(text) == [7]
    monkeypatch.setattr(vocabularies, "_head", missing)
    assert vocabularies.Heads().of(None)("äb") == 3


def test_no_second_copy_is_kept() -> None:
    """The copy of a vocabulary that Python needs for pickling only, 45 MB of each worker, is dropped."""
    assert whole_of("hello world") == 2
    assert O200K._mergeable_ranks == CL100K._mergeable_ranks == {}
