"""Who is still there: what an attempt started, found by its mark, independently of how the agent looks for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from agent.pod.processes import MARK_VARIABLE


def living(trigger_id: str) -> list[int]:
    """Pids of everything that carries the mark of an attempt and is not a zombie."""
    mark = f"{MARK_VARIABLE}={trigger_id}".encode()
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and mark in _environment(pid) and alive(pid)]


def _environment(pid: int) -> list[bytes]:
    """Its variables; in the middle of an execve they read as empty for a moment."""
    for _ in range(20):
        try:
            if environment := Path(f"/proc/{pid}/environ").read_bytes():
                return environment.split(b"\0")
        except OSError:
            break
        if not alive(pid) or not Path(f"/proc/{pid}/cmdline").read_bytes():
            break  # gone, or a kernel thread
        time.sleep(0.002)
    return []


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def zombies() -> list[int]:
    """Our children that ended and were not reaped."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, children) if not alive(pid)]


def descriptors() -> dict[int, str]:
    """What is open."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found


async def until(condition: Callable[[], object], what: str, within_seconds: float = 10) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_seconds} s"
        await asyncio.sleep(0.005)


async def pid_in(file: Path) -> int:
    """The pid that a program writes into a file, on a line of its own."""
    await until(lambda: file.exists() and file.read_text().endswith("\n"), f"{file.name} has a pid")
    return int(file.read_text())


def end(*pids: int) -> None:
    """End what a test left on purpose."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
