"""Health as several workers share it through one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clock import Clock
from uc_litellm_plugin import changes
from uc_litellm_plugin import settings as settings_module
from uc_litellm_plugin.database import Database
from uc_litellm_plugin.errors import DatabaseUnavailable
from uc_litellm_plugin.faults import Fault
from uc_litellm_plugin.health import Health
from uc_litellm_plugin.settings import HealthSettings, Settings
from uc_litellm_plugin.worker import Worker

SETTINGS = HealthSettings(window_s=60, down_after=3, degraded_below=90, probe_after_s=3)
OPENAI = ("openai", "gpt-1")
SECOND = ("openai", "gpt-2")


class Flaky(Database):
    """The real database, which can be told to be away, before or after it did what it was asked for."""

    away: bool = False
    in_doubt: bool = False

    async def fetch(self, sql: str, *args: Any, **options: Any) -> list[Any]:
        rows = [] if self.away and not self.in_doubt else await super().fetch(sql, *args, **options)
        if self.away:
            error = DatabaseUnavailable("PostgreSQL is away in this test.")
            error.in_doubt = self.in_doubt
            raise error
        return rows


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Flaky]:
    database = Flaky(settings)
    async with database:
        yield database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(database: Flaky, clock: Clock) -> Health:
    return Health(database, SETTINGS, clock)


@pytest.fixture
def other(database: Flaky, clock: Clock) -> Health:
    """The health of another worker."""
    return Health(database, SETTINGS, clock)


def fail(health: Health, where: tuple[str, str] = OPENAI, times: int = 3) -> None:
    for _ in range(times):
        health.begun(*where)
        health.failed(*where, Fault.SERVER_ERROR)


def succeed(health: Health, where: tuple[str, str] = OPENAI, times: int = 1, latency_ms: float = 100) -> None:
    for _ in range(times):
        health.begun(*where)
        health.succeeded(*where, latency_ms)


async def row(database: Database, provider: str, deployment: str = "") -> Any:
    return await database.fetchrow(
        "SELECT * FROM provider_health WHERE provider = $1 AND deployment = $2", provider, deployment
    )


async def hurried(health: Health) -> None:
    """Wait until what is urgent was written."""
    assert health._hurrying is not None
    await health._hurrying


@asynccontextmanager
async def listening(settings: Settings, health: Health) -> AsyncIterator[asyncio.Event]:
    """Hears notifications for a worker; the event is set at each."""
    ready, heard = asyncio.Event(), asyncio.Event()

    def on_payload(payload: str) -> None:
        assert health.heard(payload)
        heard.set()

    task = asyncio.create_task(
        changes.listen(settings, on_payload=on_payload, on_ready=ready.set, on_lost=lambda: None)
    )
    try:
        await asyncio.wait_for(ready.wait(), 60)
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_down_is_known_to_all_at_once(settings: Settings, health: Health, other: Health) -> None:
    """What one worker finds down is down in another before its next beat, and so is its recovery."""
    succeed(other)
    async with listening(settings, other) as heard:
        began = time.monotonic()
        fail(health)
        await asyncio.wait_for(heard.wait(), 60)
        print(f"down, known to another worker after {(time.monotonic() - began) * 1000:.1f} ms")
        assert other.standing(*OPENAI).status == "down"
        heard.clear()
        succeed(health)
        await asyncio.wait_for(heard.wait(), 60)
        assert other.standing(*OPENAI).status == "healthy"


async def test_down_is_known_without_notifications(health: Health, other: Health) -> None:
    """A worker that hears no notifications, and has no news of its own, learns it with its next beat."""
    fail(health)
    await hurried(health)
    assert other.standing(*OPENAI).status == "healthy"
    await other.flush()
    assert other.standing(*OPENAI).status == "down"
    succeed(health)
    await hurried(health)
    await other.flush()
    assert other.standing(*OPENAI).status == "healthy"


async def test_a_report_counts_once(health: Health, other: Health, database: Flaky, clock: Clock) -> None:
    """A worker that has seen a deployment answer since is not told again that it was down before."""
    fail(health)
    await hurried(health)
    await other.flush()
    report = await row(database, *OPENAI)
    clock.now += 6
    assert other.claim_probe(*OPENAI)
    succeed(other)
    late = {"table": "provider_health", "provider": "openai", "deployment": "gpt-1", "status": "down"}
    assert other.heard(json.dumps({**late, "since": report["status_since"].timestamp(), "by": report["reported_by"]}))
    assert other.standing(*OPENAI).status == "healthy"
    await hurried(other)
    for worker in (other, health, other):
        await worker.flush()
    assert other.standing(*OPENAI).status == "healthy"


async def test_one_worker_alone_cannot_reach_it(health: Health, other: Health, database: Flaky, clock: Clock) -> None:
    """When only one worker finds a deployment down, the others' successes let it probe, and nobody flaps."""
    fail(health)
    await hurried(health)
    await other.flush()
    succeed(other)
    await hurried(other)
    since = (await row(database, *OPENAI))["status_since"]
    for _ in range(5):
        await health.flush()
        assert health.standing(*OPENAI).status == "down"
        if health.claim_probe(*OPENAI):
            fail(health, times=1)
        clock.now += 1
        succeed(other)
        await other.flush()
        assert other.standing(*OPENAI).status == "healthy"
    now = await row(database, *OPENAI)
    assert (now["status"], now["status_since"]) == ("healthy", since)


async def test_a_new_worker_knows(health: Health, database: Flaky, clock: Clock) -> None:
    """A worker that starts learns from the rows what is down, and may probe it."""
    fail(health)
    await hurried(health)
    fresh = Health(database, SETTINGS, clock)
    await fresh.flush()
    assert fresh.standing(*OPENAI).status == "down"
    clock.now += 6
    assert fresh.standing(*OPENAI).probe


async def test_an_operator_has_the_last_word(health: Health, database: Flaky) -> None:
    """A status set by hand makes the workers try again."""
    fail(health)
    await hurried(health)
    await health.flush()
    await database.execute("UPDATE provider_health SET status = 'healthy', reported_by = NULL WHERE deployment <> ''")
    await health.flush()
    assert health.standing(*OPENAI).probe


async def test_rows(health: Health, database: Flaky) -> None:
    """The rows of a deployment and of its provider say what happened."""
    for latency in range(1, 21):
        succeed(health, latency_ms=latency)
    health.succeeded(*OPENAI, 20, rate_limit_remaining=7)
    fail(health, times=1)
    succeed(health, SECOND, times=2, latency_ms=5)
    await health.flush()
    deployment, provider = await row(database, *OPENAI), await row(database, "openai")
    assert (deployment["requests_last_hour"], deployment["error_count_24h"]) == (22, 1)
    assert (deployment["consecutive_failures"], deployment["last_error"]) == (1, "server_error")
    assert (float(deployment["success_rate"]), deployment["p95_latency_ms"]) == (95.45, 20)
    assert (deployment["status"], deployment["rate_limit_remaining"]) == ("healthy", 7)
    assert None not in (deployment["last_check"], deployment["last_success"], deployment["last_failure"])
    assert 10 <= deployment["avg_latency_ms"] <= 11
    assert (provider["requests_last_hour"], provider["error_count_24h"], provider["status"]) == (24, 1, "healthy")
    assert 5 < provider["avg_latency_ms"] < 11


async def test_a_provider_is_the_sum_of_its_deployments(health: Health, database: Flaky) -> None:
    """It is degraded when one of them is unwell, down when all are, and healthy when all are."""
    for where, status in ((OPENAI, "degraded"), (SECOND, "down")):
        succeed(health, SECOND)
        fail(health, where)
        await health.flush()
        assert (await row(database, "openai"))["status"] == status
    succeed(health)
    succeed(health, SECOND)
    await health.flush()
    assert (await row(database, "openai"))["status"] == "healthy"


async def test_no_text_of_an_error_is_kept(health: Health, database: Flaky) -> None:
    """An error may repeat a key; the row says what kind it was."""

    class Refused(Exception):
        status_code = 402

    health.failed(*OPENAI, Refused("no funds for sk-secret"))
    await health.flush()
    kept = await row(database, *OPENAI)
    assert (kept["last_error"], kept["status"]) == ("out_of_funds", "down")
    assert "secret" not in str(dict(kept))


async def test_what_is_not_the_providers_fault_is_not_counted(health: Health, database: Flaky) -> None:
    """Refusals, bad requests and clients that leave make no row."""
    health.begun(*OPENAI)
    health.failed(*OPENAI, Fault.BAD_REQUEST)
    health.begun(*OPENAI)
    health.abandoned(*OPENAI)
    await health.flush()
    assert await row(database, *OPENAI) is None


_AGE = "UPDATE provider_health SET rolled_at = rolled_at - $1::text::interval"


@pytest.mark.parametrize(
    ("age", "requests", "errors", "rate"),
    [("0 minutes", 5, 2, 60), ("59 minutes", 5, 2, 60), ("60 minutes", 0, 2, None), ("25 hours", 0, 0, None)],
)
async def test_counts_roll(
    health: Health, other: Health, database: Flaky, age: str, requests: int, errors: int, rate: int | None
) -> None:
    """The last hour and the last day move on, although nobody calls: a beat of any worker brings them up to date."""
    succeed(health, times=3)
    fail(health, times=2)
    await health.flush()
    await database.execute(_AGE, age)
    await other.flush()
    for name in ("gpt-1", ""):
        rolled = await row(database, "openai", name)
        assert (rolled["requests_last_hour"], rolled["error_count_24h"], rolled["success_rate"]) == (
            requests, errors, rate,
        ), name  # fmt: skip
        assert rolled["status"] == ("degraded" if requests else "healthy"), name


async def test_counts_of_different_hours_add_up(health: Health, database: Flaky) -> None:
    """What is new is added to what has not yet gone by."""
    for _ in range(3):
        succeed(health, times=2)
        fail(health, times=1)
        await health.flush()
        await database.execute(_AGE, "25 minutes")
    succeed(health)
    await health.flush()
    kept = await row(database, *OPENAI)
    assert (kept["requests_last_hour"], kept["error_count_24h"]) == (3 * 2 + 1, 3)


async def test_a_database_that_is_away(health: Health, database: Flaky, clock: Clock) -> None:
    """Nothing raises, the worker goes by what it sees, memory stays small, and the counts are written later."""
    database.away = True
    for _ in range(2000):
        fail(health)
        succeed(health, times=2)
        clock.now += 0.01
    await health.flush()
    fail(health)
    await hurried(health)
    await health.flush()
    assert health.standing(*OPENAI).status == "down"
    known = health._deployments[OPENAI]
    assert len(known.breaker.window._ordered) <= 500
    database.away = False
    await health.flush()
    kept = await row(database, *OPENAI)
    assert (kept["requests_last_hour"], kept["error_count_24h"]) == (10_003, 6_003)
    assert (kept["status"], kept["consecutive_failures"]) == ("down", 3)


async def test_an_answer_that_was_lost(health: Health, database: Flaky) -> None:
    """What may have been written is not counted twice, and what went down is told again."""
    fail(health)
    database.away, database.in_doubt = True, True
    await health.flush()
    database.away = False
    await health.flush()
    kept = await row(database, *OPENAI)
    assert (kept["requests_last_hour"], kept["status"]) == (3, "down")


async def test_a_row_that_cannot_be(health: Health, database: Flaky) -> None:
    """What PostgreSQL refuses is dropped, and does not stand in the way of the rest."""
    succeed(health, ("open\0ai", "x"))
    await health.flush()
    succeed(health)
    await health.flush()
    assert (await row(database, *OPENAI))["requests_last_hour"] == 1


async def test_memory_is_bounded(health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployments that nobody uses any more are forgotten, and there is a bound on how many are known."""
    monkeypatch.setattr("uc_litellm_plugin.health._MOST_DEPLOYMENTS", 50)
    for i in range(60):
        succeed(health, ("openai", f"gpt-{i}"))
    assert len(health._deployments) == 50
    await health.flush()
    clock.now += 3601
    await health.flush()
    assert health._deployments == {}


async def test_workers_do_not_wait_for_each_other(settings: Settings) -> None:
    """Workers that write the same rows at once, in whatever order they met them, neither deadlock nor lose a count."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    places = [(f"provider-{i % 4}", f"deployment-{i}") for i in range(12)]
    patient = settings.model_copy(update={"database": settings.database.model_copy(update={"timeout_s": 30})})
    async with Database(patient) as database:
        workers = [Health(database, SETTINGS) for _ in range(8)]

        async def work(worker: Health) -> None:
            for _ in range(15):
                for where in dice.sample(places, 8):
                    succeed(worker, where)
                await worker.flush()
                assert not worker._is_cut_off

        await asyncio.gather(*[work(worker) for worker in workers])
        total = "SELECT sum(requests_last_hour) FROM provider_health WHERE deployment "
        assert await database.fetchval(total + "<> ''") == await database.fetchval(total + "= ''") == 8 * 15 * 8


async def test_an_older_worker_writes_as_well(health: Health, database: Flaky) -> None:
    """While hosts are upgraded one by one, deltas without a status leave the status as it is."""
    fail(health)
    await hurried(health)
    old = [{"provider": "openai", "deployment": "gpt-1", "successes": 1, "failures": 0, "failures_since_success": 0,
            "avg_latency_ms": 5, "p95_latency_ms": 5, "last_error": None}]  # fmt: skip
    await database.execute("SELECT record_health($1)", old)
    kept = await row(database, *OPENAI)
    assert (kept["requests_last_hour"], kept["status"]) == (4, "down")


@pytest.mark.parametrize(
    "payload", ["", "null", "[]", "{}", '{"table": "user_credits"}', '{"table": "provider_health"}']
)
async def test_other_notifications(health: Health, payload: str) -> None:
    """What is none of its business, or cannot be read, is left to others."""
    assert not health.heard(payload)


async def test_an_error_that_cannot_tell_its_text(health: Health) -> None:
    """Not even an exception that raises when it is printed gets into the request."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise AttributeError("no text")

    health.failed(*OPENAI, Mute())
    assert health.standing(*OPENAI).status == "healthy"


async def test_workers_hand_notifications_on(tmp_path: Path, database_url: str) -> None:
    """Two workers of a proxy share what is down, by nothing but being workers."""
    there = {"UC_STATE_DIR": str(tmp_path), "UC_DATABASE_URL": database_url}
    one, two = Worker(settings_module.load(there)), Worker(settings_module.load(there))
    heard = asyncio.Event()
    hear = two.health.heard

    def listen(payload: str) -> bool:
        is_ours = hear(payload)
        heard.set()
        return is_ours

    two.health.heard = listen  # type: ignore[method-assign]
    try:
        await one.ready()
        await two.ready()
        fail(one.health)
        await asyncio.wait_for(heard.wait(), 60)
        assert two.health.standing(*OPENAI).status == "down"
    finally:
        await one.stop()
        await two.stop()
