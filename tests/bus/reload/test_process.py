"""Which process gets a signal that ends whoever does not expect it: the broker, and nobody else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.bus.reload.process import NotToldError, Process, Wanted, choose, processes, tell
from tests.brokers import poll

US, THEM = 1883, 0
BROKER = Process(7, "mosquitto", US, US, catches_hangup=True)
WANTED = Wanted("mosquitto")


def other(**changes: object) -> Process:
    fields = {name: getattr(BROKER, name) for name in Process.__slots__}
    return Process(**{**fields, **changes})


def chosen(*seen: Process, wanted: Wanted = WANTED, own: int = 99, **more: int) -> int:
    return choose(wanted, seen, uid=US, own=own, **more).pid


PAUSE, SHELL = other(pid=1, name="pause", real_uid=65535, uid=65535), other(pid=9, name="sh")


def test_the_one_of_that_name_and_our_user_is_it():
    assert chosen(PAUSE, BROKER, SHELL) == 7


def test_process_1_is_it_if_it_is_the_broker():
    assert chosen(other(pid=1), SHELL) == 1


@pytest.mark.parametrize("pid", [0, -1])
def test_nobody_is_a_group_or_everybody(pid):
    with pytest.raises(NotToldError, match="no process is called"):
        chosen(other(pid=pid))


def test_a_dead_one_does_not_count():
    assert chosen(BROKER, other(pid=8, dead=True)) == 7


def test_a_long_name_is_compared_as_the_kernel_keeps_it():
    assert chosen(other(name="a-very-long-nam"), wanted=Wanted("a-very-long-name-for-a-broker")) == 7


@pytest.mark.parametrize(
    ("seen", "own", "says"),
    [
        ([PAUSE, SHELL], 99, 'no process is called "mosquitto"; if .* shareProcessNamespace'),
        ([], 1, "only this container's own processes are to be seen.*shareProcessNamespace: true in its spec"),
        ([SHELL], 1, "only this container's own processes"),
        ([PAUSE, other(name="mosquitto2")], 99, 'no process is called "mosquitto"; .*give --process NAME'),
        ([BROKER, other(pid=12)], 99, r'2 processes are called "mosquitto" \(7, 12\); give --pid-file FILE'),
        ([other(uid=THEM, real_uid=THEM)], 99, r"runs as uid 0, and this as 1883; run it as the same user"),
        ([other(real_uid=THEM)], 99, "runs as uid"),
        (
            [other(catches_hangup=False)],
            99,
            r"\(process 7\) does not expect SIGHUP, which would end it; is it starting",
        ),
    ],
)
def test_what_stands_in_the_way_is_said_with_what_to_do(seen, own, says):
    with pytest.raises(NotToldError, match=says):
        chosen(*seen, own=own)


def test_the_same_obstacle_is_the_same_sentence():
    """Or the log would have it at each look."""
    said = set()
    for others in ((PAUSE, SHELL), (PAUSE,), (PAUSE, SHELL, other(pid=12, name="sh"))):
        with pytest.raises(NotToldError) as caught:
            chosen(*others)
        said.add(str(caught.value))
    assert len(said) == 1


def test_another_process_with_the_number_is_not_it():
    with pytest.raises(NotToldError, match="is process 8 now, and was 7"):
        chosen(other(pid=8), pid=7)


# -- by a pid file


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    (tmp_path / "pid").write_text("12\n")
    return tmp_path / "pid"


def test_the_pid_file_says_which_of_several_it_is(pid_file):
    assert chosen(BROKER, other(pid=12), wanted=Wanted("mosquitto", pid_file)) == 12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("12", r'pid names process 12, which is "sh" and not "mosquitto"; an old file'),
        ("13", "pid names process 13, which does not run"),
        ("14", "pid names process 14, which does not run"),
        ("1", r'pid names process 1, which is "pause" and not "mosquitto"'),
        ("0", "has no process number in it"),
        ("-1", "has no process number in it"),
        ("", "has no process number in it"),
        ("mosquitto", "has no process number in it"),
        ("12 13", "has no process number in it"),
        ("9" * 40, "has no process number in it"),
        ("9" * 20, "has no process number in it"),
        ("\u0661\u0662", "has no process number in it"),
    ],
)
def test_a_pid_file_that_is_old_or_wrong_moves_nobody(pid_file, text, says):
    pid_file.write_text(text)
    seen = (PAUSE, BROKER, other(pid=12, name="sh"), other(pid=14, dead=True))
    with pytest.raises(NotToldError, match=says):
        chosen(*seen, wanted=Wanted("mosquitto", pid_file))


def test_a_missing_pid_file_is_named(tmp_path):
    with pytest.raises(NotToldError, match=r"pid file .*/none: No such file or directory; is the broker down"):
        chosen(BROKER, wanted=Wanted("mosquitto", tmp_path / "none"))


# -- with processes

#: Says when it catches SIGHUP, and each time that it got one.
HEARS = """
import os, signal
signal.signal(signal.SIGHUP, lambda *_: print("heard", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""
#: Has the name, but not the handler yet.
DEAF = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
print("ready", flush=True)
signal.pause()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def name() -> str:
    """Nobody else's."""
    return f"mq-{os.urandom(5).hex()}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process of a name, and returns when it says that it is ready."""
    made: list[subprocess.Popen[str]] = []
    python = shutil.which(os.path.realpath(sys.executable))
    assert python is not None

    def begin(name: str, script: str) -> subprocess.Popen[str]:
        naming = f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r})\n"
        process = subprocess.Popen([python, "-S", "-c", naming + script], stdout=subprocess.PIPE, text=True)
        made.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for each in made:
        each.kill()
        each.wait(10)
        each.stdout.close()


def test_the_broker_hears_it(start, name):
    broker = start(name, HEARS)
    assert tell(Wanted(name)) == broker.pid
    assert broker.stdout.readline() == "heard\n"


def test_of_two_the_one_in_the_pid_file_hears_it(start, name, tmp_path):
    first, second = start(name, HEARS), start(name, HEARS)
    with pytest.raises(NotToldError, match="2 processes are called"):
        tell(Wanted(name))
    (tmp_path / "pid").write_text(f"{second.pid}\n")
    assert tell(Wanted(name, tmp_path / "pid")) == second.pid
    assert second.stdout.readline() == "heard\n"
    first.send_signal(signal.SIGHUP)
    assert first.stdout.readline() == "heard\n", "and only now"


def test_whoever_would_die_of_it_does_not_get_it(start, name):
    starting = start(name, DEAF)
    with pytest.raises(NotToldError, match="does not expect SIGHUP"):
        tell(Wanted(name))
    assert starting.poll() is None


def test_one_that_died_is_not_there(start, name):
    """A zombie until somebody asks for it: it keeps its number and name."""
    broker = start(name, HEARS)
    broker.kill()
    poll(lambda: Path(f"/proc/{broker.pid}/stat").read_text().split(") ")[1].startswith("Z"), "it is dead")
    with pytest.raises(NotToldError, match="no process is called"):
        tell(Wanted(name))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a process of another user")
def test_another_users_is_not_told(start, name):
    start(name, HEARS.replace("signal.signal(", "os.setuid(1); signal.signal(", 1))
    with pytest.raises(NotToldError, match=r"runs as uid 1, and this as 0; .*runAsUser: 1"):
        tell(Wanted(name))


def test_a_number_that_went_to_somebody_else_while_we_looked_is_not_told(start, name, monkeypatch):
    """The second look finds the number with another name: what we hold gets nothing."""
    broker = start(name, HEARS)
    looks: list[int] = []

    def seen(proc: Path) -> Iterator[Process]:
        looks.append(1)
        yield Process(broker.pid, name if len(looks) == 1 else "sh", os.getuid(), os.geteuid(), catches_hangup=True)

    monkeypatch.setattr("agent.bus.reload.process.processes", seen)
    monkeypatch.setattr("signal.pidfd_send_signal", lambda *_: pytest.fail("it was told"))
    with pytest.raises(NotToldError, match="no process is called"):
        tell(Wanted(name))
    assert len(looks) == 2


def test_who_ends_while_proc_is_read_is_left_out(tmp_path):
    for pid, text in (("5", ""), ("6", "Name:\tx\n"), ("7", None)):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text("x\n")
        if text is not None:
            (tmp_path / pid / "status").write_text(text)
    (tmp_path / "self").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "comm").write_text("a name\n")
    lines = "State:\tS (sleeping)\nUid:\t1\t2\t3\t4\nSigCgt:\t0000000000000001\n"
    (tmp_path / "8" / "status").write_text(lines)
    assert list(processes(tmp_path)) == [Process(8, "a name", 1, 2, catches_hangup=True)]


def test_we_are_not_among_them():
    assert os.getpid() not in {each.pid for each in processes(Path("/proc"))}
