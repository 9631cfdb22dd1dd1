"""The parent: holds the privileges, starts the launcher and the agent, and does nothing but wait.

Called before anything heavy is imported. It comes back only in the agent's process, which has no privilege any more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from typing import NamedTuple

from agent.pod import kernel, launcher, offspring

#: What the agent becomes, and what commands in its own container become: nobody else's (65532, the usual "nonroot", is
#: many a database's), and not each other's, so that a hook cannot trace the agent that ran it.
AGENT_UID = 64918
COMMAND_UID = 64919
#: Between the end of a launcher and the next one; twice as long after each that did not live for a second.
RESTART_PAUSE_SECONDS = 0.01
RESTART_PAUSE_CEILING_SECONDS = 5.0
STEADY_SECONDS = 1.0
KILL_ROUNDS = 25
KILL_PAUSE_SECONDS = 0.002
NO_LAUNCHER = (
    "this agent was started without a launcher: use podhook's image, or set PODHOOK_LAUNCHER=true and start as root"
)
WHAT_TO_GIVE = "give the agent's container runAsUser: 0 and the capabilities SETUID, SETGID, KILL and SYS_CHROOT"


class Start(NamedTuple):
    """What came of the start: the agent's end of the socket to the launcher, if there is one.

    `why_not` says why commands cannot run in sibling containers, with what to change; empty when they can. `asked` is
    whether a launcher was asked for.
    """

    channel: socket.socket | None = None
    why_not: str = NO_LAUNCHER
    asked: bool = False


#: Handed to code that is imported only after the privileges are gone.
start = Start()


def supervise(state_dir: str) -> str:
    """Become three: this parent, the launcher, and the agent, in which alone this comes back. `start` says how it went.

    Where the privileges are not there, it comes back at once, and nothing was forked. Returns the directory where the
    agent can keep its state: `state_dir`, or one below it.
    """
    global start  # noqa: PLW0603
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        kernel.harden()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # what a dead launcher leaves comes to us
    except OSError as error:
        start = Start(None, f"this kernel does not do what the launcher needs: {error}", asked=True)
        return state_dir
    uid = os.geteuid()
    if uid != 0:
        start = Start(None, f"the agent's container runs as user {uid}, not as root; {WHAT_TO_GIVE}", asked=True)
        return state_dir
    if lacking := kernel.missing_capabilities("SETUID", "SETGID", "KILL"):
        start = Start(None, f"the agent's container lacks {', '.join(lacking)}; {WHAT_TO_GIVE}", asked=True)
        return state_dir
    cannot_enter = ""
    if kernel.missing_capabilities("SYS_CHROOT"):
        cannot_enter = f"the agent's container lacks SYS_CHROOT; {WHAT_TO_GIVE}"
    state_dir = _give_away(state_dir)
    agents, launchers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (agents, launchers):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * launcher.MAX_PACKET_BYTES)
    forwarded = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)  # a stop that comes now waits until it can be passed on
    parent, agent = os.getpid(), os.fork()
    if agent == 0:
        launchers.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        _become_nobody(parent)
        start = Start(agents, cannot_enter, asked=True)
        return state_dir
    agents.close()
    for number in forwarded:
        signal.signal(number, lambda received, _: _signal(agent, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    sys.exit(_wait(agent, launchers))


def _give_away(state_dir: str) -> str:
    """Make the journal's directory the agent's own, and nobody else's; an emptyDir is open to all. Returns which it is.

    Without CHOWN it stays root's, but nobody can remove in it what is not theirs; the agent makes one of its own there.
    """
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)  # noqa: PTH103 (no pathlib before the fork)
        directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return state_dir  # the journal will say what is wrong
    try:
        if os.fstat(directory).st_uid != AGENT_UID:
            os.fchmod(directory, 0o700)
            os.fchown(directory, AGENT_UID, AGENT_UID)
    except PermissionError:
        with contextlib.suppress(OSError):
            os.fchmod(directory, 0o1777)
        return f"{state_dir}/agent"
    except OSError:
        pass  # a read-only disk, say: the journal's to tell
    finally:
        os.close(directory)
    return state_dir


def _become_nobody(parent: int) -> None:
    os.setgroups([])
    os.setresgid(AGENT_UID, AGENT_UID, AGENT_UID)
    os.setresuid(AGENT_UID, AGENT_UID, AGENT_UID)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # changing ids set it back
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # and it forgot this; the launcher follows the agent
    if kernel.capabilities() != (0, 0) or os.getppid() != parent:
        os._exit(1)


def _wait(agent: int, launchers: socket.socket) -> int:
    """Fork the launcher again whenever it is gone, until the agent is; returns the exit code."""
    generation, current, since, pause = 0, 0, 0.0, RESTART_PAUSE_SECONDS
    while True:
        if current == 0:
            current, since = _fork_launcher(launchers, generation), time.monotonic()
            generation += 1
        try:
            pid, status = os.waitpid(-1, 0 if current else os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == agent:
            launchers.close()
            _signal(current, signal.SIGKILL)
            _kill_children(set())
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if pid in (0, current):  # 0: there was no room for one
            current = 0
            _kill_children({agent})
            steady = time.monotonic() - since > STEADY_SECONDS
            pause = RESTART_PAUSE_SECONDS if steady else min(2 * pause, RESTART_PAUSE_CEILING_SECONDS)
            time.sleep(pause)


def _fork_launcher(launchers: socket.socket, generation: int) -> int:
    """Its pid, or 0 when there is no room for a process now."""
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid == 0:
        launcher.serve(launchers, generation, AGENT_UID, COMMAND_UID)
    return pid


def _kill_children(spared: set[int]) -> None:
    """End and reap what came to us, with what comes to us then; a process that SIGKILL does not end is left."""
    for _ in range(KILL_ROUNDS):
        remaining = set(offspring.children(os.getpid())) - spared
        if not remaining:
            return
        for child in remaining:
            _signal(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        time.sleep(KILL_PAUSE_SECONDS)


def _signal(pid: int, number: int) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
