"""Who is who in the pod, from /proc alone: which process is the main one of which container.

The kubelet mounts a termination log into every container, and the mount's root names pod and container
(`.../pods/UID/containers/NAME/8 hex`). A container's main process has no parent in the shared process namespace, and
is the earliest that started. It is held by a pidfd: pids are reused, and containers restart.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.pod.target import home_of

MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MainProcess:
    """The main process of a container. `started` (clock ticks since boot) tells it from a later user of its pid.

    `state` is the letter of proc(5): R, S, D run; T is stopped. `pidfd` becomes readable when it ends; -1 if none.
    """

    container: str
    pid: int
    started: int
    uid: int
    gid: int
    state: str = field(compare=False)
    pidfd: int = field(default=-1, compare=False)

    @property
    def lives(self) -> bool:
        """Whether it still does."""
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)


@dataclass(frozen=True, slots=True)
class Census:
    """Everybody that was found, by container. `own` is the agent's container, None if it cannot be told.

    `shared` is whether other containers' processes can be seen at all.
    """

    mains: dict[str, MainProcess]
    own: str | None
    shared: bool

    @property
    def siblings(self) -> dict[str, MainProcess]:
        """Without the agent's own container."""
        return {name: main for name, main in self.mains.items() if name != self.own}

    @property
    def why_not(self) -> str:
        """Why no sibling container can be entered, with what to change; empty if some can."""
        if self.siblings:
            return ""
        if not self.shared:
            return "no other container's process is seen: set shareProcessNamespace: true in the pod"
        if self.own is None:
            return (
                "which process is which container's cannot be told: the kubelet's termination log is not mounted in "
                "the agent's container; run it in Kubernetes"
            )
        return "no other container of the pod runs now: look at the pod's status"


class Neighbours:
    """The pod's main processes, kept as long as they live, so that an attempt need not look at everybody."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self.census = Census({}, None, shared=False)

    def main(self, container: str) -> MainProcess | None:
        """The container's main process, if it is known and lives."""
        known = self.census.mains.get(container)
        return known if known is not None and known.lives else None

    def look(self) -> Census:
        """Look at every process once, without touching what is known: for a thread. `adopt` what it returns."""
        return take_census(self._proc)

    def adopt(self, census: Census) -> None:
        """Know what was seen: new pidfds are taken, those of the dead are closed."""
        mains = {}
        for name, main in census.mains.items():
            known = self.census.mains.get(name)
            held = replace(main, pidfd=known.pidfd) if known == main and known is not None else _held(self._proc, main)
            if held is not None:
                mains[name] = held
        kept = {main.pidfd for main in mains.values()}
        for known in self.census.mains.values():
            if known.pidfd not in kept:
                os.close(known.pidfd)
        self.census = Census(mains, census.own, census.shared)


def take_census(proc: Path = Path("/proc")) -> Census:
    """Look at every process once. What vanishes meanwhile is left out; nothing is held."""
    me = os.getpid()
    own = _home(proc, me)
    users = _read(proc / str(me) / "uid_map")
    found: dict[str, MainProcess] = {}
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        stat = _stat(proc, pid)
        if stat is None or stat[0] in "ZX" or stat[1] != 0:
            continue
        if _read(proc / entry.name / "uid_map") != users:
            continue  # a user namespace of its own: it can show us what it likes
        home = _home(proc, pid)
        if home is None or own is None or home[:2] != own[:2]:
            continue  # another pod's, or one that forged the line: device and path must be as in ours
        name = os.fsdecode(home[2])
        known = found.get(name)
        if known is None or stat[2] < known.started:
            uid, gid = _ids(proc, pid)
            found[name] = MainProcess(name, pid, stat[2], uid, gid, stat[0])
    return Census(found, os.fsdecode(own[2]) if own else None, _shared(proc, me))


def _held(proc: Path, main: MainProcess) -> MainProcess | None:
    """The same with a pidfd, looked at again once it is held."""
    try:
        pidfd = os.pidfd_open(main.pid)
    except OSError:
        return None
    stat = _stat(proc, main.pid)
    if stat is None or stat[2] != main.started:
        os.close(pidfd)
        return None
    return replace(main, pidfd=pidfd)


def _shared(proc: Path, pid: int) -> bool:
    """Whether process 1 is neither us nor above us: then the process namespace is the pod's."""
    while pid > 1 and (stat := _stat(proc, pid)) is not None:
        pid = stat[1]
    return pid != 1


def _home(proc: Path, pid: int) -> tuple[bytes, bytes, bytes] | None:
    return home_of(_read(proc / str(pid) / "mountinfo"))


def _ids(proc: Path, pid: int) -> tuple[int, int]:
    """(uid, gid): the file-system ones, by which the kernel judges who may look."""
    ids = {}
    for line in _read(proc / str(pid) / "status").splitlines():
        key, _, values = line.partition(b":")
        if key in (b"Uid", b"Gid"):
            ids[key] = int(values.split()[3])
    return ids.get(b"Uid", -1), ids.get(b"Gid", -1)


def _stat(proc: Path, pid: int) -> tuple[str, int, int] | None:
    """(state, parent, start time)."""
    try:
        fields = _read(proc / str(pid) / "stat").rpartition(b") ")[2].split(maxsplit=20)
        return fields[0].decode(), int(fields[1]), int(fields[19])
    except (IndexError, ValueError):
        return None


def _read(path: Path) -> bytes:
    """A file of /proc, bounded; empty if it is gone."""
    try:
        with path.open("rb", buffering=0) as file:
            pieces, left = [], MAX_FILE_BYTES
            while left > 0 and (piece := file.read(min(left, 65536))):
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)
    except OSError:
        return b""
