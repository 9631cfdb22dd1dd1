"""Waiting for what becomes of a Job, and telling it: time, a wish to stop, and news, in one place.

`JobCluster` is what a Function executor asks of a cluster; a Vigil is how it waits between two questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog

from agent.cluster.resources import Resource
from agent.contract.errors import ClusterError
from agent.coordinator.job_sight import JobEvent
from agent.coordinator.jobs import Json

log = structlog.get_logger("podhook.coordinator")

#: Until an API server that was away is asked again.
PAUSE_SECONDS = 2.0

Sleep = Callable[[float], Awaitable[Any]]


class JobCluster(Protocol):
    """What is asked of a cluster; `agent.cluster.Cluster` has it all."""

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Json:
        """One object."""

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "") -> list[Json]:
        """Every object that the selector matches."""

    async def create(self, resource: Resource, body: Json, namespace: str = "") -> Json:
        """Create it once, also when an answer gets lost."""

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Delete it; one that is not there is fine."""

    def watch(
        self, resource: Resource, namespace: str | None, *, name: str = "", selector: str = ""
    ) -> AsyncIterator[tuple[str, Json]]:
        """What happens to the objects, without end."""

    async def log_end(
        self, pod: str, namespace: str, *, container: str = "", limit_bytes: int
    ) -> tuple[bytes, int | None]:
        """The end of a container's log, and the size of the whole if that is known."""


@dataclass(slots=True)
class Vigil:
    """Waits and tells. `now` and `sleep` are seconds; `stop`, once it is set, is the wish to cancel."""

    on_event: Callable[[JobEvent], None]
    stop: asyncio.Event
    now: Callable[[], float]
    sleep: Sleep
    #: Why nothing can be seen now; "" if something can.
    unseen: str = ""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def stopped(self) -> bool:
        """Whether it is to be cancelled."""
        return self.stop.is_set()

    async def until(self, condition: Callable[[], bool], within_seconds: float) -> bool:
        """Wait until there is news that makes `condition` true, or time is up; returns whether it is true."""
        timer = asyncio.ensure_future(self.sleep(within_seconds))
        stop = asyncio.ensure_future(self.stop.wait())
        for each in (timer, stop):
            each.add_done_callback(lambda _: self._news.set())
        try:
            while not condition() and not timer.done():
                self._news.clear()
                await self._news.wait()
        finally:
            for each in (timer, stop):
                each.cancel()
            await asyncio.gather(timer, stop, return_exceptions=True)
        return condition()

    def seen(self) -> None:
        """There is news."""
        self.unseen = ""
        self._news.set()

    def tell_unseen(self, error: ClusterError) -> None:
        """The cluster does not answer, or does not let us look: told once, however often it is tried."""
        if not self.unseen:
            self.tell(JobEvent("unseen", str(error)))
        self.unseen = str(error)

    def tell(self, event: JobEvent) -> None:
        """Whoever watches must not be able to stop it."""
        try:
            self.on_event(event)
        except Exception:
            log.exception("event.callback_failed", kind=event.kind)
