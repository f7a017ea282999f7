from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from uc_litellm_plugin import embedded
from uc_litellm_plugin.cluster import Cluster
from uc_litellm_plugin.errors import DatabaseError
from uc_litellm_plugin.settings import Settings

USE = """
import asyncio, sys
from uc_litellm_plugin import embedded, settings
print(asyncio.run(embedded.ensure(settings.load())), flush=True)
sys.stdin.read()
"""
NOBODY = 65534


async def start_user(settings: Settings) -> asyncio.subprocess.Process:
    """A process that uses the embedded server until its input ends."""
    environ = {"UC_STATE_DIR": str(settings.state_dir), "PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", USE, env=environ,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def until_ready(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


def server_pid(settings: Settings) -> int:
    return int((cluster_of(settings).data / "postmaster.pid").read_text().split()[0])


def cluster_of(settings: Settings) -> Cluster:
    return Cluster(settings.state_dir / "postgres")


async def ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_many_processes_start_one_server(own_server: Settings) -> None:
    """Whoever comes at the same time finds the same server, and the last one that leaves stops it."""
    users = await asyncio.gather(*[start_user(own_server) for _ in range(5)])
    dsns = {await until_ready(user) for user in users}
    assert len(dsns) == 1
    assert await ask(dsns.pop(), "SHOW fsync") == "on"
    await embedded.ensure(own_server)
    assert not await embedded.stop(own_server), "five others use it"
    for user in users:
        await user.communicate(b"")
    assert await embedded.stop(own_server)
    assert not cluster_of(own_server).is_running()


async def test_the_server_survives_who_started_it(own_server: Settings) -> None:
    """A starter that is killed takes neither the server nor its data along, and is no longer counted as a user."""
    starter = await start_user(own_server)
    dsn = await until_ready(starter)
    pid = server_pid(own_server)
    starter.kill()
    await starter.wait()
    assert await embedded.ensure(own_server) == dsn
    assert server_pid(own_server) == pid
    assert await embedded.stop(own_server)


async def test_a_crashed_server_comes_back_with_its_data(own_server: Settings) -> None:
    """After kill -9 of PostgreSQL, the next ensure waits for recovery, and what was committed is there."""
    dsn = await embedded.ensure(own_server)
    await ask(dsn, "CREATE TABLE kept AS SELECT generate_series(1, 50000) AS id")
    connection, lost = await asyncpg.connect(dsn), asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    os.kill(server_pid(own_server), signal.SIGKILL)
    await asyncio.wait_for(lost.wait(), 60)
    assert await ask(await embedded.ensure(own_server), "SELECT count(*) FROM kept") == 50000


async def test_a_stale_pid_file_is_no_server(own_server: Settings) -> None:
    """A pid file left by a lost machine, whose number now is another process, is not taken for a server."""
    await embedded.ensure(own_server)
    await embedded.stop(own_server)
    pid_file = cluster_of(own_server).data / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{cluster_of(own_server).data}\n0\n5432\n\n\n\nready\n")
    assert await ask(await embedded.ensure(own_server), "SELECT 1") == 1


async def test_a_half_made_cluster_is_made_anew(own_server: Settings) -> None:
    """A first start that was killed in the middle leaves nothing that stands in the way of the next."""
    home = cluster_of(own_server).home
    (home / "data.draft").mkdir(parents=True)
    (home / "data.draft" / "PG_VERSION").write_text("18\n")
    assert await ask(await embedded.ensure(own_server), "SELECT 1") == 1


async def test_a_long_path(own_server: Settings) -> None:
    """A state directory too long for a socket works: the socket lies elsewhere, where only its owner can enter."""
    deep = own_server.model_copy(update={"state_dir": own_server.state_dir / ("d" * 120)})
    try:
        assert await ask(await embedded.ensure(deep), "SELECT 1") == 1
        socket_dir = cluster_of(deep).socket_dir
        assert socket_dir.parent == Path("/tmp")
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        await embedded.stop(deep)
        shutil.rmtree(cluster_of(deep).socket_dir)


async def test_somebody_elses_socket_directory_is_refused(own_server: Settings) -> None:
    """In /tmp others may be first: a directory that is open to them is not used."""
    deep = own_server.model_copy(update={"state_dir": own_server.state_dir / ("e" * 120)})
    trap = cluster_of(deep).socket_dir
    trap.mkdir()
    trap.chmod(0o777)
    try:
        with pytest.raises(DatabaseError, match="mode 0700"):
            await embedded.ensure(deep)
    finally:
        trap.rmdir()


async def test_a_closed_directory(own_server: Settings) -> None:
    """A state directory below one that only its owner can enter works, as root too; it opens for passing only."""
    closed = own_server.state_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    inside = own_server.model_copy(update={"state_dir": closed / "state"})
    try:
        assert await ask(await embedded.ensure(inside), "SELECT 1") == 1
        assert closed.stat().st_mode & 0o077 == (0o001 if os.geteuid() == 0 else 0)
    finally:
        await embedded.stop(inside)


def test_an_ordinary_user(server_url: str, own_server: Settings) -> None:
    """It works without being root (under root, a forked child becomes another user for it)."""
    # The run's own server, started first, has opened the way to the binaries.
    own_server.state_dir.mkdir()
    if os.geteuid() == 0:
        os.chown(own_server.state_dir, NOBODY, NOBODY)
    child = multiprocessing.get_context("fork").Process(target=use_as_nobody, args=(own_server,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert cluster_of(own_server).log_file.stat().st_uid == own_server.state_dir.stat().st_uid


def use_as_nobody(settings: Settings) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    assert asyncio.run(_use_once(settings)) == 1


async def _use_once(settings: Settings) -> object:
    answer = await ask(await embedded.ensure(settings), "SELECT 1")
    assert await embedded.stop(settings)
    return answer


async def test_durability_cannot_be_edited_away(own_server: Settings) -> None:
    """fsync = off in postgresql.conf has no effect."""
    await embedded.ensure(own_server)
    await embedded.stop(own_server)
    with (cluster_of(own_server).data / "postgresql.conf").open("a") as conf:
        conf.write("fsync = off\nfull_page_writes = off\n")
    dsn = await embedded.ensure(own_server)
    assert await ask(dsn, "SELECT current_setting('fsync') || current_setting('full_page_writes')") == "onon"


async def test_without_the_extra(own_server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the binaries are not installed, the message says how to get them, or do without."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatabaseError, match=r"pip install 'uc-litellm-plugin\[embedded\]'.*UC_DATABASE_URL"):
        await embedded.ensure(own_server)


async def test_an_unwritable_state_directory(own_server: Settings) -> None:
    """A state directory that cannot be made is an error that names it and the ways out."""
    in_a_file = own_server.state_dir.parent / "file"
    in_a_file.touch()
    with pytest.raises(DatabaseError, match="UC_STATE_DIR"):
        await embedded.ensure(own_server.model_copy(update={"state_dir": in_a_file / "state"}))
