"""`podhook demo`: does what it says, and leaves nothing behind however it ends."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from agent.bus import embedded
from agent.contract.errors import InvalidSettings
from tests.brokers import NO_NATS, poll
from tests.cli.conftest import Cli, clean_environment

pytestmark = [pytest.mark.broker, pytest.mark.processes]


@pytest.fixture
def demo(tmp_path):
    try:
        embedded.server_binary()
    except InvalidSettings:
        pytest.skip(NO_NATS)
    (tmp_path / "tmp").mkdir()
    cli = Cli("mqtt://127.0.0.1:1", "unused", tmp_path)
    started = []

    def start(*arguments):
        env = clean_environment(TMPDIR=tmp_path / "tmp", PODHOOK_BROKER="mqtt://127.0.0.1:1", PODHOOK_POD="mine")
        started.append(cli.start("demo", *arguments, env=env))
        return started[-1], Family(started[-1].process.pid)

    start.directory = tmp_path / "tmp"
    yield start
    cli.close()


class Family:
    """Everything that ever descended from a process, seen while it lives."""

    def __init__(self, pid):
        self._root = psutil.Process(pid)
        self._seen = {}

    def look(self):
        try:
            for child in self._root.children(recursive=True):
                self._seen[child.pid] = child
        except psutil.NoSuchProcess:
            pass
        return len(self._seen)

    def left(self):
        return [process for process in self._seen.values() if process.is_running()]


def gone(family, directory):
    poll(lambda: not family.left(), "every process of the demo is gone", 5)
    assert list(directory.iterdir()) == []


def test_it_shows_what_it_says_and_leaves_nothing_behind(demo):
    command, family = demo()
    while command.process.poll() is None:
        family.look()
        time.sleep(0.05)
    assert command.wait(60) == 0, "".join(command.err)
    out = "".join(command.out)
    assert family.look() >= 6  # a broker and five agents
    for name in ("flush-all-databases", "dump-one-database", "is-everybody-healthy", "announce-backup"):
        [row] = [line for line in command.out if line.strip().startswith(f"{name} ")]
        assert "succeeded" in row
    for name in ("one-that-fails", "one-that-times-out"):
        [row] = [line for line in command.out if line.strip().startswith(f"{name} ")]
        assert "failed" in row
    assert (
        "8 hooks ran 19 actions on 5 agents in 2 namespaces over MQTT: 6 succeeded, 2 failed - one-that-fails, "
        "one-that-times-out were meant to, to show what failure looks like. Nothing is left running."
    ) in " ".join(out.split())
    assert "tablespace is read-only" in out
    gone(family, demo.directory)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "five agents are starting"),
        (signal.SIGINT, "a hook runs"),
        (signal.SIGTERM, "a hook runs"),
    ],
)
def test_interrupted_it_says_130_and_leaves_nothing_behind(demo, moment, number, tmp_path):
    hook = tmp_path / "long.yaml"
    hook.write_text(
        "action: {exec: {command: [/bin/sh, -c, 'echo begun; sleep 1.5']}}\n"
        "executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}\n"
    )
    command, family = demo(hook)
    sign = "shop/db-1" if moment == "five agents are starting" else "-- long"
    poll(lambda: family.look() and any(sign in line for line in command.out), moment, 60)
    if moment == "a hook runs":
        poll(lambda: family.look() and any("sleep" in name(p) for p in family.left()), "its command runs", 20)
    command.process.send_signal(number)
    deadline = time.monotonic() + 30
    while command.process.poll() is None and time.monotonic() < deadline:
        family.look()
        time.sleep(0.02)
    assert command.wait() == 130
    assert "Traceback" not in "".join(command.err)
    gone(family, demo.directory)


def name(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def test_killed_outright_its_processes_end_too(demo):
    command, family = demo()
    poll(lambda: family.look() >= 6 and any("-- " in line for line in command.out), "hooks run", 60)
    command.process.kill()
    poll(lambda: not family.left(), "every process of the demo is gone", 20)


def test_a_hook_that_fails_unlike_it_was_meant_is_exit_code_1(demo, tmp_path):
    hook = tmp_path / "mine.yaml"
    hook.write_text(
        "action: {exec: {command: [/bin/sh, -c, 'exit 1']}}\nexecutor: {type: Pod, pod: {selector: app=web}}\n"
    )
    command, family = demo(hook)
    assert command.wait(60) == 1
    assert "Not as it was meant to: mine" in " ".join("".join(command.out).split())
    assert family.left() == []


def test_an_invalid_file_starts_nothing(demo, tmp_path):
    (tmp_path / "bad.yaml").write_text("action: {}\n")
    command, _ = demo(tmp_path / "bad.yaml")
    assert command.wait() == 2
    assert command.out == []
