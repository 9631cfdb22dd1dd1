"""ready and go (DESIGN.md: Barrier): nothing starts before its go, once, and never after its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.contract.messages import OutcomeMessage, Ready, Started
from tests.agents import LightAgent, Stage, code, light_agents, online

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_nothing_runs_before_its_go_and_go_starts_it(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True)
    await client.reply(Ready, sent)
    await client.works(agent)
    assert tally.runs == 0, f"ran before its go\n{agent.tail()}"
    assert (await client.ask_about(agent, sent)).attempts[0].state == "ready"
    await client.go(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    assert tally.runs == 1, agent.tail()


async def test_a_second_go_is_ignored(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action("sleep 0.3"), wait_for_go=True)
    await client.reply(Ready, sent)
    await client.go(agent, sent)
    await client.go(agent, sent)
    outcome = await client.outcome(sent)
    await client.go(agent, sent)
    await client.works(agent)
    assert outcome.outcome == "succeeded"
    assert tally.runs == 1, agent.tail()
    assert len(client.heard(Started, sent.run_id)) == 1
    assert len(agent.log("go.ignored")) == 2


async def test_a_go_for_a_trigger_that_waits_for_none_is_ignored(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = client.make(agent, tally.action())
    await client.go(agent, sent)
    await client.again(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    assert tally.runs == 1, agent.tail()


async def test_a_go_after_its_start_by_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True)
    await client.reply(Ready, sent)
    await client.go(agent, sent, start_in=-1)
    await client.go(agent, sent)  # in time, but the attempt has been given up
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "expired")
    assert tally.runs == 0, agent.tail()


async def test_without_a_go_by_the_deadline_it_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True, deadline_in=1)
    await client.reply(Ready, sent)
    outcome = await client.outcome(sent)
    await client.go(agent, sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "expired")
    assert tally.runs == 0, agent.tail()


async def test_a_go_never_starts_after_the_deadline(stage: Stage, tmp_path: Path) -> None:
    """The clock may jump while the agent waits: what counts is the time at the start, not the timer."""
    async with light_agents(stage.broker.url, stage.root, tmp_path, 1) as (agent,):
        await there(stage, agent)
        tally, client = stage.tally(), stage.client
        sent = await client.trigger(agent, tally.action(), wait_for_go=True, deadline_in=30)
        await client.reply(Ready, sent)
        agent.shift_seconds = 40
        await client.go(agent, sent, start_in=80)
        outcome = await client.outcome(sent, within_seconds=10)
        assert (outcome.outcome, code(outcome)) == ("rejected", "expired")
        assert tally.runs == 0


async def test_a_cancel_while_it_waits_for_go_means_it_never_runs(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True)
    await client.reply(Ready, sent)
    await client.cancel(agent, sent)
    await client.go(agent, sent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "cancelled")
    assert tally.runs == 0, agent.tail()


async def test_an_agent_killed_while_it_waited_for_go_says_that_it_never_started(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True)
    await client.reply(Ready, sent)
    agent.kill()
    await any_stage.start(agent)
    outcome = await client.outcome(sent)
    await client.go(agent, sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "agent_restarted_before_start")
    assert tally.runs == 0, agent.tail()


async def test_an_agent_that_stops_refuses_what_waits_for_go(stage: Stage) -> None:
    agent, tally, client = await stage.agent(grace_seconds=30), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(), wait_for_go=True)
    await client.reply(Ready, sent)
    assert await agent.terminate() == 0, agent.tail()
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "stopping")
    assert tally.runs == 0


async def test_checks_are_done_before_ready_is_said(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(
        agent, {"exec": {"command": ["/bin/true"]}, "containerName": "nobody"}, wait_for_go=True
    )
    assert code(await client.outcome(sent)) == "unknown_container"
    assert client.heard(Ready, sent.run_id) == []
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 1


async def there(stage: Stage, agent: LightAgent) -> None:
    """Wait for a light agent's presence."""
    await stage.client.presence(agent, online, "online")
