"""What asyncpg and the network raise, in the package's own two errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from .errors import DatabaseError, DatabaseUnavailable

# Classes and codes of https://www.postgresql.org/docs/current/errcodes-appendix.html that a later try may not meet.
_TRANSIENT = (
    "08",  # connection exception
    "40",  # transaction rollback: deadlock, serialization failure
    "53",  # insufficient resources: too many connections, disk full
    "57",  # operator intervention: shutdown, crash of a sibling, statement_timeout
    "58",  # system error outside PostgreSQL
    "25006",  # read-only transaction: a standby that is not promoted yet
    "25P03",  # idle in transaction for too long
    "55P03",  # lock_timeout
)
# What PostgreSQL may say after a COMMIT whose answer it can no longer give: the connection, or the server, ends.
_IN_DOUBT = ("08", "57P", "40003")


@contextmanager
def translated() -> Iterator[None]:
    """Turn all that asyncpg and the network raise into `DatabaseUnavailable` or `DatabaseError`."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _refused(error) from error
    except ValueError as error:
        # asyncpg's way to say that a URL or an argument cannot be.
        raise DatabaseError(f"PostgreSQL was not asked: {error}") from error
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise DatabaseUnavailable("PostgreSQL did not answer in time.") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise DatabaseUnavailable(f"PostgreSQL cannot be reached: {error}") from error


def _refused(error: asyncpg.PostgresError) -> DatabaseError:
    hint = f" {error.hint}" if getattr(error, "hint", None) else ""
    constraint = getattr(error, "constraint_name", None)
    message = f"PostgreSQL: {error.args[0]}.{hint}"
    if not _is_transient(error.sqlstate):
        return DatabaseError(message, sqlstate=error.sqlstate, constraint=constraint)
    unavailable = DatabaseUnavailable(message, sqlstate=error.sqlstate, constraint=constraint)
    unavailable.in_doubt = (error.sqlstate or "08").startswith(_IN_DOUBT)
    return unavailable


def is_in_step(error: BaseException) -> bool:
    """Whether client and server still agree: the server answered, or was not asked because an argument is wrong."""
    return isinstance(error, asyncpg.PostgresError | ValueError)


def is_broken(error: BaseException) -> bool:
    """Whether a connection is gone, and others of the same pool with it, most likely."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(("08", "57P"))
    if isinstance(error, ValueError | asyncio.TimeoutError | TimeoutError):
        return False
    return isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError)


def _is_transient(sqlstate: str | None) -> bool:
    return sqlstate is None or sqlstate.startswith(_TRANSIENT)
