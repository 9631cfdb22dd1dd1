"""A trusted key asks for what the policy of the pod does not allow: the no names the rule, and the audit has it."""

from __future__ import annotations

import json

import pytest

from agent.contract.messages import CatalogueHook, Started
from tests.agents import TRUE, AgentProcess, Json, Sent, code
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]

POLICY = {
    "containers": {"app": {"commands": [["/bin/true"]]}},
    "http": [{"hosts": ["pod"], "ports": [1], "methods": ["GET"], "paths": ["/ok"]}],
    "catalogue": {"hello": {"params": {}, "action": {"exec": {"command": ["/bin/echo", "hello"]}}}},
}


async def guarded(realm: Realm, policy: Json) -> AgentProcess:
    """An agent with keys and a policy. JSON is YAML."""
    path = realm.directory / "policy.yaml"
    path.write_text(json.dumps(policy), encoding="ascii")
    return await realm.agent(policy=path)


async def denied(realm: Realm, agent: AgentProcess, sent: Sent, rule: str) -> None:
    """Refused by this rule before anything started, and audited with the key that asked."""
    outcome = await realm.client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "policy_denied"), agent.tail()
    assert outcome.error is not None
    assert rule in outcome.error.message
    assert realm.client.heard(Started, sent.run_id) == []
    line = await agent.audited("decision", run_id=sent.run_id, decision="refused")
    assert line["key_id"] == pair("nightly").kid


@pytest.mark.parametrize("key", ["nightly", "boss"])
async def test_a_command_outside_the_policy_does_not_run_whoever_signed_it(realm: Realm, key: str) -> None:
    """Not even an operator's: the policy is the pod owner's, and a key is nobody's way around it."""
    agent, tally = await guarded(realm, POLICY), realm.stage.tally()
    for action in (tally.action(), {"exec": {"command": ["/bin/true", "and", "more"]}}):
        outcome = await realm.client.outcome(await realm.trigger(agent, action, key))
        assert (outcome.outcome, code(outcome)) == ("rejected", "policy_denied"), agent.tail()
    await realm.works(agent)
    assert tally.runs == 0


async def test_the_rule_that_refused_is_named_and_audited(realm: Realm) -> None:
    agent, tally = await guarded(realm, POLICY), realm.stage.tally()
    await denied(realm, agent, await realm.trigger(agent, tally.action()), "policy: containers.app.commands")
    inside = {"httpGet": {"port": 1, "path": "/ok/../secret"}}
    await denied(realm, agent, await realm.trigger(agent, inside), "policy: http: no rule allows GET")
    other = {"httpGet": {"host": "10.0.0.1", "port": 1, "path": "/ok"}}
    await denied(realm, agent, await realm.trigger(agent, other), "policy: http")
    await denied(realm, agent, await realm.trigger(agent, {"tcpSocket": {"port": 1}}), "policy: tcp")
    await realm.works(agent)
    assert tally.runs == 0


async def test_a_coordinator_with_a_catalogue_only_runs_what_is_in_it(realm: Realm) -> None:
    agent = await guarded(realm, {**POLICY, "inline": False})
    await denied(realm, agent, await realm.trigger(agent, TRUE), "policy: inline")
    outcome = await realm.client.outcome(await realm.trigger(agent, None, hook=CatalogueHook(name="hello")))
    assert (outcome.outcome, outcome.stdout.text) == ("succeeded", "hello\n"), agent.tail()
