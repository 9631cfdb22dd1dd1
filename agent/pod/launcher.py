"""The launcher: starts commands inside containers. Root, single-threaded, standard library only.

It never changes its own identity or root, so no container can signal or trace it; a child that is forked beforehand
does the stepping in, for good (`stepping`). It takes requests from the agent over one socket, starts, signals, counts
and reaps, and when the agent is gone it kills everything and ends. docs/launcher.md explains it thought by thought.

Packets are JSON objects. From the agent, each with the attempt's `id`::

    start   generation, and a job (`job.Job`)       signal  signal: to the process group
    left    n: who still lives?                     kill    n: everything it started
    forget  the attempt is over

To the agent: `hello` (a new launcher is here), `started` (pid, and three descriptors), `failed` (step, errno, searched;
`begun` if the command may have run), `exited` (code or signal; `alone` if it left nothing), `left` (n, pids, or null).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from agent.pod import kernel
from agent.pod.child import Child, fork_child
from agent.pod.job import dump, parse_request, parse_signal
from agent.pod.offspring import below, kill, mark_of, own_children, read, signal_group
from agent.pod.target import Own, home_of

MAX_PACKET_BYTES = 192 * 1024

#: A step that takes longer hangs in the container's file system.
STEP_SECONDS = 10
KILL_SECONDS = 0.2
KILL_PAUSE_SECONDS = 0.002
#: The next child is forked when an attempt is over, or after this: a fork takes longer than stepping in does.
REFILL_SECONDS = 0.02
REFILL_AGAIN_SECONDS = 0.5
MAX_PIDS_SAID = 10_000
FIRST_MARK = 1 << 61


def serve(agent: socket.socket, generation: int, agent_uid: int, command_uid: int) -> None:
    """Serve until the agent is gone. Called in a process of its own; ends with `os._exit`."""
    code = 1
    try:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # those two Python ignores itself
            if signal.getsignal(number) is signal.SIG_IGN:  # whoever started the container left it so
                signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the parent decides when it is over
        own = Own(home_of(read("/proc/self/mountinfo")), os.stat("/proc").st_dev, agent_uid, command_uid)  # noqa: PTH116
        launcher = _Launcher(agent, generation, own)
        sys.path.clear()  # from here on nothing is imported: what a child could import lies in the container
        sys.meta_path.clear()
        sys.path_hooks.clear()
        launcher.loop()
        code = 0
    except BaseException as error:  # noqa: BLE001 (no traceback: it would read files)
        os.write(2, f"podhook launcher: {type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(code)


class _Launcher:
    def __init__(self, agent: socket.socket, generation: int, own: Own) -> None:
        self._agent = agent
        self._generation = generation
        self._own = own
        self._idle: Child | None = None
        self._refill_at = 0.0
        self._room = bytearray(MAX_PACKET_BYTES)
        self._attempts: dict[int, Child] = {}
        self._mark = FIRST_MARK
        self._settled: set[int] = set()  # marks of attempts that are over and left something running
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def loop(self) -> None:
        """Until the agent closes its end."""
        self._say({"op": "hello", "generation": self._generation})
        while True:
            if self._idle is None and time.monotonic() >= self._refill_at:
                self._refill()
            poll = select.poll()
            poll.register(self._agent, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            stepping_in = {a.channel.fileno(): (i, a) for i, a in self._attempts.items() if a.channel is not None}
            running = {a.pidfd: (i, a) for i, a in self._attempts.items() if a.channel is None and not a.exited}
            for number in (*stepping_in, *running):
                poll.register(number, select.POLLIN)
            pause = (500 if self._idle else 1000 * REFILL_SECONDS) if stepping_in or self._idle is None else None
            ready = {number for number, _ in poll.poll(pause)}
            for number, (attempt_id, attempt) in stepping_in.items():
                if number in ready:
                    self._hear_child(attempt_id, attempt)
                elif time.monotonic() > attempt.give_up_at:
                    self._give_up(attempt_id, attempt)
            for number in ready & running.keys():
                self._exited(*running[number])
            if self._wake_read in ready:
                with contextlib.suppress(OSError):
                    os.read(self._wake_read, 4096)
                    self._reap()
            if self._agent.fileno() in ready and not self._hear_agent():
                self._kill_all()
                return

    # -- the agent

    def _hear_agent(self) -> bool:
        """Take one request; False when the agent is gone."""
        try:
            data, descriptors = kernel.receive(self._agent, self._room)
            for descriptor in descriptors:
                os.close(descriptor)  # the agent has no descriptor to give
            if not data:
                return False
            self._serve(parse_request(data), data)
        except Exception as error:  # noqa: BLE001 (whatever the agent says, attempts go on)
            os.write(2, f"podhook launcher: a request is refused: {error}\n".encode(errors="replace"))
        return True

    def _serve(self, request: dict[str, Any], data: bytes) -> None:
        operation, number = request["op"], request["id"]
        attempt = self._attempts.get(number)
        if operation == "start":
            self._start(number, request, data)
        elif operation == "signal" and attempt is not None:
            signal_group(attempt.pid, parse_signal(request))
        elif operation in ("kill", "left"):
            # Of an earlier launcher's attempt nothing is left: the parent killed it before it forked us.
            pids: list[int] | None = []
            if attempt is not None:
                try:
                    living = self._kill(attempt) if operation == "kill" else self._left(attempt)
                    pids = sorted(living)[:MAX_PIDS_SAID]
                except OSError:  # no descriptor left to look with: it cannot be told
                    pids = None
            self._say({"op": "left", "id": number, "n": request.get("n"), "pids": pids})
        elif operation == "forget" and attempt is not None:
            self._forget(number, attempt)

    def _start(self, number: int, request: dict[str, Any], data: bytes) -> None:
        if number in self._attempts:
            return  # it is answered once
        if request.get("generation") != self._generation:
            self._failed(number, "launcher: it was started anew", 0)
            return
        try:
            self._reap_idle()
            child, self._idle = self._idle or fork_child(self._own), None
            self._attempts[number], self._mark = child, self._mark + 1
            self._refill_at = time.monotonic() + REFILL_SECONDS
            child.mark, child.give_up_at = self._mark, time.monotonic() + STEP_SECONDS
            child.give(b"%d %b" % (self._mark, data))  # the child checks it: a job is nothing to us
        except OSError as error:
            self._failed(number, "launcher: no child", error.errno or 0)

    def _say(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        with contextlib.suppress(OSError):  # an agent that is gone; one that hears nothing asks, or gives up, by itself
            kernel.send_descriptors(self._agent.fileno(), dump(message), descriptors or [])

    # -- children

    def _refill(self) -> None:
        """Keep one child forked, so that an attempt need not wait for a fork."""
        try:
            self._idle = fork_child(self._own)
        except OSError:  # no room for a process now
            self._refill_at = time.monotonic() + REFILL_AGAIN_SECONDS

    def _hear_child(self, number: int, attempt: Child) -> None:
        """Descriptors, then the end of file, which execve makes; or which step failed."""
        assert attempt.channel is not None
        try:
            data, descriptors = kernel.receive(attempt.channel, self._room)
        except OSError as error:  # no room for its descriptors, say: what it said is lost
            self._failed(number, "launcher: the child could not be heard", error.errno or 0, begun=True)
            return
        attempt.outputs += descriptors
        if data.startswith(b"{"):
            said = json.loads(data)
            self._failed(number, said["step"], said["errno"], said["searched"], begun=False)
        elif not data and len(attempt.outputs) == kernel.MAX_DESCRIPTORS:
            attempt.channel.close()
            attempt.channel = None
            self._say({"op": "started", "id": number, "pid": attempt.pid}, attempt.outputs)
            while attempt.outputs:
                os.close(attempt.outputs.pop())
        elif not data:
            self._failed(number, "launcher: the child ended", 0, begun=bool(attempt.outputs))

    def _give_up(self, number: int, attempt: Child) -> None:
        """It hangs. Whether its command began is asked of the dead: what it had said may lie there unread."""
        attempt.end_and_drain(self._room)
        begun = bool(attempt.outputs)
        self._failed(number, "launcher: stepping in took too long", errno.ETIMEDOUT, begun=begun)

    def _failed(self, number: int, step: str, code: int, searched: str = "", *, begun: bool = False) -> None:
        attempt = self._attempts.get(number)
        if attempt is not None:
            with contextlib.suppress(OSError):
                self._kill(attempt)
            self._forget(number, attempt)
        self._say({"op": "failed", "id": number, "step": step, "errno": code, "searched": searched, "begun": begun})

    def _forget(self, number: int, attempt: Child) -> None:
        del self._attempts[number]
        attempt.close()
        self._refill_at = 0.0
        with contextlib.suppress(OSError):
            self._settled = {mark_of(pid) for pid in self._adopted()} & (self._settled | {attempt.mark})
            self._reap()

    # -- the dead and the living

    def _adopted(self) -> list[int]:
        """Children that we did not fork: they lost their parents."""
        forked = {attempt.pid for attempt in self._attempts.values()}
        if self._idle is not None:
            forked.add(self._idle.pid)
        return [pid for pid in own_children() if pid not in forked]

    def _strays(self, attempt: Child) -> list[int]:
        """Of the adopted those that bear an attempt's mark, or one that nobody was given."""
        others = {other.mark for other in self._attempts.values() if other is not attempt} | self._settled
        return [pid for pid in self._adopted() if mark_of(pid) not in others]

    def _left(self, attempt: Child) -> set[int]:
        """What an attempt started, itself excluded, as far as it lives."""
        return set(below([attempt.pid, *self._strays(attempt)])) - {attempt.pid}

    def _kill(self, attempt: Child) -> set[int]:
        """SIGKILL to everything an attempt started, faster than it can fork; returns what outlived it.

        It is over when nobody lives and nobody died since the look before: who died may have left a child.
        """
        signal_group(attempt.pid, signal.SIGKILL)
        give_up_at, seen = time.monotonic() + KILL_SECONDS, set[int]()
        while True:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(attempt.pidfd, signal.SIGKILL)  # before setsid it leads no group
            had_ended = attempt.ended() is not None
            strays = set(self._strays(attempt))
            for pid in strays:
                os.kill(pid, signal.SIGKILL)  # our child, not waited for yet: the pid is nobody else's
            living = below([attempt.pid, *strays])
            for pid, started in living.items():
                kill(pid, started)
            if had_ended and not living and strays <= seen:
                return set()
            if time.monotonic() > give_up_at:
                return living.keys() | strays
            if strays <= seen:
                time.sleep(KILL_PAUSE_SECONDS)  # nobody new: who was killed needs a moment to die
            seen = strays
            self._reap()

    def _exited(self, number: int, attempt: Child) -> None:
        """Tell of a command that exited; it stays a zombie until it is forgotten. `alone`: it left nothing running."""
        result = attempt.ended()
        if result is not None:
            attempt.exited = True
            how = "code" if result.si_code == os.CLD_EXITED else "signal"
            alone = False
            with contextlib.suppress(OSError):
                alone = not self._adopted()
            self._say({"op": "exited", "id": number, how: result.si_status, "alone": alone})

    def _reap(self) -> None:
        """Reap whoever is no attempt's command."""
        for pid in self._adopted():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._reap_idle()

    def _reap_idle(self) -> None:
        if self._idle is not None and self._idle.ended() is not None:
            self._idle.close()  # it is among the adopted now
            self._idle = None

    def _kill_all(self) -> None:
        """The agent is gone: nothing that was started may outlive it."""
        for _ in range(50):
            living = below(own_children())
            for pid, started in living.items():
                kill(pid, started)
            if not living:
                return
            time.sleep(0.02)
