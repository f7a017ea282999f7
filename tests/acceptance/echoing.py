"""A provider that repeats keys where real ones do: in refusals, in headers, in answers, in the middle of streams.

It does as the prompt says: `at south: echo-json` makes the side `south` (the first segment of its path) refuse the
call. `python -m tests.acceptance.echoing` serves as `python -m tests.upstream` does.
"""

from __future__ import annotations

import atexit
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx

from tests import upstream
from tests.books import Books, Call
from tests.dialects import Answer, Json
from tests.serving import Faults, Line, Provider

_ORDER = re.compile(r"at (\w+): ([\w-]+)")
# What a rule repeats, and where: {key} is the credential that came.
_REFUSAL = "Incorrect API key provided: {key}. Find yours at https://example.com/keys?key={key}"
FAULTS: dict[str, Faults] = {
    "echo-json": {"status": {"status": 401, "message": _REFUSAL}},
    "echo-text": {"status": {"status": 401, "body": f"401 Unauthorized. {_REFUSAL}".encode()}},
    "echo-html": {"status": {"status": 403, "body": b"<html><pre>Authorization: Bearer {key}</pre></html>"}},
    "echo-list": {"status": {"status": 401, "body": {"error": {"message": ["a", {"key": "{key}"}], "type": "{key}"}}}},
    "echo-header": {
        "status": {"status": 401, "headers": {"x-echo": "{key}", "www-authenticate": 'Bearer realm="{key}"'}}
    },
    "echo-429": {"status": {"status": 429, "message": "Rate limit reached for {key}.", "headers": {"x-key": "{key}"}}},
    "echo-500": {"status": {"status": 500, "message": "Traceback: headers={'authorization': 'Bearer {key}'}"}},
    "echo-model": {"wrong_model": {"model": "{key}"}},
    "echo-answer-header": {"answer_headers": {"x-echo": "{key}", "openai-organization": "{key}"}},
    "echo-event": {"error_event": {"after": 3}},
    "echo-first": {"error_first": {}},
    "echo-gzip": {"status": {"status": 401, "headers": {"content-encoding": "gzip"}, "body": _REFUSAL.encode()}},
    "401": {"status": {"status": 401}},
    "429": {"status": {"status": 429}},
    "500": {"status": {"status": 500}},
    "503": {"status": {"status": 503}},
    "cut": {"cut": {"after": 3}},
    "cut-at-once": {"cut": {}},
    "slow": {"slow": {"seconds": 0.05}},
    "gate": {"gate": {}},
    "hang": {"hang": {}},
}


class EchoingBooks(Books):
    """Books in which the prompt of a call gives it its faults."""

    def faults(self, call: Call) -> dict[str, Json]:
        found = super().faults(call)
        for side, name in _ORDER.findall(json.dumps(call.body)):
            if side == call.path.split("/")[1]:
                found |= repeated(FAULTS[name], call.api_key or "")
                if name == "echo-gzip":
                    # Though nobody asked for it.
                    found["status"]["body"] = gzip.compress(found["status"]["body"])
                call.fault = name
        return found


def repeated(value: Any, key: str) -> Any:
    """A fault with the key where `{key}` stands."""
    if isinstance(value, dict):
        return {name: repeated(each, key) for name, each in value.items()}
    if isinstance(value, list):
        return [repeated(each, key) for each in value]
    if isinstance(value, bytes):
        return value.replace(b"{key}", key.encode())
    return value.replace("{key}", key) if isinstance(value, str) else value


class EchoingProvider(Provider):
    """A provider whose errors within a stream repeat the key."""

    def _decide(self, call: Call, faults: Faults) -> Answer:
        answer = super()._decide(call, faults)
        answer.headers = {**answer.headers, **faults.get("answer_headers", {})}
        return answer

    async def _stream(self, call: Call, answer: Answer, faults: Faults, line: Line) -> None:
        await super()._stream(call, answer, faults, _EchoingLine(line, call.api_key or ""))  # type: ignore[arg-type]


class _EchoingLine:
    """A line on which an error tells the key."""

    def __init__(self, line: Line, key: str) -> None:
        self._line = line
        self._key = key

    async def wait(self, event: Coroutine[Any, Any, Any]) -> None:
        await self._line.wait(event)

    async def start(self, answer: Answer, media: str, length: int | None = None) -> None:
        await self._line.start(answer, media, length)

    async def write(self, data: bytes, more: bool = True) -> None:
        told = f"The upstream failed on the key {self._key}."
        await self._line.write(data.replace(b"The upstream failed.", told.encode()), more)


class EchoingUpstream(upstream.Upstream):
    """It in a process of its own."""

    def __enter__(self) -> EchoingUpstream:
        return self

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        command = [sys.executable, "-m", "tests.acceptance.echoing", "--until-stdin-closes"]
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=self._log)
        atexit.register(self.kill)
        self.url = self._announced()
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)


if __name__ == "__main__":
    # What the module makes its application of.
    vars(upstream).update(Books=EchoingBooks, Provider=EchoingProvider)
    upstream.main()
