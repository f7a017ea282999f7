"""What this plugin rests on in LiteLLM and httpx, checked at the start: where a part has moved, nothing is served.

Calls are held, settled and routed by hooks and functions of others. One that has another name, other parameters, or
that nobody calls any more need not fail loudly: calls would pass unbilled, or be billed wrongly.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from mmap import ACCESS_READ, mmap
from typing import Any, Literal

from .errors import UcError
from .parts import COMPROMISED, NEWEST, OLDEST, PARTS, PROBED_COST, PROBED_PRICES, PROBED_USAGES, Part

logger = logging.getLogger(__name__)

# Stands for a name that is not there.
MISSING = object()
_NOTHING_SERVED = "Nothing is served, since calls could pass unbilled or be billed wrongly."


class ContractBroken(UcError):
    """What this package rests on has moved; the message names each part and the way out."""


@lru_cache(maxsize=1)
def check() -> None:
    """Compare what is installed with what this plugin rests on; takes some 50 ms, once per process.

    Raises
    ------
    ContractBroken
        Parts have moved; the message names each, the versions that are supported, and the way out.
    """
    moved = [*unfit_release(metadata.version("litellm")), *moved_parts(PARTS)]
    # What the arithmetic says is of no use where its parts are missing.
    moved += [] if moved else list(moved_prices())
    if moved:
        raise ContractBroken(_explained(moved))


def unfit_release(version: str) -> Iterator[str]:
    """What is wrong with a release as such; one that is newer than those that were tested is only warned of."""
    installed = release(version)
    if installed < OLDEST:
        yield f"litellm {version}: expected {_dotted(OLDEST)} or newer; older ones fail this plugin's tests"
    elif installed == COMPROMISED:
        yield f"litellm {version}: expected any other release; {_dotted(COMPROMISED)} was compromised"
    elif installed > NEWEST:
        logger.warning("LiteLLM %s is newer than %s, the newest that was tested", version, _dotted(NEWEST))


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


def moved_parts(parts: Iterable[Part]) -> Iterator[str]:
    """What each part that has moved was expected to be, and what it is."""
    for part in parts:
        try:
            found = find(part)
        except ImportError as error:
            yield f"{part}: expected {part.expected}; it cannot be imported ({error})"
            continue
        if (fault := fault_of(part, found)) is not None:
            yield f"{part}: expected {part.expected}; {fault}"


def find(part: Part) -> Any:
    """What stands under a part's name, `MISSING` where nothing does; raises ImportError without its module."""
    found: Any = import_module(part.module)
    for name in part.name.split("."):
        found = getattr(found, name, MISSING)
    return found


def fault_of(part: Part, found: Any) -> str | None:
    """What is wrong with what stands under a part's name, None where it is as expected."""
    if found is MISSING:
        return "there is no such name"
    if part.kind == "value":
        return None
    if not callable(found):
        return f"found {type(found).__name__}, which cannot be called"
    kind, signature = kind_of(found), inspect.signature(found)
    if kind != part.kind:
        return f"found a {kind}"
    if not (_is_same(part, signature) if part.is_ours_to_take else _takes(part, signature)):
        return f"found {_shown(signature)}"
    if part.callers and not any(_mentions(caller, part.name) for caller in part.callers):
        return f"none of {', '.join(part.callers)} calls it"
    return None


def kind_of(found: Any) -> Literal["function", "coroutine", "stream"]:
    """How a function is called: plainly, awaited, or iterated over."""
    if inspect.isasyncgenfunction(found):
        return "stream"
    return "coroutine" if inspect.iscoroutinefunction(found) else "function"


def moved_prices() -> Iterator[str]:
    """What LiteLLM's arithmetic makes of a known call, in each dialect, where that is not what it costs."""
    # Late: it imports names of LiteLLM, which must have been found by then.
    from . import costs
    from .plan import Candidate

    probed = Candidate("uc-contract", "uc-contract", "openai/uc-contract", "openai", "openai", "uc-contract",
                       PROBED_PRICES, custom_prices=True, max_output=None, context=None)  # fmt: skip
    for call_type, usage in PROBED_USAGES.items():
        cost = costs.cost(probed, usage, call_type, None)
        if cost != PROBED_COST:
            yield f"litellm.completion_cost: expected {PROBED_COST} USD for a known call ({call_type}); found {cost}"


def supported() -> str:
    """The releases of LiteLLM that this plugin is made for, as pip knows them."""
    try:
        needed = metadata.requires("uc-litellm-plugin") or []
    except metadata.PackageNotFoundError:
        needed = []
    return next((each for each in needed if each.startswith("litellm")), "see docs/compatibility.md")


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def _is_same(part: Part, signature: inspect.Signature) -> bool:
    """Whether a hook gets what ours takes, in that order, and nothing that ours would choke on."""
    names = [name for name in signature.parameters if name not in ("self", *part.may_add)]
    return names == list(part.parameters)


def _takes(part: Part, signature: inspect.Signature) -> bool:
    """Whether a function can be called the way we do."""
    given = [None] * part.positional
    try:
        signature.bind(*given, **dict.fromkeys(part.parameters))
    except TypeError:
        return False
    return True


def _mentions(module: str, name: str) -> bool:
    try:
        spec = find_spec(module)
        if spec is None or not spec.origin:
            return False
        # Mapped: read into memory, two million characters would leave holes in it for good.
        with open(spec.origin, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as source:
            return source.find(f".{name.rpartition('.')[2]}".encode()) >= 0
    except (ImportError, OSError, ValueError):
        return False


def _shown(signature: inspect.Signature) -> str:
    """A signature by its names; annotations would fill the screen."""
    return f"({', '.join(signature.parameters)})"


def _explained(moved: list[str]) -> str:
    version = metadata.version("litellm")
    parts = "".join(f"\n  - {each}" for each in moved)
    return (
        f"LiteLLM {version} is not what this uc_litellm_plugin is made for. "
        f"{_NOTHING_SERVED} What has moved:{parts}\n"
        f"Supported is {supported()}: install one of those that docs/compatibility.md lists as tested "
        "(pip install 'litellm[proxy]==…'), or a newer uc-litellm-plugin."
    )
