"""What slices of load saw, kept between sittings, and the tables and the plot that are made of it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path


@dataclass
class Record:
    """One slice of one contender; CPU in seconds, latencies in milliseconds."""

    name: str
    streamed: bool
    connections: int
    seconds: float
    requests: int
    p50: float
    p99: float
    worker_s: float
    postgres_s: float
    provider_s: float
    load_s: float
    sitting: int = 0
    round: int = 0

    @property
    def turn(self) -> tuple[int, int]:
        """What it shares with the slices that it is compared with."""
        return self.sitting, self.round

    @property
    def mix(self) -> tuple[bool, int]:
        return self.streamed, self.connections

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


# In which tables and plots name contenders.
ORDER = ("stock", "quiet", "tuned", "commits", "bare", "plugin")
# What is compared beside all with the base.
_PAIRS = (("plugin", "quiet"), ("commits", "tuned"), ("bare", "tuned"), ("plugin", "tuned"), ("plugin", "bare"))

FIGURES: dict[str, Callable[[Record], float]] = {
    "requests/s": lambda each: each.per_second,
    "p50": lambda each: each.p50,
    "p99": lambda each: each.p99,
}


def kept(file: Path) -> list[Record]:
    """The slices of all sittings in a file; none where there is no file."""
    return [Record(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def keep(file: Path, found: Sequence[Record]) -> None:
    """Add a sitting's slices to those in a file, which is made where there is none."""
    sitting = len({each.sitting for each in kept(file)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as end:
        end.writelines(json.dumps(asdict(replace(each, sitting=sitting))) + "\n" for each in found)


def ratios(found: Sequence[Record], base: str, name: str, mix: tuple[bool, int], figure: str) -> list[float]:
    """A contender's figure by the base's, of the same round each."""
    value = FIGURES[figure]
    of_base = {each.turn: value(each) for each in found if each.name == base and each.mix == mix}
    return [value(each) / of_base[each.turn] for each in found if each.name == name and each.mix == mix]


def tables(found: Sequence[Record], base: str) -> list[str]:
    """Ratios with their spread, then CPU per request, then what was measured itself."""
    mixes, names = sorted({each.mix for each in found}), measured(found)
    rounds, sittings = len({each.turn for each in found}), len({each.sitting for each in found})
    pairs = [(name, base) for name in names if name != base] + [pair for pair in _PAIRS if {*pair} <= {*names}]
    heading = [f"ratio, {rounds} rounds in {sittings} sittings", "figure", *(mix(*each) for each in mixes)]
    lines = [row(heading), rule(len(heading))]
    for name, against in pairs:
        for figure in FIGURES:
            cells = [spread(ratios(found, against, name, each, figure)) for each in mixes]
            lines.append(row([f"{name} / {against}", figure, *cells]))
    return [*lines, "", *absolutes(found, mixes, names)]


def measured(found: Sequence[Record]) -> list[str]:
    """The contenders of all sittings; those that were not measured in each cannot be compared."""
    turns = {each.turn for each in found}
    return [name for name in ORDER if {each.turn for each in found if each.name == name} == turns]


def absolutes(found: Sequence[Record], mixes: Sequence[tuple[bool, int]], names: Sequence[str]) -> list[str]:
    """Medians of the slices, and CPU over all of them."""
    lines = [row(["per contender", "figure", *(mix(*each) for each in mixes)]), rule(len(mixes) + 2)]
    for name in names:
        own = {each: [record for record in found if record.name == name and record.mix == each] for each in mixes}
        for figure, value in FIGURES.items():
            unit = "" if figure == "requests/s" else ", ms"
            cells = [f"{statistics.median(map(value, of_mix)):.1f}" for of_mix in own.values()]
            lines.append(row([name, f"{figure}{unit}", *cells]))
        for who in ("worker", "postgres"):
            lines.append(row([name, f"CPU of {who}, ms/request", *(_cpu(of_mix, who) for of_mix in own.values())]))
        shares = (f"{_share(each, 'load')} + {_share(each, 'provider')}" for each in own.values())
        lines.append(row([name, "CPU of load generator + provider", *shares]))
    return lines


def _cpu(found: Sequence[Record], who: str) -> str:
    return f"{1000 * sum(getattr(each, f'{who}_s') for each in found) / sum(each.requests for each in found):.2f}"


def _share(found: Sequence[Record], who: str) -> str:
    return f"{sum(getattr(each, f'{who}_s') for each in found) / sum(each.seconds for each in found):.0%}"


def plot(found: Sequence[Record], base: str, file: Path) -> None:
    """Boxes of the throughput ratios, one per mix and contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mixes, names = sorted({each.mix for each in found}), measured(found)
    shown = [name for name in names if name != base]
    figure, panes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for pane, what in zip(panes, ("requests/s", "p50"), strict=True):
        for place, name in enumerate(shown):
            data = [ratios(found, base, name, each, what) for each in mixes]
            at = [n + (place - (len(shown) - 1) / 2) * 0.17 for n in range(len(mixes))]
            line = {"color": "black"}
            boxes = pane.boxplot(data, positions=at, widths=0.14, showfliers=False, patch_artist=True, medianprops=line)
            for box in boxes["boxes"]:
                box.set_facecolor(f"C{place}")
            pane.plot([], [], "s", color=f"C{place}", label=name)
        pane.axhline(1, color="black", linewidth=0.8)
        pane.set_xticks(range(len(mixes)), [mix(*each) for each in mixes], rotation=20)
        pane.set_title(f"{what}, {base} = 1")
    figure.legend(*panes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    figure.savefig(file, dpi=110)


def mix(streamed: bool, connections: int) -> str:
    """How a mix is called."""
    return f"{'stream' if streamed else 'plain'} c={connections}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """A median with its quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def row(cells: Iterable[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    """What stands under the head of a table."""
    return row(["---"] * columns)


def machine() -> str:
    """What it ran on."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    what = ", ".join(f"{name} {version(name)}" for name in ("litellm", "uvicorn", "uvloop", "asyncpg"))
    cores = len(os.sched_getaffinity(0))
    cpu = names[0] if names else platform.machine()
    return f"{cores} cores ({cpu}), {memory / 1e6:.0f} GB, Python {platform.python_version()}, {what}"
