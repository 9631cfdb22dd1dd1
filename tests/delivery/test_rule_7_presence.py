"""Delivery, rule 7: who is offline is left alone.

- Nothing is published to an agent whose presence says offline: no trigger, no question, no cancel. (`release` is the
  one exception, and no coordinator of this version has one to send.)
- What expired in its queue all the same does not keep it from running what comes later.
- A goodbye clears the retained presence, the will marks it offline, and everybody's presence is seen, however many.
"""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from agent.bus.types import Publication
from agent.contract.events import CONTENT_TYPE
from agent.contract.messages import Cancel, OutcomeMessage, Query, Trigger
from agent.coordinator import Coordinator, Verdict, watch
from agent.sidecar.app import utc_now
from tests.agents import AgentProcess, Stage, Tally, code, offline
from tests.delivery.population import population
from tests.delivery.runs import call, codes, coordinator_on, new_run_id, outcomes, submitted
from tests.delivery.spy import Spy

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def seen_offline(coordinator: Coordinator, pod: str) -> None:
    """Wait until the coordinator knows it."""
    async with asyncio.timeout(15):
        while {each.pod: each.state for each in await coordinator.agents()}.get(pod) != "offline":
            await coordinator.presence_changed()


# -- nothing is published to who is offline


async def test_nothing_is_published_to_a_target_that_went_offline_while_it_ran(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both targets are due to be asked and then cancelled; only the one that is online is."""
    monkeypatch.setattr(watch, "LAST_QUESTION_SECONDS", 0.3)
    stays, goes = [await stage.agent(pod) for pod in ("db-0", "db-1")]
    tally = stage.tally()
    async with coordinator_on(stage) as coordinator, Spy(stage) as spy:
        running = asyncio.create_task(coordinator.run(call(tally.action("sleep 60")), run_id=new_run_id(stage)))
        await stage.until(lambda: tally.runs == 2, "both run")
        goes.kill()
        await seen_offline(coordinator, "db-1")
        known = len(spy.of(Query, "db-0"))
        await stage.until(lambda: len(spy.of(Query, "db-0")) >= known + 5, "db-0 is asked five times")
        coordinator.cancel(within_seconds=1)
        run = await asyncio.wait_for(running, 20)
        await stage.until(lambda: spy.of(Cancel, "db-0"), "db-0 is told")
        since = spy.heard.index(spy.of(Query, "db-0")[known])
        assert [each.message.TYPE for each in spy.heard[since:] if each.pod == "db-1"] == []
    assert outcomes(run) == {"db-0": "cancelled", "db-1": "lost"}, stays.tail()


async def test_no_trigger_is_published_to_a_target_that_went_offline_before_its_turn(stage: Stage) -> None:
    for pod in ("db-0", "db-1"):
        await stage.agent(pod)
    tally, gate = stage.tally(), stage.directory / "gate"
    async with coordinator_on(stage) as coordinator, Spy(stage) as spy:
        hook = call(tally.action(f"until [ -e {gate} ]; do sleep 0.02; done"), max_parallel=1, start_window_seconds=2)
        running = asyncio.create_task(coordinator.run(hook))
        await stage.until(lambda: tally.runs, "the first runs")
        stage.agents[1].kill()
        await seen_offline(coordinator, "db-1")
        gate.touch()
        run = await asyncio.wait_for(running, 20)
        assert spy.of(Trigger, "db-0"), "the spy is deaf"
        assert [each.message.TYPE for each in spy.heard if each.pod == "db-1"] == []
    assert outcomes(run) == {"db-0": "succeeded", "db-1": "unreachable"}
    assert codes(run)["db-1"] == "never_published"
    assert tally.runs == 1


async def test_a_target_that_is_offline_for_a_moment_is_triggered_when_it_is_back(stage: Stage) -> None:
    """Offline is no verdict: within its start window it may come back."""
    for pod in ("db-0", "db-1"):
        await stage.agent(pod)
    tally, gate = stage.tally(), stage.directory / "gate"
    async with coordinator_on(stage) as coordinator:
        hook = call(tally.action(f"until [ -e {gate} ]; do sleep 0.02; done"), max_parallel=1)
        running = asyncio.create_task(coordinator.run(hook))
        await stage.until(lambda: tally.runs, "the first runs")
        stage.agents[1].kill()
        await seen_offline(coordinator, "db-1")
        gate.touch()
        await stage.start(stage.agents[1])
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.SUCCEEDED, run
    assert tally.runs == 2


# -- what expired in its queue


@pytest.mark.parametrize("away", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_after_1200_expired_triggers_a_fresh_one_runs(any_stage_alone: Stage, away: signal.Signals) -> None:
    """mosquitto keeps 1,000 of them and drops what comes then, NATS delivers them all; the agent refuses each.

    Of a stopped process (SIGSTOP) the broker does not know that it is away, so the fresh trigger meets the full queue.
    """
    stage = any_stage_alone
    agent, old, fresh, client = await stage.agent(), stage.tally(), stage.tally(), stage.client
    agent.signal(away)
    if away is signal.SIGKILL:
        await client.presence(agent, offline, "offline")
    sent = [client.make(agent, old.action(), deadline_in=1) for _ in range(1200)]
    client.made.clear()  # nothing of these can be left running, and looking for it takes long
    await asyncio.gather(*(client.again(agent, each) for each in sent))
    await stage.until(lambda: utc_now() > sent[-1].trigger.deadline, "the last one's deadline passes")
    async with coordinator_on(stage) as coordinator:
        if away is signal.SIGKILL:
            await stage.start(agent)
            running = asyncio.create_task(coordinator.run(call(fresh.action())))
        else:
            running = asyncio.create_task(coordinator.run(call(fresh.action())))
            await stage.until(lambda: submitted(coordinator), "the fresh trigger is published")
            agent.signal(signal.SIGCONT)
        run = await asyncio.wait_for(running, 40)
    assert run.verdict is Verdict.SUCCEEDED, f"{run}\n{agent.tail()}"
    assert (fresh.runs, old.runs) == (1, 0), agent.tail()
    refused = [code(each) for each in client.replies if isinstance(each, OutcomeMessage)]
    print(f"{len(refused)} of the 1200 were delivered, and refused")
    assert set(refused) <= {"expired"}


async def expired_in_its_queue(stage: Stage, agent: AgentProcess, tally: Tally) -> None:
    """1,200 triggers with MQTT's own expiry, to an agent that is away until long after it."""
    client = stage.client
    agent.kill()
    await client.presence(agent, offline, "offline")
    sent = [client.make(agent, tally.action(), deadline_in=1) for _ in range(1200)]
    client.made.clear()
    topic = client.topics.commands(agent.namespace, agent.pod)
    messages = [Publication(topic, each.payload, content_type=CONTENT_TYPE, expiry_seconds=1) for each in sent]
    await asyncio.gather(*(client.link.publish(each) for each in messages))
    since = time.monotonic()
    await stage.until(lambda: time.monotonic() > since + 2.5, "the broker counts them as expired")
    await stage.start(agent)


async def test_a_queue_of_expired_messages_does_not_keep_a_run_from_its_agent(stage_alone: Stage) -> None:
    """mosquitto 2.0.11 would hand nothing out of the session, did not our own will lie in it."""
    stage = stage_alone
    agent, old, fresh = await stage.agent(), stage.tally(), stage.tally()
    await expired_in_its_queue(stage, agent, old)
    async with coordinator_on(stage) as coordinator:
        run = await asyncio.wait_for(coordinator.run(call(fresh.action(), start_window_seconds=8)), 60)
    assert run.verdict is Verdict.SUCCEEDED, f"{run}\n{agent.tail()}"
    assert (fresh.runs, old.runs) == (1, 0)


async def test_a_queue_of_expired_messages_does_not_keep_a_trigger_from_its_agent(stage_alone: Stage) -> None:
    """Also of who never asks again."""
    stage = stage_alone
    agent, old, fresh = await stage.agent(), stage.tally(), stage.tally()
    await expired_in_its_queue(stage, agent, old)
    outcome = await stage.client.run(agent, fresh.action())
    assert (outcome.outcome, fresh.runs, old.runs) == ("succeeded", 1, 0), agent.tail()


# -- goodbye and will


async def test_a_goodbye_clears_the_retained_presence(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(), any_stage.client
    assert await agent.terminate() == 0, agent.tail()
    await client.presence(agent, lambda said: said is None, "cleared")
    assert not any(offline(said) for said in client.said(agent)), "the will spoke although goodbye was said"
    async with coordinator_on(any_stage) as coordinator:  # who comes later finds nothing
        assert await coordinator.agents() == []


async def test_the_will_marks_a_killed_agent_offline(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(), any_stage.client
    agent.kill()
    presence = await client.presence(agent, offline, "offline")
    assert presence is not None
    assert (presence.pod_uid, presence.labels) == (agent.uid, {"app": "db"})
    async with coordinator_on(any_stage) as coordinator:  # it is retained: who comes later finds it, too
        (found,) = await coordinator.agents()
    assert (found.state, found.pod_uid) == ("offline", agent.uid)


async def test_2000_retained_presences_and_more_are_all_seen(any_stage_alone: Stage) -> None:
    """500 more: of QoS 1 messages mosquitto keeps 2,000 for a coordinator, 1,000 under way and 1,000 in its queue."""
    stage, count = any_stage_alone, 2500
    async with population(stage.broker.url, stage.root, count, silent=True), coordinator_on(stage) as coordinator:
        found = await coordinator.agents()
    assert len(found) == count, f"{count - len(found)} of {count} were not seen"
    assert {each.state for each in found} == {"online"}
    assert len({(each.namespace, each.pod) for each in found}) == count
