"""A run that somebody else began: gathered, cancelled, and never triggered."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uuid_utils

from agent.contract.errors import LinkDown
from agent.coordinator import Coordinator, HookCall, Verdict
from agent.coordinator import resume as resuming
from tests.coordinator.conftest import Diary, Fleet, Heard, sh, until

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def begun(fleet: Fleet, diary: Diary, script: str, **call) -> tuple[str, asyncio.Task]:
    """A run of another coordinator that has started somewhere; its id, and its task."""
    run_id = str(uuid_utils.uuid7())

    async def run() -> None:
        async with fleet.coordinator() as coordinator:
            await coordinator.run(HookCall(sh(f"{diary.note()}; {script}"), **call), run_id=run_id)

    task = asyncio.create_task(run(), name="the other coordinator")
    await until(lambda: diary.lines, "it runs")
    return run_id, task


async def forget(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_falls_silent_while_it_is_gathered_is_lost(fleet, diary, monkeypatch):
    monkeypatch.setattr(resuming, "SILENT_SECONDS", 3)
    [agent] = await fleet.spawn("db-0")
    run_id, other = await begun(fleet, diary, "sleep 60")
    heard = Heard()
    async with fleet.coordinator() as coordinator, asyncio.timeout(40):
        gathering = asyncio.create_task(coordinator.resume(run_id, on_event=heard))
        await until(lambda: any(event.kind == "selected" for event in heard.events), "it is gathered")
        os.kill(agent.pid, signal.SIGSTOP)
        run = await gathering
        os.kill(agent.pid, signal.SIGCONT)
        await forget(other)
    assert [str(each.result.outcome) for each in run.targets] == ["lost"]
    assert run.verdict is Verdict.FAILED


async def test_whoever_does_not_wait_for_a_cancel_has_cancelled_all_the_same(fleet, diary):
    agents = await fleet.spawn("db-0", "db-1")
    run_id, other = await begun(fleet, diary, "sleep 60")
    await until(lambda: len(diary.lines) == 2, "both run")
    os.kill(agents[0].pid, signal.SIGSTOP)  # so that every look takes its time
    heard = Heard()
    async with fleet.coordinator() as coordinator, asyncio.timeout(40):
        gathering = asyncio.create_task(coordinator.resume(run_id, on_event=heard))
        await until(lambda: any(event.kind == "selected" for event in heard.events), "it is gathered")
        coordinator.cancel()
        await asyncio.sleep(0.2)
        coordinator.cancel(within_seconds=0)
        await gathering
        os.kill(agents[0].pid, signal.SIGCONT)
        ended = (await coordinator.resume(run_id)).targets
    await forget(other)
    assert {str(each.result.outcome) for each in ended} == {"cancelled"}, "something of it went on"


async def test_a_cancel_while_the_agents_are_being_learnt_is_no_less(fleet, diary):
    await fleet.spawn("db-0")
    run_id, other = await begun(fleet, diary, "sleep 60")
    async with fleet.coordinator() as coordinator, asyncio.timeout(40):
        gathering = asyncio.create_task(coordinator.resume(run_id))
        await asyncio.sleep(0)
        coordinator.cancel()
        run = await gathering
    await forget(other)
    assert [str(each.result.outcome) for each in run.targets] == ["cancelled"]


async def test_a_broker_that_goes_away_is_nobodys_silence(fleet, diary):
    [agent] = await fleet.spawn("db-0")
    async with fleet.coordinator() as coordinator:
        await coordinator.agents()
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(coordinator.query(str(uuid_utils.uuid7())))
        await asyncio.sleep(0.6)
        fleet.broker.stop()
        try:
            with pytest.raises(LinkDown, match="ask again when it is back"):
                await asking
        finally:
            fleet.broker.start()
            os.kill(agent.pid, signal.SIGCONT)


async def test_a_gathered_run_goes_on_when_the_broker_is_back(fleet, diary):
    await fleet.spawn("db-0")
    run_id, other = await begun(fleet, diary, f"until [ -e {diary.path}.go ]; do sleep 0.05; done; echo done")
    heard = Heard()
    async with fleet.coordinator() as coordinator, asyncio.timeout(60):
        gathering = asyncio.create_task(coordinator.resume(run_id, on_event=heard))
        await until(lambda: any(event.kind == "selected" for event in heard.events), "it is gathered")
        fleet.broker.restart()
        diary.path.with_name(diary.path.name + ".go").touch()
        run = await gathering
    await forget(other)
    assert (run.verdict, [each.result.stdout.text for each in run.targets]) == (Verdict.SUCCEEDED, ["done\n"])


async def test_presence_that_changed_while_nobody_looked_is_not_missed(fleet):
    [agent] = await fleet.start("db-0")
    async with fleet.coordinator() as coordinator, asyncio.timeout(20):
        assert [each.state for each in await coordinator.agents()] == ["online"]
        await agent.end()
        await fleet.presence_is(lambda states: not states)  # it has changed before anybody waits for it
        await coordinator.presence_changed()
        assert await coordinator.agents() == []


def test_the_library_has_what_the_commands_have():
    for name in ("query", "runs", "resume", "clocks", "prune"):
        assert callable(getattr(Coordinator, name))
