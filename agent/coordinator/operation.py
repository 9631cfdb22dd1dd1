"""Pre hooks, a command, post hooks: `agent.coordinator.around` decides, here it is done.

Whatever happens on the way - a hook that fails, a signal, a broker that is gone, a fault of our own - the post hooks
that are due get their turn. Only the end of this very process prevents that.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog
import uuid_utils

from agent.contract.durations import format_duration
from agent.contract.errors import PodhookError
from agent.coordinator.aftermath import Aftermath
from agent.coordinator.around import (
    CommandEnd,
    HookEnd,
    Kind,
    Pre,
    State,
    error_text,
    exit_code,
    is_due,
    judged,
    left_behind,
    names,
    operation_succeeded,
)
from agent.coordinator.calls import HookCall
from agent.coordinator.client import Coordinator, utc_now
from agent.coordinator.interrupts import Interrupts
from agent.coordinator.plan import PlannedHook, Status
from agent.coordinator.results import OnEvent
from agent.coordinator.targets import why_not
from agent.coordinator.wrapped import NotStarted, Wrapped

log = structlog.get_logger("podhook.coordinator")

#: After a signal to us, the command has this long. Kubernetes kills a pod after 30 s, and post hooks need some of them.
GRACE_SECONDS = 10.0
#: Before a post hook: how long a broker, or the agent of a pod that a pre hook was in, may take to come back.
RECONNECT_SECONDS = 60.0
_FAULT = "a fault in podhook itself ended it: see the log"


class Watcher(Protocol):
    """Who sees what happens; what it raises would end the operation, so it raises nothing."""

    def hook(self, hook: PlannedHook) -> AbstractContextManager[OnEvent]:
        """A hook begins; what happens in it is told to what this gives."""

    def say(self, text: str) -> None:
        """A sentence for people."""

    def changed(self, record: Record) -> None:
        """The record says more than before."""


@dataclass(slots=True)
class Record:
    """All that happened, so far or in the end. `stage` is `pre`, `command`, `post` or `ended`.

    `running` is the hook whose turn it is, with the id of its run. `refused` says why nothing was begun.
    `unreached` are pods in which a pre hook did something and no post hook succeeded. Times are seconds.
    """

    kind: Kind
    program: str
    started_at: datetime
    stage: str = "pre"
    pre: Pre = Pre.PASSED
    refused: str = ""
    pres: list[HookEnd] = field(default_factory=list)
    command: CommandEnd | None = None
    status: Status | None = None
    posts: list[HookEnd] = field(default_factory=list)
    running: tuple[PlannedHook, str] | None = None
    signals: list[str] = field(default_factory=list)
    seconds: float = 0.0
    exit_code: int | None = None

    @property
    def unreached(self) -> tuple[str, ...]:
        """See the class."""
        return left_behind(self.pres, self.posts)


@dataclass(frozen=True, slots=True)
class Options:
    """How an operation is done. Times are seconds; `warn_only`: a post hook that fails does not decide."""

    grace_seconds: float = GRACE_SECONDS
    reconnect_seconds: float = RECONNECT_SECONDS
    warn_only: bool = False


class Operation:
    """One operation. Call `run` once; `signalled` may be called at any time."""

    def __init__(
        self,
        coordinator: Coordinator,
        kind: Kind,
        planned: Sequence[PlannedHook],
        argv: Sequence[str],
        watcher: Watcher,
        options: Options = Options(),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`planned` are the hooks of both lists of `kind`, in order, as `prepare` gives them."""
        before, after = kind.phases
        self._coordinator = coordinator
        self._pres = [each for each in planned if each.phase is before]
        self._posts = [each for each in planned if each.phase is after]
        self._argv = argv
        self._watcher = watcher
        self._options = options
        self._interrupts = Interrupts(coordinator.cancel, watcher.say, options.grace_seconds)
        self._aftermath = Aftermath(coordinator, self._interrupts, watcher.say, options.reconnect_seconds)
        self.record = Record(kind, argv[0], now())

    def signalled(self, number: signal.Signals) -> None:
        """A signal came to us."""
        self.record.signals.append(number.name)
        self._interrupts.signalled(number)

    async def run(self) -> Record:
        """Do all of it.

        Raises:
            ClusterUnavailable, BusError: nothing could be asked, and nothing was run, no post hook either.
        """
        record, begun = self.record, asyncio.get_running_loop().time()
        self._watcher.changed(record)
        record.refused = await self._rehearse()
        try:
            await self._before()
            if record.pre is Pre.PASSED:
                await self._command()
        except Exception:
            log.exception("around.crashed", stage=record.stage)
            record.pre, record.refused = Pre.FAILED, record.refused or _FAULT
        await self._after()
        record.stage = "ended"
        record.seconds = asyncio.get_running_loop().time() - begun
        record.exit_code = exit_code(
            record.pre,
            record.command,
            record.posts,
            stopped=self._interrupts.cut_short,
            warn_only=self._options.warn_only,
        )
        self._watcher.changed(record)
        return record

    # -- before

    async def _rehearse(self) -> str:
        """Ask which pods every hook means before the first runs; a sentence if one of them could not begin.

        A selector that finds nobody is better found before a freeze than after it. What a restore brings up is not
        there yet, so its post hooks are not asked about.
        """
        problems = []
        for hook in [*self._pres, *(self._posts if self.record.kind is Kind.BACKUP else [])]:
            if not hook.in_pods or self._interrupts.stopped_by:
                continue
            selection = await self._coordinator.select(hook.call)
            self._aftermath.meant[hook] = frozenset(each.key for each in selection.targets)
            if (error := why_not(hook.call, hook.call.pods(), selection)) is not None:
                problems.append(f"{hook}: {error.message}")
        return "; ".join(problems)

    async def _before(self) -> None:
        record = self.record
        if record.refused and not self._interrupts.stopped_by:
            self._watcher.say(record.refused)
        for hook in self._pres:
            if record.refused or record.pre is not Pre.PASSED or self._interrupts.stopped_by:
                record.pres.append(HookEnd(hook, State.NOT_RUN, "what was to come before it did not succeed"))
                continue
            end = await self._one(hook, hook.called())
            record.pres.append(end)
            if end.state is not State.SUCCEEDED:
                record.pre = Pre.FAILED
        if self._interrupts.stopped_by:
            record.pre = Pre.STOPPED
        elif record.refused:
            record.pre = Pre.FAILED

    async def _one(
        self, hook: PlannedHook, call: HookCall, wanted: frozenset[tuple[str, str]] = frozenset()
    ) -> HookEnd:
        """Run one hook, whatever comes of it."""
        run_id = str(uuid_utils.uuid7())
        self.record.running = (hook, run_id)
        self._watcher.changed(self.record)
        try:
            with self._watcher.hook(hook) as on_event:
                run = await self._coordinator.run(call, run_id=run_id, on_event=on_event)
            return judged(hook, run, wanted)
        except PodhookError as error:
            return HookEnd(hook, State.FAILED, str(error), unreached=names(wanted))
        except Exception:
            log.exception("hook.crashed", hook=hook.title, run_id=run_id)
            return HookEnd(hook, State.FAILED, _FAULT, unreached=names(wanted))
        finally:
            self.record.running = None

    # -- the command

    async def _command(self) -> None:
        record = self.record
        record.stage = "command"
        self._watcher.changed(record)
        try:
            command = Wrapped(self._argv)  # nothing is awaited between here and the last look at signals: see `_before`
        except NotStarted as error:
            self._watcher.say(str(error))
            record.command = error.end
            return
        try:
            with self._interrupts.of_command(command):
                record.command = await command.wait()
                await self._interrupts.settled()
                if self._interrupts.asked and record.command.code != 0:
                    await command.end_of_rest(self._options.grace_seconds)
        finally:
            command.close()

    # -- after

    async def _after(self) -> None:
        record = self.record
        succeeded = operation_succeeded(record.pre, record.command)
        error = error_text(
            record.pres, record.command, stopped_by=self._interrupts.stopped_by, refused=bool(record.refused)
        )
        duration = format_duration(record.command.seconds if record.command else 0)
        record.status = Status("Succeeded" if succeeded else "Failed", duration, error)
        record.stage = "post"
        self._interrupts.after_command()
        self._watcher.changed(record)
        for hook in self._posts:
            if not is_due(hook.policy, record.kind, record.pre, succeeded=succeeded):
                why = f"{hook.policy}, and the operation {'succeeded' if succeeded else 'failed'}"
                record.posts.append(HookEnd(hook, State.SKIPPED, why))
            elif self._interrupts.given_up:
                record.posts.append(HookEnd(hook, State.NOT_RUN, f"given up by {record.signals[-1]}"))
            else:
                record.posts.append(await self._post_whatever_happens(hook, record.status))
            self._watcher.changed(record)

    async def _post_whatever_happens(self, hook: PlannedHook, status: Status) -> HookEnd:
        try:
            return await self._post(hook, status)
        except PodhookError as error:
            return HookEnd(hook, State.FAILED, str(error), unreached=names(self._wanted(hook)))
        except Exception:
            log.exception("hook.crashed", hook=hook.title)
            return HookEnd(hook, State.FAILED, _FAULT, unreached=names(self._wanted(hook)))

    async def _post(self, hook: PlannedHook, status: Status) -> HookEnd:
        """Run a post hook in all pods that can be reached: those that cannot must not keep the others frozen."""
        call = hook.called(status)
        self._interrupts.next_hook()
        wanted = self._wanted(hook)
        if hook.in_pods:
            aimed = await self._aftermath.aimed(hook, call, self.record.pres)
            if aimed is None:
                return HookEnd(hook, State.FAILED, "ended while it waited for the broker", unreached=names(wanted))
            call, wanted = aimed
        return await self._one(hook, call, frozenset() if hook.call.allow_missing else wanted)

    def _wanted(self, hook: PlannedHook) -> frozenset[tuple[str, str]]:
        return self._aftermath.wanted(hook, self.record.pres)
