"""Everything that commands started: found by descent, and by a mark when its parents are gone.

All of it is below the launcher, which is a child subreaper: what calls setsid and loses its parents becomes the
launcher's own child. The mark, a resource limit that every child inherits, tells whose it was. Standard library only,
and files are read as bytes: a codec would be an import.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterable

MAX_FILE_BYTES = 1024 * 1024
RLIMIT_LOCKS = 10
MARK_SUM = 1 << 63


def read(path: str) -> bytes:
    """A small file of /proc. Raises OSError, also if it is larger than 1 MiB."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_all(descriptor)
    finally:
        os.close(descriptor)


def read_all(descriptor: int, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Everything that a descriptor has. Raises OSError, EFBIG if that is more than the limit: nothing is cut."""
    pieces, size = [], 0
    while piece := os.read(descriptor, 65536):
        pieces.append(piece)
        size += len(piece)
        if size > limit_bytes:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return b"".join(pieces)


def children(pid: int) -> list[int]:
    """The children of all threads of a process; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 (no pathlib in the launcher)
            with contextlib.suppress(OSError):
                found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def own_children() -> list[int]:
    """The children of this process, which has one thread. Raises OSError."""
    pid = os.getpid()
    return [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]


def born(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        fields = read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
        ended = fields[0] in (b"Z", b"X") and int(fields[17]) < 2  # a first thread may end before the others
        return None if ended else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def bear(mark: int) -> None:
    """Bear a mark, and all that comes from this process with it.

    It stands in two limits that Linux has not used since 2.4, once as it is and once as what is missing to MARK_SUM.
    A process can lower its limits, not raise them: whatever it does, they do not make up another mark.
    """
    for limit, value in ((RLIMIT_LOCKS, mark), (resource.RLIMIT_RSS, MARK_SUM - mark)):
        resource.setrlimit(limit, (value, value))


def mark_of(pid: int) -> int:
    """The mark that a process bears, or 0. Everybody may read it, whatever the process did since.

    Raises:
        OSError: it cannot be looked at, for want of descriptors, say; then it is not known to bear none.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError, ValueError, KeyError):
        hard = {}
        for line in read(f"/proc/{pid}/limits").splitlines():
            if line.startswith((b"Max file locks", b"Max resident set")):
                hard[line[4:8]] = int(line.split()[4])
        if hard[b"file"] + hard[b"resi"] == MARK_SUM:
            return hard[b"file"]
    return 0


def below(roots: Iterable[int]) -> dict[int, int]:
    """{pid: start time} of `roots` and all that came from them, as far as they live."""
    living: dict[int, int] = {}
    unseen, seen = list(roots), set()
    while unseen:
        pid = unseen.pop()
        if pid in seen:
            continue
        seen.add(pid)
        started = born(pid)
        if started is not None:
            living[pid] = started
        unseen += children(pid)
    return living


def kill(pid: int, started: int) -> None:
    """SIGKILL through a pidfd, if it is still the process that was looked at."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if born(pid) == started:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def signal_group(pid: int, number: int) -> None:
    """Signal the process group that `pid` leads; never our own, never everybody's."""
    if pid > 1:
        with contextlib.suppress(OSError, ValueError, OverflowError):
            os.killpg(pid, number)
