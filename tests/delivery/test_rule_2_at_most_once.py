"""Delivery, rule 2: one id is executed at most once.

- Across redelivery, reconnects, restarts and upgrades.
- A trigger that was seen before is answered from the journal; the same id with other content is `id_reused`.
- Outcomes, and with them their ids, are kept for a day, and no longer.
- A journal refuses what was issued before its own birth, so losing it cannot make anything run again.

That a journal full of ids refuses new triggers has a test in tests/test_journal.py.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3

import pytest

from agent.contract.messages import OutcomeMessage, Started, Trigger
from tests.agents import Stage, code
from tests.delivery.clocks import ALTERED, clocked
from tests.delivery.journals import rows
from tests.delivery.packets import Packet, PacketProxy

pytestmark = [pytest.mark.broker, pytest.mark.processes]

DAY_SECONDS = 24 * 3600


# -- the same trigger again


async def test_the_same_trigger_sent_again_is_answered_from_the_journal_and_not_run(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action("exit 3"))
    first = await client.outcome(sent)
    await client.again(agent, sent)
    second = await client.outcome(sent, count=2)
    assert (first.outcome, first.exit_code) == ("failed", 3)
    assert second == first, "the second answer is not what the journal has"
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_a_trigger_that_the_broker_redelivers_is_answered_from_the_journal_and_not_run(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """Its acknowledgement is lost on the way, so the broker sends it again, by itself (NATS) or on reconnect."""
    tally, client = any_stage.tally(), any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    triggers: set[int] = set()

    def passes(packet: Packet) -> bool:
        if packet.down and packet.says(Trigger):
            triggers.add(packet.packet_id)
        return packet.down or packet.acknowledges not in triggers

    any_proxy.passes = passes
    sent = await client.trigger(agent, tally.action("exit 3"))
    first = await client.outcome(sent)
    any_proxy.passes = lambda _: True
    any_proxy.cut()
    await agent.logged("trigger.seen_before", state="failed")
    assert await client.outcome(sent, count=2) == first, "the second answer is not what the journal has"
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_the_same_trigger_while_it_runs_does_not_start_it_again(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action("sleep 60"))
    await stage.until(lambda: tally.runs, "the command runs")
    await client.again(agent, sent)
    await agent.logged("trigger.seen_before", state="started")
    await client.cancel(agent, sent)
    await client.outcome(sent)
    assert tally.runs == 1, agent.tail()


async def test_the_same_trigger_after_a_reconnect_does_not_start_it_again(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    tally, client = any_stage.tally(), any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await client.reply(Started, sent)
    any_proxy.cut()
    await any_stage.until(lambda: len(agent.log("broker.connected")) >= 2, "connected again")
    await client.again(agent, sent)
    await agent.logged("trigger.seen_before", state="started")
    tally.path.with_name(tally.path.name + ".go").touch()
    assert (await client.outcome(sent)).outcome == "succeeded"
    any_proxy.cut()
    await any_stage.until(lambda: len(agent.log("broker.connected")) >= 3, "connected again")
    await client.again(agent, sent)
    await agent.logged("trigger.seen_before", state="succeeded")
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_the_same_trigger_is_answered_after_a_restart(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    first = await client.outcome(sent)
    assert await agent.terminate() == 0, agent.tail()
    await stage.start(agent)
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == first
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_the_same_trigger_is_answered_after_an_upgrade_while_it_ran(stage: Stage) -> None:
    """The old version is stopped with the hook running; the new one knows how that ended, and does not run it."""
    agent, tally, client = await stage.agent(grace_seconds=0), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action("sleep 60"))
    await stage.until(lambda: tally.runs, "the command runs")
    assert await agent.terminate() == 0, agent.tail()
    agent.program, agent.settings["TEST_VERSION"] = ALTERED, "99.0.0"
    await stage.start(agent)
    presence = client.said(agent)[-1]
    assert presence is not None
    assert presence.version == "99.0.0", "it is not another version that answers"
    first = await client.outcome(sent)
    assert (first.outcome, code(first)) == ("interrupted", "agent_stopped")
    after = len(client.heard(OutcomeMessage, sent.run_id))
    await client.again(agent, sent)
    assert await client.outcome(sent, count=after + 1) == first
    await client.works(agent)
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


# -- the same id, other content


async def test_the_same_id_with_other_content_is_refused_and_the_first_outcome_stays(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    first = await client.trigger(agent, tally.action(word="first"))
    outcome = await client.outcome(first)
    other = await client.trigger(agent, tally.action(word="other"), run_id=first.run_id)
    refused = await client.outcome(other, count=2)
    assert (refused.outcome, code(refused), refused.trigger_hash) == ("rejected", "id_reused", other.hash)
    report = await client.ask_about(agent, first)
    assert [each.outcome for each in report.attempts] == [outcome], "the first one's outcome was touched"
    assert tally.words == ["first"], agent.tail()


async def test_the_same_id_with_other_content_is_refused_after_a_restart(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    first = await client.trigger(agent, tally.action(word="first"))
    await client.outcome(first)
    agent.kill()
    await stage.start(agent)
    other = client.make(agent, tally.action(word="other"), run_id=first.run_id)
    await client.again(agent, other)
    await stage.until(
        lambda: [each for each in client.heard(OutcomeMessage, first.run_id) if each.trigger_hash == other.hash],
        "an answer to the other content",
    )
    refused = client.heard(OutcomeMessage, first.run_id)[-1]
    assert (refused.outcome, code(refused)) == ("rejected", "id_reused")
    await client.works(agent)
    assert tally.words == ["first"], agent.tail()


async def test_the_same_id_with_other_content_does_not_disturb_the_one_that_runs(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    first = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await stage.until(lambda: tally.runs, "the command runs")
    other = await client.trigger(agent, tally.action(word="other"), run_id=first.run_id)
    assert code(await client.outcome(other)) == "id_reused"
    tally.path.with_name(tally.path.name + ".go").touch()
    outcome = await client.outcome(first, count=2)
    assert (outcome.outcome, outcome.trigger_hash) == ("succeeded", first.hash), agent.tail()
    assert tally.words == ["ran"]


# -- how long it is remembered


async def test_an_outcome_and_its_id_are_kept_for_a_day_and_then_refused_by_their_age(stage: Stage) -> None:
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, 0)
    sent = await client.trigger(agent, tally.action("echo kept"))
    outcome = await client.outcome(sent)
    await client.cancel(agent, client.make(agent, tally.action()))  # a tombstone, which is kept for a minute and a half
    await stage.until(lambda: rows(agent, "tombstones") == 1, "the tombstone is written")
    clock.set_ahead(DAY_SECONDS - 60)
    await stage.until(lambda: rows(agent, "tombstones") == 0, "what may be forgotten is forgotten")
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == outcome, "not answered from the journal within the day"
    clock.set_ahead(DAY_SECONDS + 60)
    # The answer was no change of the attempt: a day counts from its end.
    await stage.until(lambda: rows(agent, "attempts") == 0, "after a day the outcome may go")
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=3)) == "expired"
    assert tally.runs == 1, agent.tail()


async def test_an_id_that_was_forgotten_is_refused_although_clocks_went_back(stage: Stage) -> None:
    """The day has passed, the record is gone, and the clock is set right again: the deadline is in the future."""
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, 0)
    sent = await client.trigger(agent, tally.action())
    await client.outcome(sent)
    clock.set_ahead(DAY_SECONDS + 60)
    await stage.until(lambda: rows(agent, "attempts") == 0, "after a day the outcome may go")
    clock.set_ahead(0)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal"
    assert tally.runs == 1, agent.tail()


# -- a journal that is lost


async def test_a_lost_journal_cannot_make_a_redelivered_trigger_run_again(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action())
    await client.outcome(sent)
    agent.kill()
    shutil.rmtree(agent.state)
    await any_stage.start(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal"
    await client.works(agent)
    assert tally.runs == 1, agent.tail()


async def test_a_damaged_journal_is_set_aside_said_and_cannot_make_anything_run_again(stage: Stage) -> None:
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


async def test_what_was_refused_without_a_journal_does_not_run_when_the_next_process_has_one(stage: Stage) -> None:
    """The same session is found again: a second one would keep the trigger for whoever finds the first."""
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    agent.kill()
    (path,) = agent.state.glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as journal:
        (version,) = journal.execute("PRAGMA user_version").fetchone()
        journal.execute("PRAGMA user_version = 999")
        await stage.start(agent)
        sent = await client.trigger(agent, tally.action())
        assert code(await client.outcome(sent)) == "journal_unavailable"
        agent.kill()
        journal.execute(f"PRAGMA user_version = {version}")
    await stage.start(agent)
    await client.again(agent, sent)  # the acknowledgement may have been lost with the process
    assert code(await client.outcome(sent, count=2)) == "journal_unavailable", agent.tail()
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_whose_journal_cannot_be_read_does_not_claim_that_nothing_ran_in_an_earlier_life(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action())
    await client.outcome(sent)
    agent.kill()
    (path,) = agent.state.glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as journal:
        journal.execute("PRAGMA user_version = 999")
    await stage.start(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal", agent.tail()
    assert tally.runs == 1
