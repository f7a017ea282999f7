"""A provider to test against: a real HTTP server that speaks OpenAI and Anthropic, keeps books and fails on command.

`python -m tests.upstream --port 0` serves until stopped and prints one JSON line with its URL; `Upstream` runs it as a
process. Any path may carry one leading segment (`/east/v1/chat/completions`), so that one upstream can play several.
Its own endpoints: GET /_calls, GET /_wait?calls=N&finished=M, POST /_fault, POST /_open, POST /_reset.
"""

import argparse
import atexit
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from tests.books import Books, UnknownFault
from tests.dialects import Json
from tests.serving import Provider

START_SECONDS = 30.0


def application() -> Starlette:
    books = Books()

    async def calls(request: Request) -> JSONResponse:
        return JSONResponse(books.as_json())

    async def wait(request: Request) -> JSONResponse:
        asked = dict(request.query_params)
        seconds = float(asked.pop("timeout", 10))
        there = await books.reached({name: int(least) for name, least in asked.items()}, seconds)
        return JSONResponse(books.tally(), 200 if there else 408)

    async def fault(request: Request) -> JSONResponse:
        try:
            books.set_rules((await request.json())["rules"])
        except UnknownFault as unknown:
            return JSONResponse({"error": str(unknown)}, 400)
        return JSONResponse(books.rules)

    async def open_gate(request: Request) -> JSONResponse:
        books.gate.set()
        return JSONResponse(books.tally())

    async def reset(request: Request) -> JSONResponse:
        books.reset()
        return JSONResponse(books.tally())

    own = [
        Route("/_calls", calls),
        Route("/_wait", wait),
        Route("/_fault", fault, methods=["POST"]),
        Route("/_open", open_gate, methods=["POST"]),
        Route("/_reset", reset, methods=["POST"]),
    ]
    return Starlette(routes=[*own, Mount("/", app=Provider(books))])


class Upstream:
    """An upstream in a process of its own, and the hand on its books and faults. Stops when left as a context."""

    def __init__(self, port: int = 0) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        command = [sys.executable, "-m", "tests.upstream", "--port", str(port), "--until-stdin-closes"]
        root = Path(__file__).parents[1]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=self._log)
        atexit.register(self.kill)
        self.url = self._announced()
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    def _announced(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self._process.kill()
            self._log.seek(0)
            raise RuntimeError(f"the upstream did not start:\n{self._log.read().decode()}")
        return str(json.loads(line)["url"])

    def calls(self, **match: Any) -> list[Json]:
        """The calls so far, oldest first; `calls(path="/v1/messages")` those whose fields are so."""
        listed: list[Json] = self._http.get("/_calls").raise_for_status().json()
        return [call for call in listed if all(call[name] == value for name, value in match.items())]

    def wait(self, *, timeout: float = 60, **least: int) -> dict[str, int]:
        """Waits until at least so many calls: `wait(calls=3, finished=2)`; also `ended`, `gated`, `left`.

        Returns the tallies; raises TimeoutError with them after `timeout` seconds.
        """
        answer = self._http.get("/_wait", params={"timeout": timeout, **least}, timeout=timeout + 10)
        if answer.status_code == 408:
            raise TimeoutError(f"waited {timeout} s for {least}, the upstream's books have {answer.json()}")
        tally: dict[str, int] = answer.raise_for_status().json()
        return tally

    def set_fault(self, kind: str, *, match: Json | None = None, times: int | None = None, **options: Any) -> None:
        """Makes one fault the only one; `tests.books` lists kinds and options, `times` is how often it applies."""
        self.set_faults({"kind": kind, "match": match or {}, "times": times, **options})

    def set_faults(self, *rules: Json) -> None:
        """Replaces all faults by these rules; by none, to have no more faults."""
        answer = self._http.post("/_fault", json={"rules": rules})
        if answer.status_code == 400:
            raise ValueError(answer.json()["error"])
        answer.raise_for_status()

    def open(self) -> None:
        """Opens the gate for those who wait and those to come, until faults are set anew."""
        self._http.post("/_open").raise_for_status()

    def reset(self) -> None:
        """Forgets all calls and faults."""
        self._http.post("/_reset").raise_for_status()

    def stop(self) -> None:
        """Ends the process in order, within 5 s."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), its connections with it."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.__exit__(None, None, None)
        atexit.unregister(self.kill)
        self._log.close()

    def __enter__(self) -> "Upstream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def exit_with_stdin() -> None:
    """A test run that is killed closes our stdin: the server must not outlive it."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--until-stdin-closes", action="store_true")
    options = parser.parse_args()
    if options.until_stdin_closes:
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    listening = socket.create_server(("127.0.0.1", options.port))
    print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}), flush=True)
    # Idle connections outlast any test, so that a client's pool never meets a closed one; a fault's log is no news.
    config = uvicorn.Config(
        application(), log_level="critical", timeout_keep_alive=600, timeout_graceful_shutdown=1, lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
