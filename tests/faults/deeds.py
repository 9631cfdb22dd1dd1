"""How each fault is done, and undone. Every method is named after its kind, notes what it does, and heals it again."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.faults import disks
from tests.faults.actors import Pod
from tests.faults.plays import Plays
from tests.faults.proxy import DOWN, UP
from tests.faults.schedule import Fault
from tests.faults.stepped import set_clock

#: An agent looks after its journal every 5 s.
MENDED_SECONDS = 6
#: Steps of the clock: most are within what clocks may differ by, some are far beyond (seconds).
SMALL_STEPS, LARGE_STEPS = (-20, -8, -3, 3, 8, 20), (-120, 120)


class Deeds(Plays):
    """Does every kind of fault to a world."""

    async def do(self, fault: Fault) -> None:
        """Do a fault, from its beginning to when it is healed."""
        self.world.diary.note("fault", kind=fault.kind, victim=fault.victim, seconds=fault.seconds)
        await getattr(self, fault.kind)(fault)

    # -- the broker

    async def kill_broker(self, fault: Fault) -> None:
        self.world.diary.note("broker_killed")
        self.world.broker.kill()
        await asyncio.sleep(fault.seconds)
        self._start_broker()

    async def stop_broker(self, fault: Fault) -> None:
        self.world.diary.note("broker_stopped")
        await asyncio.to_thread(self.world.broker.stop)
        await asyncio.sleep(fault.seconds)
        self._start_broker()

    async def freeze_broker(self, fault: Fault) -> None:
        self.world.diary.note("broker_frozen")
        self.world.broker.freeze()
        await asyncio.sleep(fault.seconds)
        self.world.broker.thaw()
        self.world.diary.note("broker_thawed")

    def _start_broker(self) -> None:
        self.world.broker.start()
        self.world.diary.note("broker_started")

    # -- processes

    async def kill_agent(self, fault: Fault) -> None:
        pod = self.pod_of(fault)
        async with pod.alone:
            self.world.kill_agent(pod)
            await asyncio.sleep(fault.seconds)
            self.world.start_agent(pod)

    async def freeze_agent(self, fault: Fault) -> None:
        async with self.frozen(self.pod_of(fault)):
            await asyncio.sleep(fault.seconds)

    async def kill_coordinator(self, fault: Fault) -> None:
        coordinator = self.world.coordinators[fault.victim]
        self.world.listen_to_coordinators()
        coordinator.kill()
        self.world.diary.note("coordinator_killed", victim=coordinator.name)
        self.world.abandon(coordinator.name)
        await asyncio.sleep(fault.seconds)
        coordinator.start()

    async def freeze_coordinator(self, fault: Fault) -> None:
        coordinator = self.world.coordinators[fault.victim]
        if coordinator.alive:
            os.kill(coordinator.pid, signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            os.kill(coordinator.pid, signal.SIGCONT)

    # -- links

    async def cut(self, fault: Fault) -> None:
        self.world.proxies[fault.victim].cut()

    async def deaf(self, fault: Fault) -> None:
        proxy = self.world.proxies[fault.victim]
        proxy.weather.deaf |= {UP} if fault.pick < 0.4 else {DOWN} if fault.pick < 0.8 else {UP, DOWN}
        await asyncio.sleep(fault.seconds)
        proxy.cut()  # first: nothing may pass after what was lost
        proxy.weather.deaf.clear()

    async def delay(self, fault: Fault) -> None:
        weather = self.world.proxies[fault.victim].weather
        weather.delay_seconds = 0.1 + 1.2 * fault.pick
        await asyncio.sleep(fault.seconds)
        weather.delay_seconds = 0

    async def duplicate(self, fault: Fault) -> None:
        weather = self.world.proxies[fault.victim].weather
        weather.repeat = True
        await asyncio.sleep(fault.seconds)
        weather.repeat = False

    async def reorder(self, fault: Fault) -> None:
        weather = self.world.proxies[fault.victim].weather
        weather.swap = True
        await asyncio.sleep(fault.seconds)
        weather.swap = False

    # -- places

    async def clock_step(self, fault: Fault) -> None:
        pod = self.pod_of(fault)
        steps = SMALL_STEPS if fault.pick < 0.6 else LARGE_STEPS
        self._set_clock(pod, steps[int(fault.pick * 1000) % len(steps)])
        await asyncio.sleep(fault.seconds)
        self._set_clock(pod, 0)

    def _set_clock(self, pod: Pod, offset: float) -> None:
        self.world.diary.note("clock", pod=pod.name, uid=pod.uid, offset=offset)
        set_clock(pod.clock, offset)

    async def disk_full(self, fault: Fault) -> None:
        pod = self.pod_of(fault)
        if not self.world.disks:
            return
        self.world.diary.note("full", pod=pod.name, uid=pod.uid)
        disks.fill(pod.disk)
        refused = asyncio.create_task(self.trigger(pod, window_seconds=40), name="refused")
        await asyncio.sleep(fault.seconds)
        disks.free(pod.disk)
        self.world.diary.note("freed", pod=pod.name, uid=pod.uid)
        await asyncio.sleep(MENDED_SECONDS)  # then it could be recorded, and must be refused all the same
        key = await refused
        for old in self.old_commands(pod):
            if (old.uid, old.trigger) == key:
                await self.once_more(old)
