"""One run: a world is made, shaken as the plan says, healed, and judged."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

from tests.faults import disks
from tests.faults.deeds import Deeds
from tests.faults.diary import Diary, Event
from tests.faults.gather import note_answers, note_executions, note_rows, quiesce
from tests.faults.ledger import Judgement, Violation, judge
from tests.faults.raw import Raw
from tests.faults.schedule import Fault, Plan, Work
from tests.faults.world import World, make_world

PROGRESS_SECONDS = 10
BEGIN_SECONDS = 30
#: How much of the diary is shown for a violation.
SHOWN_EVENTS = 40
BEFORE_SECONDS = 10


async def run(plan: Plan, directory: Path) -> Judgement:
    """Shake a world as planned, in a directory of its own, and judge it."""
    diary = Diary(directory / "events.jsonl")
    diary.note("plan", **asdict(plan))
    try:
        async with make_world(directory, diary) as world:
            await _everybody_is_there(world)
            diary.note("begin")
            async with _progress(world, plan):
                await _shake(world, plan)
            diary.note("heal")
            await _heal(world)
            diary.note("quiet", waiting=await quiesce(world))
            async with Raw(world.broker.url, world.root, diary) as asking:
                await note_answers(world, asking)
            for pod in world.pods.values():
                note_rows(world, pod, gone=False)
                shutil.copytree(pod.agent.state, pod.directory / "state")  # its disk goes with the world
            note_executions(world)
            diary.note("gathered")
        return judge(diary.events)
    finally:
        diary.close()


async def _everybody_is_there(world: World) -> None:
    for pod in world.pods.values():
        assert await world.comes_online(pod, BEGIN_SECONDS), f"{pod.name} did not come online\n{pod.agent.tail()}"


async def _shake(world: World, plan: Plan) -> None:
    begun = asyncio.get_running_loop().time()
    deeds = Deeds(world)

    async def at(moment: float) -> None:
        await asyncio.sleep(max(0, begun + moment - asyncio.get_running_loop().time()))

    async def strike(fault: Fault) -> None:
        await at(fault.at)
        await deeds.do(fault)

    async def work(one: Work) -> None:
        await at(one.at)
        await _work(world, deeds, one)

    async with asyncio.TaskGroup() as group:
        for fault in plan.faults:
            group.create_task(strike(fault), name=f"{fault.kind} {fault.victim}")
        for one in plan.works:
            group.create_task(work(one), name="work")
        group.create_task(at(plan.seconds))


async def _work(world: World, deeds: Deeds, one: Work) -> None:
    if not one.by:
        await deeds.trigger(
            world.pods[one.pods[0]],
            sleep_seconds=one.sleep_seconds,
            exit_code=one.exit_code,
            window_seconds=one.window_seconds,
            timeout_seconds=one.timeout_seconds,
        )
        return
    world.order(one)


async def _heal(world: World) -> None:
    """Everything is as it should be. Every link is cut once more: who comes back says what it still has to say."""
    world.broker.start()
    for pod in world.pods.values():
        disks.free(pod.disk)
        world.start_agent(pod)
    for proxy in world.proxies.values():
        proxy.calm()
        proxy.cut()
    await world.raw.linked()


@contextlib.asynccontextmanager
async def _progress(world: World, plan: Plan) -> AsyncIterator[None]:
    """A line every ten seconds for who waits, and an eye on what ends by itself."""
    begun = time.monotonic()

    async def watch() -> None:
        said = 0
        while True:
            await asyncio.sleep(0.2)
            world.raise_the_dead()
            world.listen_to_coordinators()
            passed = time.monotonic() - begun
            if passed // PROGRESS_SECONDS > said:
                said = int(passed // PROGRESS_SECONDS)
                seen = Counter(event["what"] for event in world.diary.events)
                there = sum(world.online(pod) for pod in world.pods.values())
                print(
                    f"{passed:.0f} of {plan.seconds:g} s: {seen['fault']} faults, {seen['published']} triggers sent,",
                    f"{seen['heard'] + seen['concluded']} outcomes, {there} of {len(world.pods)} agents there",
                    file=sys.stderr,
                    flush=True,
                )

    watching = asyncio.create_task(watch(), name="progress")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def explain(violation: Violation, diary: list[Event]) -> str:
    """A violation and what the diary has about it: the attempt, what was done to its pod, and to the broker."""
    uid, trigger = violation.key
    about = [each for each in diary if trigger in (each.get("trigger"), each.get("run"))]
    if about:
        first, last = about[0]["at"] - BEFORE_SECONDS, max(each["at"] for each in about if each["what"] != "row")
        about += [
            each
            for each in diary
            if first < each["at"] < last
            and "trigger" not in each
            and (each.get("uid") == uid or each["what"].startswith("broker_"))
        ]
        about.sort(key=lambda each: each["at"])
    begun = next((each["at"] for each in diary if each["what"] == "begin"), 0)
    return "\n".join([str(violation), *(f"    {_line(each, begun)}" for each in about[:SHOWN_EVENTS])])


def _line(event: Event, begun: float) -> str:
    more = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("at", "what", "trigger"))
    return f"{event['at'] - begun:9.3f} {event['what']} {more}"
