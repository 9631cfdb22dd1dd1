"""`podhook around` on a controlling terminal: Ctrl-C once and not twice, reading from it, Ctrl-Z and fg, pipes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.brokers import poll
from tests.cli.conftest import clean_environment, script

pytestmark = pytest.mark.processes

PODHOOK = f"{sys.executable} -m agent"


class Terminal:
    """A shell on a terminal of its own, as people have it, and what is on its screen."""

    def __init__(self, directory: Path) -> None:
        self.drawn = b""
        self.pid, self.leader = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(directory)
                environment = clean_environment(PS1="$ ", TERM="dumb", PYTHONPATH=os.pathsep.join(sys.path))
                os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
            finally:
                os._exit(1)

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def until(self, text: str, times: int = 1, within_seconds: float = 20) -> None:
        """Wait until that is on the screen."""
        deadline = time.monotonic() + within_seconds
        while self.drawn.count(text.encode()) < times:
            assert time.monotonic() < deadline, f"{text!r} not within {within_seconds} s: {self.drawn.decode()}"
            if select.select([self.leader], [], [], 0.1)[0]:
                self.drawn += os.read(self.leader, 65536)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def close(self) -> None:
        for each in [*self.processes(), psutil.Process(self.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        os.close(self.leader)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed: apt-get install bash")
    note = {"type": "Operator"}
    (tmp_path / "thaw.yaml").write_text(json.dumps(script("echo thawed-$((40+2))", note)))
    (tmp_path / "plan.yaml").write_text(json.dumps({"postBackup": [{"name": "thaw", "file": "thaw.yaml"}]}))
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def arguments(process: psutil.Process) -> list[str]:
    """Of one that has ended there are none."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return f"sh {path}"


def test_ctrl_c_reaches_the_command_once_and_post_hooks_run(terminal, tmp_path):
    marks = tmp_path / "marks"
    command = write(
        tmp_path / "c.sh", f"trap 'echo got >> {marks}; exit 9' INT\necho ready-$((1+1))\nsleep 600 & wait\n"
    )
    terminal.type(f"{PODHOOK} around plan.yaml -- {command}; echo code=$?\n")
    terminal.until("ready-2")
    terminal.type("\x03")
    terminal.until("code=9")
    assert marks.read_text() == "got\n"
    assert b"thaw operator succeeded" in terminal.drawn


def test_ctrl_c_ends_all_of_a_pipeline_and_the_code_is_the_commands(terminal, tmp_path):
    command = write(tmp_path / "c.sh", "echo ready-$((1+1)) >&2\nsleep 600 | sleep 600\n")
    terminal.type(f"{PODHOOK} around plan.yaml -- {command}; echo code=$?\n")
    terminal.until("ready-2")
    terminal.type("\x03")
    terminal.until("code=130")
    assert b"thaw operator succeeded" in terminal.drawn


def test_the_command_reads_from_the_terminal(terminal, tmp_path):
    command = write(tmp_path / "c.sh", 'echo ready-$((1+1)); read word; echo "got <$word>"\n')
    terminal.type(f"{PODHOOK} around plan.yaml -- {command}; echo code=$?\n")
    terminal.until("ready-2")
    terminal.type("hello\n")
    terminal.until("got <hello>")
    terminal.until("code=0")


def test_the_other_end_of_a_pipe_reads_from_the_terminal_too(terminal, tmp_path):
    """`podhook around plan -- mysqldump shop | less`: whoever took the terminal for the command would stop less."""
    command = write(tmp_path / "c.sh", "echo ready; sleep 600 & wait\n")
    other = write(tmp_path / "o.sh", 'cat > /dev/null & echo up-$((1+1)); read word < /dev/tty; echo "read <$word>"\n')
    terminal.type(f"{PODHOOK} around plan.yaml -- {command} | {other}\n")
    terminal.until("up-2")
    poll(lambda: any("c.sh" in " ".join(arguments(each)[:2]) for each in terminal.processes()), "the command runs", 20)
    terminal.type("hello\n")
    terminal.until("read <hello>")
    terminal.type("\x03")


def test_ctrl_z_stops_podhook_and_the_command_and_fg_goes_on(terminal, tmp_path):
    command = write(tmp_path / "c.sh", 'echo ready-$((1+1)); read word; echo "got <$word>"\n')
    terminal.type(f"{PODHOOK} around plan.yaml -- {command}; echo code=$?\n")
    terminal.until("ready-2")
    terminal.type("\x1a")
    terminal.until("Stopped")

    def states():
        return {each.status() for each in terminal.processes()}

    poll(lambda: states() == {psutil.STATUS_STOPPED}, "all of it is stopped")
    terminal.type("fg\n")
    poll(lambda: psutil.STATUS_STOPPED not in states(), "all of it goes on")
    terminal.type("hello\n")
    terminal.until("got <hello>")
    terminal.until("thaw operator succeeded")


def test_a_terminal_that_is_closed_ends_the_command_and_post_hooks_still_run(terminal, tmp_path):
    thawed = tmp_path / "thawed"
    (tmp_path / "thaw.yaml").write_text(json.dumps(script(f"echo yes > {thawed}", {"type": "Operator"})))
    command = write(tmp_path / "c.sh", "echo ready-$((1+1)); sleep 600 & wait\n")
    terminal.type(f"{PODHOOK} around plan.yaml -- {command}\n")
    terminal.until("ready-2")
    os.kill(terminal.pid, 1)  # what a closed window sends to its shell, which tells its jobs
    poll(lambda: thawed.exists() and thawed.read_text() == "yes\n", "the post hook ran", 20)
