"""Rotation of sealing keys: under traffic, after kill -9, and past what does not open. Every key is what it was."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.integration.vaults import Keyring, canary, new_key, vault_of
from uc_litellm_plugin import rotation
from uc_litellm_plugin.database import Database, connect
from uc_litellm_plugin.errors import DatabaseUnavailable, UcError
from uc_litellm_plugin.provider_key import KeyChanges, NewKey
from uc_litellm_plugin.rotation import OPENS
from uc_litellm_plugin.settings import Settings
from uc_litellm_plugin.vault import Secret, new_sealing_key

_BY_KEY = "SELECT key_id, count(*) AS keys FROM user_provider_keys GROUP BY key_id"
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_ADDED = "SELECT id, user_id FROM user_provider_keys WHERE key_name ~ '^(added|name)' ORDER BY id"
_SETTLE = "SELECT outcome FROM settle_credits($1)"


@pytest.fixture
def keyring(db: Database) -> Keyring:
    return Keyring.on(db)


async def under(database: Database) -> dict[str, int]:
    """How many keys are under each sealing key."""
    return {row["key_id"]: row["keys"] for row in await database.fetch(_BY_KEY)}


async def test_rotation(keyring: Keyring) -> None:
    """All keys are under the newest sealing key afterwards, in batches; the same again does nothing."""
    plain = await keyring.fill(60)
    told: list[str] = []
    both = vault_of(keyring.new, keyring.old)
    done = await rotation.rotate(keyring.database, both, 25, told.append)
    assert (done.resealed, done.left, dict(done.closed)) == (60, 0, {})
    assert told == ["25 of 60 resealed", "50 of 60 resealed", "60 of 60 resealed"]
    assert await keyring.opened(keyring.new) == plain
    again = await rotation.rotate(keyring.database, both)
    assert (again.resealed, again.left) == (0, 0)
    found = await rotation.verify(keyring.database, vault_of(keyring.new))
    assert [(each.is_newest, each.state, each.keys) for each in found] == [(True, OPENS, 60)]


async def test_what_does_not_open_stays(keyring: Keyring) -> None:
    """Damaged keys and those of a missing sealing key are counted and left; all others are rotated and found."""
    plain = await keyring.fill(40)
    stranger = new_sealing_key()
    await keyring.account("ann")
    foreign = (await keyring.keys(stranger).add("ann", new_key()))["id"]
    damaged = next(iter(plain))
    await keyring.database.execute(
        "UPDATE user_provider_keys SET encrypted_api_key = left(encrypted_api_key, -1) WHERE id = $1", damaged
    )
    before = await keyring.database.fetch(
        "SELECT * FROM user_provider_keys WHERE id = ANY ($1) ORDER BY id", [damaged, foreign]
    )
    done = await rotation.rotate(keyring.database, vault_of(keyring.new, keyring.old), 7)
    old, missing = vault_of(keyring.old).newest, vault_of(stranger).newest
    assert (done.resealed, done.left) == (39, 2)
    assert done.closed == {(old, "damaged_key"): 1, (missing, "unknown_sealing_key"): 1}
    after = await keyring.database.fetch(
        "SELECT * FROM user_provider_keys WHERE id = ANY ($1) ORDER BY id", [damaged, foreign]
    )
    assert after == before
    found = await rotation.verify(keyring.database, vault_of(keyring.new, keyring.old), 7)
    assert {(each.key_id, each.state): (each.keys, each.ids) for each in found} == {
        (vault_of(keyring.new).newest, OPENS): (39, ()),
        (old, "damaged_key"): (1, (damaged,)),
        (missing, "unknown_sealing_key"): (1, (foreign,)),
    }


async def test_keys_with_an_address(keyring: Keyring) -> None:
    """A key that is sealed for one address of its owner's stays so."""
    await keyring.account("ann")
    new = NewKey("custom", Secret("any-key-at-all"), api_base="https://llm.example.com/v1")
    added = await keyring.keys().add("ann", new)
    assert (await rotation.rotate(keyring.database, vault_of(keyring.new, keyring.old))).left == 0
    assert await keyring.opened(keyring.new) == {added["id"]: "any-key-at-all"}
    (found,) = await rotation.verify(keyring.database, vault_of(keyring.new))
    assert (found.state, found.keys) == (OPENS, 1)


async def test_an_unused_sealing_key_is_named(keyring: Keyring) -> None:
    """A sealing key with which nothing is sealed stands in the findings with no keys, so that it can be dropped."""
    found = await rotation.verify(keyring.database, vault_of(keyring.new, keyring.old))
    assert {(each.key_id, each.keys) for each in found} == {
        (key, 0) for key in vault_of(keyring.new, keyring.old).key_ids
    }


async def test_a_row_that_is_being_changed(keyring: Keyring, settings: Settings) -> None:
    """A row that a settlement is just counting is waited for, alone, and is then resealed, with what was counted."""
    plain = await keyring.fill(20)
    busy = max(plain)
    async with connect(settings) as other:
        counting = other.transaction()
        await counting.start()
        await other.execute("UPDATE user_provider_keys SET total_requests = 7 WHERE id = $1", busy)
        task = asyncio.create_task(rotation.rotate(keyring.database, vault_of(keyring.new, keyring.old)))
        while not await other.fetchval(_WAITS):
            await asyncio.sleep(0)
        # All the others are resealed and free already: the settlement can go on to them, in whatever order.
        assert await under(keyring.database) == {vault_of(keyring.new).newest: 19, vault_of(keyring.old).newest: 1}
        await other.execute("UPDATE user_provider_keys SET total_requests = 7 WHERE id = $1", min(plain))
        await counting.commit()
    assert (await task).left == 0
    assert await keyring.opened(keyring.new) == plain
    assert await keyring.database.fetchval("SELECT sum(total_requests) FROM user_provider_keys") == 14


async def test_a_row_that_was_changed_meanwhile(keyring: Keyring) -> None:
    """A key that somebody else resealed after it was read is not overwritten."""
    await keyring.fill(20)
    raced = vault_of(keyring.new, keyring.old)
    (read,) = [page async for page in rotation._pages(keyring.database, raced.newest, 100)]
    await rotation.rotate(keyring.database, vault_of(keyring.new, keyring.old))
    stands = await keyring.database.fetch("SELECT * FROM user_provider_keys ORDER BY id")
    done = rotation.Rotation(raced.newest)
    assert await rotation._reseal(keyring.database, raced, read, done.closed) == 0
    assert await keyring.database.fetch("SELECT * FROM user_provider_keys ORDER BY id") == stands


class Traffic:
    """What goes on while sealing keys are rotated: users add, change and delete, calls are settled."""

    def __init__(self, keyring: Keyring, plain: dict[UUID, str], seed: int) -> None:
        self.plain = plain
        self.counted = 0
        self._keyring = keyring
        self._random = random.Random(seed)
        self._numbers = iter(range(10_000, 100_000))
        # Settlements use the keys that were there at the start; only later ones are changed and deleted.
        self._kept = sorted((key_id, f"user{place // 20}") for place, key_id in enumerate(plain))

    async def add(self) -> None:
        """By a process that still has the old sealing key as its newest, or by one that has the new one."""
        ring, number = self._keyring, next(self._numbers)
        keys = ring.keys(*self._random.choice([(ring.old,), (ring.new, ring.old)]), most_keys=1000)
        added = await keys.add(self._user(), new_key(number, key_name=f"added {number}"))
        self.plain[added["id"]] = canary(number)

    async def change(self) -> None:
        user, key_id = await self._one()
        await self._keyring.keys().change(user, key_id, KeyChanges(key_name=f"name {uuid4()}", is_default=True))

    async def delete(self) -> None:
        user, key_id = await self._one()
        await self._keyring.keys().delete(user, key_id)
        del self.plain[key_id]

    async def settle(self) -> None:
        """A batch for several users, which locks several keys."""
        batch = [
            {"hold_id": str(uuid4()), "user_id": user, "action": "settle", "charge": "0",
             "usage": {"provider_key_id": str(key_id), "cost_usd": "0.01"}}
            for key_id, user in self._random.sample(self._kept, 12)
        ]  # fmt: skip
        await self._keyring.database.fetch(_SETTLE, batch)
        self.counted += len(batch)

    async def go_on(self, done: asyncio.Event, *turns: Callable[[], Awaitable[None]]) -> list[UcError]:
        """All of it in turns until the rotation is done; what failed."""
        failed: list[UcError] = []
        while not done.is_set():
            for turn in turns:
                try:
                    await turn()
                except UcError as error:
                    failed.append(error)
        return failed

    def _user(self) -> str:
        return f"user{self._random.randrange(20)}"

    async def _one(self) -> tuple[str, UUID]:
        rows = await self._keyring.database.fetch(_ADDED)
        row = self._random.choice(rows)
        return row["user_id"], row["id"]


async def test_rotation_under_traffic(keyring: Keyring) -> None:
    """While users and calls go on, two rotations at once lose, revive and mix up nothing, and nobody is failed."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    plain = await keyring.fill(400)
    traffic, done = Traffic(keyring, plain, seed), asyncio.Event()
    await traffic.add()
    both = vault_of(keyring.new, keyring.old)
    people = traffic.go_on(done, traffic.add, traffic.change, traffic.add, traffic.delete)
    going_on = asyncio.gather(people, *(traffic.go_on(done, traffic.settle) for _ in range(3)))
    rotations = await asyncio.gather(*(rotation.rotate(keyring.database, both, 10) for _ in range(2)))
    done.set()
    assert await going_on == [[], [], [], []]
    last = await rotation.rotate(keyring.database, both)
    assert (last.left, sum(each.resealed for each in rotations) >= 400) == (0, True)
    assert await keyring.opened(keyring.new) == traffic.plain
    assert await keyring.database.fetchval("SELECT sum(total_requests) FROM user_provider_keys") == traffic.counted > 0
    assert await keyring.database.fetch("SELECT * FROM ledger_audit()") == []


async def started(keyring: Keyring, settings: Settings, home: Path) -> asyncio.subprocess.Process:
    """`uc-litellm vault rotate` as a process of its own, in small batches."""
    assert settings.database_url is not None
    environ = {
        "UC_DATABASE_URL": settings.database_url.get_secret_value(),
        "UC_STATE_DIR": str(home),
        "UC_SEALING_KEYS": f"{keyring.new},{keyring.old}",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-m", "uc_litellm_plugin", "vault", "rotate", "--batch", "3"]
    return await asyncio.create_subprocess_exec(*command, env=environ, cwd=home, stderr=asyncio.subprocess.PIPE)


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    return (await asyncio.wait_for(process.stderr.readline(), 60)).decode()


async def test_rotation_after_kill_9(keyring: Keyring, settings: Settings, tmp_path: Path) -> None:
    """A rotation that is killed again and again loses nothing, and goes on where it was until all is done."""
    plain = await keyring.fill(300)
    new, before = vault_of(keyring.new).newest, 0
    for _ in range(2):
        process = await started(keyring, settings, tmp_path)
        for _ in range(8):
            assert "resealed" in await said(process)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        resealed = (await under(keyring.database)).get(new, 0)
        assert before + 24 <= resealed < 300
        assert await keyring.opened(keyring.new, keyring.old) == plain
        before = resealed
    process = await started(keyring, settings, tmp_path)
    assert process.stderr is not None
    told = (await process.stderr.read()).decode()
    assert await process.wait() == 0, told
    assert told.splitlines()[-1] == f"{300 - before} resealed with {new}, 0 left."
    assert await keyring.opened(keyring.new) == plain


async def test_rotation_without_a_database(keyring: Keyring) -> None:
    """When PostgreSQL goes away midway the error says so, what was resealed stays, and the rest is done later."""
    plain = await keyring.fill(40)
    both = vault_of(keyring.new, keyring.old)
    broken: list[str] = []

    def break_off(told: str) -> None:
        broken.append(told)
        if len(broken) == 2:
            raise DatabaseUnavailable("PostgreSQL is away in this test.")

    with pytest.raises(DatabaseUnavailable):
        await rotation.rotate(keyring.database, both, 10, break_off)
    assert await under(keyring.database) == {both.key_ids[0]: 20, both.key_ids[1]: 20}
    assert (await rotation.rotate(keyring.database, both, 10)).resealed == 20
    assert await keyring.opened(keyring.new) == plain
