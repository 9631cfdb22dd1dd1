"""What a command started, found by descent and by its mark, and ended: with small families of real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.pod import offspring
from agent.pod.offspring import (
    MARK_SUM,
    MAX_FILE_BYTES,
    RLIMIT_LOCKS,
    bear,
    below,
    born,
    children,
    kill,
    mark_of,
    own_children,
    read,
    signal_group,
)
from tests.strays import alive, descriptors, end, until

MARK = (1 << 62) - 12345
#: A pid that nobody has: above the kernel's highest.
NOBODY = (1 << 22) + 7
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a session of its own; it and all below it are ended and reaped after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*argv: str, mark: int = 0) -> subprocess.Popen[bytes]:
        marked = ("prlimit", f"--locks={mark}", f"--rss={MARK_SUM - mark}") if mark else ()
        process = subprocess.Popen([*marked, *argv], stdin=subprocess.DEVNULL, start_new_session=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        end(*_family(process.pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    end(*_bearers())


def _family(pid: int) -> list[int]:
    """Independently of the code under test: parents as `stat` has them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for each in family:
        family += [child for child, parent in parents.items() if parent == each]
    return family


def sleeps(pids: list[int]) -> int:
    """How many of them have become a sleep: none is about to."""
    names = []
    for pid in pids:
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text())
    return names.count("sleep\n")


async def grown(root: int, count: int) -> list[int]:
    """The family of a process, when it has so many sleeps."""
    await until(lambda: sleeps(_family(root)) == count, f"{count} sleeps below {root}")
    return _family(root)


# --- children


async def test_children_are_the_direct_ones(start):
    shell = start("sh", "-c", "sleep 60 & sh -c 'sleep 60 & wait' & wait")
    family = await grown(shell.pid, 2)
    direct = children(shell.pid)
    assert len(direct) == 2, f"of {family}"
    assert shell.pid not in direct
    assert {child for each in direct for child in children(each)} == set(family) - {shell.pid, *direct}


_OF_A_THREAD = """
import subprocess, threading
for _ in range(3):
    threading.Thread(target=lambda: subprocess.Popen(["sleep", "60"]).wait()).start()
subprocess.Popen(["sleep", "60"]).wait()
"""


async def test_children_of_every_thread_are_found(start):
    python = start(sys.executable, "-S", "-c", _OF_A_THREAD)
    family = await grown(python.pid, 4)
    assert sorted(children(python.pid)) == sorted(set(family) - {python.pid})


def test_a_process_that_is_gone_or_was_never_there_has_no_children():
    with subprocess.Popen(["true"]) as process:
        process.wait(10)
    assert children(process.pid) == children(NOBODY) == children(-1) == []


# --- when it was born


def test_a_living_process_was_born_once_and_a_later_one_later(start):
    first, second = start("sleep", "60"), start("sleep", "60")
    assert born(first.pid) == born(first.pid) <= born(second.pid)
    assert born(os.getpid()) <= born(first.pid)


async def test_a_zombie_and_whoever_is_gone_were_not(start):
    process = start("true")
    await until(lambda: not alive(process.pid), "true has ended")
    assert born(process.pid) is None, "a zombie"
    process.wait(10)
    assert born(process.pid) is born(NOBODY) is born(0) is born(-1) is None


@pytest.mark.parametrize("stat", [b"", b"7", b"7 (sh", b"7 (sh) ", b"7 (sh) S 1 2", b"7 (sh) S" + b" x" * 30])
def test_a_stat_that_is_cut_is_nobodys(monkeypatch, stat):
    monkeypatch.setattr(offspring, "read", lambda _: stat)
    assert born(7) is None


def test_a_name_can_be_anything(monkeypatch):
    monkeypatch.setattr(offspring, "read", lambda _: b"7 (a) Z 1 (b) S " + b"1 " * 18 + b"4711 0 0\n")
    assert born(7) == 4711


# --- below


async def test_below_is_everybody_below_with_the_roots_by_their_start(start):
    shell = start("sh", "-c", "sleep 60 & sh -c 'setsid sleep 60 & (sleep 60 & wait) & wait' & wait")
    family = await grown(shell.pid, 3)
    found = below([shell.pid])
    assert sorted(found) == sorted(family)
    assert found == {pid: born(pid) for pid in family}


async def test_below_several_roots_counts_each_once(start):
    shell = start("sh", "-c", "sleep 60 & wait")
    family = await grown(shell.pid, 1)
    assert sorted(below([*family, *family, NOBODY])) == sorted(family)
    assert below([]) == {}


async def test_a_zombie_is_not_living_but_what_is_below_others_stays_found(start):
    shell = start("sh", "-c", "sh -c : & sleep 60 & exec sleep 60")
    await until(lambda: len(children(shell.pid)) == 2 and sleeps(_family(shell.pid)) == 2, "both were started")
    await until(lambda: sum(map(alive, children(shell.pid))) == 1, "one of them is a zombie")
    living = [pid for pid in children(shell.pid) if alive(pid)]
    assert sorted(below([shell.pid])) == sorted([shell.pid, *living])


_LEADER_ENDS = """
import ctypes, subprocess, threading
threading.Thread(target=lambda: subprocess.Popen(["sleep", "60"]).wait()).start()
ctypes.CDLL(None).pthread_exit(None)
"""


async def test_children_of_a_process_whose_first_thread_has_ended_are_found(start):
    """To the kernel it is a zombie, and its other threads go on."""
    python = start(sys.executable, "-S", "-c", _LEADER_ENDS)
    family = await grown(python.pid, 1)
    await until(lambda: not alive(python.pid), "the first thread has ended")
    assert len(family) == 2
    assert below([python.pid]) == {pid: born(pid) for pid in family}, "it lives on in its other threads"


# --- the mark


async def test_a_mark_is_inherited_and_survives_setsid_and_execve(start):
    shell = start("sh", "-c", "setsid sleep 60 & sh -c 'env -i sleep 60 & wait' & wait", mark=MARK)
    family = await grown(shell.pid, 2)
    assert len(family) == 4
    assert [mark_of(pid) for pid in family] == [MARK] * 4


async def test_children_bear_the_mark_whatever_they_do(start):
    shell = start("sh", "-c", "env -i setsid sleep 60 & (sleep 60 &) ; sleep 60 & wait", mark=MARK)
    await until(lambda: sleeps(_bearers()) == 3, "three sleeps bear the mark")
    strays = [pid for pid in _bearers() if pid not in _family(shell.pid)]
    assert len(strays) == 1, "one has lost its parent and is still known"
    end(*strays)


def _bearers() -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if alive(pid) and mark_of(pid) == MARK]


async def test_a_zombies_mark_and_that_of_nobody_is_0(start):
    assert mark_of(os.getpid()) == 0, "without a limit there is no mark"
    assert mark_of(NOBODY) == mark_of(-1) == 0
    process = start("true", mark=MARK)
    await until(lambda: not alive(process.pid), "true has ended")
    process.wait(10)
    assert mark_of(process.pid) == 0


@pytest.mark.parametrize(
    "limits",
    [(MARK - 1, MARK_SUM - MARK), (MARK, MARK_SUM - MARK - 1), (MARK - 1, MARK_SUM - MARK - 1), (0, 0)],
)
async def test_whoever_lowers_its_limits_bears_no_mark_that_was_ever_given(start, limits):
    process = start("sleep", "60", mark=MARK)
    await grown(process.pid, 1)
    for limit, value in zip((RLIMIT_LOCKS, resource.RLIMIT_RSS), limits, strict=True):
        resource.prlimit(process.pid, limit, (0, value))
    assert mark_of(process.pid) == 0


def test_a_process_can_bear_a_mark_and_has_children_of_its_own():
    pid = os.fork()
    if pid == 0:
        bear(MARK)
        signal.pause()
    try:
        assert pid in own_children()
        deadline = time.monotonic() + 5
        while mark_of(pid) != MARK:
            assert time.monotonic() < deadline, "it bears its mark"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "text", [b"", b"Max file locks\n", b"Max file locks  unlimited  unlimited  locks\n", b"\xff\n"]
)
def test_limits_without_a_mark_have_none(monkeypatch, text):
    monkeypatch.setattr(offspring, "read", lambda _: text)
    assert mark_of(7) == 0


# --- killing


def test_a_process_that_was_looked_at_is_killed_and_no_descriptor_is_left(start):
    process, before = start("sleep", "60"), descriptors()
    kill(process.pid, born(process.pid))
    assert process.wait(10) == -signal.SIGKILL
    assert descriptors() == before


@pytest.mark.parametrize("off", [1, -1])
def test_a_pid_that_is_somebody_elses_by_now_is_not_killed(start, off):
    process, before = start("sleep", "60"), descriptors()
    kill(process.pid, born(process.pid) + off)
    kill(process.pid, 0)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM, "it was killed although it is another process than the one seen"
    assert descriptors() == before


async def test_the_dead_cannot_be_killed_and_that_is_no_error(start):
    process = start("true")
    started = born(process.pid) or 0
    await until(lambda: not alive(process.pid), "true has ended")
    kill(process.pid, started)
    process.wait(10)
    kill(process.pid, started)
    kill(NOBODY, 1)


async def test_a_whole_family_is_killed(start):
    shell = start("sh", "-c", "trap '' TERM; sleep 60 & setsid sleep 60 & (setsid sleep 60; :) & wait; wait")
    family = await grown(shell.pid, 3)
    for pid, started in below([shell.pid]).items():
        kill(pid, started)
    await until(lambda: not any(map(alive, family)), "all of it has ended")


# --- groups


@pytest.fixture
def signalled(monkeypatch) -> list[tuple[int, int]]:
    """What killpg was called with, which signals nobody."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(offspring.os, "killpg", lambda pid, number: calls.append((pid, number)))
    return calls


@pytest.mark.parametrize("pid", [1, 0, -1, -7])
def test_a_group_that_is_ours_or_everybodys_is_never_signalled(signalled, pid):
    signal_group(pid, signal.SIGKILL)
    assert signalled == []


def test_a_group_is_signalled(signalled):
    signal_group(4711, signal.SIGTERM)
    assert signalled == [(4711, signal.SIGTERM)]


async def test_a_signal_reaches_the_group_and_only_it(start):
    shell = start("sh", "-c", "sleep 60 & setsid sleep 60 & wait")
    family = await grown(shell.pid, 2)
    (apart,) = [pid for pid in family if pid != shell.pid and os.getpgid(pid) != shell.pid]
    signal_group(shell.pid, signal.SIGTERM)
    try:
        await until(lambda: [pid for pid in family if alive(pid)] == [apart], "the group has ended, the session not")
    finally:
        end(apart)


def test_a_group_that_is_gone_is_no_error():
    signal_group(NOBODY, signal.SIGKILL)


@pytest.mark.parametrize("number", [-1, 65, 4096, 1 << 31, 1 << 64], ids=str)
def test_a_number_that_is_no_signal_is_no_error_and_signals_nobody(start, number):
    """The agent says it, and the launcher shall not fall over it."""
    process = start("sleep", "60")
    signal_group(process.pid, number)
    assert alive(process.pid)


# --- files


def test_a_file_is_read_whole_or_not_at_all_and_closed(tmp_path):
    before = descriptors()
    for size in (0, 1, MAX_FILE_BYTES):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert len(read(str(tmp_path / "file"))) == size
    (tmp_path / "file").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    for path, number in ((tmp_path / "file", errno.EFBIG), (tmp_path, errno.EISDIR)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is looked at)
            read(str(path))
        assert caught.value.errno == number
    assert descriptors() == before
