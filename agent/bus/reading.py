"""Reading packets without the memory, or the patience, that one too large needs, and remembering how a link broke.

A packet announces its size before its body, and one over the limit ends the connection there, before its body. With
MQTT 5 a broker that announces one breaks the protocol: our limit stands in CONNECT (Maximum Packet Size, section
3.1.2.11.4). MQTT 3.1.1 has no word for it, and a broker that takes more than we do delivers the same message again
after every reconnect; one such message would keep us out for ever. So what ended a connection is remembered for a
little while (`Refused`), and when the same is announced again it is read and thrown away, and can be acknowledged.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

#: The longest topic with its length, and a packet id: all that is kept of an oversize PUBLISH.
_FRONT_KEPT_BYTES = 2 + 65535 + 2
#: What is thrown away at most: NATS's own limit of a payload (1 MiB), and what stands in front of it.
THROWN_AWAY_BYTES = 1024 * 1024 + _FRONT_KEPT_BYTES
_THROW_AWAY_AT_ONCE_BYTES = 64 * 1024
#: How long what ended a connection is remembered: the longest pause before a reconnect (15 s), and NATS's own time
#: until it sends again what was not acknowledged (30 s), with room for a few of each.
REMEMBERED_SECONDS = 120
#: How many are remembered. Only messages that come again are, so it takes as many of them at once to be kept out.
REMEMBERED = 64
#: How long one packet may take from its first byte to its last: twice the keepalive of 30 s, within which a broker that
#: says nothing at all is left. 256 KiB in that time are 4 KiB a second.
UNFINISHED_SECONDS = 60
_DUP, _RETAIN = 0x08, 0x01
#: A PUBLISH that comes again: retained at QoS 0, at QoS 1, retained at QoS 1 (MQTT, section 3.3.1).
_COMES_AGAIN = frozenset({0x31, 0x32, 0x33})


class Announced(NamedTuple):
    """What is known of a packet before its body: its first byte without DUP, and its size. No topic: that is body."""

    first: int
    size: int

    @property
    def throwable(self) -> bool:
        """Whether it may be thrown away if it comes again."""
        return self.first in _COMES_AGAIN and self.size <= THROWN_AWAY_BYTES


class UnreadablePacketError(OSError):
    """The broker announced a packet that we do not read to its end; the connection must be closed."""


class PacketTooLargeError(UnreadablePacketError):
    """... because of its size."""

    def __init__(self, announced: Announced, limit_bytes: int) -> None:
        self.announced = announced
        size = announced.size
        super().__init__(
            f"the broker announced a packet of {size} bytes; the limit is {limit_bytes}: closed before its body"
        )

    @property
    def next_step(self) -> str:
        """What becomes of it."""
        if self.announced.throwable:
            return "the connection is closed; if it comes again, it is read away and acknowledged"
        return "the connection is closed; limit packets at the broker"


class Refused:
    """What ended the connections of a link lately: it outlives them. `read_away` counts what was not refused again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: deque[tuple[float, Announced]] = deque(maxlen=REMEMBERED)
        self.read_away = 0

    def add(self, announced: Announced) -> None:
        """It ended a connection just now."""
        if announced.throwable:
            self._entries.append((self._clock() + REMEMBERED_SECONDS, announced))

    def known(self, announced: Announced) -> int:
        """How many of this kind ended a connection lately, and did not come again since."""
        now = self._clock()
        return sum(until >= now and each == announced for until, each in self._entries)

    def came_again(self, announced: Announced) -> None:
        """One of this kind was thrown away. It comes no more once it is acknowledged; what is retained does."""
        self.read_away += 1
        if not announced.first & _RETAIN:
            self._entries.remove(next(entry for entry in self._entries if entry[1] == announced))


class Reading:
    """Stands between paho and its socket.

    `oversize_bytes` is the size of the last packet whose body was thrown away; whoever handles the packet
    sets it to 0 again. `broke` is what ended the connection: an error, or a sentence; empty while it lives.
    """

    def __init__(
        self,
        receive: Callable[[int], bytes],
        *,
        packet_limit_bytes: int,
        refused: Refused,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receive = receive
        self._limit = packet_limit_bytes
        self._refused = refused
        self._clock = clock
        self._began = 0.0
        self._throwing: Announced | None = None
        self._retained_again: list[Announced] = []
        self.oversize_bytes = 0
        self.broke: OSError | str = ""

    def read(self, packet: Any, size: int) -> bytes:
        """Up to `size` bytes for paho's unfinished incoming `packet`.

        Raises:
            BlockingIOError: nothing for paho at the moment.
            UnreadablePacketError: too large, or too slow: nothing more is read.
            OSError: the connection broke.
        """
        try:
            data = self._read(packet, size)
        except BlockingIOError:
            raise
        except OSError as error:
            self.broke = error
            raise
        if not data and not self.broke:
            self.broke = "the broker closed the connection"
        return data

    def _read(self, packet: Any, size: int) -> bytes:
        if not packet["command"]:  # its first byte
            self._began = self._clock()
            self._throwing = None
        elif self._clock() - self._began > UNFINISHED_SECONDS:
            raise UnreadablePacketError(
                f"the broker did not finish a packet within {UNFINISHED_SECONDS} s of its first byte"
            )
        if not packet["have_remaining"] or packet["remaining_length"] <= self._limit:
            return self._receive(size)
        if self._throwing is None:
            self._throwing = self._known(Announced(packet["command"] & ~_DUP, packet["remaining_length"]))
        return self._read_oversize(packet, self._throwing)

    def _known(self, announced: Announced) -> Announced:
        """Return what is thrown away, as often as it ended a connection before this one. Else it ends this one."""
        if self._refused.known(announced) <= self._retained_again.count(announced):
            self._refused.add(announced)
            raise PacketTooLargeError(announced, self._limit)
        return announced

    def _read_oversize(self, packet: Any, announced: Announced) -> bytes:
        """Keep the front of a PUBLISH, throw the rest away, and before the last byte make a small packet of it."""
        kept, left = len(packet["packet"]), packet["to_process"]
        if (room := min(_FRONT_KEPT_BYTES - kept, left - 1)) > 0:
            return self._receive(room)
        if left > 1:
            thrown = len(self._receive(min(left - 1, _THROW_AWAY_AT_ONCE_BYTES)))
            if thrown == 0:
                return b""
            packet["to_process"] -= thrown
            raise BlockingIOError
        if not self._receive(1):
            return b""
        self.oversize_bytes = announced.size
        self._refused.came_again(announced)
        if announced.first & _RETAIN:
            self._retained_again.append(announced)
        topic_bytes = int.from_bytes(packet["packet"][:2])
        id_bytes = 2 if packet["command"] & 0x06 else 0  # QoS 0 has none
        del packet["packet"][2 + topic_bytes + id_bytes :]
        return b"\0"  # to MQTT 5 no properties, to 3.1.1 a body that nobody looks at
