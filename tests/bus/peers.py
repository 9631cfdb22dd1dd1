"""Short ways to say what a test does on the bus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions, Publication
from tests.brokers import leashed

if TYPE_CHECKING:
    from agent.bus.broker import Broker

Event = TypeVar("Event", Connected, Disconnected, Delivery)
WITHIN_SECONDS = 15
SESSION = {"session_expiry_seconds": 600}


@asynccontextmanager
async def up(broker: Broker, client_id: str, *topics: str, **options: Any) -> AsyncIterator[Link]:
    """A link that is up, subscribed at QoS 1."""
    asked = LinkOptions(client_id, tuple((topic, 1) for topic in topics), **options)
    async with Link(broker, asked) as link:
        await link.wait_up(WITHIN_SECONDS)
        yield link


async def next_event(link: Link, kind: type[Event], within_seconds: float = WITHIN_SECONDS) -> Event:
    """The next event of this kind; others are thrown away."""
    async with asyncio.timeout(within_seconds):
        async for event in link.events():
            if isinstance(event, kind):
                return event
    raise AssertionError("events() ended")


async def take(link: Link, count: int, *, ack: bool = True) -> list[bytes]:
    """The payloads of the next deliveries, sorted: no order is promised."""
    payloads = []
    for _ in range(count):
        delivery = await next_event(link, Delivery)
        payloads.append(delivery.payload)
        if ack:
            delivery.ack()
    return sorted(payloads)


async def take_until(link: Link, marker: bytes) -> list[bytes]:
    """Acknowledge and collect until the marker comes, and leave it out."""
    payloads = []
    while (payload := (await take(link, 1))[0]) != marker:
        payloads.append(payload)
    return sorted(payloads)


async def send(link: Link, topic: str, payloads: Iterable[bytes], qos: int = 1) -> None:
    """Publish one after the other."""
    for payload in payloads:
        await link.publish(Publication(topic, payload, qos))


async def until(condition: Callable[[], object], what: str, within_seconds: float = WITHIN_SECONDS) -> None:
    """Poll with a bound, the loop running."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_seconds} s"
        await asyncio.sleep(0.005)


def numbered(count: int, start: int = 0) -> list[bytes]:
    """Payloads that sort in order."""
    return [b"%03d" % number for number in range(start, start + count)]


@contextmanager
def victim(broker: Broker, root: str, *, acknowledge: int, receive: int) -> Iterator[subprocess.Popen[str]]:
    """A real process that lives on the bus (see victim.py), to be killed."""
    arguments = (broker.url, broker.protocol, root, str(acknowledge), str(receive))
    process = subprocess.Popen(
        leashed(sys.executable, "-m", "tests.bus.victim", *arguments),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
