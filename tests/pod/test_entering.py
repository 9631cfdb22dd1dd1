"""The agent's end of the launcher, against one that speaks the real protocol and does what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.contract.actions import MAX_COMMAND_BYTES
from agent.contract.errors import ErrorCode
from agent.pod import entering, kernel
from agent.pod.census import Census, MainProcess, Neighbours
from agent.pod.entering import EnteredProcess, EnteringLauncher, LauncherGone
from agent.pod.environments import Learnt
from agent.pod.launcher import MAX_PACKET_BYTES
from agent.pod.offspring import born
from agent.pod.processes import ExitStatus, Interrupted, Launch, StartError
from tests.strays import descriptors, until

Said = dict[str, Any]
ANEW = "the launcher was started anew, and what it had started was killed"
GONE = "the launcher and its parent are gone"


class Known(Neighbours):
    """Neighbours that see what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Census = Census({}, "agent", shared=True)
        self.looks = 0

    def look(self) -> Census:
        self.looks += 1
        return self.seen


class FakeLauncher:
    """The other end of the socket, and a container `db` whose main process is a real one."""

    def __init__(self) -> None:
        ours, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET_BYTES)
        self.near = ours
        self.neighbours = Known()
        self.main = self.start_main()
        self.agent = EnteringLauncher(ours, self.neighbours, "agent")

    def start_main(self) -> subprocess.Popen[bytes]:
        self.main = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
        main = MainProcess("db", self.main.pid, born(self.main.pid) or 0, 999, 999, "S")
        self.neighbours.seen = Census({"db": main}, "agent", shared=True)
        return self.main

    def end_main(self) -> None:
        self.main.kill()
        self.main.wait(10)

    def hello(self, generation: int = 0) -> None:
        self.say(op="hello", generation=generation)

    def say(self, *given: int, **message: object) -> None:
        kernel.send_descriptors(self.far.fileno(), json.dumps(message).encode(), list(given))

    async def hear(self) -> Said:
        """The next request."""
        async with asyncio.timeout(5):
            return json.loads(await asyncio.get_running_loop().sock_recv(self.far, 1 << 20))

    async def nothing_heard(self) -> bool:
        """Whether nothing was asked: the agent sends at once, within its call."""
        await settle()
        try:
            self.far.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def started(self, number: int, pid: int = 4711, secrets: bytes = b"") -> tuple[int, int]:
        """Say that a command runs; returns the ends that it would write to."""
        out, err = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        memory = os.memfd_create("secrets")
        os.write(memory, secrets)
        self.say(out[0], err[0], memory, op="started", id=number, pid=pid)
        for descriptor in (out[0], err[0], memory):
            os.close(descriptor)
        return out[1], err[1]

    async def running(self, **launch: object) -> tuple[EnteredProcess, int]:
        """A process that was started, and its number; its writing ends are closed."""
        starting = asyncio.create_task(self.agent.start(command(**launch)))
        number = (await self.hear())["id"]
        for descriptor in self.started(number):
            os.close(descriptor)
        return await starting, number

    def close(self) -> None:
        self.agent.close()
        self.neighbours.adopt(Census({}, None, shared=False))
        self.near.close()
        self.far.close()
        self.end_main()


def command(*argv: str, container: str = "db", **more: Any) -> Launch:
    return Launch(argv or ("true",), more.pop("environment", {}), container, "p/1", **more)


async def settle() -> None:
    """Everything that is ready to happen happens."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def launcher() -> AsyncIterator[FakeLauncher]:
    """A launcher that has said hello; whatever a test does, no descriptor may be left after it."""
    asyncio.get_running_loop().run_in_executor(None, int)  # its pipes and threads are not ours to count
    before = descriptors()
    launcher = FakeLauncher()
    launcher.hello()
    await settle()
    yield launcher
    launcher.close()
    assert descriptors() == before, "descriptors leaked"


@pytest.fixture
def silence(monkeypatch) -> None:
    """The bound of an answer is nearly nothing."""
    monkeypatch.setattr(entering, "ANSWER_SECONDS", 0.03)


def code_of(caught: pytest.ExceptionInfo[Interrupted]) -> tuple[ErrorCode, str]:
    return caught.value.code, str(caught.value)


# --- starting


async def test_a_start_names_the_main_process_and_hands_over_what_was_asked_for(launcher):
    launch = command("dump", "a b", environment={"B": "2", "A": "1"}, inherit=False, fallback=True, user="mysql")
    starting = asyncio.create_task(launcher.agent.start(launch))
    main = launcher.neighbours.seen.mains["db"]
    request = await launcher.hear()
    assert request == {
        "op": "start",
        "id": 1,
        "generation": 0,
        "container": "db",
        "pid": main.pid,
        "started": main.started,
        "argv": ["dump", "a b"],
        "environment": [["B", "2"], ["A", "1"]],
        "inherit": False,
        "fallback": True,
        "user": "mysql",
    }
    out, err = launcher.started(1, pid=77)
    process = await starting
    assert process.pid == 77
    for writing, reading in ((out, process.stdout), (err, process.stderr)):
        os.write(writing, b"said")
        os.close(writing)
        assert (os.read(reading, 9), os.get_inheritable(reading)) == (b"said", False)
    process.close()
    assert await launcher.hear() == {"op": "forget", "id": 1}


async def test_the_containers_secrets_come_along_and_no_descriptor_of_them_stays(launcher):
    starting = asyncio.create_task(launcher.agent.start(command()))
    number = (await launcher.hear())["id"]
    for descriptor in launcher.started(number, secrets=b"MYSQL_PWD=a=b\nc\0TOKEN=\xff\0"):
        os.close(descriptor)
    process = await starting
    assert process.secrets == [(b"MYSQL_PWD", b"a=b\nc"), (b"TOKEN", b"\xff")]
    process.close()


async def learnt(launcher: FakeLauncher, secrets: bytes) -> list[Learnt]:
    """Let the agent learn, and play the child that looks."""
    learning = asyncio.create_task(launcher.agent.learn_environments())
    number = (await launcher.hear())["id"]
    for descriptor in launcher.started(number, secrets=secrets):
        os.close(descriptor)
    found = await learning
    assert await launcher.hear() == {"op": "forget", "id": number}
    return found


async def test_the_secrets_of_a_sibling_are_read_by_a_child_that_runs_nothing_and_read_once(launcher):
    main = launcher.neighbours.seen.mains["db"]
    learning = asyncio.create_task(launcher.agent.learn_environments())
    request = await launcher.hear()
    asked = ("op", "container", "pid", "started", "argv", "look", "user")
    assert [request[name] for name in asked] == ["start", "db", main.pid, main.started, [], True, ""]
    for descriptor in launcher.started(request["id"], secrets=b"TOKEN=x y\0"):
        os.close(descriptor)
    assert await learning == [Learnt("db", [(b"TOKEN", b"x y")])]
    assert await launcher.hear() == {"op": "forget", "id": request["id"]}
    assert await launcher.agent.learn_environments() == [Learnt("db", [(b"TOKEN", b"x y")])]
    assert await launcher.nothing_heard()
    assert "x y" not in repr(await launcher.agent.learn_environments()), "a repr may get into a log"


async def test_of_a_container_that_was_started_again_nothing_old_is_kept(launcher):
    await learnt(launcher, b"TOKEN=before\0")
    launcher.end_main()
    launcher.start_main()
    await launcher.agent.look_around()
    assert launcher.agent._environments._known == {}, "dropped when it is gone, and not only when it is asked for"
    assert await learnt(launcher, b"TOKEN=after\0") == [Learnt("db", [(b"TOKEN", b"after")])]


@pytest.mark.parametrize(("step", "number", "again"), [("environ", errno.EACCES, False), ("environment", 0, False),
    ("environment: too many secrets", errno.E2BIG, False), ("identity: another user namespace", 0, False),
    ("launcher: no child", errno.EAGAIN, True)])  # fmt: skip
async def test_what_cannot_be_read_is_told_and_tried_again_only_where_that_may_help(launcher, step, number, again):
    for attempt in range(2):
        learning = asyncio.create_task(launcher.agent.learn_environments())
        if attempt == 0 or again:
            asked = await launcher.hear()
            launcher.say(op="failed", id=asked["id"], step=step, errno=number, searched="", begun=False)
        [found] = await learning
        assert (found.container, found.variables) == ("db", ())
        assert isinstance(found.why_not, StartError)
        assert (found.why_not.step, found.why_not.errno) == (step, number)
        while not await launcher.nothing_heard():
            assert (await launcher.hear())["op"] in ("kill", "forget")


async def test_a_launcher_that_goes_while_it_is_asked_is_asked_again_the_next_time(launcher):
    learning = asyncio.create_task(launcher.agent.learn_environments())
    await launcher.hear()
    launcher.hello(1)
    [found] = await learning
    assert isinstance(found.why_not, LauncherGone)
    await settle()
    while not await launcher.nothing_heard():
        await launcher.hear()
    assert await learnt(launcher, b"TOKEN=x\0") == [Learnt("db", [(b"TOKEN", b"x")])]


async def test_two_that_ask_at_once_cost_one_look(launcher):
    both = [asyncio.create_task(launcher.agent.learn_environments()) for _ in range(2)]
    number = (await launcher.hear())["id"]
    for descriptor in launcher.started(number, secrets=b"TOKEN=x\0"):
        os.close(descriptor)
    assert [await each for each in both] == [[Learnt("db", [(b"TOKEN", b"x")])]] * 2
    assert await launcher.hear() == {"op": "forget", "id": number}
    assert await launcher.nothing_heard()


async def test_a_cancelled_look_leaves_nothing_and_keeps_nobody_out(launcher):
    learning = asyncio.create_task(launcher.agent.learn_environments())
    await launcher.hear()
    learning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await learning
    assert [(await launcher.hear())["op"] for _ in range(2)] == ["kill", "forget"]
    assert await learnt(launcher, b"") == [Learnt("db", [])]


async def test_in_the_agents_own_container_nothing_is_entered(launcher):
    starting = asyncio.create_task(launcher.agent.start(command(container="agent")))
    request = await launcher.hear()
    assert (request["container"], request["pid"], request["started"]) == (None, 0, 0)
    for descriptor in launcher.started(1):
        os.close(descriptor)
    process = await starting
    launcher.end_main()
    launcher.say(op="exited", id=1, code=0)
    assert await process.wait() == ExitStatus(exit_code=0), "another container's end is not its own's"
    process.close()


async def test_who_is_known_is_not_looked_for_again(launcher):
    for _ in range(3):
        process, _ = await launcher.running()
        process.close()
        await launcher.hear()
    assert launcher.neighbours.looks == 1


async def test_a_container_that_does_not_run_is_looked_for_and_then_refused(launcher):
    with pytest.raises(StartError) as caught:
        await launcher.agent.start(command(container="web"))
    assert (caught.value.step, caught.value.errno) == ("container", errno.ESRCH)
    assert launcher.neighbours.looks == 1
    assert await launcher.nothing_heard()


async def test_a_container_that_was_started_again_is_entered_anew(launcher):
    process, _ = await launcher.running()
    process.close()
    await launcher.hear()
    launcher.end_main()
    launcher.start_main()
    starting = asyncio.create_task(launcher.agent.start(command()))
    request = await launcher.hear()
    assert request["pid"] == launcher.main.pid
    launcher.say(op="failed", id=request["id"], step="execve", errno=2, searched="", begun=False)
    with pytest.raises(StartError):
        await starting


@pytest.mark.parametrize(
    ("step", "number", "searched", "message"),
    [
        ("execve", errno.ENOENT, "/bin:/usr/bin", "No such file or directory"),
        ("root", errno.EACCES, "", "Permission denied"),
        ("environment", 0, "", ""),
        ("launcher: it was started anew", 0, "", ""),
    ],
)
async def test_what_could_not_start_says_where_on_the_way_and_why(launcher, step, number, searched, message):
    starting = asyncio.create_task(launcher.agent.start(command()))
    request = await launcher.hear()
    launcher.say(op="failed", id=request["id"], step=step, errno=number, searched=searched, begun=False)
    with pytest.raises(StartError) as caught:
        await starting
    error = caught.value
    assert (error.step, error.errno, error.searched, str(error)) == (step, number, searched, message)


@pytest.mark.parametrize(("number", "why"), [(errno.ETIMEDOUT, "Connection timed out"), (0, "")])
async def test_a_start_that_failed_once_the_command_may_have_run_is_never_called_not_started(launcher, number, why):
    starting = asyncio.create_task(launcher.agent.start(command()))
    request = await launcher.hear()
    launcher.say(op="failed", id=request["id"], step="launcher: why", errno=number, searched="", begun=True)
    with pytest.raises(Interrupted) as caught:
        await starting
    assert code_of(caught) == (ErrorCode.LAUNCHER_RESTARTED, "launcher: why" + (f" ({why})" if why else ""))


async def test_answers_go_to_whom_they_are_for_in_whatever_order_they_come(launcher):
    first, second = (asyncio.create_task(launcher.agent.start(command(str(number)))) for number in (1, 2))
    numbers = {request["argv"][0]: request["id"] for request in (await launcher.hear(), await launcher.hear())}
    for descriptor in (*launcher.started(numbers["2"], pid=2), *launcher.started(numbers["1"], pid=1)):
        os.close(descriptor)
    processes = await first, await second
    assert [process.pid for process in processes] == [1, 2]
    for process in processes:
        process.close()


async def test_what_is_said_of_nobody_is_let_go(launcher):
    process, number = await launcher.running()
    for other in (0, number + 1, 99):
        for descriptor in launcher.started(other):
            os.close(descriptor)
        launcher.say(op="failed", id=other, step="root", errno=1, searched="", begun=False)
        launcher.say(op="exited", id=other, code=0)
        launcher.say(op="left", id=other, n=1, pids=[1])
    for descriptor in launcher.started(number):  # twice
        os.close(descriptor)
    launcher.say(op="failed", id=number, step="root", errno=1, searched="", begun=True)
    launcher.say(op="something new", id=number, begun=False)
    launcher.say(op="exited", id=number, code=3)
    launcher.say(op="exited", id=number, code=0)
    assert await process.wait() == ExitStatus(exit_code=3), "the first end is the end"
    process.close()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.usefixtures("silence")
async def test_a_start_without_its_outputs_and_the_containers_secrets_is_none(launcher, count):
    starting = asyncio.create_task(launcher.agent.start(command()))
    request = await launcher.hear()
    reading, writing = os.pipe()
    launcher.say(*[reading] * count, op="started", id=request["id"], pid=7)
    for descriptor in (reading, writing):
        os.close(descriptor)
    with pytest.raises(LauncherGone):
        await starting


# --- how it ended


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"code": 0}, ExitStatus(exit_code=0)),
        ({"code": 255}, ExitStatus(exit_code=255)),
        ({"signal": 9}, ExitStatus(signal="SIGKILL")),
        ({"signal": 15}, ExitStatus(signal="SIGTERM")),
        ({"signal": 40}, ExitStatus(signal="SIG40")),
        ({"signal": 99}, ExitStatus(signal="SIG99")),
    ],
)
async def test_an_end_is_a_code_or_a_signal_by_its_name_and_can_be_asked_for_again(launcher, said, status):
    process, number = await launcher.running()
    launcher.say(op="exited", id=number, **said)
    assert [await process.wait(), await process.wait()] == [status, status]
    process.close()


async def test_a_cancelled_wait_can_be_taken_up_again(launcher):
    process, number = await launcher.running()
    waiting = asyncio.create_task(process.wait())
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    launcher.say(op="exited", id=number, code=7)
    assert await process.wait() == ExitStatus(exit_code=7)
    process.close()


async def test_a_term_is_asked_for(launcher):
    process, number = await launcher.running()
    process.terminate()
    assert await launcher.hear() == {"op": "signal", "id": number, "signal": 15}
    process.close()


# --- the container's end

RESTARTED = (ErrorCode.CONTAINER_RESTARTED, "container 'db' ended or was started again")


@pytest.mark.parametrize("exited", ["never", "before", "after", "long before"])
@pytest.mark.parametrize("code", [0, 1])
async def test_a_container_that_ends_interrupts_what_runs_and_it_never_succeeds(launcher, exited, code):
    """When both have ended, which was first cannot be told: what it did it did to a container that was ending."""
    process, number = await launcher.running()
    if exited == "long before":
        launcher.say(op="exited", id=number, code=code)
        await settle()
    if exited == "before":
        launcher.say(op="exited", id=number, code=code)
    launcher.end_main()
    if exited == "after":
        launcher.say(op="exited", id=number, code=code)
    for _ in range(2):
        with pytest.raises(Interrupted) as caught:
            pytest.fail(f"it ended as {await process.wait()}")
        assert code_of(caught) == RESTARTED
    process.close()


async def test_a_container_that_ends_while_it_is_waited_for_interrupts(launcher):
    process, _ = await launcher.running()
    waiting = asyncio.create_task(process.wait())
    await settle()
    assert not waiting.done()
    launcher.end_main()
    with pytest.raises(Interrupted) as caught:
        await asyncio.wait_for(waiting, 5)
    assert code_of(caught) == RESTARTED
    process.close()


async def test_each_attempt_holds_its_container_by_itself(launcher):
    """What the census knows is closed when the container is started again; a running attempt still has to notice."""
    process, _ = await launcher.running()
    launcher.end_main()
    launcher.start_main()
    await launcher.agent.look_around()
    with pytest.raises(Interrupted) as caught:
        await process.wait()
    assert code_of(caught) == RESTARTED
    process.close()


# --- the launcher's end


async def test_a_new_launcher_interrupts_everything_that_the_old_one_had_started(launcher):
    ran, _ = await launcher.running()
    asked, _ = await launcher.running()
    waiting = asyncio.create_task(ran.wait())
    starting = asyncio.create_task(launcher.agent.start(command()))
    counting = asyncio.create_task(asked.kill_everything())
    await settle()
    launcher.hello(1)
    for task in (waiting, starting):
        with pytest.raises(Interrupted) as caught:
            await asyncio.wait_for(task, 5)
        assert code_of(caught) == (ErrorCode.LAUNCHER_RESTARTED, ANEW)
    assert await asyncio.wait_for(counting, 5) == [], "with the launcher everything that it had started is gone"
    with pytest.raises(Interrupted):
        await asked.wait()
    for process in (ran, asked):
        process.close()


async def test_a_new_launcher_is_asked_what_is_left_of_what_the_old_one_had_started(launcher):
    """It knows nothing of it and says so; a process that lost its parents may still bear the mark of nobody."""
    process, _ = await launcher.running()
    launcher.hello(1)
    await settle()
    answering = asyncio.create_task(answer(launcher, [], []))
    assert await process.remaining() == []
    assert await process.kill_everything() == []
    assert [question["op"] for question in await answering] == ["left", "kill"]
    process.close()


async def test_a_start_after_that_is_the_new_launchers(launcher):
    launcher.hello(5)
    await settle()
    starting = asyncio.create_task(launcher.agent.start(command()))
    request = await launcher.hear()
    assert request["generation"] == 5
    for descriptor in launcher.started(request["id"]):
        os.close(descriptor)
    (await starting).close()


async def test_an_exit_that_was_heard_before_the_launcher_went_stays_what_it_was(launcher):
    process, number = await launcher.running()
    launcher.say(op="exited", id=number, code=0)
    launcher.hello(1)
    assert await process.wait() == ExitStatus(exit_code=0)
    process.close()


async def test_before_a_launcher_said_hello_a_start_waits_for_it(monkeypatch):
    launcher = FakeLauncher()
    starting = asyncio.create_task(launcher.agent.start(command()))
    await asyncio.sleep(0.02)
    assert await launcher.nothing_heard()
    launcher.hello()
    request = await launcher.hear()
    launcher.say(op="failed", id=request["id"], step="execve", errno=2, searched="", begun=False)
    with pytest.raises(StartError):
        await starting
    launcher.close()


@pytest.mark.usefixtures("silence")
async def test_without_any_launcher_it_certainly_did_not_start():
    launcher = FakeLauncher()
    with pytest.raises(StartError) as caught:
        await launcher.agent.start(command())
    assert (caught.value.step, caught.value.errno) == ("launcher", errno.ETIMEDOUT)
    assert await launcher.nothing_heard()
    launcher.close()


@pytest.mark.parametrize("unread", [False, True])
async def test_the_end_of_the_socket_interrupts_everything(launcher, unread):
    process, _ = await launcher.running()
    starting = asyncio.create_task(launcher.agent.start(command()))
    await settle()
    if not unread:
        await launcher.hear()
    launcher.far.close()
    for waiting in (process.wait(), starting):
        with pytest.raises(Interrupted) as caught:
            await asyncio.wait_for(waiting, 5)
        assert code_of(caught) == (ErrorCode.LAUNCHER_RESTARTED, GONE)
    process.terminate()
    process.close()


@pytest.mark.usefixtures("silence")
async def test_a_start_after_the_end_of_the_socket_is_an_error_that_the_caller_knows(launcher):
    launcher.far.close()
    await settle()
    with pytest.raises((StartError, Interrupted)):
        await launcher.agent.start(command())


async def test_requests_that_wait_for_a_launcher_that_is_gone_are_dropped_and_not_tried_for_ever(launcher):
    process, _ = await launcher.running()
    fill(launcher, process)
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    launcher.far.close()
    for _ in range(20):
        await asyncio.sleep(0)
    asyncio.get_running_loop().set_exception_handler(None)
    process.close()
    assert faults == [], f"the loop goes round with {len(faults)} faults: {faults[:1]}"


# --- silence


@pytest.mark.usefixtures("silence")
async def test_a_silent_launcher_is_given_up_and_asked_to_kill_what_it_may_have_started(launcher):
    starting = asyncio.create_task(launcher.agent.start(command()))
    number = (await launcher.hear())["id"]
    with pytest.raises(LauncherGone) as caught:
        await asyncio.wait_for(starting, 5)
    assert code_of(caught) == (ErrorCode.LAUNCHER_RESTARTED, "the launcher did not answer")
    assert [await launcher.hear(), await launcher.hear()] == [
        {"op": "kill", "id": number},
        {"op": "forget", "id": number},
    ]
    for descriptor in launcher.started(number):  # too late: its descriptors are closed
        os.close(descriptor)
    await settle()


@pytest.mark.usefixtures("silence")
async def test_whoever_is_not_told_what_is_left_says_that_it_does_not_know(launcher):
    process, _ = await launcher.running()
    assert await process.remaining() is None
    assert await process.kill_everything() is None
    process.close()


async def answer(launcher: FakeLauncher, *pids: list[int]) -> list[Said]:
    """Answer the next questions with these; returns them."""
    asked = []
    for each in pids:
        asked.append(await launcher.hear())
        launcher.say(op="left", id=asked[-1]["id"], n=asked[-1]["n"], pids=each)
    return asked


async def test_what_is_left_is_asked_for(launcher):
    process, number = await launcher.running()
    answering = asyncio.create_task(answer(launcher, [5, 6]))
    assert await process.remaining() == [5, 6]
    (question,) = await answering
    assert (question["op"], question["id"]) == ("left", number)
    process.close()


async def test_a_late_answer_to_an_earlier_question_is_not_taken_for_a_later_one(launcher, monkeypatch):
    process, number = await launcher.running()
    monkeypatch.setattr(entering, "ANSWER_SECONDS", 0.03)
    assert await process.remaining() is None
    earlier = await launcher.hear()
    monkeypatch.setattr(entering, "ANSWER_SECONDS", 5)
    asking = asyncio.create_task(process.remaining())
    later = await launcher.hear()
    launcher.say(op="left", id=number, n=earlier["n"], pids=[])
    await settle()
    assert not asking.done(), "the answer to the earlier question was taken"
    launcher.say(op="left", id=number, n=later["n"], pids=[7])
    assert await asking == [7]
    process.close()


async def test_two_questions_at_once_each_get_their_answer(launcher):
    process, number = await launcher.running()
    asking = [asyncio.create_task(process.remaining()) for _ in range(2)]
    asked = [await launcher.hear(), await launcher.hear()]
    for question, pids in zip(reversed(asked), ([2], [1]), strict=True):
        launcher.say(op="left", id=number, n=question["n"], pids=pids)
    assert [await each for each in asking] == [[1], [2]]
    process.close()


# --- killing

ANSWERS = len(entering.KILL_PAUSES_SECONDS)


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        ([[]], []),
        ([[7, 8], [8], []], []),
        ([[7]] * ANSWERS, [7]),
        ([[7]] * (ANSWERS - 1) + [[]], []),
    ],
    ids=["nothing", "soon", "never", "at last"],
)
async def test_everything_is_killed_until_nobody_is_left(launcher, monkeypatch, answers, left):
    monkeypatch.setattr(entering, "KILL_PAUSES_SECONDS", (0,) * ANSWERS)
    process, number = await launcher.running()
    answering = asyncio.create_task(answer(launcher, *answers))
    assert await process.kill_everything() == left
    asked = await answering
    assert {(question["op"], question["id"]) for question in asked} == {("kill", number)}
    assert await launcher.nothing_heard(), "it asked more often than it had to"
    process.close()


async def test_a_command_that_exited_alone_left_nothing_that_had_to_be_asked_for(launcher):
    process, number = await launcher.running()
    launcher.say(op="exited", id=number, code=0, alone=True)
    assert await process.wait() == ExitStatus(exit_code=0)
    assert await process.remaining() == []
    assert await process.kill_everything() == []
    assert await launcher.nothing_heard()
    process.close()


# --- cancelling a start


async def test_a_cancelled_start_asks_to_kill_and_forget(launcher):
    starting = asyncio.create_task(launcher.agent.start(command()))
    number = (await launcher.hear())["id"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [await launcher.hear(), await launcher.hear()] == [
        {"op": "kill", "id": number},
        {"op": "forget", "id": number},
    ]
    writing = launcher.started(number)  # faster than the cancellation
    await settle()
    for descriptor in writing:
        with pytest.raises(BrokenPipeError):
            os.write(descriptor, b"nobody reads")
        os.close(descriptor)


async def test_a_start_cancelled_in_the_moment_it_succeeds_closes_what_it_got(launcher):
    starting = asyncio.create_task(launcher.agent.start(command()))
    number = (await launcher.hear())["id"]
    writing = launcher.started(number)
    launcher.agent._hear()  # and the task is not told yet
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [(await launcher.hear())["op"], (await launcher.hear())["op"]] == ["kill", "forget"]
    for descriptor in writing:
        os.close(descriptor)


async def test_a_start_cancelled_before_there_is_a_launcher_asks_for_nothing():
    launcher = FakeLauncher()
    starting = asyncio.create_task(launcher.agent.start(command()))
    await until(lambda: launcher.neighbours.main("db"), "it was looked for")
    await settle()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    launcher.hello()
    assert await launcher.nothing_heard()
    launcher.close()


# --- a launcher that is busy


def fill(launcher: FakeLauncher, process: EnteredProcess) -> int:
    """Ask until requests have to wait; returns how many were asked."""
    count = 0
    while len(launcher.agent._waiting) < 10:
        launcher.agent.ask(process._number, "signal", signal=0, count=count, padding="x" * 10_000)
        count += 1
        assert count < 5000, "the socket never gets full"
    return count


async def test_requests_to_a_busy_launcher_wait_and_arrive_all_and_in_order(launcher):
    process, _ = await launcher.running()
    count = fill(launcher, process)
    assert [(await launcher.hear())["count"] for _ in range(count)] == list(range(count))
    assert not launcher.agent._waiting
    process.terminate()
    assert (await launcher.hear())["signal"] == 15, "and then they are sent at once again"
    process.close()


async def test_what_is_asked_when_there_is_room_again_does_not_overtake_what_waits(launcher):
    process, _ = await launcher.running()
    count = fill(launcher, process)
    heard = [json.loads(launcher.far.recv(1 << 20))["count"] for _ in range(5)]  # and the loop had no turn yet
    process.terminate()
    heard += [(await launcher.hear())["count"] for _ in range(count - 5)]
    assert heard == list(range(count))
    assert (await launcher.hear())["signal"] == 15
    process.close()


async def test_a_start_waits_for_its_turn_behind_what_was_asked_before(launcher):
    process, _ = await launcher.running()
    count = fill(launcher, process)
    starting = asyncio.create_task(launcher.agent.start(command()))
    await settle()
    heard = [await launcher.hear() for _ in range(count + 1)]
    assert [each["op"] for each in heard] == ["signal"] * count + ["start"]
    for descriptor in launcher.started(heard[-1]["id"]):
        os.close(descriptor)
    (await starting).close()
    process.close()


async def test_a_launcher_that_is_overrun_starts_nothing_more_and_says_so(launcher, monkeypatch):
    monkeypatch.setattr(entering, "MAX_WAITING", 10)
    process, _ = await launcher.running()
    fill(launcher, process)
    with pytest.raises(StartError) as caught:
        await launcher.agent.start(command())
    assert (caught.value.step, caught.value.errno) == ("launcher", errno.EBUSY)
    process.terminate()  # no error either
    process.close()


# --- too much


@pytest.mark.parametrize("more", [{"environment": {"A": "x" * MAX_PACKET_BYTES}}, {"user": "x" * MAX_PACKET_BYTES}])
async def test_what_is_too_large_for_a_packet_certainly_did_not_start(launcher, more):
    with pytest.raises(StartError) as caught:
        await launcher.agent.start(command(**more))
    error = caught.value
    assert (error.step, error.errno, str(error)) == ("execve", errno.E2BIG, "Argument list too long")
    assert {(await launcher.hear())["op"], (await launcher.hear())["op"]} <= {"kill", "forget"}
    process, _ = await launcher.running()
    process.close()


@pytest.mark.parametrize("letter", ["x", '"', "é", "語", "\N{GRINNING FACE}"])
async def test_the_longest_command_that_a_hook_may_have_fits(launcher, letter):
    long = letter * ((MAX_COMMAND_BYTES - 16) // len(letter.encode()))
    starting = asyncio.create_task(launcher.agent.start(command("sh", "-c", long)))
    hearing = asyncio.create_task(launcher.hear())
    await asyncio.wait({starting, hearing}, return_when=asyncio.FIRST_COMPLETED)
    request = await hearing
    assert request["op"] == "start", f"it is refused: {starting.exception()!r}"
    assert request["argv"][2] == long
    launcher.say(op="failed", id=request["id"], step="execve", errno=2, searched="", begun=False)
    with pytest.raises(StartError):
        await starting


async def test_packets_that_were_cut_are_not_the_end(launcher, monkeypatch):
    process, number = await launcher.running()
    launcher.say(op="exited", id=number, code=1, padding="x" * MAX_PACKET_BYTES)
    await settle()
    launcher.say(op="exited", id=number, code=0)
    assert await process.wait() == ExitStatus(exit_code=0)
    process.close()


# --- nothing is left


async def test_a_thousand_attempts_leave_no_descriptor_and_are_all_forgotten(launcher):
    """Ones that succeed, fail, are cancelled early and late, and one whose descriptors come for nobody."""
    process, _ = await launcher.running()
    process.close()
    await launcher.hear()
    before = descriptors()
    for attempt in range(1000):
        starting = asyncio.create_task(launcher.agent.start(command(str(attempt))))
        number = (await launcher.hear())["id"]
        match attempt % 4:
            case 0:
                for descriptor in launcher.started(number):
                    os.close(descriptor)
                launcher.say(op="exited", id=number, code=0)
                process = await starting
                assert await process.wait() == ExitStatus(exit_code=0)
                process.close()
            case 1:
                launcher.say(op="failed", id=number, step="root", errno=13, searched="", begun=attempt % 8 == 1)
            case 2:
                starting.cancel()
                await asyncio.wait({starting})
                for descriptor in launcher.started(number):
                    os.close(descriptor)
            case 3:
                for descriptor in launcher.started(number):
                    os.close(descriptor)
                starting.cancel()
        await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None and attempt % 4 != 0:
            starting.result().close()
        while (await launcher.hear())["op"] != "forget":
            pass
    await settle()
    assert descriptors() == before
    assert launcher.agent._asks == {}


async def test_a_process_that_is_let_go_of_closes_everything_and_is_forgotten_once(launcher):
    before = descriptors()
    process, number = await launcher.running()
    process.close()
    launcher.agent.forget(number)
    assert await launcher.hear() == {"op": "forget", "id": number}
    assert await launcher.nothing_heard()
    known = {launcher.neighbours.census.mains["db"].pidfd}
    assert set(descriptors()) - known == set(before)


async def test_the_bounds_are_as_documented():
    """The launcher gives up on a child after 10 s, so whoever waits for its answer has to wait longer."""
    from agent.pod.launcher import STEP_SECONDS

    assert entering.ANSWER_SECONDS > STEP_SECONDS
    assert sum(entering.KILL_PAUSES_SECONDS) < 5
    assert signal.SIGTERM == 15
    with contextlib.suppress(OSError):
        wmem_max = int(Path("/proc/sys/net/core/wmem_max").read_text())
        assert 2 * wmem_max > MAX_PACKET_BYTES, "a socket's buffer has to hold one packet"
