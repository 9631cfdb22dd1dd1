"""Refusals: each by its own code, with nothing run, and a no stays a no."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from agent.contract.actions import Action
from agent.contract.messages import CatalogueHook, Guard, OutcomeMessage, Started
from tests.agents import TRUE, Stage, code

pytestmark = [pytest.mark.broker, pytest.mark.processes]

NAMED_PORT = {"tcpSocket": {"port": "mysql"}, "containerName": "app"}
GUARD = Guard(undo=Action.model_validate(TRUE), ttl_seconds=60)
OTHER_UID = str(uuid.UUID(int=7))

#: code -> how the trigger differs from a good one, and what its reason must name.
RECORDED: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"issued_in": -2, "deadline_in": -1}, "the deadline to start was"),
    "clock_skew": ({"issued_in": 60, "deadline_in": 120}, "ahead of this agent's clock"),
    "deadline_too_far": ({"deadline_in": 1000}, "the limit is 900 s"),
    "before_journal": ({"issued_in": -300, "deadline_in": 60}, "before this journal's memory begins"),
    "unknown_container": ({"action": {**TRUE, "containerName": "mysq"}}, "'mysq' is not in pod shop/db-0 (has: app"),
    "container_not_enterable": ({"action": {**TRUE, "containerName": "mysql"}}, "'mysql' of pod shop/db-0"),
    "unknown_port": ({"action": NAMED_PORT}, "no port named 'mysql' (has: web)"),
    "unsupported": ({"guard": GUARD}, "no guards"),
    "unknown_hook": ({"action": None, "hook": CatalogueHook(name="freeze")}, "'freeze'"),
}
UNSUPPORTED_USER = {"exec": {"command": ["/bin/true"], "user": "mysql"}}


@pytest.fixture
def pod_file(tmp_path: Path) -> Path:
    path = tmp_path / "pod.json"
    ports = [{"name": "web", "containerPort": 8080}]
    path.write_text(json.dumps({"containers": [{"name": "app", "ports": ports}, {"name": "mysql"}]}))
    return path


@pytest.mark.parametrize("expected", RECORDED)
async def test_a_refusal_has_its_code_its_reason_and_stays(stage: Stage, pod_file: Path, expected: str) -> None:
    agent, tally, client = await stage.agent(pod_file=pod_file), stage.tally(), stage.client
    changes, reason = RECORDED[expected]
    sent = await client.trigger(agent, **{"action": tally.action(), **changes})
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", expected)
    assert outcome.error is not None
    assert reason in outcome.error.message, outcome.error.message
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == outcome, "the second answer differs"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()
    assert client.heard(Started, sent.run_id) == []
    assert agent.log("trigger.refused", code=expected), "the log does not say so"


async def test_a_refusal_stays_after_a_restart_and_when_its_reason_is_gone(stage: Stage, pod_file: Path) -> None:
    agent, tally, client = await stage.agent(pod_file=pod_file), stage.tally(), stage.client
    sent = await client.trigger(agent, {**tally.action(), "containerName": "sidecar"})
    refused = await client.outcome(sent)
    await agent.terminate()
    agent.settings["CONTAINER"] = "sidecar"  # now there is such a container
    await stage.start(agent)
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == refused
    assert (await client.run(agent, {**TRUE, "containerName": "sidecar"})).outcome == "succeeded"
    assert tally.runs == 0, agent.tail()


async def test_a_user_to_run_as_is_refused_by_name(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    outcome = await client.run(agent, UNSUPPORTED_USER)
    assert (outcome.outcome, code(outcome)) == ("rejected", "unsupported"), agent.tail()


async def test_by_default_unsigned_triggers_are_refused_and_presence_says_so(stage: Stage) -> None:
    agent, tally, client = await stage.agent(allow_unsigned=""), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "unsigned")
    presence = client.said(agent)[-1]
    assert presence is not None
    assert not presence.unsigned
    assert any("PODHOOK_ALLOW_UNSIGNED" in problem for problem in presence.problems), presence.problems
    assert agent.alive, agent.tail()
    assert tally.runs == 0


async def test_by_default_no_other_command_is_obeyed_either(stage: Stage) -> None:
    agent, client = await stage.agent(allow_unsigned=""), stage.client
    sent = client.make(agent, TRUE)
    await client.cancel(agent, sent)
    await agent.logged("command.refused", code="unsigned")
    assert agent.alive


async def test_every_refusal_is_said_once(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, {**TRUE, "containerName": "nobody"})
    await client.outcome(sent)
    await client.works(agent)
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 1
