from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from pydantic import SecretStr

from tests.chaos.postgres import Server
from tests.pace import within
from uc_litellm_plugin import changes, embedded, patience
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.cluster import PORT, Cluster
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseError, DatabaseUnavailable
from uc_litellm_plugin.settings import Settings

SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"


def with_timeout(settings: Settings, timeout_s: float, pool_size: int = 8) -> Settings:
    update = {"timeout_s": timeout_s, "pool_size": pool_size}
    return settings.model_copy(update={"database": settings.database.model_copy(update=update)})


@asynccontextmanager
async def observer(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def until(connection: asyncpg.Connection[asyncpg.Record], query: str, value: object) -> None:
    """Ask PostgreSQL until it answers what is waited for; its own answer paces the loop."""

    async def ask() -> None:
        while await connection.fetchval(query) != value:
            pass

    await asyncio.wait_for(ask(), 60)


async def test_values_keep_their_kind(db: Database) -> None:
    """Amounts come as Decimal, jsonb as Python objects, and both go back the same way."""
    row = await db.fetchrow("SELECT $1::numeric AS amount, $2::jsonb AS facts", Decimal("1.50"), {"a": [1, None, "ü"]})
    assert row is not None
    assert (row["amount"], row["facts"]) == (Decimal("1.50"), {"a": [1, None, "ü"]})
    assert await db.fetchval("SELECT $1::jsonb ->> 'amount'", {"amount": Decimal("0.10")}) == "0.10"


async def test_a_session_sees_our_schema_only(db: Database) -> None:
    """No table of another schema is found by accident, and temporary ones come last."""
    assert await db.fetchval("SHOW search_path") == '"uc", pg_temp'
    assert await db.fetchval("SELECT count(*) FROM power_level_configs") == 3


async def test_a_violated_constraint_is_named(db: Database) -> None:
    """What PostgreSQL refuses is a DatabaseError with its SQLSTATE and the constraint, and is not worth a retry."""
    with pytest.raises(DatabaseError) as caught:
        await db.execute("INSERT INTO user_credits (user_id, tier) VALUES ('a', 'gold')")
    assert (caught.value.sqlstate, caught.value.constraint) == ("23514", "valid_tier")
    assert not isinstance(caught.value, DatabaseUnavailable)


@pytest.mark.parametrize(
    ("sql", "argument"),
    [
        ("SELECT $1::text", "nul \x00 in it"),
        ("SELECT $1::text", "surrogate \ud800"),
        ("SELECT $1::integer", "not a number"),
        ("SELECT $1::integer", 2**70),
        ("SELECT $1::jsonb", {"amount": float("nan")}),
        ("SELECT $1::jsonb", {"text": "\x00"}),
        ("SELECT $1::numeric(20, 6)", Decimal("1e40")),
    ],
)
async def test_impossible_arguments_are_refused_and_hurt_nobody(db: Database, sql: str, argument: object) -> None:
    """A value that cannot be is a DatabaseError, and the connection goes on serving."""
    backend = await db.fetchval("SELECT pg_backend_pid()")
    with pytest.raises(DatabaseError) as caught:
        await db.fetchval(sql, argument)
    assert not isinstance(caught.value, DatabaseUnavailable)
    assert await db.fetchval("SELECT pg_backend_pid()") == backend


async def test_a_slow_statement_ends_in_time(settings: Settings) -> None:
    """A statement that takes too long is unavailable after the timeout, also on the server, and the pool goes on."""
    async with Database(with_timeout(settings, 1, pool_size=1)) as db, observer(url_of(settings)) as other:
        async with within(1.7):
            with pytest.raises(DatabaseUnavailable):
                await db.execute("SELECT pg_sleep(30)")
        await until(other, SLEEPING, 0)
        assert await db.fetchval("SELECT 1") == 1


async def test_a_call_may_ask_for_more_time(settings: Settings) -> None:
    """A timeout of the call's own also lifts the server's limit, for this call only."""
    async with Database(with_timeout(settings, 1)) as db:
        assert await db.fetchval("SELECT 1 FROM pg_sleep(1.2)", timeout=60) == 1
        assert await db.fetchval("SHOW statement_timeout") == "900ms"


async def test_a_connection_whose_commit_failed_is_not_used_again(settings: Settings) -> None:
    """What a transaction's end has refused leaves a connection of which nobody knows the state: it is closed."""
    async with Database(with_timeout(settings, 1, pool_size=1)) as db:
        await db.execute("CREATE TABLE one_each (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        before = await db.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(DatabaseError):
            await db.execute("INSERT INTO one_each VALUES (1), (1)", timeout=60)
        assert await db.fetchval("SELECT count(*) FROM one_each") == 0
        assert await db.fetchval("SELECT pg_backend_pid()") != before
        await db.execute("DROP TABLE one_each")


async def test_waiting_while_nobody_is_answered(settings: Settings) -> None:
    """When all connections are busy and none comes back, a call gives up after its timeout."""
    async with Database(with_timeout(settings, 60, pool_size=1)) as db, observer(url_of(settings)) as other:
        busy = asyncio.create_task(db.execute("SELECT pg_sleep(50)"))
        await until(other, SLEEPING, 1)
        with pytest.raises(DatabaseUnavailable):
            await db.fetchval("SELECT 1", timeout=0.2)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        assert await db.fetchval("SELECT 1") == 1


async def test_waiting_while_others_are_answered(settings: Settings) -> None:
    """A burst of calls is answered, though their turn takes longer than the timeout."""
    async with Database(with_timeout(settings, 2, pool_size=2)) as db:
        started = time.monotonic()
        answers = await asyncio.gather(*[db.fetchval("SELECT 1 FROM pg_sleep(0.25)") for _ in range(20)])
        assert answers == [1] * 20
        assert time.monotonic() - started > 2


async def test_nobody_waits_for_ever(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busily others are answered, a call gives up in the end."""
    async with Database(with_timeout(settings, 2, pool_size=1)) as db:
        await db.fetchval("SELECT 1")  # Connected already.
        monkeypatch.setattr(patience, "LONGEST_S", 2.2)
        calls = [db.fetchval("SELECT 1 FROM pg_sleep(0.3)") for _ in range(20)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, DatabaseUnavailable)]
        assert 10 < len(refused) < 20
        assert not any(error.in_doubt for error in refused[1:])


async def test_a_burst_at_a_frozen_server_is_refused_in_time(doomed: Server, tmp_path: Path) -> None:
    """Calls that wait for their turn when PostgreSQL stops answering wait no longer than the timeout from then on."""
    settings = settings_module.load({"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": doomed.url})
    async with Database(with_timeout(settings, 1.5, pool_size=2)) as db:
        await asyncio.gather(*[db.fetchval("SELECT 1") for _ in range(2)])  # Connected already.
        calls = [asyncio.ensure_future(db.fetchval("SELECT 1 FROM pg_sleep(0.1)", idempotent=True)) for _ in range(40)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        with doomed.frozen():
            async with within(1.5 + 0.5):
                answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {int, DatabaseUnavailable}


async def test_a_late_loop_blames_nobody(settings: Settings) -> None:
    """Time in which the event loop did not run is not time in which PostgreSQL did not answer."""
    async with Database(with_timeout(settings, 2)) as db:
        asking = asyncio.create_task(db.fetchval("SELECT 1"))
        await asyncio.sleep(0.001)  # It is connecting now, which takes several answers.
        time.sleep(2.5)  # LiteLLM imports what it needs for its first call.
        assert await asking == 1


async def test_an_answer_that_was_read_is_given(settings: Settings) -> None:
    """When the loop comes back late, and patience ends in the turn in which the answer is read, it is no time-out."""
    async with Database(with_timeout(settings, 2)) as db:
        await db.execute("SELECT 1")  # Connected already.
        for _ in range(3):
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.6)
            assert await db.fetchval("SELECT 7 FROM pg_sleep(0.1)", timeout=0.2) == 7


async def test_what_is_in_doubt(settings: Settings) -> None:
    """A statement that was never sent, or that PostgreSQL ended, has not happened; one without an answer may have."""
    async with Database(with_timeout(settings, 50, pool_size=1)) as db, observer(url_of(settings)) as other:
        await db.execute("SET statement_timeout = 100")  # PostgreSQL's patience ends well before ours.
        assert not await in_doubt(db.execute("SELECT pg_sleep(40)"))
        busy = asyncio.create_task(db.execute("SELECT pg_sleep(40)", timeout=60))
        await until(other, SLEEPING, 1)
        assert not await in_doubt(db.fetchval("SELECT 1", timeout=0.4))
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
        )
        assert await in_doubt(busy)
    refusing = settings.model_copy(update={"database_url": SecretStr("postgresql://a@127.0.0.1:1/b")})
    async with Database(refusing) as db:
        assert not await in_doubt(db.fetchval("SELECT 1", idempotent=True))


async def in_doubt(call: Awaitable[object]) -> bool:
    with pytest.raises(DatabaseUnavailable) as caught:
        await call
    return caught.value.in_doubt


async def test_a_cancelled_call_leaves_no_connection_behind(settings: Settings) -> None:
    """However often callers go away in the middle, the pool has all its connections for the next ones."""
    async with Database(with_timeout(settings, 60, pool_size=2)) as db, observer(url_of(settings)) as other:
        for _ in range(6):
            call = asyncio.create_task(db.execute("SELECT pg_sleep(50)"))
            await until(other, f"SELECT ({SLEEPING}) > 0", True)
            call.cancel()
            await asyncio.wait([call])
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(50)'"
                " AND pid <> pg_backend_pid()"
            )
            await until(other, SLEEPING, 0)
        assert await asyncio.gather(*[db.fetchval("SELECT 1") for _ in range(4)]) == [1] * 4


async def test_a_cancelled_call_that_asked_for_more_time_ends_at_once(settings: Settings) -> None:
    """Its transaction is not rolled back on a connection whose server does not answer: it would wait for that."""
    async with Database(with_timeout(settings, 5)) as db, observer(url_of(settings)) as other:
        call = asyncio.create_task(db.execute("SELECT pg_sleep(50)", timeout=60))
        await until(other, SLEEPING, 1)
        pid = await other.fetchval("SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
        os.kill(pid, signal.SIGSTOP)
        try:
            call.cancel()
            await asyncio.wait([call], timeout=20)
            assert call.cancelled()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await db.fetchval("SELECT 1") == 1


async def test_dead_connections_are_not_handed_out(settings: Settings) -> None:
    """After the server dropped every session, an idempotent call does not notice, and others at most once."""
    async with Database(with_timeout(settings, 20, pool_size=4)) as db, observer(url_of(settings)) as other:
        await asyncio.gather(*[db.execute("SELECT pg_sleep(0.05)") for _ in range(4)])
        await other.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'uc_litellm_plugin'"
            " AND datname = current_database()"
        )
        answers = await asyncio.gather(*[db.fetchval("SELECT 1", idempotent=True) for _ in range(8)])
        assert answers == [1] * 8


async def test_a_session_cut_in_the_middle_is_unavailable(settings: Settings) -> None:
    """A statement whose session dies under it may have happened, so it is reported and not run again by itself."""
    async with Database(with_timeout(settings, 60)) as db, observer(url_of(settings)) as other:
        call = asyncio.create_task(db.execute("SELECT pg_sleep(50)"))
        await until(other, SLEEPING, 1)
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
        )
        with pytest.raises(DatabaseUnavailable):
            await call
        assert await db.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_pool_recovers_by_itself(own_server: Settings, mode: str) -> None:
    """While PostgreSQL is down calls fail at once; as soon as it is back they work, the first one too."""
    url = await embedded.ensure(own_server)
    there = own_server.model_copy(update={"database_url": SecretStr(url)})
    async with Database(with_timeout(there, 20, pool_size=3)) as db:
        await asyncio.gather(*[db.execute("SELECT pg_sleep(0.05)") for _ in range(3)])
        stop_server(own_server, mode)
        async with within(1):
            for _ in range(5):
                with pytest.raises(DatabaseUnavailable):
                    await db.fetchval("SELECT 1", idempotent=True)
        await embedded.ensure(own_server)
        assert await asyncio.gather(*[db.fetchval("SELECT 1") for _ in range(6)]) == [1] * 6


async def test_a_server_that_never_answers_costs_the_timeout(settings: Settings) -> None:
    """A host that accepts and says nothing makes a call fail after timeout_s, not later."""
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = SecretStr(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    async with Database(with_timeout(settings.model_copy(update={"database_url": url}), 0.5)) as db:
        started = time.monotonic()
        async with within(1):
            with pytest.raises(DatabaseUnavailable):
                await db.fetchval("SELECT 1", idempotent=True)
        assert time.monotonic() - started > 0.4
    silent.close()


async def test_a_malformed_url_is_told_at_once(settings: Settings) -> None:
    """A wrong UC_DATABASE_URL is an error of the operator's, and its password does not stand in the message."""
    wrong = settings.model_copy(update={"database_url": SecretStr("postgresql://me:s3cret@host:port/db")})
    with pytest.raises(DatabaseError) as caught:
        async with Database(wrong) as db:
            await db.fetchval("SELECT 1")
    assert "s3cret" not in str(caught.value)


async def test_changes_are_heard_and_the_loss_of_the_listener_too(settings: Settings, db: Database) -> None:
    """Payloads arrive; when the connection is cut the caller hears it, and is told when it listens again."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(
        changes.listen(
            settings,
            on_payload=heard.put_nowait,
            on_ready=lambda: heard.put_nowait("ready"),
            on_lost=lambda: heard.put_nowait("lost"),
        )
    )
    assert await asyncio.wait_for(heard.get(), 60) == "ready"
    await db.execute("NOTIFY uc_changed, 'first'")
    assert await asyncio.wait_for(heard.get(), 60) == "first"
    await db.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                   " AND datname = current_database()")  # fmt: skip
    assert [await asyncio.wait_for(heard.get(), 60) for _ in range(2)] == ["lost", "ready"]
    await db.execute("NOTIFY uc_changed, 'second'")
    assert await asyncio.wait_for(heard.get(), 60) == "second"
    listening.cancel()
    assert await asyncio.wait_for(heard.get(), 60) == "lost"


async def test_a_pooler_that_keeps_notifications_is_noticed(settings: Settings) -> None:
    """Where LISTEN succeeds and others are not heard, nobody is told that changes are, and the error says why."""
    pooler = await asyncio.start_server(in_transactions(settings), "127.0.0.1", 0)
    path, port = urlsplit(url_of(settings)).path, pooler.sockets[0].getsockname()[1]
    url = SecretStr(f"postgresql://uc@127.0.0.1:{port}{path}?sslmode=disable")
    told: list[str] = []
    pooled = with_timeout(settings.model_copy(update={"database_url": url}), 3)
    with pytest.raises(DatabaseUnavailable, match="pooler in transaction mode"):
        await changes._listen_once(pooled, told.append, lambda: told.append("ready"), lambda: told.append("lost"))
    assert told == []
    pooler.close()


def in_transactions(settings: Settings) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """As a pooler in transaction mode: between transactions (after ReadyForQuery) the client hears no notifications."""
    (directory,) = parse_qs(urlsplit(url_of(settings)).query)["host"]

    async def connected(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{PORT}")
        linked = asyncio.Event()

        async def up() -> None:
            while data := await from_client.read(65_536):
                linked.set()
                to_server.write(data)
            to_server.close()

        async def down() -> None:
            with suppress(asyncio.IncompleteReadError):
                while True:
                    head = await from_server.readexactly(5)
                    body = await from_server.readexactly(int.from_bytes(head[1:], "big") - 4)
                    if head[:1] != b"A" or linked.is_set():
                        to_client.write(head + body)
                    if (head[:1], body) == (b"Z", b"I"):
                        linked.clear()
            to_client.close()

        await asyncio.gather(up(), down())

    return connected


def url_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def stop_server(settings: Settings, mode: str) -> None:
    """Stop a test's embedded server as an operator or a crash would."""
    cluster = Cluster(settings.state_dir / "postgres")
    result: subprocess.CompletedProcess[str] = cluster._control("stop", f"--mode={mode}")
    assert result.returncode == 0, result.stderr
