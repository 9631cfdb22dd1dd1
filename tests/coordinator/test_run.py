"""Whole runs over real brokers: what each target ends in, and what the verdict makes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import uuid
from datetime import UTC, datetime

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions, Publication
from agent.contract.errors import BadInput, InvalidHook, LinkDown
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import COMMANDS, Go, OutcomeMessage, Report, Trigger
from agent.contract.states import Outcome
from agent.contract.templates import load_hooks
from agent.contract.topics import Topics
from agent.coordinator import Coordinator, HookCall, Verdict, retries, watch
from agent.coordinator import round as rounds
from agent.coordinator.wire import Wire
from tests.coordinator.conftest import Fleet, Heard, sh, until

pytestmark = [pytest.mark.broker]


def outcomes(run):
    return {each.target.pod: str(each.result.outcome) for each in run.targets}


def codes(run):
    return {each.target.pod: each.result.error.code if each.result.error else None for each in run.targets}


class Ear:
    """Hears every command below a root, and can speak as anybody: the broker is not the authority."""

    def __init__(self, fleet: Fleet) -> None:
        self._topics = Topics(fleet.root)
        everything = ((f"{fleet.root}/v1/agents/+/+/commands", 1), (f"{fleet.root}/v1/runs/#", 0))
        self._link = Link(parse_broker(fleet.broker.url), LinkOptions(f"ear-{fleet.root}", subscriptions=everything))
        self.commands: list[tuple[str, object, bytes]] = []
        self.on_trigger = None

    async def __aenter__(self):
        await self._link.__aenter__()
        await self._link.wait_up(5)
        self._reading = asyncio.create_task(self._read(), name="ear")
        return self

    async def __aexit__(self, *_):
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._link.__aexit__()

    async def _read(self):
        async for event in self._link.events():
            if isinstance(event, Delivery) and event.topic.endswith("/commands"):
                data = open_event(event.payload, Kinds.of(*COMMANDS), limit_bytes=300_000).data
                self.commands.append((event.topic.split("/")[-2], data, event.payload))
                event.ack()
                if self.on_trigger and isinstance(data, Trigger):
                    await self.on_trigger(data, event.payload)

    def of(self, kind):
        return [(pod, data) for pod, data, _ in self.commands if isinstance(data, kind)]

    async def say(self, topic, message):
        payload = seal(message, source="/agents/forged", time=datetime.now(UTC), event_id="forged")
        await self._link.publish(Publication(topic, payload, content_type=CONTENT_TYPE))

    def reply_topic(self, trigger, namespace, pod):
        return self._topics.reply(trigger.coordinator, trigger.run_id, namespace, pod)


# -- ExecuteOnAll


async def test_every_selected_pod_runs_it_once_and_all_succeed(any_fleet, diary):
    await any_fleet.start("db-0", "db-1", "db-2")
    run = await any_fleet.run(sh(f"{diary.note()}; echo done"))
    assert run.verdict is Verdict.SUCCEEDED
    assert outcomes(run) == {"db-0": "succeeded", "db-1": "succeeded", "db-2": "succeeded"}
    assert {each.result.stdout.text for each in run.targets} == {"done\n"}
    assert diary.lines == [f"{run.run_id}/1"] * 3


async def test_one_pod_that_fails_fails_the_run_and_the_others_still_tell(fleet, tmp_path):
    await fleet.spawn("db-0", "db-1", "db-2")
    run = await fleet.run(sh(f"mkdir {tmp_path}/first 2>&- && {{ echo no >&2; exit 3; }}; echo fine"))
    assert run.verdict is Verdict.FAILED
    assert sorted(outcomes(run).values()) == ["failed", "succeeded", "succeeded"]
    told = sorted((each.result.exit_code, each.result.stdout.text, each.result.stderr.text) for each in run.targets)
    assert told == [(0, "fine\n", ""), (0, "fine\n", ""), (3, "", "no\n")]


async def test_one_pod_that_refuses_fails_the_run(fleet):
    await fleet.start("db-0")
    await fleet.start("db-1", container="other")
    run = await fleet.run(sh("exit 0", container="other"))
    assert (run.verdict, codes(run)) == (Verdict.FAILED, {"db-0": "unknown_container", "db-1": None})


async def test_the_parameters_and_timeout_of_the_call_reach_the_command(fleet):
    await fleet.start("db-0")
    run = await fleet.run(sh("echo ${WHAT}; sleep ${LONG:=0}"), params={"WHAT": "tables"})
    assert run.targets[0].result.stdout.text == "tables\n"
    run = await fleet.run(sh("echo ${WHAT}; sleep ${LONG:=0}"), params={"LONG": "600"}, timeout_seconds=0.3)
    assert (outcomes(run), run.targets[0].result.error.code) == ({"db-0": "timed_out"}, "timeout")


async def test_several_runs_of_one_coordinator_do_not_mix(fleet):
    await fleet.start("db-0", "db-1")
    async with fleet.coordinator() as coordinator:
        runs = await asyncio.gather(*(coordinator.run(HookCall(sh(f"echo {n}"))) for n in range(5)))
    for number, run in enumerate(runs):
        assert run.verdict is Verdict.SUCCEEDED
        assert {each.result.stdout.text for each in run.targets} == {f"{number}\n"}


async def test_two_coordinators_share_a_broker(fleet, diary):
    await fleet.start("db-0", "db-1")
    runs = await asyncio.gather(*(fleet.run(sh(diary.note())) for _ in range(3)))
    assert [run.verdict for run in runs] == [Verdict.SUCCEEDED] * 3
    assert sorted(diary.lines) == sorted(f"{run.run_id}/1" for run in runs for _ in range(2))


async def test_max_parallel_bounds_how_many_run_at_once_and_uses_the_places(fleet, diary):
    await fleet.start(*(f"db-{n}" for n in range(6)))
    run = await fleet.run(sh(f"{diary.note('begin')}; sleep 0.25; {diary.note('end')}"), max_parallel=2)
    assert run.verdict is Verdict.SUCCEEDED
    running = most = 0
    for line in diary.lines:
        running += 1 if line == "begin" else -1
        most = max(most, running)
    assert (most, len(diary.lines)) == (2, 12)


async def test_without_max_parallel_all_run_at_once(fleet, tmp_path):
    await fleet.start(*(f"db-{n}" for n in range(4)))
    gate = f"touch {tmp_path}/$$; until [ $(ls {tmp_path} | grep -c '^[0-9]*$') -ge 4 ]; do sleep 0.02; done"
    run = await fleet.run(sh(gate), timeout_seconds=10)
    assert run.verdict is Verdict.SUCCEEDED


async def test_after_more_than_max_errors_no_further_pod_is_started(fleet, diary):
    await fleet.start(*(f"db-{n}" for n in range(5)))
    async with Ear(fleet) as ear:
        run = await fleet.run(sh(f"{diary.note()}; exit 1"), max_parallel=1, max_errors=1)
        triggered = [pod for pod, _ in ear.of(Trigger)]
    assert run.verdict is Verdict.FAILED
    assert len(run.targets) == 5
    assert list(outcomes(run).values()) == ["failed"] * 2 + ["unreachable"] * 3
    assert list(codes(run).values()) == ["exit_code"] * 2 + ["stopped_after_errors"] * 3
    assert len(diary.lines) == 2
    assert triggered == ["db-0", "db-1"]


async def test_as_many_errors_as_allowed_stop_nothing(fleet, diary):
    await fleet.start("db-0", "db-1", "db-2")
    await fleet.run(sh(f"{diary.note()}; exit 1"), max_parallel=1, max_errors=3)
    assert len(diary.lines) == 3


# -- retries


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_FIRST_SECONDS", 0.05)


async def test_a_failed_attempt_is_repeated_up_to_max_retry_times(fleet, diary, quick_retries):
    await fleet.start("db-0")
    heard = Heard()
    run = await fleet.run(sh(f"{diary.note()}; exit 1"), max_retry=2, on_event=heard)
    assert run.verdict is Verdict.FAILED
    assert diary.lines == [f"{run.run_id}/{attempt}" for attempt in (1, 2, 3)]
    assert run.targets[0].attempt == 3
    assert heard.of("retry") == ["db-0", "db-0"]


async def test_a_retry_that_succeeds_makes_the_run_succeed_and_only_who_failed_is_repeated(fleet, diary, quick_retries):
    await fleet.spawn("db-0", "db-1")
    flag = diary.path.with_name("failed-once")
    run = await fleet.run(sh(f"{diary.note()}; mkdir {flag} 2>/dev/null && exit 1; exit 0"), max_retry=3)
    assert run.verdict is Verdict.SUCCEEDED
    assert sorted(diary.lines) == [f"{run.run_id}/1"] * 2 + [f"{run.run_id}/2"]
    assert sorted(each.attempt for each in run.targets) == [1, 2]


async def test_a_timed_out_attempt_is_repeated(fleet, diary, quick_retries):
    await fleet.start("db-0")
    run = await fleet.run(sh(f"{diary.note()}; sleep 600"), max_retry=1, timeout_seconds=0.2)
    assert (outcomes(run), len(diary.lines)) == ({"db-0": "timed_out"}, 2)


async def test_a_retry_that_never_left_does_not_hide_that_the_hook_ran(fleet, diary, quick_retries):
    """The hook takes its own agent down: the second attempt cannot leave, and the first is what counts."""
    [agent] = await fleet.spawn("db-0")
    kill = f"{diary.note()}; kill -9 {agent.pid}; exit 1"
    # Whether `started` gets out before the agent dies is a race: the short timeout bounds the silence of either case.
    async with asyncio.timeout(180):
        run = await fleet.run(sh(kill), max_retry=1, retry_unknown=True, start_window_seconds=2, timeout_seconds=2)
    assert len(diary.lines) == 1
    assert outcomes(run) == {"db-0": "lost"}, run
    assert any("attempt 2 was unreachable" in note for note in run.targets[0].result.notes), run


@pytest.mark.parametrize("attempt", [1, 2, 5, 6, 60])
def test_the_pause_before_a_retry_doubles_up_to_half_a_minute_and_is_drawn_from_its_second_half(attempt):
    most = min(2 ** (attempt - 1), 30)
    assert retries.retry_pause_seconds(attempt, 0) == most / 2
    assert retries.retry_pause_seconds(attempt, 1) == most
    assert most / 2 < retries.retry_pause_seconds(attempt, 0.3) < most


async def test_targets_that_failed_together_do_not_come_back_together(fleet, diary, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_FIRST_SECONDS", 1.0)
    await fleet.start(*(f"db-{at}" for at in range(5)))
    heard = Heard()
    await fleet.run(sh("exit 1"), max_retry=1, on_event=heard)
    pauses = {event.text.rpartition(" in ")[2] for event in heard.events if event.kind == "retry"}
    assert len(pauses) > 1, f"all pauses are the same: {pauses}"


async def test_a_pod_that_was_replaced_before_its_turn_is_sent_nothing(fleet, diary):
    """Fixed targets: the successor is another agent, and the predecessor may hang somewhere with a session."""
    await fleet.start("db-0")
    [second] = await fleet.start("db-1")
    async with fleet.coordinator() as coordinator, Ear(fleet) as ear:
        running = asyncio.create_task(coordinator.run(HookCall(sh(f"{diary.note()}; sleep 3"), max_parallel=1)))
        await until(lambda: diary.lines, "the first pod runs it")
        await second.end()
        await fleet.start("db-1", pod_uid="another", state_dir=fleet.directory / "another")
        run = await running
        assert [pod for pod, _ in ear.of(Trigger)] == ["db-0"]
    assert (outcomes(run), codes(run)) == (
        {"db-0": "succeeded", "db-1": "unreachable"},
        {"db-0": None, "db-1": "never_published"},
    )
    assert len(diary.lines) == 1


async def test_one_run_id_in_two_coordinators_runs_on_one_pod_only(fleet, diary):
    await fleet.start("db-0", "db-1")
    run_id = str(uuid.uuid4())
    hook = sh(diary.note(), strategy="ExecuteOnOne")
    async with fleet.coordinator() as one, fleet.coordinator() as two:
        first = await one.run(HookCall(hook), run_id=run_id)
        second = await two.run(HookCall(hook), run_id=run_id)
    assert (outcomes(first), outcomes(second)) == ({"db-0": "succeeded"}, {"db-0": "rejected"})
    assert len(diary.lines) == 1


async def test_a_permanent_rejection_is_not_repeated(fleet, quick_retries):
    await fleet.start("db-0")
    async with Ear(fleet) as ear:
        run = await fleet.run(sh("true", container="mysq"), max_retry=5)
        assert len(ear.of(Trigger)) == 1
    assert (outcomes(run), codes(run)) == ({"db-0": "rejected"}, {"db-0": "unknown_container"})
    assert run.targets[0].attempt == 1


async def test_a_busy_agent_is_tried_again(fleet, diary, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_FIRST_SECONDS", 0.2)
    await fleet.start("db-0", max_concurrent=1)
    async with fleet.coordinator() as coordinator:
        first = asyncio.create_task(coordinator.run(HookCall(sh(f"{diary.note('first')}; sleep 0.8"))))
        await until(lambda: diary.lines, "the first runs")
        second = await coordinator.run(HookCall(sh(diary.note("second")), max_retry=10))
        assert (await first).verdict is Verdict.SUCCEEDED
    assert second.verdict is Verdict.SUCCEEDED
    assert second.targets[0].attempt > 1
    assert diary.lines == ["first", "second"]


async def test_a_busy_agent_without_retries_is_rejected_with_the_limit(fleet, diary):
    await fleet.start("db-0", max_concurrent=1)
    async with fleet.coordinator() as coordinator:
        first = asyncio.create_task(coordinator.run(HookCall(sh(f"{diary.note()}; sleep 600"))))
        await until(lambda: diary.lines, "the first runs")
        second = await coordinator.run(HookCall(sh("true")))
        coordinator.cancel()
        await first
    assert (outcomes(second), codes(second)) == ({"db-0": "rejected"}, {"db-0": "busy"})


# -- ExecuteOnOne


async def test_execute_on_one_runs_it_in_the_first_pod_by_name_and_in_no_other(any_fleet, diary):
    await any_fleet.start("db-2", "db-0", "db-1")
    run = await any_fleet.run(sh(diary.note(), strategy="ExecuteOnOne"))
    assert (run.verdict, outcomes(run)) == (Verdict.SUCCEEDED, {"db-0": "succeeded"})
    await asyncio.sleep(0.5)  # nobody comes later
    assert diary.lines == [f"{run.run_id}/1"]


async def test_execute_on_one_goes_on_to_the_next_while_nobody_got_go(fleet, diary):
    await fleet.start("db-0", container="other")
    await fleet.start("db-1", max_concurrent=1)
    await fleet.start("db-2", "db-3")
    async with fleet.coordinator() as coordinator, Ear(fleet) as ear:
        # db-0 has no container "agent", so db-1 runs this; db-1 takes one at a time
        busy = asyncio.create_task(coordinator.run(HookCall(sh("sleep 600", strategy="ExecuteOnOne"))))
        await until(lambda: [pod for pod, _ in ear.of(Go)] == ["db-1"], "db-1 got go")
        run = await coordinator.run(HookCall(sh(diary.note(), strategy="ExecuteOnOne")))
        gos = [pod for pod, go in ear.of(Go) if go.run_id == run.run_id]
        coordinator.cancel()
        await busy
    assert run.verdict is Verdict.SUCCEEDED
    assert outcomes(run) == {"db-0": "rejected", "db-1": "rejected", "db-2": "succeeded"}
    assert codes(run) == {"db-0": "unknown_container", "db-1": "busy", "db-2": None}
    assert gos == ["db-2"]
    assert diary.lines == [f"{run.run_id}/1"]


async def test_execute_on_one_does_not_go_on_after_a_go(fleet, diary):
    await fleet.start("db-0", "db-1", "db-2")
    run = await fleet.run(sh(f"{diary.note()}; exit 1", strategy="ExecuteOnOne"))
    assert (run.verdict, outcomes(run)) == (Verdict.FAILED, {"db-0": "failed"})
    assert len(diary.lines) == 1


async def test_execute_on_one_repeats_in_the_pod_that_got_go(fleet, diary, quick_retries):
    await fleet.start("db-0", "db-1")
    run = await fleet.run(sh(f"{diary.note()}; exit 1", strategy="ExecuteOnOne"), max_retry=2)
    assert outcomes(run) == {"db-0": "failed"}
    assert diary.lines == [f"{run.run_id}/{attempt}" for attempt in (1, 2, 3)]


async def test_execute_on_one_is_not_repeated_by_what_an_earlier_candidate_said(fleet, diary, quick_retries):
    """The first said busy (which would be repeated); the second got go and was cancelled by its agent's end."""
    await fleet.start("db-0", max_concurrent=1)
    [second] = await fleet.start("db-1")
    async with fleet.coordinator() as coordinator:
        occupied = asyncio.create_task(
            coordinator.run(HookCall(sh(f"{diary.note('first')}; sleep 600", strategy="ExecuteOnOne")))
        )
        await until(lambda: diary.lines, "the first pod is busy")
        run = asyncio.create_task(
            coordinator.run(HookCall(sh(f"{diary.note('second')}; sleep 600", strategy="ExecuteOnOne"), max_retry=3))
        )
        await until(lambda: len(diary.lines) == 2, "the second pod runs it")
        await second.end()
        result = await asyncio.wait_for(run, 15)
        coordinator.cancel()
        await occupied
    assert outcomes(result) == {"db-0": "rejected", "db-1": "interrupted"}
    assert diary.lines == ["first", "second"]


async def test_execute_on_one_with_nobody_who_can_is_failed_and_nothing_ran(fleet, diary):
    await fleet.start("db-0", "db-1", container="other")
    run = await fleet.run(sh(diary.note(), strategy="ExecuteOnOne"))
    assert (run.verdict, outcomes(run)) == (Verdict.FAILED, {"db-0": "rejected", "db-1": "rejected"})
    assert diary.lines == []


async def test_execute_on_one_leaves_a_silent_pod_behind(fleet, diary, monkeypatch):
    """db-0 is stopped (SIGSTOP): it stays online for the broker and answers nothing; when it wakes it runs nothing."""
    monkeypatch.setattr(rounds, "READY_SECONDS", 1.0)
    frozen = fleet.process("db-0")
    await fleet.start("db-1")
    await fleet.online("db-0", "db-1")
    frozen.send_signal(signal.SIGSTOP)
    try:
        run = await fleet.run(sh(diary.note("$DB $PODHOOK_TRIGGER_ID"), strategy="ExecuteOnOne"))
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert (run.verdict, outcomes(run)) == (Verdict.SUCCEEDED, {"db-0": "unreachable", "db-1": "succeeded"})
    after = await fleet.run(sh("true"))  # both are awake and have handled what was before
    assert after.verdict is Verdict.SUCCEEDED
    assert len(diary.lines) == 1


async def test_a_short_start_window_ends_a_silent_candidate_without_holding_up_the_loop(fleet, monkeypatch):
    frozen = fleet.process("db-0")
    await fleet.online("db-0")
    monkeypatch.setattr(watch, "CLOCK_TOLERANCE_SECONDS", 0)
    frozen.send_signal(signal.SIGSTOP)
    gaps, beating = [], True

    async def beat():
        loop = asyncio.get_running_loop()
        while beating:
            before = loop.time()
            await asyncio.sleep(0.02)
            gaps.append(loop.time() - before)

    heart = asyncio.create_task(beat())
    try:
        async with asyncio.timeout(20):
            run = await fleet.run(sh("true", strategy="ExecuteOnOne"), start_window_seconds=1)
    finally:
        beating = False
        frozen.send_signal(signal.SIGCONT)
        await heart
    assert outcomes(run) == {"db-0": "unreachable"}
    assert max(gaps) < 1.5


# -- who must answer


async def test_nobody_selected_is_not_started(fleet):
    await fleet.start("db-0")
    run = await fleet.run(sh("true", selector="app=none"))
    assert (run.verdict, run.error.code, run.targets) == (Verdict.NOT_STARTED, "no_targets", ())
    assert "app=none" in run.error.message


async def test_nobody_selected_succeeds_where_that_is_allowed(fleet):
    run = await fleet.run(sh("true"), allow_empty=True)
    assert (run.verdict, run.targets, run.notes) == (
        Verdict.SUCCEEDED,
        (),
        ("no pod was selected, and that was allowed",),
    )


async def test_another_namespace_is_another_set(fleet, diary):
    await fleet.start("db-0", namespace="shop")
    await fleet.start("db-0", namespace="lab")
    run = await fleet.run(sh(diary.note()), namespaces=frozenset({"shop"}))
    assert [str(each.target) for each in run.targets] == ["shop/db-0"]
    run = await fleet.run(sh(diary.note()), namespaces=None)
    assert [str(each.target) for each in run.targets] == ["lab/db-0", "shop/db-0"]
    assert len(diary.lines) == 3


@pytest.mark.parametrize("expect", [1, 2, 4])
async def test_expect_refuses_any_other_number_and_triggers_nothing(fleet, diary, expect, monkeypatch):
    monkeypatch.setattr("agent.coordinator.roster.SETTLED_SECONDS", 1.0)
    await fleet.start("db-0", "db-1", "db-2")
    run = await fleet.run(sh(diary.note()), expect=expect)
    assert (run.verdict, run.error.code) == (Verdict.NOT_STARTED, "unexpected_count")
    assert f"found 3 pods, expected {expect}" in run.error.message
    assert diary.lines == []


async def test_expect_is_not_met_by_the_first_of_more_who_are_still_being_told(fleet, diary, monkeypatch):
    """Presence comes one by one: as many as expected is not yet everybody."""
    await fleet.start("db-0", "db-1", "db-2")
    monkeypatch.setattr("agent.coordinator.roster.SETTLED_SECONDS", 1.0)
    loop, take, told = asyncio.get_running_loop(), Wire.take, []

    def one_by_one(wire, delivery):
        told.append(delivery)
        loop.call_later(0.05 * len(told), take, wire, delivery)

    monkeypatch.setattr(Wire, "take", one_by_one)
    run = await fleet.run(sh(diary.note()), expect=1)
    assert (run.verdict, diary.lines) == (Verdict.NOT_STARTED, [])


async def test_expect_waits_a_while_for_who_is_still_coming(fleet, diary):
    await fleet.start("db-0")
    running = asyncio.create_task(fleet.run(sh(diary.note()), expect=2))
    await asyncio.sleep(0.6)
    await fleet.start("db-1")
    run = await running
    assert (run.verdict, len(diary.lines)) == (Verdict.SUCCEEDED, 2)


@pytest.fixture
async def half_offline(fleet):
    """db-0 is online; db-1 vanished without a goodbye."""
    gone = fleet.process("db-1")
    await fleet.start("db-0")
    await fleet.online("db-1")
    gone.kill()
    gone.wait(5)
    await fleet.presence_is(lambda states: states.get("db-1") == "offline")
    return fleet


@pytest.mark.parametrize("strategy", ["ExecuteOnAll", "ExecuteOnOne"])
async def test_an_offline_agent_stops_the_run_before_anything_is_triggered(half_offline, diary, strategy):
    async with Ear(half_offline) as ear:
        run = await half_offline.run(sh(diary.note(), strategy=strategy))
        assert ear.commands == []
    assert (run.verdict, run.error.code) == (Verdict.NOT_STARTED, "missing_agents")
    assert "default/db-1" in run.error.message
    assert "--allow-missing" in run.error.message
    assert diary.lines == []


async def test_allow_missing_goes_on_without_and_publishes_nothing_to_the_offline(half_offline, diary):
    async with Ear(half_offline) as ear:
        run = await half_offline.run(sh(diary.note()), allow_missing=True)
        assert {pod for pod, _, _ in ear.commands} == {"db-0"}
    assert (run.verdict, outcomes(run)) == (Verdict.SUCCEEDED, {"db-0": "succeeded"})
    assert "default/db-1" in run.notes[0]
    assert len(diary.lines) == 1


async def test_who_said_goodbye_is_not_missing(fleet):
    first, _ = await fleet.start("db-0", "db-1")
    await first.end()
    await fleet.presence_is(lambda states: "db-0" not in states)
    run = await fleet.run(sh("true"))
    assert (run.verdict, outcomes(run)) == (Verdict.SUCCEEDED, {"db-1": "succeeded"})


async def test_who_said_goodbye_while_the_broker_was_away_from_us_is_forgotten(fleet):
    """A coordinator that lives long must not aim at the dead: presence is told anew after each reconnect."""
    first, _ = await fleet.start("db-0", "db-1")
    async with fleet.coordinator() as coordinator:
        assert [each.pod for each in await coordinator.agents()] == ["db-0", "db-1"]
        coordinator._link.drop("test")
        await until(lambda: not coordinator._link.up, "the link is down")
        await first.end()  # sooner than the link is back
        async with asyncio.timeout(15):
            while [each.pod for each in await coordinator.agents()] != ["db-1"]:
                await coordinator.presence_changed()
        assert (await coordinator.run(HookCall(sh("true")))).verdict is Verdict.SUCCEEDED


# -- what goes wrong on the way


async def test_an_agent_that_is_killed_and_stays_away_is_lost(fleet, diary, monkeypatch):
    monkeypatch.setattr(watch, "CLOCK_TOLERANCE_SECONDS", 1)
    monkeypatch.setattr(watch, "ENDING_SECONDS", 0)
    agent = fleet.process("db-0")
    await fleet.online("db-0")
    call = {"timeout_seconds": 1, "start_window_seconds": 2, "max_retry": 3}
    running = asyncio.create_task(fleet.run(sh(f"{diary.note()}; exec sleep 3"), **call))
    await until(lambda: diary.lines, "the hook runs")
    agent.kill()
    run = await asyncio.wait_for(running, 20)
    assert (run.verdict, outcomes(run), codes(run)) == (Verdict.FAILED, {"db-0": "lost"}, {"db-0": "silent"})
    assert len(diary.lines) == 1


async def test_the_outcome_is_gathered_although_the_broker_restarted_meanwhile(any_fleet, diary):
    await any_fleet.start("db-0", "db-1")
    gate = diary.path.with_name("gate")
    script = f"{diary.note()}; until [ -e {gate} ]; do sleep 0.02; done; echo through"
    running = asyncio.create_task(any_fleet.run(sh(script)))
    await until(lambda: len(diary.lines) == 2, "both run")
    any_fleet.broker.stop()
    gate.touch()
    await asyncio.sleep(0.3)  # they end while nobody can hear it
    any_fleet.broker.start()
    run = await asyncio.wait_for(running, 60)
    assert run.verdict is Verdict.SUCCEEDED
    assert {each.result.stdout.text for each in run.targets} == {"through\n"}
    assert diary.lines == [f"{run.run_id}/1"] * 2


async def test_a_trigger_that_the_broker_dropped_is_sent_again_as_it_was(fleet, diary, monkeypatch):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        original, sent = coordinator._link.publish, []

        async def lossy(publication, *, submitted=None):
            if b"trigger.v1" in publication.payload:
                sent.append(publication.payload)
                if len(sent) == 1:
                    submitted()
                    return
            await original(publication, submitted=submitted)

        monkeypatch.setattr(coordinator._link, "publish", lossy)
        heard = Heard()
        run = await coordinator.run(HookCall(sh(diary.note())), on_event=heard)
    assert (run.verdict, diary.lines) == (Verdict.SUCCEEDED, [f"{run.run_id}/1"])
    assert heard.of("resent") == ["db-0"]
    assert len(sent) == 2
    assert sent[0] == sent[1]


async def test_a_go_that_the_broker_dropped_is_sent_again(fleet, diary, monkeypatch):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        original, gos = coordinator._link.publish, []

        async def lossy(publication, *, submitted=None):
            if b"dev.podhook.go.v1" in publication.payload:
                gos.append(publication)
                if len(gos) == 1:
                    return
            await original(publication, submitted=submitted)

        monkeypatch.setattr(coordinator._link, "publish", lossy)
        run = await coordinator.run(HookCall(sh(diary.note(), strategy="ExecuteOnOne")))
    assert (run.verdict, len(diary.lines), len(gos)) == (Verdict.SUCCEEDED, 1, 2)


async def test_a_trigger_delivered_twice_runs_once(fleet, diary):
    await fleet.start("db-0")
    async with Ear(fleet) as ear:
        topic = Topics(fleet.root).commands("default", "db-0")

        async def again(_, payload):
            ear.on_trigger = None
            await ear._link.publish(Publication(topic, payload))

        ear.on_trigger = again
        run = await fleet.run(sh(f"{diary.note()}; sleep 0.3"))
        await until(lambda: len(ear.of(Trigger)) == 2, "the second copy")
    assert (run.verdict, len(diary.lines)) == (Verdict.SUCCEEDED, 1)


def forged(trigger, payload_hash, **who):
    return OutcomeMessage(
        run_id=trigger.run_id,
        attempt=trigger.attempt,
        trigger_hash=payload_hash,
        outcome=Outcome.SUCCEEDED,
        **{"namespace": "default", "pod": "db-0", "pod_uid": "uid-default-db-0", **who},
    )


@pytest.mark.parametrize("kind", ["another agent's topic", "another hash", "another pod uid"])
async def test_a_forged_outcome_concludes_nothing(fleet, diary, kind):
    await fleet.spawn("db-0", "db-1")
    heard, said = Heard(), asyncio.Event()
    async with Ear(fleet) as ear:

        async def forge(trigger, payload):
            true_hash = hashlib.sha256(payload).hexdigest()
            of_pod = next(pod for pod, _, each in ear.commands if each == payload)
            who = {"pod": of_pod, "pod_uid": trigger.pod_uid}
            topic = ear.reply_topic(trigger, "default", of_pod)
            match kind:
                case "another agent's topic":
                    topic = ear.reply_topic(trigger, "default", "db-1" if of_pod == "db-0" else "db-0")
                    await ear.say(topic, forged(trigger, true_hash, **who))
                case "another hash":
                    await ear.say(topic, forged(trigger, "ab" * 32, **who))
                case "another pod uid":
                    await ear.say(topic, forged(trigger, true_hash, **{**who, "pod_uid": "somebody-else"}))
            said.set()

        ear.on_trigger = forge
        run = await fleet.run(sh(f"{diary.note()}; sleep 0.5; exit 7"), on_event=heard)
        assert said.is_set()
    assert run.verdict is Verdict.FAILED
    assert [each.result.exit_code for each in run.targets] == [7, 7]
    reached_the_run = [] if kind == "another agent's topic" else ["db-0", "db-1"]  # that one is no reply at all
    assert sorted(heard.of("dropped")) == reached_the_run


@pytest.mark.parametrize("query_hash", [None, "ab" * 32])
async def test_a_report_that_answers_no_question_of_ours_concludes_nothing(fleet, diary, query_hash):
    """Somebody else may have asked, in our name, and so got a true answer to another question."""
    await fleet.start("db-0")
    said = asyncio.Event()
    async with Ear(fleet) as ear:

        async def forge(trigger, payload):
            report = Report(
                query_id=trigger.run_id,
                query_hash=query_hash,
                run_id=trigger.run_id,
                namespace="default",
                pod="db-0",
                pod_uid=trigger.pod_uid,
                attempt=1,
                attempts=[],
                tombstoned=True,
            )
            await ear.say(ear.reply_topic(trigger, "default", "db-0"), report)
            said.set()

        ear.on_trigger = forge
        run = await fleet.run(sh(f"{diary.note()}; sleep 1"))
        assert said.is_set()
    assert (run.verdict, len(diary.lines)) == (Verdict.SUCCEEDED, 1), run


async def test_a_run_while_the_broker_is_away_triggers_nothing_and_says_so(fleet, diary):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        await coordinator.agents()
        fleet.broker.kill()  # a broker that ends politely still publishes everybody's will
        try:
            await until(lambda: not coordinator._link.up, "the link is down")
            call = HookCall(sh(diary.note()), start_window_seconds=0.5)
            run = await asyncio.wait_for(coordinator.run(call), 20)
        finally:
            fleet.broker.start()
    assert (run.verdict, outcomes(run), codes(run)) == (
        Verdict.FAILED,
        {"db-0": "unreachable"},
        {"db-0": "never_published"},
    )
    assert diary.lines == []


async def test_no_broker_is_link_down_at_once():
    coordinator = Coordinator("mqtt://127.0.0.1:1", connect_seconds=0.3)
    with pytest.raises(LinkDown, match=r"cannot reach the broker at mqtt://127\.0\.0\.1:1"):
        async with coordinator:
            pass


async def test_a_callback_that_raises_does_not_stop_the_run(fleet):
    await fleet.start("db-0")

    def broken(event):
        raise ValueError(event.kind)

    assert (await fleet.run(sh("true"), on_event=broken)).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("run_id", ["../x", "01890A5D-AC96-774B-BCCE-B302099A8057", "x" * 36])
async def test_a_run_id_that_is_no_uuid_is_refused(fleet, run_id):
    async with fleet.coordinator() as coordinator:
        with pytest.raises(BadInput, match="is not a UUID"):
            await coordinator.run(HookCall(sh("true")), run_id=run_id)


async def test_a_run_id_of_ones_own_is_used_and_cannot_be_used_twice(fleet):
    await fleet.start("db-0")
    mine = "01890a5d-ac96-774b-bcce-b302099a8057"
    run = await fleet.run(sh("true"))
    async with fleet.coordinator() as coordinator:
        run = await coordinator.run(HookCall(sh("true")), run_id=mine)
        assert (run.run_id, run.verdict) == (mine, Verdict.SUCCEEDED)
        again = await coordinator.run(HookCall(sh("true")), run_id=mine)
    assert (outcomes(again), codes(again)) == ({"db-0": "rejected"}, {"db-0": "id_reused"})


async def test_an_invalid_hook_is_refused_before_anybody_is_asked(fleet):
    async with fleet.coordinator() as coordinator:
        text = "action: {tcpSocket: {host: a, port: web}, containerName: c}\nexecutor: {type: Operator}"
        hook = load_hooks(text)[0]
        with pytest.raises(InvalidHook, match="only a pod's container has"):
            await coordinator.run(HookCall(hook))


# -- cancel


async def test_cancel_stops_what_runs_in_every_pod(any_fleet, diary):
    await any_fleet.spawn("db-0", "db-1", "db-2")
    script = f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('begin')}; sleep 600 & wait"
    async with any_fleet.coordinator() as coordinator:
        running = asyncio.create_task(coordinator.run(HookCall(sh(script))))
        await until(lambda: diary.lines.count("begin") == 3, "all run")
        coordinator.cancel()
        run = await asyncio.wait_for(running, 15)
    assert (run.verdict, set(outcomes(run).values())) == (Verdict.CANCELLED, {"cancelled"})
    assert diary.lines.count("stopped") == 3


async def test_cancel_starts_none_of_those_that_wait(fleet, diary):
    await fleet.start("db-0", "db-1", "db-2")
    async with fleet.coordinator() as coordinator:
        call = HookCall(sh(f"{diary.note()}; sleep 600"), max_parallel=1)
        running = asyncio.create_task(coordinator.run(call))
        await until(lambda: diary.lines, "the first runs")
        coordinator.cancel()
        run = await asyncio.wait_for(running, 15)
    assert run.verdict is Verdict.CANCELLED
    assert outcomes(run) == {"db-0": "cancelled", "db-1": "unreachable", "db-2": "unreachable"}
    assert len(diary.lines) == 1


async def test_cancel_before_the_targets_are_known_triggers_nothing(fleet, diary):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        running = asyncio.create_task(coordinator.run(HookCall(sh(diary.note()))))
        await asyncio.sleep(0)
        coordinator.cancel()
        run = await asyncio.wait_for(running, 10)
    assert (run.verdict, run.error.code, run.targets) == (Verdict.CANCELLED, "cancelled", ())
    assert diary.lines == []


async def test_cancel_ends_the_pause_before_a_retry(fleet, diary, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_FIRST_SECONDS", 600)
    await fleet.start("db-0")
    heard = Heard()
    async with fleet.coordinator() as coordinator:
        call = HookCall(sh(f"{diary.note()}; exit 1"), max_retry=1)
        running = asyncio.create_task(coordinator.run(call, on_event=heard))
        await until(lambda: heard.of("retry"), "it pauses")
        coordinator.cancel()
        run = await asyncio.wait_for(running, 5)
    assert (run.verdict, outcomes(run), len(diary.lines)) == (Verdict.CANCELLED, {"db-0": "failed"}, 1)


async def test_a_cancel_that_the_broker_dropped_is_said_again(fleet, diary, monkeypatch):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        running = asyncio.create_task(coordinator.run(HookCall(sh(f"{diary.note()}; sleep 600"))))
        await until(lambda: diary.lines, "it runs")
        original, cancels = coordinator._link.publish, []

        async def lossy(publication, *, submitted=None):
            if b"cancel.v1" in publication.payload:
                cancels.append(publication)
                if len(cancels) == 1:
                    return
            await original(publication, submitted=submitted)

        monkeypatch.setattr(coordinator._link, "publish", lossy)
        coordinator.cancel()
        run = await asyncio.wait_for(running, 15)
    assert outcomes(run) == {"db-0": "cancelled"}
    assert len(cancels) == 2


async def test_whoever_will_not_wait_hears_lost(fleet, diary):
    agent = fleet.process("db-0")
    await fleet.online("db-0")
    async with fleet.coordinator() as coordinator:
        running = asyncio.create_task(coordinator.run(HookCall(sh(f"{diary.note()}; exec sleep 3"))))
        await until(lambda: diary.lines, "it runs")
        agent.send_signal(signal.SIGSTOP)
        try:
            coordinator.cancel()
            await asyncio.sleep(0.3)
            assert not running.done()
            coordinator.cancel(within_seconds=0)
            run = await asyncio.wait_for(running, 3)
        finally:
            agent.send_signal(signal.SIGCONT)
    assert (run.verdict, outcomes(run)) == (Verdict.CANCELLED, {"db-0": "lost"})


async def test_cancelling_the_task_stops_what_runs_and_tells_how_it_ended(fleet, diary):
    await fleet.spawn("db-0", "db-1")
    heard = Heard()
    script = f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('begin')}; sleep 600 & wait"
    async with fleet.coordinator() as coordinator:
        running = asyncio.create_task(coordinator.run(HookCall(sh(script)), on_event=heard))
        await until(lambda: diary.lines.count("begin") == 2, "both run")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 15)
    assert diary.lines.count("stopped") == 2
    ended = [str(event.result.outcome) for event in heard.events if event.kind == "outcome"]
    assert ended == ["cancelled", "cancelled"]


async def test_a_coordinator_that_is_left_leaves_no_task_behind(fleet):
    await fleet.start("db-0")
    before = asyncio.all_tasks()
    await fleet.run(sh("true"))
    await until(lambda: asyncio.all_tasks() <= before, "its tasks ended", 2)


# -- scale, in small


async def test_many_agents_answer_one_run(fleet, diary):
    pods = [f"db-{n:02}" for n in range(25)]
    await fleet.start(*pods)
    async with fleet.coordinator() as coordinator:
        run = await coordinator.run(HookCall(sh(diary.note()), expect=25))
    assert (run.verdict, len(run.targets), len(diary.lines)) == (Verdict.SUCCEEDED, 25, 25)
    assert [each.target.pod for each in run.targets] == pods


async def test_all_events_of_a_run_are_told_in_order(fleet):
    await fleet.start("db-0")
    heard = Heard()
    await fleet.run(sh("sleep 0.2", strategy="ExecuteOnOne"), on_event=heard)
    kinds = [event.kind for event in heard.events]
    wanted = ["selected", "ready", "go", "started", "outcome"]
    assert [kind for kind in kinds if kind in wanted] == wanted


async def test_the_json_of_a_real_run_can_be_written(fleet):
    await fleet.start("db-0")
    run = await fleet.run(sh("printf '\\377\\000'; head -c 100000 /dev/zero | tr '\\0' x >&2"))
    [target] = json.loads(json.dumps(run.to_json()))["targets"]
    assert (target["stdout_encoding"], target["stdout"], target["stdout_bytes"]) == ("base64", "/wA=", 2)
    assert (target["stderr_bytes"], target["truncated"]) == (100_000, True)
