"""What a broker says of itself to an agent, without being one."""

from __future__ import annotations

import secrets
from dataclasses import replace

from agent.bus.broker import Broker
from agent.bus.link import Link
from agent.bus.types import Limits, LinkOptions
from agent.contract.errors import LinkDown

#: Nothing older than a deadline (15 min) can still be run, so the broker may forget an agent a little later.
SESSION_EXPIRY_SECONDS = 1200
CONNECT_SECONDS = 5.0


async def inspect(broker: Broker) -> Limits:
    """Connect as an agent does, and return what the broker can do. Leaves no session behind.

    Raises:
        LinkDown: no connection within 5 s.
        BrokerRefused: the broker said no.
        InvalidSettings: the settings cannot be used.
    """
    client_id = f"podhook_check_{secrets.token_hex(6)}"
    options = LinkOptions(client_id, session_expiry_seconds=SESSION_EXPIRY_SECONDS)
    limits = await _connect(broker, options)
    await _connect(broker, replace(options, session_expiry_seconds=0))  # a clean start takes the kept session back
    return limits


async def _connect(broker: Broker, options: LinkOptions) -> Limits:
    async with Link(broker, options) as link:
        await link.wait_up(CONNECT_SECONDS)
        if (limits := link.limits) is None:
            raise LinkDown(f"the broker at {broker.url} let us in and ended the connection at once")
        return limits
