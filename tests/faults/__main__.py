"""`python -m tests.faults`: shake real agents, coordinators and a real broker, and see whether every promise holds.

The last line on standard output is the summary; its exit code is 0 if nothing was broken. The same seed makes the same
plan. The event log is kept when something was broken, or where --keep says.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults import disks
from tests.faults.diary import read
from tests.faults.harness import explain, run
from tests.faults.ledger import judge
from tests.faults.schedule import make

SHOWN_VIOLATIONS = 20


def main() -> int:
    """Run as the command line says; 0 if every promise held."""
    arguments = _arguments()
    if arguments.judge:
        return _report(arguments.judge, int(read(arguments.judge / "events.jsonl")[0]["seed"]))
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    print(f"seed={seed}", flush=True)
    plan = make(seed, arguments.seconds)
    if arguments.list:
        print(*(*plan.faults, *plan.works), sep="\n")
        return 0
    if shutil.which("mosquitto") is None:
        print("mosquitto is not installed, or not in PATH: apt-get install mosquitto", file=sys.stderr)
        return 2
    if why_not := disks.private_mounts():
        print(f"WITHOUT FULL DISKS: {why_not}", file=sys.stderr, flush=True)
    directory = Path(tempfile.mkdtemp(prefix="podhook-faults-"))
    asyncio.run(run(plan, directory))
    code = _report(directory, seed)
    if arguments.keep:
        shutil.copytree(directory, arguments.keep, dirs_exist_ok=True)
    if code == 0:
        shutil.rmtree(directory)
    return code


def _report(directory: Path, seed: int) -> int:
    """Say what a diary amounts to."""
    events = read(directory / "events.jsonl")
    judgement = judge(events)
    for violation in judgement.violations[:SHOWN_VIOLATIONS]:
        print(explain(violation, events), file=sys.stderr)
    if not judgement.good:
        print(f"{len(judgement.violations)} promises were broken; all logs are in {directory}", file=sys.stderr)
    for event in events:
        if event["what"] == "no_disks":
            print(f"WITHOUT FULL DISKS: {event['why']}", file=sys.stderr)
    print(judgement.summary(seed), flush=True)
    return 0 if judgement.good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults are done (default: 600)")
    parser.add_argument("--seed", type=int, help="what the plan follows from (default: a random one, printed)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy event log, agent logs and journals there")
    parser.add_argument("--list", action="store_true", help="print the plan of the seed and end")
    parser.add_argument("--judge", type=Path, metavar="DIR", help="judge an event log that was kept, and end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
