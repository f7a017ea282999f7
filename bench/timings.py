"""Where a call's time goes, waiting included: `python -m bench.timings`.

Every function of ours is wrapped in a clock, in a worker under load. py-spy (`bench.hotspots`) shows who computes; here
shows, too, who waits for the interpreter while another thread has it. Async functions are timed between their awaits,
and only what the event loop's thread does. The clock itself takes a microsecond per call of a function, which stands
in the table with the function's own time.
"""

from __future__ import annotations

import asyncio.coroutines
import functools
import importlib
import inspect
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Annotated, Any

import typer

import uc_litellm_plugin
from bench import contenders, load, processes, records
from bench.contenders import TIMED, Contender
from bench.provider import ProviderProcess

FILE = "BENCH_TIMINGS"
_WRITE, _FORGET = signal.SIGUSR1, signal.SIGUSR2
_OURS = uc_litellm_plugin.__name__

# By function: nanoseconds with all below it, without what is ours below it, and calls.
_spent: dict[str, list[int]] = {}
_below: list[int] = []
_loop_thread = threading.get_ident()


def __getattr__(name: str) -> Any:
    """What LiteLLM imports in place of the plugin: the same, once its functions are wrapped."""
    if name not in uc_litellm_plugin.__all__:
        raise AttributeError(name)
    if not _spent:
        importlib.import_module(f"{_OURS}.callbacks")
        _wrap_all([module for known, module in list(sys.modules.items()) if known.startswith(f"{_OURS}.")])
    signal.signal(_WRITE, lambda *_: Path(os.environ[FILE]).write_text(json.dumps(_spent)))
    signal.signal(_FORGET, lambda *_: [each.__setitem__(slice(None), [0, 0, 0]) for each in _spent.values()])
    return getattr(uc_litellm_plugin, name)


def _wrap_all(modules: list[ModuleType]) -> None:
    clocked: dict[Any, Any] = {}
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__.startswith(_OURS):
                clocked[value] = clocked.get(value) or _clocked(value)
                setattr(module, name, clocked[value])
            elif isinstance(value, type) and value.__module__ == module.__name__:
                _wrap_methods(value)


def _wrap_methods(kind: type) -> None:
    for name, value in list(vars(kind).items()):
        # LiteLLM looks behind what wraps the strategy's method (`strategy.install`).
        if isinstance(value, FunctionType) and not name.startswith("__") and name != "async_get_available_deployment":
            setattr(kind, name, _clocked(value))


def _clocked(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return function
    spent = _spent.setdefault(f"{function.__module__.removeprefix(_OURS + '.')}.{function.__qualname__}", [0, 0, 0])
    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            spent[2] += 1
            return _run(spent, function, *args, **kwargs)

        return called

    @functools.wraps(function)
    def begun(*args: Any, **kwargs: Any) -> _Steps:
        spent[2] += 1
        return _Steps(function(*args, **kwargs), spent)

    # LiteLLM asks before it awaits.
    begun._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return begun


def _run(spent: list[int], step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if threading.get_ident() != _loop_thread:
        return step(*args, **kwargs)
    _below.append(0)
    began = time.perf_counter_ns()
    try:
        return step(*args, **kwargs)
    finally:
        took = time.perf_counter_ns() - began
        spent[0] += took
        spent[1] += took - _below.pop()
        if _below:
            _below[-1] += took


class _Steps(Coroutine[Any, Any, Any]):
    """A coroutine of which each step is timed."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], spent: list[int]) -> None:
        self._coroutine, self._spent = coroutine, spent

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # what an await needs of one

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return _run(self._spent, self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return _run(self._spent, self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()


def observed(one: Contender, file: Path, seconds: float, *, streamed: bool, connections: int) -> list[str]:
    """A table of the functions by their own time."""
    load.run(one.proxy.url, one.keys, streamed=streamed, connections=connections, seconds=seconds / 3)
    os.kill(one.worker, _FORGET)
    file.unlink(missing_ok=True)
    before = processes.cpu_s([one.worker])
    slice_ = load.run(one.proxy.url, one.keys, streamed=streamed, connections=connections, seconds=seconds)
    used, calls = processes.cpu_s([one.worker]) - before, len(slice_.milliseconds)
    os.kill(one.worker, _WRITE)
    # A signal's handler runs between two steps of the worker's loop.
    while not file.exists() or not file.read_text().endswith("}"):
        time.sleep(0.05)
    found: dict[str, list[int]] = json.loads(file.read_text())
    title = f"{records.mix(streamed, connections)}, {1000 * used / calls:.2f} ms of CPU per call"
    rows = [records.row([title, "own, us", "with all below, us", "times per call"]), records.rule(4)]
    for name, (whole, own, times) in sorted(found.items(), key=lambda each: -each[1][1]):
        if times:
            cells = [f"{own / calls / 1000:.1f}", f"{whole / calls / 1000:.1f}", f"{times / calls:.2f}"]
            rows.append(records.row([f"`{name}`", *cells]))
    return rows


def main(
    seconds: Annotated[float, typer.Option(help="Length of each slice.")] = 12,
    most: Annotated[int, typer.Option(help="How many functions are printed.")] = 40,
) -> None:
    """Print the tables."""
    with (
        tempfile.TemporaryDirectory(prefix="uc-bench-") as home,
        ProviderProcess() as provider,
        contenders.stage(provider.url, 200) as stage,
        stage.running(TIMED, env={FILE: f"{home}/timings.json"}) as one,
    ):
        for streamed, connections in ((False, 8), (True, 8), (False, 1)):
            table = observed(one, Path(home, "timings.json"), seconds, streamed=streamed, connections=connections)
            typer.echo("\n".join([*table[: most + 2], ""]))


if __name__ == "__main__":
    typer.run(main)
