"""Which process is the main one of which container: from a /proc made of files, and held by real pidfds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.pod import census
from agent.pod.census import Census, MainProcess, Neighbours, take_census
from agent.pod.offspring import born
from tests.pod.proc_tree import OTHER_USERS, ROOT_MOUNT, ProcTree, log_line
from tests.strays import descriptors

ME = os.getpid()
NOT_SHARED = "no other container's process is seen: set shareProcessNamespace: true in the pod"
CANNOT_TELL = (
    "which process is which container's cannot be told: the kubelet's termination log is not mounted in the agent's "
    "container; run it in Kubernetes"
)
NOBODY_RUNS = "no other container of the pod runs now: look at the pod's status"


@pytest.fixture
def proc(tmp_path) -> ProcTree:
    return ProcTree(tmp_path / "proc")


def found(proc: ProcTree) -> dict[str, int]:
    return {name: main.pid for name, main in take_census(proc.path).mains.items()}


def test_every_container_has_its_main_process(proc):
    proc.agent(started=30)
    proc.process(7, "mysql", started=10, state="R")
    proc.process(8, "metrics", started=20, name="a) Z 1 (b")
    assert take_census(proc.path) == Census(
        {
            "agent": MainProcess("agent", ME, 30, 999, 998, "S"),
            "mysql": MainProcess("mysql", 7, 10, 999, 998, "R"),
            "metrics": MainProcess("metrics", 8, 20, 999, 998, "S"),
        },
        own="agent",
        shared=True,
    )
    assert take_census(proc.path).mains["mysql"].state == "R"


def test_nobody_is_held_by_looking(proc):
    proc.agent()
    proc.process(7, "mysql")
    before = descriptors()
    assert not any(main.lives for main in take_census(proc.path).mains.values())
    assert descriptors() == before


@pytest.mark.parametrize("first", [7, 9])
def test_what_was_put_into_a_container_later_is_not_its_main_process(proc, first):
    """`kubectl exec` makes a process without a parent too; the earliest is the main one, whatever their pids are."""
    proc.agent()
    proc.process(first, "mysql", started=100)
    proc.process(8, "mysql", started=101)
    proc.process(16 - first, "mysql", started=500)
    assert found(proc)["mysql"] == first


def test_a_child_of_the_main_process_is_not_it_though_it_started_earlier_than_its_successor(proc):
    proc.agent()
    proc.process(8, "mysql", started=50, parent=7)
    proc.process(7, "mysql", started=100)
    assert found(proc)["mysql"] == 7


@pytest.mark.parametrize(
    "stranger",
    [
        {"lines": log_line("mysql", prefix="/var/lib/kubelet/pods/99999999-2222-3333-4444-555555555555")},
        {"lines": log_line("mysql", prefix="/tmp/pods/11111111-2222-3333-4444-555555555555")},
        {"lines": log_line("mysql", device="0:99")},
        {"lines": log_line("mysql", device="8:11")},
        {"lines": log_line("metrics") + log_line("mysql")},
        {"lines": ROOT_MOUNT},
        {"lines": ""},
        {"container": "mysql", "users": OTHER_USERS},
        {"container": "mysql", "users": ""},
        {"container": "mysql", "state": "Z"},
        {"container": "mysql", "state": "X"},
        {"container": "mysql", "parent": 1},
        {"container": "mysql", "parent": ME},
    ],
    ids=[
        *("another pod", "another path", "another device", "a device with the same beginning", "a second line"),
        *("no line", "no mounts", "another user namespace", "no user namespace", "a zombie", "dead", "a child", "ours"),
    ],
)
def test_who_only_pretends_or_has_ended_is_not_a_main_process(proc, stranger):
    proc.agent()
    proc.process(7, **stranger, started=1)
    assert "mysql" not in found(proc)
    proc.process(8, "mysql", started=2)
    assert found(proc)["mysql"] == 8


@pytest.mark.parametrize("state", ["R", "S", "D", "T", "t", "I"])
def test_a_main_process_may_be_in_any_other_state(proc, state):
    proc.agent()
    proc.process(7, "mysql", state=state)
    assert take_census(proc.path).mains["mysql"].state == state


@pytest.mark.parametrize("name", ["stat", "mountinfo", "uid_map", None])
def test_who_vanishes_meanwhile_is_left_out_and_is_no_error(proc, name):
    proc.agent()
    folder = proc.process(7, "mysql")
    if name is None:
        shutil.rmtree(folder)
        folder.write_text("no directory")
    else:
        (folder / name).unlink()
    assert found(proc) == {"agent": ME}


def test_who_vanishes_at_last_has_nobodys_ids(proc):
    proc.agent()
    (proc.process(7, "mysql") / "status").unlink()
    main = take_census(proc.path).mains["mysql"]
    assert (main.uid, main.gid) == (-1, -1)


@pytest.mark.parametrize("stat", ["", "7", "7 (", "7 (mysqld) ", "7 (mysqld) S", "7 (mysqld) S x", "7 (mysqld) \xff 0"])
def test_a_stat_that_is_cut_is_nobodys(proc, stat):
    proc.agent()
    (proc.process(7, "mysql") / "stat").write_text(stat, encoding="latin-1")
    assert found(proc) == {"agent": ME}


def test_a_forger_cannot_hide_the_main_process_of_another_container(proc):
    """It started earlier and says that it is the database: it lacks the node's own path, so nobody believes it."""
    proc.agent()
    proc.process(6, lines=log_line("mysql", prefix="/home/x/pods/1"), started=1)
    proc.process(7, "mysql", started=100)
    proc.process(5, "mysql", started=2, users=OTHER_USERS)
    assert found(proc) == {"agent": ME, "mysql": 7}


# --- why not


@pytest.mark.parametrize(
    ("own", "above", "others", "why_not"),
    [
        ("agent", {}, {7: "mysql"}, ""),
        ("agent", {}, {}, NOBODY_RUNS),
        ("agent", {}, {7: "agent"}, NOBODY_RUNS),
        (None, {}, {7: "mysql"}, CANNOT_TELL),
        (None, {}, {}, CANNOT_TELL),
        ("agent", {"parent": 1}, {}, NOT_SHARED),
        ("agent", {"parent": 1}, {7: "agent"}, NOT_SHARED),
        (None, {"parent": 1}, {}, NOT_SHARED),
    ],
)
def test_why_no_container_can_be_entered_says_what_to_change(proc, own, above, others, why_not):
    proc.agent(own, **above)
    if above:
        proc.process(1, "agent")
    for pid, container in others.items():
        proc.process(pid, container)
    looked = take_census(proc.path)
    assert (looked.own, looked.why_not) == (own, why_not)
    assert looked.siblings.keys() == ({"mysql"} if why_not == "" else set())


@pytest.mark.parametrize(
    ("me", "others", "shared"),
    [
        ({"parent": 0}, {}, True),
        ({"parent": 0}, {1: 0}, True),
        ({"parent": 1}, {1: 0}, False),
        ({"parent": 3}, {1: 0, 3: 1}, False),
        ({"parent": 3}, {1: 0, 3: 0}, True),
        ({"parent": 3}, {1: 0}, True),
    ],
    ids=["no parent", "pause is 1", "below 1", "below 1 twice", "below another", "below one that is gone"],
)
def test_the_namespace_is_shared_if_process_1_is_not_above_us(proc, me, others, shared):
    proc.agent(**me)
    for pid, parent in others.items():
        proc.process(pid, parent=parent)
    assert take_census(proc.path).shared is shared


def test_as_process_1_we_are_alone(proc, monkeypatch):
    monkeypatch.setattr(census.os, "getpid", lambda: 1)
    proc.process(1, "agent")
    assert take_census(proc.path).why_not == NOT_SHARED


# --- neighbours: pidfds of real processes


class Mains:
    """Short-lived main processes: real ones, so that they can be held; `look` sees those that are up."""

    def __init__(self) -> None:
        self.neighbours = Neighbours()
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, container: str) -> subprocess.Popen[bytes]:
        self.running[container] = subprocess.Popen(["sleep", "60"])
        return self.running[container]

    def end(self, container: str) -> None:
        process = self.running.pop(container)
        process.kill()
        process.wait(10)

    def census(self, state: str = "S") -> Census:
        mains = {
            name: MainProcess(name, process.pid, born(process.pid) or 0, 999, 998, state)
            for name, process in self.running.items()
        }
        return Census(mains, "agent", shared=True)


@pytest.fixture
def mains() -> Iterator[Mains]:
    before, mains = descriptors(), Mains()
    yield mains
    mains.neighbours.adopt(Census({}, None, shared=False))
    assert descriptors() == before, "a pidfd was left open"
    for name in list(mains.running):
        mains.end(name)


def test_before_anybody_looked_nobody_is_known(mains):
    assert mains.neighbours.main("mysql") is None
    assert mains.neighbours.census.why_not == NOT_SHARED


def test_a_main_process_is_held_while_it_lives(mains):
    process = mains.start("mysql")
    mains.neighbours.adopt(mains.census())
    main = mains.neighbours.main("mysql")
    assert (main.pid, main.lives, main.pidfd >= 0) == (process.pid, True, True)
    assert mains.neighbours.main("metrics") is None
    assert (mains.neighbours.census.own, mains.neighbours.census.shared) == ("agent", True)


@pytest.mark.parametrize("reaped", [False, True])
def test_one_that_has_ended_is_not_known_any_more(mains, reaped):
    process = mains.start("mysql")
    mains.neighbours.adopt(mains.census())
    held = mains.neighbours.main("mysql")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        process.wait(10)
    assert mains.neighbours.main("mysql") is None
    assert not held.lives


def test_one_that_stays_keeps_its_descriptor_whatever_its_state_is_now(mains):
    mains.start("mysql")
    mains.neighbours.adopt(mains.census("R"))
    held = mains.neighbours.main("mysql").pidfd
    before = descriptors()
    for state in "STD":
        mains.neighbours.adopt(mains.census(state))
        assert (mains.neighbours.main("mysql").pidfd, mains.neighbours.main("mysql").state) == (held, state)
    assert descriptors() == before


def test_a_container_that_was_started_again_has_a_new_main_process(mains):
    first = mains.start("mysql")
    mains.neighbours.adopt(mains.census())
    mains.end("mysql")
    second = mains.start("mysql")
    assert mains.neighbours.main("mysql") is None, "the old one is not it, and the new one was not looked at"
    before = len(descriptors())
    mains.neighbours.adopt(mains.census())
    assert mains.neighbours.main("mysql").pid == second.pid != first.pid
    assert len(descriptors()) == before, "one came, one went"


def test_descriptors_of_the_dead_are_closed(mains):
    before = len(descriptors())
    for name in ("mysql", "metrics", "backup"):
        mains.start(name)
    mains.neighbours.adopt(mains.census())
    assert len(descriptors()) == before + 3
    mains.end("metrics")
    mains.neighbours.adopt(mains.census())
    assert len(descriptors()) == before + 2
    assert {name for name in ("mysql", "metrics", "backup") if mains.neighbours.main(name)} == {"mysql", "backup"}


def test_one_that_ends_between_look_and_adopt_is_not_taken(mains):
    mains.start("mysql")
    seen = mains.census()
    mains.end("mysql")
    before = descriptors()
    mains.neighbours.adopt(seen)
    assert (mains.neighbours.main("mysql"), mains.neighbours.census.mains) == (None, {})
    assert descriptors() == before


@pytest.mark.parametrize("off", [1, -1])
def test_a_pid_that_is_somebody_elses_by_now_is_not_taken(mains, off):
    process = mains.start("mysql")
    other = MainProcess("mysql", process.pid, born(process.pid) + off, 999, 998, "S")
    before = descriptors()
    mains.neighbours.adopt(Census({"mysql": other}, "agent", shared=True))
    assert mains.neighbours.main("mysql") is None
    assert descriptors() == before


def test_a_late_census_of_before_a_restart_never_brings_the_old_one_back(mains):
    mains.start("mysql")
    late = mains.census()
    mains.end("mysql")
    mains.start("mysql")
    mains.neighbours.adopt(mains.census())
    mains.neighbours.adopt(late)
    main = mains.neighbours.main("mysql")
    assert main is None or main.pid == mains.running["mysql"].pid


def test_looking_changes_nothing_that_is_known(proc):
    proc.agent()
    neighbours = Neighbours(proc.path)
    proc.process(7, "mysql")
    assert neighbours.look().siblings.keys() == {"mysql"}
    assert neighbours.census == Census({}, None, shared=False)


def test_a_hundred_restarts_leave_one_descriptor(mains):
    mains.start("mysql")
    mains.neighbours.adopt(mains.census())
    before = len(descriptors())
    for _ in range(100):
        mains.end("mysql")
        mains.start("mysql")
        mains.neighbours.adopt(mains.census())
    assert len(descriptors()) == before


def test_the_real_proc_can_be_looked_at():
    looked = take_census(Path("/proc"))
    assert looked.own is None or looked.own in looked.mains
