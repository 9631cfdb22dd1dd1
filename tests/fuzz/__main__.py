"""`make fuzz`: every harness in turn for its share of the time, on all cores, with seeds that nobody chose.

python -m tests.fuzz --seconds 600
python -m tests.fuzz --only envelope --seed 1234    # the inputs of one seed again, as a failure names it
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.harnesses import BY_NAME
from tests.fuzz.running import run


def main() -> int:
    """Returns 1 if an input was found that podhook answers wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=600, help="for all harnesses together")
    parser.add_argument("--only", choices=list(BY_NAME), action="append", help="a harness; may be given again")
    parser.add_argument("--seed", type=int, help="try the inputs of this seed only")
    chosen = parser.parse_args()
    names = chosen.only or list(BY_NAME)
    workers = 1 if chosen.seed is not None else os.cpu_count() or 1
    share = 0 if chosen.seed is not None else chosen.seconds / len(names)
    total, bad, began = 0, 0, time.monotonic()
    with ProcessPoolExecutor(workers, initializer=warnings.simplefilter, initargs=("error",)) as pool:
        for name in names:
            seeds = [
                chosen.seed if chosen.seed is not None else random.SystemRandom().getrandbits(48)
                for _ in range(workers)
            ]
            since = time.monotonic()
            found = list(pool.map(run, [name] * workers, seeds, [share] * workers))
            tried = sum(each.inputs for each in found)
            total += tried
            print(f"{name:18} {tried:9,} inputs in {time.monotonic() - since:5.1f} s", flush=True)
            for each in (each for each in found if each.failure):
                bad += 1
                print(f"{each.failure}\n{name}: again with: python -m tests.fuzz --only {name} --seed {each.seed}")
    said = f"{bad} answered wrongly" if bad else "each was answered as it should be"
    print(f"{total:,} inputs to {len(names)} harnesses on {workers} cores in {time.monotonic() - began:.0f} s: {said}")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
