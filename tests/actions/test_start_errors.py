"""What is said of a command that could not be started; read by people, so it is compared word for word."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from agent.actions import start_errors
from agent.actions.start_errors import not_started, shown
from agent.contract.errors import ErrorCode
from agent.contract.states import Outcome
from agent.pod import launcher, stepping, target
from agent.pod.processes import StartError
from agent.pod.target import GONE

CANNOT = "cannot enter container 'db': "
TRY_AGAIN = "the container is starting or was started again: try again"
NOT_DUMPABLE = (
    "its main process is not dumpable, or holds capabilities that the agent has not: run the container as its own user "
    "(runAsUser), or give the agent's container the runtime's default capabilities"
)
LACKS = "the agent's container lacks one of SETUID, SETGID, SYS_CHROOT, KILL: give it those capabilities"
LIMIT = "the pod is at a limit of processes, memory or files: raise it, or try again later"
SEE_LOG = "see the agent's log"
PRETENDS = (
    "what looks like its main process is none: look for a process in the pod that pretends to be another container's"
)
NOT_FOUND = "check its spelling, the interpreter in its #! line, and the image"
EXECUTABLE = "it must be a program with execute permission, or a script that begins with #!"
TOO_LONG = "arguments and environment are too long: put them into a file"


def error(step: str, number: int = 0, searched: str = "") -> StartError:
    return StartError(OSError(number, os.strerror(number) if number else ""), step, searched)


ENTERING = {
    ("root", errno.EACCES): f"root: Permission denied; {NOT_DUMPABLE}",
    ("cwd", errno.EACCES): f"cwd: Permission denied; {NOT_DUMPABLE}",
    ("environ", errno.EACCES): f"environ: Permission denied; {NOT_DUMPABLE}",
    ("ns/user", errno.EACCES): f"ns/user: Permission denied; {NOT_DUMPABLE}",
    ("root", errno.ESRCH): f"root: No such process; {TRY_AGAIN}",
    ("root", errno.ENOENT): f"root: No such file or directory; {TRY_AGAIN}",
    (GONE, errno.ESRCH): f"{GONE}: No such process; {TRY_AGAIN}",
    ("identity: the process is not of that container", 0): (
        f"identity: the process is not of that container; {PRETENDS}"
    ),
    ("identity: another user namespace", 0): f"identity: another user namespace; {PRETENDS}",
    ("identity: it was not dropped", errno.EPERM): f"identity: it was not dropped: Operation not permitted; {LACKS}",
    ("open /proc/PID", errno.ENOENT): f"open /proc/PID: No such file or directory; {TRY_AGAIN}",
    ("setfsuid", errno.EPERM): f"setfsuid: Operation not permitted; {LACKS}",
    ("chroot", errno.EPERM): f"chroot: Operation not permitted; {LACKS}",
    ("setresuid", errno.EPERM): f"setresuid: Operation not permitted; {LACKS}",
    ("setresuid", errno.EAGAIN): f"setresuid: Resource temporarily unavailable; {LIMIT}",
    ("chroot", errno.EACCES): f"chroot: Permission denied; {SEE_LOG}",
    ("capabilities of root", errno.EPERM): (
        "capabilities of root: Operation not permitted; the agent's container lacks SETPCAP, which running as root "
        "needs: give it that, or use another user"
    ),
    ("user: unknown", 0): ("exec.user 'bob' is not in its /etc/passwd; use a name that is there, or uid or uid:gid"),
    ("user: not an id", 0): (
        "exec.user 'bob' is no user; write a name of its /etc/passwd, uid or uid:gid; ids go from 0 to 4294967294"
    ),
    ("user: another name of root", 0): (
        "exec.user 'bob' stands for uid 0 in its /etc/passwd; write root if root is meant"
    ),
    ("user: podhook's own", 0): "exec.user 'bob' is a user that podhook keeps for itself; use another",
    ("user: /etc/passwd", errno.EACCES): (
        "user: /etc/passwd: Permission denied; make it a file that the container's user can read, or write uid or "
        "uid:gid"
    ),
    ("user: /etc/passwd", errno.ENOENT): (
        "user: /etc/passwd: No such file or directory; make it a file that the container's user can read, or write uid "
        "or uid:gid"
    ),
    ("user: /etc/passwd", errno.ELOOP): (
        "user: /etc/passwd: Too many levels of symbolic links; make it a file that the container's user can read, or "
        "write uid or uid:gid"
    ),
    ("container", errno.ESRCH): "it does not run now; try again when it does",
    ("launcher: it was started anew", 0): "the launcher was started anew before it had begun; try again",
    ("launcher", errno.ETIMEDOUT): f"launcher: Connection timed out; {SEE_LOG}",
    ("launcher: no child", errno.EAGAIN): f"launcher: no child: Resource temporarily unavailable; {LIMIT}",
    ("launcher: no child", errno.ENOMEM): f"launcher: no child: Cannot allocate memory; {LIMIT}",
    ("launcher: no child", errno.EMFILE): f"launcher: no child: Too many open files; {LIMIT}",
    ("launcher: stepping in", errno.ENFILE): f"launcher: stepping in: Too many open files in system; {LIMIT}",
    ("launcher: the child ended", 0): f"launcher: the child ended; {SEE_LOG}",
    ("launcher: ValueError", 0): f"launcher: ValueError; {SEE_LOG}",
    ("launcher: stepping in took too long", errno.ETIMEDOUT): (
        f"launcher: stepping in took too long: Connection timed out; {SEE_LOG}"
    ),
    ("some step of a later podhook", errno.EIO): f"some step of a later podhook: Input/output error; {SEE_LOG}",
}


@pytest.mark.parametrize(("step", "number"), ENTERING, ids=[f"{step} {number}" for step, number in ENTERING])
def test_what_stands_in_the_way_is_named_with_what_to_do(step, number):
    result = not_started("dump", "db", error(step, number), "bob")
    assert (result.outcome, result.exit_code, result.error.code) == (Outcome.FAILED, None, ErrorCode.START_FAILED)
    assert result.error.message == CANNOT + ENTERING[step, number]


EXECUTING = {
    ("dump", errno.ENOENT): (
        ErrorCode.NOT_FOUND,
        127,
        f"command 'dump' was not found in container 'db' (searched in PATH /bin:/opt); {NOT_FOUND}",
    ),
    ("dump", errno.ENOTDIR): (
        ErrorCode.NOT_FOUND,
        127,
        f"command 'dump' was not found in container 'db' (searched in PATH /bin:/opt); {NOT_FOUND}",
    ),
    ("/bin/dump", errno.ENOENT): (
        ErrorCode.NOT_FOUND,
        127,
        f"command '/bin/dump' was not found in container 'db'; {NOT_FOUND}",
    ),
    ("./dump", errno.ENOENT): (
        ErrorCode.NOT_FOUND,
        127,
        f"command './dump' was not found in container 'db'; {NOT_FOUND}",
    ),
    ("dump", errno.EACCES): (
        ErrorCode.NOT_EXECUTABLE,
        126,
        f"command 'dump' in container 'db' is not executable: Permission denied; {EXECUTABLE}",
    ),
    ("dump", errno.ENOEXEC): (
        ErrorCode.NOT_EXECUTABLE,
        126,
        f"command 'dump' in container 'db' is not executable: Exec format error; {EXECUTABLE}",
    ),
    ("dump", errno.EISDIR): (
        ErrorCode.NOT_EXECUTABLE,
        126,
        f"command 'dump' in container 'db' is not executable: Is a directory; {EXECUTABLE}",
    ),
    ("dump", errno.EPERM): (
        ErrorCode.NOT_EXECUTABLE,
        126,
        f"command 'dump' in container 'db' is not executable: Operation not permitted; {EXECUTABLE}",
    ),
    ("dump", errno.E2BIG): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Argument list too long; {TOO_LONG}",
    ),
    ("dump", errno.ENOMEM): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Cannot allocate memory; {LIMIT}",
    ),
    ("dump", errno.EAGAIN): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Resource temporarily unavailable; {LIMIT}",
    ),
    ("dump", errno.EMFILE): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Too many open files; {LIMIT}",
    ),
    ("dump", errno.ENFILE): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Too many open files in system; {LIMIT}",
    ),
    ("dump", errno.ETXTBSY): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Text file busy; {SEE_LOG}",
    ),
    ("dump", errno.EINVAL): (
        ErrorCode.START_FAILED,
        None,
        f"command 'dump' could not start in container 'db': Invalid argument; {SEE_LOG}",
    ),
}


@pytest.mark.parametrize(("program", "number"), EXECUTING, ids=[f"{who} {errno.errorcode[n]}" for who, n in EXECUTING])
def test_what_cannot_be_executed_has_a_shells_code_and_the_kernels_reason(program, number):
    code, exit_code, message = EXECUTING[program, number]
    result = not_started(program, "db", error("execve", number, "/bin:/opt"))
    assert (result.outcome, result.exit_code, result.error.code) == (Outcome.FAILED, exit_code, code)
    assert result.error.message == message


def test_an_environment_that_was_overwritten_is_a_code_of_its_own():
    result = not_started("dump", "db", error("environment"))
    assert (result.outcome, result.exit_code, result.error.code) == (
        Outcome.FAILED,
        None,
        ErrorCode.ENVIRONMENT_UNAVAILABLE,
    )
    assert result.error.message == (
        "the main process of container 'db' overwrote its environment, so command 'dump' was not started; give "
        "exec.env, or write exec.environment: minimal"
    )


def steps() -> set[str]:
    """Every step that the launcher's files have, as they are written there."""
    found = set()
    for module in (target, stepping, launcher):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            place = {"StepError": 0, "attempt": 0, "_failed": 1}.get(name)
            if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                found.add(str(node.args[place].value))
    return found | {GONE}


NUMBERS = [0, *errno.errorcode]


@pytest.mark.parametrize("step", sorted(steps() | {step for step, _ in ENTERING} | {""}))
def test_whatever_stood_in_the_way_the_message_has_a_next_step_and_the_container(step):
    for number in NUMBERS:
        message = not_started("dump", "db", error(step, number), "bob").error.message
        before, semicolon, after = message.partition("; ")
        assert "'db'" in before, f"{step} {number}: the container is not named in {message!r}"
        assert semicolon, f"{step} {number}: no next step in {message!r}"
        assert after.strip(), f"{step} {number}: no next step in {message!r}"
        assert "Success" not in message, f"{step} {number}: {message!r}"
        assert len(message) < 500


def test_the_steps_are_found_where_they_are_written():
    assert {"root", "chroot", "execve", "environ", "user: unknown", "launcher: the child ended"} <= steps()


def test_every_judgement_with_a_sentence_of_its_own_is_one_that_can_come():
    ours = {"container"}  # the agent's own, before the launcher is asked
    assert set(start_errors._JUDGEMENTS) - ours <= steps()


@pytest.mark.parametrize(
    ("program", "seen"),
    [("ls", "'ls'"), ("x" * 200, repr("x" * 200)), ("x" * 201, repr("x" * 200 + "...")), ("a\nb", r"'a\nb'")],
)
def test_a_program_is_shown_quoted_and_cut(program, seen):
    assert shown(program) == seen


def test_a_long_path_is_shown_as_it_came():
    message = not_started("dump", "db", error("execve", errno.ENOENT, "/a:" * 300)).error.message
    assert message.endswith(NOT_FOUND)
