"""A few lines between us and a program that must not outlive us: ask the kernel for a signal, then become it.

Run as `python -I -S leash.py PARENT_PID PROGRAM ARGUMENT...`; the standard library only.

Why not `preexec_fn`: it runs Python in a forked copy of a process with threads (Python 3.12 warns of it). Why
not a pipe that a watchdog reads: that is one more process to keep alive. The parent-death signal survives
execve (prctl(2)); it belongs to the *thread* that forked, so fork from one that stays.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: list[str]) -> None:
    """Become `program`, to be ended by SIGTERM when `parent` dies, however it dies."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 (no shell is meant)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
