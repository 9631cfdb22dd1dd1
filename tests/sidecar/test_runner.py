"""The runner: a trigger is checked without doing anything, then its action runs, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.actions.stop import Stop, StopReason
from agent.contract.actions import Action
from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import Capture, CatalogueHook, Guard, Result, Targets, Trigger
from agent.contract.states import Outcome
from agent.pod.containers import Containers
from agent.pod.environments import Learnt
from agent.pod.identity import parse_description
from agent.pod.job import MINIMAL_PATH
from agent.pod.processes import Interrupted, LocalLauncher, StartError
from agent.pod.supervisor import NO_LAUNCHER
from agent.sidecar import runner as runner_module
from agent.sidecar.policy import Policy, load_policy
from agent.sidecar.runner import Runner, RunnerOptions
from tests.strays import descriptors, until, zombies

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01"
NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
POD = parse_description(
    '{"containers": [{"name": "mysql", "ports": [{"name": "db", "containerPort": 3306}]}, {"name": "metrics"}]}'
)
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/home/mysql", "LANG": "C"}


def _always(look: Callable[[], Containers]) -> Callable[[str | None], Awaitable[Containers]]:
    async def answer(_wanted: str | None) -> Containers:
        return look()

    return answer


def runner(*, own: str = "mysql", policy: Policy | None = None, environments: Any = None, **options: Any) -> Runner:
    whole = {"address": "127.0.0.1", "user_agent": "podhook/1", "output_limit_bytes": 32768, **options}
    return Runner(
        LocalLauncher(),
        _always(lambda: Containers(POD, own, "shop/db-0", why_not=NO_LAUNCHER, alone=True)),
        lambda: dict(ENVIRONMENT),
        RunnerOptions(**whole),
        now=lambda: NOW,
        policy=lambda: policy,
        environments=environments,
    )


def trigger(action: dict[str, Any] | None = None, **more: Any) -> Trigger:
    return Trigger(
        run_id=RUN,
        attempt=2,
        coordinator="nightly",
        pod_uid=UID,
        targets=Targets.of([("shop", "db-0", UID)]),
        action=Action.model_validate(action) if action else None,
        issued_at=NOW,
        deadline=NOW,
        **more,
    )


def sh(line: str, **more: Any) -> Trigger:
    return trigger({"exec": {"command": ["sh", "-c", line], **more.pop("exec", {})}}, **more)


async def run(wanted: Trigger, *, stop: Stop | None = None, **options: Any) -> Result:
    made = runner(**options)
    return await made.run(await made.prepare(wanted), stop or Stop(wanted.timeout_seconds))


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    before, dead = descriptors(), zombies()
    yield
    assert zombies() == dead, "zombies were left"
    await until(lambda: not descriptors().keys() - before.keys(), "every descriptor is closed", 3)


@contextlib.asynccontextmanager
async def server(answer: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that keeps the head of what it is asked and sends `answer`."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            if answer:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(answer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], heads


# --- prepare: what can be checked without doing it


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (
            trigger(
                {"exec": {"command": ["true"]}},
                guard=Guard(undo=Action.model_validate({"exec": {"command": ["true"]}}), ttl_seconds=60),
            ),
            ErrorCode.UNSUPPORTED,
            "this version has no guards; send the trigger without one",
        ),
        (
            trigger(hook=CatalogueHook(name="freeze")),
            ErrorCode.UNKNOWN_HOOK,
            "this agent has no catalogue, so no hook 'freeze'; send the action in the trigger",
        ),
        (
            sh("true", exec={"user": "root"}),
            ErrorCode.UNSUPPORTED,
            (
                "exec.user 'root': in the agent's own container 'mysql' commands run as one user only; remove it, or "
                "name another container"
            ),
        ),
        (
            trigger({"exec": {"command": ["true"]}, "containerName": "mysq"}),
            ErrorCode.UNKNOWN_CONTAINER,
            "container 'mysq' is not in pod shop/db-0 (has: mysql, metrics); set containerName to one of them",
        ),
        (
            trigger({"exec": {"command": ["true"]}, "containerName": "metrics"}),
            ErrorCode.CONTAINER_NOT_ENTERABLE,
            (
                "container 'metrics' of pod shop/db-0 is not the agent's own ('mysql'), and commands cannot run there: "
                f"{NO_LAUNCHER}; mend that, or name 'mysql' in containerName"
            ),
        ),
        *(
            (
                trigger({kind: {"port": "web"}, "containerName": "mysql"}),
                ErrorCode.UNKNOWN_PORT,
                "container 'mysql' of pod shop/db-0 has no port named 'web' (has: db); use one of them or a number",
            )
            for kind in ("httpGet", "httpPost", "tcpSocket")
        ),
    ],
)
async def test_what_cannot_be_done_here_is_refused_before_anything_runs(wanted, code, message):
    with pytest.raises(Refusal) as caught:
        await runner().prepare(wanted)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize(
    ("action", "container", "port"),
    [
        ({"exec": {"command": ["true"]}}, "mysql", 0),
        ({"exec": {"command": ["/no/such/program"]}, "containerName": "mysql"}, "mysql", 0),
        ({"httpGet": {"port": 8080}}, "", 8080),
        ({"httpPost": {"port": "db"}, "containerName": "mysql"}, "", 3306),
        ({"tcpSocket": {"port": "3307"}}, "", 3307),
    ],
)
async def test_what_was_prepared_knows_its_container_and_port(action, container, port):
    prepared = await runner().prepare(trigger(action))
    assert (prepared.container, prepared.port) == (container, port)


async def test_preparing_does_nothing(tmp_path):
    await runner().prepare(sh(f"echo ran >{tmp_path}/ran"))
    assert list(tmp_path.iterdir()) == []


async def test_the_pod_is_looked_at_anew_for_each_trigger():
    descriptions = iter(['{"containers": [{"name": "a"}]}', '{"containers": [{"name": "b"}]}'])
    made = Runner(
        LocalLauncher(),
        _always(lambda: Containers(parse_description(next(descriptions)), "b", "shop/db-0", alone=True)),
        dict,
        RunnerOptions("127.0.0.1", "podhook/1", 0),
        now=lambda: NOW,
    )
    with pytest.raises(Refusal):
        await made.prepare(sh("true"))
    assert (await made.prepare(sh("true"))).container == "b"


# --- exec


async def test_a_command_runs_and_its_result_has_its_times():
    result = await run(sh("sleep 0.1; echo out; echo err >&2; exit 3"))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3)
    assert (result.stdout.text, result.stderr.text) == ("out\n", "err\n")
    assert result.started_at == NOW
    assert 0.1 <= result.duration_seconds < 5


def environment_of(result: Result) -> dict[str, str]:
    assert result.outcome == Outcome.SUCCEEDED, result.error
    return dict(line.split("=", 1) for line in result.stdout.text.splitlines())


OWN = {"PODHOOK_RUN_ID": RUN, "PODHOOK_TRIGGER_ID": f"{RUN}/2", "PODHOOK_ATTEMPT": f"{UID}/{RUN}/2"}


@pytest.mark.parametrize(
    ("asked", "environment"),
    [
        ({}, {**ENVIRONMENT, **OWN}),
        ({"env": [{"name": "A", "value": "1=2"}]}, {**ENVIRONMENT, "A": "1=2", **OWN}),
        ({"env": [{"name": "LANG", "value": ""}]}, {**ENVIRONMENT, "LANG": "", **OWN}),
        ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, {**ENVIRONMENT, "A": "2", **OWN}),
        ({"environment": "minimal"}, {"PATH": MINIMAL_PATH.decode(), "HOME": "/home/mysql", **OWN}),
        (
            {"environment": "minimal", "env": [{"name": "HOME", "value": "/"}]},
            {"PATH": MINIMAL_PATH.decode(), "HOME": "/", **OWN},
        ),
        ({"env": [{"name": "PODHOOK_TRIGGER_ID", "value": "forged"}]}, {**ENVIRONMENT, **OWN}),
    ],
)
async def test_a_command_has_the_environment_it_asked_for_and_the_attempts_id(asked, environment):
    result = await run(trigger({"exec": {"command": ["/usr/bin/env"], **asked}}))
    assert environment_of(result) == environment


async def test_the_agents_own_limit_and_the_triggers_both_bound_what_is_kept():
    line = "head -c 5000 /dev/zero | tr '\\0' x"
    for limit, option, kept in ((1000, 4000, 1000), (4000, 1000, 1000), (0, 4000, 0), (6000, 6000, 5000)):
        result = await run(sh(line, capture=Capture(limit_bytes=limit)), output_limit_bytes=option)
        assert result.stdout.text.count("x") == kept
        assert result.stdout.total_bytes == 5000


async def test_the_timeout_counts_from_the_start_of_the_action():
    stop = Stop(timeout_seconds=0.2)
    await asyncio.sleep(0.3)
    result = await run(sh("sleep 60"), stop=stop)
    assert (result.outcome, result.error.code, result.signal) == (Outcome.TIMED_OUT, ErrorCode.TIMEOUT, "SIGTERM")
    assert 0.2 <= result.duration_seconds < 5


async def test_the_clock_is_forgotten_when_the_action_has_ended():
    stop = Stop(timeout_seconds=60)
    await run(sh("true"), stop=stop)
    assert stop._timer.cancelled()
    assert stop.reason is None


# --- http and tcp


async def test_an_http_action_asks_the_pods_own_address():
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (port, heads):
        result = await run(trigger({"httpGet": {"port": port, "path": "/freeze?a=b"}}))
    assert (result.outcome, result.http_status, result.stdout.text) == (Outcome.SUCCEEDED, 200, "ok")
    assert heads[0].startswith(b"GET /freeze?a=b HTTP/1.1\r\n")
    assert b"\r\nUser-Agent: podhook/1\r\n" in heads[0]
    assert result.started_at == NOW


class Siblings:
    """The environments of the other containers; counts who asks."""

    def __init__(self, *learnt: Learnt, wait: bool = False) -> None:
        self.learnt, self.wait, self.asked = learnt, wait, 0

    async def __call__(self) -> tuple[Learnt, ...]:
        self.asked += 1
        if self.wait:
            await asyncio.Event().wait()
        return self.learnt


KNOWN = Learnt("mysql", [(b"MYSQL_PASSWORD", b"hunter-22"), (b"CACHE", b"redis://u:in-the-url@h/")])
SHOWS_ALL = b"<b>MYSQL_PASSWORD=hunter-22 redis://u:in-the-url@h/ aHVudGVy\nLTIy</b>"


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("status", ["200 OK", "500 No"])
async def test_an_answer_shows_no_secret_of_the_pods_containers(status):
    siblings = Siblings(KNOWN)
    async with server(answer(status, SHOWS_ALL)) as (port, _):
        result = await run(trigger({"httpGet": {"port": port}}), environments=siblings)
    shown = "<b>MYSQL_PASSWORD=[redacted] redis://u:[redacted]@h/ [redacted]</b>"
    assert (result.stdout.text, result.notes) == (shown, [])
    if result.error is not None:
        assert result.error.message.endswith(shown), "its start is quoted"
    assert siblings.asked == 1


async def test_what_of_the_pod_is_not_known_is_noted():
    unreadable = Learnt("redis", why_not=StartError(OSError(0, ""), "environment"))
    gone = Learnt("web", why_not=Interrupted(ErrorCode.LAUNCHER_RESTARTED, "the launcher did not answer"))
    async with server(answer("200 OK", SHOWS_ALL)) as (port, _):
        result = await run(trigger({"httpGet": {"port": port}}), environments=Siblings(KNOWN, unreadable, gone))
    assert "hunter-22" not in result.stdout.text, "what is known is looked for all the same"
    what = "what was answered was not searched for secrets in the environment of container"
    assert result.notes == [
        f"{what} 'redis': its main process overwrote its environment; what it was started with is not known",
        f"{what} 'web': the launcher did not answer",
    ]


async def test_nobody_is_asked_where_nothing_is_kept_nor_for_a_command_or_a_connection():
    siblings = Siblings(KNOWN)
    async with server(answer("500 No", b"hunter-22")) as (port, _):
        get = trigger({"httpGet": {"port": port}}, capture=Capture(limit_bytes=0))
        result = await run(get, environments=siblings)
        assert (result.http_status, "hunter" in result.stdout.text) == (500, False)
        assert "hunter" not in (result.error.message if result.error else "")
        await run(trigger({"tcpSocket": {"port": port}}), environments=siblings)
        await run(sh("true"), environments=siblings)
    assert siblings.asked == 0


async def test_a_request_waits_a_moment_for_it_and_then_goes(monkeypatch):
    monkeypatch.setattr(runner_module, "LEARN_SECONDS", 0.01)
    async with server(answer("200 OK", b"hunter-22")) as (port, heads):
        result = await run(trigger({"httpGet": {"port": port}}), environments=Siblings(wait=True))
    assert (result.outcome, len(heads)) == (Outcome.SUCCEEDED, 1)
    assert result.notes == [
        "what was answered was not searched for secrets in the environment of the other containers: no answer in time"
    ]


async def test_a_request_without_an_answer_has_no_such_note():
    gone = Learnt("web", why_not=Interrupted(ErrorCode.LAUNCHER_RESTARTED, "x"))
    async with server() as (port, _):
        result = await run(trigger({"httpGet": {"port": port}}), environments=Siblings(gone))
    assert (result.http_status, result.notes) == (None, [])


async def test_an_http_answer_is_kept_up_to_the_limit():
    async with server(b"HTTP/1.1 500 Broken\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000) as (port, _):
        result = await run(trigger({"httpPost": {"port": port, "body": "{}"}}, capture=Capture(limit_bytes=100)))
    assert (result.outcome, result.http_status, result.error.code) == (Outcome.FAILED, 500, ErrorCode.HTTP_STATUS)
    assert result.stdout.text.count("x") <= 100


async def test_a_tcp_action_connects_to_the_pods_own_address():
    async with server() as (port, _):
        result = await run(trigger({"tcpSocket": {"port": port}}))
    assert (result.outcome, result.error) == (Outcome.SUCCEEDED, None)


async def test_a_tcp_action_to_a_closed_port_names_the_address_tried():
    async with server() as (port, _):
        pass
    result = await run(trigger({"tcpSocket": {"port": port}}))
    assert (result.outcome, result.error.code) == (Outcome.FAILED, ErrorCode.CONNECTION_REFUSED)
    assert f"127.0.0.1:{port}" in result.error.message


@pytest.mark.parametrize("kind", ["exec", "httpGet", "tcpSocket"])
async def test_any_action_ends_when_it_is_stopped(kind):
    async with contextlib.AsyncExitStack() as stack:
        silent = await stack.enter_async_context(_silent())
        actions = {"exec": {"command": ["sleep", "60"]}, "httpGet": {"port": silent}, "tcpSocket": {"port": silent}}
        stop = Stop(60)
        if kind == "tcpSocket":  # a connection on loopback opens at once, so the end has to come first
            stop.set(StopReason.CANCELLED)
        asyncio.get_running_loop().call_later(0.1, stop.set, StopReason.CANCELLED)
        async with asyncio.timeout(5):
            result = await run(trigger({kind: actions[kind]}), stop=stop)
    assert (result.outcome, result.error.code) == (Outcome.CANCELLED, ErrorCode.CANCELLED)


@contextlib.asynccontextmanager
async def _silent() -> AsyncIterator[int]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


# --- with a policy


async def test_what_was_prepared_knows_the_rule_that_allowed_it():
    policy = load_policy("""
containers: {mysql: {commands: [[/bin/true]]}}
limits: {outputBytes: 5}
catalogue: {say: {params: {a: {type: string, pattern: "[a-z]*"}}, action: {exec: {command: [echo, "${a}"]}}}}
""")
    assert (await runner().prepare(sh("true"))).rule == "no policy"
    prepared = await runner(policy=policy).prepare(trigger({"exec": {"command": ["/bin/true"]}}))
    assert (prepared.rule, prepared.container) == ("containers.mysql.commands[0]", "mysql")
    with pytest.raises(Refusal, match="containers: no rule is for container 'metrics'"):  # the one that would run
        await runner(policy=policy, own="metrics").prepare(
            trigger({"exec": {"command": ["/bin/true"]}, "containerName": "metrics"})
        )
    said = trigger(hook=CatalogueHook(name="say", params={"a": "abcdefghij"}))
    made = runner(policy=policy)
    prepared = await made.prepare(said)
    assert prepared.rule == "catalogue.say"
    result = await made.run(prepared, Stop(10))
    assert (result.outcome, result.stdout.total_bytes, result.stdout.truncated) == (Outcome.SUCCEEDED, 11, True)


async def test_a_name_that_leads_back_to_the_pod_is_rejected_though_it_began(monkeypatch):
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "db.example" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (port, heads):
        rule = f"[{{hosts: [db.example], ports: [{port}]}}]"
        policy = load_policy(f"http: {rule}\ntcp: {rule}")
        for kind in ("httpGet", "tcpSocket"):
            result = await run(trigger({kind: {"host": "db.example", "port": port}}), policy=policy)
            assert (result.outcome, result.error.code) == (Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED)
            assert "127.0.0.1 is this pod itself, and " in result.error.message
        assert heads == []
        assert (await run(trigger({"httpGet": {"host": "db.example", "port": port}}))).outcome is Outcome.SUCCEEDED


async def test_a_redirect_leads_only_where_the_policy_lets_it():
    answer = b"HTTP/1.1 302 Found\r\nLocation: /%s\r\nContent-Length: 0\r\n\r\n"
    for place, asked in ((b"ok/x", 11), (b"no", 1)):
        async with server(answer % place) as (port, heads):
            policy = load_policy(f"http: [{{hosts: [pod], ports: [{port}], paths: [/ok/]}}]")
            result = await run(trigger({"httpGet": {"port": port, "path": "/ok/"}}), policy=policy)
        no = (Outcome.REJECTED, ErrorCode.POLICY_DENIED, "http")
        expected = no if asked == 1 else (Outcome.FAILED, ErrorCode.TOO_MANY_REDIRECTS, None)
        assert (result.outcome, result.error.code, result.error.rule) == expected
        assert len(heads) == asked


# --- faults


async def test_a_fault_of_ours_is_an_outcome_and_not_the_end_of_the_agent():
    def environment() -> dict[str, str]:
        raise ZeroDivisionError

    made = Runner(
        LocalLauncher(),
        _always(lambda: Containers(POD, "mysql", "shop/db-0", alone=True)),
        environment,
        RunnerOptions("127.0.0.1", "podhook/1", 0),
        now=lambda: NOW,
    )
    result = await made.run(await made.prepare(sh("true")), Stop(10))
    assert (result.outcome, result.error.code, result.started_at) == (Outcome.FAILED, ErrorCode.INTERNAL, NOW)
    assert result.error.message == (
        "a fault in podhook itself ended the attempt; whether it took effect is unknown: see the agent's log"
    )


async def test_cancelling_the_task_is_no_result(tmp_path):
    stop = Stop(60)
    task = asyncio.create_task(run(sh(f"echo >{tmp_path}/ready; sleep 60"), stop=stop))
    await until((tmp_path / "ready").exists, "the command runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_aiohttp_is_not_loaded_by_who_runs_no_http():
    """It takes 9 MB."""
    code = "import sys, agent.sidecar.runner; print('aiohttp' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
