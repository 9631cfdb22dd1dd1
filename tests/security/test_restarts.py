"""What was refused for its key stays refused, whatever keys come and however often the agent is started again."""

from __future__ import annotations

import pytest

from tests.agents import TRUE, AgentProcess, code
from tests.contract.signing.keys import pair
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def restarted(realm: Realm, agent: AgentProcess) -> None:
    await agent.terminate()
    await realm.stage.start(agent)


async def test_what_was_refused_before_a_restart_does_not_run_after_it(realm: Realm) -> None:
    """The key came while the agent was away: to the new process it looks like any other."""
    agent, tally = await realm.agent(), realm.stage.tally()
    sent = await realm.trigger(agent, tally.action(), "late")
    assert code(await realm.client.outcome(sent)) == "unknown_key"
    await agent.terminate()
    realm.trust("late")
    await realm.stage.start(agent)
    await realm.client.again(agent, sent)
    assert code(await realm.client.outcome(sent, count=2)) == "key_just_trusted"
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "late"))).outcome == "succeeded"
    assert tally.runs == 0, agent.tail()


async def test_nor_after_the_one_after_that(realm: Realm) -> None:
    """The key came while the agent ran, so another life of it refused the trigger. Killed, it had no last word."""
    agent, tally = await realm.agent(), realm.stage.tally()
    refused = realm.make(agent, tally.action(), "late")
    await realm.client.send_bytes(agent, refused.payload)
    assert code(await realm.client.outcome(refused)) == "unknown_key"
    other = realm.make(agent, tally.action(), "late")  # the same key; this one never came here
    realm.trust("late")
    await agent.logged("key.trusted", key_id=pair("late").kid)
    assert (await realm.client.outcome(await realm.trigger(agent, TRUE, "late"))).outcome == "succeeded"
    agent.kill()
    await realm.stage.start(agent)
    for each in (refused, other):
        await realm.client.again(agent, each)
    assert code(await realm.client.outcome(refused, count=2)) == "key_just_trusted"
    assert code(await realm.client.outcome(other)) == "key_just_trusted"
    assert tally.runs == 0, agent.tail()


async def test_a_trigger_that_waits_while_the_agent_restarts_runs(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    await realm.works(agent)
    await agent.terminate()
    sent = await realm.trigger(agent, tally.action())
    await realm.stage.start(agent)
    assert (await realm.client.outcome(sent)).outcome == "succeeded"
    assert tally.runs == 1


async def test_what_an_agent_without_keys_refused_does_not_run_when_it_obeys_everybody(realm: Realm) -> None:
    agent, tally, client = await realm.stage.agent(allow_unsigned=""), realm.stage.tally(), realm.client
    sent = await client.trigger(agent, tally.action())
    assert code(await client.outcome(sent)) == "unsigned"
    await agent.terminate()
    agent.settings["ALLOW_UNSIGNED"] = "true"
    await realm.stage.start(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "key_just_trusted"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_from_unsigned_to_signed_nothing_is_lost_and_nothing_runs_twice(realm: Realm) -> None:
    agent, tally = await realm.agent(), realm.stage.tally()
    trusted, agent.settings["TRUSTED_KEYS"] = agent.settings["TRUSTED_KEYS"], ""
    agent.settings["ALLOW_UNSIGNED"] = "true"
    await restarted(realm, agent)
    ran = await realm.trigger(agent, tally.action())
    assert (await realm.client.outcome(ran)).outcome == "succeeded"
    await agent.terminate()
    agent.settings |= {"ALLOW_UNSIGNED": "", "TRUSTED_KEYS": trusted}
    waits = await realm.trigger(agent, tally.action(word="waited"))
    await realm.stage.start(agent)
    await realm.client.again(agent, ran)
    assert (await realm.client.outcome(waits)).outcome == "succeeded"
    await realm.works(agent)
    assert sorted(tally.words) == ["ran", "waited"], agent.tail()
