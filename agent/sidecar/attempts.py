"""What becomes of commands: the rules of delivery (DESIGN: Delivery) in the order in which they matter.

Commands are handled one after the other. Each is decided and recorded before it is acknowledged; what an attempt
does then happens in a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agent.actions.stop import Stop, StopReason
from agent.contract.errors import ErrorCode, IllegalMove, JournalUnavailable, Refusal
from agent.contract.messages import (
    HEARTBEAT_SECONDS,
    Accepted,
    AttemptReport,
    Cancel,
    Go,
    Heartbeat,
    OutcomeMessage,
    Query,
    Ready,
    Release,
    Renew,
    Reply,
    Report,
    Result,
    Started,
    Trigger,
    TriggerAddress,
)
from agent.contract.outcomes import failure, without_output
from agent.contract.states import AttemptState, Outcome
from agent.journal import Entry, Journal, JournalThread, Memory
from agent.pod.identity import Identity
from agent.pod.processes import kill_left_over
from agent.sidecar import policy
from agent.sidecar.inbox import Command, InvalidTrigger
from agent.sidecar.runner import Prepared, Runner, mark_of
from agent.sidecar.voice import Outbox, Voice

log = structlog.get_logger("podhook.attempts")

#: Messages on their way to the broker at once, each a task; what is more waits in the outbox or is asked for again.
MAX_TASKS = 256


@dataclass(slots=True)
class _Live:
    """An attempt that has not ended."""

    trigger: Trigger
    hash: str
    prepared: Prepared
    stop: Stop
    go: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    start_by: datetime | None = None
    expired: str = ""


@dataclass(slots=True)
class Attempts:
    """All attempts of one agent. `group` owns their tasks.

    `journal_failed` hears of a journal that cannot write; `journal_broken` has its error until it is mended.
    """

    identity: Identity
    allow_unsigned: bool
    max_concurrent: int
    journal: JournalThread
    runner: Runner
    voice: Voice
    outbox: Outbox
    group: asyncio.TaskGroup
    now: Callable[[], datetime]
    journal_failed: Callable[[JournalUnavailable], None]
    journal_broken: Callable[[], JournalUnavailable | None]
    stopping: bool = False
    _live: dict[str, _Live] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _unwritten: dict[str, OutcomeMessage] = field(default_factory=dict)
    handling: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while one command is decided and recorded

    # -- commands

    async def handle(self, command: Command) -> None:
        """Decide, record and begin one command. When it returns the command may be acknowledged."""
        async with self.handling:
            await self._handle(command)

    async def _handle(self, command: Command) -> None:
        data = command.data
        if isinstance(data, Trigger):
            await self._trigger(command, data)
            return
        if not self.allow_unsigned:
            log.warning("command.refused", type=data.TYPE, code=ErrorCode.UNSIGNED, source=command.source)
            return
        try:
            if isinstance(data, Query):
                await self._answer(data)
            elif isinstance(data, Renew):
                log.warning("command.refused", type=data.TYPE, code=ErrorCode.UNSUPPORTED, trigger_id=data.trigger_id)
            elif data.pod_uid != self.identity.pod_uid:
                log.warning(
                    "command.refused",
                    type=data.TYPE,
                    code=ErrorCode.WRONG_POD_UID,
                    trigger_id=data.trigger_id,
                )
            elif isinstance(data, Go):
                await self._go(data)
            else:
                await self._cancel_or_release(data)
        except JournalUnavailable as error:
            self.journal_failed(error)

    def refuse_invalid(self, error: InvalidTrigger) -> None:
        """Answer a trigger that cannot be understood, so that its sender need not wait for silence to end."""
        log.warning("command.refused", code=type(error).__name__, error=str(error))
        refusal = Refusal(ErrorCode.INVALID_ACTION, str(error))
        try:
            policy.check_sender(error.address, self._situation())
        except Refusal as earlier:
            refusal = earlier
        self._send_unrecorded(error.address, self._outcome(error.address, error.hash, _refused(refusal)))

    async def _trigger(self, command: Command, trigger: Trigger) -> None:
        situation = self._situation()
        try:
            policy.check_sender(trigger, situation)
            if await self._answered_from_memory(command, trigger):
                return
            prepared = await self._prepare(trigger)
            known, outcome = await self.journal.call(
                self._decide, command, trigger, prepared, situation, self.journal_broken()
            )
            if known is not None:
                self._check_same(known.trigger_hash, command, trigger)
                log.info("trigger.seen_before", trigger_id=trigger.trigger_id, state=known.state)
                await self._say_again(known, trigger.coordinator)
                return
        except Refusal as refusal:
            self._refuse_unrecorded(command.hash, trigger, refusal)
            return
        except JournalUnavailable as unavailable:
            error = self.journal_broken() or unavailable  # the first cause, not that it is closed since
            self.journal_failed(error)
            reason = (
                f"{error}; agent {self.identity} runs nothing that it cannot record: mend the disk, then trigger again"
            )
            self._refuse_unrecorded(command.hash, trigger, Refusal(ErrorCode.JOURNAL_UNAVAILABLE, reason))
            return
        if outcome is not None:
            self._log_refused(trigger, outcome)
            self._spawn(self.outbox.send(trigger.coordinator, outcome), f"refusal {trigger.trigger_id}")
        elif isinstance(prepared, Prepared):
            live = _Live(trigger, command.hash, prepared, Stop(trigger.timeout_seconds))
            self._live[trigger.trigger_id] = live
            live.task = self._spawn(self._attempt(live), f"attempt {trigger.trigger_id}")

    async def _prepare(self, trigger: Trigger) -> Prepared | Refusal:
        try:
            return await self.runner.prepare(trigger)
        except Refusal as refusal:
            return refusal

    def _decide(
        self,
        journal: Journal,
        command: Command,
        trigger: Trigger,
        prepared: Prepared | Refusal,
        situation: policy.Situation,
        broken: JournalUnavailable | None,
    ) -> tuple[Entry | None, OutcomeMessage | None]:
        """Remember, judge and record a trigger in one visit to the journal's thread.

        Returns what is known of it, if it was seen before; otherwise the outcome of its refusal, if it is refused.

        Raises:
            JournalUnavailable: it could not be recorded.
        """
        memory = journal.remember(trigger.run_id, trigger.attempt)
        known = memory.entry(trigger.attempt)
        if known is not None:
            return known, None
        if broken is not None:  # a no without a record holds until the floor is raised
            raise broken.with_traceback(None)
        state, outcome = AttemptState.READY if trigger.wait_for_go else AttemptState.STARTED, None
        try:
            policy.check_trigger(trigger, memory, situation, self.now())
            if isinstance(prepared, Refusal):
                raise prepared
        except Refusal as refusal:
            result = _refused(refusal)
            state, outcome = AttemptState(result.outcome), self._outcome(trigger, command.hash, result)
        journal.admit(trigger, command.hash, state, outcome, self.now())
        return None, outcome

    async def _answered_from_memory(self, command: Command, trigger: Trigger) -> bool:
        """What this process has at hand needs no journal: a broken disk must not turn a yes into a no.

        Raises:
            Refusal: the id stands for other content.
        """
        live = self._live.get(trigger.trigger_id)
        if live is not None:
            self._check_same(live.hash, command, trigger)
            waiting = trigger.wait_for_go and not live.go.is_set()
            state = AttemptState.READY if waiting else AttemptState.STARTED
            log.info("trigger.seen_before", trigger_id=trigger.trigger_id, state=state)
            await self.voice.chat(
                trigger.coordinator, trigger.run_id, self._reply(Ready if waiting else Accepted, live)
            )
            return True
        unwritten = self._unwritten.get(trigger.trigger_id)
        if unwritten is not None:
            self._check_same(unwritten.trigger_hash, command, trigger)
            self._spawn(self.outbox.send(trigger.coordinator, unwritten, recorded=False), f"again {trigger.trigger_id}")
        return unwritten is not None

    @staticmethod
    def _check_same(known_hash: str, command: Command, trigger: Trigger) -> None:
        if known_hash != command.hash:
            raise Refusal(
                ErrorCode.ID_REUSED,
                f"attempt {trigger.trigger_id} was triggered before with other content; a new run needs its own id",
            )

    async def _say_again(self, known: Entry, coordinator: str) -> None:
        if known.outcome is None:
            return  # it is running, or its end is being written: its outcome comes
        with contextlib.suppress(JournalUnavailable):  # then it is said once, and asked for again
            await self.journal.call(Journal.deliver_again, known.run_id, known.attempt, coordinator)
        self._spawn(self.outbox.send(coordinator, known.outcome), f"again {known.run_id}/{known.attempt}")

    async def _go(self, go: Go) -> None:
        live = self._live.get(go.trigger_id)
        if live is None or not live.trigger.wait_for_go or live.go.is_set() or live.stop.reason is not None:
            log.info("go.ignored", trigger_id=go.trigger_id, reason="not waiting for it")
            return
        if self.now() > go.start_by:
            live.expired = f"go was to start it by {go.start_by.isoformat()}, it is {self.now().isoformat()} here"
            live.stop.set(StopReason.TIMED_OUT)
            return
        try:
            await self.journal.call(Journal.start, go.run_id, go.attempt, self.now())
        except IllegalMove as error:
            log.info("go.ignored", trigger_id=go.trigger_id, reason=str(error))
            return
        live.start_by = go.start_by
        live.go.set()

    async def _cancel_or_release(self, command: Cancel | Release) -> None:
        live = self._live.get(command.trigger_id)
        if live is not None and isinstance(command, Cancel):  # needs no journal: a broken disk must not keep it alive
            live.stop.set(StopReason.CANCELLED)
            return
        memory = await self.journal.call(Journal.remember, command.run_id, command.attempt)
        known = memory.entry(command.attempt)
        if known is None:
            await self.journal.call(Journal.tombstone, command.run_id, command.attempt, command.deadline, self.now())
            log.info("attempt.tombstoned", trigger_id=command.trigger_id, by=command.TYPE)
            return
        if isinstance(command, Release):  # no guard was ever armed here, so there is nothing to release
            return
        await self._say_again(known, known.coordinator)

    async def _answer(self, query: Query) -> None:
        """Answer a query; with a journal that cannot be used, with what is at hand, and that it cannot tell more."""
        try:
            report = await self._query(query)
        except JournalUnavailable as error:
            self.journal_failed(self.journal_broken() or error)
            report = self._compose_report(query, self._at_hand(query), cannot_tell=str(error))
        if len(self._tasks) < MAX_TASKS:
            self._spawn(self.voice.report(query.coordinator, report), f"report {query.query_id}")
        else:
            log.warning("report.dropped", query_id=query.query_id, tasks=len(self._tasks), next="it is asked again")

    def _at_hand(self, query: Query) -> list[AttemptReport]:
        """The attempts of a run that this process knows without its journal."""
        found = [
            AttemptReport(
                attempt=live.trigger.attempt,
                state=AttemptState.READY if live.trigger.wait_for_go and not live.go.is_set() else AttemptState.STARTED,
                trigger_hash=live.hash,
                targets=live.trigger.targets,
            )
            for live in self._live.values()
            if live.trigger.run_id == query.run_id
        ]
        found += [
            AttemptReport(
                attempt=ended.attempt,
                state=AttemptState(ended.outcome),
                trigger_hash=ended.trigger_hash,
                outcome=ended,
            )
            for ended in self._unwritten.values()
            if ended.run_id == query.run_id
        ]
        return [each for each in found if query.attempt in (None, each.attempt)]

    async def _query(self, query: Query) -> Report:
        memory = await self.journal.call(Journal.remember, query.run_id, query.attempt)
        entries = [entry for entry in memory.entries if query.attempt in (None, entry.attempt)]
        cannot_tell = None if entries else self._reach(query, memory)
        tombstoned = memory.tombstoned and not entries
        if not entries and query.settle and cannot_tell is None:
            assert query.attempt is not None
            assert query.deadline is not None
            await self.journal.call(Journal.tombstone, query.run_id, query.attempt, query.deadline, self.now())
            tombstoned = True
        attempts = [_report(entry, with_output=len(entries) == 1) for entry in entries]
        return self._compose_report(query, attempts, tombstoned=tombstoned, cannot_tell=cannot_tell)

    def _compose_report(
        self, query: Query, attempts: list[AttemptReport], *, tombstoned: bool = False, cannot_tell: str | None = None
    ) -> Report:
        return Report(
            query_id=query.query_id,
            run_id=query.run_id,
            namespace=self.identity.namespace,
            pod=self.identity.pod,
            pod_uid=self.identity.pod_uid,
            attempt=query.attempt,
            attempts=attempts,
            tombstoned=tombstoned,
            cannot_tell=cannot_tell if cannot_tell is None else cannot_tell[:1000],
        )

    def _reach(self, query: Query, memory: Memory) -> str | None:
        if query.pod_uid is None or query.issued_at is None or query.deadline is None:
            return "the query does not say for which pod uid, issued_at and deadline"
        return policy.reach(query.pod_uid, query.issued_at, query.deadline, memory, self.identity)

    # -- attempts

    async def _attempt(self, live: _Live) -> None:
        trigger = live.trigger
        try:
            result = await self._until_started(live)
            if result is None:
                self._spawn(self._say_started(live, self.now()), f"started {trigger.trigger_id}")
                heartbeat = asyncio.create_task(self._beat(live), name=f"heartbeat {trigger.trigger_id}")
                try:
                    result = await self.runner.run(live.prepared, live.stop)
                finally:
                    heartbeat.cancel()
            await self._finish(live, result)
        finally:
            self._live.pop(trigger.trigger_id, None)

    async def _until_started(self, live: _Live) -> Result | None:
        """None when the action may begin; otherwise how the attempt ended without it."""
        trigger = live.trigger
        if not trigger.wait_for_go:
            if self.now() <= trigger.deadline:
                return None
            return _refused(Refusal(ErrorCode.EXPIRED, "the deadline passed while the trigger was being recorded"))
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
                return _refused(
                    Refusal(ErrorCode.STOPPING, "the agent stops; the attempt waited for go and did not run")
                )
        if live.go.is_set():
            latest = min(trigger.deadline, live.start_by or trigger.deadline)
            if self.now() <= latest:  # looked at again: recording the go took its time
                return None
            live.expired = f"go came too late to start by {latest.isoformat()}"
        reason = live.expired or f"no go came by the deadline {trigger.deadline.isoformat()}"
        return _refused(Refusal(ErrorCode.EXPIRED, f"{reason}; it did not run"))

    async def _say_started(self, live: _Live, at: datetime) -> None:
        """Said while the action runs: it is chatter, and the action shall not wait for it."""
        trigger = live.trigger
        await asyncio.sleep(0)  # the action asks for its start first
        log.info("attempt.started", trigger_id=trigger.trigger_id, hook=trigger.name, **_what(trigger))
        if not trigger.wait_for_go:
            await self.voice.chat(trigger.coordinator, trigger.run_id, self._reply(Accepted, live))
        await self.voice.chat(trigger.coordinator, trigger.run_id, self._reply(Started, live, at=at))

    async def _beat(self, live: _Live) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beat = self._reply(Heartbeat, live, running_seconds=round(loop.time() - begun, 3))
            await self.voice.chat(live.trigger.coordinator, live.trigger.run_id, beat)

    async def _finish(self, live: _Live, result: Result) -> None:
        trigger = live.trigger
        outcome = self._outcome(trigger, live.hash, result)
        recorded = await self._record(outcome)
        # A task of its own: the attempt has ended, whether the broker listens or not.
        self._spawn(self.outbox.send(trigger.coordinator, outcome, recorded=recorded), f"outcome {trigger.trigger_id}")
        await asyncio.sleep(0)  # the outcome leaves first
        log.info(
            "attempt.finished",
            trigger_id=trigger.trigger_id,
            hook=trigger.name,
            outcome=outcome.outcome,
            code=outcome.error.code if outcome.error else None,
            duration_seconds=round(outcome.duration_seconds, 4),
        )

    async def _record(self, outcome: OutcomeMessage) -> bool:
        """Write an outcome down; a second time without its output if the disk has no room for it."""
        for version in (outcome, without_output(outcome)):
            try:
                await self.journal.call(Journal.finish, outcome.run_id, outcome.attempt, version, self.now())
                return True
            except JournalUnavailable as error:
                failed = error
        self._unwritten[outcome.trigger_id] = outcome
        self.journal_failed(failed)
        log.error("outcome.not_recorded", trigger_id=outcome.trigger_id, error=str(failed))
        return False

    # -- life

    async def recover(self) -> None:
        """After a restart: what was running is interrupted; what waited for go certainly did not run.

        After the journal was mended: what ended meanwhile is written down.

        Raises:
            JournalUnavailable: the journal cannot be read or written.
        """
        for trigger_id, unwritten in list(self._unwritten.items()):
            with contextlib.suppress(IllegalMove):  # it has an outcome already: the first one stays
                await self.journal.call(Journal.finish, unwritten.run_id, unwritten.attempt, unwritten, self.now())
            del self._unwritten[trigger_id]
        for entry in await self.journal.call(Journal.unfinished):
            trigger_id = f"{entry.run_id}/{entry.attempt}"
            if trigger_id in self._live or trigger_id in self._unwritten:
                continue
            if entry.state is AttemptState.READY:
                result = _refused(
                    Refusal(
                        ErrorCode.AGENT_RESTARTED_BEFORE_START,
                        "the agent restarted while it waited for go; it did not run",
                    )
                )
            else:
                if left := await kill_left_over(mark_of(self.identity.pod_uid, trigger_id)):
                    log.warning("attempt.left_over_killed", trigger_id=trigger_id, processes=left)
                result = failure(
                    Outcome.INTERRUPTED,
                    ErrorCode.AGENT_RESTARTED,
                    f"agent {self.identity} went away while the attempt ran and was started again; "
                    "whether it took effect is unknown",
                )
            outcome = self._compose(entry.run_id, entry.attempt, entry.trigger_hash, result)
            try:
                await self.journal.call(Journal.finish, entry.run_id, entry.attempt, outcome, self.now())
            except IllegalMove:  # it ended while we looked
                continue
            log.warning("attempt.recovered", trigger_id=outcome.trigger_id, outcome=outcome.outcome)

    async def drain(self, grace_seconds: float, send_seconds: float) -> None:
        """Take no new work; let what runs go on for `grace_seconds`, then stop it and record every outcome.

        What the broker does not take within `send_seconds` more stays in the journal for the next start.
        """
        self.stopping = True
        async with self.handling:  # what was admitted just before runs by now, so it is among those to wait for
            pass
        for live in self._live.values():
            if live.trigger.wait_for_go and not live.go.is_set():
                live.stop.set(StopReason.AGENT_STOPPING)
        if running := self._running():
            await asyncio.wait(running, timeout=grace_seconds)
        for live in self._live.values():
            live.stop.set(StopReason.AGENT_STOPPING)
        while running := self._running():
            await asyncio.wait(running)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=send_seconds)
        for task in self._tasks:
            task.cancel()

    def _running(self) -> list[asyncio.Task[None]]:
        return [live.task for live in self._live.values() if live.task is not None]

    # -- within

    def _situation(self) -> policy.Situation:
        return policy.Situation(self.identity, self.allow_unsigned, self.stopping, len(self._live), self.max_concurrent)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self.group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _refuse_unrecorded(self, trigger_hash: str, trigger: TriggerAddress, refusal: Refusal) -> None:
        outcome = self._outcome(trigger, trigger_hash, _refused(refusal))
        self._log_refused(trigger, outcome)
        self._send_unrecorded(trigger, outcome)

    def _send_unrecorded(self, trigger: TriggerAddress, outcome: OutcomeMessage) -> None:
        """Say a refusal at once; in a flood, when the outbox gets to it."""
        if len(self._tasks) < MAX_TASKS:
            sending = self.outbox.send(trigger.coordinator, outcome, recorded=False)
            self._spawn(sending, f"refusal {trigger.trigger_id}")
        else:
            self.outbox.keep(trigger.coordinator, outcome)

    @staticmethod
    def _log_refused(trigger: TriggerAddress, outcome: OutcomeMessage) -> None:
        code = outcome.error.code if outcome.error else None
        message = outcome.error.message if outcome.error else None
        log.warning("trigger.refused", trigger_id=trigger.trigger_id, code=code, error=message)

    def _reply(self, kind: type[Reply], live: _Live, **more: object) -> Reply:
        return kind.model_validate(
            {
                "run_id": live.trigger.run_id,
                "attempt": live.trigger.attempt,
                "trigger_hash": live.hash,
                "namespace": self.identity.namespace,
                "pod": self.identity.pod,
                "pod_uid": self.identity.pod_uid,
                **more,
            }
        )

    def _outcome(self, trigger: TriggerAddress, trigger_hash: str, result: Result) -> OutcomeMessage:
        return self._compose(trigger.run_id, trigger.attempt, trigger_hash, result)

    def _compose(self, run_id: str, attempt: int, trigger_hash: str, result: Result) -> OutcomeMessage:
        who = {
            "namespace": self.identity.namespace,
            "pod": self.identity.pod,
            "pod_uid": self.identity.pod_uid,
        }
        return OutcomeMessage.model_validate(
            {**dict(result), "run_id": run_id, "attempt": attempt, "trigger_hash": trigger_hash, **who}
        )


def _refused(refusal: Refusal) -> Result:
    outcome = Outcome.CANCELLED if refusal.code is ErrorCode.TOMBSTONED else Outcome.REJECTED
    return failure(outcome, refusal.code, refusal.message)


def _report(entry: Entry, *, with_output: bool) -> AttemptReport:
    outcome = entry.outcome if with_output or entry.outcome is None else without_output(entry.outcome)
    return AttemptReport(
        attempt=entry.attempt,
        state=entry.state,
        trigger_hash=entry.trigger_hash,
        targets=entry.targets,
        outcome=outcome,
    )


def _what(trigger: Trigger) -> dict[str, str]:
    """What is said of an action in a log: its kind, and argv[0] of a command."""
    if trigger.action is None:
        return {}
    if trigger.action.exec_ is not None:
        return {"action": "exec", "program": trigger.action.exec_.command[0]}
    return {"action": trigger.action.kind}
