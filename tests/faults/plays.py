"""Messages that come again, in the wrong order or to the wrong pod, and the plays that prove one promise each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent.contract.errors import LinkDown
from agent.contract.messages import Trigger
from tests.faults.actors import Pod
from tests.faults.facts import RAW
from tests.faults.gather import note_rows
from tests.faults.schedule import Fault
from tests.faults.waiting import comes
from tests.faults.world import TRIGGER, Command, World

#: A play begins only when its agent is there; if it does not come within this time the play is left out, and noted.
READY_SECONDS = 8
#: Long enough for a wrong acknowledgement to reach the broker.
ACKNOWLEDGED_SECONDS = 0.3
#: A replayed command is not older than this: what is older has been expired for long.
REPLAY_SECONDS = 25


@dataclass(slots=True)
class Plays:
    """Plays with the agents and messages of a world."""

    world: World

    # -- old and strange messages

    async def replay(self, fault: Fault) -> None:
        """Commands come once more, up to three times: whatever they were, to whoever has the pod's name now."""
        known = self.old_commands(self.pod_of(fault))
        known.sort(key=lambda old: (old.deadline < time.time(), -old.at))
        begin = int(fault.pick * 3)
        for old in known[begin : begin + 3]:
            for _ in range(1 + int(fault.pick * 30) % 3):
                await self.once_more(old)

    async def once_more(self, old: Command) -> None:
        """Publish a command again, as it was."""
        if old.type == TRIGGER:
            self.world.diary.note("replayed", pod=old.pod, trigger=old.trigger, uid=old.uid, by=old.by)
        with contextlib.suppress(LinkDown):
            await self.world.raw.publish(old.pod, old.payload)

    def old_commands(self, pod: Pod) -> list[Command]:
        """What may be sent to a pod again.

        Nothing that its agent never spoke of: sent again, it would hide that the first copy was lost. And while a real
        coordinator waits for an attempt nobody else sends it: a refusal of that copy could be taken for the first's.
        """
        since = time.time() - REPLAY_SECONDS
        return [old for old in self.world.commands[pod.name] if old.at > since and self._may_come_again(old)]

    def _may_come_again(self, old: Command) -> bool:
        if old.by == RAW:
            return (old.uid, old.trigger) in self.world.raw.signs
        run_id = old.trigger.rpartition("/")[0]
        return run_id in self.world.owners and run_id not in self.world.running

    async def cancel_first(self, fault: Fault) -> None:
        """A cancel, or a question that settles, and the trigger that it speaks of after it."""
        pod, raw = self.pod_of(fault), self.world.raw
        trigger = raw.make(pod.name, pod.uid, self.world.script(0.2), window_seconds=10)
        if not await raw.linked():
            return
        if fault.pick < 0.5:
            self.world.remember(pod.name, await raw.cancel(pod.name, trigger), by=RAW)
        else:
            await raw.settle(pod.name, trigger)
        await asyncio.sleep(fault.seconds)
        await self.trigger(pod, trigger=trigger)

    # -- plays: each proves one promise

    async def late(self, fault: Fault) -> None:
        """A trigger's deadline passes while its agent cannot look at it."""
        pod = self.pod_of(fault)
        cannot = self.frozen if fault.pick < 0.5 else self._dead
        async with self._ready(pod) as ready:
            if ready:
                async with cannot(pod, alone=False):
                    for _ in range(2):
                        await self.trigger(pod, window_seconds=1 + 0.4 * fault.pick)
                    await asyncio.sleep(fault.seconds)

    async def journal_locked(self, fault: Fault) -> None:
        """The agent is killed while its write of a trigger waits: the trigger must come again."""
        pod = self.pod_of(fault)
        async with self._ready(pod) as ready:
            if not ready:
                return
            with contextlib.closing(sqlite3.connect(pod.journal, isolation_level=None, timeout=0.2)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    self.world.diary.note("left_out", kind=fault.kind, why=str(error))
                    return
                self.world.diary.note("journal_locked", pod=pod.name, uid=pod.uid)
                await self._while_locked(pod, fault)
                self.world.kill_agent(pod)
                other.execute("ROLLBACK")
            self.world.start_agent(pod)

    async def _while_locked(self, pod: Pod, fault: Fault) -> None:
        begun = time.monotonic()
        key = await self.trigger(pod, window_seconds=20)
        await comes(lambda: key in self.world.delivered, 1.5)
        await asyncio.sleep(ACKNOWLEDGED_SECONDS)
        await asyncio.sleep(max(0, min(fault.seconds, 2) - (time.monotonic() - begun)))

    async def replace_pod(self, fault: Fault) -> None:
        """Another pod of the same name: what is meant for its predecessor comes to it, fresh."""
        pod = self.pod_of(fault)
        async with pod.alone:
            self.world.kill_agent(pod)
            before = pod.uid
            note_rows(self.world, pod, gone=True)
            pod.reborn()
            self.world.diary.note("replaced", pod=pod.name, uid=before, successor=pod.uid)
            await asyncio.sleep(fault.seconds)
            self.world.start_agent(pod)
            if await self.world.comes_online(pod, READY_SECONDS):
                for _ in range(2):
                    await self.trigger(pod, uid=before, window_seconds=15)

    # -- within

    async def trigger(
        self,
        pod: Pod,
        *,
        uid: str = "",
        sleep_seconds: float = 0,
        exit_code: int = 0,
        window_seconds: float = 20,
        timeout_seconds: float = 30,
        trigger: Trigger | None = None,
    ) -> tuple[str, str]:
        """Publish a trigger straight to a pod, once the broker is there; returns its key.

        Nobody knows a pod before its agent has said so; only from then on does the broker keep what is meant for it.
        """
        raw, meant = self.world.raw, uid or pod.uid  # by the time that we may publish it can be another pod's turn
        met = await comes(lambda: bool(uid) or meant in raw.met, READY_SECONDS)
        if not met or not await raw.linked():
            self.world.diary.note("left_out", pod=pod.name, why="its agent or the broker is not there")
            return "", ""
        trigger = trigger or raw.make(
            pod.name,
            meant,
            self.world.script(sleep_seconds, exit_code),
            window_seconds=window_seconds,
            timeout_seconds=timeout_seconds,
        )
        payload = await raw.trigger(pod.name, trigger)
        key = trigger.pod_uid, trigger.trigger_id
        if payload is not None:
            self.world.remember(pod.name, payload, by=RAW)
            self.world.of_raw.add(key)
        return key

    def pod_of(self, fault: Fault) -> Pod:
        return self.world.pods[fault.victim]

    @contextlib.asynccontextmanager
    async def _ready(self, pod: Pod) -> AsyncIterator[bool]:
        """The pod alone, and whether its agent and the broker are there."""
        async with pod.alone:
            ready = await self.world.comes_online(pod, READY_SECONDS) and await self.world.raw.linked()
            if not ready:
                self.world.diary.note("left_out", pod=pod.name, why="its agent or the broker is not there")
            yield ready

    @contextlib.asynccontextmanager
    async def frozen(self, pod: Pod, *, alone: bool = True) -> AsyncIterator[None]:
        async with pod.alone if alone else contextlib.nullcontext():
            if pod.agent.alive:
                pod.agent.signal(signal.SIGSTOP)
                self.world.diary.note("frozen", pod=pod.name, uid=pod.uid)
            try:
                yield
            finally:
                if pod.agent.alive:
                    self.world.diary.note("thawed", pod=pod.name, uid=pod.uid)
                    pod.agent.signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _dead(self, pod: Pod, *, alone: bool = True) -> AsyncIterator[None]:
        async with pod.alone if alone else contextlib.nullcontext():
            self.world.kill_agent(pod)
            try:
                yield
            finally:
                self.world.start_agent(pod)
