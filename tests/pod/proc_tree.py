"""A /proc made of files, for code that reads the real one; lines as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path

PREFIX = "/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555"
DEVICE = "8:1"
#: The first line of every user namespace that is the node's own.
NODE_USERS = "         0          0 4294967295\n"
OTHER_USERS = "         0     100000      65536\n"
#: What a process has that has no limit but the usual ones; one that is ours already.
OWN_LIMITS = Path("/proc/self/limits").read_text(encoding="ascii")
ROOT_MOUNT = "22 27 0:21 / /proc rw,relatime - proc proc rw\n"


def log_line(container: str, *, prefix: str = PREFIX, device: str = DEVICE, at: str = "/dev/termination-log") -> str:
    """The line of the termination log's mount in /proc/PID/mountinfo (proc(5))."""
    root = f"{prefix}/containers/{container}/1a2b3c4d"
    return f"1841 1832 {device} {root} {at} rw,relatime - ext4 /dev/sda1 rw,discard\n"


def stat_line(pid: int, *, parent: int = 0, started: int = 1000, state: str = "S", name: str = "mysqld") -> str:
    """/proc/PID/stat: the state is field 3, the parent 4, the start time 22."""
    fields = [state, parent, pid, pid, *[0] * 15, started, *[0] * 30]
    return f"{pid} ({name}) {' '.join(map(str, fields))}\n"


def status_lines(
    uid: int, gid: int, groups: str = "", *, umask: str | None = "0027", bounding: int = 0xA80425FB
) -> str:
    """/proc/PID/status, the lines that matter; real, effective, saved and file-system ids differ on purpose."""
    lines = ["Name:\tmysqld", *([f"Umask:\t{umask}"] if umask is not None else []), "State:\tS (sleeping)"]
    lines += [f"Uid:\t1\t2\t3\t{uid}", f"Gid:\t4\t5\t6\t{gid}", f"Groups:\t{groups} ", f"CapBnd:\t{bounding:016x}"]
    return "\n".join(lines) + "\n"


class ProcTree:
    """A directory that looks like /proc."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "sys").mkdir(parents=True)
        (path / "uptime").write_text("1.0 1.0\n")

    def process(
        self,
        pid: int,
        container: str | None = None,
        *,
        lines: str | None = None,
        users: str = NODE_USERS,
        **stat: object,
    ) -> Path:
        """A process, the main one of a container unless it is said to be something else."""
        folder = self.path / str(pid)
        folder.mkdir()
        if lines is None:
            lines = ROOT_MOUNT + (log_line(container) if container is not None else "")
        (folder / "mountinfo").write_text(lines)
        (folder / "stat").write_text(stat_line(pid, **stat))
        (folder / "status").write_text(status_lines(999, 998, "27 999"))
        (folder / "uid_map").write_text(users)
        (folder / "limits").write_text(OWN_LIMITS)
        return folder

    def agent(self, container: str | None = "agent", **more: object) -> None:
        """Ourselves."""
        self.process(os.getpid(), container, **more)
