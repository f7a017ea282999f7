"""The least that a plugin with our guarantees can be: callbacks that do nothing but wait for two commits.

One statement holds before the provider is called, one settles before the answer ends, both while LiteLLM goes on as far
as it can; settlements under way travel together, and each connection stays with whoever uses it. Nothing is identified,
checked, counted, planned, priced, measured, or kept when PostgreSQL is away; LiteLLM's own authentication is replaced,
as ours replaces it, which makes a call cheaper. The proxies of `contenders.BARE` and
`contenders.COMMITS` load this module; what they commit is the difference.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import asyncpg
from fastapi import Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth

from bench.pairs import CONNECTIONS, USAGE

DATABASE, USERS, STATEMENTS = "BENCH_BARE_DATABASE", "BENCH_BARE_USERS", "BENCH_BARE_STATEMENTS"

# The ledger's own functions, and the least that can be committed: a number in a row of two columns.
LEDGER, LEAST = "ledger", "least"
LEAST_TABLE = (
    "CREATE TABLE bench_commits AS SELECT 'bench-' || n AS user_id, 0 AS number FROM generate_series(1, {}) AS n"
)
LEAST_KEY = "ALTER TABLE bench_commits ADD PRIMARY KEY (user_id)"
_HOLD, _SETTLE = {
    LEDGER: (
        "SELECT * FROM hold_credits($1, $2, $3, $4, make_interval(secs => $5), $6, $7)",
        "SELECT * FROM settle_credits($1)",
    ),
    LEAST: (
        "UPDATE bench_commits SET number = number + 1 WHERE user_id = $2"
        " RETURNING $1::uuid, $3::numeric, $4::numeric, $5::float8, $6::text, $7::jsonb",
        "UPDATE bench_commits SET number = number + 1"
        " WHERE user_id = ANY (ARRAY(SELECT value ->> 'user_id' FROM jsonb_array_elements($1)))",
    ),
}[os.environ.get(STATEMENTS, LEDGER)]
_CHARGE = "0.0011"
_CALL: ContextVar[tuple[uuid.UUID, str] | None] = ContextVar("bench_bare_call", default=None)
_HOLDING: ContextVar[asyncio.Task[None] | None] = ContextVar("bench_bare_hold", default=None)
_turns = itertools.count()


async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Takes everybody for the same user, and begins the first commit."""
    hold_id, user = uuid.uuid4(), f"bench-{next(_turns) % int(os.environ[USERS]) + 1}"
    _CALL.set((hold_id, user))
    _HOLDING.set(asyncio.create_task(handler.hold(hold_id, user)))
    await asyncio.sleep(0)
    return UserAPIKeyAuth(api_key=api_key, user_id="bench", user_role=LitellmUserRoles.INTERNAL_USER)


class Bare(CustomLogger):  # type: ignore[misc]  # LiteLLM's class has no types we can see
    """Hold, settle, and a header."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: list[asyncpg.Connection[asyncpg.Record]] = []
        # As many as the plugin has.
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def async_pre_call_hook(
        self, user_api_key_dict: UserAPIKeyAuth, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any]:
        """Waits for the first commit."""
        if (holding := _HOLDING.get()) is not None:
            await holding
        return data

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: UserAPIKeyAuth, response: Any
    ) -> Any:
        """The second commit of a plain answer."""
        await self._settled()
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: UserAPIKeyAuth, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """The second commit of a stream, between the chunk that has its usage and `[DONE]`."""
        settled = None
        async for chunk in response:
            if getattr(chunk, "usage", None) is not None:
                settled = settled or self._settled()
            yield chunk
        if settled is not None:
            await settled

    async def async_post_call_response_headers_hook(self, *_: Any, **__: Any) -> dict[str, str]:
        """What was charged."""
        return {"x-uc-credits-charged": _CHARGE}

    async def hold(self, hold_id: uuid.UUID, user: str) -> None:
        """The first commit."""
        await self._ask(_HOLD, hold_id, user, 1, 1, 120.0, "balanced", {"model": "gpt-4o-mini", "endpoint": "chat"})

    def _settled(self) -> asyncio.Future[None]:
        settled = asyncio.get_running_loop().create_future()
        if (call := _CALL.get()) is None:
            settled.set_result(None)
            return settled
        _CALL.set(None)
        hold_id, user = call
        record = {"hold_id": str(hold_id), "user_id": user, "action": "settle", "charge": _CHARGE, "usage": USAGE}
        self._waiting.append((record, settled))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return settled

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await self._ask(_SETTLE, [record for record, _ in batch])
            for _, settled in batch:
                settled.set_result(None)

    async def _ask(self, sql: str, *arguments: Any) -> None:
        async with self._room:
            connection = self._connections.pop() if self._connections else await _connect()
            await connection.fetch(sql, *arguments)
            self._connections.append(connection)


async def _connect() -> asyncpg.Connection[asyncpg.Record]:
    made = await asyncpg.connect(os.environ[DATABASE], server_settings={"search_path": "uc, pg_temp"})
    await made.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return made


handler = Bare()
