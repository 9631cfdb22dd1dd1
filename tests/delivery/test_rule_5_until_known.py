"""Delivery, rule 5: an outcome is published until the broker has it, and asked for until the coordinator has it.

- It is published again until its PUBACK; the PUBACK, however late, does nothing but end that.
- Brokers drop what they acknowledged: whoever has no outcome is asked, at most 200 at a time, and after each reconnect.
- The journal in the pod is the record: whoever asks gathers, and may cancel, with nothing but the run's id.
- Fewer outcomes than targets never amount to success, also when a target is deleted meanwhile.

Resuming a run is not built yet; that a second coordinator triggers nothing when it asks is all there is to prove of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid

import pytest

from agent.bus.types import Publication
from agent.contract.messages import OutcomeMessage, Query, Started, Trigger
from agent.coordinator import Verdict, watch
from agent.coordinator import round as rounds
from tests.agents import TRUE, Client, Stage, light_agents, online, shell, stage_on
from tests.brokers import RealBroker
from tests.delivery.journals import delivered
from tests.delivery.packets import PacketProxy
from tests.delivery.population import population
from tests.delivery.runs import Heard, call, codes, coordinator_on, new_run_id, outcomes
from tests.delivery.spy import Spy

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- until the broker has it


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


async def test_an_outcome_is_published_again_until_its_puback(any_stage: Stage, any_proxy: PacketProxy) -> None:
    client, tally = any_stage.client, any_stage.tally()
    agent = await any_stage.agent(broker_url=any_proxy.url)
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await any_stage.until(lambda: tally.runs, "the command runs")
    await client.reply(Started, sent)
    any_proxy.deaf = True
    tally.path.with_name(tally.path.name + ".go").touch()
    first = await client.outcome(sent)
    assert not delivered(agent, sent.run_id), "noted as delivered without a PUBACK"
    any_proxy.deaf = False
    any_proxy.cut()
    assert await client.outcome(sent, count=2) == first, "published again with other content"
    await any_stage.until(lambda: delivered(agent, sent.run_id), "the journal notes the delivery")
    after = len(client.said(agent))
    any_proxy.cut()  # now that it has its PUBACK, the next connection does not publish it again
    await client.presence(agent, online, "back", after=after + 1)
    await client.works(agent)
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 2, agent.tail()
    assert tally.runs == 1


async def test_a_late_puback_ends_the_republishing_all_the_same(stage: Stage, proxy: PacketProxy) -> None:
    client, tally = stage.client, stage.tally()
    agent = await stage.agent(broker_url=proxy.url)
    sent = await client.trigger(agent, tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.02; done"))
    await client.reply(Started, sent)
    proxy.flowing.clear()
    tally.path.with_name(tally.path.name + ".go").touch()
    await client.outcome(sent)
    assert not delivered(agent, sent.run_id), "noted as delivered without a PUBACK"
    proxy.flowing.set()
    await stage.until(lambda: delivered(agent, sent.run_id), "the journal notes the delivery")
    proxy.cut()
    await stage.until(lambda: len(agent.log("broker.connected")) >= 2, "connected again")
    await client.works(agent)
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 1, "published again although the broker has it"


async def test_the_broker_is_away_for_30_seconds_while_a_hook_runs_and_its_outcome_arrives_after_it_returns(
    mosquitto: RealBroker, nats: RealBroker, tmp_path
) -> None:
    """Both brokers at once, for it is long. The agents wait without work: under 1 % of a processor."""
    async with contextlib.AsyncExitStack() as stack:
        stages, sent = [], []
        for broker in (mosquitto, nats):
            directory = tmp_path / str(broker)
            directory.mkdir()
            stage = await stack.enter_async_context(stage_on(broker, directory))
            agent = await stage.agent()
            gate = directory / "gate"
            sent.append(await stage.client.trigger(agent, shell(f"until [ -e {gate} ]; do sleep 1; done; echo out")))
            await stage.client.reply(Started, sent[-1])
            stages.append((stage, agent, gate))
        for broker in (mosquitto, nats):
            broker.stop()
        begun, before = time.monotonic(), [cpu_seconds(agent.pid) for _, agent, _ in stages]
        await asyncio.sleep(15)  # the outage: 15 s with the hook running, 15 s with its outcome waiting
        for stage, agent, gate in stages:
            gate.touch()
            await agent.logged("attempt.finished", outcome="succeeded")
            assert stage.client.heard(OutcomeMessage, sent[stages.index((stage, agent, gate))].run_id) == []
        await asyncio.sleep(max(0, begun + 30 - time.monotonic()))
        elapsed = time.monotonic() - begun
        used = [cpu_seconds(agent.pid) - was for (_, agent, _), was in zip(stages, before, strict=True)]
        for broker in (mosquitto, nats):
            broker.start()
        back = time.monotonic()
        for (stage, agent, _), each, seconds in zip(stages, sent, used, strict=True):
            print(f"{stage.broker}: {seconds:.2f} s of CPU in {elapsed:.1f} s: {100 * seconds / elapsed:.2f} %")
            outcome = await stage.client.outcome(each, within_seconds=30)
            print(f"{stage.broker}: the outcome came {time.monotonic() - back:.1f} s after its return")
            assert (outcome.outcome, outcome.stdout.text) == ("succeeded", "out\n"), agent.tail()
            assert seconds / elapsed < 0.01, f"{100 * seconds / elapsed:.2f} % of a processor\n{agent.tail()}"
            assert len(agent.log("attempt.started")) == 1


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, its children not included (proc(5): utime and stime)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 (short)
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- until the coordinator has it


async def test_an_outcome_that_the_broker_acknowledged_and_dropped_is_asked_for(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """Every outcome is lost between the broker and the coordinator; the journals have them."""
    for pod in ("db-0", "db-1"):
        await any_stage.agent(pod)
    tally, heard = any_stage.tally(), Heard()
    dropped: list[bytes] = []

    def passes(packet) -> bool:
        if packet.down and packet.says(OutcomeMessage):
            dropped.append(packet.raw)
        return not (packet.down and packet.says(OutcomeMessage))

    any_proxy.passes = passes
    async with coordinator_on(any_stage, any_proxy.url) as coordinator:
        run = await coordinator.run(call(tally.action("echo x")), on_event=heard)
    assert dropped, "nothing was lost, so nothing was proven"
    assert run.verdict is Verdict.SUCCEEDED, run
    assert {each.result.stdout.text for each in run.targets} == {"x\n"}
    assert set(heard.of("asked")) == {"db-0", "db-1"}
    assert tally.runs == 2


async def test_3000_replies_within_a_second_are_all_known_in_the_end(
    stage_alone: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mosquitto with its default limits drops a third of them and more, all acknowledged to those who said them."""
    monkeypatch.setattr(rounds, "QUESTION_SECONDS", 0.5)  # instead of 2: it takes 10 s as it is
    heard = Heard()
    async with (
        population(stage_alone.broker.url, stage_alone.root, 3000) as crowd,
        coordinator_on(stage_alone) as coordinator,
    ):
        everybody = call(TRUE, selector="app=crowd", namespaces=None, expect=3000)
        running = asyncio.create_task(coordinator.run(everybody, on_event=heard))
        await crowd.told("triggered")
        before = len(heard.events)
        said = crowd.speak_now()  # nothing is read here meanwhile, so all of it comes at once
        run = await asyncio.wait_for(running, 60)
    asked = {each.target for each in heard.events[before:] if each.kind == "asked"}
    print(f"{said['outcomes']} outcomes in {said['seconds']} s; {len(asked)} of them had to be asked for")
    ended = list(outcomes(run).values())
    assert run.verdict is Verdict.SUCCEEDED, {kind: ended.count(kind) for kind in set(ended)}
    assert (len(ended), set(ended)) == (3000, {"succeeded"})
    assert asked, "the broker lost nothing, so nothing was proven"
    assert float(str(said["seconds"])) < 3, "this machine is too slow for a flood"


async def test_at_most_200_are_asked_at_a_time_and_everybody_is(
    stage_alone: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers. A question is open for two seconds; who finds no place waits for the next."""
    count = 250
    held: list[int] = []
    hold_place = rounds.Round._hold_place

    def counted(self: rounds.Round, key: tuple[str, str]) -> None:
        hold_place(self, key)
        held.append(len(self._held))

    monkeypatch.setattr(rounds.Round, "_hold_place", counted)
    async with (
        population(stage_alone.broker.url, stage_alone.root, count, silent=True),
        coordinator_on(stage_alone) as coordinator,
        Spy(stage_alone) as spy,
    ):
        everybody = call(TRUE, selector="app=crowd", namespaces=None, expect=count)
        running = asyncio.create_task(coordinator.run(everybody))
        await stage_alone.until(lambda: len({each.pod for each in spy.of(Query)}) == count, "everybody is asked", 30)
        coordinator.cancel(within_seconds=0)
        run = await asyncio.wait_for(running, 10)
    assert set(outcomes(run).values()) == {"lost"}, "silence is neither success nor proof of absence"
    most = max(held)  # where they leave: when they arrive depends on how busy the machine is
    assert rounds.MAX_QUESTIONS == 200
    assert most <= 200, f"{most} questions were open at a time"
    assert most > 150, f"only {most} at a time: the bound was never reached"


async def test_after_each_reconnect_whoever_has_no_outcome_is_asked_at_once(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """Without a reconnect there would be a question after 2 s, and after 4 and 8 more."""
    agent, tally = await any_stage.agent(), any_stage.tally()
    gate = tally.path.with_name("gate")
    async with coordinator_on(any_stage, any_proxy.url) as coordinator, Spy(any_stage) as spy:
        running = asyncio.create_task(coordinator.run(call(tally.action(f"until [ -e {gate} ]; do sleep 0.02; done"))))
        await any_stage.until(lambda: tally.runs, "the hook runs")
        begun = time.monotonic()
        for reconnects in (1, 2, 3):
            any_proxy.cut()
            await any_stage.until(lambda n=reconnects: len(spy.of(Query)) >= n, f"{reconnects} questions", 6)
        took = time.monotonic() - begun
        gate.touch()
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.SUCCEEDED, agent.tail()
    assert took < 6, f"the third question came after {took:.1f} s"
    assert tally.runs == 1


async def test_outcomes_said_while_the_coordinator_was_cut_off_are_gathered_when_it_is_back(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """The broker took them and had nobody to give them to: the coordinator's session ends with its connection."""
    agents = [await any_stage.agent(pod) for pod in ("db-0", "db-1")]
    tally, gate, run_id, heard = any_stage.tally(), any_stage.directory / "gate", new_run_id(any_stage), Heard()
    async with coordinator_on(any_stage, any_proxy.url) as coordinator:
        hook = call(tally.action(f"until [ -e {gate} ]; do sleep 0.02; done; echo x"))
        running = asyncio.create_task(coordinator.run(hook, run_id=run_id, on_event=heard))
        await any_stage.until(lambda: tally.runs == 2, "both run")
        any_proxy.bar()
        gate.touch()
        await any_stage.until(lambda: all(delivered(each, run_id) for each in agents), "the broker has both outcomes")
        any_proxy.barred = False
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.SUCCEEDED, run
    assert {each.result.stdout.text for each in run.targets} == {"x\n"}
    assert set(heard.of("asked")) == {"db-0", "db-1"}
    assert tally.runs == 2


# -- the journal is the record


async def test_whoever_asks_later_gathers_from_the_journal_and_triggers_nothing(stage: Stage) -> None:
    """The coordinator is gone for good; another one knows nothing but the run."""
    agent, tally = await stage.agent(), stage.tally()
    sent = await stage.client.trigger(agent, tally.action("echo hello; exit 4"))
    outcome = await stage.client.outcome(sent)
    async with Spy(stage) as spy, Client(stage.broker.url, stage.root, stage.agents) as another:
        for _ in range(2):
            report = await another.query(agent, sent.run_id)
            (attempt,) = report.attempts
            assert (attempt.state, attempt.trigger_hash) == ("failed", sent.hash)
            assert attempt.targets == sent.trigger.targets, "how many targets the run has is not told"
            assert attempt.outcome == outcome
            assert outcome.stdout.text == "hello\n"
            agent.kill()  # and so it says after a restart
            await stage.start(agent)
        assert spy.of(Trigger) == []
    assert tally.runs == 1


async def test_another_coordinator_can_cancel_what_runs_and_hear_how_it_ended(stage: Stage) -> None:
    agent, tally = await stage.agent(), stage.tally()
    sent = await stage.client.trigger(agent, tally.action("sleep 60"))
    await stage.until(lambda: tally.runs, "the command runs")
    async with Client(stage.broker.url, stage.root, stage.agents) as another:
        (running,) = (await another.query(agent, sent.run_id)).attempts
        assert (running.state, running.outcome) == ("started", None)
        await another.cancel(agent, sent)
        await stage.client.outcome(sent)
        (ended,) = (await another.query(agent, sent.run_id)).attempts
    assert ended.state == "cancelled"
    assert tally.runs == 1


async def test_a_query_tells_what_runs(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, shell("sleep 60"))
    await client.reply(Started, sent)
    report = await client.ask_about(agent, sent, settle=True)
    (attempt,) = report.attempts
    assert (attempt.state, attempt.outcome, report.tombstoned) == ("started", None, False)
    await client.cancel(agent, sent)
    assert (await client.outcome(sent)).outcome == "cancelled"


async def test_a_query_beyond_its_pod_or_its_journal_cannot_tell_and_leaves_no_claim(stage: Stage) -> None:
    agent, client, other = await stage.agent(), stage.client, str(uuid.uuid4())
    report = await client.ask_about(agent, client.make(agent, TRUE), settle=True, pod_uid=other)
    assert (report.attempts, report.tombstoned) == ([], False)
    assert other in (report.cannot_tell or ""), report
    assert agent.uid in (report.cannot_tell or ""), report
    earlier = client.make(agent, TRUE, issued_in=-120, deadline_in=60)
    report = await client.ask_about(agent, earlier, settle=True)
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


# -- fewer outcomes than targets


@pytest.fixture
def soon_concluded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that concludes from silence a second after nothing can come any more, instead of half a minute."""
    monkeypatch.setattr(watch, "CLOCK_TOLERANCE_SECONDS", 1)
    monkeypatch.setattr(watch, "ENDING_SECONDS", 0)


@pytest.mark.usefixtures("soon_concluded")
async def test_a_target_that_is_killed_and_deleted_meanwhile_makes_the_run_fail(stage: Stage) -> None:
    """Its pod is gone with its node, and somebody cleared its presence: there is nobody left who could answer."""
    stays, goes = [await stage.agent(pod) for pod in ("db-0", "db-1")]
    tally, gate, client = stage.tally(), stage.directory / "gate", stage.client
    async with coordinator_on(stage) as coordinator:
        hook = call(
            tally.action(f"until [ -e {gate} ]; do sleep 0.02; done"), timeout_seconds=3, start_window_seconds=3
        )
        running = asyncio.create_task(coordinator.run(hook, run_id=new_run_id(stage)))
        await stage.until(lambda: tally.runs == 2, "both run")
        goes.kill()
        await client.presence(goes, lambda said: said is not None and said.state == "offline", "offline")
        await client.link.publish(Publication(client.topics.presence(goes.namespace, goes.pod), b"", retain=True))
        async with asyncio.timeout(10):
            while [each.pod for each in await coordinator.agents()] != ["db-0"]:
                await coordinator.presence_changed()
        gate.touch()
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.FAILED, f"{run}\n{stays.tail()}"
    assert outcomes(run) == {"db-0": "succeeded", "db-1": "lost"}
    assert codes(run)["db-1"] == "silent"


async def test_a_target_that_is_deleted_politely_meanwhile_makes_the_run_fail(stage: Stage) -> None:
    await stage.agent("db-0")
    goes = await stage.agent("db-1", grace_seconds=0)
    tally, gate = stage.tally(), stage.directory / "gate"
    async with coordinator_on(stage) as coordinator:
        running = asyncio.create_task(coordinator.run(call(tally.action(f"until [ -e {gate} ]; do sleep 0.02; done"))))
        await stage.until(lambda: tally.runs == 2, "both run")
        assert await goes.terminate() == 0, goes.tail()
        await stage.client.presence(goes, lambda said: said is None, "goodbye")
        gate.touch()
        run = await asyncio.wait_for(running, 20)
    assert run.verdict is Verdict.FAILED, run
    assert outcomes(run) == {"db-0": "succeeded", "db-1": "interrupted"}
    assert codes(run)["db-1"] == "agent_stopped"


async def test_after_an_outage_agents_do_not_all_answer_at_once(stage_alone: Stage) -> None:
    """Twelve outcomes wait for the broker; each leaves at a moment of its own within a second or so."""
    stage, client, tally = stage_alone, stage_alone.client, stage_alone.tally()
    async with light_agents(stage.broker.url, stage.root, stage.directory, 12) as agents:
        await stage.until(lambda: sum(online(said[-1]) for said in client.presences.values()) == 12, "all are online")
        wait = tally.action(f"until [ -e {tally.path}.go ]; do sleep 0.05; done")
        sent = [await client.trigger(agent, wait) for agent in agents]
        await stage.until(lambda: tally.runs == 12, "all of them run")
        stage.broker.stop()
        tally.path.with_name(tally.path.name + ".go").touch()
        ended = asyncio.get_running_loop().time() + 1
        await stage.until(lambda: asyncio.get_running_loop().time() > ended, "they end while the broker is away")
        stage.broker.start()
        arrived: dict[str, float] = {}

        def all_arrived() -> bool:
            for each in sent:
                if client.heard(OutcomeMessage, each.run_id):
                    arrived.setdefault(each.run_id, asyncio.get_running_loop().time())
            return len(arrived) == 12

        await stage.until(all_arrived, "all outcomes are delivered", 60)
    times = sorted(arrived.values())
    print(f"{times[-1] - times[0]:.2f} s from the first to the last")
    assert times[-1] - times[0] > 0.1, "they answered in one moment"
