"""exec: a command as its argv says, no shell. The rules of its end are SEMANTICS' (section exec)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.actions.start_errors import not_started, shown
from agent.actions.stop import Stop
from agent.contract.actions import ExecAction
from agent.contract.errors import ErrorCode
from agent.contract.messages import CapturedStream, ErrorDetail, Result
from agent.contract.outcomes import OutputBuffer, failure, redacted
from agent.contract.redaction import Redactor
from agent.contract.secret_names import secrets_of
from agent.contract.states import Outcome
from agent.pod.processes import ExitStatus, Interrupted, Launch, Launcher, Process, StartError, in_group

#: SIGTERM to the process group, then this long, then SIGKILL to everything it started.
TERM_GRACE_SECONDS = 5
#: After the command itself exited, its output may take this long to drain.
DRAIN_SECONDS = 1
#: How often it is looked whether anything of the group still cleans up.
GROUP_LOOK_SECONDS = 0.05
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """Where and how a command runs. `limit_bytes` is kept of each stream; `environment` is added to the container's.

    `inherit` False leaves the container's own environment out (`exec.environment: minimal`). `redactor` has the secrets
    that the agent knows beforehand; those of the container's environment are told by the process.
    """

    container: str
    environment: Mapping[str, str]
    mark: str
    limit_bytes: int
    inherit: bool = True
    redactor: Redactor = field(default_factory=Redactor)

    def launch(self, action: ExecAction) -> Launch:
        """What to ask the launcher for."""
        return Launch(
            action.command,
            self.environment,
            self.container,
            self.mark,
            inherit=self.inherit,
            fallback=bool(action.env),
            user=action.user or "",
        )


class _Reader:
    """Reads a pipe to its end and never stops at the limit, so the command never blocks on a full pipe.

    Secrets go before anything is kept or cut, so that no cut leaves a part of one.
    """

    def __init__(self, descriptor: int, limit_bytes: int, redactor: Redactor) -> None:
        self._buffer = OutputBuffer(limit_bytes)
        self._redacted = redactor.stream()
        self._whole = False
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
            self._whole = True
            self.stop()
            return False
        self._buffer.write(self._redacted.write(data))
        return True

    async def drain(self, until: float) -> None:
        """Take what is in the pipe now: after its writer exited, that is all it ever wrote. Bounded by `until`."""
        loop = asyncio.get_running_loop()
        while not self.ended.is_set() and loop.time() < until and self._read():  # noqa: ASYNC110 (it reads, it does not wait)
            await asyncio.sleep(0)  # the other stream, and the timeout, get their turn

    def captured(self, *, cut: bool) -> CapturedStream:
        """What was kept; call once, when nothing more is read. `cut`: the writer was ended before it was done."""
        self.stop()
        self._buffer.write(self._redacted.end(cut=cut or not self._whole))
        return self._buffer.captured()

    def stop(self) -> None:
        """Read no more; the end of file does the same."""
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self.ended.set()


async def run_exec(action: ExecAction, launcher: Launcher, options: ExecOptions, stop: Stop) -> Result:
    """Run a command to its end, its timeout, or its cancellation; never raises for what the command does."""
    what = f"command {shown(action.command[0])}"
    if stop.reason is not None:  # asked for before it began: then it shall not begin
        return stop.ended(what)
    try:
        process = await _start(launcher, options.launch(action), stop)
    except StartError as error:
        return not_started(action.command[0], options.container, error, action.user or "")
    except Interrupted as interrupted:
        return _interrupted(interrupted, what)
    if process is None:
        return stop.ended(what)
    return await _attend(process, action.command[0], options, stop)


async def _attend(process: Process, program: str, options: ExecOptions, stop: Stop) -> Result:
    """Read what it says until it ends or has to; whatever happens, it is let go of."""
    redactor = options.redactor.with_(secret for pair in process.secrets for secret in secrets_of(*pair))
    readers = [_Reader(number, options.limit_bytes, redactor) for number in (process.stdout, process.stderr)]
    waiting = asyncio.create_task(process.wait(), name="exec wait")
    what, notes = f"command {shown(program)}", list[str]()
    settled = False
    try:
        stopped = asyncio.create_task(stop.wait(), name="exec stop")
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if waiting.done() and isinstance(gone := waiting.exception(), Interrupted):
            notes += _survivors(await process.kill_everything())
            await _drain(readers)
            status = ExitStatus()
            result = _interrupted(gone, what)
        elif waiting.done():
            status = waiting.result()
            await _drain(readers)
            result = _ended(program, status)
            if result.outcome is Outcome.SUCCEEDED:
                notes += await _left_running(process)
            else:
                notes += _survivors(await process.kill_everything())
        else:
            process.terminate()
            await _group_ended(process, waiting)
            survivors = await process.kill_everything()
            await asyncio.wait({waiting}, timeout=DRAIN_SECONDS)
            await _drain(readers)
            status = waiting.result() if waiting.done() and waiting.exception() is None else ExitStatus()
            result = stop.ended(what)
            notes += _survivors(survivors)
        settled = waiting.done()
        return redacted(result, redactor).model_copy(
            update={
                "exit_code": status.exit_code,
                "signal": status.signal,
                "stdout": readers[0].captured(cut=status.exit_code is None),
                "stderr": readers[1].captured(cut=status.exit_code is None),
                "notes": notes,
            }
        )
    finally:
        try:
            if not settled:
                await _to_its_end(_let_go(process, waiting))
        finally:
            for reader in readers:
                reader.stop()
            process.close()


async def _start(launcher: Launcher, launch: Launch, stop: Stop) -> Process | None:
    """Start it; None if a stop came first (a file system may hang on the way in), and then nothing of it is left.

    Raises:
        StartError: it could not be started.
        Interrupted: whether it was started is unknown.
    """
    starting = asyncio.create_task(launcher.start(launch), name="exec start")
    stopped = asyncio.create_task(stop.wait(), name="exec stop")
    process: Process | None = None
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            process = starting.result()
        return process
    finally:
        stopped.cancel()
        if process is None:
            await _to_its_end(_discard(starting))


async def _discard(starting: asyncio.Task[Process]) -> None:
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:  # it was faster than we
        process = starting.result()
        await process.kill_everything()
        process.close()


def _interrupted(interrupted: Interrupted, what: str) -> Result:
    message = f"{interrupted} while {what} ran; whether it took effect is unknown"
    return failure(Outcome.INTERRUPTED, interrupted.code, message)


async def _group_ended(process: Process, waiting: asyncio.Task[ExitStatus]) -> None:
    """Give the whole group its grace, not only the shell in front of it: what cleans up is often its child."""
    loop = asyncio.get_running_loop()
    until = loop.time() + TERM_GRACE_SECONDS
    await asyncio.wait({waiting}, timeout=TERM_GRACE_SECONDS)
    while loop.time() < until and any(in_group(pid, process.pid) for pid in await process.remaining() or []):  # noqa: ASYNC110
        await asyncio.sleep(GROUP_LOOK_SECONDS)


async def _let_go(process: Process, waiting: asyncio.Task[ExitStatus]) -> None:
    """Cancelled from outside, or a process that SIGKILL does not end."""
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
        detail = ErrorDetail(code=ErrorCode.SIGNAL, message=f"command {shown(program)} was ended by {status.signal}")
    else:
        detail = ErrorDetail(
            code=ErrorCode.EXIT_CODE, message=f"command {shown(program)} exited with code {status.exit_code}"
        )
    return Result(outcome=Outcome.FAILED, error=detail)


async def _left_running(process: Process) -> list[str]:
    left = await process.remaining()
    if left is None:
        return ["whether the command left processes running in the background is not known: see the agent's log"]
    if not left:
        return []
    return [f"the command left {_processes(left)} running in the background"]


def _survivors(pids: list[int] | None) -> list[str]:
    if pids is None:
        return ["whether everything that it started has ended is not known: the launcher did not say; look at the pod"]
    if not pids:
        return []
    return [
        f"{_processes(pids)} outlived SIGKILL (uninterruptible sleep, or another user's); look at the node's storage"
    ]


def _processes(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:10])) + (", ..." if len(pids) > 10 else "")
    return f"{len(pids)} process{'es' if len(pids) > 1 else ''} (pid {shown})"
