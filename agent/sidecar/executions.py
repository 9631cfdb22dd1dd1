"""What is alive: an attempt from the moment that the journal has its trigger until it has its outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from agent.actions.stop import Stop, StopReason
from agent.contract.errors import ErrorCode, IllegalMove, JournalUnavailable, Refusal
from agent.contract.messages import (
    HEARTBEAT_SECONDS,
    Accepted,
    AttemptReport,
    Cancel,
    Heartbeat,
    OutcomeMessage,
    Ready,
    Reply,
    Result,
    Started,
    Trigger,
)
from agent.contract.outcomes import failure, without_output
from agent.contract.states import AttemptState, Outcome
from agent.journal import Journal, JournalThread
from agent.sidecar.audit import Audit
from agent.sidecar.replies import Replies, refused
from agent.sidecar.runner import Prepared, Runner
from agent.sidecar.voice import Outbox, Voice

log = structlog.get_logger("podhook.attempts")


#: Trigger id, and the key that signed it ("" if nobody did): ids are each key's own.
AttemptKey = tuple[str, str]


class Spawn(Protocol):
    """Starts a task that somebody owns."""

    def __call__(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start it."""


@dataclass(slots=True)
class Live:
    """An attempt that has not ended."""

    trigger: Trigger
    hash: str
    kid: str
    prepared: Prepared
    stop: Stop
    go: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    start_by: datetime | None = None
    expired: str = ""

    @property
    def waits(self) -> bool:
        """Whether it waits for its go."""
        return self.trigger.wait_for_go and not self.go.is_set()

    @property
    def state(self) -> AttemptState:
        """What it is, as the journal has it."""
        return AttemptState.READY if self.waits else AttemptState.STARTED


@dataclass(slots=True)
class Executions:
    """All attempts that are alive, and the outcomes of those that the journal could not take yet."""

    replies: Replies
    journal: JournalThread
    runner: Runner
    voice: Voice
    outbox: Outbox
    spawn: Spawn
    now: Callable[[], datetime]
    journal_failed: Callable[[JournalUnavailable], None]
    audit: Audit
    live: dict[AttemptKey, Live] = field(default_factory=dict)
    unwritten: dict[AttemptKey, tuple[Trigger, OutcomeMessage]] = field(default_factory=dict)

    def begin(self, trigger: Trigger, trigger_hash: str, kid: str, prepared: Prepared) -> None:
        """The journal has it: go on with it in a task of its own. `kid` is the key that signed it, or ""."""
        stop = Stop(trigger.timeout_seconds)
        live = self.live[trigger.trigger_id, kid] = Live(trigger, trigger_hash, kid, prepared, stop)
        live.task = self.spawn(self._attempt(live), f"attempt {trigger.trigger_id}")

    def at_hand(self) -> list[AttemptReport]:
        """The attempts that this process knows without its journal."""
        found = [
            AttemptReport(
                run_id=live.trigger.run_id,
                attempt=live.trigger.attempt,
                state=live.state,
                trigger_hash=live.hash,
                name=live.trigger.name,
                targets=live.trigger.targets,
                issued_at=live.trigger.issued_at,
                deadline=live.trigger.deadline,
                key_id=live.kid or None,
            )
            for live in self.live.values()
        ]
        return found + [
            AttemptReport(
                run_id=ended.run_id,
                attempt=ended.attempt,
                state=AttemptState(ended.outcome),
                trigger_hash=ended.trigger_hash,
                name=trigger.name,
                targets=trigger.targets,
                issued_at=trigger.issued_at,
                deadline=trigger.deadline,
                key_id=kid or None,
                outcome=ended,
            )
            for (_, kid), (trigger, ended) in self.unwritten.items()
        ]

    def up_to(self, command: Cancel) -> list[Live]:
        """What a cancel speaks of: its attempt, and every lower one of the run (DESIGN: Delivery 3)."""
        of_run = (live for live in self.live.values() if live.trigger.run_id == command.run_id)
        return [live for live in of_run if live.trigger.attempt <= command.attempt]

    def of(self, trigger_id: str) -> list[Live]:
        """The attempts of this id that are alive, whichever key began them."""
        return [live for (each, _), live in self.live.items() if each == trigger_id]

    async def write_down(self) -> None:
        """The journal works again: record what ended meanwhile.

        Raises:
            JournalUnavailable: it does not.
        """
        for key, (_, outcome) in list(self.unwritten.items()):
            with contextlib.suppress(IllegalMove):  # it has an outcome already: the first one stays
                await self.journal.call(Journal.finish, outcome, self.now())
            del self.unwritten[key]

    async def end(self, grace_seconds: float) -> None:
        """Let what runs go on for `grace_seconds`, then stop it; what waits for its go does not begin any more."""
        for live in self.live.values():
            if live.waits:
                live.stop.set(StopReason.AGENT_STOPPING)
        if running := self._running():
            await asyncio.wait(running, timeout=grace_seconds)
        for live in self.live.values():
            live.stop.set(StopReason.AGENT_STOPPING)
        while running := self._running():
            await asyncio.wait(running)

    # -- one attempt

    async def _attempt(self, live: Live) -> None:
        trigger = live.trigger
        try:
            result = await self._until_started(live)
            if result is None:
                self.spawn(self._say_started(live, self.now()), f"started {trigger.trigger_id}")
                heartbeat = asyncio.create_task(self._beat(live), name=f"heartbeat {trigger.trigger_id}")
                try:
                    result = await self.runner.run(live.prepared, live.stop)
                finally:
                    heartbeat.cancel()
            await self._finish(live, result)
        finally:
            self.live.pop((trigger.trigger_id, live.kid), None)

    async def _until_started(self, live: Live) -> Result | None:
        """None when the action may begin; otherwise how the attempt ended without it."""
        trigger = live.trigger
        if not trigger.wait_for_go:
            if self.now() <= trigger.deadline:
                return None
            return refused(Refusal(ErrorCode.EXPIRED, "the deadline passed while the trigger was being recorded"))
        for kind in (Accepted, Ready):
            await self.voice.chat(trigger.coordinator, trigger.run_id, self._reply(kind, live))
        left = (trigger.deadline - self.now()).total_seconds()
        going = asyncio.create_task(live.go.wait(), name=f"go {trigger.trigger_id}")
        stopped = asyncio.create_task(live.stop.wait(), name=f"stop {trigger.trigger_id}")
        try:
            await asyncio.wait({going, stopped}, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            going.cancel()
            stopped.cancel()
        match live.stop.reason:
            case StopReason.CANCELLED:
                return failure(
                    Outcome.CANCELLED, ErrorCode.CANCELLED, "cancelled while it waited for go; it did not run"
                )
            case StopReason.AGENT_STOPPING:
                return refused(
                    Refusal(ErrorCode.STOPPING, "the agent stops; the attempt waited for go and did not run")
                )
        if live.go.is_set():
            latest = min(trigger.deadline, live.start_by or trigger.deadline)
            if self.now() <= latest:  # looked at again: recording the go took its time
                return None
            live.expired = f"go came too late to start by {latest.isoformat()}"
        reason = live.expired or f"no go came by the deadline {trigger.deadline.isoformat()}"
        return refused(Refusal(ErrorCode.EXPIRED, f"{reason}; it did not run"))

    async def _say_started(self, live: Live, at: datetime) -> None:
        """Said while the action runs: it is chatter, and the action shall not wait for it."""
        trigger = live.trigger
        await asyncio.sleep(0)  # the action asks for its start first
        log.info("attempt.started", trigger_id=trigger.trigger_id, hook=trigger.name, **_what(live.prepared))
        if not trigger.wait_for_go:
            await self.voice.chat(trigger.coordinator, trigger.run_id, self._reply(Accepted, live))
        await self.voice.chat(trigger.coordinator, trigger.run_id, self._reply(Started, live, at=at))

    async def _beat(self, live: Live) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beat = self._reply(Heartbeat, live, running_seconds=round(loop.time() - begun, 3))
            await self.voice.chat(live.trigger.coordinator, live.trigger.run_id, beat)

    async def _finish(self, live: Live, result: Result) -> None:
        trigger = live.trigger
        outcome = self.replies.outcome(trigger.run_id, trigger.attempt, live.hash, result)
        recorded = await self._record(live, outcome)
        self.audit.ended(outcome, trigger.name)
        # A task of its own: the attempt has ended, whether the broker listens or not.
        self.spawn(self.outbox.send(trigger.coordinator, outcome, recorded=recorded), f"outcome {trigger.trigger_id}")
        await asyncio.sleep(0)  # the outcome leaves first
        log.info(
            "attempt.finished",
            trigger_id=trigger.trigger_id,
            hook=trigger.name,
            outcome=outcome.outcome,
            code=outcome.error.code if outcome.error else None,
            duration_seconds=round(outcome.duration_seconds, 4),
        )

    async def _record(self, live: Live, outcome: OutcomeMessage) -> bool:
        """Write an outcome down; a second time without its output if the disk has no room for it."""
        for version in (outcome, without_output(outcome)):
            try:
                await self.journal.call(Journal.finish, version, self.now())
                return True
            except JournalUnavailable as error:
                failed = error
        self.unwritten[outcome.trigger_id, live.kid] = live.trigger, outcome
        self.journal_failed(failed)
        log.error("outcome.not_recorded", trigger_id=outcome.trigger_id, error=str(failed))
        return False

    # -- within

    def _reply(self, kind: type[Reply], live: Live, **more: object) -> Reply:
        return self.replies.reply(kind, live.trigger, live.hash, **more)

    def _running(self) -> list[asyncio.Task[None]]:
        return [live.task for live in self.live.values() if live.task is not None]


def _what(prepared: Prepared) -> dict[str, str]:
    """What is said of an action in a log: its kind, and argv[0] of a command."""
    action = prepared.action
    if action.exec_ is not None:
        return {"action": "exec", "program": prepared.redactor.text(action.exec_.command[0])}
    return {"action": action.kind}
