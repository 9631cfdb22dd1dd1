"""The container's main process, as it is looked at before it is entered: who it is, what it has, whether it is the one.

Everything is read relative to one descriptor of /proc/PID, so a pid that is somebody else's by now is not looked at.
Standard library only.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from agent.pod.job import Job
from agent.pod.offspring import MAX_FILE_BYTES, read_all

T = TypeVar("T")

#: errno of a step that failed by our own judgement.
NO_ERRNO = 0
#: Twice what the kernel takes at execve with a stack of 8 MiB.
MAX_ENVIRON_BYTES = 4 * MAX_FILE_BYTES
GONE = "identity: the container's main process is gone"
#: Lines of /proc/PID/limits that a command takes over. Core dumps stay off; two limits without effect are our mark.
LIMITS = {
    b"Max cpu time": resource.RLIMIT_CPU,
    b"Max file size": resource.RLIMIT_FSIZE,
    b"Max data size": resource.RLIMIT_DATA,
    b"Max stack size": resource.RLIMIT_STACK,
    b"Max processes": resource.RLIMIT_NPROC,
    b"Max open files": resource.RLIMIT_NOFILE,
    b"Max locked memory": resource.RLIMIT_MEMLOCK,
    b"Max address space": resource.RLIMIT_AS,
    b"Max pending signals": resource.RLIMIT_SIGPENDING,
    b"Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    b"Max nice priority": resource.RLIMIT_NICE,
    b"Max realtime priority": resource.RLIMIT_RTPRIO,
    b"Max realtime timeout": resource.RLIMIT_RTTIME,
}
_LIMIT_NAME_WIDTH = 25


class Own(NamedTuple):
    """What a child has to know of us: our termination-log line, the device of /proc, and users that are podhook's.

    `home` is (device, path prefix, container), or None where there is no such line. Commands in our own container run
    as `command_uid`.
    """

    home: tuple[bytes, bytes, bytes] | None
    proc_device: int
    agent_uid: int
    command_uid: int


class StepError(Exception):
    """A step failed. `number` is the kernel's errno, or 0 for a judgement of ours; `searched` is the PATH."""

    def __init__(self, step: str, number: int = NO_ERRNO, searched: str = "") -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number
        self.searched = searched


class Target(NamedTuple):
    """Who the container's main process is: ids, capabilities as bit masks, umask, limits that differ from ours."""

    uid: int
    gid: int
    groups: list[int]
    bounding: int
    umask: int
    limits: list[tuple[int, tuple[int, int]]]


def identify(process: int, job: Job, own: Own) -> Target:
    """Whether this is (still) the main process of the container, and who it is. `process` is a descriptor of /proc/PID.

    Raises:
        StepError: it is gone, or it is not.
    """
    try:
        return _identify(process, job, own)
    except OSError:
        raise StepError(GONE, errno.ESRCH) from None


def _identify(process: int, job: Job, own: Own) -> Target:
    text = read_at(process, "stat")
    fields = text[text.rindex(b")") + 2 :].split()
    if int(fields[19]) != job.started or int(fields[1]) != 0:
        raise StepError(GONE, errno.ESRCH)
    if own.home is None:
        raise StepError("identity: the agent's own container cannot be told")
    home = home_of(read_at(process, "mountinfo"))
    if home is None or home != (*own.home[:2], job.container) or home == own.home:
        raise StepError("identity: the process is not of that container")
    status = {}
    for line in read_at(process, "status").splitlines():
        key, _, value = line.partition(b":")
        status[key] = value.split()
    return Target(
        uid=int(status[b"Uid"][3]),  # the file-system ids: what the kernel compares
        gid=int(status[b"Gid"][3]),
        groups=[int(group) for group in status[b"Groups"]],
        bounding=int(status[b"CapBnd"][0], 16),
        umask=int(status[b"Umask"][0], 8) if b"Umask" in status else 0o022,
        limits=limits_of(read_at(process, "limits")),
    )


def home_of(mountinfo: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(device, path prefix, container name) of a process, by the kubelet's termination-log mount (proc(5), field 4)."""
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        if len(fields) < 5:
            continue
        parts = fields[3].split(b"/")
        if len(parts) >= 6 and parts[-3] == b"containers" and parts[-5] == b"pods" and len(parts[-1]) == 8:
            return fields[2], b"/".join(parts[:-2]), parts[-2]
    return None


def limits_of(text: bytes) -> list[tuple[int, tuple[int, int]]]:
    """The limits of the main process that are not ours already, none of them above what we may set."""
    found = []
    for line in text.splitlines():
        limit = LIMITS.get(line[:_LIMIT_NAME_WIDTH].rstrip())
        if limit is None:
            continue
        present = resource.getrlimit(limit)
        soft, hard = [
            resource.RLIM_INFINITY if value == b"unlimited" else int(value)
            for value in line[_LIMIT_NAME_WIDTH:].split()[:2]
        ]
        hard = _lesser(hard, present[1])
        wanted = (_lesser(soft, hard), hard)
        if wanted != present:
            found.append((limit, wanted))
    return found


def _lesser(first: int, second: int) -> int:
    if resource.RLIM_INFINITY in (first, second):
        return second if first == resource.RLIM_INFINITY else first
    return min(first, second)


def environ_of(process: int) -> list[tuple[bytes, bytes]]:
    """The target's environment.

    Raises:
        StepError: not readable (`environ`), or its memory was used for something else (`environment`; Redis does that).
    """
    try:
        data = read_at(process, "environ", MAX_ENVIRON_BYTES)
    except OSError as error:
        raise StepError("environ", error.errno or 0) from None
    pairs = []
    for entry in data.split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals and key and not set(key) & set(b" \t\n"):  # a title may have its own "="
            pairs.append((key, value))
        elif entry:
            raise StepError("environment")
    if not pairs or b"\0\0" in data:
        raise StepError("environment")
    return pairs


def read_at(folder: int, name: str, limit_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A small file relative to a descriptor. Raises OSError, also if it is larger than the limit."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return read_all(descriptor, limit_bytes)
    finally:
        os.close(descriptor)


def attempt(step: str, call: Callable[..., T], *arguments: object, **options: object) -> T:
    """Call it; what the kernel says no to is a StepError with the step's name."""
    try:
        return call(*arguments, **options)
    except OSError as error:
        raise StepError(step, error.errno or 0) from None
