"""What is said of a command that could not be started: which step failed, why, and what to change."""

from __future__ import annotations

import errno

from agent.contract.errors import ErrorCode
from agent.contract.messages import Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.pod.processes import StartError

#: A shell's exit codes for what could not be started (POSIX, section 2.8.2).
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_SHOWN_CHARACTERS = 200

NOT_DUMPABLE = (
    "its main process is not dumpable, or holds capabilities that the agent has not: run the container as its own user "
    "(runAsUser), or give the agent's container the runtime's default capabilities"
)
LACKS_CAPABILITY = "the agent's container lacks one of SETUID, SETGID, SYS_CHROOT, KILL: give it those capabilities"
TRY_AGAIN = "the container is starting or was started again: try again"
ANOTHER_PODS = (
    "what looks like its main process is none: look for a process in the pod that pretends to be another container's"
)
SEE_LOG = "see the agent's log"

#: Step of the launcher -> (what is wrong, what to do), where the step alone says it.
_JUDGEMENTS = {
    "user: unknown": (
        "exec.user {user!r} is not in its /etc/passwd",
        "use a name that is there, or uid or uid:gid",
    ),
    "user: not an id": (
        "exec.user {user!r} is no user",
        "write a name of its /etc/passwd, uid or uid:gid; ids go from 0 to 4294967294",
    ),
    "user: another name of root": (
        "exec.user {user!r} stands for uid 0 in its /etc/passwd",
        "write root if root is meant",
    ),
    "user: podhook's own": (
        "exec.user {user!r} is a user that podhook keeps for itself",
        "use another",
    ),
    "environment: too many secrets": (
        "its variables whose names look secret are more than 128, or larger than 64 KiB together: too many to redact",
        "put large secrets into files",
    ),
    "environment": ("its main process overwrote its environment", "what it was started with is not known"),
    "container": ("it does not run now", "try again when it does"),
    "launcher: it was started anew": ("the launcher was started anew before it had begun", "try again"),
}


#: Steps that look at the container's main process.
_OF_THE_PROCESS = ("open /proc/PID", "root", "cwd", "environ", "ns/user")


def not_started(program: str, container: str, error: StartError, user: str = "") -> Result:
    """The result of a command that did not start: 127 not found, 126 not executable, or what stood in the way."""
    where = f"in container {container!r}" if container else "on this machine"
    if error.step == "environment":
        message = (
            f"the main process of container {container!r} overwrote its environment, so command "
            f"{shown(program)} was not started; give exec.env, or write exec.environment: minimal"
        )
        return failure(Outcome.FAILED, ErrorCode.ENVIRONMENT_UNAVAILABLE, message)
    if error.step != "execve":
        message = f"cannot enter container {container!r}: {obstacle(error, user)}"
        return failure(Outcome.FAILED, ErrorCode.START_FAILED, message)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        searched = "" if "/" in program else f" (searched in PATH {error.searched})"
        message = (
            f"command {shown(program)} was not found {where}{searched}; "
            "check its spelling, the interpreter in its #! line, and the image"
        )
        return failure(Outcome.FAILED, ErrorCode.NOT_FOUND, message).model_copy(update={"exit_code": EXIT_NOT_FOUND})
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM):
        message = (
            f"command {shown(program)} {where} is not executable: {error}; "
            "it must be a program with execute permission, or a script that begins with #!"
        )
        return failure(Outcome.FAILED, ErrorCode.NOT_EXECUTABLE, message).model_copy(
            update={"exit_code": EXIT_NOT_EXECUTABLE}
        )
    message = f"command {shown(program)} could not start {where}: {error}; {_resource_hint(error)}"
    return failure(Outcome.FAILED, ErrorCode.START_FAILED, message)


def shown(program: str) -> str:
    """A program's name as messages show it: quoted, and not longer than a line."""
    return repr(program if len(program) <= _SHOWN_CHARACTERS else f"{program[:_SHOWN_CHARACTERS]}...")


def obstacle(error: StartError, user: str = "") -> str:
    """Why a container cannot be entered, and what to change."""
    if error.step in _JUDGEMENTS:
        wrong, next_step = _JUDGEMENTS[error.step]
        return f"{wrong.format(user=user)}; {next_step}"
    wrong = f"{error.step}: {error}" if error.errno else error.step
    return f"{wrong}; {_next_step(error)}"


def _next_step(error: StartError) -> str:
    """What to change so that a container can be entered."""
    if error.errno == errno.ESRCH or (error.errno == errno.ENOENT and error.step in _OF_THE_PROCESS):
        return TRY_AGAIN
    if error.errno == errno.EACCES and error.step in _OF_THE_PROCESS:
        return NOT_DUMPABLE
    if error.step == "user: /etc/passwd":
        return "make it a file that the container's user can read, or write uid or uid:gid"
    if error.step == "capabilities of root":
        return "the agent's container lacks SETPCAP, which running as root needs: give it that, or use another user"
    if error.errno == errno.EPERM:
        return LACKS_CAPABILITY
    if error.step.startswith("identity"):
        return ANOTHER_PODS
    return _resource_hint(error)


def _resource_hint(error: StartError) -> str:
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return "the pod is at a limit of processes, memory or files: raise it, or try again later"
    if error.errno in (errno.E2BIG, errno.EFBIG):
        return "arguments and environment are too long: put them into a file"
    return SEE_LOG
