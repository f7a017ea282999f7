"""How many tokens the input of a request can be, and what it is taken for when nobody says.

The text is counted with the heads of the vocabularies that OpenAI publishes (`vocabularies`), which bounds OpenAI's
models: with the model's own one where its name tells it, else with both. For models of others it is the larger of that
count times a factor per family, and of a count by kinds of characters that no packing of whole phrases into one token
defeats. A token of every tokenizer in use stands for at least one byte
(byte-level BPE, or SentencePiece with byte fallback), so the bytes bound all of them. Images and audio come from a
table.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from weakref import WeakKeyDictionary

from .demand import Demand

Tokenizer = Callable[[str], int]

# Of OpenAI's vocabularies, the older and the newer one.
CL100K, O200K = "cl100k_base", "o200k_base"

# Tokenizing is bounded: pieces keep BPE merging linear, beyond the limit each byte counts as a token.
_PIECE = 4_096
_SHARE = 32 * _PIECE
_LONGEST = 2_000_000
# From here on counting is for a thread: a piece takes a millisecond, more would be felt by every other call.
LONG_TEXT = _PIECE
_REMEMBERED = 16_384


@dataclass(frozen=True)
class Family:
    """How a family of models turns input into tokens.

    Attributes
    ----------
    factor
        Most tokens per token of our count.
    exact
        Our count is by the heads of this family's own vocabularies.
    vocabulary
        The one that all of the family counts with, None where that is not known.
    image
        Most tokens one image costs.
    remote_images
        True where a URL can only be read as an image; elsewhere it may be a document or a film.
    tools
        Tokens of the hidden prompt that comes with tools.
    """

    factor: float
    image: int
    exact: bool = False
    vocabulary: str | None = None
    remote_images: bool = False
    tools: int = 200


# Images: https://platform.openai.com/docs/guides/images (gpt-4o-mini: 2833 + 48 tiles at most of 5667 are scaled down
# to 8 tiles), https://docs.anthropic.com/en/docs/build-with-claude/vision, https://ai.google.dev/gemini-api/docs/tokens.
# Vocabularies: tiktoken/model.py.
_OPENAI = Family(1.02, 4_000, exact=True, remote_images=True)
_NEWER, _OLDER = replace(_OPENAI, vocabulary=O200K), replace(_OPENAI, vocabulary=CL100K)
_FAMILIES: tuple[tuple[tuple[str, ...], Family], ...] = (
    (("gpt-4o-mini",), replace(_NEWER, image=48_169)),
    (("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "gpt-oss", "chatgpt-4o", "o1", "o3", "o4"), _NEWER),
    (("gpt-4-turbo", "gpt-4-0", "gpt-4-1106", "gpt-4-32k", "gpt-3.5-turbo"), _OLDER),
    (("text-embedding-3", "text-embedding-ada-002"), _OLDER),
    (("gpt-", "chatgpt", "text-embedding", "davinci", "babbage"), _OPENAI),
    (("claude",), Family(1.6, 5_000, remote_images=True, tools=1_000)),
    (("gemini", "gemma"), Family(1.4, 5_200)),
)
_OTHER = Family(1.8, 8_000)

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = b"0123456789"
_BEYOND_ASCII = bytes(range(128, 256))
# Letters, blanks, and all else, by which runs of letters are found.
_CLASSES = bytes(97 if code in _LETTERS else 32 if code == 32 else 49 for code in range(256))

_FRAMING_PER_PART = 12
_FRAMING = 32


@lru_cache(1_024)
def family(model: str) -> Family:
    """The family of a model, by the name the provider knows it under."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((value for names, value in _FAMILIES if name.startswith(names)), _OTHER)


def vocabulary(models: Iterable[tuple[str, str]]) -> str | None:
    """The one vocabulary whose count bounds all of these models, None where it takes the larger count of both.

    Parameters
    ----------
    models
        LiteLLM's provider and the model's name there. The name is the model's at OpenAI only: on Azure, say, it is
        whatever the operator called a deployment.
    """
    found = {family(model).vocabulary if provider == "openai" else None for provider, model in models}
    return found.pop() if len(found) == 1 else None


def count(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text by one tokenizer; never fewer than it would count in one go."""
    if len(text) > _LONGEST:
        return len(text.encode("utf-8", "replace"))
    return sum(tokenizer(text[start : start + _PIECE]) for start in range(0, len(text), _PIECE))


def shares(text: str) -> Iterator[str]:
    """A text in parts that are counted alone and add up to its count, so that long texts can take turns."""
    if len(text) > _LONGEST:
        yield text
        return
    for start in range(0, len(text), _SHARE):
        yield text[start : start + _SHARE]


def remembering(tokenizer: Tokenizer, most: int = _REMEMBERED) -> Tokenizer:
    """The same tokenizer, with the counts of the latest whole pieces kept.

    A conversation that goes on and a document that is asked about again cost a digest of what was counted before. The
    text itself is not kept.

    Parameters
    ----------
    most
        How many counts are kept, some 150 bytes each.
    """
    counts: dict[bytes, int] = {}
    lock = threading.Lock()

    def counted(text: str) -> int:
        if len(text) < _PIECE:
            return tokenizer(text)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with lock:
            known = counts.get(digest)
        if known is None:
            known = tokenizer(text)
            with lock:
                if len(counts) >= most:
                    del counts[next(iter(counts))]
                counts[digest] = known
        return known

    return counted


def prepare(demand: Demand) -> None:
    """Find out what bounds a text's tokens by its bytes; a long one takes a while, and bounds ask for it again."""
    _size(demand)


def input_bound(demand: Demand, counted: int, model: str) -> int:
    """The most tokens this model can count for the input that is seen.

    Parameters
    ----------
    demand
        What was asked.
    counted
        `count(demand.text, …)`.
    model
        The model's name at its provider, which tells the family.
    """
    kind, size = family(model), _size(demand)
    text = int(counted * kind.factor) + 1 if kind.exact else max(int(counted * kind.factor) + 1, size.by_characters)
    text = min(text, size.in_bytes)
    framing = _FRAMING + demand.parts * _FRAMING_PER_PART + (kind.tools if '"tools":' in demand.text else 0)
    return text + demand.token_ids + framing + _media(demand, kind)


@dataclass(frozen=True)
class _Size:
    in_bytes: int
    by_characters: int


# A plan asks once per candidate, and a long text takes milliseconds.
_SIZES: WeakKeyDictionary[Demand, _Size] = WeakKeyDictionary()


def _size(demand: Demand) -> _Size:
    if (size := _SIZES.get(demand)) is None:
        data = demand.text.encode("utf-8", "replace")
        size = _SIZES[demand] = _Size(len(data), _by_characters(data))
    return size


def _by_characters(data: bytes) -> int:
    """Tokens of a text by any tokenizer that cuts words into pieces of 2.5 letters or more, and digits and symbols one
    by one. The count by a given tokenizer can be made small with phrases that are single tokens in it (a word of code
    of 26 letters, a row of eleven symbols) and many in another one."""
    letters, digits, blanks = (len(data) - len(data.translate(None, kind)) for kind in (_LETTERS, _DIGITS, b" "))
    ascii_bytes = len(data.translate(None, _BEYOND_ASCII))
    symbols = ascii_bytes - letters - digits - blanks
    short = _short_runs(data)
    return int(letters / 2.5 + short + digits + symbols + blanks / 4 + (len(data) - ascii_bytes) * 0.6) + 1


def _short_runs(data: bytes) -> float:
    """What one or two letters between digits or symbols (`3f9a`, `a.b`) cost beyond their share of a piece: a token is
    no less than one of them. Gemma's tokenizer cuts so, and others merge more."""
    classes = data.translate(_CLASSES)
    one, two, three = (classes.count(b"1" + b"a" * least) for least in (1, 2, 3))
    return (one - two) * 0.6 + (two - three) * 0.4


def input_estimate(demand: Demand, counted: int, model: str, context: int | None) -> int:
    """The number of input tokens to charge when the provider does not say.

    It is on the high side, so that leaving before the provider's own count comes is never cheaper than waiting for it:
    media by the table, documents and what cannot be seen by the context window.

    Parameters
    ----------
    counted
        Tokens of `demand.text` by the whole vocabularies.
    model, context
        Of the candidate that was asked.
    """
    text = counted + demand.token_ids
    hidden = demand.whole_context or unseen(demand, model)
    return max(text + _media(demand, family(model)), context or 0 if hidden else 0)


def _media(demand: Demand, kind: Family) -> int:
    # 16 bytes a token is eight times the densest speech codec at 10 tokens a second.
    return (demand.images + demand.remote_images) * kind.image + demand.audio_bytes // 16


def unseen(demand: Demand, model: str) -> tuple[str, ...]:
    """What of the input this model would read but nobody can measure here."""
    remote = ("remote image",) if demand.remote_images and not family(model).remote_images else ()
    return demand.unbounded + remote
