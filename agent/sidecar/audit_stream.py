"""Where the audit's lines go: standard output or a file, in order, each handed to the kernel at once.

A thread of its own writes, so a slow disk or a reader that sleeps holds nobody up. What cannot be written is counted,
said once, and told in the stream itself when it works again: the work that is audited never ends for it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

#: Lines that wait for a slow disk or reader, half a kilobyte each; what is more is dropped and counted.
MAX_WAITING = 10_000


class Sink(Protocol):
    """A place for lines. Used by one thread."""

    def write(self, line: bytes) -> None:
        """Hand a whole line to the kernel. Raises OSError; what was begun of the line is ended by the next one."""

    def close(self) -> None:
        """Let go of it."""


class _Descriptor:
    """Lines to a descriptor; a line that broke off is ended before the next one begins."""

    def __init__(self) -> None:
        self._torn = False

    def _write(self, descriptor: int, line: bytes) -> None:
        data = b"\n" + line if self._torn else line
        while data:
            written = os.write(descriptor, data)
            self._torn = written < len(data)
            data = data[written:]


class StandardOutput(_Descriptor):
    """Descriptor 1, which belongs to whoever started us: it is never closed, and never made non-blocking."""

    def write(self, line: bytes) -> None:
        """See `Sink.write`."""
        self._write(1, line)

    def close(self) -> None:
        """See `Sink.close`."""


class AppendedFile(_Descriptor):
    """A file that only grows (O_APPEND, 0600), opened anew when another one, or none, has its name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._descriptor = -1

    def write(self, line: bytes) -> None:
        """See `Sink.write`."""
        if self._descriptor >= 0 and self._moved():
            self.close()
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            self._descriptor = os.open(self._path, flags, 0o600)
            self._torn = False
        self._write(self._descriptor, line)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _moved(self) -> bool:
        try:
            there, ours = self._path.stat(), os.fstat(self._descriptor)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


class LineWriter:
    """Writes lines to a sink in the order in which they are given, in a thread of its own.

    `dropped` makes the line that tells how many are missing. `failed` is called in that thread with why lines cannot be
    written, and with None when they can again. At most `max_waiting` lines wait.
    """

    def __init__(
        self,
        sink: Sink,
        dropped: Callable[[int], bytes],
        failed: Callable[[str | None], None],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._sink = sink
        self._dropped_line = dropped
        self._failed = failed
        self._max_waiting = max_waiting
        self._lines: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._writing = False
        self._closing = False
        self._dropped = 0
        self._why = ""
        self._thread: threading.Thread | None = None
        self._started = False

    def put(self, line: bytes) -> None:
        """Have a line written; returns at once."""
        with self._changed:
            why = self._start()
            if why or len(self._lines) >= self._max_waiting:
                self._dropped += 1
                full = self._dropped == 1
            else:
                self._lines.append(line)
                full = False
            self._changed.notify_all()
        if full:
            self._tell(why or f"{self._max_waiting} lines wait for whoever reads or stores them")

    def _start(self) -> str:
        """Start the thread if it does not run; returns why it cannot: hooks and we share a limit of processes."""
        if not self._started:
            try:
                # A daemon: a reader that never reads must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
                self._thread.start()
            except RuntimeError as error:
                return str(error)
            self._started = True
        return ""

    def flush(self, within_seconds: float) -> bool:
        """Wait until every line was written or dropped; False when that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, within_seconds)

    def close(self, within_seconds: float) -> None:
        """Write what waits, as far as that is possible in time, and end."""
        self.flush(within_seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._started:
            self._thread.join(within_seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    break
                line = self._lines.popleft()
                self._writing = True
            try:
                self._write(line)
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
        with contextlib.suppress(OSError):
            if self._dropped:
                self._sink.write(self._dropped_line(self._dropped))
            self._sink.close()

    def _write(self, line: bytes) -> None:
        try:
            if self._dropped:
                missing = self._dropped
                self._sink.write(self._dropped_line(missing))
                with self._changed:
                    self._dropped -= missing
            self._sink.write(line)
        except OSError as error:
            with self._changed:
                self._dropped += 1
            self._tell(error.strerror or errno.errorcode.get(error.errno or 0, str(error)))
        else:
            self._tell("")

    def _tell(self, why: str) -> None:
        """Say it once, and once when it is over."""
        if why != self._why:
            self._why = why
            self._failed(why or None)
