"""A real agent with a policy: allowed, denied, changed, broken, and never there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.contract.messages import CatalogueHook, Presence, Started
from tests.agents import AgentProcess, Stage, code

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def policy(tally: Path, *, port: int = 1, more: str = "") -> str:
    return f"""
containers:
  app:
    commands:
      - [/bin/sh, -c, "echo ran >> '{tally}'; :"]
      - {{command: [/bin/sleep, "600"]}}
      - [/usr/bin/seq, "99999"]
http:
  - {{hosts: [pod], ports: [{port}], methods: [GET], paths: [/ok/]}}
tcp:
  - {{hosts: [pod], ports: [{port}]}}
limits: {{timeout: 30s, outputBytes: 400, concurrency: 1}}
catalogue:
  note:
    params: {{word: {{type: string, pattern: "[a-z ;$()]+"}}}}
    action: {{exec: {{command: [/bin/sh, -c, 'printf "%s" "$1" >> "$2"', sh, "${{word}}", "{tally}"]}}}}
{more}
"""


def problem(said: Presence | None, text: str) -> bool:
    return said is not None and any(text in each for each in said.problems)


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        yield door, door.getsockname()[1]


def came(door: socket.socket) -> bool:
    try:
        door.accept()[0].close()
    except BlockingIOError:
        return False
    return True


async def denied(
    stage: Stage, agent: AgentProcess, action: dict, said: str, want: str = "policy_denied", **more
) -> None:
    sent = await stage.client.trigger(agent, action, **more)
    outcome = await stage.client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", want), agent.tail()
    assert outcome.error is not None
    assert said in outcome.error.message
    assert stage.client.heard(Started, sent.run_id) == []
    await stage.client.again(agent, sent)
    assert await stage.client.outcome(sent, count=2) == outcome, "the no was not recorded"


async def test_what_a_rule_allows_runs_and_nothing_else(stage: Stage) -> None:
    tally, path = stage.tally(), stage.directory / "policy.yaml"
    with listening() as (door, port):
        path.write_text(policy(tally.path, port=port))
        agent, client = await stage.agent(policy=path), stage.client
        assert (await client.run(agent, tally.action())).outcome == "succeeded", agent.tail()
        assert tally.runs == 1
        changed = {"exec": {"command": ["/bin/sh", "-c", f"echo ran >> '{tally.path}'; true"]}}
        await denied(stage, agent, changed, "policy: containers.app.commands: none of its 3 rules is exactly this")
        risky = tally.action()
        risky["exec"]["env"] = [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}]
        await denied(stage, agent, risky, "containers.app.commands[0]: does not allow variable 'LD_PRELOAD'")
        await denied(stage, agent, tally.action(), "the timeout of 31s is above it (30s)", timeout_seconds=31)
        assert tally.runs == 1
        assert (await client.run(agent, {"tcpSocket": {"port": port}})).outcome == "succeeded"
        assert came(door)
        await denied(stage, agent, {"httpGet": {"port": port, "path": "/ok/../no"}}, "policy: http: no rule allows GET")
        await denied(
            stage, agent, {"tcpSocket": {"host": "127.0.0.2", "port": port + 1}}, "policy: tcp: no rule allows"
        )
        for host in ("169.254.169.254", "2852039166", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"):
            await denied(stage, agent, {"httpGet": {"host": host, "port": 80}}, "policy: http")
        assert not came(door)
        outcome = await client.run(agent, {"exec": {"command": ["/usr/bin/seq", "99999"]}})
        assert len(outcome.stdout.text) < 600, "the policy's limit is the smaller one"
        assert outcome.stdout.truncated


async def test_without_a_policy_the_metadata_address_is_refused_all_the_same(stage: Stage) -> None:
    agent = await stage.agent()
    for host in ("169.254.169.254", "0xa9fea9fe", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"):
        for action in ({"httpGet": {"host": host, "port": 80}}, {"tcpSocket": {"host": host, "port": 80}}):
            await denied(stage, agent, action, "169.254.169.254", "address_refused")


async def test_a_hook_of_the_catalogue_runs_with_its_parameters_as_one_argument(stage: Stage) -> None:
    tally, path = stage.tally(), stage.directory / "policy.yaml"
    path.write_text(policy(tally.path) + "inline: false\n")
    agent, client = await stage.agent(policy=path), stage.client
    hook = CatalogueHook(name="note", params={"word": "x; $(id)"})
    sent = await client.trigger(agent, None, hook=hook)
    assert (await client.outcome(sent)).outcome == "succeeded", agent.tail()
    assert tally.path.read_text() == "x; $(id)"
    for params, said in (({"word": "A"}, "param 'word' does not match"), ({}, "param 'word' is required")):
        await denied(stage, agent, None, said, "invalid_params", hook=CatalogueHook(name="note", params=params))
    await denied(stage, agent, None, "(has: note)", "unknown_hook", hook=CatalogueHook(name="nope"))
    await denied(stage, agent, tally.action(), "policy: inline: is false")


async def test_no_more_attempts_at_once_than_the_policy_says(stage: Stage) -> None:
    tally, path = stage.tally(), stage.directory / "policy.yaml"
    path.write_text(policy(tally.path))
    agent, client = await stage.agent(policy=path), stage.client
    first = await client.trigger(agent, {"exec": {"command": ["/bin/sleep", "600"]}})
    await client.reply(Started, first)
    outcome = await client.run(agent, tally.action())
    assert (outcome.outcome, code(outcome)) == ("rejected", "busy"), agent.tail()
    await client.cancel(agent, first)
    assert (await client.outcome(first)).outcome == "cancelled"


async def test_a_change_holds_and_a_broken_file_keeps_the_last_good_one(stage: Stage) -> None:
    tally, path = stage.tally(), stage.directory / "policy.yaml"
    path.write_text(policy(tally.path))
    agent, client = await stage.agent(policy=path), stage.client
    await agent.logged("policy.loaded")
    path.write_text("containers: {app: {comands: []}}")
    await client.presence(agent, lambda said: problem(said, "the policy is as last read"), "the broken policy")
    assert agent.log("problem", problem="policy")
    assert (await client.run(agent, tally.action())).outcome == "succeeded"
    await denied(stage, agent, {"exec": {"command": ["/bin/true"]}}, "containers.app.commands")
    after = len(client.said(agent))
    path.write_text("containers: {app: {commands: [[/bin/true]]}}")
    await client.presence(agent, lambda said: said is not None and not problem(said, "policy"), "mended", after=after)
    assert (await client.run(agent, {"exec": {"command": ["/bin/true"]}})).outcome == "succeeded"
    await denied(stage, agent, tally.action(), "containers.app.commands")
    assert tally.runs == 1


@pytest.mark.parametrize("text", [None, "inline: perhaps"])
async def test_an_agent_that_never_had_its_policy_refuses_every_trigger(stage: Stage, text: str | None) -> None:
    tally, path = stage.tally(), stage.directory / "policy.yaml"
    if text is not None:
        path.write_text(text)
    agent, client = await stage.agent(policy=path), stage.client
    assert problem(client.said(agent)[-1], "every trigger is refused: no policy yet: PODHOOK_POLICY")
    await denied(stage, agent, tally.action(), "has never been able to use it", "policy_unavailable")
    await denied(
        stage, agent, None, "has never been able to use it", "policy_unavailable", hook=CatalogueHook(name="note")
    )
    assert tally.runs == 0
    path.write_text(policy(tally.path))
    await agent.logged("policy.loaded")
    assert (await client.run(agent, tally.action())).outcome == "succeeded"
