"""Waiting for something that may not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

POLL_SECONDS = 0.02


async def comes(condition: Callable[[], bool], within_seconds: float) -> bool:
    """Poll until the condition holds or the time is over; whether it holds."""
    until = time.monotonic() + within_seconds
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 (nobody tells us)
        await asyncio.sleep(POLL_SECONDS)
    return condition()
