"""Which pods a hook runs in, by whoever knows it best: the cluster, or what agents say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.contract.errors import ClusterRefused, InvalidSettings
from agent.contract.templates import PodExecutor
from agent.coordinator.calls import HookCall
from agent.coordinator.roster import Roster
from agent.coordinator.targets import PodSeen, Selection, among, strangers

if TYPE_CHECKING:
    from agent.cluster import Cluster

_FORBIDDEN = 403


class Source(StrEnum):
    """Who says which pods there are.

    `auto` asks the cluster if the coordinator was given one, and goes by presence, saying so, where that is forbidden.
    """

    AUTO = "auto"
    KUBERNETES = "kubernetes"
    PRESENCE = "presence"


class Chooser:
    """Answers for each call which pods it means."""

    def __init__(self, roster: Roster, cluster: Cluster | None, source: Source) -> None:
        self._roster = roster
        self._cluster = cluster
        self._source = source

    @property
    def asks_cluster(self) -> bool:
        """Whether the cluster is asked at all."""
        return self._cluster is not None and self._source is not Source.PRESENCE

    async def select(self, call: HookCall, executor: PodExecutor, stopped: Callable[[], bool]) -> Selection:
        """The pods of a call; `stopped` says that nobody wants to know any more.

        Raises:
            ClusterError: the cluster is the source, and cannot be asked, or does not let us.
            InvalidSettings: the cluster shall be the source, and there is none.
        """
        if call.only is not None:
            return await self._live(call.only, call, executor, stopped)
        if self._source is Source.PRESENCE or (self._cluster is None and self._source is Source.AUTO):
            return await self._by_presence(call, executor, stopped)
        if self._cluster is None:
            raise InvalidSettings("the source of pods is kubernetes, and no cluster was given; give one, or presence")
        from agent.coordinator.kubernetes import list_pods  # noqa: PLC0415 (only with a cluster)

        unknown: list[str] = []
        try:
            pods = await list_pods(
                self._cluster, executor.selector, call.namespaces, executor.owner, note=unknown.append
            )
        except ClusterRefused as error:
            if self._source is Source.KUBERNETES or error.status != _FORBIDDEN:
                raise  # a login that has run out, or a selector that it does not take, is nobody's wish
            selection = await self._by_presence(call, executor, stopped)
            note = f"pods were chosen by what agents say, and pods that have none were not missed: {error}"
            return replace(selection, notes=(*selection.notes, note))
        selection = await self._by_cluster(pods, call, executor, stopped)
        return replace(selection, notes=(*selection.notes, *unknown))

    async def _by_presence(self, call: HookCall, executor: PodExecutor, stopped: Callable[[], bool]) -> Selection:
        def enough() -> bool:
            return len(self._roster.select(executor, call.namespaces).targets) == call.expect or stopped()

        await self._roster.settle(enough if call.expect is not None else None)
        return self._roster.select(executor, call.namespaces)

    async def _by_cluster(
        self, pods: Sequence[PodSeen], call: HookCall, executor: PodExecutor, stopped: Callable[[], bool]
    ) -> Selection:
        selection = await self._live(pods, call, executor, stopped)
        strange = strangers(pods, self._roster.select(executor, call.namespaces))
        return replace(selection, notes=(*selection.notes, strange)) if strange else selection

    async def _live(
        self, pods: Sequence[PodSeen], call: HookCall, executor: PodExecutor, stopped: Callable[[], bool]
    ) -> Selection:
        """Which of these pods have a live agent."""

        awaited = [each for each in pods if each.counts]

        def complete() -> bool:
            while awaited and self._roster.is_live(awaited[-1].target):
                awaited.pop()  # looked at once: a thousand presences come one by one
            return not awaited or stopped()

        await self._roster.settle(complete=complete)  # who must be there is known: nobody waits for a quiet broker
        presences = {(each.namespace, each.pod): each for each in self._roster.known()}
        doubted = {each.key for each in self._roster.doubted(None if call.only is not None else call.namespaces)}
        return among(pods, presences, executor, doubted=doubted)
