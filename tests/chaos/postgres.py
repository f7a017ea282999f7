"""A PostgreSQL of one's own that can be killed, and a wire to it that can be cut to the moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from uc_litellm_plugin.cluster import PORT, Cluster

READY_FOR_QUERY = b"Z\x00\x00\x00\x05I"  # after COMMIT: the message ReadyForQuery, idle, of PostgreSQL's protocol


class Server:
    """A cluster in a directory of its own, running when constructed. Its methods block; it ends when left."""

    def __init__(self) -> None:
        # Not a directory of pytest: they are closed to other users, and for root PostgreSQL runs as one.
        self._home = Path(mkdtemp(prefix="uc-server-"))
        self._home.chmod(0o711)
        self.cluster = Cluster(self._home / "postgres")
        self.cluster.home.mkdir(mode=0o711)
        self.cluster.start()

    @property
    def url(self) -> str:
        """How to reach it without a wire."""
        return self.cluster.dsn

    def start(self) -> None:
        """Starts it again and waits until it has recovered."""
        self.cluster.start()

    def crash(self) -> None:
        """Ends it as `pg_ctl stop -m immediate` does: connections break, and the next start has to recover."""
        pid = int((self.cluster.data / "postmaster.pid").read_text().split()[0])
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGQUIT)
        select.select([ended], [], [])
        os.close(ended)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still: what is sent to it is read afterwards."""
        parent = int((self.cluster.data / "postmaster.pid").read_text().split()[0])
        os.kill(parent, signal.SIGSTOP)
        children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        try:
            for child in children:
                os.kill(child, signal.SIGSTOP)
            yield
        finally:
            for pid in (*children, parent):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()
        shutil.rmtree(self._home)


@dataclass(eq=False)
class Cut:
    """A connection that is to be cut around the next hold or settlement, `before` or `after` its COMMIT, or that stays
    but is `mute` from there on.
    """

    statement: str
    when: str
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Link:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    doomed: Cut | None = None

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class Wire:
    """Passes on what the plugin and PostgreSQL say to each other, until it is told to cut."""

    def __init__(self, server: Server) -> None:
        self._socket = server.cluster.socket_dir / f".s.PGSQL.{PORT}"
        self._cuts: list[Cut] = []
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wire:
        self._listening = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def url(self) -> str:
        """How to reach PostgreSQL through this wire."""
        port = self._listening.sockets[0].getsockname()[1]
        return f"postgresql://uc@127.0.0.1:{port}/postgres?sslmode=disable"

    async def cut(self, statement: str, when: str, seconds: float = 10) -> bool:
        """Cuts the connection of the next `hold` or `settle`, `before` it arrives or `after` it is committed, or lets
        it fall silent then (`mute`).

        Returns whether one came within `seconds`.
        """
        cut = Cut(statement, when)
        self._cuts.append(cut)
        try:
            await asyncio.wait_for(cut.done.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            if cut in self._cuts:
                self._cuts.remove(cut)
        return True

    async def _connected(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        with contextlib.suppress(OSError):  # either side may be killed at any time
            try:
                from_server, server = await asyncio.open_unix_connection(str(self._socket))
            except OSError:
                client.transport.abort()
                return
            link = _Link(client, server)
            pumps = [
                asyncio.ensure_future(self._up(from_client, link)),
                asyncio.ensure_future(_down(from_server, link)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                link.abort()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(1 << 16):
            cut = self._due(data)
            if cut is not None and cut.when == "before":
                cut.done.set()
                return
            link.doomed = link.doomed or cut
            link.server.write(data)
            await link.server.drain()

    def _due(self, data: bytes) -> Cut | None:
        """The cut that this message was waited for; a settlement names its charge, a hold only its endpoint."""
        statement = "settle" if b'"charge"' in data else "hold" if b'"endpoint"' in data else None
        found = next((cut for cut in self._cuts if cut.statement == statement), None)
        if found is not None:
            self._cuts.remove(found)
        return found


async def _down(reader: asyncio.StreamReader, link: _Link) -> None:
    while data := await reader.read(1 << 16):
        if link.doomed is None:
            link.client.write(data)
            await link.client.drain()
        elif data.endswith(READY_FOR_QUERY):
            link.doomed.done.set()
            if link.doomed.when == "after":
                return
