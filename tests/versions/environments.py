"""One virtual environment per release of LiteLLM, and which releases those are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

CHECKOUT = Path(__file__).parents[2]
PLACE = CHECKOUT / "build"

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


class NotInstallable(Exception):
    """The index has no set of packages that a release of LiteLLM goes with; the message is pip's last word."""


@dataclass(frozen=True)
class Environment:
    """A release, and where it is installed."""

    version: str

    @property
    def directory(self) -> Path:
        return PLACE / f"litellm-{self.version}"

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def install(self) -> None:
        """Install the checkout, its tests' needs and this release, unless that was done with this pyproject.toml.

        A release whose own requirements the index cannot meet is put without them over the newest that it can; raises
        NotInstallable where that does not go either.
        """
        stamp, project = self.directory / "installed-for", (CHECKOUT / "pyproject.toml").read_text("utf-8")
        if stamp.is_file() and stamp.read_text("utf-8") == project:
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.directory)], check=True)
        self._pip("install", "pip>=25.1")
        needed = ("--editable", ".[embedded]", "--group", "dev")
        try:
            self._pip("install", *needed, f"litellm[proxy]=={self.version}")
        except NotInstallable as error:
            print(f"litellm {self.version} goes over the requirements of an older one: {error}", flush=True)
            self._pip("install", *needed)
            self._pip("install", "--no-deps", f"litellm=={self.version}")
        stamp.write_text(project, "utf-8")

    def _pip(self, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.python), *PIP, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotInstallable(last_word(done.stderr))


def requirement() -> str:
    """What pyproject.toml asks of LiteLLM."""
    found = re.search(r'"(litellm\[proxy\][^"]*)"', (CHECKOUT / "pyproject.toml").read_text("utf-8"))
    assert found, "pyproject.toml names no litellm[proxy]"
    return found[1]


def bounds() -> SpecifierSet:
    """The releases that pyproject.toml allows."""
    return SpecifierSet(requirement().partition("]")[2])


def published(allowed: SpecifierSet) -> list[str]:
    """The allowed releases of the index, oldest first."""
    listed = subprocess.run(
        [sys.executable, *PIP[:-1], "index", "versions", "litellm"], capture_output=True, text=True, check=True
    ).stdout
    (line,) = re.findall(r"Available versions: (.*)", listed)
    return sorted(allowed.filter(line.split(", ")), key=Version)


def newest_resolved(needed: str) -> str:
    """The newest release that the index has all requirements of."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, *PIP, "install", "--dry-run", "--ignore-installed", "--report", report.name, needed]
        subprocess.run(command, check=True, capture_output=True)
        installed = json.loads(Path(report.name).read_bytes())["install"]
    return str(next(each["metadata"]["version"] for each in installed if each["metadata"]["name"] == "litellm"))


def chosen(versions: list[str], newest: str) -> list[str]:
    """The oldest release, one between, the newest whose requirements the index has, and the newest of all."""
    picked = {versions[0], versions[len(versions) // 2], newest, versions[-1]}
    return sorted(picked, key=Version)


def last_word(text: str) -> str:
    """The last error in what pip said."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return re.sub(r" \(from versions: [^)]*\)", "", (errors or text.splitlines() or ["pip said nothing"])[0])
