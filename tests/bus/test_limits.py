"""What a broker cannot keep is said when the link comes up."""

from __future__ import annotations

import pytest

from agent.bus.broker import parse_broker
from agent.bus.limits import OLD_PROTOCOL_NOTES, UNBOUNDED_NOTE, limits_of
from agent.bus.types import Connected, Delivery, LinkOptions
from tests.bus.peers import SESSION, next_event, numbered, send, take, up


async def test_each_broker_says_what_it_cannot_keep(broker_url, topics_root):
    async with up(broker_url, topics_root) as link:
        limits = (await next_event(link, Connected)).limits
    assert limits.protocol == broker_url.protocol
    assert limits.warnings == ()
    assert limits.notes == ((UNBOUNDED_NOTE,) if broker_url.protocol == "5" else OLD_PROTOCOL_NOTES)


async def test_auto_takes_mqtt_5_where_it_is_spoken(mosquitto, topics_root):
    async with up(parse_broker(mosquitto.url), topics_root) as link:
        assert link.limits.protocol == "5"


async def test_auto_falls_back_where_it_is_not(nats, topics_root):
    async with up(parse_broker(nats.url), topics_root) as link:
        assert link.limits.protocol == "3.1.1"


async def test_mosquitto_holds_back_what_is_over_our_receive_maximum(mosquitto, topics_root):
    topic = f"{topics_root}/commands"
    broker = parse_broker(mosquitto.url, protocol="5")
    async with up(broker, topics_root, topic, receive_maximum=5) as link:
        await send(link, topic, numbered(12))
        held = [await next_event(link, Delivery) for _ in range(5)]
        await send(link, topic, [b"chatter"], qos=0)  # passes what waits for an acknowledgement
        assert await take(link, 1) == [b"chatter"]
        for delivery in held:
            delivery.ack()
        assert await take(link, 7) == numbered(7, start=5)


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        ({"MaximumQoS": 0}, "no QoS 1"),
        ({"RetainAvailable": 0}, "no retained messages"),
        ({"SessionExpiryInterval": 60}, "for 60 s instead of 600 s"),
        ({"MaximumPacketSize": 100_000}, "at most 100000 bytes"),
        ({"ReceiveMaximum": 19}, "at most 19 unacknowledged messages"),
    ],
)
def test_a_promise_that_the_broker_takes_back_is_named(said, warning):
    limits = limits_of("5", said, LinkOptions("me", **SESSION), session_present=False, other_id=False)
    assert len(limits.warnings) == 1
    assert warning in limits.warnings[0]


def test_a_client_id_of_the_brokers_choice_is_named():
    limits = limits_of("5", {}, LinkOptions("me"), session_present=False, other_id=True)
    assert "another client id" in limits.warnings[0]


def test_what_a_broker_does_not_say_is_at_the_protocols_default():
    limits = limits_of("5", {}, LinkOptions("me", **SESSION), session_present=True, other_id=False)
    assert limits.session_present
    assert (limits.receive_maximum, limits.maximum_packet_bytes, limits.warnings) == (65535, None, ())


@pytest.mark.parametrize(("said", "noted"), [(None, True), (262_145, True), (262_144, False), (261_120, False)])
def test_a_broker_that_takes_larger_packets_than_we_do_is_noted(said, noted):
    limits = limits_of(
        "5", {"MaximumPacketSize": said} if said else {}, LinkOptions("me"), session_present=True, other_id=False
    )
    assert (UNBOUNDED_NOTE in limits.notes) == noted
    assert limits.warnings == ()
