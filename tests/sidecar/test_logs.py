"""Logging never ends the work that it tells about, and never tells what it must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys, structlog
from agent.sidecar.logs import configure_logging
configure_logging(sys.argv[1], "info")
log = structlog.get_logger("podhook.test")
def fail():
    password = "hunter2"
    raise RuntimeError("boom")
for _ in range(3):
    log.info("thing.happened", run_id="r1")
    try:
        fail()
    except RuntimeError:
        log.exception("thing.crashed")
print("still here", flush=True)
"""


def _run(log_format: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT, log_format], stdout=subprocess.PIPE, timeout=60, check=False, **streams
    )


def test_a_full_disk_under_the_log_does_not_end_the_process() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = _run("json", stderr=full)
    assert (ended.returncode, ended.stdout) == (0, b"still here\n")


def test_json_lines_carry_the_event_its_keys_and_a_trace() -> None:
    lines = [json.loads(line) for line in _run("json", stderr=subprocess.PIPE).stderr.splitlines()]
    assert lines[0]["event"] == "thing.happened"
    assert lines[0]["run_id"] == "r1"
    assert "RuntimeError: boom" in lines[1]["exception"]


def test_a_trace_on_the_console_shows_no_local_variables() -> None:
    text = _run("console", stderr=subprocess.PIPE).stderr.decode()
    assert "RuntimeError: boom" in text
    assert text.count("hunter2") == text.count('password = "hunter2"'), "the value of a local variable was printed"
