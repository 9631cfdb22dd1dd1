"""The bus as the rest of the house sees it: what is published, what arrives, and the queue between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when we vanish. Retained, QoS 1."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Publication:
    """Something to publish. MQTT 5 properties repeat what the payload says, for the broker's benefit."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str = ""
    expiry_seconds: int = 0
    response_topic: str = ""
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker can do, as far as it says (MQTT 5 CONNACK).

    `warnings` names each promise that it breaks, `notes` what its protocol leaves out and podhook makes up for.
    """

    protocol: str
    session_present: bool
    receive_maximum: int = 65535
    maximum_packet_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Connected:
    """The link is up and subscribed. What waited in a kept session can be handed out before this."""

    limits: Limits


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is down; it is being tried again in `retry_seconds`."""

    reason: str
    retry_seconds: float


@dataclass(slots=True)
class Delivery:
    """A message that arrived. QoS 1 is delivered again until `ack` was called.

    `oversize_bytes` is set when the packet was over the limit, ended a connection, came again, and its body was thrown
    away; the payload is then empty.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    oversize_bytes: int = 0
    _ack: Callable[[], None] | None = field(default=None, repr=False)
    _alive: Callable[[], bool] | None = field(default=None, repr=False)

    def ack(self) -> None:
        """Tell the broker that it is ours now. Without effect after the link broke: ids are the session's."""
        if self._ack is not None:
            self._ack()

    @property
    def stale(self) -> bool:
        """Whether the broker will deliver this again, because its link broke before it was acknowledged."""
        return self.qos > 0 and self._alive is not None and not self._alive()


LinkEvent = Connected | Disconnected | Delivery


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How one client lives on the bus.

    `session_expiry_seconds` 0 means that the broker forgets us with the connection. `receive_maximum` bounds
    unacknowledged QoS 1 messages, `queue_messages` and `queue_bytes` what waits for the application,
    `packet_limit_bytes` a whole packet that arrives: topic, properties and body.
    """

    client_id: str
    subscriptions: tuple[tuple[str, int], ...] = ()
    will: Callable[[], Will] | None = None
    session_expiry_seconds: int = 0
    receive_maximum: int = 64
    packet_limit_bytes: int = 256 * 1024
    queue_messages: int = 20_000
    queue_bytes: int = 64 * 1024 * 1024


class Inbox:
    """The bounded queue between the socket and the application."""

    def __init__(self, options: LinkOptions) -> None:
        self._options = options
        self._events: deque[LinkEvent] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self.dropped = 0

    def fail(self, error: BaseException) -> None:
        """Make every later `get` raise `error`."""
        self._failure = error
        self._wake.set()

    def put(self, event: LinkEvent) -> bool:
        """Add an event; False when a message does not fit.

        Link states always fit, and stay bounded: of a run of them, who slept needs the last two.
        """
        if isinstance(event, Delivery):
            size = len(event.payload)
            full = len(self._events) >= self._options.queue_messages
            if full or self._bytes + size > self._options.queue_bytes:
                self.dropped += 1
                return False
            self._bytes += size
        elif len(self._events) >= 2 and not any(isinstance(self._events[at], Delivery) for at in (-1, -2)):
            del self._events[-2]
        self._events.append(event)
        self._wake.set()
        return True

    def drop_stale(self) -> None:
        """Forget what the broker will deliver again: handing it out now would be twice."""
        kept = [event for event in self._events if not (isinstance(event, Delivery) and event.stale)]
        self._events = deque(kept)
        self._bytes = sum(len(event.payload) for event in kept if isinstance(event, Delivery))

    async def get(self) -> LinkEvent:
        """The next event, in order of arrival."""
        while True:
            if self._events:
                event = self._events.popleft()
                if isinstance(event, Delivery):
                    self._bytes -= len(event.payload)
                return event
            if self._failure is not None:
                raise self._failure
            self._wake.clear()
            await self._wake.wait()
