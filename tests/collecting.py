"""A plugin of pytest that says what was collected: each test with every fixture that it comes to use, as JSON.

`COLLECTED=FILE python -m pytest --collect-only -p tests.collecting ...`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
COLLECT_SECONDS = 100


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write it down."""
    if path := os.environ.get("COLLECTED"):
        found = [{"id": each.nodeid, "fixtures": list(getattr(each, "fixturenames", ()))} for each in session.items]
        Path(path).write_text(json.dumps(found), encoding="utf-8")


def collect(places: Iterable[str], file: Path) -> dict[str, set[str]]:
    """`tests/file.py::test_name` (without parameters) -> the fixtures that each of its cases comes to use."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PODHOOK"))}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "tests.collecting", *places]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**inherited, "COLLECTED": str(file), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=COLLECT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests: dict[str, set[str]] = {}
    for each in json.loads(file.read_text()):
        name, fixtures = each["id"].partition("[")[0], set(each["fixtures"])
        tests[name] = tests[name] & fixtures if name in tests else fixtures
    return tests
