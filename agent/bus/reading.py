"""Reading packets without the memory, or the patience, that one too large needs, and remembering how a link broke.

A packet announces its size before its body. What is done with one over the limit hangs on what the broker was told:

- MQTT 5: our limit stands in CONNECT (Maximum Packet Size, section 3.1.2.11.4), so a broker that announces more breaks
  the protocol. The connection ends before the body, with reason code 0x95.
- MQTT 3.1.1 has no word for it, and a broker that does not know our limit would deliver the same message again after
  every reconnect. So a body of up to `THROWN_AWAY_BYTES` is read and thrown away, and can be acknowledged; above it
  the connection ends before the body.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: The longest topic with its length, and a packet id: all that is kept of an oversize PUBLISH.
_FRONT_KEPT_BYTES = 2 + 65535 + 2
#: What MQTT 3.1.1 may send us and we throw away: NATS's own limit of a payload (1 MiB), and what stands in front of it.
THROWN_AWAY_BYTES = 1024 * 1024 + _FRONT_KEPT_BYTES
_THROW_AWAY_AT_ONCE_BYTES = 64 * 1024
#: How long one packet may take from its first byte to its last: twice the keepalive of 30 s, within which a broker that
#: says nothing at all is left. 256 KiB in that time are 4 KiB a second.
UNFINISHED_SECONDS = 60
_PUBLISH = 0x30


class UnreadablePacketError(OSError):
    """The broker announced a packet that we do not read to its end; the connection must be closed."""


class PacketTooLargeError(UnreadablePacketError):
    """... because of its size."""


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
        announced: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`announced`: whether the broker was told the limit, and so must keep it."""
        self._receive = receive
        self._limit = packet_limit_bytes
        self._announced = announced
        self._clock = clock
        self._began = 0.0
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
        elif self._clock() - self._began > UNFINISHED_SECONDS:
            raise UnreadablePacketError(
                f"the broker did not finish a packet within {UNFINISHED_SECONDS} s of its first byte"
            )
        if not packet["have_remaining"] or packet["remaining_length"] <= self._limit:
            return self._receive(size)
        self._check_announced(packet)
        return self._read_oversize(packet)

    def _check_announced(self, packet: Any) -> None:
        size = packet["remaining_length"]
        if self._announced:
            why = "which it was told (Maximum Packet Size)"
        elif packet["command"] & 0xF0 == _PUBLISH and size <= THROWN_AWAY_BYTES:
            return
        else:
            why = f"and no more than {THROWN_AWAY_BYTES} of a PUBLISH are thrown away"
        raise PacketTooLargeError(
            f"the broker announced a packet of {size} bytes; the limit is {self._limit}, {why}: closed before its body"
        )

    def _read_oversize(self, packet: Any) -> bytes:
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
        last = self._receive(1)
        if last:
            self.oversize_bytes = packet["remaining_length"]
            topic_bytes = int.from_bytes(packet["packet"][:2])
            id_bytes = 2 if packet["command"] & 0x06 else 0  # QoS 0 has none
            del packet["packet"][2 + topic_bytes + id_bytes :]
        return last
