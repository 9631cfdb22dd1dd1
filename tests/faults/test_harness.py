"""A short run of the fault harness: about a minute, every kind of fault, and every promise holds."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.agents import PROJECT
from tests.brokers import mosquitto_binary
from tests.conftest import REQUIRE
from tests.faults.diary import read
from tests.faults.schedule import Kind

#: The same plan each time: a plan that finds something is found by `make test-faults`, which takes another each time.
SEED = int(os.environ.get("FAULTS_SEED") or 1)
SECONDS = os.environ.get("FAULTS_SECONDS") or "42"
SUMMARY = re.compile(r"triggers=(\d+) executed=(\d+) twice=0 lost=0 unknown=\d+ false_success=0 seed=\d+")

pytestmark = [pytest.mark.broker, pytest.mark.processes, pytest.mark.timeout(240)]


async def test_whatever_is_killed_frozen_cut_or_filled_every_promise_holds(tmp_path: Path) -> None:
    mosquitto = Path(mosquitto_binary())
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults"),
        *("--seconds", SECONDS, "--seed", str(SEED), "--keep", str(tmp_path)),
        cwd=PROJECT,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:{mosquitto.parent}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = (each.decode() for each in await running.communicate())
    finally:
        if running.returncode is None:
            running.kill()
    print(errors, output)
    assert running.returncode == 0
    assert output.startswith(f"seed={SEED}\n")
    summary = SUMMARY.fullmatch(output.splitlines()[-1])
    assert summary is not None
    triggers, executed = map(int, summary.groups())
    assert triggers > float(SECONDS) * 1.8
    assert triggers > executed > triggers / 2
    events = read(tmp_path / "events.jsonl")
    assert set(Counter(event["kind"] for event in events if event["what"] == "fault")) == set(Kind)
    assert REQUIRE != "all" or not [event for event in events if event["what"] == "no_disks"]
