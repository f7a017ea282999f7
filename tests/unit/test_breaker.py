from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uc_litellm_plugin.breaker import PAUSE_MOST_S, PAUSE_MOST_SUDDEN_S, PROBE_LEASE_S, PROBE_LEFT_S, Breaker, Standing
from uc_litellm_plugin.faults import Fault
from uc_litellm_plugin.settings import HealthSettings
from uc_litellm_plugin.window import BUCKETS, FEWEST_ENDS, FEWEST_SAMPLES, SAMPLES, Window

SETTINGS = HealthSettings(window_s=60, down_after=3, degraded_below=90, probe_after_s=3)
OK, SERVER, SLOW, LIMITED = "ok", Fault.SERVER_ERROR, Fault.TIMEOUT, Fault.RATE_LIMITED
START = 1000.0


def attempt(breaker: Breaker, now: float, end: Fault | str) -> None:
    breaker.begun(now)
    if isinstance(end, Fault):
        breaker.failed(now, end)
    else:
        breaker.succeeded(now, 100)


def after(*ends: Fault | str, settings: HealthSettings = SETTINGS) -> Breaker:
    """A breaker that has seen attempts end so, all at the start."""
    breaker = Breaker(settings)
    for end in ends:
        attempt(breaker, START, end)
    return breaker


def down() -> Breaker:
    return after(SERVER, SERVER, SERVER)


UNCOUNTED = [fault for fault in Fault if not fault.counts]
STATUSES: list[tuple[str, Sequence[Fault | str]]] = [
    ("healthy", []),
    ("healthy", [OK]),
    ("healthy", [SERVER]),
    ("healthy", [SERVER, SERVER]),
    ("healthy", [SERVER, OK, OK, OK]),
    ("degraded", [SERVER, OK, OK, OK, OK]),
    ("down", [SERVER, SERVER, SERVER]),
    ("down", [SERVER, SLOW, LIMITED]),
    ("degraded", [SERVER, SERVER, OK, SERVER, SERVER]),
    ("down", [OK] * 100 + [SERVER] * 3),
    ("healthy", [SERVER] + [OK] * 9),
    ("degraded", [SERVER] + [OK] * 8),
    ("healthy", [SERVER, SERVER, SERVER, OK]),
    ("healthy", UNCOUNTED * 5),
    ("down", [SERVER, *UNCOUNTED, SERVER, *UNCOUNTED, SERVER]),
    ("degraded", [OK] * 4 + [Fault.FORBIDDEN]),
    ("down", [OK, Fault.UNAUTHORIZED]),
    ("down", [OK, Fault.OUT_OF_FUNDS]),
    ("down", [OK, Fault.MODEL_GONE]),
]


@pytest.mark.parametrize(("status", "ends"), STATUSES)
def test_status(status: str, ends: Sequence[Fault | str]) -> None:
    """The status follows from how attempts ended: their share, their streak, and faults that do not heal."""
    assert after(*ends).standing(START).status == status


def test_nothing_known() -> None:
    """A deployment that nobody has tried is healthy, and nothing is known of it."""
    assert Breaker(SETTINGS).standing(START) == Standing()


def test_load() -> None:
    """The load is what is in flight and what was begun within the window."""
    breaker = after(OK, SERVER)
    breaker.begun(START)
    assert breaker.standing(START).load == 1 + 3
    breaker.abandoned(START)
    assert breaker.standing(START).load == 3
    assert breaker.standing(START + 61).load == 0


def test_the_window_slides() -> None:
    """What is older than the window no longer counts."""
    breaker = after(SERVER, OK, OK, OK, SERVER)
    assert breaker.standing(START + 54).status == "degraded"
    assert breaker.standing(START + 61) == Standing()


def test_rate_limits() -> None:
    """An exhausted rate limit degrades until there is room again, or nothing was said of it for a window."""
    breaker = Breaker(SETTINGS)
    breaker.succeeded(START, 100, rate_limit_remaining=0)
    assert breaker.standing(START).status == "degraded"
    assert breaker.standing(START + 61).rate_limit_remaining is None
    assert breaker.standing(START + 61).status == "healthy"
    breaker.succeeded(START + 62, 100, rate_limit_remaining=5)
    breaker.succeeded(START + 62, 100)
    assert breaker.standing(START + 62).rate_limit_remaining == 5
    assert breaker.standing(START + 62).status == "healthy"


def test_retry_after() -> None:
    """A deployment that asks for a rest gets it, in spite of what else it answers, and no longer."""
    breaker = after(*[OK] * 99)
    breaker.failed(START, LIMITED, retry_after_s=20)
    attempt(breaker, START + 1, OK)
    assert breaker.standing(START + 19.9).status == "degraded"
    assert breaker.standing(START + 20).status == "healthy"


def test_retry_after_bounds_the_pause() -> None:
    """A deployment that went down by its rate limit is probed when it said it would be back, if not before."""
    for asked, probed in ((1, 1), (20, 3)):
        breaker = Breaker(SETTINGS)
        for _ in range(3):
            breaker.failed(START, LIMITED, retry_after_s=asked)
        assert not breaker.standing(START + probed - 0.1).probe
        assert breaker.standing(START + probed).probe


def test_a_probe_is_claimed_once() -> None:
    """After the pause one call may try; the next only when the first has failed, and later."""
    breaker = down()
    assert not breaker.standing(START + 2.9).probe
    assert not breaker.claim_probe(START + 2.9)
    assert breaker.standing(START + 3).status == "down"
    assert breaker.standing(START + 3).probe
    assert breaker.claim_probe(START + 3)
    assert not breaker.standing(START + 3).probe
    assert not breaker.claim_probe(START + 3)
    attempt(breaker, START + 3.1, SERVER)
    assert not breaker.standing(START + 9).probe
    assert breaker.standing(START + 9.1).probe


def test_a_success_heals_at_once() -> None:
    """A probe that is answered makes the deployment healthy, whatever was before."""
    breaker = down()
    assert breaker.claim_probe(START + 3)
    attempt(breaker, START + 3, OK)
    assert breaker.standing(START + 3).status == "healthy"
    assert breaker.standing(START + 3).success_rate is None
    for end in (SERVER, OK, OK, SERVER):
        attempt(breaker, START + 4, end)
    assert breaker.standing(START + 4).success_rate == 60
    assert breaker.standing(START + 4).status == "degraded"


def test_a_lost_probe_frees_itself() -> None:
    """A probe that never reports, its client gone, is given to another call after a while."""
    breaker = down()
    assert breaker.claim_probe(START + 3)
    breaker.abandoned(START + 3)
    assert not breaker.standing(START + 3 + PROBE_LEFT_S - 0.1).probe
    assert breaker.claim_probe(START + 3 + PROBE_LEFT_S)
    assert not breaker.standing(START + 4 + PROBE_LEASE_S - 0.1).probe
    assert breaker.claim_probe(START + 4 + PROBE_LEASE_S)


@pytest.mark.parametrize(
    ("fault", "pauses"),
    [
        (SERVER, [3, 6, 8, 8, 8]),
        (Fault.CONNECTION, [3, 6, 8, 8, 8]),
        (SLOW, [3, 6, 12, 24, 30, 30]),
        (Fault.UNAUTHORIZED, [3, 6, 12, 24, 30, 30]),
    ],
)
def test_pauses_double(fault: Fault, pauses: list[float]) -> None:
    """Each probe that fails doubles the pause, up to a bound: a short one where probing costs nothing."""
    breaker, now = after(fault, fault, fault), START
    for pause in pauses:
        assert not breaker.claim_probe(now + pause - 0.01)
        now += pause
        assert breaker.claim_probe(now)
        attempt(breaker, now, fault)


def test_a_probe_fails_once() -> None:
    """What fails after a probe has failed, as a last resort say, does not put the next one off."""
    breaker = down()
    assert breaker.claim_probe(START + 3)
    for late in range(3):
        attempt(breaker, START + 3 + late, SLOW)
    assert not breaker.claim_probe(START + 8.9)
    assert breaker.claim_probe(START + 9)


def test_other_failures_do_not_put_the_probe_off() -> None:
    """Attempts that were under way when it went down may fail late; the pause is the same."""
    breaker = down()
    for late in range(200):
        breaker.failed(START + late / 100, SLOW)
    assert breaker.claim_probe(START + 3)
    breaker.failed(START + 3.5, SLOW, began=START)
    assert not breaker.claim_probe(START + 3.6)
    breaker.succeeded(START + 4, 100)
    for late in range(10):
        breaker.failed(START + 5 + late, SLOW, began=START)
    assert breaker.standing(START + 20).status == "healthy"


DEGRADED: Sequence[Fault | str] = (*[OK] * 4, SERVER)


def test_a_degraded_one_is_tried_again() -> None:
    """What fails now and then is asked again after a pause, one call at a time, until it did well often enough."""
    breaker = after(*DEGRADED)
    assert not breaker.claim_probe(START + 2.9)
    for trial in range(FEWEST_ENDS):
        now = START + 3 + trial / 10
        assert breaker.standing(now).status == "degraded"
        assert [breaker.claim_probe(now), breaker.claim_probe(now)] == [True, False]
        attempt(breaker, now, OK)
    assert breaker.standing(START + 4) == Standing(load=0)


def test_a_degraded_one_that_fails_again_waits_longer() -> None:
    """A trial that fails begins anew, after twice the pause."""
    breaker = after(*DEGRADED)
    for trial in range(FEWEST_ENDS - 1):
        assert breaker.claim_probe(START + 3)
        attempt(breaker, START + 3, OK)
        assert breaker.standing(START + 3).probe, trial
    assert breaker.claim_probe(START + 3)
    attempt(breaker, START + 3, SERVER)
    assert not breaker.claim_probe(START + 8.9)
    assert breaker.claim_probe(START + 9)
    attempt(breaker, START + 9, OK)
    assert breaker.standing(START + 9).status == "degraded"


def test_a_rest_is_not_disturbed() -> None:
    """A deployment that asked for a rest is not tried before it is over; its rate limit is looked at again soon."""
    breaker = after(*[OK] * 4)
    breaker.failed(START, LIMITED, retry_after_s=20)
    assert not breaker.standing(START + 19.9).probe
    assert breaker.standing(START + 20).probe
    limited = Breaker(SETTINGS)
    limited.succeeded(START, 100, rate_limit_remaining=0)
    assert limited.claim_probe(START + 3)
    limited.succeeded(START + 3, 100, rate_limit_remaining=0)
    assert not limited.claim_probe(START + 5.9)
    assert limited.claim_probe(START + 6)
    limited.succeeded(START + 6, 100, rate_limit_remaining=9)
    assert limited.standing(START + 6).status == "healthy"


def test_bad_requests_do_not_burn_the_probe() -> None:
    """A probe that ends without a verdict is given to the next call: at once, or soon where its client has left."""
    breaker = down()
    for _ in range(3):
        assert breaker.claim_probe(START + 3)
        attempt(breaker, START + 3, Fault.BAD_REQUEST)
    assert breaker.claim_probe(START + 3)
    breaker.begun(START + 3)
    breaker.abandoned(START + 3.5)
    assert not breaker.claim_probe(START + 4.4)
    assert breaker.claim_probe(START + 4.5)


def test_a_rest_of_nothing_is_a_pause() -> None:
    """`Retry-After: 0` does not make each call a probe."""
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(START, LIMITED, retry_after_s=0)
    assert not breaker.claim_probe(START + 0.9)
    assert breaker.claim_probe(START + 1)


def test_hearsay() -> None:
    """What another worker found down is down here, is probed after it, and heals with it."""
    breaker = after(OK)
    breaker.reported_down(START)
    assert breaker.standing(START).status == "down"
    assert not breaker.claim_probe(START + 5.9)
    assert breaker.standing(START + 6).probe
    breaker.reported_up(START + 6)
    assert breaker.standing(START + 6).status == "healthy"


def test_own_findings_outlast_hearsay() -> None:
    """What was found down here is probed at once when another worker sees it recover, and heals by itself only."""
    breaker = down()
    breaker.reported_up(START + 1)
    assert breaker.standing(START + 1) == Standing("down", load=3, probe=True)
    assert breaker.claim_probe(START + 1)
    breaker.reported_up(START + 1)
    assert not breaker.claim_probe(START + 1)
    attempt(breaker, START + 1, SERVER)
    assert breaker.standing(START + 1).status == "down"


@dataclass(frozen=True)
class Step:
    """Something that happens to a breaker, so many seconds after what was before."""

    pause: float
    event: str
    fault: Fault


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from([0.0, 0.01, 1.0, 3.0, 6.0, 29.0, 61.0]) | st.floats(0, 100),
        st.sampled_from(["begun", "succeeded", "failed", "abandoned", "claim", "down", "up", "look"]),
        st.sampled_from([*Fault, SERVER, SERVER, SERVER]),
    ),
    max_size=80,
)


def take(breaker: Breaker, now: float, step: Step) -> bool:
    """Do one step; whether it claimed a probe."""
    if step.event == "begun":
        breaker.begun(now)
    elif step.event == "succeeded":
        breaker.succeeded(now, step.pause, rate_limit_remaining=int(step.pause))
    elif step.event == "failed":
        breaker.failed(now, step.fault, retry_after_s=step.pause, began=now - step.pause)
    elif step.event == "abandoned":
        breaker.abandoned(now)
    elif step.event == "claim":
        return breaker.claim_probe(now)
    elif step.event == "down":
        breaker.reported_down(now)
    elif step.event == "up":
        breaker.reported_up(now)
    return False


def is_verdict(step: Step, now: float, claimed_at: float) -> bool:
    """Whether a step ends the period of a probe that was claimed then."""
    if step.event == "failed":
        return now - step.pause >= claimed_at
    return step.event in ("succeeded", "up", "abandoned")


@given(STEPS)
def test_invariants(steps: list[Step]) -> None:
    """Standing is in bounds; a success heals; a probe is claimed only when offered, and not twice in a period."""
    breaker, now, claimed_at = Breaker(SETTINGS), START, -math.inf
    for step in steps:
        now += step.pause
        offered, was_down = breaker.standing(now).probe, breaker.is_down
        if take(breaker, now, step):
            assert offered
            assert now - claimed_at >= PROBE_LEASE_S
            claimed_at = now
        elif is_verdict(step, now, claimed_at) or breaker.is_down > was_down:
            claimed_at = -math.inf
        standing = breaker.standing(now)
        assert standing.load >= 0
        assert standing.success_rate is None or 0 <= standing.success_rate <= 100
        assert not standing.probe or standing.status != "healthy"
        assert step.event != "succeeded" or standing.status != "down"


@given(STEPS)
def test_looking_changes_nothing(steps: list[Step]) -> None:
    """A standing does not depend on how often it was asked for."""
    watched, unwatched, now = Breaker(SETTINGS), Breaker(SETTINGS), START
    for step in steps:
        for part in range(4):
            watched.standing(now + step.pause * part / 4)
        now += step.pause
        assert take(watched, now, step) == take(unwatched, now, step)
        watched.standing(now)
    assert watched.standing(now) == unwatched.standing(now)


@given(STEPS)
def test_it_comes_back(steps: list[Step]) -> None:
    """Whatever happened, a call may probe within the longest pause."""
    breaker, now = Breaker(SETTINGS), START
    for step in steps:
        now += step.pause
        take(breaker, now, step)
    standing = breaker.standing(now + max(PAUSE_MOST_S, PAUSE_MOST_SUDDEN_S, 100))
    assert standing.status == "healthy" or standing.probe


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1e6)), min_size=1, max_size=300))
def test_p95_is_by_nearest_rank(samples: list[tuple[float, float]]) -> None:
    """The percentile is that of all latencies whose bucket is in the window, while none has more than it may keep."""
    window, now, width = Window(60), START, 60 / BUCKETS
    seen: list[tuple[int, float]] = []
    for pause, latency in samples:
        now += pause
        window.add_success(now, latency)
        seen.append((int(now / width), latency))
    ticks = [tick for tick, _ in seen]
    if any(ticks.count(tick) > SAMPLES for tick in set(ticks)):
        assert window.p95_ms in [latency for _, latency in seen]
        return
    kept = sorted(latency for tick, latency in seen if tick > ticks[-1] - BUCKETS)
    expected = kept[math.ceil(0.95 * len(kept)) - 1] if len(kept) >= FEWEST_SAMPLES else None
    assert window.p95_ms == expected


def test_speed_is_a_running_mean() -> None:
    """The speed of answers follows the newest ones."""
    breaker = Breaker(SETTINGS)
    assert breaker.standing(START).tokens_per_second is None
    for speed in (100, 50):
        breaker.measured(speed)
    assert breaker.standing(START).tokens_per_second == 90


def test_memory_is_bounded() -> None:
    """However many attempts, the window keeps so many latencies, the newest of each bucket."""
    window = Window(60)
    for i in range(100_000):
        window.add_success(START + i / 1000, i)
    assert window.successes == 60_000
    assert window.p95_ms is not None
    assert window.p95_ms > 90_000
    assert len(window._ordered) <= BUCKETS * SAMPLES
