"""The child: steps into a container for good, and becomes the command.

Between stepping in and execve everything that could be loaded or looked up belongs to somebody else, so there are only
prepared system calls: no import, no traceback, no name of the container resolved but the program's own (and
/etc/passwd, read as the container's user, when the hook asks for a user by name). What fails is told as (step, errno).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import stat

from agent.contract.secret_names import holds_secret
from agent.pod import kernel
from agent.pod.job import MAX_ID_DIGITS, MINIMAL_PATH, NO_ID, Job, parse_job, parse_user
from agent.pod.offspring import bear, read_all
from agent.pod.target import NO_ERRNO, Own, StepError, Target, attempt, environ_of, identify, read_at

#: Where the child tells what failed: the one descriptor that is left at execve, which closes it.
TELL = 3
MAX_JOB_BYTES = 256 * 1024
MAX_SEARCHED_BYTES = 1024
#: Of the container's variables that are secrets. More is refused: what is not known cannot be kept out of what is said,
#: and what is known is looked for in every byte of the output.
MAX_SECRETS_BYTES = 64 * 1024
MAX_SECRETS = 128


def wait_and_become(channel: int, own: Own) -> None:
    """Wait for a job and become it; end without one when the launcher is gone. Never returns."""
    step, number, searched = "launcher: reading the job", NO_ERRNO, ""
    try:
        signal.set_wakeup_fd(-1)
        os.dup2(channel, TELL, inheritable=False)
        os.closerange(TELL + 1, 1 << 20)
        mark, _, data = os.read(TELL, MAX_JOB_BYTES).partition(b" ")
        if not data:
            os._exit(0)
        become(parse_job(json.loads(data), int(mark)), own)
    except ValueError as error:
        step, number = f"launcher: {error}", errno.EINVAL
    except StepError as error:
        step, number, searched = error.step, error.number, error.searched
    except OSError as error:
        step, number = "launcher: stepping in", error.errno or NO_ERRNO
    except BaseException as error:  # noqa: BLE001 (no traceback: it would read files)
        step = f"launcher: {type(error).__name__}"
    with contextlib.suppress(BaseException):
        os.write(TELL, json.dumps({"step": step, "errno": number, "searched": searched}).encode())
    os._exit(127)


def become(job: Job, own: Own) -> None:
    """Step into the container and execute, or only look; never comes back when all is well.

    Nothing is open but the standard three and TELL, over which the read ends of the output are handed, and a file in
    memory with those variables of the container that are secrets, so that the agent can keep them out of what it says.

    Raises:
        StepError: which step failed, and why.
    """
    os.setsid()
    bear(job.mark)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    if job.look:
        kernel.send_descriptors(TELL, b"looked", [null, null, _in_memory(_secrets_of(job, own))])
        os._exit(0)
    inherited: list[tuple[bytes, bytes]] = []
    secrets: list[tuple[bytes, bytes]] = []
    if job.container is None:
        target = Target(own.command_uid, own.command_uid, [], 0, 0o022, [])
    else:
        target, inherited, secrets = _step_in(job, own)
    uid, gid = _ids(job, target, own)
    attempt("setfsuid", kernel.set_filesystem_ids, uid, gid)
    outputs = _pipes()  # as the command's user, so that it may open /dev/stdout again
    kernel.send_descriptors(TELL, b"about to execute", [outputs[0], outputs[2], _in_memory(secrets)])
    environment = dict(inherited)
    environment.update(job.environment)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.umask(target.umask)
    _drop_to(uid, gid, target)
    os.dup2(null, 0)
    os.dup2(outputs[1], 1)
    os.dup2(outputs[3], 2)
    os.closerange(TELL + 1, 1 << 20)  # close-on-exec acts only after the program's path was resolved
    try:
        for limit, values in target.limits:
            resource.setrlimit(limit, values)
        _execute(job.argv, environment)
    except (ValueError, TypeError, MemoryError):
        raise StepError("execve", errno.EINVAL) from None


def _secrets_of(job: Job, own: Own) -> list[tuple[bytes, bytes]]:
    """Which variables of the container's main process are secrets, read with its user's file-system identity.

    Raises:
        StepError: they cannot be read, or it is not (any more) the main process of that container.
    """
    process, target = _approach(job, own)
    attempt("setfsuid", kernel.set_filesystem_ids, target.uid, target.gid)
    _check_namespace(process)
    try:
        return [pair for pair in environ_of(process) if holds_secret(*pair)]
    except StepError:
        identify(process, job, own)  # of one that has just ended it reads as empty
        raise


def _approach(job: Job, own: Own) -> tuple[int, Target]:
    """A descriptor of the main process's directory in /proc, and who it is. Raises StepError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    process = attempt("open /proc/PID", os.open, f"/proc/{job.pid}", flags)
    if os.fstat(process).st_dev != own.proc_device:
        raise StepError("identity: /proc is not what it was")
    return process, identify(process, job, own)


def _check_namespace(process: int) -> None:
    """Whether it is in our user namespace: in one of its own it can show us what it likes. Raises StepError."""
    ours = os.readlink("/proc/self/ns/user")  # noqa: PTH115 (no pathlib here)
    theirs = attempt("ns/user", os.readlink, "ns/user", dir_fd=process)
    if ours != theirs:
        raise StepError("identity: another user namespace")


def _step_in(job: Job, own: Own) -> tuple[Target, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Who the container's main process is, what its command inherits, and which of its variables are secrets."""
    process, target = _approach(job, own)
    _share_oom_score(process)
    attempt("setfsuid", kernel.set_filesystem_ids, target.uid, target.gid)
    root = attempt("root", os.open, "root", os.O_PATH | os.O_CLOEXEC, dir_fd=process)
    cwd = attempt("cwd", os.open, "cwd", os.O_PATH | os.O_CLOEXEC, dir_fd=process)
    _check_namespace(process)
    inherited = [(b"PATH", MINIMAL_PATH), (b"HOME", b"/")]
    secrets: list[tuple[bytes, bytes]] = []
    try:
        whole = environ_of(process)
        secrets = [pair for pair in whole if holds_secret(*pair)]
        if job.inherit:
            inherited = whole
    except StepError:
        identify(process, job, own)  # of one that has just ended it reads as empty
        if job.inherit and not job.fallback:
            raise
    attempt("fchdir", os.fchdir, root)
    attempt("chroot", os.chroot, ".")
    try:
        os.fchdir(cwd)
    except OSError:
        os.chdir("/")
    for descriptor in (process, root, cwd):  # before anything is opened by a name
        os.close(descriptor)
    return target, inherited, secrets


def _share_oom_score(process: int) -> None:
    """As likely to be killed for want of memory as the container is; lowering it below ours is not allowed."""
    try:
        score = read_at(process, "oom_score_adj")
        own = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(own, score)
    except OSError:
        pass
    finally:
        os.close(own)


def _ids(job: Job, target: Target, own: Own) -> tuple[int, int]:
    """(uid, gid) to run as: the target's, or those of `exec.user`."""
    if not job.user:
        return target.uid, target.gid
    try:
        ids = parse_user(job.user, target.gid)
    except ValueError:
        raise StepError("user: not an id") from None
    if ids is None:
        ids = _look_up(job.user)
        if ids[0] == 0:
            raise StepError("user: another name of root")
    if ids[0] in (own.agent_uid, own.command_uid):
        raise StepError("user: podhook's own")
    return ids


def _look_up(name: bytes) -> tuple[int, int]:
    """The ids of a name in the container's /etc/passwd, which is opened as the container's user."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = attempt("user: /etc/passwd", os.open, b"/etc/passwd", flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise StepError("user: /etc/passwd", errno.EINVAL)
    for line in read_all(descriptor).splitlines():
        fields = line.split(b":")
        if len(fields) >= 4 and fields[0] == name and fields[2].isdigit() and fields[3].isdigit():
            ids = int(fields[2][-MAX_ID_DIGITS:]), int(fields[3][-MAX_ID_DIGITS:])
            if max(ids) >= NO_ID or max(len(fields[2]), len(fields[3])) > MAX_ID_DIGITS:
                raise StepError("user: not an id")
            return ids
    raise StepError("user: unknown")


def _drop_to(uid: int, gid: int, target: Target) -> None:
    """Become that user, with no more capabilities than the container has; look whether it is so."""
    allowed = 0
    if uid == 0:
        allowed = target.bounding
        attempt("capabilities of root", kernel.limit_bounding_set, allowed)
    attempt("setgroups", os.setgroups, target.groups)
    attempt("setresgid", os.setresgid, gid, gid, gid)
    attempt("setresuid", os.setresuid, uid, uid, uid)
    if uid == 0:
        attempt("capset", kernel.limit_capabilities, allowed)
    _, permitted = kernel.capabilities()
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or permitted & ~allowed:
        raise StepError("identity: it was not dropped", errno.EPERM)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # changing ids set it back; execve decides anew


def _execute(argv: list[bytes], environment: dict[bytes, bytes]) -> None:
    program, search = argv[0], b""
    paths = [program]
    if b"/" not in program:
        search = environment.get(b"PATH", MINIMAL_PATH)
        paths = [(folder or b".") + b"/" + program for folder in search.split(b":")]
    worst = errno.ENOENT
    for path in paths:
        try:
            os.execve(path, argv, environment)  # noqa: S606 (no shell is meant)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                worst = error.errno or errno.EIO
                if error.errno != errno.EACCES:
                    break
    raise StepError("execve", worst, search[:MAX_SEARCHED_BYTES].decode(errors="replace"))


def _in_memory(secrets: list[tuple[bytes, bytes]]) -> int:
    """A file in memory, `name=value` and NUL each, for the agent alone: it is closed before execve."""
    data = b"".join(name + b"=" + value + b"\0" for name, value in secrets)
    if len(data) > MAX_SECRETS_BYTES or len(secrets) > MAX_SECRETS:
        raise StepError("environment: too many secrets", errno.E2BIG)
    descriptor = attempt("memfd_create", os.memfd_create, "secrets", os.MFD_CLOEXEC)
    if attempt("memfd_create", os.write, descriptor, data) != len(data):
        raise StepError("memfd_create", errno.ENOSPC)
    return descriptor


def _pipes() -> tuple[int, int, int, int]:
    return (*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC))
