"""Small disks that can be full: a tmpfs an agent, in a mount namespace of the harness's own.

Mounts of such a namespace go with the last process in it, so nothing is left behind, however the harness ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
SIZE = "12m"
_STUFF = "stuff"


def private_mounts() -> str:
    """Give this process mounts of its own; empty, or why disks cannot be made. Call before anything is started."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())} (root with CAP_SYS_ADMIN can)"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def mount(directory: Path) -> str:
    """Make a small disk there; empty, or why not."""
    directory.mkdir(parents=True, exist_ok=True)
    arguments = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "podhook-faults", str(directory)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False).stderr.strip()


def fill(directory: Path) -> None:
    """Leave no room."""
    with contextlib.suppress(OSError), (directory / _STUFF).open("ab", buffering=0) as stuff:
        while True:
            stuff.write(bytes(4096))


def free(directory: Path) -> None:
    """Give the room back."""
    (directory / _STUFF).unlink(missing_ok=True)
