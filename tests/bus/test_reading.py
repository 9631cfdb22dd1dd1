"""What is done with a packet when it is announced, and how long one may take: decided without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus import reading
from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.reading import THROWN_AWAY_BYTES, UNFINISHED_SECONDS, PacketTooLargeError, Reading, UnreadablePacketError
from agent.bus.types import Delivery, Disconnected, LinkOptions
from tests.bus.hostile import DISCONNECT, ENDLESS_BYTES, Hostile, announced
from tests.bus.peers import next_event, until

LIMIT = 256 * 1024
SUBACK, QOS_0, QOS_1 = 0x90, 0x30, 0x32


class Peer:
    """A socket that always has more, and the packet as paho keeps it."""

    def __init__(self, command: int, size: int, *, announced: bool, limit: int = LIMIT) -> None:
        self.seconds = 0.0
        self.received = 0
        self.packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_length": size,
            "to_process": size,
            "packet": bytearray(),
        }
        self.reading = Reading(self._receive, packet_limit_bytes=limit, announced=announced, clock=lambda: self.seconds)

    def _receive(self, size: int) -> bytes:
        assert size > 0, "reading nothing looks like the end of the connection"
        self.received += size
        return bytes(size)

    def finish(self) -> None:
        """Read as paho does, until the packet is whole."""
        while self.packet["to_process"] > 0:
            try:
                data = self.reading.read(self.packet, self.packet["to_process"])
            except BlockingIOError:
                continue
            self.packet["to_process"] -= len(data)
            self.packet["packet"] += data


@pytest.mark.parametrize(
    ("command", "size", "told", "fate"),
    [
        (QOS_1, LIMIT, True, "read"),
        (QOS_1, LIMIT + 1, True, "closed"),
        (QOS_1, ENDLESS_BYTES, True, "closed"),
        (SUBACK, LIMIT + 1, True, "closed"),
        (QOS_1, LIMIT, False, "read"),
        (QOS_1, LIMIT + 1, False, "thrown away"),
        (QOS_0, LIMIT + 1, False, "thrown away"),
        (QOS_1 | 0x08, THROWN_AWAY_BYTES, False, "thrown away"),
        (QOS_1, THROWN_AWAY_BYTES + 1, False, "closed"),
        (QOS_1, ENDLESS_BYTES, False, "closed"),
        (SUBACK, LIMIT + 1, False, "closed"),  # only a PUBLISH can be acknowledged away
    ],
)
def test_the_fate_of_a_packet_is_decided_by_what_it_announces(command, size, told, fate):
    peer = Peer(command, size, announced=told)
    if fate == "closed":
        with pytest.raises(PacketTooLargeError, match=rf"a packet of {size} bytes; the limit is {LIMIT}"):
            peer.finish()
        assert peer.received == 0, "nothing of its body was read"
        assert isinstance(peer.reading.broke, PacketTooLargeError)
        return
    peer.finish()
    assert peer.received == size
    assert peer.reading.oversize_bytes == (size if fate == "thrown away" else 0)
    front = 2 + (2 if command & 0x06 else 0)  # an empty topic, and the id that is acknowledged
    assert len(peer.packet["packet"]) == (size if fate == "read" else front + 1)


@given(size=st.integers(1, THROWN_AWAY_BYTES), limit=st.integers(1, 2 * LIMIT))
def test_no_size_and_no_limit_reads_nothing_or_keeps_much(size, limit):
    peer = Peer(QOS_1, size, announced=False, limit=limit)
    peer.finish()
    assert len(peer.packet["packet"]) <= max(limit, 2 + 65535 + 2 + 1)
    assert (peer.reading.oversize_bytes > 0) == (size > limit)


@pytest.mark.parametrize("have_remaining", [0, 1], ids=["fixed header", "body"])
def test_a_packet_that_drips_is_left_after_a_total_time(have_remaining):
    peer = Peer(0, 100, announced=True)
    peer.packet["have_remaining"] = 0
    peer.seconds = 1000.0
    peer.reading.read(peer.packet, 1)  # the first byte: what came before it does not count
    peer.packet |= {"command": QOS_1, "have_remaining": have_remaining}
    for _ in range(60):
        peer.reading.read(peer.packet, 1)
        peer.seconds += UNFINISHED_SECONDS / 60
    peer.reading.read(peer.packet, 1)
    peer.seconds += 0.001
    with pytest.raises(UnreadablePacketError, match=r"did not finish a packet within 60 s"):
        peer.reading.read(peer.packet, 1)


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_a_broker_that_announces_200_mb_is_left_before_the_body(v5):
    front = announced(ENDLESS_BYTES, v5=v5)
    async with (
        Hostile(v5=v5, front=front, chunk=bytes(65536)).serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        lost = await next_event(link, Disconnected)
        assert f"announced a packet of {ENDLESS_BYTES} bytes" in lost.reason
        await until(lambda: broker.attacks_ended, "the connection was closed")


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_it_is_told_why_where_the_protocol_has_a_word_for_it(v5):
    front = announced(ENDLESS_BYTES, v5=v5)[:5]  # with more behind it, the reset of the connection overtakes the word
    async with (
        Hostile(v5=v5, front=front).serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        await next_event(link, Disconnected)
        await until(lambda: broker.left, "the connection was closed")
    assert [body for first, body in broker.heard if first == DISCONNECT][:1] == ([b"\x95"] if v5 else [])


@pytest.mark.parametrize("v5", [True, False], ids=["5", "3.1.1"])
async def test_a_broker_that_drips_is_left(v5, monkeypatch):
    monkeypatch.setattr(reading, "UNFINISHED_SECONDS", 0.1)
    # With 5, all that drips is the length of the properties and properties; with 3.1.1 the body.
    async with (
        Hostile(v5=v5, front=announced(1000, v5=False), chunk=b"\x26", pause_seconds=0.01).serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        lost = await next_event(link, Disconnected)
    assert "did not finish a packet within 0.1 s" in lost.reason


async def test_a_length_that_never_ends_is_an_error_at_its_fifth_byte():
    async with (
        Hostile(v5=True, front=b"\x30\xff\xff\xff\xff\xff").serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        await next_event(link, Disconnected)


async def test_what_fits_arrives_from_the_same_fake():
    front = announced(4 + 4, v5=True) + b"fine"
    async with (
        Hostile(v5=True, front=front).serving() as broker,
        Link(parse_broker(broker.url), LinkOptions("me", (("x", 1),))) as link,
    ):
        assert (await next_event(link, Delivery)).payload == b"fine"
    connect = next(body for first, body in broker.heard if first == 0x10)
    assert b"\x27" + (256 * 1024).to_bytes(4) in connect, "CONNECT says our Maximum Packet Size"
