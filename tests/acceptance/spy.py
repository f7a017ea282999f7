"""Another callback beside the plugin's, as an operator may have any: it writes down what it can reach in every hook.

It runs within the proxy. Of all strings it reaches it keeps those with a canary in them (and counts the others), each
with where it was found: through plain data, which is what callbacks write and send, or through objects' attributes.
"""

from __future__ import annotations

import gc
import json
import os
import re
import socket
import sys
import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server

from tests.acceptance.keyring import CANARY

WITNESS = re.compile(r"mark \d+")
DEEPEST = 10
# Not of the call: the proxy's whole, in which the plugin itself would be found.
_ELSEWHERE = (
    *("litellm.router.Router", "uc_litellm_plugin.", "asyncio.", "_asyncio.", "logging.", "fastapi.", "starlette."),
    *("weakref.", "_contextvars.", "contextvars.", "uvicorn.", "opentelemetry.", "tests.acceptance.spy"),
    *("litellm.caching.", "litellm.proxy.utils.", "_thread."),
)
_PLAIN = (dict, list, tuple, set, frozenset)
_CODE = (types.ModuleType, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.TracebackType)

HOOKS = (
    *("log_pre_api_call", "log_post_api_call", "log_stream_event", "log_success_event", "log_failure_event"),
    *("async_log_stream_event", "async_log_pre_api_call", "async_log_success_event", "async_log_failure_event"),
    *("async_pre_call_deployment_hook", "async_post_call_success_deployment_hook", "async_filter_deployments"),
    *("async_post_call_failure_deployment_hook", "async_post_call_streaming_deployment_hook"),
    *("log_success_fallback_event", "log_failure_fallback_event", "async_pre_call_hook", "async_pre_request_hook"),
    *("async_post_call_response_headers_hook", "async_post_call_failure_hook", "async_post_call_success_hook"),
    *("async_logging_hook", "logging_hook", "async_moderation_hook", "async_post_call_streaming_hook"),
)


# A value's place: the one it is in, and how one gets from there to it.
Way = tuple[Any, str] | None


def strings(value: Any) -> Iterator[tuple[Way, str, bool]]:
    """Every text within reach, its first place, and whether only plain data lies between; what is near comes first, and
    plain data before all else."""
    plain_ones: deque[tuple[Any, Way, int]] = deque([(value, None, 0)])
    others: deque[tuple[Any, Way, int]] = deque()
    # The values themselves, since another one may have the id of one that is gone.
    seen: dict[int, Any] = {}
    while plain_ones or others:
        plain = bool(plain_ones)
        value, way, depth = (plain_ones or others).popleft()
        if value is None or isinstance(value, (int, float)) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, str):
            yield way, value, plain
        elif isinstance(value, (bytes, bytearray)):
            yield way, bytes(value).decode(errors="replace"), plain
        elif depth <= DEEPEST:
            for name, inner, still_plain in inside(value):
                (plain_ones if plain and still_plain else others).append((inner, (way, name), depth + 1))


def path(way: Way) -> str:
    """A place as text."""
    names = []
    while way is not None:
        way, name = way
        names.append(name)
    return "".join(reversed(names))


@cache
def _slots(kind: type) -> tuple[str, ...] | None:
    """The slots of a class's instances; None where they are not looked into."""
    if f"{kind.__module__}.{kind.__qualname__}".startswith(_ELSEWHERE):
        return None
    slots = [slot for base in kind.__mro__ for slot in getattr(base, "__slots__", ())]
    return tuple(slot for slot in slots if isinstance(slot, str))


def inside(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """What a value holds, by how one gets there."""
    if isinstance(value, dict):
        for name, each in list(value.items()):
            yield f"[{str(name)[:40]!r}]", each, True
            yield "(a key)", name, True
    elif isinstance(value, _PLAIN):
        for number, each in enumerate(list(value)):
            yield f"[{number}]", each, True
    kind = type(value)
    if isinstance(value, _CODE) or (slots := _slots(kind)) is None:  # type: ignore[arg-type]  # a class can be hashed
        return
    if isinstance(value, BaseException):
        yield ".args", value.args, True
        yield ".str()", str(value), True
        yield ".__cause__", value.__cause__, False
        yield ".__context__", value.__context__, False
        yield from frames(value)
    named = dict(getattr(value, "__dict__", None) or {})
    named |= {slot: getattr(value, slot, None) for slot in slots}
    is_model = hasattr(kind, "model_fields")
    for name, each in named.items():
        yield f".{name}", each, is_model
    if isinstance(value, httpx.Headers):
        yield ".raw", list(value.raw), False


def frames(error: BaseException) -> Iterator[tuple[str, Any, bool]]:
    """The local variables along an error's traceback, as error reporters send them."""
    at = error.__traceback__
    while at is not None:
        for name, each in list(at.tb_frame.f_locals.items()):
            yield f".frame({at.tb_frame.f_code.co_name}).{name}", each, False
        at = at.tb_next


def _elsewhere() -> None:
    """Let names lead where SPY_HOSTS says, as a name server that changed its mind would: `a.test=127.0.0.1`."""
    told = dict(pair.split("=") for pair in os.environ.get("SPY_HOSTS", "").split(",") if pair)
    stock = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(told.get(host, host), *args, **kwargs)

    socket.getaddrinfo = lookup


_elsewhere()


class Spy(CustomLogger):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """Writes what it finds, a line of JSON each, to the file that SPY_FILE names, if it is set."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.looked = 0

    def look(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Write the canaries within reach of a hook's arguments."""
        if not os.environ.get("SPY_FILE"):
            return
        found = []
        witnesses = 0
        for way, text, plain in strings({**{str(n): each for n, each in enumerate(args)}, **kwargs}):
            self.looked += 1
            witnesses += WITNESS.search(text) is not None
            found += [{"canary": canary, "path": path(way), "plain": plain} for canary in CANARY.findall(text)]
        with open(os.environ["SPY_FILE"], "a") as file:
            note = {"place": self.place, "hook": hook, "looked": self.looked, "witnesses": witnesses, "found": found}
            file.write(json.dumps(note) + "\n")

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        self.look("async_post_call_streaming_iterator_hook", user_api_key_dict, response, request_data)
        try:
            async for chunk in response:
                self.look("async_post_call_streaming_iterator_hook, a chunk", chunk)
                yield chunk
        except Exception as error:
            self.look("async_post_call_streaming_iterator_hook, its error", error)
            raise


def _looking(name: str) -> Callable[..., Any]:
    stock = getattr(CustomLogger, name)
    if name.startswith(("log_success_fallback", "log_failure_fallback", "async_")):

        async def hook(self: Spy, *args: Any, **kwargs: Any) -> Any:
            self.look(name, *args, **kwargs)
            return await stock(self, *args, **kwargs)

        return hook

    def plain_hook(self: Spy, *args: Any, **kwargs: Any) -> Any:
        self.look(name, *args, **kwargs)
        return stock(self, *args, **kwargs)

    return plain_hook


for each in HOOKS:
    setattr(Spy, each, _looking(each))

before = Spy("before")
after = Spy("after")


def texts_in_memory() -> Iterator[tuple[str, Any]]:
    """Every text that the collector can get at, with what holds it."""
    seen: set[int] = set()
    mine = {id(seen), id(sys._getframe())}
    ahead = [each for each in gc.get_objects() if id(each) not in mine]
    for holder in ahead:
        inner = [holder]
        while inner:
            held_by = inner.pop()
            for held in gc.get_referents(held_by):
                if isinstance(held, str | bytes):
                    if id(held) not in seen:
                        seen.add(id(held))
                        yield (held if isinstance(held, str) else held.decode(errors="replace")), held_by
                elif not gc.is_tracked(held) and isinstance(held, dict | tuple | frozenset):
                    inner.append(held)


def described(value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, types.FrameType):
        return f"frame {value.f_code.co_qualname if hasattr(value.f_code, 'co_qualname') else value.f_code.co_name}"
    if isinstance(value, dict):
        return f"{kind}{[CANARY.sub('<canary>', str(name)[:40]) for name in list(value)[:8]]}"
    return kind


def chain(value: Any, ours: set[int], length: int = 4) -> str:
    """What holds a value, and what holds that; `ours` are the ids of what this search itself holds."""
    names = [described(value)]
    seen = {id(value)}
    for _ in range(length):
        known = seen | ours
        holders = [each for each in gc.get_referrers(value) if id(each) not in known]
        # The lists of a search in progress hold everything.
        holders = [each for each in holders if not (isinstance(each, list) and len(each) > 10_000)]
        holders = [each for each in holders if each is not sys._getframe()]
        if not holders:
            break
        seen |= {id(holders), id(value := holders[0])}
        names.append(described(value))
        holders = []
    return " < ".join(names)


async def memory() -> Any:
    """The canaries in this process's memory, and how many objects, models and prices there are."""
    gc.collect()
    found = [(canary, len(text), holder) for text, holder in texts_in_memory() for canary in CANARY.findall(text)]
    ours = {id(found), *map(id, found)}
    told = [
        {"canary": canary, "length": length, "held": chain(holder, ours) if place < 20 else described(holder)}
        for place, (canary, length, holder) in enumerate(found)
    ]
    return {"found": told, **sizes()}


async def sizes_now() -> Any:
    return sizes()


def sizes() -> dict[str, int]:
    import litellm

    gc.collect()
    router = proxy_server.llm_router
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return {
        "rss_kb": resident,
        "objects": len(gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "prices": len(litellm.model_cost),
        "deployments": len(router.model_list),
        "ids": len(router.model_id_to_deployment_index_map),
        "clients": len(litellm.in_memory_llm_clients_cache.cache_dict),
    }


proxy_server.app.get("/spy/memory")(memory)
proxy_server.app.get("/spy/sizes")(sizes_now)
