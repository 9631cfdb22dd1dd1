"""A client made to be killed: acknowledges some messages, holds the others, has a will."""

from __future__ import annotations

import asyncio
import sys

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions, Publication, Will


async def main(url: str, protocol: str, root: str, acknowledge: int, receive: int) -> None:
    options = LinkOptions(
        f"{root}-victim",
        ((f"{root}/commands", 1),),
        will=lambda: Will(f"{root}/presence", b"offline"),
        session_expiry_seconds=600,
    )
    async with Link(parse_broker(url, protocol=protocol), options) as link:
        await link.wait_up(15)
        print("up", flush=True)
        received = 0
        async for event in link.events():
            if isinstance(event, Delivery):
                received += 1
                if received <= acknowledge:
                    event.ack()
            if received == receive:
                await link.publish(Publication(f"{root}/other", b""))  # behind it, the acknowledgements have arrived
                print("holding", flush=True)
                await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:6])))
