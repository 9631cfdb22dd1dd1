"""Delivery, rule 3: no order between messages is assumed.

- A `cancel` or a `release` that comes before its trigger leaves a tombstone until 30 s after the deadline, over a
  restart as well, and what is tombstoned never starts.
- A question that settles leaves one, too: "never seen" stays true.
- One attempt of a run at a time on a target, and no lower attempt after a higher one.
"""

from __future__ import annotations

import uuid

import pytest

from agent.contract.messages import OutcomeMessage, Trigger
from tests.agents import TRUE, AgentProcess, Client, Sent, Stage, code
from tests.delivery.clocks import clocked
from tests.delivery.journals import rows
from tests.delivery.packets import Packet, PacketProxy

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- tombstones


async def test_a_cancel_before_its_trigger_means_it_never_runs(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = client.make(agent, tally.action())
    await client.cancel(agent, sent)
    await client.again(agent, sent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "tombstoned")
    assert tally.runs == 0, agent.tail()


async def test_a_release_before_its_trigger_means_it_never_runs(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = client.make(agent, tally.action())
    await client.release(agent, sent)
    await client.again(agent, sent)
    outcome = await client.outcome(sent)
    await client.works(agent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "tombstoned")
    assert tally.runs == 0, agent.tail()


async def test_a_cancel_that_overtakes_its_trigger_means_it_never_runs(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """Sent in order; on the way the trigger is lost, and the broker delivers it again behind the cancel."""
    tally, client = any_stage.tally(), any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    any_proxy.passes = lambda packet: not (packet.down and packet.says(Trigger))
    sent = await client.trigger(agent, tally.action())
    await client.cancel(agent, sent)
    await agent.logged("attempt.tombstoned")
    any_proxy.passes = lambda _: True
    any_proxy.cut()
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("cancelled", "tombstoned")
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_a_trigger_its_copy_and_its_cancel_in_any_order_run_it_once_at_most(any_stage: Stage) -> None:
    """All of it waits for an agent that is away, so that the broker may deliver it in an order of its own as well."""
    agent, client = await any_stage.agent(max_concurrent=100), any_stage.client
    agent.kill()
    sent: list[tuple[Sent, str]] = []
    tallies = []
    for order in ("ttc", "tct", "ctt", "ttr", "trt", "rtt"):
        tally = any_stage.tally()
        made = client.make(agent, tally.action())
        say = {"t": client.again, "c": client.cancel, "r": client.release}
        for step in order:
            await say[step](agent, made)
        sent.append((made, order))
        tallies.append(tally)
    await any_stage.start(agent)
    for (made, order), tally in zip(sent, tallies, strict=True):
        first = await client.outcome(made)
        await client.works(agent)
        said = {(each.outcome, code(each)) for each in client.heard(OutcomeMessage, made.run_id)}
        assert len(said) == 1, f"{order}: two outcomes of one attempt: {said}"
        assert tally.runs <= 1, f"{order}: ran {tally.runs} times\n{agent.tail()}"
        if code(first) == "tombstoned":
            assert tally.runs == 0, f"{order}: ran, and is said to be tombstoned\n{agent.tail()}"


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


async def tombstone(client: Client, agent: AgentProcess, sent: Sent, by: str) -> None:
    """Leave a tombstone for it."""
    if by == "query":
        assert (await client.ask_about(agent, sent, settle=True)).tombstoned
    else:
        await (client.cancel if by == "cancel" else client.release)(agent, sent)


async def test_a_tombstone_stays_until_nothing_can_start_any_more_and_then_still_nothing_starts(stage: Stage) -> None:
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, 0)
    ways = ("cancel", "release", "query")
    buried = [client.make(agent, tally.action(), deadline_in=100) for _ in ways]
    for by, each in zip(ways, buried, strict=True):
        await tombstone(client, agent, each, by)
    await stage.until(lambda: rows(agent, "tombstones") == 3, "all of them are written")
    for by, each in zip(ways, buried, strict=True):
        await client.again(agent, each)
        assert code(await client.outcome(each)) == "tombstoned", by
    never = [client.make(agent, tally.action(), deadline_in=100) for _ in ways]
    for by, each in zip(ways, never, strict=True):
        await tombstone(client, agent, each, by)
    await stage.until(lambda: rows(agent, "tombstones") == 6, "the others are written")
    clock.set_ahead(930 + 45)  # 15 min, and twice what clocks may differ: nothing that was issued before can start now
    await stage.until(lambda: rows(agent, "tombstones") == 0, "what may be forgotten is forgotten")
    clock.set_ahead(0)  # a clock that is set right again makes every deadline the future
    for by, each in zip(ways, never, strict=True):
        await client.again(agent, each)
        assert code(await client.outcome(each)) == "before_journal", by
    assert tally.runs == 0, agent.tail()


async def test_a_tombstone_is_for_one_attempt_only(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    first = client.make(agent, TRUE)
    await client.cancel(agent, first)
    assert (await client.run(agent, TRUE, run_id=first.run_id, attempt=2)).outcome == "succeeded", agent.tail()


async def test_a_cancel_for_another_pod_uid_changes_nothing(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE)
    stranger = client.make(agent, TRUE, run_id=sent.run_id, pod_uid=str(uuid.uuid4()))
    await client.cancel(agent, stranger)
    await client.again(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded", agent.tail()


async def test_a_query_that_settles_makes_never_seen_stay_true(any_stage: Stage) -> None:
    agent, tally, client = await any_stage.agent(), any_stage.tally(), any_stage.client
    sent = client.make(agent, tally.action())
    for _ in range(2):  # asked again, it says the same
        report = await client.ask_about(agent, sent, settle=True)
        assert (report.attempts, report.tombstoned, report.cannot_tell) == ([], True, None)
    await client.again(agent, sent)
    assert code(await client.outcome(sent)) == "tombstoned"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_what_a_cancel_or_release_tombstoned_is_told_to_who_asks(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    for by in ("cancel", "release"):
        sent = client.make(agent, TRUE)
        await tombstone(client, agent, sent, by)
        await agent.logged("attempt.tombstoned", trigger_id=f"{sent.run_id}/1")
        report = await client.ask_about(agent, sent, settle=True)
        assert (report.attempts, report.tombstoned, report.cannot_tell) == ([], True, None), by


async def test_a_query_that_does_not_settle_leaves_no_tombstone(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE)
    report = await client.ask_about(agent, sent)
    assert (report.attempts, report.tombstoned, report.cannot_tell) == ([], False, None)
    await client.again(agent, sent)
    assert (await client.outcome(sent)).outcome == "succeeded", agent.tail()


# -- attempts of one run


async def test_a_lower_attempt_after_a_higher_one_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    second = await client.trigger(agent, tally.action(word="second"), attempt=2)
    await client.outcome(second)
    first = await client.trigger(agent, tally.action(word="first"), run_id=second.run_id, attempt=1)
    outcome = await client.outcome(first)
    assert (outcome.outcome, code(outcome)) == ("rejected", "stale_attempt")
    await client.works(agent)
    assert tally.words == ["second"], agent.tail()


async def test_a_lower_attempt_that_the_broker_delivers_late_is_refused(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """Sent first, lost on the way, and delivered again by the broker behind the second attempt."""
    tally, client = any_stage.tally(), any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    first = client.make(agent, tally.action(word="first"))

    def passes(packet: Packet) -> bool:
        return not (packet.down and packet.says(Trigger) and b'"attempt":1' in packet.raw)

    any_proxy.passes = passes
    await client.again(agent, first)
    second = await client.trigger(agent, tally.action(word="second"), run_id=first.run_id, attempt=2)
    assert (await client.outcome(second)).outcome == "succeeded"
    any_proxy.passes = lambda _: True
    any_proxy.cut()
    assert code(await client.outcome(first)) == "stale_attempt"
    await client.works(agent)
    assert tally.words == ["second"], agent.tail()


async def test_a_lower_attempt_is_refused_after_a_restart(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    second = await client.trigger(agent, tally.action(word="second"), attempt=2)
    await client.outcome(second)
    agent.kill()
    await stage.start(agent)
    first = await client.trigger(agent, tally.action(word="first"), run_id=second.run_id, attempt=1)
    assert code(await client.outcome(first)) == "stale_attempt"
    assert tally.words == ["second"], agent.tail()


async def test_a_second_attempt_while_the_first_runs_is_refused(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    first = await client.trigger(agent, tally.action("sleep 60", word="first"))
    await stage.until(lambda: tally.runs, "the first attempt runs")
    second = await client.trigger(agent, tally.action(word="second"), run_id=first.run_id, attempt=2)
    outcome = await client.outcome(second)
    assert (outcome.outcome, code(outcome)) == ("rejected", "attempt_running")
    await client.cancel(agent, first)
    await client.outcome(first)
    assert tally.words == ["first"], agent.tail()
