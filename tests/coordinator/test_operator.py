"""The Operator executor: the coordinator runs the action itself, by the agent's own code, and needs no broker."""

import asyncio
import json

import pytest

from agent.contract.errors import BadInput
from agent.contract.templates import load_hooks
from agent.coordinator import Coordinator, HookCall, Verdict, retries
from agent.coordinator.operator import OperatorOptions
from tests.coordinator.conftest import Diary, Heard, sh, until

OPERATOR = {"type": "Operator"}


def here(**action):
    return load_hooks(json.dumps({"action": action, "executor": OPERATOR}), name="test")[0]


def script(text, **more):
    return here(exec={"command": ["/bin/sh", "-c", text], **more})


async def run(hook, *, options=None, on_event=None, **more):
    async with Coordinator(None, operator=options) as coordinator:
        return await coordinator.run(HookCall(hook, **more), on_event=on_event or Heard())


@pytest.fixture
def diary(tmp_path):
    return Diary(tmp_path / "diary")


@pytest.fixture
async def server():
    """Answers every request with 200 and keeps what was sent; its port and the requests."""
    requests = []

    async def answer(reader, writer):
        try:
            requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # who only tries the port says nothing
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1], requests


@pytest.mark.parametrize(
    ("text", "verdict", "code"), [("echo hi", Verdict.SUCCEEDED, 0), ("exit 3", Verdict.FAILED, 3)]
)
async def test_a_command_runs_on_the_coordinators_own_machine(text, verdict, code):
    ended = await run(script(text))
    [target] = ended.targets
    assert (ended.verdict, str(target.target), target.result.exit_code) == (verdict, "operator", code)
    assert target.result.stdout.text == ("hi\n" if code == 0 else "")
    assert ended.to_json()["targets"][0]["verified"] is True, "nobody else has said it"


async def test_a_command_that_is_not_there_was_looked_for_on_this_machine():
    ended = await run(here(exec={"command": ["no-such-program"]}))
    assert ended.targets[0].result.exit_code == 127
    assert "command 'no-such-program' was not found on this machine (searched in PATH" in (
        ended.targets[0].result.error.message
    )


async def test_a_request_goes_out_from_here_and_its_answer_is_in_the_outcome(server):
    port, requests = server
    ended = await run(here(httpGet={"host": "127.0.0.1", "port": port, "path": "/freeze?now=1"}))
    assert (ended.verdict, ended.targets[0].result.http_status) == (Verdict.SUCCEEDED, 200)
    assert ended.targets[0].result.stdout.text == "hello"
    assert requests[0].startswith("GET /freeze?now=1 HTTP/1.1")


async def test_a_port_is_tried_from_here(server):
    assert (await run(here(tcpSocket={"host": "127.0.0.1", "port": server[0]}))).verdict is Verdict.SUCCEEDED
    ended = await run(here(tcpSocket={"host": "127.0.0.1", "port": 1}))
    assert ended.targets[0].result.error.code == "connection_refused"


async def test_the_metadata_address_is_refused_here_too():
    ended = await run(here(httpGet={"host": "169.254.169.254", "port": 80}))
    assert (str(ended.targets[0].result.outcome), ended.verdict) == ("rejected", Verdict.FAILED)


async def test_params_are_filled_in_and_the_run_is_told(monkeypatch):
    monkeypatch.setenv("PODHOOK_BROKER", "mqtt://me:pw@broker")
    ended = await run(script("echo ${WHAT} $PODHOOK_RUN_ID $PODHOOK_BROKER"), params={"WHAT": "that"})
    assert ended.targets[0].result.stdout.text == f"that {ended.run_id}\n"


async def test_secrets_of_our_environment_and_of_the_hook_are_never_seen(monkeypatch, tmp_path):
    monkeypatch.setenv("RESTIC_PASSWORD", "hunter2-hunter2")
    (tmp_path / "db").write_text("from-the-file\n")
    env = [{"name": "TOKEN", "valueFrom": {"file": "db"}}]
    hook = script("echo $RESTIC_PASSWORD; echo $TOKEN >&2; test $TOKEN = from-the-file", env=env)
    ended = await run(hook, options=OperatorOptions(secrets_dir=tmp_path))
    said = json.dumps(ended.to_json())
    assert ended.verdict is Verdict.SUCCEEDED
    assert "hunter2" not in said
    assert "from-the-file" not in said


async def test_a_secret_that_cannot_be_read_rejects_it_and_nothing_runs(diary):
    env = [{"name": "TOKEN", "valueFrom": {"file": "db"}}]
    ended = await run(script(diary.note("ran"), env=env))
    assert (str(ended.targets[0].result.outcome), ended.targets[0].result.error.code) == (
        "rejected",
        "secret_unavailable",
    )
    assert diary.lines == []


async def test_the_timeout_ends_everything_that_was_started(diary):
    ended = await run(
        script(f"{diary.note('begin')}; (sleep 600; {diary.note('left')}) & sleep 600"), timeout_seconds=0.3
    )
    assert str(ended.targets[0].result.outcome) == "timed_out"
    assert diary.lines == ["begin"]


async def test_what_failed_is_repeated_and_the_attempts_are_told(diary, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_FIRST_SECONDS", 0.01)
    heard = Heard()
    ended = await run(script(f"{diary.note('try')}; test $(wc -l < {diary.path}) = 3"), max_retry=5, on_event=heard)
    assert (ended.verdict, ended.targets[0].attempt, diary.lines) == (Verdict.SUCCEEDED, 3, ["try"] * 3)
    assert [event.kind for event in heard.events] == [
        "selected",
        *["started", "outcome", "retry"] * 2,
        "started",
        "outcome",
    ]


async def test_cancel_ends_what_runs_and_repeats_nothing(diary):
    heard = Heard()
    async with Coordinator(None) as coordinator:
        call = HookCall(
            script(f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('begin')}; sleep 600 & wait"), max_retry=5
        )
        running = asyncio.create_task(coordinator.run(call, on_event=heard))
        await until(lambda: diary.lines == ["begin"], "the command began")
        coordinator.cancel()
        ended = await running
    assert (ended.verdict, str(ended.targets[0].result.outcome)) == (Verdict.CANCELLED, "cancelled")
    assert diary.lines == ["begin", "stopped"]


async def test_cancelling_the_task_ends_what_runs(diary):
    async with Coordinator(None) as coordinator:
        call = HookCall(script(f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('begin')}; sleep 600 & wait"))
        running = asyncio.create_task(coordinator.run(call))
        await until(lambda: diary.lines == ["begin"], "the command began")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert diary.lines == ["begin", "stopped"]


async def test_without_a_broker_no_agent_can_be_asked():
    async with Coordinator(None) as coordinator:
        with pytest.raises(BadInput, match="given none; give its URL"):
            await coordinator.run(HookCall(sh("true")))
