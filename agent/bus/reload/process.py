"""Which process is the broker, and telling it to read its files again: SIGHUP, and to nobody else.

SIGHUP ends whoever does not expect it, so a process gets it only if it has the broker's name and our own user, is the
only one of that name (or the one in the pid file), and catches that signal; a pidfd holds on to it while we look.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.contract.errors import PodhookError

#: Of a name, the kernel keeps so many bytes (proc(5), comm).
_COMM_BYTES = 15
_STATUS_BYTES = 1 << 16
_PID_FILE_BYTES = 32
_DEAD = ("Z", "X", "x")


class NotToldError(PodhookError):
    """The broker could not be told; says what to change. It is tried again."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc/PID/status has it. `catches_hangup`: it has a handler for SIGHUP."""

    pid: int
    name: str
    real_uid: int
    uid: int
    catches_hangup: bool
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which process is meant: what it is called, and where its number is written, if anywhere."""

    name: str
    pid_file: Path | None = None


def tell(wanted: Wanted, proc: Path = Path("/proc")) -> int:
    """Send SIGHUP to the broker; returns its process number.

    Raises:
        NotToldError: there is no such process, or more than one, or it is not ours to signal, or not ready for it.
    """
    pid = choose(wanted, list(processes(proc)), uid=os.geteuid(), own=os.getpid()).pid
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError) as error:
        raise NotToldError(
            f'"{wanted.name}" (process {pid}) cannot be held on to: {error}; this needs Linux 5.3'
        ) from (error)
    try:
        # It may have ended meanwhile, and somebody else have its number: what we hold is what we look at.
        choose(wanted, list(processes(proc)), uid=os.geteuid(), own=os.getpid(), pid=pid)
        signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    except OSError as error:
        raise NotToldError(f'"{wanted.name}" (process {pid}) takes no signal: {error.strerror}') from error
    finally:
        os.close(descriptor)
    return pid


def choose(wanted: Wanted, seen: Sequence[Process], *, uid: int, own: int, pid: int = 0) -> Process:
    """The one process that is meant. `own` is our process number; `pid`, if given, the only one that will do.

    Raises:
        NotToldError: see `tell`.
    """
    name = wanted.name
    if wanted.pid_file is not None:
        number = _number_in(wanted.pid_file)
        found = next((each for each in seen if each.pid == number and not each.dead), None)
        if found is None:
            raise NotToldError(f"{wanted.pid_file} names process {number}, which does not run; is the broker down?")
        if found.name != _cut(name):
            raise NotToldError(
                f'{wanted.pid_file} names process {number}, which is "{found.name}" and not "{name}"; '
                "an old file, or give --process NAME"
            )
        fitting = [found]
    else:
        fitting = [each for each in seen if each.name == _cut(name) and each.pid > 0 and not each.dead]
    if not fitting:
        raise NotToldError(_nobody(name, seen, own))
    if len(fitting) > 1:
        numbers = ", ".join(str(each.pid) for each in sorted(fitting, key=lambda each: each.pid)[:8])
        raise NotToldError(f'{len(fitting)} processes are called "{name}" ({numbers}); give --pid-file FILE')
    (broker,) = fitting
    if pid not in (0, broker.pid):
        raise NotToldError(f'"{name}" is process {broker.pid} now, and was {pid} a moment ago')
    if (broker.real_uid, broker.uid) != (uid, uid):
        raise NotToldError(
            f'"{name}" (process {broker.pid}) runs as uid {broker.uid}, and this as {uid}; '
            f"run it as the same user (runAsUser: {broker.uid})"
        )
    if not broker.catches_hangup:
        raise NotToldError(
            f'"{name}" (process {broker.pid}) does not expect SIGHUP, which would end it; is it starting?'
        )
    return broker


def _nobody(name: str, seen: Sequence[Process], own: int) -> str:
    alone = own == 1 or not any(each.pid == 1 for each in seen)
    # Not how many there are: that would be another sentence each second, and the log has each sentence once.
    here = " (only this container's own processes are to be seen)" if alone else ""
    return (
        f'no process is called "{name}"{here}; if the broker runs in another container of this pod, set '
        "shareProcessNamespace: true in its spec; if it has another name, give --process NAME"
    )


def _number_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            text = file.read(_PID_FILE_BYTES + 1)
    except OSError as error:
        raise NotToldError(
            f"pid file {path}: {error.strerror}; is the broker down, or its pid_file another one?"
        ) from error
    if len(text) > _PID_FILE_BYTES or not text.strip().isdigit() or not 0 < int(text) < 1 << 31:
        raise NotToldError(f"pid file {path} has no process number in it; give --process NAME instead")
    return int(text)


def _cut(name: str) -> str:
    return os.fsencode(name)[:_COMM_BYTES].decode("utf-8", "replace")


# -- /proc


def processes(proc: Path) -> Iterator[Process]:
    """Every other process that is to be seen; those that end meanwhile are left out."""
    own = os.getpid()
    for entry in proc.iterdir():
        if entry.name.isdigit() and int(entry.name) != own:
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                yield _process(int(entry.name), entry)


def _process(pid: int, entry: Path) -> Process:
    with (entry / "status").open("rb") as file:
        text = file.read(_STATUS_BYTES).decode("utf-8", "replace")
    said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    uids = said["Uid"].split()
    caught = int(said["SigCgt"], 16)
    with (entry / "comm").open("rb") as file:  # `Name` in status is escaped
        name = file.read(_COMM_BYTES + 1).decode("utf-8", "replace").removesuffix("\n")
    dead = said["State"].split()[0] in _DEAD
    return Process(pid, name, int(uids[0]), int(uids[1]), bool(caught >> (signal.SIGHUP - 1) & 1), dead)
