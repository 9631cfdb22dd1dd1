"""The audit of a real agent: every decision has its line, and no trouble with the audit ends the work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from agent.bus.types import Publication
from agent.contract.messages import Query, Report
from tests.agents import TRUE, AgentProcess, Json, Stage, code, shell

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def lines_of(agent: AgentProcess, run_id: str) -> list[tuple[object, ...]]:
    def came_of(line: Json) -> object:
        return line.get("effect") or line.get("outcome") or line.get("code")

    return [
        (each["audit"], each.get("decision"), each.get("command"), came_of(each))
        for each in agent.audit()
        if each.get("run_id") == run_id
    ]


async def test_an_attempt_has_two_lines_in_order_that_name_its_trigger(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, shell("exit 3"), name="freeze")
    await client.outcome(sent)
    ended = await agent.audited("outcome")
    decided = agent.audit("decision")[0]
    assert decided["trigger_hash"] == ended["trigger_hash"] == sent.hash
    assert (decided["key_id"], decided["program"], decided["container"], decided["hook"]) == (
        "unsigned", "/bin/sh", "app", "freeze")  # fmt: skip
    assert (ended["outcome"], ended["code"], ended["duration_seconds"] > 0) == ("failed", "exit_code", True)
    assert [each["audit"] for each in agent.audit()] == ["decision", "outcome"]
    assert decided["agent"] == "shop/db-0"
    assert decided["time"] <= ended["time"]


async def test_what_is_refused_repeated_or_no_command_at_all_is_told_too(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, TRUE)
    await client.outcome(sent)
    await client.again(agent, sent)
    late = await client.trigger(agent, TRUE, deadline_in=-60)
    elsewhere = await client.trigger(agent, TRUE, pod_uid="another")
    unknown = await client.trigger(agent, {**TRUE, "containerName": "nobody"})
    await client.send_bytes(agent, b"SECRET-GARBAGE")
    broken = client.seal(client.make(agent, TRUE).trigger).replace(b'"command":["/bin/true"]', b'"command":[]')
    await client.send_bytes(agent, broken)
    await client.works(agent)
    assert lines_of(agent, sent.run_id) == [
        ("decision", "accepted", "trigger", None),
        ("outcome", None, None, "succeeded"),
        ("decision", "repeated", "trigger", None),
    ]
    for refused, expected in ((late, "expired"), (elsewhere, "wrong_pod_uid"), (unknown, "unknown_container")):
        assert lines_of(agent, refused.run_id) == [("decision", "refused", "trigger", expected)]
    (garbage,) = agent.audit("decision", command="unreadable")
    assert garbage["payload_hash"] == hashlib.sha256(b"SECRET-GARBAGE").hexdigest()
    (invalid,) = agent.audit("decision", code="invalid_action")
    assert invalid["trigger_hash"] == hashlib.sha256(broken).hexdigest()
    assert b"SECRET-GARBAGE" not in agent.audit_file.read_bytes()


async def test_an_agent_without_a_key_tells_whom_it_refused(stage: Stage) -> None:
    agent, client = await stage.agent(allow_unsigned=False), stage.client
    sent = await client.trigger(agent, TRUE)
    assert code(await client.outcome(sent)) == "unsigned"
    await client.cancel(agent, sent)
    await agent.audited("decision", command="unverified", code="unsigned")
    assert lines_of(agent, sent.run_id)[0] == ("decision", "refused", "trigger", "unsigned")


async def test_what_go_cancel_and_a_query_changed_is_told(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    barrier = await client.trigger(agent, TRUE, wait_for_go=True)
    await agent.audited("decision", run_id=barrier.run_id)
    await client.go(agent, barrier)
    await client.outcome(barrier)
    running = await client.trigger(agent, shell("sleep 60"))
    await agent.audited("decision", run_id=running.run_id)
    await client.cancel(agent, running)
    await client.outcome(running)
    await client.cancel(agent, running)  # changes nothing any more
    never, released = client.make(agent, TRUE), client.make(agent, TRUE)
    await client.cancel(agent, never)
    await client.cancel(agent, never)
    await client.release(agent, released)
    asked = client.make(agent, TRUE)
    query = Query(
        query_id=asked.run_id, coordinator=client.id, run_id=asked.run_id, attempt=1, settle=True,
        pod_uid=agent.uid, issued_at=asked.trigger.issued_at, deadline=asked.trigger.deadline,
    )  # fmt: skip
    await client.send(agent, query)
    await stage.until(lambda: [each for each in client.replies if isinstance(each, Report)], "the report")
    await agent.audited("decision", command="query")
    await client.query(agent, running.run_id)
    read = await agent.audited("decision", command="query", run_id=running.run_id)
    assert (read["decision"], read["effect"], read["key_id"], read["coordinator"]) == (
        "accepted", "answered", "unsigned", client.id)  # fmt: skip
    assert ("decision", "accepted", "go", "started") in lines_of(agent, barrier.run_id)
    assert lines_of(agent, running.run_id) == [
        ("decision", "accepted", "trigger", None),
        ("decision", "accepted", "cancel", "stopped"),
        ("outcome", None, None, "cancelled"),
        ("decision", "accepted", "query", "answered"),
    ]
    assert lines_of(agent, never.run_id) == [("decision", "accepted", "cancel", "tombstoned")]
    assert lines_of(agent, released.run_id) == [("decision", "accepted", "release", "tombstoned")]
    assert lines_of(agent, asked.run_id) == [("decision", "accepted", "query", "tombstoned")]


async def test_what_a_killed_agent_left_is_told_by_the_next(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, shell("sleep 60"))
    await agent.audited("decision", run_id=sent.run_id)
    agent.kill()
    await stage.start(agent)
    ended = await agent.audited("outcome", run_id=sent.run_id)
    assert (ended["outcome"], ended["recovered"]) == ("interrupted", True)


async def test_a_full_disk_ends_no_work_and_is_told_when_it_has_room_again(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.symlink_to("/dev/full")
    agent, client = await stage.agent(audit=path), stage.client
    for _ in range(3):
        assert (await client.run(agent, TRUE)).outcome == "succeeded"
    said = await client.presence(agent, lambda each: each is not None and each.problems, "the problem")
    assert said is not None
    assert "the audit cannot be written to" in said.problems[0]
    assert "No space left on device" in said.problems[0]
    assert len(agent.log("problem", problem="audit")) == 1, "said once"
    path.unlink()
    assert (await client.run(agent, TRUE)).outcome == "succeeded"
    await agent.logged("problem.mended", problem="audit")
    assert await agent.terminate() == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (lines[0]["audit"], lines[0]["count"]) == ("dropped", 6)
    assert [each["audit"] for each in lines[1:]] == ["decision", "outcome"]


async def test_a_broken_pipe_ends_no_work(stage: Stage) -> None:
    agent, client = stage.make(), stage.client
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack, open(writing, "wb") as pipe:  # noqa: PTH123
        real = subprocess.Popen

        def popen(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
            return real(*arguments, **{**options, "stdout": pipe})  # type: ignore[call-overload, no-any-return]

        patch = pytest.MonkeyPatch()
        stack.callback(patch.undo)
        patch.setattr(subprocess, "Popen", popen)
        await stage.start(agent)
    os.close(reading)
    for _ in range(3):
        assert (await client.run(agent, TRUE)).outcome == "succeeded"
    problem = await agent.logged("problem", problem="audit")
    assert "standard output: Broken pipe" in problem["text"]
    assert await agent.terminate() == 0


async def test_off_is_said_loudly(stage: Stage) -> None:
    agent = await stage.agent(audit="off")
    said = stage.client.said(agent)[-1]
    assert said is not None
    assert "there is no audit" in said.problems[0]
    await stage.client.works(agent)
    assert agent.audit_file.read_bytes() == b""


async def test_a_flood_is_some_lines_and_a_number_and_a_good_trigger_gets_through(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    topic = client.topics.commands(agent.namespace, agent.pod)
    for _ in range(500):
        await client.link.publish(Publication(topic, b"garbage"))
    await client.works(agent)
    await agent.audited("suppressed")
    lines = agent.audit("decision", command="unreadable")
    assert 50 <= len(lines) < 200
    counted = sum(each.get("suppressed", 0) for each in lines)
    assert len(lines) + counted + sum(each["count"] for each in agent.audit("suppressed")) == 500


async def test_a_refusal_by_the_policy_names_its_rule(stage: Stage, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("inline: false\ncatalogue: {}\n")
    agent, client = await stage.agent(policy=policy), stage.client
    sent = await client.trigger(agent, TRUE)
    assert code(await client.outcome(sent)) == "policy_denied"
    line = await agent.audited("decision", run_id=sent.run_id)
    assert (line["decision"], line["rule"]) == ("refused", "inline")
