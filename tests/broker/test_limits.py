"""What the shipped brokers do with a message that is larger than an agent reads: it goes no further than its sender."""

from __future__ import annotations

import pytest

from agent.bus.link import Link
from agent.bus.types import Delivery, Disconnected, LinkOptions, Publication
from agent.contract.errors import LinkDown, PublishRefused
from agent.contract.messages import MAX_COMMAND_BYTES
from agent.contract.topics import Topics
from tests.broker.raw import Raw
from tests.broker.shipped import Shipped
from tests.bus.peers import next_event

pytestmark = pytest.mark.broker

TOPIC = Topics().commands("shop", "db-0")
NIGHTLY = "coordinator_nightly"
#: What the shipped configurations take of a packet (mosquitto) or of a payload (NATS).
SHIPPED_BYTES = 261_120


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [SHIPPED_BYTES + 1, MAX_COMMAND_BYTES + 1, 1_000_000, 2_000_000])
def test_it_is_refused_to_whoever_sends_it_and_goes_to_nobody(raw: type[Raw], size: int, qos: int) -> None:
    agent = raw("shop")
    assert agent.subscribe(TOPIC) == [1]
    sender = raw(NIGHTLY)
    answer = sender.publish(TOPIC, bytes(size), qos=qos)
    assert sender.lost.wait(10), f"the broker hangs up on whoever sends it (answer {answer:#x})"
    assert raw(NIGHTLY).publish(TOPIC, b"after") == 0
    assert agent.heard(b"after")
    assert [len(body) for _, body, _ in agent.messages] == [len(b"after")]


async def test_a_link_is_told_before_it_sends_where_the_protocol_has_a_word_for_it(way: tuple[Shipped, str]) -> None:
    broker, protocol = way
    options = LinkOptions("limits-agent", ((TOPIC, 1),))
    async with (
        Link(broker.as_user("shop", protocol), options) as agent,
        Link(broker.as_user(NIGHTLY, protocol), LinkOptions("limits-sender")) as sender,
    ):
        await agent.wait_up(10)
        await sender.wait_up(10)
        with pytest.raises(PublishRefused if protocol == "5" else LinkDown) as refused:
            await sender.publish(Publication(TOPIC, bytes(MAX_COMMAND_BYTES)))
        if protocol == "5":
            assert f"of at most {SHIPPED_BYTES}" in str(refused.value)
            assert sender.up
        else:
            await next_event(sender, Disconnected)
            await sender.wait_up(10)
        largest = bytes(SHIPPED_BYTES - 1024)
        await sender.publish(Publication(TOPIC, largest))
        delivery = await next_event(agent, Delivery)
        delivery.ack()
        assert (delivery.payload, delivery.oversize_bytes) == (largest, 0)
