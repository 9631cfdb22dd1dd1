"""Somebody who hears what others say to each other, in order, with the time at which it came."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Self

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions
from agent.contract.events import Kinds, open_event
from agent.contract.messages import COMMANDS, REPLIES, Message
from tests.agents import Stage

WITHIN_SECONDS = 15
_KINDS = Kinds.of(*COMMANDS, *REPLIES)


@dataclass(frozen=True, slots=True)
class Said:
    """A message as it came; `pod` is who it is for, or who said it."""

    at: float
    pod: str
    payload: bytes
    message: Message


class Spy:
    """Hears every command (`commands`), or every reply (`replies`), of a stage."""

    def __init__(self, stage: Stage, what: str = "commands") -> None:
        topic = f"{stage.root}/v1/agents/+/+/commands" if what == "commands" else f"{stage.root}/v1/runs/#"
        self._pod_at = -2 if what == "commands" else -1
        options = LinkOptions(f"spy-{uuid.uuid4().hex[:12]}", ((topic, 1),), packet_limit_bytes=1024 * 1024)
        self._link = Link(parse_broker(stage.broker.url), options)
        self._reading: asyncio.Task[None] | None = None
        self.heard: list[Said] = []

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        await self._link.wait_up(WITHIN_SECONDS)
        self._reading = asyncio.create_task(self._read(), name="spy")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._link.__aexit__()

    async def _read(self) -> None:
        async for event in self._link.events():
            if isinstance(event, Delivery):
                message = open_event(event.payload, _KINDS, limit_bytes=1 << 20).data
                pod = event.topic.split("/")[self._pod_at]
                self.heard.append(Said(time.monotonic(), pod, event.payload, message))
                event.ack()

    def of(self, kind: type[Message], pod: str | None = None, *, after: int = 0) -> list[Said]:
        """Everything of one type, to or from one pod, of what was heard after the first `after`."""
        return [each for each in self.heard[after:] if isinstance(each.message, kind) and pod in (None, each.pod)]
