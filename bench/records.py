"""What slices of load saw, kept between sittings, and the tables and the plot that are made of it."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from bench import load

# A sitting, and perhaps a round of it.
Unit: TypeAlias = tuple[int, ...]


@dataclass
class Record:
    """One slice of one contender; CPU in seconds, latencies in milliseconds."""

    name: str
    streamed: bool
    connections: int
    seconds: float
    milliseconds: list[float]
    worker_s: float
    postgres_s: float
    provider_s: float
    load_s: float
    sitting: int = 0
    round: int = 0

    @property
    def turn(self) -> Unit:
        """What it shares with the slices that it is compared with."""
        return self.sitting, self.round

    @property
    def mix(self) -> tuple[bool, int]:
        return self.streamed, self.connections


@dataclass(frozen=True)
class Figure:
    """A figure of slices that are taken together.

    Attributes
    ----------
    unit
        Slices with the same one are: those of one round, or of a whole sitting, whose number comes first.
    """

    value: Callable[[Sequence[Record]], float]
    unit: Callable[[Record], Unit]


def _per_second(slices: Sequence[Record]) -> float:
    return sum(len(each.milliseconds) for each in slices) / sum(each.seconds for each in slices)


def _latency(slices: Sequence[Record], share: float) -> float:
    return load.quantile([each for one in slices for each in one.milliseconds], share)


# In which tables and plots name contenders.
ORDER = ("stock", "quiet", "tuned", "commits", "bare", "plugin")
# What is compared beside all with the base.
_PAIRS = (("plugin", "quiet"), ("commits", "tuned"), ("bare", "tuned"), ("plugin", "tuned"), ("plugin", "bare"))

# A slice has too few answers to say which is the hundredth: that takes all of a sitting.
FIGURES = {
    "requests/s": Figure(_per_second, lambda each: each.turn),
    "p50": Figure(lambda slices: _latency(slices, 0.5), lambda each: each.turn),
    "p99": Figure(lambda slices: _latency(slices, 0.99), lambda each: (each.sitting,)),
}
_RESAMPLES = 1000


def kept(file: Path) -> list[Record]:
    """The slices of all sittings in a file; none where there is no file."""
    return [Record(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def keep(file: Path, found: Sequence[Record]) -> None:
    """Add a sitting's slices to those in a file, which is made where there is none."""
    sitting = len({each.sitting for each in kept(file)})
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as end:
        end.writelines(json.dumps(asdict(replace(each, sitting=sitting))) + "\n" for each in found)


def values(found: Iterable[Record], name: str, mix: tuple[bool, int], figure: Figure) -> dict[Unit, float]:
    """A contender's figure in each round (or sitting)."""
    units: dict[Unit, list[Record]] = defaultdict(list)
    for each in found:
        if each.name == name and each.mix == mix:
            units[figure.unit(each)].append(each)
    return {unit: figure.value(slices) for unit, slices in units.items()}


def ratios(found: Sequence[Record], base: str, name: str, mix: tuple[bool, int], figure: str) -> dict[Unit, float]:
    """A contender's figure by the base's, of the same round (or sitting) each."""
    of_base = values(found, base, mix, FIGURES[figure])
    return {unit: value / of_base[unit] for unit, value in values(found, name, mix, FIGURES[figure]).items()}


def tables(found: Sequence[Record], base: str) -> list[str]:
    """Ratios with how sure they are, then CPU per request, then what was measured itself."""
    mixes, names = sorted({each.mix for each in found}), measured(found)
    rounds, sittings = len({each.turn for each in found}), len({each.sitting for each in found})
    pairs = [(name, base) for name in names if name != base] + [pair for pair in _PAIRS if {*pair} <= {*names}]
    heading = [f"ratio; sittings: {sittings}, rounds: {rounds}", "figure", *(mix(*each) for each in mixes), "all six"]
    lines = [row(heading), rule(len(heading))]
    for name, against in pairs:
        for figure in FIGURES:
            of_mixes = [ratios(found, against, name, each, figure) for each in mixes]
            cells = [sure(each) for each in [*of_mixes, _together(of_mixes)]]
            lines.append(row([f"{name} / {against}", figure, *cells]))
    return [*lines, "", *absolutes(found, mixes, names)]


def _together(of_mixes: Sequence[Mapping[Unit, float]]) -> dict[Unit, float]:
    """The geometric mean of all mixes' ratios in each round (or sitting)."""
    return {unit: statistics.geometric_mean([each[unit] for each in of_mixes]) for unit in of_mixes[0]}


def sure(found: Mapping[Unit, float]) -> str:
    """The median, and where it lies with 95 % confidence.

    By a bootstrap of clusters: sittings are drawn with replacement, then rounds within each (A. C. Davison and
    D. V. Hinkley, Bootstrap Methods and Their Application, 1997, section 3.8). One sitting says nothing of others.
    """
    if len(found) == 1:
        return f"{next(iter(found.values())):.2f}"
    by_sitting: dict[int, list[float]] = defaultdict(list)
    for unit, value in found.items():
        by_sitting[unit[0]].append(value)
    dice, sittings = random.Random(1), list(by_sitting.values())  # noqa: S311 - the same table of the same slices
    medians = []
    for _ in range(_RESAMPLES):
        drawn = dice.choices(sittings, k=len(sittings))
        medians.append(statistics.median(value for one in drawn for value in dice.choices(one, k=len(one))))
    low, *_, high = statistics.quantiles(medians, n=40)
    return f"{statistics.median(found.values()):.2f} [{low:.2f}-{high:.2f}]"


def measured(found: Sequence[Record]) -> list[str]:
    """The contenders of all sittings; those that were not measured in each cannot be compared."""
    turns = {each.turn for each in found}
    return [name for name in ORDER if {each.turn for each in found if each.name == name} == turns]


def absolutes(found: Sequence[Record], mixes: Sequence[tuple[bool, int]], names: Sequence[str]) -> list[str]:
    """Medians of rounds (or sittings), and CPU over all of them."""
    lines = [row(["per contender", "figure", *(mix(*each) for each in mixes)]), rule(len(mixes) + 2)]
    for name in names:
        own = {each: [record for record in found if record.name == name and record.mix == each] for each in mixes}
        for figure, how in FIGURES.items():
            unit = "" if figure == "requests/s" else ", ms"
            cells = [f"{statistics.median(values(found, name, each, how).values()):.1f}" for each in mixes]
            lines.append(row([name, f"{figure}{unit}", *cells]))
        for who in ("worker", "postgres"):
            lines.append(row([name, f"CPU of {who}, ms/request", *(_cpu(of_mix, who) for of_mix in own.values())]))
        shares = (f"{_share(each, 'load')} + {_share(each, 'provider')}" for each in own.values())
        lines.append(row([name, "CPU of load generator + provider", *shares]))
    return lines


def _cpu(found: Sequence[Record], who: str) -> str:
    return (
        f"{1000 * sum(getattr(each, f'{who}_s') for each in found) / sum(len(each.milliseconds) for each in found):.2f}"
    )


def _share(found: Sequence[Record], who: str) -> str:
    return f"{sum(getattr(each, f'{who}_s') for each in found) / sum(each.seconds for each in found):.0%}"


def plot(found: Sequence[Record], base: str, file: Path) -> None:
    """Boxes of the ratios of throughput and median latency, one per mix and contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mixes, names = sorted({each.mix for each in found}), measured(found)
    shown = [name for name in names if name != base]
    figure, panes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for pane, what in zip(panes, ("requests/s", "p50"), strict=True):
        for place, name in enumerate(shown):
            data = [list(ratios(found, base, name, each, what).values()) for each in mixes]
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
