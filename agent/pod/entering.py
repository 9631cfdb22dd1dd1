"""The agent's end of the launcher: commands in sibling containers, and as a third user in its own.

The agent has no privilege; it asks, over one socket. When a new launcher says hello, everything that the old one had
started is gone, and its attempts end as `interrupted`. What cannot be known is never called a failure.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import itertools
import json
import os
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

from agent.contract.errors import ErrorCode
from agent.pod import kernel
from agent.pod.census import MainProcess, Neighbours
from agent.pod.environments import Environments, Learnt
from agent.pod.job import dump
from agent.pod.launcher import MAX_PACKET_BYTES
from agent.pod.processes import ExitStatus, Interrupted, Launch, Process, StartError, settle, signal_name
from agent.pod.stepping import MAX_SECRETS_BYTES

log = structlog.get_logger("podhook.pod")

#: The launcher itself gives up on a child after 10 s.
ANSWER_SECONDS = 15
#: Requests that wait for a launcher that is busy; each attempt has a few at most.
MAX_WAITING = 4096
#: The launcher tries for 0.2 s each time.
KILL_PAUSES_SECONDS = (0, 0.1, 0.2, 0.4, 0.8)


class LauncherGone(Interrupted):
    """The launcher went away, or is silent; what it had started was killed, or will be."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.LAUNCHER_RESTARTED, reason)


@dataclass(slots=True)
class _Ask:
    """An attempt as the agent knows it. `answers` are by the number of their question.

    `alone` is whether the command had left nothing running when it exited; then nothing can come of it any more.
    """

    started: asyncio.Future[tuple[int, list[int]]]
    exited: asyncio.Future[ExitStatus]
    alone: bool = False
    answers: dict[int, asyncio.Future[list[int] | None]] = field(default_factory=dict)


class EnteringLauncher:
    """Starts commands by way of the launcher."""

    def __init__(self, channel: socket.socket, neighbours: Neighbours, own: str) -> None:
        channel.setblocking(False)  # noqa: FBT003 (the standard library's signature)
        self.neighbours = neighbours
        self._own = own  # how the agent's container is called where it cannot be told from /proc
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="census")  # asyncio's own waits for name lookups
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._generation: asyncio.Future[int] = self._loop.create_future()
        self._numbers = itertools.count(1)
        self._asks: dict[int, _Ask] = {}
        self._room = bytearray(MAX_PACKET_BYTES)
        self._waiting: collections.deque[bytes] = collections.deque()
        self._environments = Environments(self._look)
        self._loop.add_reader(channel, self._hear)

    async def look_around(self) -> None:
        """Take the census anew; where that is not possible now, what was known stays."""
        try:
            self.neighbours.adopt(await self._loop.run_in_executor(self._looking, self.neighbours.look))
            self._environments.keep(self.neighbours.census.siblings.values())
        except (OSError, RuntimeError) as error:  # no descriptor, or no thread, to be had
            log.warning("pod.not_seen", error=str(error), next="raise the pod's limits of processes and files")

    async def learn_environments(self) -> list[Learnt]:
        """The secrets in the environments of the pod's other containers, each read once in its life."""
        await self.look_around()
        return await self._environments.of(list(self.neighbours.census.siblings.values()))

    async def start(self, launch: Launch) -> Process:
        """See `Launcher.start`. `StartError.step` is where on the way into the container it failed."""
        main, target = await self._find(launch.container)
        try:
            return await self._start(launch, main, target)
        except BaseException:
            if target is not None:
                os.close(target)
            raise

    async def _find(self, container: str) -> tuple[MainProcess | None, int | None]:
        """The container's main process with a pidfd of the attempt's own; (None, None) for the agent's container."""
        if container == (self.neighbours.census.own or self._own):
            return None, None
        main = self.neighbours.main(container)
        if main is None:
            await self.look_around()
            main = self.neighbours.main(container)
        if main is None:
            raise StartError(OSError(errno.ESRCH, "its main process does not run"), "container")
        return main, os.dup(main.pidfd)

    async def _start(self, launch: Launch, main: MainProcess | None, target: int | None) -> Process:
        more = {
            "argv": list(launch.argv),
            "environment": list(launch.environment.items()),
            "inherit": launch.inherit,
            "fallback": launch.fallback,
            "user": launch.user,
        }
        number, ask, pid, outputs, secrets = await self._child(main, more)
        return EnteredProcess(self, number, ask, pid, outputs, target, launch.container, secrets)

    async def _look(self, main: MainProcess) -> Sequence[tuple[bytes, bytes]]:
        """The secrets in the environment of a container's main process: a child looks, and runs nothing.

        Raises:
            StartError: they cannot be read.
            LauncherGone: and whether they can is not known.
        """
        nothing = {"look": True, "argv": [], "environment": [], "inherit": False, "fallback": False, "user": ""}
        number, _, _, outputs, secrets = await self._child(main, nothing)
        for descriptor in outputs:
            os.close(descriptor)
        self.forget(number)
        return secrets

    async def _child(
        self, main: MainProcess | None, more: dict[str, Any]
    ) -> tuple[int, _Ask, int, list[int], Sequence[tuple[bytes, bytes]]]:
        """A child with this job: number, question, pid, read ends of its output, and its container's secrets."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                generation = await asyncio.shield(self._generation)
        except TimeoutError as error:
            raise StartError(OSError(errno.ETIMEDOUT, "there is none yet"), "launcher") from error
        number, ask = next(self._numbers), _Ask(self._loop.create_future(), self._loop.create_future())
        self._asks[number] = ask
        request = {
            "op": "start",
            "id": number,
            "generation": generation,
            "container": main.container if main is not None else None,
            "pid": main.pid if main is not None else 0,
            "started": main.started if main is not None else 0,
            **more,
        }
        try:
            self._ask_to_start(dump(request))
            async with asyncio.timeout(ANSWER_SECONDS):
                pid, (stdout, stderr, memory) = await asyncio.shield(ask.started)
            secrets = _secrets_in(memory)
        except BaseException as error:
            self._abandon(number, ask)
            if isinstance(error, TimeoutError):
                raise LauncherGone("the launcher did not answer") from error
            raise
        os.close(memory)
        return number, ask, pid, [stdout, stderr], secrets

    def ask(self, number: int, operation: str, **more: Any) -> None:
        """Send a request about an attempt; a launcher that is gone needs none."""
        with contextlib.suppress(OSError):
            self._send(dump({"op": operation, "id": number, **more}))

    async def living(self, number: int, ask: _Ask, operation: str) -> list[int] | None:
        """What still lives of an attempt, after `kill` or just counted (`left`); None if that cannot be told.

        Raises:
            LauncherGone: and with it everything that it had started.
        """
        question = next(self._numbers)
        answer: asyncio.Future[list[int] | None] = self._loop.create_future()
        ask.answers[question] = answer
        self.ask(number, operation, n=question)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            log.warning("launcher.silent", operation=operation)
            return None
        finally:
            ask.answers.pop(question, None)

    def forget(self, number: int) -> None:
        """The attempt is over."""
        if self._asks.pop(number, None) is not None:
            self.ask(number, "forget")

    def close(self) -> None:
        """Stop listening; the launcher ends when the process does."""
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._looking.shutdown(wait=False)

    # -- within

    def _ask_to_start(self, data: bytes) -> None:
        if len(data) > MAX_PACKET_BYTES:
            raise StartError(OSError(errno.E2BIG, os.strerror(errno.E2BIG)), "execve")
        if len(self._waiting) >= MAX_WAITING:  # only starts are refused: what ends an attempt always gets its turn
            raise StartError(OSError(errno.EBUSY, "it is overrun"), "launcher")
        try:
            self._send(data)
        except OSError as error:
            raise StartError(OSError(errno.EPIPE, "it is gone"), "launcher") from error

    def _send(self, data: bytes) -> None:
        """Send a packet, or let it wait while the launcher is busy. Raises OSError when there is none any more."""
        if not self._waiting:
            try:
                self._channel.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._send_waiting)
            else:
                return
        self._waiting.append(data)

    def _send_waiting(self) -> None:
        try:
            while self._waiting:
                self._channel.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()
        self._loop.remove_writer(self._channel)

    def _abandon(self, number: int, ask: _Ask) -> None:
        """Whoever asked is gone or was told no: what may have started is ended."""
        if ask.started.done() and not ask.started.cancelled() and ask.started.exception() is None:
            for descriptor in ask.started.result()[1]:
                os.close(descriptor)
        self.ask(number, "kill")
        self.forget(number)

    def _hear(self) -> None:
        try:
            data, descriptors = kernel.receive(self._channel, self._room)
        except BlockingIOError:
            return
        except OSError as lost:
            log.warning("launcher.unheard", error=str(lost))
            return
        if not data:  # the parent holds the other end: this is the end of everything
            self._loop.remove_reader(self._channel)
            self._lost("the launcher and its parent are gone")
            return
        said = json.loads(data)
        if said["op"] == "hello":
            self._greet(said["generation"])
            return
        ask = self._asks.get(said["id"])
        if ask is not None and said["op"] == "started" and not ask.started.done() and len(descriptors) == 3:
            ask.started.set_result((said["pid"], descriptors))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if ask is not None:
            _note(ask, said)

    def _greet(self, generation: int) -> None:
        if self._generation.done():
            self._lost("the launcher was started anew, and what it had started was killed")
            self._generation = self._loop.create_future()
            log.warning("launcher.restarted", generation=generation)
        self._generation.set_result(generation)

    def _lost(self, reason: str) -> None:
        for ask in self._asks.values():
            waiting: list[asyncio.Future[Any]] = [ask.started, ask.exited, *ask.answers.values()]
            for each in waiting:
                _fail(each, LauncherGone(reason))


class EnteredProcess:
    """A command that the launcher started. `target` is a pidfd of its container's main process."""

    def __init__(
        self,
        launcher: EnteringLauncher,
        number: int,
        ask: _Ask,
        pid: int,
        outputs: list[int],
        target: int | None,
        container: str,
        secrets: Sequence[tuple[bytes, bytes]],
    ) -> None:
        self.secrets = secrets
        self._launcher = launcher
        self._number = number
        self._ask = ask
        self._target = target
        self._container = container
        self.pid = pid
        self.stdout, self.stderr = outputs

    async def wait(self) -> ExitStatus:
        """See `Process.wait`."""
        if self._target is None:
            return await asyncio.shield(self._ask.exited)
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._target, settle, gone)
        try:
            waiting: set[asyncio.Future[Any]] = {self._ask.exited, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._target)
        if gone.done():  # also when the command has exited as well: what it did it did to a container that was ending
            raise Interrupted(
                ErrorCode.CONTAINER_RESTARTED, f"container {self._container!r} ended or was started again"
            )
        return self._ask.exited.result()

    def terminate(self) -> None:
        """See `Process.terminate`."""
        self._launcher.ask(self._number, "signal", signal=int(signal.SIGTERM))

    async def remaining(self) -> list[int] | None:
        """See `Process.remaining`."""
        if self._ask.alone:
            return []
        with contextlib.suppress(LauncherGone):
            return await self._launcher.living(self._number, self._ask, "left")
        return None

    async def kill_everything(self) -> list[int] | None:
        """See `Process.kill_everything`."""
        left: list[int] | None = []
        if self._ask.alone:
            return left
        with contextlib.suppress(LauncherGone):
            for pause in KILL_PAUSES_SECONDS:
                await asyncio.sleep(pause)
                left = await self._launcher.living(self._number, self._ask, "kill")
                if not left:
                    break
            return left
        return []  # killed by the parent

    def close(self) -> None:
        """See `Process.close`."""
        for descriptor in (self.stdout, self.stderr, *([self._target] if self._target is not None else [])):
            os.close(descriptor)
        self._launcher.forget(self._number)


def _secrets_in(memory: int) -> list[tuple[bytes, bytes]]:
    """The variables that the child left in its file in memory (`stepping`). Raises OSError."""
    data = os.pread(memory, MAX_SECRETS_BYTES, 0)
    return [(name, value) for name, _, value in (each.partition(b"=") for each in data.split(b"\0")) if name]


def _note(ask: _Ask, said: dict[str, Any]) -> None:
    match said["op"]:
        case "failed" if said["begun"]:
            reason = f" ({os.strerror(said['errno'])})" if said["errno"] else ""
            _fail(ask.started, LauncherGone(f"{said['step']}{reason}"))
        case "failed":
            reason = os.strerror(said["errno"]) if said["errno"] else ""
            _fail(ask.started, StartError(OSError(said["errno"], reason), said["step"], said["searched"]))
        case "exited" if not ask.exited.done():
            ask.alone = said.get("alone", False)
            ask.exited.set_result(_status(said))
        case "left" if (answer := ask.answers.get(said["n"])) is not None and not answer.done():
            answer.set_result(said["pids"])


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may be waiting


def _status(said: dict[str, Any]) -> ExitStatus:
    if "code" in said:
        return ExitStatus(exit_code=said["code"])
    return ExitStatus(signal=signal_name(said["signal"]))
