"""A coordinator without manners: it triggers and listens, and never asks, so that nothing it misses is made good.

A real coordinator asks what became of a trigger and sends it again if nobody saw it, which would hide that an agent
acknowledged something and lost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

import uuid_utils

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions, Publication
from agent.contract.actions import Action
from agent.contract.errors import LinkDown
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import (
    REPLIES,
    Cancel,
    Message,
    OutcomeMessage,
    Presence,
    Query,
    Reply,
    Report,
    Targets,
    Trigger,
)
from agent.contract.topics import Topics
from tests.faults.coordinator import NAMESPACE
from tests.faults.diary import Diary
from tests.faults.facts import RAW
from tests.faults.waiting import comes

_KINDS, _PRESENCE = Kinds.of(*REPLIES), Kinds.of(Presence)
LINK_SECONDS = 10
ANSWER_SECONDS = 3


@dataclass(slots=True)
class Raw:
    """Publishes any bytes as a command, and notes every outcome that it hears."""

    url: str
    root: str
    diary: Diary
    id: str = field(default_factory=lambda: f"raw-{uuid.uuid4().hex[:12]}")
    presences: dict[str, Presence] = field(default_factory=dict)
    signs: set[tuple[str, str]] = field(default_factory=set)  # attempts about which a pod said anything
    met: set[str] = field(default_factory=set)  # pod uids that ever said online: their agents have a session
    _topics: Topics = field(init=False)
    _link: Link = field(init=False)
    _reading: asyncio.Task[None] | None = None
    _answers: dict[str, asyncio.Future[Report]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._topics = Topics(self.root)
        subscriptions = ((self._topics.replies(self.id), 1), (self._topics.presences(), 0))
        self._link = Link(parse_broker(self.url), LinkOptions(self.id, subscriptions, session_expiry_seconds=3600))

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        await self._link.wait_up(LINK_SECONDS)
        self._reading = asyncio.create_task(self._read(), name="raw")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._link.__aexit__()

    # -- out

    def make(self, pod: str, uid: str, script: str, *, window_seconds: float, timeout_seconds: float = 30) -> Trigger:
        """A trigger for a pod, issued now."""
        now = datetime.now(UTC)
        return Trigger(
            run_id=str(uuid_utils.uuid7()),
            attempt=1,
            coordinator=self.id,
            pod_uid=uid,
            targets=Targets.of([(NAMESPACE, pod, uid)]),
            action=Action.model_validate({"exec": {"command": ["/bin/sh", "-c", script]}}),
            timeout_seconds=timeout_seconds,
            issued_at=now,
            deadline=now + timedelta(seconds=window_seconds),
        )

    async def linked(self, within_seconds: float = LINK_SECONDS) -> bool:
        """Whether the broker is there, waiting for it for a while."""
        return await comes(lambda: self._link.up, within_seconds)

    async def trigger(self, pod: str, trigger: Trigger) -> bytes | None:
        """Publish a trigger, and note when the broker has it. Returns its bytes, or None if it never left."""
        if not self._link.up:
            return None
        payload = self.seal(trigger)
        about = {"trigger": trigger.trigger_id, "uid": trigger.pod_uid}
        self.diary.note("published", **about, pod=pod, by=RAW, deadline=trigger.deadline.timestamp())
        with contextlib.suppress(LinkDown):
            await self.publish(pod, payload)
            self.diary.note("acknowledged", **about)
        return payload

    async def cancel(self, pod: str, trigger: Trigger) -> bytes:
        """Publish the cancel of a trigger, sent or not."""
        about = {"run_id": trigger.run_id, "attempt": trigger.attempt, "pod_uid": trigger.pod_uid}
        payload = self.seal(Cancel(**about, deadline=trigger.deadline))
        self.diary.note("cancel", pod=pod, trigger=trigger.trigger_id, uid=trigger.pod_uid)
        with contextlib.suppress(LinkDown):
            await self.publish(pod, payload)
        return payload

    async def settle(self, pod: str, trigger: Trigger) -> None:
        """Give up a trigger that was never sent, as a coordinator does: the agent promises that it will not start."""
        query = Query(
            query_id=str(uuid.uuid4()),
            coordinator=self.id,
            run_id=trigger.run_id,
            attempt=trigger.attempt,
            settle=True,
            pod_uid=trigger.pod_uid,
            issued_at=trigger.issued_at,
            deadline=trigger.deadline,
        )
        report = await self._answer(pod, query)
        if report is not None and report.pod_uid == trigger.pod_uid and report.tombstoned:
            about = {"trigger": trigger.trigger_id, "uid": trigger.pod_uid}
            self.diary.note("concluded", **about, by="raw-settled", outcome="unreachable", code="never_seen")

    async def publish(self, pod: str, payload: bytes) -> None:
        """Publish anything as a command. Raises LinkDown."""
        topic = self._topics.commands(NAMESPACE, pod)
        await self._link.publish(Publication(topic, payload, content_type=CONTENT_TYPE))

    async def ask(self, pod: str, run_id: str) -> Report | None:
        """Ask what a pod knows of a run, as a fresh coordinator would; None if no answer came, three times."""
        return await self._answer(pod, Query(query_id=str(uuid.uuid4()), coordinator=self.id, run_id=run_id))

    async def _answer(self, pod: str, query: Query) -> Report | None:
        for _ in range(3):
            answer = self._answers[query.query_id] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(LinkDown, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.publish(pod, self.seal(query))
                    return await answer
        return None

    def seal(self, message: Message) -> bytes:
        """The CloudEvent of a message."""
        return seal(message, source=f"/tests/{self.id}", time=datetime.now(UTC), event_id=str(uuid.uuid4()))

    # -- in

    async def _read(self) -> None:
        async for event in self._link.events():
            if not isinstance(event, Delivery):
                continue
            if self._topics.is_presence(event.topic):
                self._note_presence(event)
            else:
                self._hear(open_event(event.payload, _KINDS, limit_bytes=1 << 20).data)
            event.ack()

    def _note_presence(self, event: Delivery) -> None:
        _, pod = self._topics.parse_presence(event.topic)
        if event.payload:
            self.presences[pod] = said = open_event(event.payload, _PRESENCE, limit_bytes=1 << 20).data
            if said.state == "online":
                self.met.add(said.pod_uid)
            if said.state == "online" and not event.retain:
                self.diary.note("online", pod=pod, uid=said.pod_uid)
        else:
            self.presences.pop(pod, None)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Report):
            answer = self._answers.get(message.query_id)
            if answer is not None and not answer.done():
                answer.set_result(message)
        if isinstance(message, Reply):
            self.signs.add((message.pod_uid, message.trigger_id))
        if isinstance(message, OutcomeMessage):
            error = message.error
            self.diary.note(
                "heard",
                trigger=message.trigger_id,
                uid=message.pod_uid,
                outcome=str(message.outcome),
                code=error.code if error else "",
                why=error.message if error else "",
            )
