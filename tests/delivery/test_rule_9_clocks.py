"""Delivery, rule 9: clocks that are not the same.

- A trigger issued more than 30 s in the agent's future is `clock_skew`, with both times.
- The past is judged by the deadline alone, by the agent's own clock; who comes back after it does not run the hook.
- A coordinator concludes only 30 s after the deadline, so what a slow clock starts until then is gathered.

When exactly it concludes from silence has its test, at made-up times, in tests/coordinator/test_watch.py.
"""

from __future__ import annotations

import asyncio
import re
import signal
from datetime import datetime, timedelta

import pytest

from agent.coordinator import Verdict
from agent.coordinator.targets import Target
from agent.coordinator.watch import Step, Watch
from agent.sidecar.app import utc_now
from tests.agents import TRUE, Stage, code
from tests.delivery.clocks import clocked
from tests.delivery.runs import call, coordinator_on, outcomes, submitted

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- the future


async def test_issued_more_than_30_seconds_ahead_is_clock_skew_with_both_times(stage: Stage) -> None:
    tally, client = stage.tally(), stage.client
    agent, _ = await clocked(stage, -40)  # its clock is behind: what we issue now is in its future
    sent = await client.trigger(agent, tally.action())
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "clock_skew")
    assert outcome.error is not None
    said = [datetime.fromisoformat(each) for each in re.findall(r"\d{4}-\S+?\+00:00", outcome.error.message)]
    assert len(said) == 2, f"not both times: {outcome.error.message}"
    assert said[0] == sent.trigger.issued_at
    behind = (said[0] - said[1]).total_seconds()
    assert 35 < behind <= 40, f"by its own clock it is {behind} s earlier: {outcome.error.message}"
    assert "the tolerance is 30 s: set both clocks" in outcome.error.message
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == outcome, "a refusal that did not stay"
    assert tally.runs == 0, agent.tail()


async def test_a_clock_that_is_less_than_30_seconds_behind_is_tolerated(stage: Stage) -> None:
    agent, _ = await clocked(stage, -25)
    await stage.client.works(agent)


async def test_a_coordinator_is_told_of_clock_skew_and_does_not_try_again(stage: Stage) -> None:
    tally = stage.tally()
    await clocked(stage, -40)
    async with coordinator_on(stage) as coordinator:
        run = await coordinator.run(call(tally.action(), max_retry=3))
    (target,) = run.targets
    assert (run.verdict, target.attempt, str(target.result.outcome)) == (Verdict.FAILED, 1, "rejected")
    assert code(target.result) == "clock_skew"
    assert tally.runs == 0


# -- the past


async def test_the_past_is_judged_by_the_deadline_alone(stage: Stage) -> None:
    """Issued ten minutes ago, and there is still a minute: it runs. Its journal must have been there all the time."""
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, -3600)
    clock.set_ahead(0)
    assert (await client.run(agent, tally.action(), issued_in=-600, deadline_in=60)).outcome == "succeeded"
    expired = await client.run(agent, tally.action(), issued_in=-600, deadline_in=-1)
    assert code(expired) == "expired"
    assert tally.runs == 1, agent.tail()


async def test_the_deadline_is_judged_by_the_agents_own_clock_and_both_times_are_told(stage: Stage) -> None:
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, 0)
    clock.set_ahead(20)
    assert (await client.run(agent, TRUE, deadline_in=25)).outcome == "succeeded"
    sent = await client.trigger(agent, tally.action(), deadline_in=15)
    expired = await client.outcome(sent)
    assert code(expired) == "expired"
    assert expired.error is not None
    deadline, own = [datetime.fromisoformat(each) for each in re.findall(r"\d{4}-\S+?\+00:00", expired.error.message)]
    assert deadline == sent.trigger.deadline
    assert timedelta(seconds=15) < own - utc_now() <= timedelta(seconds=20)
    assert tally.runs == 0, agent.tail()


async def test_an_agent_that_was_offline_when_triggered_and_comes_back_after_the_deadline_does_not_run_it(
    any_stage: Stage,
) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    agent.kill()
    sent = await client.trigger(agent, tally.action(), deadline_in=0.3)
    await any_stage.until(lambda: utc_now() > sent.trigger.deadline, "its deadline passes")
    await any_stage.start(agent)
    assert code(await client.outcome(sent)) == "expired"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_an_agent_that_hangs_when_triggered_and_wakes_after_the_deadline_does_not_run_it(
    any_stage: Stage,
) -> None:
    """As a coordinator sees it: the trigger had left, and the agent itself says that nothing ran."""
    agent, tally = await any_stage.agent(), any_stage.tally()
    agent.signal(signal.SIGSTOP)
    async with coordinator_on(any_stage) as coordinator:
        running = asyncio.create_task(coordinator.run(call(tally.action(), start_window_seconds=1)))
        await any_stage.until(lambda: submitted(coordinator), "its trigger has left")
        late = utc_now() + timedelta(seconds=1.2)
        await any_stage.until(lambda: utc_now() > late, "its deadline passes")
        agent.signal(signal.SIGCONT)
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.FAILED, run
    assert outcomes(run)["db-0"] in ("rejected", "unreachable"), run
    assert tally.runs == 0, agent.tail()


# -- the coordinator


def test_a_coordinator_concludes_from_silence_30_seconds_after_the_deadline_and_no_sooner() -> None:
    watched = Watch(Target("shop", "db-0", "uid"), "run", 1, "hash", deadline=100.0, timeout_seconds=60, now=70.0)
    watched.copies = 1
    watched.asked(99.0)
    watched.asked(128.0)
    steps = {second: watched.due(second)[0] for second in (99.0, 101.0, 129.9, 130.0)}
    assert steps[130.0] is Step.CONCLUDE
    assert Step.CONCLUDE not in {steps[second] for second in (99.0, 101.0, 129.9)}
    assert watched.conclude().outcome == "lost", "silence proves nothing"


async def test_what_a_slow_clock_starts_after_the_deadline_is_still_gathered(stage: Stage) -> None:
    """By our clock the deadline has passed when the agent wakes; by its own it has twenty seconds left."""
    tally = stage.tally()
    agent, _ = await clocked(stage, -20)
    agent.signal(signal.SIGSTOP)
    async with coordinator_on(stage) as coordinator:
        running = asyncio.create_task(coordinator.run(call(tally.action("echo late"), start_window_seconds=1)))
        await stage.until(lambda: submitted(coordinator), "its trigger has left")
        late = utc_now() + timedelta(seconds=1.2)
        await stage.until(lambda: utc_now() > late, "its deadline passes")
        assert not running.done(), "concluded at the deadline"
        agent.signal(signal.SIGCONT)
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.SUCCEEDED, run
    assert run.targets[0].result.stdout.text == "late\n"
    assert tally.runs == 1, agent.tail()
