"""An MQTT client without manners: subscribes to anything, publishes anywhere, and says what the broker answered."""

from __future__ import annotations

import threading
import uuid
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.bus.broker import Broker
from tests.brokers import poll

WITHIN_SECONDS = 10


class NotLetIn(Exception):  # noqa: N818
    """The broker closed the door."""


class Raw:
    """Connected when it is made. `session`: the broker keeps its session. Messages are (topic, payload, retained)."""

    def __init__(
        self, broker: Broker, client_id: str = "", *, session: bool = False, will: tuple[str, bytes] | None = None
    ) -> None:
        self.id = client_id or f"raw-{uuid.uuid4().hex}"
        self.messages: list[tuple[str, bytes, bool]] = []
        self.answers: dict[int, int] = {}
        self._v5 = broker.protocol == "5"
        self._let_in: list[int] = []
        self.lost = threading.Event()
        kept: dict[str, Any] = {} if self._v5 else {"clean_session": not session}
        protocol = paho.MQTTv5 if self._v5 else paho.MQTTv311
        self._client = paho.Client(CallbackAPIVersion.VERSION2, self.id, protocol=protocol, **kept)
        user, password = broker.credentials()
        if user is not None:
            self._client.username_pw_set(user, password)
        if (context := broker.tls_context()) is not None:
            self._client.tls_set_context(context)
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)
        self._client.on_connect = lambda _c, _u, _f, reason, _p: self._let_in.append(_code(reason))
        self._client.on_disconnect = lambda *_: self.lost.set()
        self._client.on_message = lambda _c, _u, m: self.messages.append((m.topic, m.payload, m.retain))
        self._client.on_subscribe = lambda _c, _u, mid, codes, _p: self._answer(mid, codes[0])
        self._client.on_publish = lambda _c, _u, mid, reason, _p: self._answer(mid, reason)
        self._client.connect_timeout = WITHIN_SECONDS
        self._client.reconnect_delay_set(3600, 3600)
        start: dict[str, Any] = {}
        if self._v5:
            properties = paho.Properties(paho.PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 600 if session else 0
            start = {"clean_start": not session, "properties": properties}
        try:
            self._client.connect(broker.host, broker.port, **start)
            self._client.loop_start()
            poll(lambda: bool(self._let_in) or self.lost.is_set(), "an answer to CONNECT", WITHIN_SECONDS)
        except OSError as error:
            raise NotLetIn(str(error)) from error
        if not self._let_in or self._let_in[0] >= 0x80 or (not self._v5 and self._let_in[0] > 0):
            self.end()
            raise NotLetIn(f"CONNACK {self._let_in}")

    def _answer(self, mid: int, reason: Any) -> None:
        self.answers[mid] = _code(reason)

    def subscribe(self, *filters: str) -> list[int]:
        """Subscribe at QoS 1, one packet each; the broker's answers. A broker that hangs up answers 0x80."""
        codes = []
        for each in filters:
            _, mid = self._client.subscribe(each, 1)
            codes.append(self._answered(mid))
        return codes

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Publish; the broker's answer (3.1.1 has no refusal)."""
        info = self._client.publish(topic, payload, qos, retain)
        return self._answered(info.mid) if qos else 0

    def _answered(self, mid: int | None) -> int:
        assert mid is not None
        poll(lambda: mid in self.answers or self.lost.is_set(), "an answer", WITHIN_SECONDS)
        return self.answers.get(mid, 0x80)

    def heard(self, payload: bytes) -> bool:
        """Wait for a message of this payload; whatever came before it is in `messages`."""
        poll(lambda: any(body == payload for _, body, _ in self.messages), f"{payload!r} arrives", WITHIN_SECONDS)
        return True

    def vanish(self) -> None:
        """Break the connection without a goodbye: the will speaks."""
        self._client._thread_terminate = True
        self._client._sockpairW.send(b"\0")  # or its loop sleeps for a second first
        self._client.loop_stop()
        self._client._sock_close()

    def end(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        self._client.loop_stop()


def _code(reason: Any) -> int:
    return int(getattr(reason, "value", reason))
