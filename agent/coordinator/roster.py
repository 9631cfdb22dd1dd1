"""Who is there: everybody's presence, complete once the broker has been quiet for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from agent.contract.messages import Presence
from agent.contract.templates import PodExecutor
from agent.coordinator.targets import Selection, Target, select
from agent.coordinator.wire import Distrusted, Wire

#: Presence is complete when nothing retained came for this long; the broker says no end of it.
QUIET_SECONDS = 0.4
#: ... or this long once there are many: a broker under load pauses in the middle of thousands.
MANY_PRESENCES, QUIET_AMONG_MANY_SECONDS = 200, 1.5
#: ... and at the latest after this long.
SETTLED_SECONDS, SETTLED_AMONG_MANY_SECONDS = 5.0, 15.0


def _never() -> bool:
    return False


class Roster:
    """What the wire knows of presence, and whether that is all."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._changed = asyncio.Event()
        self._changes = self._told = 0  # how many there were, and as of which `agents` has told
        self._last_retained = 0.0
        wire.on_presence = self._note

    # -- what happens

    def link_restored(self) -> None:
        """The broker hands out everybody's presence anew."""
        self._last_retained = asyncio.get_running_loop().time()
        self._changed.set()

    def link_lost(self) -> None:
        """Nothing is quiet before the link is up again."""
        self._last_retained = float("inf")
        self._wire.link_lost()

    def retained(self) -> None:
        """Something retained came: more may follow."""
        self._last_retained = asyncio.get_running_loop().time()

    def wake(self) -> None:
        """Whoever waits shall look again."""
        self._changed.set()

    def _note(self) -> None:
        self._changes += 1
        self._changed.set()

    # -- who is there

    @property
    def distrusted(self) -> list[Distrusted]:
        """Presences that do not verify, and why, by namespace and name; of those that verified before, that counts."""
        return [each for key, each in sorted(self._wire.distrusted.items()) if key not in self._wire.presences]

    async def agents(self) -> list[Presence]:
        """Everybody's presence, by namespace and name, once it is complete."""
        await self.settle()
        self._told = self._changes
        return self.known()

    async def changed(self) -> None:
        """Wait until somebody's presence is another than `agents` last told."""
        while self._changes == self._told:
            self._changed.clear()
            await self._changed.wait()

    def known(self) -> list[Presence]:
        """What is known now, complete or not."""
        return [presence for _, presence in sorted(self._wire.presences.items())]

    def is_live(self, target: Target) -> bool:
        """Whether the agent of that very pod says that it is there."""
        presence = self._wire.presences.get(target.key)
        return presence is not None and presence.state == "online" and presence.pod_uid == target.pod_uid

    def present(self, namespaces: frozenset[str] | None) -> tuple[list[Target], list[Target]]:
        """Who is online, and who is offline."""
        meant = [each for each in self.known() if namespaces is None or each.namespace in namespaces]
        return (
            [Target.of(each) for each in meant if each.state == "online"],
            [Target.of(each) for each in meant if each.state == "offline"],
        )

    def doubted(self, namespaces: frozenset[str] | None) -> list[Target]:
        """Whose presence does not verify; the uid is what it claims, or nothing."""
        return [
            Target(each.namespace, each.pod, each.claim.pod_uid if each.claim else "")
            for each in self.distrusted
            if namespaces is None or each.namespace in namespaces
        ]

    def select(self, executor: PodExecutor, namespaces: frozenset[str] | None) -> Selection:
        """What presence knows of the pods that an executor means; without knowing of pods that have no agent."""
        selection = select(self.known(), executor, namespaces)
        # Somebody wrote over that agent's presence, labels and all: a run must not get smaller by that.
        doubted = tuple(self.doubted(namespaces))
        return replace(selection, missing=tuple(sorted({*selection.missing, *doubted})), doubted=doubted)

    async def settle(self, enough: Callable[[], bool] | None = None, *, complete: Callable[[], bool] = _never) -> None:
        """Wait until presence is complete: quiet for a while, or `complete` says so; a few seconds at most.

        With `enough`, also for that, although it is quiet.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not complete():
            many = len(self._wire.presences) >= MANY_PRESENCES
            end = begun + (SETTLED_AMONG_MANY_SECONDS if many else SETTLED_SECONDS)
            if loop.time() >= end:
                return
            quiet_at = self._last_retained + (QUIET_AMONG_MANY_SECONDS if many else QUIET_SECONDS)
            quiet = loop.time() >= quiet_at
            if quiet:
                self._wire.presence_complete()
                if enough is None or enough():
                    return
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end if quiet else min(quiet_at, end)):
                    await self._changed.wait()
            except TimeoutError:
                continue
