"""Delivery, rule 4: what ran when the agent went away is `interrupted`.

- After the restart it says so, and does not run it again by itself, however often it is told or restarted.
- A retry is another attempt, and only the coordinator decides on it.
"""

from __future__ import annotations

import asyncio

import pytest

from agent.contract.messages import OutcomeMessage
from agent.coordinator import Verdict
from tests.agents import Stage, code, shell
from tests.delivery.runs import call, coordinator_on, new_run_id, outcomes

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_killed_while_the_command_runs_it_is_interrupted_and_never_run_again(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action("sleep 60"))
    await any_stage.until(lambda: tally.runs, "the command runs")
    agent.kill()
    await any_stage.start(agent)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("interrupted", "agent_restarted")
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == outcome
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_killed_again_and_again_it_stays_interrupted(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action("sleep 60"))
    await stage.until(lambda: tally.runs, "the command runs")
    for _ in range(3):
        agent.kill()
        await stage.start(agent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    (attempt,) = (await client.ask_about(agent, sent)).attempts
    assert attempt.outcome == outcome
    assert {each.outcome for each in client.heard(OutcomeMessage, sent.run_id)} == {"interrupted"}
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


@pytest.mark.parametrize("retry_unknown", [False, True], ids=["by default", "told to repeat what is unknown"])
async def test_only_the_coordinator_decides_whether_an_interrupted_hook_is_tried_again(
    stage: Stage, retry_unknown: bool
) -> None:
    agent, tally = await stage.agent(), stage.tally()
    first_only = "case $PODHOOK_TRIGGER_ID in */1) exec sleep 60;; esac"
    action = shell(f'echo "$PODHOOK_TRIGGER_ID" >> {tally.path}; {first_only}')
    async with coordinator_on(stage) as coordinator:
        hook = call(action, max_retry=1, retry_unknown=retry_unknown)
        running = asyncio.create_task(coordinator.run(hook, run_id=new_run_id(stage)))
        await stage.until(lambda: tally.runs, "the hook runs")
        agent.kill()
        agent.start()
        run = await asyncio.wait_for(running, 20)
    attempts = [f"{run.run_id}/{attempt}" for attempt in ((1, 2) if retry_unknown else (1,))]
    assert tally.words == attempts, agent.tail()
    assert outcomes(run) == {"db-0": "succeeded" if retry_unknown else "interrupted"}
    assert run.verdict is (Verdict.SUCCEEDED if retry_unknown else Verdict.FAILED)
