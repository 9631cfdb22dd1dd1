"""The command that hooks are put around: started as a shell would, signalled with all that it started, and waited for.

Its streams, its inherited descriptors, its directory and its environment are ours, untouched (one variable is added, by
which what it starts is found). Whose process group it is in depends on who would signal it:

- With a controlling terminal it stays in ours. Ctrl-C and Ctrl-Z then reach it as they reach any other command of the
  job, it may read from the terminal, and so may the other end of a pipe.
- Without one - a CronJob, cron, a service - it gets a group of its own, so that a signal to us can be passed on to all
  of it, and to nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence

from agent.contract.errors import PodhookError
from agent.coordinator.around import NOT_EXECUTABLE, NOT_FOUND, CommandEnd
from agent.pod.processes import descendants, send_signal, settle

#: Stands in the environment of everything that the command starts.
MARK_VARIABLE = "PODHOOK_AROUND"
#: How long what was killed is looked for. A process in uninterruptible sleep outlives this.
_KILL_PAUSES_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 0)
#: How often what a stopped command left running is looked for.
_LOOK_SECONDS = 0.1


class NotStarted(PodhookError):  # noqa: N818 (named for what happened)
    """The command could not be started, and certainly did not run. `end` has a shell's exit code: 126 or 127."""

    def __init__(self, program: str, error: OSError) -> None:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        what = (
            "was not found: check its spelling, PATH, and the interpreter in its #! line" if missing else "cannot run"
        )
        super().__init__(f"command {program!r} {what} ({error.strerror})")
        self.end = CommandEnd(exit_code=NOT_FOUND if missing else NOT_EXECUTABLE, error=str(self))


def has_terminal() -> bool:
    """Whether there is a controlling terminal, wherever the standard streams lead."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Wrapped:
    """A command that runs. Call `close` once it has ended."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it.

        Raises:
            NotStarted: it could not be.
        """
        self.shares_terminal = has_terminal()
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # inherited: the kernel would reap, and tell nobody
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        mark = secrets.token_hex(8)
        self._known: dict[int, int] = {}
        self._mark = f"{MARK_VARIABLE}={mark}".encode()
        try:
            self._popen = subprocess.Popen(  # noqa: S603 (running it is the purpose)
                list(argv),
                env={**os.environ, MARK_VARIABLE: mark},
                close_fds=False,  # `--password-file <(...)` is a descriptor of whoever called us; ours close on exec
                process_group=None if self.shares_terminal else 0,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL, which no argument of a real process has
            raise NotStarted(argv[0], error if isinstance(error, OSError) else OSError(0, str(error))) from error
        self.pid = self._popen.pid
        self._begun = time.monotonic()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:  # a kernel without them, or no descriptor left: it could not be waited for
            self._popen.kill()
            self._popen.wait()
            raise NotStarted(argv[0], error) from error

    async def wait(self) -> CommandEnd:
        """Wait until the command itself has ended. It is not reaped yet: its pid stays its own."""
        exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, settle, exited)
        try:
            await exited
        finally:
            asyncio.get_running_loop().remove_reader(self._pidfd)
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 (it has exited)
        assert ended is not None  # without WNOHANG it is waited for, and no end is made up
        seconds = time.monotonic() - self._begun
        if ended.si_code == os.CLD_EXITED:
            return CommandEnd(exit_code=ended.si_status, seconds=seconds)
        return CommandEnd(signal=ended.si_status, seconds=seconds)

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on to the command and all that it started."""
        living = self.living()  # before the signal: whoever it ends first orphans others
        if not self.shares_terminal and self.pid > 1:
            try:
                os.killpg(self.pid, number)
            except OSError:
                return
        for pid, started in (living | self.living()).items():
            if self.shares_terminal or not _in_group(pid, self.pid):
                send_signal(pid, started, number)

    def living(self) -> dict[int, int]:
        """Pids (and start times) of the command and all that it started, as far as they live."""
        self._known = descendants(self.pid, self._mark, self._known)
        return dict(self._known)

    async def kill(self) -> list[int]:
        """SIGKILL to all of it; returns pids that outlived that (uninterruptible sleep)."""
        left: dict[int, int] = {}
        for pause in _KILL_PAUSES_SECONDS:
            self.signal(signal.SIGKILL)
            left = self.living()
            if not left:
                break
            await asyncio.sleep(pause)
        return sorted(left)

    async def end_of_rest(self, within_seconds: float) -> None:
        """Wait until nothing is left of what a stopped command had started; kill it if that takes too long."""
        for _ in range(1 + int(within_seconds / _LOOK_SECONDS)):
            if not self.living():
                return
            await asyncio.sleep(_LOOK_SECONDS)
        await self.kill()

    def close(self) -> None:
        """Reap it."""
        os.close(self._pidfd)
        self._popen.wait()


def _in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except OSError:
        return True  # it is gone
