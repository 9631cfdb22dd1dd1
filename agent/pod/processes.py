"""Starting a command, knowing what it started, and leaving nothing of it behind.

`Launcher` is the seam: here a command starts in the agent's own container. A process is held by its pidfd and is
reaped only after its group was dealt with, so no signal ever reaches a pid that was given to somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from agent.contract.errors import ErrorCode

#: Stands in the environment of everything an attempt starts, and names pod and attempt: how its strays are found.
#: The trigger id alone would not do: every target of a run has the same.
MARK_VARIABLE = "PODHOOK_ATTEMPT"
#: In the middle of an execve an environment reads as empty: a stray would be missed, so it is looked at again.
_LOOKS = 3
_LOOK_AGAIN_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and where. `mark` stands in the environment.

    In the agent's own container `environment` is the whole one. In another it comes on top of what the container's
    main process has, or, with `inherit` False, of PATH and HOME; with `fallback` also where that was overwritten.
    `user` is as in `exec.user`; empty is the container's.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    container: str
    mark: str
    inherit: bool = True
    fallback: bool = False
    user: str = ""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: by an exit code, or by a signal (its name)."""

    exit_code: int | None = None
    signal: str | None = None


class StartError(Exception):
    """A command could not be started, and certainly did not run.

    `errno` says why, as the kernel has it (0: our own judgement), `step` where on the way; `searched` is the PATH.
    """

    def __init__(self, error: OSError, step: str = "execve", searched: str = "") -> None:
        super().__init__(error.strerror or "")
        self.errno = error.errno or 0
        self.step = step
        self.searched = searched


class Interrupted(Exception):  # noqa: N818 (an outcome's name)
    """What a command ran in went away; `code` says what. Whether it took effect is unknown."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Process(Protocol):
    """A command that was started. `pid` is also its process group.

    `secrets` are variables of its container that must not be seen in what is said (name, value): those that the
    launch did not tell.
    """

    pid: int
    secrets: Sequence[tuple[bytes, bytes]]
    stdout: int
    stderr: int

    async def wait(self) -> ExitStatus:
        """Wait until the command itself has exited. It is not reaped yet: its pid stays its own.

        Raises:
            Interrupted: its container, or whatever started it, went away first.
        """

    def terminate(self) -> None:
        """SIGTERM to its process group."""

    async def remaining(self) -> list[int] | None:
        """Pids of everything it started that still lives, itself excluded; None if that cannot be told."""

    async def kill_everything(self) -> list[int] | None:
        """SIGKILL to everything it started; returns pids that outlived it (uninterruptible sleep), None if unknown."""

    def close(self) -> None:
        """Reap it and close its descriptors. Call once, after `wait`."""


class Launcher(Protocol):
    """Starts commands."""

    async def start(self, launch: Launch) -> Process:
        """Start a command in a session of its own, without standard input.

        Raises:
            StartError: it could not be started.
            Interrupted: whether it was started is unknown.
        """


class LocalLauncher:
    """Starts commands in the agent's own container, as the agent's own user.

    `running` has the pids that it will reap itself.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # inherited: the kernel would reap, and tell nobody
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    async def start(self, launch: Launch) -> Process:
        """See `Launcher.start`."""
        return self.launch(launch)

    def launch(self, launch: Launch) -> LocalProcess:
        """The same, for whoever is not on an event loop."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            try:
                stdout, out_write = _pipe(ours, theirs)
                stderr, err_write = _pipe(ours, theirs)
                process = subprocess.Popen(  # noqa: S603 (running what a trigger says is the purpose)
                    list(launch.argv),
                    env=dict(launch.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out_write,
                    stderr=err_write,
                    start_new_session=True,  # vfork under it: no preexec_fn, so threads never meet a fork
                )
                pidfd = _hold(process)
            except OSError as error:
                raise StartError(error, searched=launch.environment.get("PATH", os.defpath)) from error
            ours.pop_all()  # from here on the process closes them
        self.running.add(process.pid)
        return LocalProcess(process, pidfd, stdout, stderr, launch.mark, self.running.discard)


class LocalProcess:
    """A command in the agent's own container."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pidfd: int,
        stdout: int,
        stderr: int,
        mark: str,
        closed: Callable[[int], None],
    ) -> None:
        self._popen = process
        self.secrets: Sequence[tuple[bytes, bytes]] = ()
        self._closed = closed
        self._pid = self.pid = process.pid
        self._pidfd = pidfd
        self._mark = f"{MARK_VARIABLE}={mark}".encode()
        self._known: dict[int, int] = {}
        self.stdout = stdout
        self.stderr = stderr

    async def wait(self) -> ExitStatus:
        """See `Process.wait`."""
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, settle, exited)
        try:
            await exited
        finally:
            loop.remove_reader(self._pidfd)
        return _status(os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT))  # noqa: ASYNC222 (it has exited)

    def terminate(self) -> None:
        """See `Process.terminate`."""
        self._known = self._descendants()  # whoever ends first orphans others
        self._signal_group(signal.SIGTERM)

    async def remaining(self) -> list[int]:
        """See `Process.remaining`."""
        return self.others()

    def others(self) -> list[int]:
        """The same, for whoever is not on an event loop."""
        return sorted(pid for pid in self._descendants() if pid != self._pid)

    def _descendants(self) -> dict[int, int]:
        return descendants(self._pid, self._mark, self._known)

    async def kill_everything(self) -> list[int]:
        """See `Process.kill_everything`."""
        left: dict[int, int] = {}
        for pause in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 0):
            self._signal_group(signal.SIGKILL)  # before the first pause: who calls may be cancelled in it
            left = self._known = self._descendants()
            for pid, started in left.items():
                _kill(pid, started)
            if not left:
                break
            await asyncio.sleep(pause)
        return sorted(left)

    def close(self) -> None:
        """See `Process.close`."""
        for descriptor in (self.stdout, self.stderr):
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        os.close(self._pidfd)
        self._closed(self._pid)
        self._popen.returncode = 0  # reaped here, not by subprocess: its destructor shall not wait for the pid

    def _signal_group(self, number: signal.Signals) -> None:
        if self._pid > 1:  # never the caller's own group, never everybody's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


def _hold(process: subprocess.Popen[bytes]) -> int:
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


@dataclass(frozen=True, slots=True)
class _Stat:
    """What /proc/PID/stat says (proc(5)); `started` tells one use of a pid from the next."""

    state: str
    parent: int
    group: int
    session: int
    started: int


def descendants(root: int, mark: bytes, known: Mapping[int, int] = MappingProxyType({})) -> dict[int, int]:
    """Living processes that belong to `root`, as {pid: start time}: its children and theirs, its session, strays.

    A stray called setsid and lost its parent, so it hangs below pid 1 or below the agent; `mark` (an environment
    variable) tells whose it is. One that emptied its environment as well (sudo, `env -i`) is found only if it is
    `known` from a look before its parent ended. The agent itself is never among them.
    """
    me = os.getpid()
    orphanages = (0, 1, me)
    everybody = {
        int(entry.name): stat
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and (stat := _stat(int(entry.name)))
    }
    born = everybody[root].started if root in everybody else 0
    young = {
        pid: stat
        for pid, stat in everybody.items()
        if stat.started >= born and pid not in (1, me) and stat.state not in "ZX"
    }
    found = {
        pid
        for pid, stat in young.items()
        if root in (pid, stat.session)
        or known.get(pid) == stat.started
        or (stat.parent in orphanages and _carries(pid, mark))
    }
    grown = True
    while grown:
        more = {
            pid for pid, stat in young.items() if pid not in found and (stat.parent in found or stat.parent == root)
        }
        found |= more
        grown = bool(more)
    return {pid: young[pid].started for pid in found}


async def kill_left_over(attempt: str) -> int:
    """Kill what an attempt (its mark) of an agent before us left running; returns how many processes that were.

    Its outcome is `interrupted`: nothing of it may go on beside whatever comes next. Processes of other users, whose
    environment cannot be read, are not found.
    """
    mark = f"{MARK_VARIABLE}={attempt}".encode()
    killed: set[int] = set()
    for pause in (0, 0.01, 0.05, 0.2):
        await asyncio.sleep(pause)
        found = {
            pid for entry in os.scandir("/proc") if entry.name.isdigit() and _carries(pid := int(entry.name), mark)
        }
        found.discard(os.getpid())
        for pid in found:
            stat = _stat(pid)
            if stat is not None and stat.state not in "ZX":
                killed.add(pid)
                _kill(pid, stat.started)
        if not found:
            break
    return len(killed)


def in_group(pid: int, group: int) -> bool:
    """Whether a process is a living member of a process group."""
    stat = _stat(pid)
    return stat is not None and stat.group == group and stat.state not in "ZX"


def reap_strays(owned: Collection[int]) -> int:
    """Reap children that are not ours: orphans that came to us as pid 1 or subreaper. Returns how many."""
    reaped = 0
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    except OSError:
        return 0
    for child in map(int, children):
        stat = _stat(child)
        if child not in owned and stat is not None and stat.state == "Z":
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitpid(child, os.WNOHANG)[0] == child
    return reaped


def _kill(pid: int, started: int) -> None:
    send_signal(pid, started, signal.SIGKILL)


def send_signal(pid: int, started: int, number: signal.Signals) -> None:
    """Signal through a pidfd, looked at again once it is held: a pid that was given away is never hit."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        stat = _stat(pid)
        if stat is not None and stat.started == started:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, 128 * 1024):  # an environment can be larger; the kernel bounds it
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _stat(pid: int) -> _Stat | None:
    try:
        text = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split(maxsplit=20)
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _carries(pid: int, mark: bytes) -> bool:
    for _ in range(_LOOKS):
        try:
            environment = _read(f"/proc/{pid}/environ")
        except OSError:
            return False
        if environment:
            return mark in environment.split(b"\0")
        time.sleep(_LOOK_AGAIN_SECONDS)
    return False


def settle(future: asyncio.Future[None]) -> None:
    """For `add_reader`: what was waited for is there."""
    if not future.done():
        future.set_result(None)


def _status(result: os.waitid_result | None) -> ExitStatus:
    if result is None:
        return ExitStatus()
    if result.si_code == os.CLD_EXITED:
        return ExitStatus(exit_code=result.si_status)
    return ExitStatus(signal=signal_name(result.si_status))


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals between the first and the last have none of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
