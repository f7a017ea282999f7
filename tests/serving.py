"""How the upstream answers one call: what it says, when it says it, and how it breaks off."""

import asyncio
import base64
import json
import uuid
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tests.books import Books, Call
from tests.dialects import DIALECTS, Answer, Ask, Chunk, Json, Usage, error, error_chunk, strip_usage, zero_usage

Faults = dict[str, Json]


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


class Line:
    """One client's connection: it can be written to, and notices when the client has left."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._left = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def close(self) -> None:
        self._left.cancel()

    async def wait(self, event: Coroutine[Any, Any, Any]) -> None:
        """Waits for the event; raises ClientLeft when the client leaves first."""
        task = asyncio.ensure_future(event)
        await asyncio.wait({task, self._left}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        if self._left.done():
            raise ClientLeft

    async def start(self, answer: Answer, media: str, length: int | None = None) -> None:
        headers = {"content-type": media, "x-request-id": "req_upstream", "request-id": "req_upstream"}
        if length is not None:
            headers["content-length"] = str(length)
        encoded = [(k.lower().encode(), str(v).encode()) for k, v in {**headers, **answer.headers}.items()]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": encoded})

    async def write(self, data: bytes, more: bool = True) -> None:
        await self.wait(asyncio.sleep(0))
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


class Provider:
    """The ASGI application behind every path that is not the upstream's own."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        call = self.books.enter(request.method, request.url.path, dict(request.headers), await read_body(request))
        await self.books.note()
        line = Line(receive, send)
        try:
            await self._serve(call, line)
        except ClientLeft:
            call.left = True
        finally:
            line.close()
            call.ended, call.gated = True, False
            await self.books.note()

    async def _serve(self, call: Call, line: Line) -> None:
        faults = self.books.faults(call)
        answer = self._decide(call, faults)
        if answer.usage:
            call.usage = Usage(answer.usage.input, 0, answer.usage.cached, answer.usage.written)
        await self._hold_back(call, faults, line)
        call.status = answer.status
        call.streamed = answer.status == 200 and bool(call.body.get("stream")) and bool(answer.chunks)
        await (self._stream if call.streamed else self._send_plain)(call, answer, faults, line)

    def _decide(self, call: Call, faults: Faults) -> Answer:
        """What the call gets: a refusal, or what its dialect says."""
        refusal = refused(call, faults)
        if refusal:
            return refusal
        path = local_path(call.path)
        stored = self.books.stored.get(path.removeprefix("/v1/responses/"))
        if call.method == "GET" and stored:
            return Answer(Usage(), stored)
        dialect = DIALECTS.get((call.method, path))
        if not dialect:
            return refuse(call, 404, f"Unknown request URL: {call.method} {call.path}")
        try:
            answer = dialect(self._ask(call, faults))
        except KeyError as missing:
            return refuse(call, 400, f"Missing required parameter: {missing}.")
        except (TypeError, ValueError, AttributeError) as malformed:
            return refuse(call, 400, f"Invalid request: {malformed}")
        self._store(call, answer)
        for kind, change in (("no_usage", strip_usage), ("zero_usage", zero_usage)):
            if kind in faults:
                change(answer)
        return answer

    def _ask(self, call: Call, faults: Faults) -> Ask:
        model = faults.get("wrong_model", {}).get("model", call.model or "unnamed")
        earlier = self.books.stored.get(call.body.get("previous_response_id") or "", {})
        history = earlier["usage"]["total_tokens"] if earlier else 0
        return Ask(uuid.uuid4().hex, call.body, model, "ignore_cap" in faults, history)

    def _store(self, call: Call, answer: Answer) -> None:
        if local_path(call.path) == "/v1/responses" and isinstance(answer.plain, dict) and answer.plain["store"]:
            self.books.stored[answer.plain["id"]] = json.loads(json.dumps(answer.plain))

    async def _hold_back(self, call: Call, faults: Faults, line: Line) -> None:
        if "hang" in faults and not faults["hang"].get("after"):
            await line.wait(asyncio.Event().wait())
        if "delay" in faults:
            await line.wait(asyncio.sleep(faults["delay"]["seconds"]))
        if "gate" in faults and not faults["gate"].get("after"):
            await self._pass_gate(call, line)

    async def _pass_gate(self, call: Call, line: Line) -> None:
        call.gated = True
        await self.books.note()
        await line.wait(self.books.gate.wait())
        call.gated = False

    async def _send_plain(self, call: Call, answer: Answer, faults: Faults, line: Line) -> None:
        body = answer.plain if isinstance(answer.plain, bytes) else json.dumps(answer.plain).encode()
        call.usage = answer.usage
        await line.start(answer, answer.media, len(body))
        if faults.get("gate", {}).get("after"):
            await self._pass_gate(call, line)
        if "cut" in faults:
            return
        await line.write(body, more=False)
        call.words_sent = answer.words
        call.finished = True

    async def _stream(self, call: Call, answer: Answer, faults: Faults, line: Line) -> None:
        await line.start(answer, "text/event-stream; charset=utf-8")
        chunks = [*answer.chunks]
        cut = position(chunks, faults.get("cut"))
        hang = position(chunks, faults.get("hang")) or None
        gate = position(chunks, faults.get("gate")) or None
        failure = 0 if "error_first" in faults else position(chunks, faults.get("error_event"))
        for i, chunk in enumerate(chunks):
            if i == gate:
                await self._pass_gate(call, line)
            if i == hang:
                await line.wait(asyncio.Event().wait())
            if i == cut:
                return
            if i == failure:
                await line.write(error_chunk(local_path(call.path), "The upstream failed.", i).encode(), more=False)
                return
            await line.wait(asyncio.sleep(faults.get("slow", {}).get("seconds", 0)))
            await line.write(chunk.encode())
            account(call, answer, chunk)
        await line.write(b"", more=False)
        call.usage = answer.usage
        call.finished = True


def account(call: Call, answer: Answer, chunk: Chunk) -> None:
    """Adds a chunk that went out to what the call consumed; thinking is over before the first one."""
    call.words_sent += chunk.words
    if call.usage and answer.usage:
        call.usage.reasoning = answer.usage.reasoning
        call.usage.output = min(call.words_sent + answer.usage.reasoning, answer.usage.output)


def position(chunks: list[Chunk], rule: Json | None) -> int | None:
    """Where in a stream a rule strikes: before which of its events."""
    if rule is None:
        return None
    after = int(rule.get("after", 0))
    if after < 0:
        return max(len(chunks) + after, 0)
    sent = 0
    for i, chunk in enumerate(chunks):
        if sent >= after:
            return i
        sent += chunk.words
    return None


def refused(call: Call, faults: Faults) -> Answer | None:
    if "echo_key" in faults:
        return refuse(call, 401, f"Incorrect API key provided: {call.api_key}. Check it and try again.")
    if "status" in faults:
        rule = faults["status"]
        answer = refuse(call, rule.get("status", 500), rule.get("message", "The upstream was told to fail."))
        answer.plain = rule.get("body", answer.plain)
        answer.headers = rule.get("headers") or {}
        return answer
    if not call.api_key:
        return refuse(call, 401, "You didn't provide an API key.")
    return None


def refuse(call: Call, status: int, message: str) -> Answer:
    return Answer(None, error(call.path, status, message), status=status)


def local_path(path: str) -> str:
    """The path without the segment that names one of several upstreams."""
    for version in ("/v1/", "/v2/"):
        head, found, tail = path.partition(version)
        if found and head.count("/") <= 1:
            return version + tail
    return path


async def read_body(request: Request) -> Json:
    if request.headers.get("content-type", "").startswith("multipart/"):
        async with request.form() as form:
            return {name: await form_value(value) for name, value in form.items()}
    raw = await request.body()
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        return {"unparsed": raw.decode(errors="replace")}
    return body if isinstance(body, dict) else {"unparsed": body}


async def form_value(value: UploadFile | str) -> Json | str:
    if isinstance(value, str):
        return value
    return {"filename": value.filename, "base64": base64.b64encode(await value.read()).decode()}
