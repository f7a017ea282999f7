"""The embedded PostgreSQL under the state directory: one server, shared by all processes of this machine.

    <state_dir>/postgres/
        data/  run/  server.log    the cluster, its socket, its log
        start                      locked while somebody starts or stops the server
        users                      locked (shared) by each process that uses the server; the kernel lets go of the lock
                                   when a process dies, in whatever way, so the count of users is always right

The server is no child of ours: it outlives the process that started it, and the last user that leaves stops it.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .cluster import Cluster
from .errors import DatabaseError
from .settings import Settings

# The shared locks of this process, by the cluster's home; the files stay open as long as the server is used.
_used: dict[Path, IO[str]] = {}


async def ensure(settings: Settings) -> str:
    """Start the embedded server unless it runs, and count this process among its users.

    Returns
    -------
    str
        The DSN of its database. The server accepts connections; crash recovery is over.

    Raises
    ------
    DatabaseError
        The `embedded` extra is not installed, or the state directory cannot be used.
    DatabaseUnavailable
        The server did not start; the message holds the end of its log.
    """
    return await asyncio.to_thread(_enter, _cluster(settings))


async def stop(settings: Settings) -> bool:
    """Leave the server, and stop it when no other process uses it.

    Returns
    -------
    bool
        True when this call stopped the server.
    """
    return await asyncio.to_thread(_leave, _cluster(settings))


def _cluster(settings: Settings) -> Cluster:
    return Cluster(settings.state_dir / "postgres")


def _enter(cluster: Cluster) -> str:
    try:
        cluster.home.mkdir(mode=0o711, parents=True, exist_ok=True)
        with _locked(cluster.home / "start"):
            cluster.start()
            _count_in(cluster.home)
    except OSError as error:
        raise DatabaseError(
            f"{error.filename or cluster.home}: {error.strerror}; set UC_STATE_DIR to a directory of your own, "
            "or UC_DATABASE_URL to a PostgreSQL server"
        ) from error
    return cluster.dsn


def _leave(cluster: Cluster) -> bool:
    if not cluster.data.exists():
        return False
    with _locked(cluster.home / "start"):
        if users := _used.pop(cluster.home, None):
            users.close()
        if _has_users(cluster.home) or not cluster.is_running():
            return False
        cluster.stop()
        return True


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _count_in(home: Path) -> None:
    if home not in _used:
        users = (home / "users").open("a")
        fcntl.flock(users, fcntl.LOCK_SH)
        _used[home] = users


def _has_users(home: Path) -> bool:
    with (home / "users").open("a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
