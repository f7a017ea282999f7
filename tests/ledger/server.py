"""The PostgreSQL that the proofs of the ledger run on: it can be killed, and nothing of it is flushed by chance."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from tests.schema.server import apply_sql, database_url, memory_directory
from uc_litellm_plugin.cluster import Cluster

TEMPLATE = "uc_ledger_template"

# Deadlocks are found at once, and what was committed without a flush stays unflushed until the crash.
_SETTINGS = ("deadlock_timeout = '20ms'", "wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'")


class Server:
    """A cluster of its own with a migrated template in it."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: it is closed to other users, and for root PostgreSQL runs as one.
        self._home = Path(tempfile.mkdtemp(prefix="uc-ledger-", dir=memory_directory()))
        self._home.chmod(0o711)
        self._cluster = Cluster(self._home / "postgres")
        self._cluster.home.mkdir(mode=0o711)
        self._cluster.start()
        self.url = self._cluster.dsn
        self._run(*[f"ALTER SYSTEM SET {each}" for each in _SETTINGS], "SELECT pg_reload_conf()")
        self._run(f"CREATE DATABASE {TEMPLATE}")
        asyncio.run(_prepare(database_url(self.url, TEMPLATE)))

    @contextmanager
    def database(self, functions: str | None = None) -> Iterator[str]:
        """The URL of a clone of the template; with `functions`, that text in the place of functions.sql."""
        name = f"uc_ledger_{uuid.uuid4().hex[:12]}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        url = database_url(self.url, name)
        try:
            if functions is not None:
                asyncio.run(_execute(url, functions))
            yield url
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def crash(self) -> None:
        """Stop at once, as `pg_ctl stop -m immediate` does, and start again: what was not flushed is lost."""
        pid = int((self._cluster.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        while self._cluster.is_running():
            os.sched_yield()
        self._cluster.start()

    def close(self) -> None:
        self._cluster.stop()
        shutil.rmtree(self._home)

    def _run(self, *statements: str) -> None:
        asyncio.run(_execute(self.url, *statements))


async def _prepare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await apply_sql(connection)
    await connection.close()


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
