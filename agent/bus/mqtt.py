"""MQTT, kept to its promises: the one import of aiomqtt and of paho underneath it.

What the library leaves open and this file closes (each has a test in tests/bus):

- A message is acknowledged when the application says so, not when it arrives.
- A publish that the broker refuses raises; one that is cancelled leaves nothing behind.
- The session is kept over restarts; what waits in our own queue when the connection breaks is dropped,
  because the broker delivers it again.
- Incoming messages are bounded: by Receive Maximum, by count and bytes of our queue, by size and by time: a packet over
  the limit ends the connection when it is announced, so its memory is never needed (see `reading`).
- TCP_NODELAY, and TCP_QUICKACK re-armed: a round trip of 88 ms becomes 0.4.

One connection is one client of the library: what paho keeps for a client that lost its link would otherwise
be sent again on the next one, long after its publisher was told that it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import aiomqtt
import structlog
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.bus.dial import dial, tls_error
from agent.bus.limits import limits_of
from agent.bus.reading import PacketTooLargeError, Reading, Refused
from agent.bus.types import Delivery, Inbox, Limits, LinkOptions, Publication
from agent.contract.errors import BrokerRefused, BusError, InvalidSettings, LinkDown, PublishRefused

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

    from agent.bus.broker import Broker

log = structlog.get_logger("podhook.bus")

CONNECT_TIMEOUT_SECONDS = 10
KEEPALIVE_SECONDS = 30
#: How long a publish waits for its PUBACK before the connection counts as broken.
ACK_TIMEOUT_SECONDS = 20
#: QoS 1 publishes under way at once; lowered to the broker's Receive Maximum (MQTT 5, section 3.2.2.3.3).
MAX_IN_FLIGHT = 64
#: Reason codes that pass by themselves: unavailable, busy, quota, use another server, server moved, rate.
_PASSING = frozenset({0x88, 0x89, 0x97, 0x9C, 0x9D, 0x9F})
_UNSUPPORTED_PROTOCOL = 0x84
#: What a broker may not offer (MQTT 5, section 3.2.2.2), and an agent's will needs.
_NEEDED = {0x9A: "retained messages, by which agents are found", 0x9B: "QoS 1, by which nothing is lost"}
_PACKET_TOO_LARGE = 0x95
#: Unsent bytes at which a QoS 0 publish is refused: the broker reads slower than we write.
BACKLOG_LIMIT_BYTES = 8 * 1024 * 1024
_NUMBERS = ("MaximumQoS", "RetainAvailable", "SessionExpiryInterval", "MaximumPacketSize", "ReceiveMaximum")


class ProtocolRefused(BrokerRefused):
    """The broker does not speak this version of MQTT."""


class Connection:
    """One TCP life of a link. paho's callbacks run on the event loop, so nothing here needs a lock."""

    def __init__(self, broker: Broker, options: LinkOptions, protocol: str, inbox: Inbox, refused: Refused) -> None:
        self._broker = broker
        self._options = options
        self._inbox = inbox
        self._protocol = protocol
        self._pending: dict[int, tuple[str, asyncio.Future[None]]] = {}
        self._unacked: set[int] = set()
        self._overflowed = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.limits = Limits(protocol, session_present=False)
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._waiting = 0
        v5 = protocol == "5"
        user, password = broker.credentials()
        will = options.will() if options.will else None
        self._client = aiomqtt.Client(
            broker.host,
            broker.port,
            identifier=options.client_id,
            username=user,
            password=password,
            protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if v5 else options.session_expiry_seconds == 0,
            clean_start=options.session_expiry_seconds == 0 if v5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=self._connect_properties() if v5 else None,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True) if will else None,
            keepalive=KEEPALIVE_SECONDS,
            timeout=CONNECT_TIMEOUT_SECONDS,
            max_inflight_messages=0,  # our own slots bound it, and a cancelled publish gives its slot back
        )
        self._paho: paho.Client = self._client._client  # noqa: SLF001
        self._paho.manual_ack_set(on=True)
        self._paho.on_message = self._on_message
        self._paho.on_publish = self._on_publish
        self._before("on_connect", self._on_connect)
        self._before("on_disconnect", self._on_disconnect)
        for name in ("loop_read", "loop_write"):
            setattr(self._paho, name, functools.partial(self._then_quickack, getattr(self._paho, name)))
        self._reading = Reading(
            self._paho._sock_recv,  # noqa: SLF001
            packet_limit_bytes=options.packet_limit_bytes,
            refused=refused,
        )
        setattr(self._paho, "_sock_recv", self._sock_recv)  # noqa: B010

    # -- life

    async def open(self) -> None:
        """Connect and subscribe. Messages of a kept session may be handed out before this returns.

        Raises:
            LinkDown: no answer, or the connection broke.
            BrokerRefused: the broker said no.
            InvalidSettings: a certificate file cannot be used.
        """
        self._client._disconnected.add_done_callback(self._on_link_end)  # noqa: SLF001
        try:
            await self._connect()
            for topic, qos in self._options.subscriptions:
                await self._subscribe(topic, qos)
        except MqttConnectError as error:
            self.abort("refused")
            raise _refused(error) from error
        except aiomqtt.MqttError as error:
            self.abort(str(error))
            if isinstance(self._reading.broke, ssl.SSLError):
                raise tls_error(self._reading.broke) from self._reading.broke
            # What ended it says more than the library, whose next step failed for it.
            raise LinkDown(str(self._reading.broke or error) or type(error).__name__) from error
        except BaseException as error:
            self.abort(str(error) or "given up")
            raise

    async def _connect(self) -> None:
        broker = self._broker
        sock = await dial(broker.host, broker.port, broker.tls_context(), CONNECT_TIMEOUT_SECONDS)
        setattr(self._paho, "_create_socket", lambda: sock)  # noqa: B010
        try:
            self._client._client_connect()  # noqa: SLF001 (connected already, so this only sends; no thread needed)
        except (ValueError, struct.error) as error:
            raise unsayable(error) from error
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self._client._connected  # noqa: SLF001
        except TimeoutError as error:
            raise LinkDown(f"connected, but no word of MQTT within {CONNECT_TIMEOUT_SECONDS} s") from error

    async def _subscribe(self, topic: str, qos: int) -> None:
        granted = _code((await self._client.subscribe(topic, qos))[0])
        if granted >= 0x80:
            raise BrokerRefused(f"the broker refused the subscription to {topic!r} (reason code 0x{granted:02x})")
        if granted < qos:
            warning = f"the broker grants only QoS {granted} for {topic!r}: messages there can be lost"
            self.limits = replace(self.limits, warnings=(*self.limits.warnings, warning))

    async def close(self) -> None:
        """Say goodbye: no will is published."""
        try:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                await self._client.__aexit__(None, None, None)
        finally:
            self.abort("closed")

    def abort(self, reason: str) -> None:
        """Drop the connection as it is; whoever waits for it hears `reason`."""
        self._paho._sock_close()  # noqa: SLF001
        misc = self._client._misc_task  # noqa: SLF001
        if misc is not None:
            misc.cancel()
        if not self.lost.done():
            self.lost.set_result(reason)
            self._inbox.drop_stale()
        for _, waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(LinkDown(f"the link broke before the broker answered: {reason}"))
                waiting.exception()  # whoever waited may be gone
        self._pending.clear()
        for subscribing in self._client._pending_subscribes.values():  # noqa: SLF001
            if not subscribing.done():
                subscribing.set_exception(aiomqtt.MqttError(reason))
                subscribing.exception()
        for _ in range(self._waiting):
            self._slots.release()

    def _on_link_end(self, disconnected: asyncio.Future[None]) -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        self.abort(str(self._reading.broke or error or "closed"))

    # -- out

    async def publish(self, publication: Publication, submitted: Callable[[], None] | None = None) -> None:
        """Publish; QoS 1 returns when the broker has it. `submitted` is called once it may be on the wire."""
        properties = self._publish_properties(publication) if self._protocol == "5" else None
        self._check_size(publication, properties)
        if self.lost.done():  # before the slots: those of a lost connection are never given back
            raise LinkDown("not connected")
        if publication.qos == 0:
            self._check_backlog()
            if submitted is not None:
                submitted()
            self._submit(publication, properties)
            return
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            if self.lost.done():
                raise LinkDown("not connected")
            if submitted is not None:
                submitted()
            mid = self._submit(publication, properties)
        except BaseException:
            self._slots.release()
            raise
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Its PUBACK gives the slot back, not the waiter: what was cancelled is under way all the same.
        self._pending[mid] = (publication.topic, answer)
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                await answer
        except TimeoutError as error:
            self.abort(f"no acknowledgement within {ACK_TIMEOUT_SECONDS} s")
            raise LinkDown(f"the broker did not acknowledge within {ACK_TIMEOUT_SECONDS} s") from error

    def _check_size(self, publication: Publication, properties: Properties | None) -> None:
        """MQTT 5, section 3.2.2.3.6: a larger packet must not be sent; it would cost the connection."""
        limit = self.limits.maximum_packet_bytes
        if limit is None or properties is None:
            return
        front = len(publication.topic.encode()) + len(properties.pack())  # type: ignore[no-untyped-call]
        size = 5 + 2 + 2 + front + len(publication.payload)  # fixed header, two lengths or ids of 2 bytes
        if size > limit:
            reason = f"Packet too large, {size} bytes of at most {limit}"
            raise PublishRefused(publication.topic, _PACKET_TOO_LARGE, reason)

    def _check_backlog(self) -> None:
        unsent = self._paho._out_packet  # noqa: SLF001
        if unsent and sum(packet["to_process"] for packet in unsent) > BACKLOG_LIMIT_BYTES:
            raise LinkDown(f"the broker is too slow: more than {BACKLOG_LIMIT_BYTES} bytes wait to be sent")

    def _submit(self, publication: Publication, properties: Properties | None) -> int:
        info = self._paho.publish(
            publication.topic,
            publication.payload,
            publication.qos,
            publication.retain,
            properties,
        )
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise LinkDown(f"not connected: {paho.error_string(info.rc)}")
        return info.mid

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        if mid not in self._pending:  # QoS 0
            return
        topic, waiting = self._pending.pop(mid)
        self._slots.release()
        if waiting.done():
            return
        if reason.is_failure:
            waiting.set_exception(PublishRefused(topic, reason.value, str(reason)))
        else:
            waiting.set_result(None)

    # -- in

    def _on_message(self, _c: object, _u: object, message: paho.MQTTMessage) -> None:
        oversize, self._reading.oversize_bytes = self._reading.oversize_bytes, 0
        payload = b"" if oversize else bytes(message.payload)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        if oversize:
            self._log_too_large(oversize, "it ended a connection before: read away, and acknowledged", topic=topic)
        if message.qos == 0:
            delivery = Delivery(topic, payload, 0, message.retain, oversize)
            if not self._inbox.put(delivery) and self._inbox.dropped.bit_count() == 1:  # 1, 2, 4, 8, ...
                log.warning("bus.message_dropped", topic=topic, qos=0, dropped=self._inbox.dropped)
            return
        if message.mid in self._unacked:  # NATS sends again on the same link after its ack_wait
            return
        acknowledge = functools.partial(self._acknowledge, message.mid, message.qos)
        delivery = Delivery(topic, payload, message.qos, message.retain, oversize, acknowledge, self._alive)
        if self._overflowed:
            return
        if self._inbox.put(delivery):
            self._unacked.add(message.mid)
            return
        self._overflowed = True
        log.warning("bus.queue_full", topic=topic, qos=1, next="not acknowledged; the broker sends it again")
        # Not at once: paho holds a lock around its callbacks that closing the socket takes.
        asyncio.get_running_loop().call_soon(self.abort, "more messages than the queue holds")

    def _alive(self) -> bool:
        return not self.lost.done()

    def _acknowledge(self, mid: int, qos: int) -> None:
        if mid in self._unacked and not self.lost.done():
            self._unacked.discard(mid)
            self._paho.ack(mid, qos)

    def _sock_recv(self, size: int) -> bytes:
        try:
            return self._reading.read(self._paho._in_packet, size)  # noqa: SLF001
        except PacketTooLargeError as error:
            self._say_too_large()
            self._log_too_large(error.announced.size, error.next_step)
            raise

    def _say_too_large(self) -> None:
        """DISCONNECT, "packet too large" (MQTT 5, section 3.14), if it can leave at once: nobody waits for that.

        Past the library, which would send it only after the connection is closed; so not into the middle of a packet.
        """
        sock = self._paho.socket()
        if self._protocol == "5" and sock is not None and not self._paho._out_packet:  # noqa: SLF001
            with contextlib.suppress(OSError):
                cast("socket.socket", sock).send(bytes((0xE0, 1, _PACKET_TOO_LARGE)))

    def _log_too_large(self, size: int, next_step: str, **about: str) -> None:
        limit = self._options.packet_limit_bytes
        log.warning("bus.packet_too_large", packet_bytes=size, limit_bytes=limit, next=next_step, **about)

    # -- callbacks

    def _before(self, name: str, first: Callable[..., None]) -> None:
        inner = getattr(self._paho, name)

        def both(*args: Any, **kwargs: Any) -> None:
            first(*args)
            inner(*args, **kwargs)

        setattr(self._paho, name, both)

    def _on_connect(self, _c: object, _u: object, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            return
        said = {name: int(getattr(properties, name)) for name in _NUMBERS if hasattr(properties, name)}
        self.limits = limits_of(
            self._protocol,
            said,
            self._options,
            session_present=bool(flags.session_present),
            other_id=hasattr(properties, "AssignedClientIdentifier"),
        )
        self._slots = asyncio.Semaphore(min(MAX_IN_FLIGHT, self.limits.receive_maximum))

    def _on_disconnect(self, _c: object, _u: object, flags: Any, reason: ReasonCode, _p: object) -> None:
        if flags.is_disconnect_packet_from_server:
            self._reading.broke = f"the broker ended the connection: {reason} (reason code 0x{_code(reason):02x})"
        connected = self._client._connected  # noqa: SLF001
        if not connected.done():  # the library would wait for a CONNACK that cannot come any more
            why = self._reading.broke or reason
            connected.set_exception(aiomqtt.MqttError(f"the connection ended before its answer: {why}"))

    def _then_quickack(self, original: Callable[[], Any]) -> Any:
        result = original()
        sock = self._paho.socket()
        if sock is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                cast("socket.socket", sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return result

    # -- properties

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._options.session_expiry_seconds
        properties.ReceiveMaximum = self._options.receive_maximum
        properties.MaximumPacketSize = self._options.packet_limit_bytes
        return properties

    @staticmethod
    def _publish_properties(publication: Publication) -> Properties:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if publication.content_type:
            properties.ContentType = publication.content_type
        if publication.expiry_seconds:
            properties.MessageExpiryInterval = publication.expiry_seconds
        if publication.response_topic:
            properties.ResponseTopic = publication.response_topic
        if publication.correlation:
            properties.CorrelationData = publication.correlation
        return properties


def unsayable(error: Exception) -> InvalidSettings:
    """CONNECT cannot be written: its lengths have 16 bits (MQTT 5, section 1.5.4). It is this try's error only."""
    return InvalidSettings(
        f"the first message to the broker cannot be written ({error}); user, password, client id and will may have at "
        "most 65535 bytes each, and text must be UTF-8"
    )


def _code(reason: Any) -> int:
    return int(getattr(reason, "value", reason) or 0)


def _refused(error: MqttConnectError) -> BusError:
    code = _code(error.rc)
    sentence = f"the broker refused the connection: {error.rc} (reason code 0x{code:02x})"
    if code in _PASSING:
        return LinkDown(sentence)
    if code == _UNSUPPORTED_PROTOCOL:
        return ProtocolRefused(sentence)
    if (needed := _NEEDED.get(code)) is not None:
        return BrokerRefused(f"{sentence}; podhook cannot do without {needed}: allow it there, or take another broker")
    return BrokerRefused(f"{sentence}; check user, password, client id and the broker's access rules")
