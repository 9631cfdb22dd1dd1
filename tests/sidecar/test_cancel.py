"""cancel: what runs is stopped with all that it started, what has ended stays as it is.

What it does before its trigger came, and who may send it, is among the rules of delivery: tests/delivery.
"""

from __future__ import annotations

import pytest

from tests.agents import Stage, code, left_running, shell

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_a_cancel_of_what_runs_kills_everything(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, shell(f"setsid sleep 60 & sleep 60 & echo ran >> {tally.path}; wait"))
    await stage.until(lambda: tally.runs, "the command runs")
    await stage.until(lambda: len(left_running(sent.run_id)) >= 3, "the shell and both of its children run")
    await client.cancel(agent, sent)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "cancelled")
    assert left_running(sent.run_id) == [], f"something of it is left: {outcome.notes}\n{agent.tail()}"


async def test_a_cancel_of_what_has_ended_answers_its_outcome_again(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    first = await client.outcome(sent)
    await client.cancel(agent, sent)
    assert await client.outcome(sent, count=2) == first, "a cancel changed an outcome"
    assert tally.runs == 1
