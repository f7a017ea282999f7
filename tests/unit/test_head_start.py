"""An admission that is under way while LiteLLM prepares its request: taken once, or given back."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import Context, copy_context
from pathlib import Path

import pytest

from tests.unit.samples import HELLO, held_call
from uc_litellm_plugin import settings
from uc_litellm_plugin.call import Call, Caller
from uc_litellm_plugin.errors import BadRequest
from uc_litellm_plugin.head_start import UNDER_WAY, HeadStart
from uc_litellm_plugin.reception import Reception
from uc_litellm_plugin.requests import Inbound
from uc_litellm_plugin.routes import CHAT, EMBEDDINGS
from uc_litellm_plugin.worker import Worker

SENT = Inbound(HELLO)
CALLER = Caller("ann", "free", "balanced")


class Desk:
    """Admits when it is told to, and notes what comes back."""

    def __init__(self) -> None:
        self.call = held_call()
        self.answer: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        self.returned: list[Call] = []
        self.given_back: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> HeadStart:
        return HeadStart(CHAT, SENT, "m", self._admit(), self._give_back)

    def admit(self) -> None:
        self.answer.set_result(self.call)

    async def _admit(self) -> Call:
        return await self.answer

    def _give_back(self, call: Call) -> asyncio.Future[None]:
        self.returned.append(call)
        return self.given_back


@pytest.fixture
async def desk() -> Desk:
    return Desk()


@pytest.fixture
def reception(tmp_path: Path) -> Reception:
    """One whose database is not there."""
    there = {"UC_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing", "UC_STATE_DIR": str(tmp_path)}
    return Reception(Worker(settings.load(there)), lambda: None)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_taken_once(desk: Desk) -> None:
    """The hook gets the call, another run of it for the same request does not, and nothing is given back."""

    async def request() -> tuple[Call, bool]:
        begun = desk.begin()
        assert begun.waits_for(SENT)
        desk.admit()
        return await begun.take(), begun.waits_for(SENT)

    assert await asyncio.create_task(request()) == (desk.call, False)
    await turns()
    assert desk.returned == []


@pytest.mark.parametrize("admitted", ["before the request ends", "after it"])
async def test_not_taken(desk: Desk, admitted: str) -> None:
    """What was held for a request that ends without taking it is given back, as soon as it is known."""

    async def request() -> None:
        desk.begin()
        if admitted == "before the request ends":
            desk.admit()
            await turns()

    await asyncio.create_task(request())
    await turns()
    if admitted == "after it":
        assert desk.returned == []
        desk.admit()
        await turns()
    assert desk.returned == [desk.call]


@pytest.mark.parametrize("admitted", ["in the same moment", "after it"])
async def test_client_that_leaves_while_the_hook_waits(desk: Desk, admitted: str) -> None:
    """The admission is not broken off, and what it held is given back once."""

    async def request() -> None:
        await desk.begin().take()

    task = asyncio.create_task(request())
    await turns()
    if admitted == "in the same moment":
        desk.admit()
    task.cancel()
    await asyncio.wait([task])
    if admitted == "after it":
        desk.admit()
    await turns()
    assert task.cancelled()
    assert desk.returned == [desk.call]


async def test_request_that_ends_while_another_task_takes(desk: Desk) -> None:
    """Where LiteLLM prepares a request in a task of its own (for keepalives), the call is that task's: what it goes on
    with stays held."""
    taking: list[asyncio.Task[Call]] = []

    async def request() -> None:
        taking.append(asyncio.create_task(desk.begin().take()))
        await turns()

    await asyncio.create_task(request())
    desk.admit()
    assert await taking[0] is desk.call
    await turns()
    assert desk.returned == []


async def test_two_that_take_at_once(desk: Desk) -> None:
    """The first one gets the call, although it is not there yet."""
    begun = desk.begin()
    taking = asyncio.create_task(begun.take())
    await turns()
    assert not begun.waits_for(SENT)
    desk.admit()
    assert await taking is desk.call


async def test_withdrawn(desk: Desk) -> None:
    """Whoever admits another call instead goes on when the credits of the first are there again, and not before."""
    begun = desk.begin()
    withdrawing = asyncio.create_task(begun.withdraw())
    await turns()
    desk.admit()
    await turns()
    assert (desk.returned, withdrawing.done()) == ([desk.call], False)
    desk.given_back.set_result(None)
    await withdrawing
    await begun.withdraw()
    begun.drop()
    await turns()
    assert desk.returned == [desk.call]


async def test_refused(desk: Desk) -> None:
    """A refusal reaches the hook that takes, and nobody where no hook does."""

    async def request(*, takes: bool) -> None:
        begun = desk.begin()
        if takes:
            await begun.take()

    desk.answer.set_exception(BadRequest("No."))
    with pytest.raises(BadRequest, match="No"):
        await asyncio.create_task(request(takes=True))
    await asyncio.create_task(request(takes=False))
    await turns()
    assert desk.returned == []


async def test_for_what_was_begun_only(desk: Desk) -> None:
    """Another endpoint, model or request is admitted anew, whatever the bodies say."""
    begun = desk.begin()
    assert begun.is_for(CHAT, "m")
    assert not begun.is_for(EMBEDDINGS, "m")
    assert not begun.is_for(CHAT, "n")
    assert begun.waits_for(SENT)
    assert not begun.waits_for(Inbound(HELLO))
    desk.admit()
    await begun.take()


@pytest.mark.parametrize("sent", [Inbound(HELLO, {"idempotency-key": "k"}), Inbound({**HELLO, "model": "x" * 513}),
                                  Inbound({**HELLO, "model": 1})])  # fmt: skip
async def test_requests_that_wait_for_the_hook(reception: Reception, sent: Inbound) -> None:
    """Nothing is begun for them, and what an earlier request on their connection began is not theirs."""
    await reception.set_out(CHAT, SENT, CALLER)
    assert UNDER_WAY.get() is not None
    await reception.set_out(CHAT, sent, CALLER)
    assert UNDER_WAY.get() is None


async def test_requests_that_a_client_pipelines(reception: Reception) -> None:
    """Each starts in the context of the one before it, and keeps nothing of those that are over."""
    begun: list[weakref.ref[HeadStart]] = []
    contexts: list[Context] = [copy_context()]

    async def request() -> None:
        await reception.set_out(CHAT, SENT, CALLER)
        begun.append(weakref.ref(UNDER_WAY.get()))  # type: ignore[arg-type]  # There is one by now.
        contexts.append(copy_context())

    for _ in range(3):
        await contexts.pop().run(asyncio.create_task, request())
        await turns()
    gc.collect()
    assert [each() is None for each in begun] == [True, True, False]
