"""What is done with a packet when it is announced, and how long one may take: decided without a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus import reading
from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.reading import (
    REMEMBERED,
    REMEMBERED_SECONDS,
    THROWN_AWAY_BYTES,
    UNFINISHED_SECONDS,
    Announced,
    PacketTooLargeError,
    Reading,
    Refused,
    UnreadablePacketError,
)
from agent.bus.types import Delivery, Disconnected, LinkOptions
from tests.bus.hostile import DISCONNECT, ENDLESS_BYTES, Hostile, announced
from tests.bus.peers import next_event, until

LIMIT = 256 * 1024
SUBACK, QOS_0, QOS_1, QOS_2 = 0x90, 0x30, 0x32, 0x34
DUP, RETAIN = 0x08, 0x01


class Peer:
    """A socket that always has more, and the packet as paho keeps it: one connection."""

    def __init__(
        self, command: int, size: int, *, refused: Refused | None = None, limit: int = LIMIT, front: bytes = b""
    ) -> None:
        self.seconds = 0.0
        self.received = 0
        self.most = 0
        self.front = front
        self.announce(command, size)
        self.reading = Reading(
            self._receive,
            packet_limit_bytes=limit,
            refused=Refused() if refused is None else refused,
            clock=lambda: self.seconds,
        )

    def announce(self, command: int, size: int) -> None:
        """The next packet's fixed header has come; the reading saw its first byte."""
        if hasattr(self, "reading"):
            self.packet = {"command": 0, "have_remaining": 0, "remaining_length": 1, "to_process": 0}
            self.reading.read(self.packet, 1)
        self.received = 0
        self.packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_length": size,
            "to_process": size,
            "packet": bytearray(),
        }

    def _receive(self, size: int) -> bytes:
        assert size > 0, "reading nothing looks like the end of the connection"
        given = (self.front + bytes(size))[self.received : self.received + size] if self.front else bytes(size)
        self.received += size
        return given + bytes(size - len(given))

    def finish(self) -> None:
        """Read as paho does, until the packet is whole."""
        while self.packet["to_process"] > 0:
            try:
                data = self.reading.read(self.packet, self.packet["to_process"])
            except BlockingIOError:
                continue
            self.packet["to_process"] -= len(data)
            self.packet["packet"] += data
            self.most = max(self.most, len(self.packet["packet"]))

    def refuses(self) -> bool:
        """Whether the packet ends the connection; then nothing of its body was read."""
        size = self.packet["remaining_length"]
        with contextlib.suppress(PacketTooLargeError):
            self.finish()
        if not self.reading.broke:
            assert self.received == size
            return False
        assert isinstance(self.reading.broke, PacketTooLargeError)
        assert f"announced a packet of {size} bytes; the limit is {LIMIT}" in str(self.reading.broke)
        assert self.received == 0, "nothing of its body was read"
        return True


def after(*refused: tuple[int, int], clock: Callable[[], float] = lambda: 0.0) -> Refused:
    """What is remembered after these ended connections."""
    memory = Refused(clock)
    for each in refused:
        memory.add(Announced(*each))
    return memory


LARGE = LIMIT + 1


@pytest.mark.parametrize("command", [QOS_0, QOS_0 | RETAIN, QOS_1, QOS_1 | RETAIN, QOS_1 | DUP, QOS_2, SUBACK])
@pytest.mark.parametrize("size", [LARGE, THROWN_AWAY_BYTES, THROWN_AWAY_BYTES + 1, ENDLESS_BYTES])
def test_whatever_announces_too_much_ends_the_connection_before_its_body(command, size):
    assert Peer(command, size).refuses()


@pytest.mark.parametrize("command", [QOS_0, QOS_1, QOS_2, SUBACK])
def test_what_is_at_the_limit_is_read(command):
    peer = Peer(command, LIMIT)
    assert not peer.refuses()
    assert (len(peer.packet["packet"]), peer.reading.oversize_bytes) == (LIMIT, 0)


@pytest.mark.parametrize(
    ("ended", "comes", "refused"),
    [
        ((QOS_1, LARGE), (QOS_1, LARGE), False),
        ((QOS_1, LARGE), (QOS_1 | DUP, LARGE), False),  # as it is sent again
        ((QOS_1, THROWN_AWAY_BYTES), (QOS_1, THROWN_AWAY_BYTES), False),
        ((QOS_0 | RETAIN, LARGE), (QOS_0 | RETAIN, LARGE), False),  # comes again with each subscription
        ((QOS_1 | RETAIN, LARGE), (QOS_1 | RETAIN, LARGE), False),
        ((QOS_1, LARGE), (QOS_1, LARGE + 1), True),
        ((QOS_1, LARGE), (QOS_1 | RETAIN, LARGE), True),
        ((QOS_1, LARGE), (QOS_0, LARGE), True),
        ((QOS_1, LARGE), (SUBACK, LARGE), True),
        ((QOS_0, LARGE), (QOS_0, LARGE), True),  # another message: this kind never comes again
        ((QOS_2, LARGE), (QOS_2, LARGE), True),
        ((SUBACK, LARGE), (SUBACK, LARGE), True),
        ((QOS_1, THROWN_AWAY_BYTES + 1), (QOS_1, THROWN_AWAY_BYTES + 1), True),
        ((QOS_1, ENDLESS_BYTES), (QOS_1, ENDLESS_BYTES), True),
    ],
)
def test_what_ended_a_connection_and_comes_again_is_thrown_away(ended, comes, refused):
    peer = Peer(*comes, refused=after(ended))
    assert peer.refuses() == refused
    assert peer.reading.oversize_bytes == (0 if refused else comes[1])


def test_one_that_ended_a_connection_is_thrown_away_once():
    memory = after((QOS_1, LARGE))
    peer = Peer(QOS_1, LARGE, refused=memory)
    assert not peer.refuses()
    peer.announce(QOS_1, LARGE)
    assert peer.refuses(), "the next one of this size is another message"
    assert not Peer(QOS_1, LARGE, refused=memory).refuses()
    assert Peer(QOS_1, LARGE, refused=memory).refuses()


def test_what_is_retained_is_thrown_away_once_by_each_connection():
    """Two that are too large stand on topics of ours: with each subscription both come, the same one first."""
    memory = Refused(lambda: 0.0)
    first, second = (QOS_0 | RETAIN, LARGE), (QOS_0 | RETAIN, LARGE + 1)
    assert Peer(*first, refused=memory).refuses()
    peer = Peer(*first, refused=memory)
    assert not peer.refuses()
    peer.announce(*second)
    assert peer.refuses()
    peer = Peer(*first, refused=memory)
    assert not peer.refuses()
    peer.announce(*second)
    assert not peer.refuses()
    peer.announce(*first)
    assert peer.refuses(), "each only once a connection"


def test_what_ended_a_connection_long_ago_ends_the_next_one_too():
    now = 0.0
    memory = after((QOS_1, LARGE), clock=lambda: now)
    now = REMEMBERED_SECONDS + 0.001
    assert Peer(QOS_1, LARGE, refused=memory).refuses()
    now += REMEMBERED_SECONDS
    assert not Peer(QOS_1, LARGE, refused=memory).refuses()


def test_only_so_many_are_remembered():
    memory = after(*((QOS_1, LARGE + number) for number in range(1000)))
    assert sum(memory.known(Announced(QOS_1, LARGE + number)) for number in range(1000)) == REMEMBERED
    assert not Peer(QOS_1, LARGE + 999, refused=memory).refuses()


@pytest.mark.parametrize("command", [QOS_0 | RETAIN, QOS_1])
def test_a_packet_that_is_thrown_away_keeps_its_topic_and_id_and_is_well_formed(command):
    peer = Peer(command, LARGE, refused=after((command, LARGE)), front=b"\0\x03a/b\x12\x34\x7f")
    assert not peer.refuses()
    identifier = b"\x12\x34" if command == QOS_1 else b""
    assert bytes(peer.packet["packet"]) == b"\0\x03a/b" + identifier + b"\0"
    assert peer.most <= 2 + 65535 + 2


def test_a_connection_that_breaks_on_the_way_read_nothing_away():
    memory = after((QOS_1, LARGE))
    peer = Peer(QOS_1, LARGE, refused=memory)
    peer.reading.read(peer.packet, 10)
    assert (memory.read_away, memory.known(Announced(QOS_1, LARGE))) == (0, 1)
    assert not Peer(QOS_1, LARGE, refused=memory).refuses()
    assert memory.read_away == 1


@given(size=st.integers(1, THROWN_AWAY_BYTES), limit=st.integers(1, 2 * LIMIT))
def test_no_size_and_no_limit_reads_nothing_or_keeps_much(size, limit):
    peer = Peer(QOS_1, size, refused=after((QOS_1, size)), limit=limit)
    peer.finish()
    assert peer.most <= max(limit, 2 + 65535 + 2)
    assert (peer.reading.oversize_bytes > 0) == (size > limit)


@given(
    sizes=st.lists(st.integers(LARGE, LARGE + 3), min_size=1, max_size=12),
    orders=st.randoms(use_true_random=False),
)
def test_a_queue_of_them_drains_in_whatever_order_the_broker_sends_it_again(sizes, orders):
    """Every message ends one connection, and is then acknowledged by a later one."""
    memory, queue, connections = Refused(lambda: 0.0), list(sizes), 0
    while queue:
        connections += 1
        assert connections <= len(sizes) + 1
        orders.shuffle(queue)
        acknowledged = 0
        peer = Peer(QOS_1, queue[0], refused=memory)
        while not peer.refuses():
            acknowledged += 1
            if acknowledged == len(queue):
                break
            peer.announce(QOS_1, queue[acknowledged])
        del queue[:acknowledged]
    assert memory.read_away == len(sizes)


@pytest.mark.parametrize("have_remaining", [0, 1], ids=["fixed header", "body"])
def test_a_packet_that_drips_is_left_after_a_total_time(have_remaining):
    peer = Peer(0, 100)
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
