"""The rotation of sealing keys: every provider key under the newest one, and does every one open?

Both go through the table by id and hold no lock between pages, so calls and users go on meanwhile. A rotation that was
killed goes on where it was: it looks for what is not sealed with the newest sealing key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from .database import Database, Row
from .errors import VaultError
from .migrations import silent
from .vault import Sealed, Vault, purpose_of

OPENS = "opens"

_FIRST = UUID(int=0)
# A pass meets what others changed under the one before; more than a few mean that somebody seals with an old key.
_MOST_PASSES = 5
# Of the provider keys that do not open, so many are named.
_MOST_NAMED = 20

_PAGE = """
SELECT id, user_id, provider, api_base, key_id, encrypted_api_key FROM user_provider_keys
WHERE id > $1 AND key_id IS DISTINCT FROM $2 ORDER BY id LIMIT $3"""
_COUNT = "SELECT count(*) FROM user_provider_keys WHERE key_id <> $1"
# What a settlement is just counting is passed over: waiting for it with other rows locked could be a deadlock.
_RESEAL = """
WITH mine AS (
    SELECT k.id, page.token
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS page (id, old, token)
    JOIN user_provider_keys AS k ON k.id = page.id AND k.encrypted_api_key = page.old
    FOR NO KEY UPDATE OF k SKIP LOCKED
)
UPDATE user_provider_keys AS k SET encrypted_api_key = mine.token, key_id = $4
FROM mine WHERE k.id = mine.id RETURNING k.id"""
_RESEAL_ONE = """
UPDATE user_provider_keys SET encrypted_api_key = $3, key_id = $4
WHERE id = $1 AND encrypted_api_key = $2 RETURNING id"""


@dataclass(frozen=True)
class Finding:
    """How many provider keys under one sealing key open, or why they do not.

    Attributes
    ----------
    state
        `opens`, or the code of the `VaultError`.
    ids
        Some of the provider keys that do not open.
    """

    key_id: str
    is_newest: bool
    state: str
    keys: int
    ids: tuple[UUID, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As the command shows it."""
        return asdict(self)


@dataclass
class Rotation:
    """What a rotation did.

    Attributes
    ----------
    resealed
        Provider keys that are under the newest sealing key now, and were not before.
    closed
        Those that do not open, by sealing key and reason; they stay as they are.
    left
        All that are not under the newest sealing key at the end.
    """

    newest: str
    resealed: int = 0
    closed: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: int = 0

    def facts(self) -> dict[str, Any]:
        """As the command shows it."""
        closed = [{"key_id": key_id, "state": state, "keys": keys} for (key_id, state), keys in self.closed.items()]
        return {"newest": self.newest, "resealed": self.resealed, "left": self.left, "closed": closed}


async def rotate(
    database: Database, vault: Vault, batch: int = 200, report: Callable[[str], None] = silent
) -> Rotation:
    """Seal every provider key with the newest sealing key.

    Parameters
    ----------
    batch
        Provider keys per transaction.
    report
        Called after each.

    Raises
    ------
    DatabaseError
        What was resealed until then stays so; the same again goes on from there.
    """
    rotation = Rotation(vault.newest)
    todo = await database.fetchval(_COUNT, vault.newest, idempotent=True)
    for _ in range(_MOST_PASSES):
        rotation.closed.clear()
        seen = 0
        async for page in _pages(database, vault.newest, batch):
            seen += len(page)
            rotation.resealed += await _reseal(database, vault, page, rotation.closed)
            report(f"{rotation.resealed} of {max(todo, rotation.resealed)} resealed")
        if seen == rotation.closed.total():
            break
    rotation.left = await database.fetchval(_COUNT, vault.newest, idempotent=True)
    return rotation


async def verify(database: Database, vault: Vault, batch: int = 1000) -> list[Finding]:
    """Open every provider key and count by sealing key what came of it; plaintexts are thrown away at once.

    Returns
    -------
    list of Finding
        One for each sealing key and state, and one with no keys for each sealing key that none is sealed with.
    """
    counts: Counter[tuple[str, str]] = Counter()
    closed: dict[tuple[str, str], list[UUID]] = {}
    async for page in _pages(database, None, batch):
        for row in page:
            kind = row["key_id"], _state(vault, row)
            counts[kind] += 1
            if kind[1] != OPENS and len(ids := closed.setdefault(kind, [])) < _MOST_NAMED:
                ids.append(row["id"])
    unused = set(vault.key_ids) - {key_id for key_id, _ in counts}
    counts.update(dict.fromkeys(((key_id, OPENS) for key_id in unused), 0))
    return [
        Finding(key_id, key_id == vault.newest, state, keys, tuple(closed.get((key_id, state), ())))
        for (key_id, state), keys in sorted(counts.items())
    ]


async def _pages(database: Database, but: str | None, size: int) -> AsyncIterator[list[Row]]:
    """All rows in pages by id, without those under one sealing key."""
    last = _FIRST
    while page := await database.fetch(_PAGE, last, but, size, idempotent=True):
        yield page
        last = page[-1]["id"]


async def _reseal(database: Database, vault: Vault, page: list[Row], closed: Counter[tuple[str, str]]) -> int:
    """How many of a page's rows are resealed now; those that somebody else changed meanwhile are left to them."""
    fresh: dict[UUID, tuple[str, str]] = {}
    for row in page:
        try:
            sealed = vault.reseal(row["user_id"], row["provider"], _sealed(row), purpose_of(row["api_base"]))
        except VaultError as error:
            closed[row["key_id"], error.code] += 1
        else:
            fresh[row["id"]] = row["encrypted_api_key"], sealed.token
    olds, tokens = [old for old, _ in fresh.values()], [token for _, token in fresh.values()]
    done = {row["id"] for row in await database.fetch(_RESEAL, list(fresh), olds, tokens, vault.newest)}
    for key, (old, token) in fresh.items():
        if key not in done and await database.fetchval(_RESEAL_ONE, key, old, token, vault.newest):
            done.add(key)
    return len(done)


def _state(vault: Vault, row: Row) -> str:
    try:
        vault.open(row["user_id"], row["provider"], _sealed(row), purpose_of(row["api_base"]))
    except VaultError as error:
        return error.code
    return OPENS


def _sealed(row: Row) -> Sealed:
    return Sealed(row["key_id"], row["encrypted_api_key"])
