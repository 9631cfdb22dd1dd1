"""MQTT as far as a proxy must know it: where a packet ends, and what a PUBLISH says. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CONNECT, PUBLISH = 1, 3
_DUP = 0x08
#: MQTT's "variable byte integer" has at most four bytes, seven bits each (section 1.5.5).
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Published:
    """What a PUBLISH carries."""

    topic: str
    payload: bytes


class Splitter:
    """Cuts a stream of bytes into whole packets, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are complete now."""
        self._rest += data
        found = []
        while (end := _end(self._rest)) is not None:
            found.append(bytes(self._rest[:end]))
            del self._rest[:end]
        return found


def kind(packet: bytes) -> int:
    """Its type (section 2.1.2)."""
    return packet[0] >> 4


def may_come_twice(packet: bytes) -> bool:
    """Whether it is a PUBLISH that may be delivered again: QoS 1."""
    return kind(packet) == PUBLISH and (packet[0] >> 1) & 3 == 1


def once_more(packet: bytes) -> bytes:
    """The same PUBLISH, saying of itself that it is sent again."""
    return bytes([packet[0] | _DUP]) + packet[1:]


def version(connect: bytes) -> int:
    """The protocol level of a CONNECT: 4 is MQTT 3.1.1, 5 is MQTT 5."""
    _, at = _length(connect)
    return connect[at + 2 + int.from_bytes(connect[at : at + 2])]


def published(packet: bytes, level: int) -> Published:
    """Topic and payload of a PUBLISH."""
    _, at = _length(packet)
    end = at + 2 + int.from_bytes(packet[at : at + 2])
    topic = packet[at + 2 : end].decode()
    if (packet[0] >> 1) & 3:
        end += 2  # the packet's identifier
    if level == 5:
        size, end = _length(packet, end)
        end += size
    return Published(topic, packet[end:])


def _end(data: bytes | bytearray) -> int | None:
    """Where the first packet ends; None while it is not complete."""
    for at in range(1, min(len(data), 1 + _LENGTH_BYTES)):
        if data[at] < 0x80:
            size, front = _length(data)
            return front + size if len(data) >= front + size else None
    return None


def _length(data: bytes | bytearray, at: int = 1) -> tuple[int, int]:
    """A variable byte integer at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
