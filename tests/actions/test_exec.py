"""exec: every sentence of its rules that holds in the agent's own container, with real commands."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import resource
import signal
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.actions import exec as exec_module
from agent.actions.exec import ExecOptions, run_exec
from agent.actions.stop import Stop, StopReason
from agent.contract.actions import ExecAction
from agent.contract.errors import ErrorCode
from agent.contract.messages import Result
from agent.contract.states import Outcome
from agent.pod.processes import (
    MARK_VARIABLE,
    ExitStatus,
    Interrupted,
    Launch,
    LocalLauncher,
    LocalProcess,
    StartError,
)
from tests.strays import alive, descriptors, end, living, pid_in, until, zombies

KIB = 1024
PATH = os.environ["PATH"]


@dataclass
class Exec:
    """Runs commands as an attempt does; ends what they leave after the test."""

    launcher: LocalLauncher = field(default_factory=LocalLauncher)
    trigger_ids: list[str] = field(default_factory=list)

    async def __call__(
        self, *command: str, stop: Stop | None = None, limit: int = 32 * KIB, **environment: str
    ) -> Result:
        trigger_id = f"{uuid.uuid4()}/1"
        self.trigger_ids.append(trigger_id)
        options = ExecOptions("db", {"PATH": PATH, **environment, MARK_VARIABLE: trigger_id}, trigger_id, limit)
        return await run_exec(ExecAction(command=list(command)), self.launcher, options, stop or Stop(30))

    async def sh(self, script: str, **more: object) -> Result:
        return await self("sh", "-c", script, **more)

    @property
    def living(self) -> list[int]:
        return [pid for trigger_id in self.trigger_ids for pid in living(trigger_id)]


@pytest.fixture
async def run() -> AsyncIterator[Exec]:
    """A way to run commands; nothing of the agent's own may be left after it."""
    run, before, dead = Exec(), descriptors(), zombies()
    yield run
    end(*run.living)
    assert descriptors() == before, "descriptors leaked"
    assert [pid for pid in zombies() if pid not in dead] == [], "zombies were left"
    assert run.launcher.running == set()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch) -> None:
    monkeypatch.setattr(exec_module, "TERM_GRACE_SECONDS", 0.2)


def script(directory: Path, content: str | bytes, mode: int = 0o755) -> str:
    path = directory / "script"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


# --- how it ended


def test_the_grace_is_five_seconds_and_the_drain_one():
    source = Path(exec_module.__file__).read_text()
    assert "TERM_GRACE_SECONDS = 5\n" in source
    assert exec_module.DRAIN_SECONDS == 1


async def test_exit_code_0_is_success_whatever_is_on_stderr(run):
    result = await run.sh("echo out; echo failed, panic, error >&2")
    assert (result.outcome, result.exit_code, result.error, result.notes) == (Outcome.SUCCEEDED, 0, None, [])
    assert (result.stdout.text, result.stderr.text) == ("out\n", "failed, panic, error\n")


@pytest.mark.parametrize("code", [1, 2, 42, 126, 127, 255])
async def test_any_other_exit_code_is_failure(run, code):
    result = await run.sh(f"echo why; exit {code}")
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.FAILED, code, None)
    assert (result.error.code, result.error.message) == (ErrorCode.EXIT_CODE, f"command 'sh' exited with code {code}")
    assert result.stdout.text == "why\n"


@pytest.mark.parametrize("name", ["TERM", "KILL", "HUP", "SEGV", "USR1"])
async def test_a_signal_is_failure_by_its_name(run, name):
    result = await run.sh(f"ulimit -c 0; kill -{name} $$")
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.FAILED, None, f"SIG{name}")
    assert (result.error.code, result.error.message) == (ErrorCode.SIGNAL, f"command 'sh' was ended by SIG{name}")


# --- what cannot start

NOT_FOUND = "check its spelling, the interpreter in its #! line, and the image"
EXECUTABLE = "it must be a program with execute permission, or a script that begins with #!"


@pytest.mark.parametrize(
    ("program", "searched"),
    [
        ("no-such-program", f" (searched in PATH {PATH})"),
        ("/no/such/program", ""),
        ("./here", ""),
        ("/etc/passwd/program", ""),
        ("it's\n\x1b[31m", f" (searched in PATH {PATH})"),
    ],
)
async def test_what_is_not_found_is_127_and_names_file_and_container(run, program, searched):
    result = await run(program, "argument")
    assert (result.outcome, result.exit_code, result.error.code) == (Outcome.FAILED, 127, ErrorCode.NOT_FOUND)
    assert result.error.message == f"command {program!r} was not found in container 'db'{searched}; {NOT_FOUND}"


async def test_a_missing_interpreter_is_127(run, tmp_path):
    program = script(tmp_path, "#!/no/such/interpreter\n")
    result = await run(program)
    assert (result.exit_code, result.error.code) == (127, ErrorCode.NOT_FOUND)
    assert result.error.message == f"command {program!r} was not found in container 'db'; {NOT_FOUND}"


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("#!/bin/sh\n", 0o644, "Permission denied"),
        ("#!/bin/sh\n", 0o000, "Permission denied"),
        ("echo no first line\n", 0o755, "Exec format error"),
        ("", 0o755, "Exec format error"),
        (b"\x7fELF" + bytes(200), 0o755, "Exec format error"),
        (None, 0o755, "Permission denied"),
    ],
)
async def test_what_is_not_executable_is_126_and_names_file_and_container(run, tmp_path, content, mode, reason):
    program = str(tmp_path) if content is None else script(tmp_path, content, mode)
    result = await run(program)
    assert (result.outcome, result.exit_code, result.error.code) == (Outcome.FAILED, 126, ErrorCode.NOT_EXECUTABLE)
    assert result.error.message == f"command {program!r} in container 'db' is not executable: {reason}; {EXECUTABLE}"


async def test_a_program_in_path_that_is_not_executable_is_126_and_one_further_on_is_run(run, tmp_path):
    script(tmp_path, "#!/bin/sh\necho first", 0o644)
    (tmp_path / "next").mkdir()
    result = await run("script", PATH=f"{tmp_path}:{tmp_path}/next")
    assert result.exit_code == 126
    script(tmp_path / "next", "#!/bin/sh\necho second")
    result = await run("script", PATH=f"{tmp_path}:{tmp_path}/next")
    assert result.stdout.text == "second\n"


async def test_what_the_kernel_refuses_otherwise_has_its_reason(run):
    result = await run("true", LARGE="x" * 200_000)  # one string of an environment may have 128 KiB
    assert (result.outcome, result.exit_code, result.error.code) == (Outcome.FAILED, None, ErrorCode.START_FAILED)
    assert result.error.message == (
        "command 'true' could not start in container 'db': Argument list too long; "
        "arguments and environment are too long: put them into a file"
    )


async def test_a_very_long_name_is_cut_where_it_is_shown(run):
    result = await run("x" * 5000)
    assert f"command '{'x' * 200}...' " in result.error.message
    assert len(result.error.message) < 8192


# --- what it gets


async def test_an_argv_is_given_as_it_is_without_a_shell(run):
    arguments = ["$HOME", "*", "a b", "", "`id`", "größer", "'", "\n"]
    result = await run("printf", "<%s>", *arguments)
    assert result.stdout.text == "".join(f"<{argument}>" for argument in arguments)


async def test_a_script_with_a_first_line_runs(run, tmp_path):
    program = script(tmp_path, '#!/bin/sh\necho "$0" "$1"\n')
    assert (await run(program, "a b")).stdout.text == f"{program} a b\n"


async def test_standard_input_is_empty(run):
    result = await run.sh("cat; readlink /proc/self/fd/0")
    assert (result.stdout.text, result.exit_code) == ("/dev/null\n", 0)


async def test_the_environment_is_what_was_given(run):
    result = await run("env", A="1", B="")
    assert sorted(result.stdout.text.split()) == sorted(
        ["A=1", "B=", f"PATH={PATH}", f"{MARK_VARIABLE}={run.trigger_ids[0]}"]
    )


# --- what it says


@pytest.mark.parametrize(("total", "truncated"), [(0, False), (1, False), (32 * KIB, False), (32 * KIB + 1, True)])
async def test_a_stream_is_kept_up_to_the_limit(run, total, truncated):
    result = await run.sh(f"head -c {total} /dev/zero | tr '\\0' x; head -c {total} /dev/zero | tr '\\0' y >&2")
    for stream, letter in ((result.stdout, "x"), (result.stderr, "y")):
        assert (stream.total_bytes, stream.truncated, stream.encoding) == (total, truncated, "utf-8")
        if not truncated:
            assert stream.text == letter * total


async def test_of_more_than_the_limit_the_first_8_and_the_last_24_kib_are_kept(run):
    result = await run.sh("seq 100000; seq 200000 300000 >&2")
    for stream, (first, last) in ((result.stdout, (1, 100_001)), (result.stderr, (200_000, 300_001))):
        whole = "".join(f"{number}\n" for number in range(first, last))
        assert (stream.total_bytes, stream.truncated) == (len(whole), True)
        head, mark, tail = re.split(r"(\n\[\.\.\. [0-9]+ bytes cut \.\.\.\]\n)", stream.text)
        assert mark == f"\n[... {len(whole) - 32 * KIB} bytes cut ...]\n"
        assert head == whole[: 8 * KIB], "the first 8 KiB"
        assert tail == whole[-24 * KIB :], "the last 24 KiB"


async def test_nothing_is_kept_with_a_limit_of_zero_but_it_is_counted(run):
    result = await run.sh("echo hidden", limit=0)
    assert (result.outcome, result.stdout.total_bytes, result.stdout.truncated) == (Outcome.SUCCEEDED, 7, True)
    assert "hidden" not in result.stdout.text


async def test_bytes_that_are_not_utf8_travel_as_base64(run):
    result = await run.sh(r"printf '\377\000abc'; printf 'gr\303\266\303\237er' >&2")
    assert (result.stdout.encoding, base64.b64decode(result.stdout.text)) == ("base64", b"\xff\0abc")
    assert (result.stderr.encoding, result.stderr.text) == ("utf-8", "größer")


async def test_a_writer_of_50_mb_never_blocks_and_memory_stays_bounded(run):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await run.sh("head -c 50000000 /dev/zero & head -c 50000000 /dev/zero >&2; wait")
    assert (result.outcome, result.stdout.total_bytes, result.stderr.total_bytes) == (
        "succeeded",
        50_000_000,
        50_000_000,
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * KIB, f"reading 100 MB took {grown} KiB"


@pytest.mark.parametrize("ending", ["exit 0", "exit 3", "kill -KILL $$"])
async def test_what_was_said_last_is_never_lost(run, ending):
    for _ in range(20):
        result = await run.sh(f"head -c 60000 /dev/zero; echo the last word; echo really >&2; {ending}", limit=64 * KIB)
        assert (result.stdout.total_bytes, result.stderr.text) == (60_014, "really\n")
        assert result.stdout.text.endswith("the last word\n")


async def test_many_at_once_do_not_mix(run):
    results = await asyncio.gather(
        *(run.sh(f"echo {number}; echo {-number} >&2; exit {number}") for number in range(40))
    )
    said = [(result.stdout.text, result.stderr.text, result.exit_code) for result in results]
    assert said == [(f"{number}\n", f"{-number}\n", number) for number in range(40)]


# --- what it leaves running


@pytest.mark.parametrize("line", ["(sleep 60 &); echo done", "setsid sleep 60 & echo done", "sleep 60 & echo done"])
async def test_the_attempt_ends_with_the_command_and_what_it_left_on_success_stays(run, line):
    begun = time.monotonic()
    result = await run.sh(line)
    assert time.monotonic() - begun < 10, "it waited for a process in the background"
    assert (result.outcome, result.stdout.text) == (Outcome.SUCCEEDED, "done\n")
    (pid,) = run.living
    assert result.notes == [f"the command left 1 process (pid {pid}) running in the background"]
    assert alive(pid)


async def test_the_note_counts_many_and_names_ten(run):
    result = await run.sh("for i in $(seq 12); do sleep 60 & done")
    (note,) = result.notes
    assert re.fullmatch(
        r"the command left 12 processes \(pid ([0-9]+, ){10}\.\.\.\) running in the background", note
    ), note


async def test_a_background_writer_has_one_second_to_drain(run):
    begun = time.monotonic()
    result = await run.sh("yes & sleep 0.05; echo said >&2")
    took = time.monotonic() - begun
    assert took < 3, f"it took {took:.1f} s to leave a writer alone"
    assert (result.outcome, result.stderr.text) == (Outcome.SUCCEEDED, "said\n")
    assert result.stdout.total_bytes > 0


LEFT = "setsid sleep 60 & (setsid sh -c 'trap \"\" TERM; sleep 60 & wait; sleep 60' &); sleep 60 & (sleep 60 &)"


async def test_on_failure_nothing_stays(run):
    result = await run.sh(f"{LEFT}; sleep 0.1; echo failing; exit 3")
    assert (result.outcome, result.exit_code, result.stdout.text, result.notes) == ("failed", 3, "failing\n", [])
    assert run.living == []


# --- when it is stopped

REASONS = {
    StopReason.TIMED_OUT: (
        Outcome.TIMED_OUT,
        ErrorCode.TIMEOUT,
        "command 'sh' did not end within its timeout of 30s; raise the timeout if it needs longer",
    ),
    StopReason.CANCELLED: (
        Outcome.CANCELLED,
        ErrorCode.CANCELLED,
        "command 'sh' was stopped because the coordinator cancelled it",
    ),
    StopReason.AGENT_STOPPING: (
        Outcome.INTERRUPTED,
        ErrorCode.AGENT_STOPPED,
        "command 'sh' was stopped because the agent was told to stop; whether it took effect is unknown",
    ),
}


async def stopped(run: Exec, stop: Stop, line: str, ready: Path, reason: StopReason) -> Result:
    """Run a shell line, stop it once it wrote its pid into `ready`, and wait for its end."""
    running = asyncio.create_task(run.sh(line, stop=stop))
    await pid_in(ready)
    stop.set(reason)
    return await running


@pytest.mark.parametrize("reason", StopReason)
async def test_who_stopped_it_is_the_outcome_and_nothing_stays(run, stop, tmp_path, reason):
    line = f"{LEFT}; echo begun; echo $$ >{tmp_path}/ready; wait"
    result = await stopped(run, stop, line, tmp_path / "ready", reason)
    assert (result.outcome, result.error.code, result.error.message) == REASONS[reason]
    assert (result.exit_code, result.signal, result.stdout.text, result.notes) == (None, "SIGTERM", "begun\n", [])
    assert run.living == [], "something of it stayed"


async def test_the_first_reason_stays(run, stop, tmp_path):
    running = asyncio.create_task(run.sh(f"trap '' TERM; echo $$ >{tmp_path}/ready; sleep 60", stop=stop))
    await pid_in(tmp_path / "ready")
    stop.set(StopReason.CANCELLED)
    stop.set(StopReason.TIMED_OUT)
    assert (await running).outcome == Outcome.CANCELLED


async def test_a_timeout_counts_from_the_start_of_the_clock(run):
    stop = Stop(timeout_seconds=0.3)
    begun = time.monotonic()
    stop.start_clock()
    result = await run.sh("echo begun; sleep 60", stop=stop)
    assert 0.3 <= time.monotonic() - begun < 5
    assert (result.outcome, result.signal, result.stdout.text) == (Outcome.TIMED_OUT, "SIGTERM", "begun\n")
    assert "its timeout of 300ms" in result.error.message


async def test_a_command_has_the_grace_to_end_by_itself(run, stop, tmp_path, monkeypatch):
    monkeypatch.setattr(exec_module, "TERM_GRACE_SECONDS", 10)
    asleep = "until grep -q sleep /proc/$!/comm; do :; done"  # before its execve, a SIGTERM could be lost on it
    line = f"trap 'sleep 0.2; echo unlocked; exit 7' TERM; sleep 60 & {asleep}; echo $$ >{tmp_path}/ready; wait"
    begun = time.monotonic()
    result = await stopped(run, stop, line, tmp_path / "ready", StopReason.TIMED_OUT)
    assert time.monotonic() - begun < 5, "it ended by itself, and the grace was waited for"
    assert (result.outcome, result.exit_code, result.stdout.text) == (Outcome.TIMED_OUT, 7, "unlocked\n")


async def test_a_success_within_the_grace_is_still_a_timeout(run, stop, tmp_path):
    line = f"trap 'exit 0' TERM; echo $$ >{tmp_path}/ready; sleep 60 & wait"
    result = await stopped(run, stop, line, tmp_path / "ready", StopReason.TIMED_OUT)
    assert (result.outcome, result.exit_code) == (Outcome.TIMED_OUT, 0)


async def test_who_ignores_sigterm_is_killed_after_the_grace(run, stop, tmp_path):
    line = f"trap '' TERM; echo $$ >{tmp_path}/ready; while :; do sleep 60; done"
    running = asyncio.create_task(run.sh(line, stop=stop))
    await pid_in(tmp_path / "ready")
    begun = time.monotonic()
    stop.set(StopReason.TIMED_OUT)
    result = await running
    assert 0.2 <= time.monotonic() - begun < 5
    assert (result.outcome, result.signal, run.living) == (Outcome.TIMED_OUT, "SIGKILL", [])


async def test_sigterm_reaches_the_children_in_the_group(run, stop, tmp_path):
    inner = f"trap 'echo child heard it; exit' TERM; echo $$ >{tmp_path}/ready; sleep 60 & wait"
    line = f'trap : TERM; sh -c "{inner}" & wait; wait'
    result = await stopped(run, stop, line, tmp_path / "ready", StopReason.CANCELLED)
    assert "child heard it" in result.stdout.text


async def test_a_stopped_writer_does_not_hold_it_up(run, stop, tmp_path):
    line = f"(setsid yes &); echo $$ >{tmp_path}/ready; yes >&2"
    begun = time.monotonic()
    result = await stopped(run, stop, line, tmp_path / "ready", StopReason.CANCELLED)
    assert time.monotonic() - begun < 5
    assert (result.outcome, run.living) == (Outcome.CANCELLED, [])


@pytest.mark.parametrize("reason", StopReason)
async def test_what_was_stopped_before_it_began_does_not_begin(run, stop, tmp_path, reason):
    stop.set(reason)
    result = await run.sh(f"echo ran >{tmp_path}/ran", stop=stop)
    assert (result.outcome, result.exit_code) == (REASONS[reason][0], None)
    assert not (tmp_path / "ran").exists(), "it ran although it was stopped before"


# --- when the attempt's own task is cancelled


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_task_leaves_nothing_behind(run, tmp_path, times):
    task = asyncio.create_task(run.sh(f"{LEFT}; trap '' TERM; echo $$ >{tmp_path}/ready; wait"))
    await pid_in(tmp_path / "ready")
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.living == []


async def test_a_task_cancelled_during_the_grace_leaves_nothing_behind(run, stop, tmp_path, monkeypatch):
    monkeypatch.setattr(exec_module, "TERM_GRACE_SECONDS", 60)
    task = asyncio.create_task(
        run.sh(
            f"{LEFT}; trap 'echo $$ >{tmp_path}/term' TERM; echo $$ >{tmp_path}/ready; while :; do wait; done",
            stop=stop,
        )
    )
    await pid_in(tmp_path / "ready")
    stop.set(StopReason.TIMED_OUT)
    await pid_in(tmp_path / "term")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.living == []


@pytest.mark.parametrize("code", [0, 3])
async def test_a_task_cancelled_while_output_drains_leaves_nothing_behind(run, monkeypatch, code):
    draining = asyncio.Event()

    async def drain_for_ever(_: object) -> None:
        draining.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(exec_module, "_drain", drain_for_ever)
    task = asyncio.create_task(run.sh(f"{LEFT}; exit {code}"))
    await asyncio.wait_for(draining.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.living == []


async def test_a_cancelled_attempt_lets_go_of_a_descriptor_before_its_number_is_somebody_elses(run, monkeypatch):
    loop, heard, others = asyncio.get_running_loop(), asyncio.Event(), []
    close = LocalProcess.close

    def close_and_take_the_number(process: LocalProcess) -> None:
        number = process._pidfd
        close(process)
        others.extend((*os.pipe(), number))
        os.dup2(others[0], number)
        loop.add_reader(number, heard.set)

    async def kill_at_once(process: LocalProcess) -> list[int]:
        os.killpg(process._pid, signal.SIGKILL)
        os.waitid(os.P_PIDFD, process._pidfd, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 (it was killed)
        return []  # before the loop could notice that it ended

    monkeypatch.setattr(LocalProcess, "kill_everything", kill_at_once)
    monkeypatch.setattr(LocalProcess, "close", close_and_take_the_number)
    task = asyncio.create_task(run("sleep", "60"))
    await until(lambda: run.living, "the command runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _, writing, number = others
    os.write(writing, b"x")
    try:
        await asyncio.wait_for(heard.wait(), 3)
    finally:
        loop.remove_reader(number)
        for descriptor in others:
            os.close(descriptor)


# --- what SIGKILL does not end


@dataclass
class Unkillable:
    """A launcher of one process that sits in uninterruptible sleep; only a broken disk makes a real one."""

    closed: int = 0
    secrets: tuple[tuple[bytes, bytes], ...] = ()

    async def start(self, launch: Launch) -> Unkillable:
        self.stdout, self._out = os.pipe()
        self.stderr, self._err = os.pipe()
        return self

    async def wait(self) -> ExitStatus:
        await asyncio.Event().wait()
        raise AssertionError

    def terminate(self) -> None: ...

    async def remaining(self) -> list[int]:
        return [4242]

    async def kill_everything(self) -> list[int]:
        return [4242]

    def close(self) -> None:
        self.closed += 1
        for descriptor in (self.stdout, self._out, self.stderr, self._err):
            os.close(descriptor)


async def test_a_process_that_outlives_sigkill_is_named_and_not_waited_for(stop, monkeypatch):
    monkeypatch.setattr(exec_module, "DRAIN_SECONDS", 0.1)
    launcher = Unkillable()
    asyncio.get_running_loop().call_later(0.05, stop.set, StopReason.TIMED_OUT)
    options = ExecOptions("db", {}, "r/1", 1024)
    async with asyncio.timeout(5):
        result = await run_exec(ExecAction(command=["sync"]), launcher, options, stop)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.TIMED_OUT, None, None)
    assert result.notes == [
        "1 process (pid 4242) outlived SIGKILL (uninterruptible sleep, or another user's); look at the node's storage"
    ]
    assert launcher.closed == 1


@pytest.mark.parametrize("reason", [StopReason.TIMED_OUT, StopReason.CANCELLED, StopReason.AGENT_STOPPING])
async def test_the_grace_is_the_whole_groups_not_only_the_shells(run, stop, tmp_path, monkeypatch, reason):
    """`sh` in front dies of SIGTERM at once; what it runs may be cleaning up."""
    monkeypatch.setattr(exec_module, "TERM_GRACE_SECONDS", 10)
    cleaned, ready = tmp_path / "cleaned", tmp_path / "ready"
    script = tmp_path / "dump"
    script.write_text(f"#!/bin/sh\ntrap 'sleep 0.3; touch {cleaned}; exit 0' TERM\ntouch {ready}\nsleep 60 & wait\n")
    script.chmod(0o755)

    async def ask() -> None:
        await until(ready.exists, "the command runs")
        stop.set(reason)

    asking = asyncio.create_task(ask())
    result = await run("sh", "-c", f"{script}; echo done", stop=stop)
    await asking
    assert cleaned.exists(), f"what cleaned up was killed: {result}"


# --- launchers that interrupt, hang, or are silent


@dataclass
class Pliant:
    """A launcher, and its one process, that does what a test says: `start` waits for `go`, its command for `ended`."""

    refusal: Exception | None = None
    left: list[int] | None = field(default_factory=list)
    ended: asyncio.Future[ExitStatus] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    heeds_cancellation: bool = True
    pid: int = 1 << 30
    secrets: tuple[tuple[bytes, bytes], ...] = ()
    did: list[str] = field(default_factory=list)

    async def start(self, launch: Launch) -> Pliant:
        self.did.append("start")
        self.asked.set()
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.did.append("start cancelled")
                if self.heeds_cancellation:
                    raise
        if self.refusal is not None:
            raise self.refusal
        self.stdout, out = os.pipe()
        self.stderr, err = os.pipe()
        os.write(out, b"said")
        for descriptor in (out, err):
            os.close(descriptor)
        return self

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)

    def terminate(self) -> None:
        self.did.append("terminate")

    async def remaining(self) -> list[int] | None:
        self.did.append("remaining")
        return self.left

    async def kill_everything(self) -> list[int] | None:
        self.did.append("kill")
        if not self.ended.done():
            self.ended.set_result(ExitStatus(signal="SIGKILL"))
        return self.left

    def close(self) -> None:
        self.did.append("close")
        for descriptor in (self.stdout, self.stderr):
            os.close(descriptor)


async def run_with(launcher: Pliant, stop: Stop) -> Result:
    async with asyncio.timeout(10):
        return await run_exec(ExecAction(command=["dump"]), launcher, ExecOptions("db", {}, "r/1", 1024), stop)


GONE = Interrupted(ErrorCode.LAUNCHER_RESTARTED, "the launcher was started anew, and what it had started was killed")
RESTARTED = Interrupted(ErrorCode.CONTAINER_RESTARTED, "container 'db' ended or was started again")


@pytest.mark.parametrize("gone", [GONE, RESTARTED], ids=["launcher", "container"])
async def test_a_start_that_was_interrupted_is_interrupted_and_never_a_failure(stop, gone):
    launcher, before = Pliant(refusal=gone), descriptors()
    launcher.go.set()
    result = await run_with(launcher, stop)
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.INTERRUPTED, None, None)
    assert (result.error.code, result.error.message) == (
        gone.code,
        f"{gone} while command 'dump' ran; whether it took effect is unknown",
    )
    assert (launcher.did, descriptors()) == (["start"], before)


@pytest.mark.parametrize("gone", [GONE, RESTARTED], ids=["launcher", "container"])
async def test_what_is_interrupted_while_it_runs_is_ended_and_keeps_what_it_said(stop, gone):
    launcher, before = Pliant(), descriptors()
    launcher.go.set()
    launcher.ended.set_exception(gone)
    result = await run_with(launcher, stop)
    assert (result.outcome, result.error.code, result.exit_code) == (Outcome.INTERRUPTED, gone.code, None)
    assert (result.stdout.text, result.notes) == ("said", [])
    assert (launcher.did, descriptors()) == (["start", "kill", "close"], before)


@pytest.mark.parametrize("reason", StopReason)
async def test_a_start_that_hangs_is_given_up_when_it_has_to_end(stop, reason):
    launcher, before = Pliant(), descriptors()
    running = asyncio.create_task(run_with(launcher, stop))
    await launcher.asked.wait()
    stop.set(reason)
    result = await running
    assert (result.outcome, result.error.code, result.error.message) == REASONS_OF_DUMP[reason]
    assert (result.exit_code, result.notes) == (None, [])
    assert (launcher.did, descriptors()) == (["start", "start cancelled"], before)


REASONS_OF_DUMP = {
    StopReason.TIMED_OUT: (
        Outcome.TIMED_OUT,
        ErrorCode.TIMEOUT,
        "command 'dump' did not end within its timeout of 30s; raise the timeout if it needs longer",
    ),
    StopReason.CANCELLED: (
        Outcome.CANCELLED,
        ErrorCode.CANCELLED,
        "command 'dump' was stopped because the coordinator cancelled it",
    ),
    StopReason.AGENT_STOPPING: (
        Outcome.INTERRUPTED,
        ErrorCode.AGENT_STOPPED,
        "command 'dump' was stopped because the agent was told to stop; whether it took effect is unknown",
    ),
}


async def test_a_hanging_start_counts_towards_the_timeout():
    launcher, stop = Pliant(), Stop(timeout_seconds=0.05)
    stop.start_clock()
    result = await run_with(launcher, stop)
    assert (result.outcome, launcher.did) == (Outcome.TIMED_OUT, ["start", "start cancelled"])


@pytest.mark.parametrize("reason", StopReason)
async def test_a_process_that_started_too_late_is_killed_and_let_go_of(stop, reason):
    launcher, before = Pliant(heeds_cancellation=False), descriptors()
    running = asyncio.create_task(run_with(launcher, stop))
    await launcher.asked.wait()
    stop.set(reason)
    await until(lambda: "start cancelled" in launcher.did, "the start is given up")
    assert not running.done(), "it was reported as ended while it may still start"
    launcher.go.set()
    result = await running
    assert result.outcome == REASONS_OF_DUMP[reason][0]
    assert (launcher.did, descriptors()) == (["start", "start cancelled", "kill", "close"], before)


@pytest.mark.parametrize("refusal", [StartError(OSError(2, "No such file")), GONE], ids=["refused", "interrupted"])
async def test_a_start_that_fails_after_it_was_given_up_changes_nothing(stop, refusal):
    launcher = Pliant(heeds_cancellation=False, refusal=refusal)
    running = asyncio.create_task(run_with(launcher, stop))
    await launcher.asked.wait()
    stop.set(StopReason.CANCELLED)
    await until(lambda: "start cancelled" in launcher.did, "the start is given up")
    launcher.go.set()
    assert (await running).outcome == Outcome.CANCELLED
    assert launcher.did == ["start", "start cancelled"]


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_an_attempt_cancelled_while_it_starts_leaves_nothing_of_what_started_too_late(stop, times):
    launcher, before = Pliant(heeds_cancellation=False), descriptors()
    running = asyncio.create_task(run_with(launcher, stop))
    await launcher.asked.wait()
    for _ in range(times):
        running.cancel()
        await asyncio.sleep(0)
    await until(lambda: "start cancelled" in launcher.did, "the start is given up")
    launcher.go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (launcher.did, descriptors()) == (["start", "start cancelled", "kill", "close"], before)


UNKNOWN_END = "whether everything that it started has ended is not known: the launcher did not say; look at the pod"
UNKNOWN_REST = "whether the command left processes running in the background is not known: see the agent's log"


@pytest.mark.parametrize(
    ("end", "outcome", "note"),
    [
        (ExitStatus(exit_code=0), Outcome.SUCCEEDED, UNKNOWN_REST),
        (ExitStatus(exit_code=1), Outcome.FAILED, UNKNOWN_END),
        (ExitStatus(signal="SIGKILL"), Outcome.FAILED, UNKNOWN_END),
        (GONE, Outcome.INTERRUPTED, UNKNOWN_END),
    ],
    ids=["success", "failure", "signal", "interrupted"],
)
async def test_a_launcher_that_cannot_tell_what_is_left_is_said_to_be_silent(stop, end, outcome, note):
    launcher = Pliant(left=None)
    launcher.go.set()
    if isinstance(end, Exception):
        launcher.ended.set_exception(end)
    else:
        launcher.ended.set_result(end)
    result = await run_with(launcher, stop)
    assert (result.outcome, result.notes) == (outcome, [note])
    assert launcher.did[-1] == "close"


async def test_after_a_timeout_a_silent_launcher_is_said_to_be_so_too(stop):
    launcher = Pliant(left=None)
    launcher.go.set()
    running = asyncio.create_task(run_with(launcher, stop))
    await until(lambda: hasattr(launcher, "stderr"), "it runs")
    stop.set(StopReason.TIMED_OUT)
    result = await running
    assert (result.outcome, result.notes) == (Outcome.TIMED_OUT, [UNKNOWN_END])
    assert (launcher.did[:2], launcher.did[-2:]) == (["start", "terminate"], ["kill", "close"])


# --- secrets


@pytest.mark.parametrize("name", [b"DB_PASSWORD", b"NAME"])
async def test_what_the_process_tells_of_its_containers_secrets_is_kept_out(stop, name):
    launcher = Pliant(left=[], secrets=((name, b"said"),))
    launcher.go.set()
    launcher.ended.set_result(ExitStatus(exit_code=0))
    result = await run_with(launcher, stop)
    assert result.stdout.text == ("[redacted]" if name == b"DB_PASSWORD" else "said")
    assert result.stdout.total_bytes == len(result.stdout.text)
