"""How the upstream counts, and what an answer is made of before a dialect puts it on the wire.

The tokenizer is the upstream's own. Input: whitespace-separated words of all text, plus 3 a message, plus the words of
each tool's JSON, plus 85 for every part that is not text; a list of token ids counts its ids. Output: the words sent,
plus reasoning tokens. The last user message may direct the answer: `say 25 words` (7 unless told), `think 9 tokens`
(5 unless told, reasoning models only), `cached 4 tokens`, `written 4 tokens` (to the cache), and `call a tool`.
No answer is longer than the cap it was given, unless the fault `ignore_cap` is on.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

VOCABULARY = ["the", "old", "boat", "went", "down", "to", "the", "sea", "and", "then", "came", "back", "with", "fish"]
TOOL_ARGUMENTS = '{"city": "Paris"}'
TOKENS_PER_MESSAGE = 3
TOKENS_PER_OTHER_PART = 85


@dataclass
class Usage:
    """What one call consumed: `input` contains `cached` and `written`, `output` contains `reasoning`.

    `units` counts what is not sold by token: images, characters, seconds, search_units.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    units: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A request as a dialect sees it; `model` is the name to answer with, `history` the tokens of earlier responses."""

    id: str
    body: Json
    model: str
    ignore_cap: bool = False
    history: int = 0

    def cap(self, *names: str, default: int | None = None) -> int | None:
        """The lowest cap named, None for none; raises ValueError for one below 1, which providers refuse."""
        given = {name: int(self.body[name]) for name in names if self.body.get(name) is not None}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        return None if self.ignore_cap else min(given.values(), default=default)

    @property
    def tools(self) -> list[Json]:
        return list(self.body.get("tools") or [])


@dataclass(frozen=True)
class Chunk:
    """One event of a stream and how many of the answer's words it carries; None is OpenAI's `[DONE]`."""

    data: Json | None
    words: int = 0
    only_usage: bool = False

    def encode(self) -> bytes:
        if self.data is None:
            return b"data: [DONE]\n\n"
        name = f"event: {self.data['type']}\n" if "type" in self.data else ""
        return f"{name}data: {json.dumps(self.data)}\n\n".encode()


@dataclass
class Answer:
    """A plain body, and the events of the same answer for a client that asks for a stream."""

    usage: Usage | None
    plain: Json | bytes
    chunks: list[Chunk] = field(default_factory=list)
    words: int = 0
    media: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """One choice. The words of a tool call are its name and then its arguments."""

    words: list[str]
    reasoning: int
    cut: bool
    tool: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.words) + self.reasoning

    @property
    def spoken(self) -> list[str]:
        return self.words[1:] if self.tool else self.words

    @property
    def text(self) -> str:
        return " ".join(self.spoken)

    @property
    def pieces(self) -> list[str]:
        return [word if i == 0 else f" {word}" for i, word in enumerate(self.spoken)]

    def finish(self, stop: str, length: str, tool: str) -> str:
        if self.cut:
            return length
        return tool if self.tool else stop


def count(text: Any) -> int:
    """Tokens of a text, of a list of token ids, or of the JSON of anything else."""
    if isinstance(text, list) and all(isinstance(token, int) for token in text):
        return len(text)
    return len((text if isinstance(text, str) else json.dumps(text)).split())


def parts(content: Any) -> Iterator[str | None]:
    """The texts of a message's content, None for each part that is not text."""
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and "content" in part:
            yield from parts(part["content"])
        else:
            yield part.get("text") if isinstance(part, dict) else str(part)


def message_tokens(message: Json) -> int:
    texts = sum(TOKENS_PER_OTHER_PART if text is None else count(text) for text in parts(message.get("content")))
    rest = sum(count(message[name]) for name in ("tool_calls", "output", "arguments") if message.get(name))
    return TOKENS_PER_MESSAGE + texts + rest


def last_said(messages: Iterable[Json]) -> str:
    texts = [" ".join(filter(None, parts(m.get("content")))) for m in messages if m.get("role") == "user"]
    return texts[-1] if texts else ""


def directed(said: str, pattern: str, default: int = 0) -> int:
    found = re.search(pattern, said, re.IGNORECASE)
    return int(found[1]) if found else default


def is_openai_reasoning(model: str) -> bool:
    return re.match(r"o\d|gpt-5", model) is not None


def is_reasoning(model: str) -> bool:
    return "reason" in model or is_openai_reasoning(model)


def called_tool(ask: Ask, said: str) -> str | None:
    if not ask.tools or "call a tool" not in said.lower():
        return None
    name = ask.tools[0].get("function", ask.tools[0]).get("name")
    return str(name) if name else None


def compose(ask: Ask, said: str, cap: int | None) -> Output:
    """One choice: what the prompt directs, thought about first, cut at the cap (in tokens, None for no cap)."""
    tool = called_tool(ask, said)
    spoken = list(itertools.islice(itertools.cycle(VOCABULARY), directed(said, r"say (\d+) words?", 7)))
    wanted = [tool, *TOOL_ARGUMENTS.split()] if tool else spoken
    reasoning = directed(said, r"think (\d+) tokens?", 5) if is_reasoning(str(ask.body.get("model"))) else 0
    total = len(wanted) + reasoning
    kept = total if cap is None else min(total, cap)
    words = wanted[: max(kept - reasoning, 0)]
    return Output(words, min(reasoning, kept), kept < total, tool if words else None)


def consumed(ask: Ask, messages: list[Json], outputs: list[Output]) -> Usage:
    """What a conversation cost: its messages, tools and history in, the outputs out."""
    said = last_said(messages)
    read = sum(map(message_tokens, messages)) + sum(map(count, ask.tools)) + ask.history
    cached = min(directed(said, r"cached (\d+) tokens?"), read)
    written = min(directed(said, r"written (\d+) tokens?"), read - cached)
    return Usage(read, sum(o.tokens for o in outputs), cached, written, sum(o.reasoning for o in outputs))
