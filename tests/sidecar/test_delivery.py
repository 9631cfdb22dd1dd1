"""Delivery (DESIGN.md, rules 2, 3 and 5): at most once, whatever order, and an outcome until the broker has it."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid

import pytest

from agent.contract.messages import OutcomeMessage, Started
from tests.agents import TRUE, AgentProcess, Stage, left_running, shell
from tests.proxy import Proxy

pytestmark = [pytest.mark.broker, pytest.mark.processes]

LONG = "sleep 60"


def code(outcome: OutcomeMessage) -> str | None:
    return outcome.error.code if outcome.error else None


# -- the same id again


async def test_the_same_trigger_again_is_answered_and_not_run_again(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action("exit 3"))
    first = await client.outcome(sent)
    await client.again(agent, sent)
    second = await client.outcome(sent, count=2)
    assert (first.outcome, first.exit_code) == ("failed", 3)
    assert second == first, "the second answer is not what the journal has"
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_the_same_trigger_while_it_runs_does_not_start_it_again(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = await client.trigger(agent, tally.action(LONG))
    await stage.until(lambda: tally.runs, "the command runs")
    await client.again(agent, sent)
    await agent.logged("trigger.seen_before", state="started")
    await client.cancel(agent, sent)
    await client.outcome(sent)
    assert tally.runs == 1, agent.tail()


async def test_the_same_trigger_is_answered_after_a_restart(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action())
    first = await client.outcome(sent)
    assert await agent.terminate() == 0, agent.tail()
    await any_stage.start(agent)
    await client.again(agent, sent)
    assert await client.outcome(sent, count=2) == first
    assert tally.runs == 1, f"ran {tally.runs} times\n{agent.tail()}"


async def test_an_id_with_other_content_is_refused_and_the_first_outcome_stays(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    first = await client.trigger(agent, tally.action(word="first"))
    outcome = await client.outcome(first)
    other = await client.trigger(agent, tally.action(word="other"), run_id=first.run_id)
    refused = await client.outcome(other, count=2)
    assert (refused.outcome, code(refused), refused.trigger_hash) == ("rejected", "id_reused", other.hash)
    report = await client.ask_about(agent, first)
    assert [each.outcome for each in report.attempts] == [outcome], "the first one's outcome was touched"
    assert tally.words == ["first"], agent.tail()


async def test_an_id_with_other_content_does_not_disturb_the_one_that_runs(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    first = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await stage.until(lambda: tally.runs, "the command runs")
    other = await client.trigger(agent, tally.action(word="other"), run_id=first.run_id)
    assert code(await client.outcome(other)) == "id_reused"
    tally.path.with_name(tally.path.name + ".go").touch()
    outcome = await client.outcome(first, count=2)
    assert (outcome.outcome, outcome.trigger_hash) == ("succeeded", first.hash), agent.tail()
    assert tally.words == ["ran"]


async def test_a_run_of_many_triggers_one_after_the_other_is_never_busy(stage: Stage) -> None:
    """Whoever has an outcome may trigger at once: its attempt counts no longer, even with room for only one."""
    agent, client = await stage.agent(max_concurrent=1), stage.client
    outcomes = [await client.run(agent, TRUE) for _ in range(60)]
    assert [code(each) for each in outcomes if each.outcome != "succeeded"] == [], agent.tail()


# -- no order is assumed


async def test_a_cancel_before_its_trigger_means_it_never_runs(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = client.make(agent, tally.action())
    await client.cancel(agent, sent)
    await client.again(agent, sent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "tombstoned")
    assert tally.runs == 0, agent.tail()


async def test_a_tombstone_survives_a_restart(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = client.make(agent, tally.action())
    await client.cancel(agent, sent)
    await client.works(agent)
    agent.kill()
    await stage.start(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent)) == "tombstoned"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_a_release_before_its_trigger_means_it_never_runs(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    sent = client.make(agent, tally.action())
    await client.release(agent, sent)
    await client.again(agent, sent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "tombstoned")
    assert tally.runs == 0, agent.tail()


async def test_a_tombstone_is_for_one_attempt_only(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    first = client.make(agent, TRUE)
    await client.cancel(agent, first)
    assert (await client.run(agent, TRUE, run_id=first.run_id, attempt=2)).outcome == "succeeded", agent.tail()


async def test_a_lower_attempt_after_a_higher_one_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    second = await client.trigger(agent, tally.action(word="second"), attempt=2)
    await client.outcome(second)
    first = await client.trigger(agent, tally.action(word="first"), run_id=second.run_id, attempt=1)
    outcome = await client.outcome(first)
    assert (outcome.outcome, code(outcome)) == ("rejected", "stale_attempt")
    await client.works(agent)
    assert tally.words == ["second"], agent.tail()


async def test_a_second_attempt_while_the_first_runs_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    first = await client.trigger(agent, tally.action(LONG, word="first"))
    await stage.until(lambda: tally.runs, "the first attempt runs")
    second = await client.trigger(agent, tally.action(word="second"), run_id=first.run_id, attempt=2)
    outcome = await client.outcome(second)
    assert (outcome.outcome, code(outcome)) == ("rejected", "attempt_running")
    await client.cancel(agent, first)
    await client.outcome(first)
    assert tally.words == ["first"], agent.tail()


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


async def test_a_cancel_for_another_pod_uid_changes_nothing(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE)
    stranger = client.make(agent, TRUE, run_id=sent.run_id, pod_uid=str(uuid.uuid4()))
    await client.cancel(agent, stranger)
    await client.again(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded", agent.tail()


# -- query


async def test_a_query_tells_the_outcome_of_what_ended(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(), any_stage.client
    sent = await client.trigger(agent, shell("echo hello; exit 4"))
    outcome = await client.outcome(sent)
    report = await client.ask_about(agent, sent, settle=True)
    (attempt,) = report.attempts
    assert (attempt.state, attempt.trigger_hash, attempt.targets) == ("failed", sent.hash, sent.trigger.targets)
    assert attempt.outcome == outcome
    assert attempt.outcome is not None
    assert attempt.outcome.stdout.text == "hello\n"
    assert (report.tombstoned, report.cannot_tell, report.pod_uid) == (False, None, agent.uid)


async def test_a_query_tells_what_runs(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, shell(LONG))
    await client.reply(Started, sent)
    report = await client.ask_about(agent, sent, settle=True)
    (attempt,) = report.attempts
    assert (attempt.state, attempt.outcome, report.tombstoned) == ("started", None, False)
    await client.cancel(agent, sent)
    assert (await client.outcome(sent)).outcome == "cancelled"


async def test_a_query_that_does_not_settle_leaves_no_tombstone(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE)
    report = await client.ask_about(agent, sent)
    assert (report.attempts, report.tombstoned, report.cannot_tell) == ([], False, None)
    await client.again(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded", agent.tail()


async def test_a_query_that_settles_makes_never_seen_stay_true(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = client.make(agent, tally.action())
    report = await client.ask_about(agent, sent, settle=True)
    assert (report.attempts, report.tombstoned, report.cannot_tell) == ([], True, None)
    await client.again(agent, sent)
    assert code(await client.outcome(sent)) == "tombstoned"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_a_query_about_another_pod_uid_cannot_tell(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    other = str(uuid.uuid4())
    report = await client.ask_about(agent, client.make(agent, TRUE), settle=True, pod_uid=other)
    assert (report.attempts, report.tombstoned) == ([], False)
    assert other in (report.cannot_tell or ""), report
    assert agent.uid in (report.cannot_tell or ""), report


async def test_a_query_about_the_time_before_the_journal_cannot_tell(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE, issued_in=-120, deadline_in=60)
    report = await client.ask_about(agent, sent, settle=True)
    assert (report.attempts, report.tombstoned) == ([], False)
    assert "before this journal's memory begins" in (report.cannot_tell or ""), report


async def test_a_query_about_a_run_lists_every_attempt(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    first = await client.trigger(agent, shell("exit 1"))
    await client.outcome(first)
    second = await client.trigger(agent, TRUE, run_id=first.run_id, attempt=2)
    await client.outcome(second)
    report = await client.query(agent, first.run_id)
    assert [(each.attempt, each.state) for each in report.attempts] == [(1, "failed"), (2, "succeeded")]


async def test_a_long_report_fits_the_broker(stage: Stage) -> None:
    """Many attempts, each with a long reason: the newest are told, and the link survives."""
    agent, client = await stage.agent(), stage.client
    first = client.make(agent, TRUE)
    refused = {**TRUE, "containerName": "x" * 4000}
    for attempt in range(1, 61):
        await client.trigger(agent, refused, run_id=first.run_id, attempt=attempt)
    last = client.make(agent, TRUE, run_id=first.run_id, attempt=60)
    await client.outcome(last)
    report = await client.query(agent, first.run_id)
    assert report.attempts[-1].attempt == 60, agent.tail()
    assert len(client.seal(report)) <= 121 * 1024


# -- an outcome until the broker has it


async def test_an_outcome_waits_for_the_broker(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done; echo out"))
    await any_stage.until(lambda: tally.runs, "the command runs")
    any_stage.broker.stop()
    tally.path.with_name(tally.path.name + ".go").touch()
    await agent.logged("attempt.finished", outcome="succeeded")
    any_stage.broker.start()
    outcome = await client.outcome(sent)
    assert (outcome.outcome, outcome.stdout.text) == ("succeeded", "out\n"), agent.tail()
    assert tally.runs == 1


async def test_an_outcome_is_published_again_until_its_puback(stage: Stage, proxy: Proxy) -> None:
    client, tally = stage.client, stage.tally()
    agent: AgentProcess = await stage.agent(broker_url=f"mqtt://127.0.0.1:{proxy.port}")
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await stage.until(lambda: tally.runs, "the command runs")
    await client.reply(Started, sent)
    proxy.deaf = True
    tally.path.with_name(tally.path.name + ".go").touch()
    first = await client.outcome(sent)
    proxy.deaf = False
    proxy.cut()
    assert await client.outcome(sent, count=2) == first, "published again with other content"
    await stage.until(lambda: delivered(agent, sent.run_id), "the journal notes the delivery")
    after = len(client.said(agent))
    proxy.cut()  # now that it has its PUBACK, the next connection does not publish it again
    await client.presence(agent, lambda said: said is not None and said.state == "online", "back", after=after + 1)
    await client.works(agent)
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 2, agent.tail()
    assert tally.runs == 1


def delivered(agent: AgentProcess, run_id: str) -> bool:
    """Whether the journal on disk says that the broker has the outcome."""
    (path,) = agent.state.glob("journal-*.sqlite3")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return bool(connection.execute("SELECT delivered FROM attempts WHERE run_id = ?", (run_id,)).fetchone()[0])
