"""Delivery, rule 6: a pod of the same name with another uid is another agent.

- It refuses what was meant for its predecessor: sent to it, waiting in the broker, or asked by a coordinator; also when
  both have their journals on one volume.
- An agent that finds its presence taken by a later-born pod disconnects and stays away, both of them alive; one that
  was born earlier takes nothing from anybody.
"""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta

import psutil
import pytest

from agent.bus.types import Publication
from agent.contract.messages import Presence
from agent.coordinator import Verdict
from agent.sidecar.app import utc_now
from tests.agents import AgentProcess, Stage, code, offline, online
from tests.delivery.runs import call, codes, coordinator_on, new_run_id, outcomes, submitted

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- what was meant for the predecessor


async def test_another_pods_uid_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    other = "00000000-0000-0000-0000-000000000007"
    sent = await client.trigger(agent, tally.action(), pod_uid=other)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "wrong_pod_uid")
    assert outcome.error is not None
    assert other in outcome.error.message
    assert agent.uid in outcome.error.message
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "wrong_pod_uid"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_a_statefulset_pod_replaced_by_another_uid_does_not_run_what_was_meant_for_the_old_one(
    any_stage: Stage,
) -> None:
    """The old pod hangs and has it waiting in the broker, then dies; the new one has its name and its volume."""
    old, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    old.signal(signal.SIGSTOP)
    waiting = await client.trigger(old, tally.action())
    old.kill()
    late = await client.trigger(old, tally.action())
    new = await any_stage.agent(old.pod, state_dir=old.state)
    assert new.uid != old.uid
    await client.again(new, waiting)  # a coordinator that had no answer sends it again, on the topic that both share
    await client.again(new, late)
    for sent in (waiting, late):
        refused = await client.outcome(sent)
        assert (refused.outcome, code(refused), refused.pod_uid) == ("rejected", "wrong_pod_uid", new.uid)
    await client.cancel(new, waiting)
    await client.works(new)
    assert tally.runs == 0, f"the new pod ran what was meant for the old one\n{new.tail()}"


async def test_a_run_that_aimed_at_a_pod_which_is_replaced_meanwhile_does_not_succeed_and_runs_nothing(
    stage: Stage,
) -> None:
    old, tally = await stage.agent(), stage.tally()
    old.signal(signal.SIGSTOP)  # for the broker it is online
    async with coordinator_on(stage) as coordinator:
        running = asyncio.create_task(coordinator.run(call(tally.action()), run_id=new_run_id(stage)))
        await stage.until(lambda: submitted(coordinator), "its trigger has left")
        old.kill()
        new = await stage.agent(old.pod)
        run = await asyncio.wait_for(running, 20)
        assert run.verdict is Verdict.FAILED, f"{run}\n{new.tail()}"
        assert (outcomes(run)["db-0"], codes(run)["db-0"]) in {("lost", "silent"), ("rejected", "wrong_pod_uid")}
        assert tally.runs == 0, f"the new pod ran what was meant for the old one\n{new.tail()}"
        again = await coordinator.run(call(tally.action()))
    assert (again.verdict, [each.target.pod_uid for each in again.targets]) == (Verdict.SUCCEEDED, [new.uid])
    assert tally.runs == 1


# -- two of one name


def connections(agent: AgentProcess, port: int) -> int:
    """How many connections to the broker's port its process has."""
    open_ones = psutil.Process(agent.pid).net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port and each.status == "ESTABLISHED" for each in open_ones)


async def test_an_agent_whose_presence_a_later_born_pod_takes_disconnects_and_stays_away(any_stage: Stage) -> None:
    client, tally, port = any_stage.client, any_stage.tally(), any_stage.broker.port
    old = await any_stage.agent()
    assert connections(old, port) == 1
    new = await any_stage.agent()
    await old.logged("agent.replaced", by_pod_uid=new.uid)
    await old.logged("agent.away")
    assert connections(old, port) == 0, "it is still connected"
    outcome = await client.run(new, tally.action())
    assert (outcome.outcome, outcome.pod_uid) == ("succeeded", new.uid)
    late = await client.trigger(old, tally.action())  # for the uid that was replaced
    refused = await client.outcome(late)
    assert (code(refused), refused.pod_uid) == ("wrong_pod_uid", new.uid)
    assert tally.runs == 1
    any_stage.broker.restart()  # no reconnect brings it back
    await any_stage.until(lambda: len(new.log("broker.connected")) == 2, "the new one is back")
    await client.link.wait_up(20)
    await client.works(new)
    assert len(old.log("broker.connected")) == 1, old.tail()
    assert (old.alive, connections(old, port)) == (True, 0), f"ended by itself, or came back\n{old.tail()}"
    assert await old.terminate() == 0, old.tail()
    await client.works(new)
    async with asyncio.timeout(10), coordinator_on(any_stage) as coordinator:
        # The broker's end had the new one's will speak; the older one's goodbye would leave nothing there.
        while [(each.state, each.pod_uid) for each in await coordinator.agents()] != [("online", new.uid)]:
            await coordinator.presence_changed()


async def test_a_predecessors_late_will_is_corrected(any_stage: Stage) -> None:
    client = any_stage.client
    old = await any_stage.agent()
    old.signal(signal.SIGSTOP)  # its node hangs, and the pod is made anew elsewhere
    new = await any_stage.agent()
    old.kill()
    await client.presence(new, lambda said: offline(said) and said is not None and said.pod_uid == old.uid, "late will")
    after = client.said(new).index(next(said for said in client.said(new) if offline(said)))
    await client.presence(
        new, lambda said: online(said) and said is not None and said.pod_uid == new.uid, "corrected", after=after
    )
    await client.works(new)


async def test_an_earlier_born_pod_of_its_name_does_not_drive_it_away(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    mine = client.said(agent)[-1]
    assert mine is not None
    fields = {"pod_uid": "an-older-pod", "born_at": mine.born_at - timedelta(seconds=60), "clock": utc_now()}
    after = len(client.said(agent))
    older = Presence(**{**mine.model_dump(), **fields})
    topic = client.topics.presence(agent.namespace, agent.pod)
    await client.link.publish(Publication(topic, client.seal(older), retain=True))
    await client.presence(agent, lambda said: said is not None and said.pod_uid == agent.uid, "mine", after=after)
    await client.works(agent)
