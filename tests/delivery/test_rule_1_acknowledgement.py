"""Delivery, rule 1: the broker hears that a command arrived only when the journal has it.

- The session is persistent: what is sent while nobody is there waits.
- The acknowledgement leaves after the journal's write, never before it.
- Who crashes before that write, or before its acknowledgement has arrived, is given the command again.
- Who crashes after it knows the command from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3

import pytest

from agent.contract.messages import OutcomeMessage, Trigger
from tests.agents import TRUE, Stage, code
from tests.delivery.journals import rows
from tests.delivery.packets import Packet, PacketProxy

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- a persistent session


async def test_what_is_sent_to_a_dead_agent_waits_for_the_next_one(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    agent.kill()
    sent = await client.trigger(agent, tally.action())
    await any_stage.start(agent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"
    assert [each["session_present"] for each in agent.log("broker.connected")] == [False, True]


# -- first the journal, then the acknowledgement


async def test_no_acknowledgement_leaves_before_its_trigger_is_in_the_journal(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """At the moment at which each acknowledgement passes by, the journal is opened and counted."""
    client = any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url, max_concurrent=100)
    under_way: set[int] = set()
    acknowledged: list[int] = []

    def passes(packet: Packet) -> bool:
        if packet.down and packet.says(Trigger):
            under_way.add(packet.packet_id)
        elif not packet.down and packet.acknowledges in under_way:
            under_way.discard(packet.acknowledges)
            acknowledged.append(rows(agent, "attempts"))
        return True

    any_proxy.passes = passes
    sent = [await client.trigger(agent, TRUE) for _ in range(30)]
    for each in sent:
        await client.outcome(each)
    await any_stage.until(lambda: len(acknowledged) >= 30, "30 acknowledgements")
    too_soon = [(at, had) for at, had in enumerate(acknowledged, 1) if had < min(at, 30)]
    assert too_soon == [], f"(acknowledgement, triggers in the journal then): {too_soon}"


async def test_killed_while_its_journal_write_waits_it_gets_the_trigger_again(stage: Stage) -> None:
    """The acknowledgement comes after the write: here the write cannot end, so the trigger must come again."""
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    await client.works(agent)
    (path,) = agent.state.glob("journal-*.sqlite3")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # the agent's own write waits for this one
        sent = await client.trigger(agent, tally.action())
        await asyncio.sleep(0.5)  # long enough for a wrong acknowledgement to reach the broker
        agent.kill()
        other.execute("ROLLBACK")
    await stage.start(agent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


# -- a crash before, a crash after


async def test_killed_before_its_journal_write_it_gets_the_trigger_again(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    agent.signal(signal.SIGSTOP)
    sent = await client.trigger(agent, tally.action())
    agent.kill()
    assert tally.runs == 0
    await any_stage.start(agent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


@pytest.mark.parametrize("arrives", [False, True], ids=["before its acknowledgement arrives", "right after it"])
async def test_killed_after_its_journal_write_it_knows_the_trigger(
    any_stage: Stage, any_proxy: PacketProxy, arrives: bool
) -> None:
    tally, client = any_stage.tally(), any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    triggers: set[int] = set()

    def passes(packet: Packet) -> bool:
        if packet.down and packet.says(Trigger):
            triggers.add(packet.packet_id)
        if packet.down or packet.acknowledges not in triggers:
            return True
        if arrives:
            asyncio.get_running_loop().call_soon(agent.kill)  # it is on its way when this is called
        else:
            agent.kill()
        return arrives

    any_proxy.passes = passes
    sent = await client.trigger(agent, tally.action("sleep 60"))
    await any_stage.until(lambda: not agent.alive, "it is killed with its acknowledgement")
    any_proxy.passes = lambda _: True
    await any_stage.start(agent)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("interrupted", "agent_restarted"), agent.tail()
    if not arrives:
        await agent.logged("trigger.seen_before", state="interrupted")
    await client.works(agent)
    assert tally.runs <= 1, f"ran {tally.runs} times\n{agent.tail()}"
    again = agent.log("trigger.seen_before")
    assert not (arrives and again), f"acknowledged, and given again: {again}"


@pytest.mark.parametrize("seed", range(1))
async def test_killed_at_any_moment_nothing_runs_twice_and_everything_is_answered(any_stage: Stage, seed: int) -> None:
    chance = random.Random(seed)
    agent, client = await any_stage.agent(max_concurrent=100), any_stage.client
    tallies = [any_stage.tally() for _ in range(24)]
    sent = []
    for at, tally in enumerate(tallies):
        sent.append(await client.trigger(agent, tally.action()))
        if at % 8 == 7:
            await asyncio.sleep(chance.uniform(0, 0.03))
            agent.kill()
            await any_stage.start(agent)
    for each, tally in zip(sent, tallies, strict=True):
        outcome = await client.outcome(each)
        assert tally.runs <= 1, f"seed {seed}: {outcome} ran {tally.runs} times\n{agent.tail()}"
        if outcome.outcome == "succeeded":
            assert tally.runs == 1, f"seed {seed}: said to have run, and did not: {outcome}\n{agent.tail()}"
        else:
            assert (outcome.outcome, code(outcome)) == ("interrupted", "agent_restarted"), agent.tail()
        said = {(every.outcome, code(every)) for every in client.heard(OutcomeMessage, each.run_id)}
        assert len(said) == 1, f"seed {seed}: two different outcomes of one attempt: {said}"
    assert (await client.run(agent, TRUE)).outcome == "succeeded"
