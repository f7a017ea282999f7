"""Texts of many kinds, and the bound of a request that holds them."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable
from typing import Any

import litellm
import tiktoken

from uc_litellm_plugin import demand, tokens, vocabularies
from uc_litellm_plugin.demand import Demand
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.routes import CHAT, Endpoint

HEADS = vocabularies.Heads()
TOKENIZER = HEADS.of(None)
# LiteLLM points tiktoken to the files that it ships, so nothing is downloaded.
CL100K: tiktoken.Encoding = litellm.encoding
O200K = tiktoken.get_encoding("o200k_base")
PNG = "data:image/png;base64,iVBORw0KGgo="


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def taken(body: dict[str, Any], endpoint: Endpoint = CHAT) -> Demand:
    return demand.measure(endpoint, body)


def bound(body: dict[str, Any], model: str = "gpt-4o", endpoint: Endpoint = CHAT) -> int:
    stock = taken(body, endpoint)
    counted = tokens.count(stock.text, HEADS.of(tokens.vocabulary([("openai", model)])))
    return tokens.input_bound(stock, counted, model)


def bound_or_code(body: dict[str, Any], endpoint: Endpoint = CHAT) -> str:
    """The bound of a body that can be measured, else the code of its refusal."""
    try:
        return str(bound(body, endpoint=endpoint))
    except BadRequest as refusal:
        return refusal.code


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
