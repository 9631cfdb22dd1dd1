"""The coordinator's end of the bus: what it publishes, who is online, and to which run a reply belongs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from agent.bus.link import Link
from agent.bus.types import Delivery, Publication
from agent.contract.errors import BadInput, Unverified
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    MAX_COMMAND_BYTES,
    MAX_START_WINDOW_SECONDS,
    REPLIES,
    Message,
    Presence,
    Reply,
    Report,
    Trigger,
)
from agent.contract.signing.peeking import peek
from agent.contract.topics import Topics, check_name
from agent.coordinator.targets import Target
from agent.coordinator.trust import Sealed, Trust, printable

log = structlog.get_logger("podhook.coordinator")

#: Questions under way at once (DESIGN: Delivery 5): mosquitto keeps 1000 messages for a client that is slower.
MAX_QUESTIONS = 200

#: How long a signed command that is no trigger is good: as long as agents take any (DESIGN: at most 15 min).
COMMAND_LIFE = timedelta(seconds=MAX_START_WINDOW_SECONDS)

_REPLIES = Kinds.of(*REPLIES)
_PRESENCE = Kinds.of(Presence)


class Listener(Protocol):
    """A run that hears replies, or a question that hears reports; about `run_id`, if about one."""

    @property
    def run_id(self) -> str | None:
        """The run that replies must speak of."""

    def hear(self, key: tuple[str, str], message: Message) -> None:
        """A reply of the agent (namespace, pod)."""

    def hear_unverified(self, key: tuple[str, str], why: str) -> None:
        """Something that claims to be a reply of that agent, and is not signed by it."""

    def agent_restored(self, key: tuple[str, str]) -> None:
        """That agent is online again."""


@dataclass(frozen=True, slots=True)
class Distrusted:
    """What stands for an agent's presence, and nobody of its namespace has signed: why, and what it claims if anything.

    Whoever wrote it chose its labels, too: it may hide an agent that every selector would find.
    """

    namespace: str
    pod: str
    why: str
    claim: Presence | None = None


@dataclass(slots=True)
class Wire:
    """Seals and publishes commands; hands replies to the runs that wait for them; keeps everybody's presence."""

    link: Link
    topics: Topics
    coordinator: str
    now: Callable[[], datetime]
    trust: Trust = field(default_factory=Trust)
    presences: dict[tuple[str, str], Presence] = field(default_factory=dict)
    distrusted: dict[tuple[str, str], Distrusted] = field(default_factory=dict)
    on_presence: Callable[[], None] = lambda: None
    _listeners: dict[str, Listener] = field(default_factory=dict)
    _unconfirmed: set[tuple[str, str]] = field(default_factory=set)
    _unrepeated: set[tuple[str, str]] = field(default_factory=set)

    # -- out

    def seal(self, message: Message, target: Target) -> Sealed:
        """A command to one target, said by this coordinator now; signed if it has a key."""
        now = self.now()
        said = seal(
            message,
            source=f"/coordinators/{self.coordinator}",
            time=now,
            event_id=str(uuid.uuid4()),
            issuer=self.trust.kid or None,
            audience=f"{target.namespace}/{target.pod}/{target.pod_uid}",
            expires=message.deadline if isinstance(message, Trigger) else now + COMMAND_LIFE,
        )
        return self.trust.seal(said)

    async def publish(
        self,
        target: Target,
        run_id: str,
        payload: bytes,
        expiry_seconds: int,
        submitted: Callable[[], None] | None = None,
        *,
        qos: int = 1,
    ) -> None:
        """Publish a command of a run to a target. Raises LinkDown, PublishRefused (see `Link.publish`).

        What is said again anyway goes at QoS 0: it reaches an agent whose queue at the broker is full, of messages
        that expired there for example, which mosquitto neither hands out nor makes room for.
        """
        publication = Publication(
            self.topics.commands(target.namespace, target.pod),
            payload,
            qos=qos,
            content_type=CONTENT_TYPE,
            expiry_seconds=expiry_seconds,
            response_topic=self.topics.reply(self.coordinator, run_id, target.namespace, target.pod),
            correlation=run_id.encode(),
        )
        await self.link.publish(publication, submitted=submitted)

    async def clear_presence(self, target: Target) -> None:
        """Clear an agent's retained presence; one that lives says it again. Raises LinkDown, PublishRefused."""
        await self.link.publish(Publication(self.topics.presence(target.namespace, target.pod), b"", retain=True))
        self.distrusted.pop(target.key, None)  # what is said next comes after that

    def is_online(self, target: Target) -> bool:
        """Whether the target's presence does not say offline. An unknown or newer pod is asked all the same."""
        presence = self.presences.get(target.key)
        return presence is None or presence.state == "online"

    def successor(self, target: Target) -> str | None:
        """The uid of the pod that is online by the target's name, if it is another than the target's."""
        presence = self.presences.get(target.key)
        if presence is None or presence.state != "online" or presence.pod_uid == target.pod_uid:
            return None
        return presence.pod_uid

    # -- in

    def link_lost(self) -> None:
        """Until the link is back nobody's presence is certain: who says goodbye meanwhile is not told again."""
        self._unconfirmed = set(self.presences)
        self._unrepeated = set(self.distrusted)

    def presence_complete(self) -> None:
        """Everything retained has come: forget whom the broker does not know any more."""
        for key in self._unconfirmed:
            self.presences.pop(key, None)
        for key in self._unrepeated:
            self.distrusted.pop(key, None)
        self._unconfirmed.clear()
        self._unrepeated.clear()

    def listen(self, listener: Listener, *ids: str) -> None:
        """Hand what comes on the topics of these runs or queries to `listener`, until `forget`."""
        self._listeners |= dict.fromkeys(ids, listener)

    def forget(self, *ids: str) -> None:
        """It is over: what still comes is nobody's."""
        for each in ids:
            self._listeners.pop(each, None)

    def take(self, delivery: Delivery) -> None:
        """A message arrived: a presence or a reply. What cannot be read is logged and dropped."""
        try:
            if self.topics.is_presence(delivery.topic):
                self._take_presence(delivery)
            else:
                self._take_reply(delivery)
        except Unverified as error:
            log.warning("reply.not_believed", topic=delivery.topic, code=error.code, error=str(error))
        except BadInput as error:
            log.warning("reply.refused", topic=delivery.topic, error=str(error))

    def _take_presence(self, delivery: Delivery) -> None:
        key = self.topics.parse_presence(delivery.topic)
        for what, name in zip(("namespace", "pod"), key, strict=True):
            check_name(what, name)  # no agent has another, whatever stands there
        self._unrepeated.discard(key)
        if not delivery.payload and not delivery.oversize_bytes:
            self._unconfirmed.discard(key)
            self.presences.pop(key, None)
            self.distrusted.pop(key, None)
            self.on_presence()
            return
        try:
            if delivery.oversize_bytes:
                raise BadInput(f"presence of {delivery.oversize_bytes} bytes; the limit is {MAX_COMMAND_BYTES}")
            presence = _presence(self.trust.open(delivery.payload, key[0]), key)
        except BadInput as error:
            if self.trust.verifies:
                claim = _claim(delivery.payload, key)
                self.distrusted[key] = Distrusted(*key, printable(str(error)), claim)
                self.on_presence()
            raise
        self._unconfirmed.discard(key)
        self.distrusted.pop(key, None)
        before = self.presences.get(key)
        if before is not None and is_stale(presence, before, self.now()):
            log.info("presence.stale", topic=delivery.topic, clock=presence.clock.isoformat())
            return
        self.presences[key] = presence
        self.on_presence()
        if presence.state == "online" and (before is None or before.state == "offline") and not delivery.retain:
            for listener in set(self._listeners.values()):
                listener.agent_restored(key)

    def _take_reply(self, delivery: Delivery) -> None:
        address = self.topics.parse_reply(delivery.topic)
        listener = self._listeners.get(address.run_id)
        if listener is None or address.coordinator != self.coordinator:
            return
        try:
            said = self.trust.open(delivery.payload, address.namespace)
        except Unverified as error:
            listener.hear_unverified((address.namespace, address.pod), str(error))
            raise
        message = open_event(said, _REPLIES, limit_bytes=MAX_COMMAND_BYTES).data
        if isinstance(message, Reply | Report) and (message.namespace, message.pod) != (
            address.namespace,
            address.pod,
        ):
            raise BadInput(f"reply of {message.namespace}/{message.pod} on another agent's topic")
        if isinstance(message, Reply | Report) and message.run_id != listener.run_id:
            raise BadInput(f"reply about run {message.run_id} on the topic of another run")
        listener.hear((address.namespace, address.pod), message)


def _presence(said: bytes, key: tuple[str, str]) -> Presence:
    presence: Presence = open_event(said, _PRESENCE, limit_bytes=MAX_COMMAND_BYTES).data
    if (presence.namespace, presence.pod) != key:
        raise BadInput(f"presence of {presence.namespace}/{presence.pod} on another agent's topic")
    return presence


def _claim(payload: bytes, key: tuple[str, str]) -> Presence | None:
    """What somebody says of an agent who cannot prove that it may; None if it cannot even be read."""
    try:
        return _presence(peek(payload), key)
    except BadInput:
        return None


def is_stale(presence: Presence, known: Presence, now: datetime) -> bool:
    """Whether a presence was said before the one that is known, by the same pod: then somebody repeats it.

    A will is signed when its agent connects, so it is older than what the agent said since; but it is not of an earlier
    life. After a will, whatever comes may be the agent's return. Where the known clock was ahead of ours, and so wrong,
    and may have been set back since, there is no telling.
    """
    if presence.pod_uid != known.pod_uid or known.state == "offline":
        return False
    if presence.state == "offline":
        started, since = presence.started_at, known.started_at
        return started is not None and since is not None and started < since
    was_wrong = known.clock - now > timedelta(seconds=CLOCK_TOLERANCE_SECONDS)
    return presence.clock < known.clock and not was_wrong
