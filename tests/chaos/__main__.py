"""`python -m tests.chaos --kills 200 --crashes 20 --calls 20000 --seed N`: kills everything, then compares the books.

Ends with a table, and with exit code 1 when a rule was broken. SIGTERM and SIGINT end it early; what has happened by
then is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys

from tests.chaos.trial import Options, Trial
from tests.chaos.verdict import report


def main() -> int:
    options = parsed()
    trial = Trial(options, lambda line: print(line, flush=True))
    print(f"seed {options.seed}", flush=True)

    async def run() -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, trial.stop)
        verdict = await trial.run()
        print("\n".join(report(verdict, options.seed)), flush=True)
        return 1 if verdict.violations else 0

    return asyncio.run(run())


def parsed() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="kill -9 of proxies; other faults follow from it")
    parser.add_argument("--crashes", type=int, default=2, help="immediate stops of PostgreSQL")
    parser.add_argument("--calls", type=int, default=800, help="answers, at least")
    parser.add_argument("--proxies", type=int, default=3)
    parser.add_argument("--spares", type=int, default=2, help="proxies kept warm to replace those that are killed")
    parser.add_argument("--lanes", type=int, default=24, help="clients at once")
    parser.add_argument("--every", type=float, default=30, dest="every_s", help="seconds between signs of progress")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
