"""A provider that answers every request with the bytes that a test wrote down."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.proxy import Json


class Scripted:
    """Listens from the beginning.

    Attributes
    ----------
    answer
        The content type and the bytes that every POST is answered with.
    asked
        The bodies since that was written down.
    """

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.answer = ("application/json", b"{}")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plain(self, body: Json) -> None:
        """Answer with a JSON object."""
        self.write("application/json", json.dumps(body).encode())

    def stream(self, *events: Json, done: bool = True) -> None:
        """Answer with server-sent events, named by their types where they have one."""
        names = [f"event: {event['type']}\n" if "type" in event else "" for event in events]
        frames = [f"{name}data: {json.dumps(event)}\n\n" for name, event in zip(names, events, strict=True)]
        self.write("text/event-stream", "".join([*frames, "data: [DONE]\n\n" if done else ""]).encode())

    def write(self, kind: str, content: bytes) -> None:
        """Answer with these bytes."""
        self.answer, self.asked = (kind, content), []


def _handler(provider: Scripted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider.asked.append(json.loads(self.rfile.read(int(self.headers.get("content-length", 0)))))
            kind, content = provider.answer
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("connection", "close")
            if kind == "application/json":
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def chunk(text: str | None = None, finish: str | None = None, **fields: Any) -> Json:
    """A chunk of a chat stream."""
    delta = {} if text is None else {"role": "assistant", "content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": choices, **fields}


def chat(text: str, usage: Any) -> Json:
    """A plain chat answer."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**head, "choices": choices, "usage": usage}


def used(prompt: int, completion: int | None) -> Json:
    """A usage of a chat answer."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + (completion or 0)}
