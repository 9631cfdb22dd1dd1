"""How the agent speaks: replies to a coordinator, and outcomes until the broker has them."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agent.bus.limits import PACKET_ROOM_BYTES
from agent.bus.link import Link
from agent.bus.types import Publication
from agent.contract.errors import JournalUnavailable, LinkDown, PublishRefused
from agent.contract.events import CONTENT_TYPE, seal
from agent.contract.messages import MAX_OUTCOME_BYTES, Message, OutcomeMessage, Report
from agent.contract.outcomes import fit, without_output
from agent.contract.topics import Topics
from agent.journal import Journal, JournalThread
from agent.pod.identity import Identity

log = structlog.get_logger("podhook.voice")

#: How often what is undelivered is looked at again without a reconnect.
RESEND_SECONDS = 30
#: After an outage outcomes leave within this time, at random: a thousand agents shall not answer at once.
RESEND_JITTER_SECONDS = 1.0
#: The link dropped this often while an outcome was published: it goes without its output (DESIGN: Delivery 8).
DROPS_WITHOUT_OUTPUT = 2


#: Of an outcome that is sealed: everything but output, notes and the error's sentence.
REST_OF_OUTCOME_BYTES = 8 * 1024
#: The header and the signature of a JWS, with room.
REST_OF_SIGNATURE_BYTES = 512
#: What left since the last flush began; beyond that a flush may say something twice.
MAX_REMEMBERED = 10_000
#: Refusals without a record that wait for the broker; their senders ask again.
MAX_UNRECORDED = 1000


class Voice:
    """Seals messages as this agent and publishes them to a coordinator's topic of a run."""

    def __init__(
        self,
        link: Link,
        identity: Identity,
        topics: Topics,
        now: Callable[[], datetime],
        sign: Callable[[bytes], bytes],
    ) -> None:
        self._link = link
        self._sign = sign
        self._identity = identity
        self._topics = topics
        self._now = now

    def seal(self, message: Message) -> bytes:
        """The CloudEvent of a message, said by this agent now; signed if it has a key."""
        said = seal(message, source=self._identity.source, time=self._now(), event_id=str(uuid.uuid4()))
        return self._sign(said)

    async def chat(self, coordinator: str, run_id: str, message: Message) -> None:
        """Say it once at QoS 0, if the link is up: chatter may be lost."""
        await self._publish(coordinator, run_id, message, qos=0)

    async def report(self, coordinator: str, report: Report) -> None:
        """Answer a query, on the query's own run topic. A lost answer is asked for again.

        What does not fit goes: first the output, then the oldest attempts. A list of runs begins with its newest.
        """
        if len(self.seal(report)) > self._limit_bytes:
            bare = [
                each.model_copy(update={"outcome": without_output(each.outcome)}) if each.outcome else each
                for each in report.attempts
            ]
            report = report.model_copy(update={"attempts": bare})
        while len(report.attempts) > 1 and len(self.seal(report)) > self._limit_bytes:
            half = (len(report.attempts) + 1) // 2
            newest = report.attempts[:half] if report.run_id is None else report.attempts[-half:]
            report = report.model_copy(update={"attempts": newest})
        await self._publish(coordinator, report.query_id, report, qos=1)

    async def outcome(self, coordinator: str, outcome: OutcomeMessage, *, with_output: bool = True) -> None:
        """Publish an outcome, cut to fit; returns when the broker has it.

        Raises:
            LinkDown, PublishRefused: the broker does not have it.
        """
        cut = outcome
        if self._limit_bytes < _most_bytes(outcome):  # otherwise it need not be made twice to be measured
            cut = fit(outcome, lambda each: len(self.seal(each)), self._limit_bytes)
        message = cut if with_output else without_output(outcome)
        await self._link.publish(self._publication(coordinator, outcome.run_id, message, qos=1))

    @property
    def _limit_bytes(self) -> int:
        """What fits into one message: our own bound, or less room in the broker's packets for it and its topic."""
        limits = self._link.limits
        packet = limits.maximum_packet_bytes if limits else None
        return min(MAX_OUTCOME_BYTES, packet - PACKET_ROOM_BYTES) if packet is not None else MAX_OUTCOME_BYTES

    async def _publish(self, coordinator: str, run_id: str, message: Message, *, qos: int) -> None:
        try:
            await self._link.publish(self._publication(coordinator, run_id, message, qos=qos))
        except (LinkDown, PublishRefused) as error:
            log.debug("reply.not_sent", type=message.TYPE, run_id=run_id, error=str(error))

    def _publication(self, coordinator: str, run_id: str, message: Message, *, qos: int) -> Publication:
        topic = self._topics.reply(coordinator, run_id, self._identity.namespace, self._identity.pod)
        return Publication(topic, self.seal(message), qos=qos, content_type=CONTENT_TYPE, correlation=run_id.encode())


def _most_bytes(outcome: OutcomeMessage) -> int:
    """No outcome is larger than this when it is sealed: a character takes six bytes at most, the rest is bounded.

    A signature's base64 makes four bytes of three.
    """
    free = [outcome.stdout.text, outcome.stderr.text, *outcome.notes, outcome.error.message if outcome.error else ""]
    return (6 * sum(map(len, free)) + REST_OF_OUTCOME_BYTES) * 4 // 3 + REST_OF_SIGNATURE_BYTES


@dataclass(slots=True)
class _Pending:
    """An outcome on its way. `recorded` says whether the journal has it as well."""

    coordinator: str
    outcome: OutcomeMessage
    recorded: bool

    @property
    def key(self) -> tuple[str, str]:
        """Which answer it is: a refusal of other content under the same id is not the attempt's outcome."""
        return self.outcome.trigger_id, self.outcome.trigger_hash


@dataclass(slots=True)
class Outbox:
    """Publishes every outcome until the broker has it; the journal says which are still due."""

    voice: Voice
    journal: JournalThread
    link: Link
    _sending: set[tuple[str, str]] = field(default_factory=set)
    _drops: dict[tuple[str, str], int] = field(default_factory=dict)
    _unrecorded: dict[tuple[str, str], _Pending] = field(default_factory=dict)
    _delivered: set[tuple[str, str]] = field(default_factory=set)  # since the last flush began
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, coordinator: str, outcome: OutcomeMessage, *, recorded: bool = True) -> None:
        """Publish now if possible; otherwise it is published later. Never raises."""
        pending = _Pending(coordinator, outcome, recorded) if recorded else self.keep(coordinator, outcome)
        await self._send(pending)

    def keep(self, coordinator: str, outcome: OutcomeMessage) -> _Pending:
        """Keep what the journal does not have, to be published when its turn comes; the oldest go first in a flood."""
        pending = _Pending(coordinator, outcome, recorded=False)
        self._unrecorded[pending.key] = pending
        while len(self._unrecorded) > MAX_UNRECORDED:
            oldest = next(iter(self._unrecorded))
            del self._unrecorded[oldest]
            self._drops.pop(oldest, None)
            log.warning("refusal.dropped", trigger_id=oldest[0], limit=MAX_UNRECORDED)
        return pending

    def wake(self) -> None:
        """The link is up again: look at once at what is due."""
        self._wake.set()

    async def keep_sending(self) -> None:
        """Publish again what is due, after each `wake` and every 30 s. Never ends by itself."""
        while True:
            try:
                async with asyncio.timeout(RESEND_SECONDS):
                    await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(random.uniform(0, RESEND_JITTER_SECONDS))  # noqa: S311 (jitter)
            except TimeoutError:
                pass
            await self.flush()

    async def flush(self) -> None:
        """Publish everything that is due, once each, oldest first."""
        self._delivered.clear()
        for pending in [*self._unrecorded.values(), *await self._due()]:
            if not self.link.up:
                return
            if pending.key not in self._delivered:  # it may have left while those before it did
                await self._send(pending)

    async def _due(self) -> list[_Pending]:
        try:
            entries = await self.journal.call(Journal.undelivered, 500)
        except JournalUnavailable:
            return []
        return [_Pending(entry.coordinator, entry.outcome, recorded=True) for entry in entries if entry.outcome]

    async def _send(self, pending: _Pending) -> None:
        outcome = pending.outcome
        drops = self._drops.get(pending.key, 0)
        if pending.key in self._sending:
            return
        self._sending.add(pending.key)
        submitted = self.link.up
        try:
            await self.voice.outcome(pending.coordinator, outcome, with_output=drops < DROPS_WITHOUT_OUTPUT)
        except LinkDown as error:
            self._drops[pending.key] = drops + submitted
            log.info("outcome.waits", trigger_id=outcome.trigger_id, error=str(error))
            return
        except PublishRefused as error:
            log.error("outcome.refused_by_broker", trigger_id=outcome.trigger_id, error=str(error))
            return
        finally:
            self._sending.discard(pending.key)
        self._drops.pop(pending.key, None)
        self._unrecorded.pop(pending.key, None)
        if len(self._delivered) < MAX_REMEMBERED:
            self._delivered.add(pending.key)
        if pending.recorded:
            try:
                await self.journal.call(Journal.delivered, outcome)
            except JournalUnavailable as error:
                log.warning("outcome.delivery_not_noted", trigger_id=outcome.trigger_id, error=str(error))
