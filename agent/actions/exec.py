"""exec: a command as its argv says, no shell. The rules of its end are SEMANTICS' (section exec)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from agent.actions.stop import Stop
from agent.contract.actions import ExecAction
from agent.contract.errors import ErrorCode
from agent.contract.messages import ErrorDetail, Result
from agent.contract.outcomes import OutputBuffer, failure
from agent.contract.states import Outcome
from agent.pod.processes import ExitStatus, Launch, Launcher, Process, StartError, in_group

#: SIGTERM to the process group, then this long, then SIGKILL to everything it started.
TERM_GRACE_SECONDS = 5
#: After the command itself exited, its output may take this long to drain.
DRAIN_SECONDS = 1
#: How often it is looked whether anything of the group still cleans up.
GROUP_LOOK_SECONDS = 0.05
_READ_BYTES = 64 * 1024

#: A shell's exit codes for what could not be started (POSIX, section 2.8.2).
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """Where and how a command runs. `environment` is the whole one; `limit_bytes` is kept of each stream."""

    container: str
    environment: Mapping[str, str]
    mark: str
    limit_bytes: int


class _Reader:
    """Reads a pipe to its end and never stops at the limit, so the command never blocks on a full pipe."""

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        self.buffer = OutputBuffer(limit_bytes)
        self.ended = asyncio.Event()
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> bool:
        """Take what is there; False when there is nothing (yet, or any more)."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            self.stop()
            return False
        self.buffer.write(data)
        return True

    async def drain(self, until: float) -> None:
        """Take what is in the pipe now: after its writer exited, that is all it ever wrote. Bounded by `until`."""
        loop = asyncio.get_running_loop()
        while not self.ended.is_set() and loop.time() < until and self._read():  # noqa: ASYNC110 (it reads, it does not wait)
            await asyncio.sleep(0)  # the other stream, and the timeout, get their turn

    def stop(self) -> None:
        """Read no more; the end of file does the same."""
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self.ended.set()


async def run_exec(action: ExecAction, launcher: Launcher, options: ExecOptions, stop: Stop) -> Result:
    """Run a command to its end, its timeout, or its cancellation; never raises for what the command does."""
    if stop.reason is not None:  # asked for before it began: then it shall not begin
        return stop.ended(f"command {_shown(action.command[0])}")
    try:
        process = launcher.start(Launch(action.command, options.environment, options.container, options.mark))
    except StartError as error:
        return _not_started(action.command[0], options, error)
    readers = [_Reader(descriptor, options.limit_bytes) for descriptor in (process.stdout, process.stderr)]
    waiting = asyncio.create_task(process.wait(), name="exec wait")
    notes: list[str] = []
    settled = False
    try:
        stopped = asyncio.create_task(stop.wait(), name="exec stop")
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if waiting.done():
            status = waiting.result()
            await _drain(readers)
            result = _ended(action.command[0], status)
            if result.outcome is Outcome.SUCCEEDED:
                notes += _left_running(process)
            else:
                notes += _survivors(await process.kill_everything())
        else:
            process.terminate()
            await _group_ended(process, waiting)
            survivors = await process.kill_everything()
            await asyncio.wait({waiting}, timeout=DRAIN_SECONDS)
            await _drain(readers)
            status = waiting.result() if waiting.done() else ExitStatus()
            result = stop.ended(f"command {_shown(action.command[0])}")
            notes += _survivors(survivors)
        settled = waiting.done()
        return result.model_copy(
            update={
                "exit_code": status.exit_code,
                "signal": status.signal,
                "stdout": readers[0].buffer.captured(),
                "stderr": readers[1].buffer.captured(),
                "notes": notes,
            }
        )
    finally:
        try:
            await _to_its_end(_let_go(process, waiting, kill=not settled))
        finally:
            for reader in readers:
                reader.stop()
            process.close()


async def _group_ended(process: Process, waiting: asyncio.Task[ExitStatus]) -> None:
    """Give the whole group its grace, not only the shell in front of it: what cleans up is often its child."""
    loop = asyncio.get_running_loop()
    until = loop.time() + TERM_GRACE_SECONDS
    await asyncio.wait({waiting}, timeout=TERM_GRACE_SECONDS)
    while loop.time() < until and any(in_group(pid, process.pid) for pid in process.remaining()):  # noqa: ASYNC110
        await asyncio.sleep(GROUP_LOOK_SECONDS)


async def _let_go(process: Process, waiting: asyncio.Task[ExitStatus], *, kill: bool) -> None:
    if kill:  # cancelled from outside, or a process that SIGKILL does not end
        await process.kill_everything()
    waiting.cancel()
    await asyncio.wait({waiting})  # it lets go of the pidfd before the number is somebody else's


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` (bounded by itself) even if the caller is cancelled, or cancelled again; say so afterwards."""
    task = asyncio.create_task(work, name="exec let go")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


async def _drain(readers: list[_Reader]) -> None:
    until = asyncio.get_running_loop().time() + DRAIN_SECONDS
    for reader in readers:
        await reader.drain(until)


def _ended(program: str, status: ExitStatus) -> Result:
    if status.exit_code == 0:
        return Result(outcome=Outcome.SUCCEEDED)
    if status.signal is not None:
        detail = ErrorDetail(code=ErrorCode.SIGNAL, message=f"command {_shown(program)} was ended by {status.signal}")
    else:
        detail = ErrorDetail(
            code=ErrorCode.EXIT_CODE, message=f"command {_shown(program)} exited with code {status.exit_code}"
        )
    return Result(outcome=Outcome.FAILED, error=detail)


def _not_started(program: str, options: ExecOptions, error: StartError) -> Result:
    where = f"in container {options.container!r}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        searched = "" if "/" in program else f" (searched in PATH {options.environment.get('PATH', os.defpath)})"
        message = (
            f"command {_shown(program)} was not found {where}{searched}; "
            "check its spelling, the interpreter in its #! line, and the image"
        )
        return failure(Outcome.FAILED, ErrorCode.NOT_FOUND, message).model_copy(update={"exit_code": EXIT_NOT_FOUND})
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM):
        message = (
            f"command {_shown(program)} {where} is not executable: {error}; "
            "it must be a program with execute permission, or a script that begins with #!"
        )
        return failure(Outcome.FAILED, ErrorCode.NOT_EXECUTABLE, message).model_copy(
            update={"exit_code": EXIT_NOT_EXECUTABLE}
        )
    return failure(
        Outcome.FAILED, ErrorCode.START_FAILED, f"command {_shown(program)} could not start {where}: {error}"
    )


def _left_running(process: Process) -> list[str]:
    left = process.remaining()
    if not left:
        return []
    return [f"the command left {_processes(left)} running in the background"]


def _survivors(pids: list[int]) -> list[str]:
    if not pids:
        return []
    return [
        f"{_processes(pids)} outlived SIGKILL (uninterruptible sleep, or another user's); look at the node's storage"
    ]


def _processes(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:10])) + (", ..." if len(pids) > 10 else "")
    return f"{len(pids)} process{'es' if len(pids) > 1 else ''} (pid {shown})"


def _shown(program: str) -> str:
    return repr(program if len(program) <= 200 else f"{program[:200]}...")
