from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import uc_litellm_plugin

PACKAGE = "uc_litellm_plugin"
ROOT = Path(uc_litellm_plugin.__file__).parent


def dotted(path: Path) -> str:
    """A module's name within the package; a package in it goes by its folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}

LITELLM = {"callbacks", "plugin", "identity", "inbound", "refusals", "catalog", "costs", "strategy", "api"}
LITELLM |= {"proxy_routes", "regions"}
ASYNCPG = {"connections", "database", "postgres_faults"}
LAST = {"callbacks", "plugin"}
# The composition roots: who may import a module that comes last.
MAY_IMPORT_LAST = {"callbacks": {"plugin"}, "plugin": {"__init__"}}
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "service", "misc", "base", "core", "types", "tools"}

LONGEST_FUNCTION = 50
LONGEST_FILE = 300
MEDIAN_FUNCTION = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module that a tree imports, after its number of leading dots; those for the type checker count, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name) for name in names)
        elif isinstance(node, ast.ImportFrom):
            yield 0, node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            name = ast.literal_eval(node.args[0])
            yield len(name) - len(name.lstrip(".")), name.lstrip(".")


def ours(name: str) -> set[str]:
    """The modules of this package that one of them imports."""
    folder = name.split(".") if MODULES[name].name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    found = set()
    for dots, imported in imports(TREES[name]):
        if dots:
            found.add(".".join([*folder[: len(folder) - dots + 1], *imported.split(".")]))
        elif imported.startswith(f"{PACKAGE}."):
            found.add(imported.removeprefix(f"{PACKAGE}."))
    return found & set(MODULES)


def foreign(name: str) -> set[str]:
    """The packages of others that one of our modules imports."""
    return {imported.split(".")[0] for dots, imported in imports(TREES[name]) if not dots}


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def lines_of_code(function: Function) -> int:
    """A function's lines without its decorators and its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def public(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Public functions and classes, and the public methods of public classes that override nothing."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and all(ast.unparse(base) in ROOTS for base in node.bases):
                yield from (each for each in node.body if isinstance(each, FUNCTIONS) and each.name[0] != "_")


# Under other bases a method may override one that is documented there.
ROOTS = {"Exception", "ABC", "OSError", "BaseModel", "UcError", "CustomLogger", "Refusal"}


def test_imports_go_one_way() -> None:
    """No module imports, directly or through others, one that imports it."""
    try:
        TopologicalSorter({name: ours(name) for name in MODULES if name != "__init__"}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_some_know_litellm() -> None:
    """LiteLLM is known to the modules that stand at its border, and no other."""
    knowing = {name.split(".")[0] for name in MODULES if foreign(name) & {"litellm", "litellm_enterprise"}}
    assert knowing <= LITELLM


def test_only_the_database_knows_asyncpg() -> None:
    """One module speaks to PostgreSQL, and one knows its faults."""
    assert {name for name in MODULES if "asyncpg" in foreign(name)} <= ASYNCPG


def test_only_the_vault_knows_cryptography() -> None:
    """One module seals and opens."""
    assert {name for name in MODULES if "cryptography" in foreign(name)} == {"vault"}


@pytest.mark.parametrize("last", sorted(LAST))
def test_nobody_imports_the_composition_root(last: str) -> None:
    """The modules that know all are known to nobody but the ones that hand them to LiteLLM."""
    importers = {name for name in MODULES if last in ours(name)}
    assert importers <= MAY_IMPORT_LAST[last]


@pytest.mark.parametrize("first", ["errors", "pricing", "api_routes", "routes", "power", "api_keys"])
def test_the_first_import_little(first: str) -> None:
    """What everything rests on rests on nothing but the errors."""
    assert ours(first) <= {"errors", "prices", "pricing", "api_routes"}


def test_the_start_is_light() -> None:
    """The package itself imports nothing of the proxy until it is asked for it."""
    eager = ast.Module([node for node in TREES["__init__"].body if not isinstance(node, (ast.If, *FUNCTIONS))], [])
    assert {imported for _, imported in imports(eager)} <= {"__future__", "importlib", "typing"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_a_noun(name: str) -> None:
    """No module has a name that says nothing."""
    assert not set(re.split("[._]", name)) & VAGUE


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    """No file is longer than 300 lines, no function than 50."""
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= LONGEST_FILE
    long = {each.name: lines_of_code(each) for each in functions(TREES[name])}
    assert not {function: lines for function, lines in long.items() if lines > LONGEST_FUNCTION}


def test_most_functions_are_very_short() -> None:
    """Half of all functions have fewer than ten lines."""
    lengths = [lines_of_code(each) for tree in TREES.values() for each in functions(tree)]
    assert statistics.median(lengths) < MEDIAN_FUNCTION


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name: str) -> None:
    """Every module, and every public function and class in it, says what it is for."""
    if MODULES[name].read_text("utf-8").strip():
        assert ast.get_docstring(TREES[name]), name
    assert [each.name for each in public(TREES[name]) if not ast.get_docstring(each)] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_broad_except_has_a_reason(name: str) -> None:
    """Who catches everything, and does not raise it again, says why in a comment."""
    lines = MODULES[name].read_text("utf-8").splitlines()
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
            continue
        if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"):
            inside = lines[node.lineno - 1 : node.end_lineno]
            assert any("# " in line for line in inside), f"line {node.lineno}"


@pytest.mark.parametrize("name", MODULES)
def test_no_base_for_one_child(name: str) -> None:
    """A base class of ours has at least two children."""
    bases = [ast.unparse(base) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
             for base in node.bases]  # fmt: skip
    abstract = [node.name for node in ast.walk(TREES[name]) if isinstance(node, ast.ClassDef)
                and any(ast.unparse(base) in ("ABC", "Protocol") for base in node.bases)]  # fmt: skip
    assert not [each for each in abstract if bases.count(each) == 1]
