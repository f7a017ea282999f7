"""`python -m tests.versions`: acceptance tests, and a few of units, on the oldest, a middle and the newest LiteLLM.

Each release gets an environment of its own under build/. Oldest and newest are those that pyproject.toml allows and the
package index has all requirements of; the newest that is published is tested, too, over the requirements of the newest
that is complete. Ends with a table, and with exit code 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.versions import document
from tests.versions.environments import CHECKOUT, Environment, bounds, chosen, newest_resolved, published, requirement

# What a change in LiteLLM would show in first: charges, faults, refusals, routes, failover; the hooks themselves.
SHORT = ("test_exact.py", "test_faults.py", "test_refusals.py", "test_routes.py", "test_power_router.py",
         "test_idempotency.py", "test_head_start.py", "test_contract.py")  # fmt: skip
PLACE = "tests/acceptance"
# What we know of the inside of LiteLLM's objects.
UNITS = ("tests/unit/test_chunks.py", "tests/unit/test_usage_counts.py")


def main() -> int:
    options = parsed()
    versions = options.litellm or chosen(published(bounds()), newest_resolved(requirement()))
    print(f"LiteLLM {', '.join(versions)}", flush=True)
    facts, results = {}, {}
    for version in versions:
        environment = Environment(version)
        environment.install()
        facts[version] = seen(environment)
        results[version] = "not run" if options.no_tests else tested(environment, options.all, options.pytest)
        print(f"{version}: {results[version]}", flush=True)
    print(document.tables(facts, results))
    if options.document:
        document.DOCUMENT.write_text(document.written(facts, results), "utf-8")
    return 1 if any("failed" in result or "error" in result for result in results.values()) else 0


def seen(environment: Environment) -> dict[str, dict[str, str]]:
    """The facts of a release, asked in its own environment."""
    command = [str(environment.python), "-W", "ignore", "-m", "tests.versions.facts"]
    done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def tested(environment: Environment, everything: bool, more: Sequence[str]) -> str:
    """Run the acceptance tests on a release; pytest's last line in short, and where its output is."""
    files = [*UNITS, *([PLACE] if everything else [f"{PLACE}/{name}" for name in SHORT])]
    began, log = time.monotonic(), environment.directory / "tests.txt"
    with log.open("w") as output:
        command = [str(environment.python), "-m", "pytest", "-p", "no:cacheprovider", *files, *more]
        done = subprocess.run(command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT, check=False)
    counts = re.findall(r"\d+ (?:passed|failed|errors?)", log.read_text("utf-8").rpartition("\n=")[2])
    said = ", ".join(counts) or f"failed: pytest ended with {done.returncode}"
    print(f"{environment.version}: {time.monotonic() - began:.0f} s, {log}", flush=True)
    return said


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--litellm", action="append", metavar="VERSION", help="this release, instead of the choice; again for more"
    )
    parser.add_argument(
        "--all", action="store_true", help="all acceptance tests, not the short form; half an hour each"
    )
    parser.add_argument("--no-tests", action="store_true", help="only what hooks and routes there are")
    parser.add_argument("--document", action="store_true", help="write the tables into docs/compatibility.md")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
