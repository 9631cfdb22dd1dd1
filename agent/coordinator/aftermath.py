"""Where a post hook has to succeed, and how long those pods are waited for: a thaw belongs where the freeze was.

A post hook of ExecuteOnAll has to succeed in every pod in which a pre hook did something and which it was meant for.
One of ExecuteOnOne undoes what a pre hook of ExecuteOnOne did, and so runs in the same pod, Ready or not: a database
that is frozen may fail its readiness probe, and a pod that was not there at the freeze may be the first by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from agent.contract.errors import ClusterError
from agent.coordinator.around import HookEnd, names, touched
from agent.coordinator.calls import HookCall
from agent.coordinator.client import Coordinator
from agent.coordinator.interrupts import Interrupts
from agent.coordinator.plan import PlannedHook
from agent.coordinator.targets import PodSeen, Target

Keys = frozenset[tuple[str, str]]

#: How often is looked whether agents are back, where nobody says it.
_LOOK_SECONDS = 2.0


@dataclass(slots=True)
class Aftermath:
    """Knows which pods each hook was meant for before anything ran (`meant`), and waits for those that matter."""

    coordinator: Coordinator
    interrupts: Interrupts
    say: Callable[[str], None]
    reconnect_seconds: float
    meant: dict[PlannedHook, Keys] = field(default_factory=dict)

    def wanted(self, hook: PlannedHook, pres: Sequence[HookEnd]) -> Keys:
        """Pods in which this post hook has to succeed."""
        if not hook.in_pods:
            return frozenset()
        return touched(each.run for each in _alike(hook, pres) if each.run) & self.meant.get(hook, frozenset())

    async def aimed(self, hook: PlannedHook, call: HookCall, pres: Sequence[HookEnd]) -> tuple[HookCall, Keys] | None:
        """The call as it can be made now, and the pods in which it has to succeed: see the module.

        Waits, with a bound, for the broker and for these pods' agents. None: somebody who sends signals wanted to wait
        for the broker no longer.

        Raises:
            LinkDown, BrokerRefused: no broker.
            ClusterError: the cluster cannot be asked, and where a pre hook was is not known either.
        """
        if not await self._unless_cut(self.coordinator.wait_connected(self.reconnect_seconds)):
            return None
        wanted = self.wanted(hook, pres)
        call = replace(call, allow_missing=True)
        try:
            wanted, there = await self._awaited(call, wanted)
        except ClusterError as error:
            known = _targets(_alike(hook, pres), wanted)
            if not known:
                raise
            self.say(f"the cluster cannot be asked: {error}; {hook} runs in the pods in which a pre hook was")
            return _only(call, known), wanted
        if call.pods().strategy == "ExecuteOnOne" and (same := [each for each in there if each.key in wanted]):
            call = _only(call, same)
        return call, wanted

    async def _awaited(self, call: HookCall, wanted: Keys) -> tuple[Keys, tuple[Target, ...]]:
        """Wait until the agents of these pods are there; returns those that can still be expected, and who is there.

        Of a pod that the cluster does not have any more nothing is expected. Where only agents say which pods there
        are, one that is away may be on its way back: brokers forget presence when they restart.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.reconnect_seconds
        there: tuple[Target, ...] = ()
        while wanted:
            selection = await self.coordinator.select(call)
            there = (*selection.targets, *selection.unready)
            live = {each.key for each in there}
            if self.coordinator.knows_pods:
                wanted &= live | {each.key for each in selection.missing}
            left = deadline - loop.time()
            if wanted <= live or left <= 0:
                break
            self.say(f"waiting for the agents of {', '.join(names(wanted - live))}")
            await self.coordinator.agents()
            changed = asyncio.wait_for(self.coordinator.presence_changed(), min(_LOOK_SECONDS, left))
            try:
                if not await self._unless_cut(changed):
                    break
            except TimeoutError:
                continue
        return wanted, there

    async def _unless_cut(self, what: Awaitable[None]) -> bool:
        """Wait for it; False if somebody who sends signals wants to wait no longer."""
        waiting = asyncio.ensure_future(what)
        cut = asyncio.create_task(self.interrupts.cut.wait(), name="cut short")
        try:
            await asyncio.wait({waiting, cut}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return False
            waiting.result()
            return True
        finally:
            for each in (waiting, cut):
                each.cancel()
            await asyncio.gather(waiting, cut, return_exceptions=True)


def _alike(hook: PlannedHook, pres: Sequence[HookEnd]) -> list[HookEnd]:
    """The pre hooks whose pods a post hook answers for: all of them, or of ExecuteOnOne those of ExecuteOnOne."""
    strategy = hook.call.pods().strategy
    in_pods = [each for each in pres if each.hook.in_pods]
    if strategy == "ExecuteOnAll":
        return in_pods
    return [each for each in in_pods if each.hook.call.pods().strategy == strategy]


def _targets(pres: Iterable[HookEnd], keys: Keys) -> list[Target]:
    found = {each.target for end in pres if end.run is not None for each in end.run.targets if each.target.key in keys}
    return sorted(found)


def _only(call: HookCall, targets: Iterable[Target]) -> HookCall:
    return replace(call, only=tuple(PodSeen(each.namespace, each.pod, each.pod_uid) for each in targets), expect=None)
