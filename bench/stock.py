"""The stock proxy's own environment, of what is installed here: what `pip install 'litellm[proxy]'` brings, no more.

Whether `opentelemetry-sdk` and `prisma` can be imported decides what LiteLLM does on each request, and ours has them.
The environment links to the installed files of LiteLLM's own requirements, so nothing is downloaded, and both sides run
the same versions.
"""

from __future__ import annotations

import re
import sys
import venv
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


def make(home: Path) -> Path:
    """An environment in an empty directory; returns its interpreter."""
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python3*/site-packages"))
    wanted = {each.name: each for each in closure("litellm", "proxy")}
    owners = _owners()
    for package in wanted.values():
        for top in {Path(file).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if owners[top] <= wanted.keys():
                _link(site / top, Path(str(package.locate_file(top))))
        for file in package.files or ():
            if file.parts[0] != ".." and not owners[file.parts[0]] <= wanted.keys():
                _link(site / file, Path(str(package.locate_file(file))))
    return home / "bin" / Path(sys.executable).name


def closure(name: str, extra: str = "") -> Iterator[Distribution]:
    """A distribution with an extra, and all that it requires here."""
    todo, seen = [(name, extra)], set()
    yielded = set()
    while todo:
        name, extra = todo.pop()
        if (canonical(name), extra) in seen:
            continue
        seen.add((canonical(name), extra))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if canonical(name) not in yielded:
            yielded.add(canonical(name))
            yield found
        for line in found.requires or ():
            required = Requirement(line)
            if required.marker is None or any(required.marker.evaluate({"extra": each}) for each in {"", extra}):
                todo += [(required.name, each) for each in ("", *required.extras)]


def canonical(name: str) -> str:
    """A name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _owners() -> dict[str, set[str]]:
    """Each entry of the site directory to the names of the distributions that have files in it."""
    owners: dict[str, set[str]] = defaultdict(set)
    for each in distributions():
        for file in each.files or ():
            owners[file.parts[0]].add(each.name)
    return owners


def _link(at: Path, to: Path) -> None:
    if not at.exists() and to.exists():
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(to)
