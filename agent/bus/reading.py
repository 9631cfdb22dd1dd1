"""Reading packets without needing the memory of one that is too large, and remembering how a link broke."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What a PUBLISH of an allowed body may have in front of it: a topic (64 KiB at most) and some properties.
FRONT_ROOM_BYTES = 80 * 1024
#: The longest topic with its length, and a packet id: all that is kept of an oversize PUBLISH.
_FRONT_KEPT_BYTES = 2 + 65535 + 2
_THROW_AWAY_BYTES = 64 * 1024


class Reading:
    """Stands between paho and its socket.

    `oversize_bytes` is the size of the last packet whose body was thrown away; whoever handles the packet
    sets it to 0 again. `broke` is what ended the connection: an error, or a sentence; empty while it lives.
    """

    def __init__(self, receive: Callable[[int], bytes], *, payload_limit_bytes: int, properties: bool) -> None:
        self._receive = receive
        self._limit = payload_limit_bytes + FRONT_ROOM_BYTES
        self._properties = properties
        self.oversize_bytes = 0
        self.broke: OSError | str = ""

    def read(self, packet: Any, size: int) -> bytes:
        """Up to `size` bytes for paho's unfinished incoming `packet`.

        Raises:
            BlockingIOError: nothing for paho at the moment.
            OSError: the connection broke.
        """
        try:
            if packet["have_remaining"] and packet["remaining_length"] > self._limit:
                data = self._read_oversize(packet)
            else:
                data = self._receive(size)
        except BlockingIOError:
            raise
        except OSError as error:
            self.broke = error
            raise
        if not data and not self.broke:
            self.broke = "the broker closed the connection"
        return data

    def _read_oversize(self, packet: Any) -> bytes:
        """Keep the front, throw the rest away, and before the last byte make a small packet of it.

        Small whatever the sender did: properties, too, can be larger than any room left for them.
        """
        kept, left = len(packet["packet"]), packet["to_process"]
        if kept < _FRONT_KEPT_BYTES:
            return self._receive(min(_FRONT_KEPT_BYTES - kept, left - 1))
        if left > 1:
            thrown = len(self._receive(min(left - 1, _THROW_AWAY_BYTES)))
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
            if self._properties:
                packet["packet"].append(0)  # a length of 0: none
        return last
