"""A packet over the limit costs no memory and blocks no session.

With MQTT 5 the broker knows the limit and keeps such a message to itself; with 3.1.1 its body is thrown away, and it is
told and acknowledged like any other.
"""

from __future__ import annotations

import tracemalloc

import pytest
from paho.mqtt.client import Client as Paho
from paho.mqtt.client import MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.bus.broker import parse_broker
from agent.bus.types import Delivery, Publication
from tests.bus.peers import SESSION, next_event, send, take_until, until, up

LIMIT = {"packet_limit_bytes": 256 * 1024}


#: Over our limit, under NATS's own of 1 MiB.
SIZE = 900_000


@pytest.mark.parametrize("qos", [0, 1])
async def test_an_oversize_body_is_told_or_never_comes_and_the_link_stays_up(broker_url, topics_root, qos):
    topic = f"{topics_root}/commands"
    async with (
        up(broker_url, f"{topics_root}-me", topic, **LIMIT) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [b"before", bytes(SIZE)], qos)
        await until(lambda: not sender._connection._paho.want_write(), "all of it has left")
        await send(sender, topic, [b"after"], qos)
        bodies = [await next_event(link, Delivery) for _ in range(2 if broker_url.protocol == "5" else 3)]
        said = [body.payload for body in bodies if not body.oversize_bytes]
        assert sorted(said) == [b"after", b"before"]
        if broker_url.protocol != "5":
            oversize = next(body for body in bodies if body.oversize_bytes)
            assert (oversize.topic, oversize.payload) == (topic, b"")
            assert SIZE <= oversize.oversize_bytes < SIZE + 200
        assert link.up


async def test_an_oversize_body_needs_no_memory_and_does_not_come_again(broker_url, topics_root):
    me, topic = f"{topics_root}-me", f"{topics_root}/commands"
    async with up(broker_url, me, topic, **LIMIT, **SESSION):
        pass
    async with up(broker_url, f"{topics_root}-sender") as sender:
        await sender.publish(Publication(topic, bytes(SIZE)))
        tracemalloc.start()
        try:
            async with up(broker_url, me, topic, **LIMIT, **SESSION) as link:
                if broker_url.protocol != "5":
                    delivery = await next_event(link, Delivery)
                    assert delivery.oversize_bytes > SIZE
                    delivery.ack()
                await send(sender, topic, [b"end"])
                assert await take_until(link, b"end") == []
                _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 500_000
        async with up(broker_url, me, topic, **LIMIT, **SESSION) as link:
            await send(sender, topic, [b"end"])
            assert await take_until(link, b"end") == []


async def test_many_oversize_messages_leave_room_for_the_others(broker_url, topics_root):
    """Those that 3.1.1 brokers deliver are acknowledged. mosquitto 2.0.11 with MQTT 5 keeps the place of each among the
    unacknowledged ones until the next connection, so there as many are sent as leave one: `UNBOUNDED_NOTE` says it.
    """
    topic = f"{topics_root}/commands"
    async with (
        up(broker_url, f"{topics_root}-me", topic, **LIMIT, receive_maximum=5) as link,
        up(broker_url, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topic, [bytes(SIZE)] * (4 if broker_url.protocol == "5" else 30))
        await send(sender, topic, [b"end"])
        assert [payload for payload in await take_until(link, b"end") if payload] == []
        assert link.up


async def test_a_packet_just_over_the_limit_is_told_or_never_comes(broker_url, topics_root):
    topic = f"{topics_root}/commands"
    front = 2 + len(topic) + 2 + (1 if broker_url.protocol == "5" else 0)  # topic, packet id, no properties
    room = 1000 - front - (3 if broker_url.protocol == "5" else 0)  # MQTT 5 counts the fixed header, mosquitto does not
    async with up(broker_url, f"{topics_root}-me", topic, packet_limit_bytes=1000) as link:
        await send(link, topic, [bytes(room), bytes(room + (4 if broker_url.protocol == "5" else 1)), b"end"])
        fits = await next_event(link, Delivery)
        assert (len(fits.payload), fits.oversize_bytes) == (room, 0)
        after = await next_event(link, Delivery)
        if broker_url.protocol != "5":
            assert (after.payload, after.oversize_bytes) == (b"", 1001)
            after = await next_event(link, Delivery)
        assert after.payload == b"end"


async def test_endless_properties_do_not_block_the_session(mosquitto, topics_root):
    """Whoever may publish to an agent could otherwise send one message that no connection survives."""
    topic = f"{topics_root}/commands"
    async with up(parse_broker(mosquitto.url, protocol="5"), topics_root, topic, **LIMIT, **SESSION) as link:
        publish_with_properties(mosquitto.port, topic, size=600_000)
        await send(link, topic, [b"end"])
        assert await take_until(link, b"end") == []
        assert link.up


def publish_with_properties(port: int, topic: str, size: int) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    for _ in range(size // 60_000):
        properties.UserProperty = ("name", "x" * 60_000)
    client = Paho(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        client.publish(topic, b"body", qos=1, properties=properties).wait_for_publish(10)
    finally:
        client.disconnect()
        client.loop_stop()
