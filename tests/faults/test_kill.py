"""SIGKILL at every moment that matters: before the journal write, while the command runs, before the PUBACK."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3

import pytest

from agent.contract.messages import OutcomeMessage, Started
from tests.agents import TRUE, Stage, offline
from tests.sidecar.test_delivery import code
from tests.strays import living

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


async def test_killed_while_its_journal_write_waits_it_gets_the_trigger_again(any_stage: Stage) -> None:
    """The acknowledgement comes after the write: here the write cannot end, so the trigger must come again."""
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    await client.works(agent)
    (path,) = agent.state.glob("journal-*.sqlite3")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # the agent's own write waits for this one
        sent = await client.trigger(agent, tally.action())
        await asyncio.sleep(0.5)  # long enough for a wrong acknowledgement to reach the broker
        agent.kill()
        other.execute("ROLLBACK")
    await any_stage.start(agent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_what_is_sent_to_a_dead_agent_waits_for_the_next_one(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    agent.kill()
    sent = await client.trigger(agent, tally.action())
    await any_stage.start(agent)
    assert (await client.outcome(sent)).outcome == "succeeded"
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_what_waited_too_long_for_a_dead_agent_is_not_run(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    agent.kill()
    sent = await client.trigger(agent, tally.action(), deadline_in=0.3)
    await asyncio.sleep(0.4)  # its deadline passes
    await stage.start(agent)
    assert code(await client.outcome(sent)) == "expired"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_killed_before_the_broker_has_the_outcome_it_is_delivered_by_the_next(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done; exit 5"))
    await client.reply(Started, sent)
    stage.broker.stop()
    tally.path.with_name(tally.path.name + ".go").touch()
    await agent.logged("attempt.finished", outcome="failed")
    agent.kill()
    stage.broker.start()
    await stage.start(agent)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 5), agent.tail()
    assert tally.runs == 1


async def test_the_broker_says_offline_when_the_agent_is_killed(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(), any_stage.client
    agent.kill()
    presence = await client.presence(agent, offline, "offline")
    assert presence is not None
    assert (presence.pod_uid, presence.labels) == (agent.uid, {"app": "db"})


async def test_a_lost_journal_cannot_make_anything_run_again(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    await client.outcome(sent)
    agent.kill()
    shutil.rmtree(agent.state)
    await stage.start(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal"
    await client.works(agent)
    assert tally.runs == 1, agent.tail()


async def test_a_damaged_journal_is_set_aside_said_and_replaced(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    await client.outcome(sent)
    assert await agent.terminate() == 0
    (journal,) = agent.state.glob("journal-*.sqlite3")
    journal.write_bytes(b"this is no database" * 1000)
    await stage.start(agent)
    presence = client.said(agent)[-1]
    assert presence is not None
    assert any("damaged" in problem for problem in presence.problems), presence.problems
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal"
    await client.works(agent)
    assert tally.runs == 1, agent.tail()
    assert list(agent.state.glob("*.corrupt-*")), "the damaged journal was not kept"


@pytest.mark.parametrize("seed", range(2))
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
