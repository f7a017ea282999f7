"""What the plugin rests on in LiteLLM: the installed release has it, and whatever moves is named."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any

import litellm
import pytest
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.router import CustomRoutingStrategyBase

import uc_litellm_plugin
from uc_litellm_plugin import contract
from uc_litellm_plugin.callbacks import UcHandler
from uc_litellm_plugin.contract import ContractBroken
from uc_litellm_plugin.parts import COMPROMISED, NEWEST, OLDEST, PARTS, PROBED_COST, Part
from uc_litellm_plugin.strategy import PowerLevelStrategy

ROOT = Path(uc_litellm_plugin.__file__).parent
HOOKS = [part for part in PARTS if part.callers]
CALLED = [part for part in PARTS if part.kind != "value" and not part.callers]
GIVEN = [part for part in PARTS if part.parameters]
ASYNC = [part for part in PARTS if part.kind in ("coroutine", "stream")]
# A module, whose attributes are in the table one by one.
UNCHECKED = {"litellm.proxy.proxy_server"}

check: Callable[[], None] = contract.check.__wrapped__


def stand_in(part: Part, *, without: str = "", more: tuple[inspect.Parameter, ...] = (), kind: str = "") -> Any:
    """A function as a part should be, but for what is told."""
    kinds = {"function": plain, "coroutine": awaited, "stream": iterated}
    made = FunctionType(kinds[kind or part.kind].__code__, {}, part.name)
    named = [*(f"_{n}" for n in range(part.positional)), *part.parameters]
    given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in named if name != without]
    made.__signature__ = inspect.Signature([*given, *more])  # type: ignore[attr-defined]
    return made


def plain() -> None: ...


async def awaited() -> None: ...


async def iterated() -> Any:
    yield


def test_the_installed_release_is_as_expected() -> None:
    """Nothing has moved in the release that is installed here."""
    check()


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_renamed(part: Part) -> None:
    """A part that has another name is named."""
    gone = replace(part, name=f"{part.name}_as_it_was")
    (told,) = contract.moved_parts([gone])
    assert told.startswith(f"{gone}: expected ")
    assert told.endswith("there is no such name")


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_its_module_is_gone(part: Part) -> None:
    """A part whose module is not there is named."""
    gone = replace(part, module=f"{part.module}_as_it_was")
    (told,) = contract.moved_parts([gone])
    assert told.startswith(f"{gone}: expected ")


@pytest.mark.parametrize("part", GIVEN, ids=str)
def test_without_a_parameter(part: Part) -> None:
    """A part that lacks any of the parameters we use is refused, and what it takes is shown."""
    for parameter in part.parameters:
        fault = contract.fault_of(part, stand_in(part, without=parameter))
        assert fault is not None
        assert parameter not in fault.strip("found ()").split(", ")


@pytest.mark.parametrize("part", ASYNC, ids=str)
def test_made_synchronous(part: Part) -> None:
    """A part that is awaited or iterated over must be made for that."""
    assert contract.fault_of(part, stand_in(part, kind="function")) == "found a function"


@pytest.mark.parametrize("part", [part for part in PARTS if part.kind != "value"], ids=str)
def test_as_expected(part: Part) -> None:
    """A part with just what we use is accepted."""
    assert contract.fault_of(part, stand_in(part)) is None


@pytest.mark.parametrize("part", HOOKS, ids=str)
def test_a_hook_that_is_given_more(part: Part) -> None:
    """What LiteLLM would pass to a hook and ours does not take is refused."""
    more = inspect.Parameter("more", inspect.Parameter.KEYWORD_ONLY, default=None)
    assert contract.fault_of(part, stand_in(part, more=(more,))) is not None


@pytest.mark.parametrize("part", HOOKS, ids=str)
def test_a_hook_that_nobody_calls(part: Part) -> None:
    """A hook that is there for nothing is refused."""
    idle = replace(part, callers=("litellm.constants",))
    assert contract.fault_of(idle, contract.find(part)) == "none of litellm.constants calls it"


@pytest.mark.parametrize("part", CALLED, ids=str)
def test_a_function_that_wants_more(part: Part) -> None:
    """A parameter more is no matter where it may be left out, and refused where it must be given."""
    optional = inspect.Parameter("more", inspect.Parameter.KEYWORD_ONLY, default=None)
    needed = inspect.Parameter("more", inspect.Parameter.KEYWORD_ONLY)
    assert contract.fault_of(part, stand_in(part, more=(optional,))) is None
    assert contract.fault_of(part, stand_in(part, more=(needed,))) is not None


@pytest.mark.parametrize("version", ["1.100.0", "1.105.7", "1.107.3"])
def test_an_unfit_release(version: str) -> None:
    """A release that fails our tests, or is not to be trusted, is refused whatever it has."""
    (told,) = contract.unfit_release(version)
    assert told.startswith(f"litellm {version}: expected ")


@pytest.mark.parametrize(("version", "warned"), [("1.106.0", False), ("1.109.12", False), ("1.110.0rc1", True)])
def test_a_newer_release(version: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A tested release passes in silence, a newer one with a warning: what it has decides."""
    assert list(contract.unfit_release(version)) == []
    assert bool(caplog.records) == warned


def test_pip_is_told_the_same() -> None:
    """pyproject.toml allows the releases that the check at the start does."""
    (asked,) = re.findall(r'"litellm\[proxy\]([^"]*)"', (ROOT.parent / "pyproject.toml").read_text("utf-8"))
    (first, last, bad) = (".".join(map(str, each)) for each in (OLDEST, (NEWEST[0], NEWEST[1] + 1), COMPROMISED))
    assert asked == f">={first},<{last},!={bad}.*"


def test_the_error_says_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error has every part that moved, what is installed, what is supported, and the way out."""
    monkeypatch.delattr(CustomLogger, "async_post_call_success_hook")
    monkeypatch.delattr(litellm.Router, "get_model_list")
    with pytest.raises(ContractBroken) as raised:
        check()
    said = str(raised.value)
    assert (
        "CustomLogger.async_post_call_success_hook: expected a coroutine with (data, user_api_key_dict, response)"
        in said
    )
    assert "Router.get_model_list" in said
    assert f"LiteLLM {metadata.version('litellm')}" in said
    assert contract.supported() in said
    assert "pip install" in said


@pytest.mark.parametrize("factor", [0, 2])
def test_other_arithmetic(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    """Where LiteLLM makes another price of the same tokens, nothing is served."""
    cost = litellm.completion_cost
    monkeypatch.setattr(litellm, "completion_cost", lambda **given: cost(**given) * factor)
    with pytest.raises(ContractBroken, match=r"expected 0\.0024 USD for a known call"):
        check()


def test_the_probed_cost_is_right() -> None:
    """The known call costs what its numbers say."""
    assert Decimal(600) * 2 / 10**6 + Decimal(400) / 10**6 + Decimal(100) * 8 / 10**6 == PROBED_COST


@pytest.mark.parametrize(
    ("ours", "theirs"), [(UcHandler, CustomLogger), (PowerLevelStrategy, CustomRoutingStrategyBase)]
)
def test_every_override_is_in_the_table(ours: type, theirs: type) -> None:
    """What we override is checked, with the parameters that ours take."""
    table = {part.name.rpartition(".")[2]: part for part in HOOKS if part.name.startswith(f"{theirs.__name__}.")}
    overridden = {name for name in vars(ours) if not name.startswith("_") and hasattr(theirs, name)}
    assert overridden == set(table)
    for name in overridden:
        takes = inspect.signature(getattr(ours, name))
        takes.bind(None, **dict.fromkeys(table[name].parameters))


def imported() -> Iterator[str]:
    """Every name that a module of ours imports from LiteLLM, and every attribute of LiteLLM's modules that it uses."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("litellm") and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = {"litellm": "litellm", "proxy_server": "litellm.proxy.proxy_server"}.get(node.value.id)
                if module is not None:
                    yield f"{module}.{node.attr}"


def test_every_import_is_in_the_table() -> None:
    """What we import from LiteLLM, and what we use of its modules, is checked at the start."""
    known = {str(part) for part in PARTS}
    names = set(imported()) - UNCHECKED
    assert names
    assert not [name for name in sorted(names) if not any(f"{part}.".startswith(f"{name}.") for part in known)]
