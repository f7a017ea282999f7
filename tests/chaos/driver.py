"""Clients that ask for paid answers in many dialects at once, and write down what each of them got."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.acceptance.asking import ASKS, request
from tests.acceptance.bank import Account
from tests.chaos.fleet import Fleet, Proxy
from tests.proxy import Json

ANSWER_SECONDS = aiohttp.ClientTimeout(total=60)
PAUSE_SECONDS = 0.5
TERMINAL = {"response.completed", "response.incomplete", "message_stop"}


@dataclass(eq=False)
class Call:
    """One request and what came of it.

    `words` counts those of a stream that arrived. `complete`: the whole plain answer, or the stream's terminal event.
    `untold`: LiteLLM told the plugin of its answer too late for the charge to come before it.
    """

    number: int
    ask: str
    stream: bool
    account: Account
    proxy: Proxy
    began: float = field(default_factory=time.time)
    status: int | None = None
    request_id: str | None = None
    told_charge: str | None = None
    words: int = 0
    complete: bool = False
    error: str | None = None
    body: str = ""
    under_way: bool = True
    untold: bool = False

    @property
    def client_id(self) -> str:
        """The id that the client sends along and finds in its usage row."""
        return f"call-{self.number}"


class Driver:
    """Lanes of calls, one after the other in each."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession, accounts: list[Account], seed: int) -> None:
        self._fleet = fleet
        self._http = http
        self._accounts = accounts
        self._seed = seed
        self.calls: list[Call] = []
        self.answered = 0
        self.progress = asyncio.Condition()
        self.over = asyncio.Event()

    async def drive(self, lanes: int) -> None:
        """Asks until it is stopped; the calls that are under way then end in their time."""
        await asyncio.gather(*(self._lane(number) for number in range(lanes)))

    async def stop(self) -> None:
        self.over.set()
        async with self.progress:
            self.progress.notify_all()

    async def reached(self, answers: int) -> bool:
        """Waits until so many answers came; False when it is over first."""
        async with self.progress:
            await self.progress.wait_for(lambda: self.answered >= answers or self.over.is_set())
        return not self.over.is_set()

    async def _lane(self, number: int) -> None:
        dice = random.Random(f"{self._seed} lane {number}")
        while not self.over.is_set():
            ask = dice.choice(list(ASKS))
            stream = ask != "embeddings" and dice.random() < 0.5
            proxy = await self._fleet.pick(dice)
            call = Call(len(self.calls) + 1, ask, stream, dice.choice(self._accounts), proxy)
            self.calls.append(call)
            await self._make(call, dice.randint(2, 25))
            if call.status == 200:
                self.answered += 1
                async with self.progress:
                    self.progress.notify_all()
            else:  # as a client that respects Retry-After, only sooner
                await asyncio.sleep(PAUSE_SECONDS)

    async def _make(self, call: Call, words: int) -> None:
        path, body = body_of(call, words)
        headers = {**call.account.headers, "x-request-id": call.client_id}
        try:
            async with self._http.post(
                call.proxy.url + path, json=body, headers=headers, timeout=ANSWER_SECONDS
            ) as answer:
                call.request_id = answer.headers.get("x-uc-request-id")
                call.told_charge = answer.headers.get("x-uc-credits-charged")
                call.status = answer.status
                await (_hear_stream if call.stream and answer.status == 200 else _hear_plain)(call, answer)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            call.error = f"{type(error).__name__}: {error}"
        finally:
            call.under_way = False


def body_of(call: Call, words: int) -> tuple[str, Json]:
    """The request, with a prompt by which the upstream's books name the call."""
    path, body = request(call.ask, call.stream)
    said = f"mark {call.number} say {words} words"
    field_name = next(name for name in ("messages", "prompt", "input") if name in body)
    return path, {**body, field_name: [{"role": "user", "content": said}] if field_name == "messages" else said}


async def _hear_plain(call: Call, answer: aiohttp.ClientResponse) -> None:
    body = await answer.read()
    if answer.status == 200:
        json.loads(body)
        call.complete = True
    else:
        call.body = body.decode(errors="replace")


async def _hear_stream(call: Call, answer: aiohttp.ClientResponse) -> None:
    async for line in answer.content:
        if line.startswith(b"data:"):
            said = line.removeprefix(b"data:").strip()
            event = None if said == b"[DONE]" else json.loads(said)
            call.words += 0 if event is None else sum(len(text.split()) for text in texts(event))
            call.complete = call.complete or event is None or event.get("type") in TERMINAL
            if event is not None and "error" in event:
                call.body = line.decode()


def texts(event: Any) -> Iterator[str]:
    """What an event of any dialect says."""
    for choice in event.get("choices") or ():
        yield choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    if isinstance(delta := event.get("delta"), str):
        yield delta
    elif isinstance(delta, dict):
        yield delta.get("text") or ""
