"""A child of the launcher, as the launcher holds it. Standard library only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket

from agent.pod import kernel
from agent.pod.stepping import MAX_JOB_BYTES, wait_and_become
from agent.pod.target import Own

END_MS = 100


class Child:
    """A forked child: idle at first, then an attempt's.

    `channel` is open until its command runs, `outputs` are the read ends of its output and the file with its
    container's secrets, until they are passed on.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel: socket.socket | None = channel
        self.mark = 0
        self.outputs: list[int] = []
        self.give_up_at = 0.0
        self.exited = False

    def ended(self) -> os.waitid_result | None:
        """How it ended, if it did; it stays a zombie."""
        return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def give(self, job: bytes) -> None:
        """Hand over a job. Raises OSError when the child is gone."""
        assert self.channel is not None
        self.channel.send(job)

    def end_and_drain(self, room: bytearray) -> None:
        """SIGKILL; then take what it had said, for what it had handed over shows how far it was."""
        assert self.channel is not None
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll(END_MS)
        self.channel.setblocking(False)  # noqa: FBT003 (the standard library's signature)
        with contextlib.suppress(OSError):
            while (heard := kernel.receive(self.channel, room)) != (b"", []):
                self.outputs += heard[1]

    def close(self) -> None:
        """Let go of it; who waits for it is another matter."""
        if self.channel is not None:
            self.channel.close()
        for descriptor in (*self.outputs, self.pidfd):
            os.close(descriptor)


def fork_child(own: Own) -> Child:
    """A child that waits for its job: an attempt need not wait for a fork. Raises OSError when there is no room."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_JOB_BYTES)
    with theirs:
        try:
            pid = os.fork()
            if pid == 0:
                wait_and_become(theirs.fileno(), own)
            return Child(pid, ours)
        except OSError:
            ours.close()
            raise
