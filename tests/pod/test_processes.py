"""Starting commands and ending everything they started, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.pod.processes import (
    MARK_VARIABLE,
    ExitStatus,
    Launch,
    LocalLauncher,
    LocalProcess,
    StartError,
    _kill,
    _stat,
    descendants,
)
from tests.strays import alive, descriptors, end, living, pid_in, until, zombies

ROOT = Path(__file__).parents[2]


class Started:
    """Processes that a test started; everything of them is gone after it."""

    def __init__(self) -> None:
        self.launcher = LocalLauncher()
        self.trigger_ids: list[str] = []
        self._open: list[LocalProcess] = []

    def __call__(self, *argv: str, trigger_id: str = "", **environment: str) -> LocalProcess:
        trigger_id = trigger_id or f"{uuid.uuid4()}/1"
        self.trigger_ids.append(trigger_id)
        whole = {"PATH": os.environ["PATH"], **environment, MARK_VARIABLE: trigger_id}
        process = self.launcher.launch(Launch(argv, whole, "db", trigger_id))
        self._open.append(process)
        return process

    def close(self, process: LocalProcess) -> None:
        self._open.remove(process)
        process.close()

    def end(self) -> None:
        for process in self._open:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process._pid, signal.SIGKILL)
        for trigger_id in self.trigger_ids:
            end(*living(trigger_id))
        for process in self._open:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process._pid, os.WEXITED | os.WNOWAIT)
            process.close()


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    started.end()


def output(process: LocalProcess) -> str:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(os.fdopen(os.dup(process.stdout), "rb"))
        return file.read().decode()


# --- starting


async def test_a_command_has_the_environment_that_was_given_and_no_other(start):
    process = start("/usr/bin/env", GIVEN="a b\nc")
    await process.wait()
    assert sorted(output(process).strip().split("\n")) == sorted(
        [f"PATH={os.environ['PATH']}", "GIVEN=a b", "c", f"{MARK_VARIABLE}={start.trigger_ids[0]}"]
    )


async def test_a_command_leads_a_session_and_a_group_of_its_own(start):
    process = start("cat", "/proc/self/stat")
    await process.wait()
    fields = output(process).rpartition(")")[2].split()
    group, session = int(fields[2]), int(fields[3])
    assert group == session == process._pid != os.getsid(0)


async def test_a_command_sees_three_descriptors_and_nothing_to_read(start):
    with Path(__file__).open():
        process = start("sh", "-c", "readlink /proc/self/fd/0; ls /proc/$$/fd")
        await process.wait()
    assert output(process).split() == ["/dev/null", "0", "1", "2"]


async def test_a_command_ignores_no_signal_that_python_ignores(start):
    process = start("sh", "-c", "grep SigIgn /proc/self/status")
    await process.wait()
    assert int(output(process).split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0, "SIGPIPE is ignored"


@pytest.mark.parametrize(
    ("argv", "number"),
    [
        (["no-such-program"], errno.ENOENT),
        (["/no/such/program"], errno.ENOENT),
        (["/etc/passwd/program"], errno.ENOTDIR),
        (["/etc"], errno.EACCES),
        (["/etc/passwd"], errno.EACCES),
    ],
)
def test_what_cannot_start_says_the_kernels_reason_and_leaves_no_descriptor(start, argv, number):
    before = descriptors()
    with pytest.raises(StartError) as caught:
        start(*argv)
    assert (caught.value.errno, str(caught.value)) == (number, os.strerror(number))
    assert descriptors() == before
    assert start.launcher.running == set()


def test_a_command_is_searched_in_its_own_path_not_in_the_agents(start, tmp_path):
    with pytest.raises(StartError):
        start("true", PATH=str(tmp_path))


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Let the process open only so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    plugs = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 20, hard))
        with contextlib.suppress(OSError):
            while True:
                plugs.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(number):
            os.close(plugs.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in plugs:
            os.close(descriptor)


async def test_short_descriptors_refuse_a_start_and_neither_leak_nor_start_it_half(start):
    results = []
    for left in range(10):
        trigger_id = f"{uuid.uuid4()}/{left}"
        before = descriptors()
        failed = None
        try:
            with descriptors_left(left):
                start("sleep", "60", trigger_id=trigger_id)
        except StartError as error:
            failed = error
        results.append(failed is None)
        if failed is not None:
            assert failed.errno == errno.EMFILE, f"{left} left: {failed}"
            assert descriptors() == before, f"{left} left: descriptors leaked"
            assert living(trigger_id) == [], f"{left} left: it was said not to start, and runs"
            assert zombies() == []
    assert results == sorted(results), "more room, and it failed"
    assert (results[0], results[-1]) == (False, True)


# --- the end of a command


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 128, 255])
async def test_an_exit_code_is_reported(start, code):
    assert await start("sh", "-c", f"exit {code}").wait() == ExitStatus(exit_code=code)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGHUP, "SIGHUP"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGPIPE, "SIGPIPE"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGRTMIN + 3, f"SIG{signal.SIGRTMIN + 3}"),
    ],
)
async def test_a_signal_is_reported_by_its_name(start, number, name):
    process = start("sleep", "60")
    os.kill(process._pid, number)
    assert await process.wait() == ExitStatus(signal=name)


async def test_a_core_dump_is_a_signal_too(start):
    assert await start("sh", "-c", "ulimit -c 0; kill -ABRT $$").wait() == ExitStatus(signal="SIGABRT")


async def test_waiting_does_not_reap_so_the_pid_stays_its_own(start):
    process = start("true")
    await process.wait()
    assert process._pid in zombies()
    assert await process.wait() == ExitStatus(exit_code=0), "it can be asked again"
    assert start.launcher.running == {process._pid}
    start.close(process)
    assert process._pid not in zombies()
    assert start.launcher.running == set()


_IGNORED = """
import asyncio, os, signal, sys
from agent.pod.processes import Launch, LocalLauncher
if len(sys.argv) == 1:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
async def main():
    process = LocalLauncher().launch(Launch(["sh", "-c", "exit 7"], dict(os.environ), "db", "r/1"))
    print(await process.wait())
    process.close()
asyncio.run(main())
"""


def test_an_agent_whose_parent_ignored_its_children_still_learns_exit_codes():
    command = [sys.executable, "-c", _IGNORED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "ExitStatus(exit_code=7, signal=None)\n", done.stderr


async def test_a_cancelled_wait_can_be_taken_up_again(start):
    process = start("sleep", "60")
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    process.terminate()
    assert await process.wait() == ExitStatus(signal="SIGTERM")


async def test_two_hundred_starts_leave_no_descriptor_and_no_zombie(start):
    before, dead = descriptors(), zombies()
    for number in range(200):
        process = start("true" if number % 2 else "false")
        await process.wait()
        await process.kill_everything()
        start.close(process)
        with pytest.raises(StartError):
            start("/no/such/program")
    assert descriptors() == before
    assert zombies() == dead
    assert start.launcher.running == set()


# --- everything it started

SLEEP = "sleep 60"
#: Shell lines, how many processes they leave beside the shell (which stays, or exits where it says so), and sleeps.
TREES = {
    "a child": (f"{SLEEP} & wait", 1, 1),
    "children of children": (f"sh -c 'sh -c \"{SLEEP} & wait\" & wait' & wait", 3, 1),
    "a child in the background of an exited shell": (f"{SLEEP} & exit 0", 1, 1),
    "a session of its own": (f"setsid {SLEEP} & wait", 1, 1),
    "a double fork": (f"({SLEEP} &) ; {SLEEP} & wait", 2, 2),
    "a daemon: setsid and a double fork": (f"(setsid sh -c '{SLEEP} & wait' &); wait; exit 0", 2, 1),
    "a daemon of an exited shell": (f"(setsid setsid {SLEEP} &) ; exit 0", 1, 1),
    "a child without the mark, below one with it": (f"(setsid sh -c 'env -i {SLEEP} & wait' &); exit 0", 2, 1),
    "one that ignores SIGTERM": (f"(trap '' TERM HUP; exec setsid {SLEEP}) & wait", 1, 1),
    "many": (f"for i in 1 2 3 4 5 6 7 8 9 10; do setsid {SLEEP} & ({SLEEP} &); done; exit 0", 20, 20),
}


def beside(process: LocalProcess, count: int, sleeps: int) -> Callable[[], bool]:
    """The tree is grown: so many processes, and so many of them sleep (nothing is just about to become a sleep)."""

    def grown() -> bool:
        names = [_name(pid) for pid in process.others()]
        return len(names) == count and names.count("sleep") == sleeps

    return grown


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("tree", TREES)
async def test_everything_a_command_started_is_found_and_killed(start, tree):
    line, count, sleeps = TREES[tree]
    process = start("sh", "-c", line)
    if "exit 0" in line:
        await process.wait()
    await until(beside(process, count, sleeps), f"{tree}: {count} processes beside the shell")
    found = process.others()
    assert process._pid not in found, "the command itself is not what it left"
    assert await process.kill_everything() == []
    assert [pid for pid in found if alive(pid)] == [], f"{tree}: still there"
    assert living(start.trigger_ids[0]) == []


async def test_a_stopped_process_is_killed_too(start):
    process = start("sleep", "60")
    os.kill(process._pid, signal.SIGSTOP)
    assert await process.kill_everything() == []
    assert await process.wait() == ExitStatus(signal="SIGKILL")


async def test_a_fork_storm_is_ended(start):
    process = start("sh", "-c", f"while :; do setsid {SLEEP} & ({SLEEP} &); done")
    await until(lambda: len(process.others()) > 20, "the storm has begun")
    assert await process.kill_everything() == []
    assert living(start.trigger_ids[0]) == []


async def test_killing_is_done_at_once_although_the_caller_is_cancelled(start):
    process = start("sh", "-c", f"(setsid {SLEEP} &) ; wait")
    await until(beside(process, 1, 1), "the daemon is there")
    killing = asyncio.create_task(process.kill_everything())
    await asyncio.sleep(0)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    await until(lambda: not living(start.trigger_ids[0]), "nothing of it is left")


async def test_another_attempt_is_left_alone(start):
    mine, other = start("sh", "-c", TREES["many"][0]), start("sh", "-c", TREES["many"][0])
    for process in (mine, other):
        await process.wait()
        await until(beside(process, 20, 20), "both trees are grown")
    bystander = subprocess.Popen(["sleep", "60"])
    theirs = other.others()
    try:
        assert await mine.kill_everything() == []
        assert other.others() == theirs
        assert alive(bystander.pid), "a child of the agent that belongs to no attempt was killed"
    finally:
        bystander.kill()
        bystander.wait()


async def test_a_mark_is_found_behind_a_large_environment(start):
    large = {f"LARGE_{number}": "x" * 100_000 for number in range(4)}
    process = start("sh", "-c", f"(setsid {SLEEP} &) ; exit 0", **large)
    await process.wait()
    await until(beside(process, 1, 1), "the daemon is there")
    assert await process.kill_everything() == []
    assert living(start.trigger_ids[0]) == []


async def test_an_attempt_whose_id_begins_like_ours_is_not_ours(start):
    run_id = uuid.uuid4()
    mine = start("true", trigger_id=f"{run_id}/1")
    other = start("sh", "-c", f"(setsid {SLEEP} &) ; exit 0", trigger_id=f"{run_id}/11")
    await mine.wait()
    await other.wait()
    await until(beside(other, 1, 1), "the other's daemon is there")
    assert mine.others() == []


async def test_what_emptied_its_environment_is_killed_although_sigterm_ended_its_parent(start, tmp_path):
    """`sudo`, `env -i`: no mark, and after SIGTERM nobody between it and init."""
    process = start("sh", "-c", f"cd {tmp_path}; env -i setsid sh -c 'echo $$ >pid; exec {SLEEP}' & wait")
    stray = await pid_in(tmp_path / "pid")
    await until(lambda: (stat := _stat(stray)) and stat.session == stray, "it has a session of its own")
    process.terminate()
    assert await process.wait() == ExitStatus(signal="SIGTERM")
    assert alive(stray)
    assert process.others() == [stray]
    assert await process.kill_everything() == []
    assert not alive(stray)


async def test_sigterm_goes_to_the_whole_group_and_not_beyond(start, tmp_path):
    line = (
        f"setsid {SLEEP} & echo $! >away; sh -c 'trap \"echo in-group; exit\" TERM; echo $$ >in; {SLEEP} & wait' & wait"
    )
    process = start("sh", "-c", f"cd {tmp_path}; {line}")
    inside, away = await pid_in(tmp_path / "in"), await pid_in(tmp_path / "away")
    await until(lambda: (stat := _stat(away)) and stat.session == away, "one of them has a session of its own")
    process.terminate()
    assert await process.wait() == ExitStatus(signal="SIGTERM")
    await until(lambda: not alive(inside), "the group heard SIGTERM")
    assert alive(away), "a session of its own is no member of the group"
    assert os.read(process.stdout, 100) == b"in-group\n"


def test_no_signal_ever_goes_to_everybody_or_to_the_callers_group(start, monkeypatch):
    process = start("sleep", "60")
    pid = process._pid
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: sent.append(arguments))
    for process._pid in (0, 1, -1):
        process.terminate()
    assert sent == []
    process._pid = pid


# --- pids that were given away


async def test_a_pid_with_another_start_time_is_not_hit(start):
    process = start("sleep", "60")
    stat = _stat(process._pid)
    _kill(process._pid, stat.started - 1)
    await asyncio.sleep(0.05)
    assert alive(process._pid), "another use of the same pid was killed"
    _kill(process._pid, stat.started)
    assert await process.wait() == ExitStatus(signal="SIGKILL")


def test_a_pid_that_is_gone_is_no_error():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    _kill(gone.pid, 1)
    assert _stat(gone.pid) is None


def test_a_name_with_parentheses_and_spaces_is_read_right(tmp_path):
    program = tmp_path / ") Z 1 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"], start_new_session=True) as process:
        deadline = time.monotonic() + 10
        while _name(process.pid) != program.name:
            assert time.monotonic() < deadline
        stat = _stat(process.pid)
        process.kill()
    assert (stat.state in "SRD", stat.parent, stat.session) == (True, os.getpid(), process.pid)


_REUSE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from agent.pod.processes import _kill, _stat, descendants
first = subprocess.Popen(["sleep", "60"], start_new_session=True)
started = _stat(first.pid).started
first.kill()
first.wait()
time.sleep(0.05)  # start times count hundredths of a second
for _ in range(50):
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
    second = subprocess.Popen(["sleep", "60"], start_new_session=True)
    if second.pid == first.pid:
        break
    second.kill()
    second.wait()
print("reused", second.pid == first.pid)
_kill(first.pid, started)
time.sleep(0.1)
print("alive", second.poll() is None)
second.kill()
"""


def test_a_reused_pid_is_not_hit():
    """In a pid namespace of its own, where the next pid can be chosen."""
    if os.geteuid() != 0:
        pytest.skip("a pid namespace needs root")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _REUSE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    if "unshare:" in done.stderr or "reused False" in done.stdout or "ns_last_pid" in done.stderr:
        pytest.skip(f"no pid can be chosen here: {done.stderr.strip()[-200:]}")
    assert done.stdout == "reused True\nalive True\n", done.stderr


def test_the_agent_itself_is_never_among_what_it_looks_for(start):
    process = start("sleep", "60")
    for root in (process._pid, os.getpid(), os.getsid(0)):
        assert not {1, os.getpid()} & descendants(root, b"no such mark").keys()


# --- orphans

_SUBREAPER = """
import asyncio, ctypes, os, sys, time
from pathlib import Path
from agent.pod.processes import MARK_VARIABLE, Launch, LocalLauncher, reap_strays
from tests.strays import zombies
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER

async def main():
    launcher = LocalLauncher()
    line = "(setsid true &); (true &); (setsid sleep 60 &); exit 5"
    run = f"of-{os.getpid()}/1"
    mine = launcher.launch(Launch(["sh", "-c", line], {**os.environ, MARK_VARIABLE: run}, "db", run))
    print(await mine.wait())
    deadline = time.monotonic() + 10
    while len(zombies()) < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    print("zombies", len(zombies()))
    print("reaped", reap_strays(launcher.running))
    print("left", zombies() == [mine._pid])
    print(await mine.wait())
    print("stray", len(mine.others()))
    print("outlived", await mine.kill_everything())
    mine.close()
    while not zombies() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    print("reaped", reap_strays(launcher.running), zombies())

asyncio.run(main())
"""


def test_orphans_that_come_to_a_subreaper_are_reaped_and_its_own_children_are_not():
    command = [sys.executable, "-c", _SUBREAPER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == [
        "ExitStatus(exit_code=5, signal=None)",
        "zombies 3",
        "reaped 2",
        "left True",
        "ExitStatus(exit_code=5, signal=None)",
        "stray 1",
        "outlived []",
        "reaped 1 []",
    ], done.stderr
