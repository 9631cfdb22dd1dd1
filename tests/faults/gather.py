"""What is left when all is over: the journals as they are on disk, and what each agent says when it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time

from tests.faults.actors import Pod
from tests.faults.diary import executions
from tests.faults.raw import Raw
from tests.faults.world import World

#: Questions under way at once, as many as a coordinator allows itself.
QUESTIONS = 50
#: With everything healed, outcomes arrive at once; the slowest step is an agent's look at its disk, every 5 s.
PROGRESS_SECONDS = 10
#: A coordinator may wait until 30 s after a deadline before it concludes.
QUIESCE_SECONDS = 75
_ROWS = "SELECT run_id, attempt, state, outcome, delivered FROM attempts"


def rows(pod: Pod) -> list[dict[str, object]]:
    """The attempts in a pod's journal, read from outside."""
    if not pod.journal.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{pod.journal}?mode=ro", uri=True, timeout=5)) as journal:
        found = journal.execute(_ROWS).fetchall()
    told = []
    for run_id, attempt, state, outcome, delivered in found:
        said = json.loads(outcome) if outcome else {}
        told.append(
            {
                "trigger": f"{run_id}/{attempt}",
                "uid": pod.uid,
                "state": state,
                "outcome": said.get("outcome", ""),
                "code": (said.get("error") or {}).get("code", ""),
                "delivered": bool(delivered),
            }
        )
    return told


def note_rows(world: World, pod: Pod, *, gone: bool) -> None:
    """Put a journal into the diary; `gone`: nobody will be able to ask it any more."""
    try:
        for row in rows(pod):
            world.diary.note("row", **row, gone=gone)
    except sqlite3.Error as error:
        world.diary.note("journal_unreadable", pod=pod.name, uid=pod.uid, why=str(error))


def unsettled(world: World) -> list[str]:
    """What is still under way on the agents: who is not there, and which outcomes have not reached their end."""
    heard = {(event["uid"], event["trigger"]) for event in world.diary.events if event["what"] == "heard"}
    waiting = []
    for pod in world.pods.values():
        if not world.online(pod):
            waiting.append(f"{pod.name} is not online")
        try:
            found = rows(pod)
        except sqlite3.Error as error:
            waiting.append(f"the journal of {pod.name}: {error}")
            continue
        for row in found:
            key = (row["uid"], row["trigger"])
            if not row["outcome"] or not row["delivered"]:
                waiting.append(f"{row['trigger']} on {pod.name}: {row['state']}, delivered: {row['delivered']}")
            elif key in world.of_raw and key not in heard:
                waiting.append(f"{row['trigger']} on {pod.name}: {row['state']}, not heard")
    return waiting


async def quiesce(world: World) -> list[str]:
    """Wait until nothing is under way, as long as there is progress; what is still under way when there is none."""
    begun = changed = time.monotonic()
    before: list[str] = []
    while True:
        world.raise_the_dead()
        world.listen_to_coordinators()
        waiting, now = unsettled(world), time.monotonic()
        if waiting != before:
            before, changed = waiting, now
        stuck = bool(waiting) and now - changed > PROGRESS_SECONDS
        waiting = [*waiting, *(f"run {run}" for run in world.running)]
        if not waiting or stuck or now - begun > QUIESCE_SECONDS:
            return waiting
        await asyncio.sleep(0.3)


async def note_answers(world: World, asking: Raw) -> None:
    """Ask every agent about everything in its journal, as a coordinator would that was never there."""
    places = asyncio.Semaphore(QUESTIONS)

    async def one(pod: Pod, run_id: str) -> None:
        async with places:
            report = await asking.ask(pod.name, run_id)
        for attempt in report.attempts if report is not None and report.pod_uid == pod.uid else ():
            ended = attempt.outcome
            world.diary.note(
                "answered",
                trigger=f"{run_id}/{attempt.attempt}",
                uid=pod.uid,
                outcome=str(ended.outcome) if ended else "",
                code=ended.error.code if ended and ended.error else "",
            )

    async with asyncio.TaskGroup() as group:
        for pod in world.pods.values():
            for run_id in {str(row["trigger"]).rpartition("/")[0] for row in rows(pod)}:
                group.create_task(one(pod, run_id))


def note_executions(world: World) -> None:
    """Put what the actions wrote into the diary."""
    for event in executions(world.log):
        world.diary.note(**event)
