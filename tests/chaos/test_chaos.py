"""The storm of a minute; `python -m tests.chaos` is the long one."""

from __future__ import annotations

import random

import pytest

from tests.chaos.trial import Options, Trial
from tests.chaos.verdict import report

KILLS, CRASHES, CALLS = 2, 1, 120


async def test_short_storm(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever dies when: complete answers are charged exactly, once, and only kills leave answers without a charge."""
    seed = random.SystemRandom().randrange(1 << 31)
    with capsys.disabled():
        print(f"\nchaos, seed {seed}")
        verdict = await Trial(Options(KILLS, CRASHES, CALLS, seed), print).run()
        print("\n".join(report(verdict, seed)))
    assert verdict.violations == []
    assert (verdict.counts["kill"], verdict.counts["crash"]) == (KILLS, CRASHES)
    assert verdict.counts["complete at the client"] > 0
