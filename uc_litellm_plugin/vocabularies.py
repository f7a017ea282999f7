"""The vocabularies that text is counted with, OpenAI's two: their heads, and the whole ones, each when it is needed.

`Heads` count for holds, before a call. They are the first ranks of each vocabulary only, which never counts fewer
tokens than the whole one: byte-pair encoding always merges the pair of lowest rank, so that the whole vocabulary makes
every merge of its head first and goes on from there, and each further merge is a token less.

`Whole` counts what is charged where the provider does not say, exactly as OpenAI does. That is 60 MB of a worker and
half a second, so both wait for the first such call.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import islice
from pathlib import Path

import tiktoken

from . import tokens
from .tokens import CL100K, O200K, Tokenizer

logger = logging.getLogger(__name__)

# How many ranks a head has: as many as the hash tables of tiktoken take before they double (seven eighths of 32,768).
_HEAD = 28_672

# How each vocabulary cuts text before it merges (tiktoken_ext/openai_public.py); to ask tiktoken would load it whole.
_PATTERNS = {
    CL100K: (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    O200K: (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# The same cuts in a text of nothing but ASCII, as Python's `re` writes them down.
_ASCII_PATTERNS = {
    CL100K: re.compile(
        rb"'(?i:[sdmt]|ll|ve|re)|[^\r\n0-9A-Za-z]?[A-Za-z]+|[0-9]{1,3}| ?[^\s0-9A-Za-z]+[\r\n]*"
        rb"|\s+\Z|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    O200K: re.compile(
        rb"[^\r\n0-9A-Za-z]?[A-Z]*[a-z]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        rb"|[^\r\n0-9A-Za-z]?[A-Z]+[a-z]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        rb"|[0-9]{1,3}| ?[^\s0-9A-Za-z]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# Not the common threads, which attempts that LiteLLM prepares need.
_COUNTERS = ThreadPoolExecutor(2, thread_name_prefix="uc-estimate")


class Heads:
    """Count no fewer tokens than one of OpenAI's vocabularies, or than both. One that no call needs is not loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, Tokenizer | None] = {}
        self._tokenizers: dict[str | None, Tokenizer] = {}

    def at_hand(self, vocabulary: str | None) -> Tokenizer | None:
        """As `of`; None where that would block."""
        return self._tokenizers.get(vocabulary)

    def of(self, vocabulary: str | None) -> Tokenizer:
        """Bounds the count with a vocabulary, with either one for None; blocks for 50 ms for each that it loads."""
        with self._lock:
            if vocabulary not in self._tokenizers:
                names = _PATTERNS if vocabulary is None else (vocabulary,)
                self._tokenizers[vocabulary] = _larger(map(self._counter, names), otherwise=_in_bytes)
            return self._tokenizers[vocabulary]

    def by_both(self, text: str) -> int:
        """Bounds the count of a text with either vocabulary; may block."""
        return self.of(None)(text)

    def _counter(self, name: str) -> Tokenizer | None:
        if name not in self._counters:
            self._counters[name] = _at_hand(_head, name)
        return self._counters[name]


class Whole:
    """Counts as the larger of OpenAI's two vocabularies does; they are loaded for the first count.

    Parameters
    ----------
    load
        Makes the tokenizer; blocks.
    """

    def __init__(self, load: Callable[[], Tokenizer]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None

    def is_quick(self, *texts: str) -> bool:
        """Whether they can be counted at once: the vocabularies are loaded, and the texts are short."""
        return self._tokenizer is not None and sum(map(len, texts)) < tokens.LONG_TEXT

    def count(self, *texts: str) -> list[int]:
        """Tokens of each text; blocks while the vocabularies are loaded, by whomever."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._load()
        return [tokens.count(text, self._tokenizer) for text in texts]

    async def count_aside(self, *texts: str) -> list[int]:
        """The same in a thread, so that the event loop goes on."""
        try:
            counting = _COUNTERS.submit(self.count, *texts)
        except RuntimeError:
            # Python is ending, and begins no threads any more.
            return self.count(*texts)
        return await asyncio.wrap_future(counting)


def whole(otherwise: Tokenizer) -> Whole:
    """OpenAI's vocabularies as a whole.

    Parameters
    ----------
    otherwise
        Counts where neither can be loaded.
    """
    return Whole(lambda: _larger((_at_hand(_whole, name) for name in _PATTERNS), otherwise))


def _larger(counters: Iterable[Tokenizer | None], otherwise: Tokenizer) -> Tokenizer:
    """Takes the larger count of those that are at hand."""
    found = [counter for counter in counters if counter is not None]
    if not found:
        return otherwise
    return tokens.remembering(found[0] if len(found) == 1 else lambda text: max(count(text) for count in found))


def _at_hand(made: Callable[[str], tiktoken.Encoding], name: str) -> Tokenizer | None:
    try:
        encoding = made(name)
        counter = _counter(encoding)
    except Exception as error:
        # An answer that was delivered must not be free, nor a call refused, whatever is wrong with the files.
        logger.warning("%s is not at hand, what OpenAI's models count may be taken for too little: %s", name, error)
        return None
    # Python's copy, which only pickling reads, would be 45 MB.
    encoding._mergeable_ranks = {}
    return counter


def _counter(encoding: tiktoken.Encoding) -> Tokenizer:
    """Counts with a vocabulary.

    For each text tiktoken lets go of the interpreter, and a thread in which LiteLLM prepares an attempt
    (litellm/main.py, `acompletion`) takes it: on a busy worker that costs a call five times the count. A short text in
    ASCII, which most are, is cut here and counted word by word, with the same result.
    """
    words, merged = _ASCII_PATTERNS[encoding.name].findall, encoding._core_bpe.encode_single_piece

    def count(text: str) -> int:
        if len(text) < tokens.LONG_TEXT and text.isascii():
            return sum(map(len, map(merged, words(text.encode("ascii")))))
        return len(encoding.encode(text, disallowed_special=()))

    return count


def _whole(name: str) -> tiktoken.Encoding:
    if not (_cache() / _file_name(name)).exists():
        return _read(name)
    # The very object that LiteLLM counts with; it sets the same when it first does so.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(_cache())
    return tiktoken.get_encoding(name)


def _head(name: str) -> tiktoken.Encoding:
    return _read(name, _HEAD)


def _read(name: str, most: int | None = None) -> tiktoken.Encoding:
    """A vocabulary, or its first ranks, from the file that LiteLLM ships."""
    ranks: dict[bytes, int] = {}
    with (_shipped() / _file_name(name)).open("rb") as lines:
        for expected, line in enumerate(islice(lines, most)):
            token, rank = line.split()
            if int(rank) != expected:
                raise ValueError(f"the file of {name} in {_shipped()} is not in the order of ranks")
            ranks[base64.b64decode(token)] = expected
    return tiktoken.Encoding(name, pat_str=_PATTERNS[name], mergeable_ranks=ranks, special_tokens={})


def _shipped() -> Path:
    return Path(str(resources.files("litellm"))) / "litellm_core_utils" / "tokenizers"


def _cache() -> Path:
    """Where LiteLLM has tiktoken look (litellm/litellm_core_utils/default_encoding.py, whose import would load one)."""
    own = os.environ.get("CUSTOM_TIKTOKEN_CACHE_DIR")
    return Path(own) if own else _shipped()


def _file_name(name: str) -> str:
    """The name tiktoken gives a vocabulary's file: the digest of its address."""
    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()


def _in_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
