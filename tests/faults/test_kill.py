"""SIGKILL: what the agent leaves running. What becomes of triggers and outcomes is in tests/delivery."""

from __future__ import annotations

import pytest

from tests.agents import Stage
from tests.strays import living

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_what_an_interrupted_attempt_left_running_is_ended_by_the_next_agent(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    other, others = await stage.agent("db-1"), stage.tally()
    sent = await client.trigger(agent, tally.action("setsid sleep 61"))
    beside = await client.trigger(other, others.action("sleep 60"), run_id=sent.run_id)
    await stage.until(lambda: tally.runs and others.runs, "both commands run")
    mark = f"{agent.uid}/{sent.run_id}/1"
    await stage.until(lambda: living(mark), "the command carries its mark")
    agent.kill()
    await stage.start(agent)
    assert (await client.outcome(sent)).outcome == "interrupted"
    assert living(mark) == [], f"a command of an interrupted attempt goes on\n{agent.tail()}"
    assert living(f"{other.uid}/{beside.run_id}/1"), "the same attempt on another pod was ended as well"
