"""What processes use, as Linux counts it: CPU seconds and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live."""
    found = [pid]
    for each in found:
        try:
            found += [int(child) for child in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of these processes since they began, and of their children that have ended, user and system."""
    total = 0
    for pid in pids:
        try:
            # The name in parentheses may hold anything; utime, stime, cutime, cstime are fields 14 to 17.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def memory_mb(pid: int) -> float:
    """Proportional set size of a process: its own pages, and its share of those it shares. Megabytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/{pid}/smaps_rollup names no Pss")
