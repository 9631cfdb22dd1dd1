"""Asking agents what they know: their journals are the record of every run, whoever made it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from agent.contract.errors import LinkDown, PublishRefused
from agent.contract.messages import Message, Query, Report
from agent.coordinator.targets import Target
from agent.coordinator.wire import MAX_QUESTIONS, Wire

#: An agent that is asked is given this long, and the question is repeated meanwhile: brokers drop messages.
ANSWER_SECONDS = 5.0
REPEAT_SECONDS = 1.5
#: All questions together have this long: if everybody is silent, somebody still waits for the answer.
ALL_SECONDS = 20.0
#: A question expires in the broker after this long: nobody waits for its answer any more.
QUESTION_EXPIRY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent said. `skew_seconds`: how far its clock is ahead of ours, give or take half of a round trip."""

    report: Report
    skew_seconds: float | None


@dataclass(slots=True, eq=False)
class _Inquiry:
    """Hears the reports to one question."""

    run_id: str | None
    heard: dict[tuple[str, str], asyncio.Future[Report]] = field(default_factory=dict)
    asked: dict[tuple[str, str], str] = field(default_factory=dict)

    def hear(self, key: tuple[str, str], message: Message) -> None:
        waiting = self.heard.get(key)
        if not isinstance(message, Report) or waiting is None or waiting.done():
            return
        if message.query_hash == self.asked.get(key):  # an answer to another question proves nothing
            waiting.set_result(message)

    def hear_unverified(self, key: tuple[str, str], why: str) -> None:
        """Silence, as far as a question is concerned; it is logged."""

    def agent_restored(self, key: tuple[str, str]) -> None:
        """The question is repeated anyway."""


async def ask(
    wire: Wire,
    targets: Iterable[Target],
    question: Callable[[str, Target], Query],
    *,
    run_id: str | None,
    now: Callable[[], datetime],
    within_seconds: float = ANSWER_SECONDS,
) -> dict[Target, Answer]:
    """Ask agents that are online, at most 200 at a time, and return who answered what.

    Args:
        wire: the bus.
        targets: whom to ask; nothing is sent to who is offline.
        question: makes the query for one of them, from the query's id and the target.
        run_id: the run that all questions are about; None for the latest attempts of any.
        now: our wall clock.
        within_seconds: how long each of them has, from when it is asked; together they have 20 s at most.

    Raises:
        LinkDown: the broker was away when the time was over, so silence says nothing of the agents.
    """
    inquiry = _Inquiry(run_id)
    query_id = str(uuid.uuid4())
    places = asyncio.Semaphore(MAX_QUESTIONS)
    answers: dict[Target, Answer] = {}

    async def one(target: Target) -> None:
        async with places:
            if not wire.is_online(target):
                return
            waiting = inquiry.heard[target.key] = asyncio.get_running_loop().create_future()
            asked_at = now()
            sealed = wire.seal(question(query_id, target), target)
            inquiry.asked[target.key] = sealed.digest
            asking = asyncio.create_task(_keep_asking(wire, target, query_id, sealed.payload), name=f"ask {target}")
            try:
                async with asyncio.timeout(within_seconds):
                    report = await waiting
            except TimeoutError:
                return
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            answers[target] = Answer(report, _skew(report, asked_at, now()))

    wire.listen(inquiry, query_id)
    asked = list(targets)
    try:
        async with asyncio.timeout(ALL_SECONDS), asyncio.TaskGroup() as group:
            for target in asked:
                group.create_task(one(target), name=f"inquire {target}")
    except TimeoutError:
        pass  # who has not answered by now is silent
    finally:
        wire.forget(query_id)
    if len(answers) < len(asked) and not wire.link.up:
        raise LinkDown("the broker went away while the agents were asked; ask again when it is back")
    return answers


async def _keep_asking(wire: Wire, target: Target, query_id: str, payload: bytes) -> None:
    while True:
        try:
            await wire.publish(target, query_id, payload, QUESTION_EXPIRY_SECONDS, qos=0)
        except LinkDown:
            pass  # it may be back before the time is over
        except PublishRefused:
            return
        await asyncio.sleep(REPEAT_SECONDS)


def _skew(report: Report, asked_at: datetime, heard_at: datetime) -> float | None:
    if report.clock is None:
        return None
    return (report.clock - (asked_at + (heard_at - asked_at) / 2)).total_seconds()
