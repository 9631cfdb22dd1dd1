"""`podhook broker reload` as a process: what it says of itself, and that nothing but a signal ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.brokers import poll
from tests.cli.conftest import clean_environment

COMMAND = (sys.executable, "-m", "agent", "broker", "reload")


def test_help_says_what_it_needs_and_when_it_tells():
    done = subprocess.run(
        [*COMMAND, "--help"],
        env=clean_environment(COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = " ".join(done.stdout.split())
    for words in ("SIGHUP", "shareProcessNamespace: true", "runAsUser", "subPath", "--pid-file FILE", "Exit codes: 0 "):
        assert words in said


def test_without_a_path_it_is_usage():
    done = subprocess.run(COMMAND, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "PATH" in done.stderr) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stays_up_whatever_is_wrong_until_it_is_told_to_end(tmp_path, number):
    """A sidecar that ended would take its pod's readiness with it."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "not-there"), "--process", "nobody-s-name"], env=clean_environment(), stderr=file
        )
    try:
        poll(lambda: b"broker.not_told" in log.read_bytes(), "it says what is wrong", 30)
        (tmp_path / "not-there").mkdir()
        poll(lambda: log.read_bytes().count(b"broker.not_told") == 2, "and what is wrong then", 30)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
    events = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [each["event"] for each in events] == [
        "reloader.started",
        "broker.not_told",
        "broker.not_told",
        "reloader.stopped",
    ]
    assert "not-there: No such file or directory; mount it" in events[1]["problem"]
    assert 'no process is called "nobody-s-name"' in events[2]["problem"]
