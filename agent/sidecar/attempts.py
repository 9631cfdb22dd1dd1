"""What becomes of commands: the rules of delivery (DESIGN: Delivery) in the order in which they matter.

Commands are handled one after the other. Each is decided and recorded before it is acknowledged; what an attempt
does then happens in a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import ChainMap
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from agent.actions.stop import StopReason
from agent.contract.errors import UNVERIFIED, ErrorCode, IllegalMove, JournalFull, JournalUnavailable, Refusal
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    Accepted,
    Cancel,
    Go,
    OutcomeMessage,
    Query,
    Ready,
    Release,
    Renew,
    Result,
    Trigger,
    TriggerAddress,
)
from agent.contract.states import AttemptState
from agent.journal import Entry, Journal, JournalThread, Said
from agent.pod.identity import Identity
from agent.sidecar import admission
from agent.sidecar.answers import Answers
from agent.sidecar.audit import Audit
from agent.sidecar.executions import AttemptKey, Executions
from agent.sidecar.inbox import Command, InvalidTrigger
from agent.sidecar.recovery import recover
from agent.sidecar.replies import Replies, refused
from agent.sidecar.runner import Prepared, Runner
from agent.sidecar.voice import Outbox, Voice

log = structlog.get_logger("podhook.attempts")

#: Messages on their way to the broker at once, each a task; what is more waits in the outbox or is asked for again.
MAX_TASKS = 256
#: Ids of attempts that this process began, for when its journal cannot be read.
MAX_ADMITTED = 10_000


#: Why a trigger that was accepted once can be refused now: its key was taken away, or limited.
_KEY_GONE = frozenset({ErrorCode.UNKNOWN_KEY, ErrorCode.KEY_NOT_ALLOWED})
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(slots=True)
class Attempts:
    """All attempts of one agent. `group` owns their tasks.

    `journal_failed` hears of a journal that cannot write; `journal_broken` has its error until it is mended;
    `journal_full` hears that it writes, but has no room for more.
    """

    identity: Identity
    max_concurrent: int
    journal: JournalThread
    runner: Runner
    voice: Voice
    outbox: Outbox
    group: asyncio.TaskGroup
    now: Callable[[], datetime]
    journal_failed: Callable[[JournalUnavailable], None]
    journal_broken: Callable[[], JournalUnavailable | None]
    journal_full: Callable[[JournalFull], None]
    audit: Audit
    stopping: bool = False
    _replies: Replies = field(init=False)
    _answers: Answers = field(init=False)
    _executions: Executions = field(init=False)
    _refused_until: datetime = _LONG_AGO
    _admitted: dict[AttemptKey, None] = field(default_factory=dict)
    _started_at: datetime = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    handling: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while one command is decided and recorded

    def __post_init__(self) -> None:
        self._started_at = self.now()
        self._replies = Replies(self.identity)
        self._executions = Executions(
            self._replies,
            self.journal,
            self.runner,
            self.voice,
            self.outbox,
            self._spawn,
            self.now,
            self.journal_failed,
            self.audit,
        )
        at_hand = self._executions.at_hand
        self._answers = Answers(self._replies, self.journal, self.now, at_hand, self._why_unusable)

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
        try:
            if isinstance(data, Query):
                await self._answer(data, command)
            elif isinstance(data, Renew):
                log.warning("command.refused", type=data.TYPE, code=ErrorCode.UNSUPPORTED, trigger_id=data.trigger_id)
                self.audit.denied(data, ErrorCode.UNSUPPORTED, who=command.voucher)
            elif data.pod_uid != self.identity.pod_uid:
                log.warning(
                    "command.refused",
                    type=data.TYPE,
                    code=ErrorCode.WRONG_POD_UID,
                    trigger_id=data.trigger_id,
                )
                self.audit.denied(data, ErrorCode.WRONG_POD_UID, who=command.voucher)
            elif await self._acted_before(command):
                log.warning("command.refused", type=data.TYPE, code=ErrorCode.REPLAYED, key_id=command.voucher.kid)
                self.audit.denied(data, ErrorCode.REPLAYED, who=command.voucher)
            elif isinstance(data, Go):
                await self._go(data, command)
            else:
                await self._cancel_or_release(data, command)
        except JournalFull as full:
            self.journal_full(full)
        except JournalUnavailable as error:
            self.journal_failed(error)

    async def refuse_invalid(self, error: InvalidTrigger) -> None:
        """Answer a trigger that cannot be understood, so that its sender need not wait for silence to end."""
        log.warning("command.refused", code=error.code, error=str(error))
        refusal = Refusal(error.code, str(error))
        if error.code not in UNVERIFIED:
            try:
                admission.check_pod(error.address, self.identity)
            except Refusal as earlier:
                refusal = earlier
        elif error.code in _KEY_GONE and await self._began(error.address, error.said_hash):
            self.audit.refused(error.address, error.hash, refused(refusal).error, error.voucher)
            return  # its key was trusted then: to say so now would contradict what is said of it
        outcome = self._outcome(error.address, error.hash, refused(refusal))
        self.audit.refused(error.address, error.hash, outcome.error, error.voucher)
        self._send_unrecorded(error.address, outcome)

    async def _began(self, address: TriggerAddress, trigger_hash: str | None) -> bool:
        """Whether this very trigger was accepted here before, under whichever key."""
        if any(live.hash == trigger_hash for live in self._executions.of(address.trigger_id)):
            return True
        try:
            memory = await self.journal.call(Journal.remember, address.run_id, address.attempt)
        except JournalUnavailable:
            return False
        return any(entry.trigger_hash == trigger_hash for entry in memory.entries)

    async def _trigger(self, command: Command, trigger: Trigger) -> None:
        situation, key, container = self._situation(), (trigger.trigger_id, command.voucher.kid), ""
        try:
            admission.check_pod(trigger, self.identity)
            if await self._answered_from_memory(command, trigger):
                return
            prepared = await self._prepare(trigger, command.voucher.kid)
            container = prepared.container
            known, outcome = await self.journal.call(
                self._decide, command, trigger, prepared, situation, self.journal_broken()
            )
            if known is not None:
                self._check_same(known.trigger_hash, command, trigger)
                log.info("trigger.seen_before", trigger_id=trigger.trigger_id, state=known.state)
                self.audit.repeated(trigger, command.hash, command.voucher)
                await self._say_again(known, trigger.coordinator)
                return
        except Refusal as refusal:
            self._refuse_unrecorded(command, trigger, refusal)
            return
        except JournalFull as full:
            self.journal_full(full)
            reason = f"{full}; agent {self.identity} runs nothing that it cannot record: trigger again later"
            self._refuse_unrecorded(command, trigger, Refusal(ErrorCode.JOURNAL_FULL, reason, container=container))
            return
        except JournalUnavailable as unavailable:
            error = self._why_unusable(unavailable)
            if key in self._admitted:
                self.audit.repeated(trigger, command.hash, command.voucher)
                return  # it ran here, or does: its outcome is said when the journal can be read again
            await self._mark_refused(trigger.issued_at)
            if trigger.issued_at < self._started_at:
                reason = f"{error}; what ran here before agent {self.identity} was started cannot be looked up"
                no = Refusal(ErrorCode.BEFORE_JOURNAL, reason, container=container)
                self._refuse_unrecorded(command, trigger, no)
                return
            reason = (
                f"{error}; agent {self.identity} runs nothing that it cannot record: mend the disk, then trigger again"
            )
            no = Refusal(ErrorCode.JOURNAL_UNAVAILABLE, reason, container=container)
            self._refuse_unrecorded(command, trigger, no)
            return
        if outcome is not None:
            self._log_refused(trigger, outcome)
            self._audit_refused(command, trigger, outcome, container)
            self._spawn(self.outbox.send(trigger.coordinator, outcome), f"refusal {trigger.trigger_id}")
        elif isinstance(prepared, Prepared):
            self._admitted[key] = None
            if len(self._admitted) > MAX_ADMITTED:
                del self._admitted[next(iter(self._admitted))]
            self._executions.begin(trigger, command.hash, command.voucher.kid, prepared)
            self.audit.accepted(trigger, command.hash, prepared, command.voucher)

    async def _prepare(self, trigger: Trigger, kid: str) -> Prepared | Refusal:
        try:
            return await self.runner.prepare(trigger, kid)
        except Refusal as refusal:
            return refusal

    def _decide(
        self,
        journal: Journal,
        command: Command,
        trigger: Trigger,
        prepared: Prepared | Refusal,
        situation: admission.Situation,
        broken: JournalUnavailable | None,
    ) -> tuple[Entry | None, OutcomeMessage | None]:
        """Remember, judge and record a trigger in one visit to the journal's thread.

        Returns what is known of it, if it was seen before; otherwise the outcome of its refusal, if it is refused.

        Raises:
            JournalFull: there is no room for it, and it was not recorded, but it stays refused.
            JournalUnavailable: it could not be recorded.
        """
        memory = journal.remember(trigger.run_id, trigger.attempt, command.voucher.kid)
        known = memory.entry(trigger.attempt)
        if known is not None:
            return known, None
        if broken is not None:  # a no without a record holds until the floor is raised
            raise broken.with_traceback(None)
        state, outcome = AttemptState.READY if trigger.wait_for_go else AttemptState.STARTED, None
        try:
            admission.check_trigger(trigger, memory, situation, self.now())
            admission.check_signature(trigger, command.voucher, command.expires, self.now())
            if isinstance(prepared, Refusal):
                raise prepared
        except Refusal as refusal:
            result = refused(refusal)
            state, outcome = AttemptState(result.outcome), self._outcome(trigger, command.hash, result)
        try:
            journal.admit(trigger, command.hash, state, outcome, self.now(), kid=command.voucher.kid)
        except JournalFull:  # refused without a record: the floor keeps a second copy from becoming a yes
            journal.raise_floor(above(trigger.issued_at, self.now()))
            raise
        return None, outcome

    async def _answered_from_memory(self, command: Command, trigger: Trigger) -> bool:
        """What this process has at hand needs no journal: a broken disk must not turn a yes into a no.

        Raises:
            Refusal: the id stands for other content.
        """
        key = trigger.trigger_id, command.voucher.kid
        live = self._executions.live.get(key)
        if live is not None:
            self._check_same(live.hash, command, trigger)
            log.info("trigger.seen_before", trigger_id=trigger.trigger_id, state=live.state)
            self.audit.repeated(trigger, command.hash, command.voucher)
            kind = Ready if live.waits else Accepted
            again = self._replies.reply(kind, trigger, live.hash)
            await self.voice.chat(trigger.coordinator, trigger.run_id, again)
            return True
        unwritten = self._executions.unwritten.get(key)
        if unwritten is not None:
            _, outcome = unwritten
            self._check_same(outcome.trigger_hash, command, trigger)
            self.audit.repeated(trigger, command.hash, command.voucher)
            self._spawn(self.outbox.send(trigger.coordinator, outcome, recorded=False), f"again {trigger.trigger_id}")
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
            await self.journal.call(Journal.deliver_again, known.outcome, coordinator)
        self._spawn(self.outbox.send(coordinator, known.outcome), f"again {known.run_id}/{known.attempt}")

    async def _acted_before(self, command: Command) -> bool:
        """Whether this is a copy of a signed command that has acted.

        Raises:
            JournalUnavailable: the journal cannot say. A cancel needs none: twice does no harm, and never would.
        """
        said = _said(command)
        if said is None:
            return False
        try:
            return await self.journal.call(Journal.acted, said)
        except JournalUnavailable:
            if isinstance(command.data, Cancel):
                return False
            raise

    async def _go(self, go: Go, command: Command) -> None:
        meant = self._executions.of(go.trigger_id)
        theirs = [live for live in meant if command.voucher.may_end(live.kid)]
        if meant and not theirs:
            self._not_theirs(go, command)
            return
        live = next((live for live in theirs if live.waits), None)
        if live is None or not live.waits or live.stop.reason is not None:
            log.info("go.ignored", trigger_id=go.trigger_id, reason="not waiting for it")
            return
        if self.now() > go.start_by:
            live.expired = f"go was to start it by {go.start_by.isoformat()}, it is {self.now().isoformat()} here"
            live.stop.set(StopReason.TIMED_OUT)
            self.audit.denied(go, ErrorCode.EXPIRED, live.expired, command.voucher)
            return
        try:
            await self.journal.call(Journal.start, go.run_id, go.attempt, live.hash, self.now())
        except IllegalMove as error:
            log.info("go.ignored", trigger_id=go.trigger_id, reason=str(error))
            return
        live.start_by = go.start_by
        live.go.set()
        self.audit.obeyed(go, "started", command.voucher)

    async def _cancel_or_release(self, data: Cancel | Release, command: Command) -> None:
        voucher, said = command.voucher, _said(command)
        if isinstance(data, Cancel):  # needs no journal: a broken disk must not keep it alive
            meant = self._executions.up_to(data)
            for live in meant:
                if not voucher.may_end(live.kid):
                    continue
                if live.stop.reason is None:
                    self.audit.obeyed(data, "stopped", voucher, stopped_attempt=live.trigger.attempt)
                live.stop.set(StopReason.CANCELLED)
            if any(not voucher.may_end(live.kid) for live in meant):
                self._not_theirs(data, command)
            if any(voucher.may_end(live.kid) for live in self._executions.of(data.trigger_id)):
                if said is not None:
                    await self.journal.call(Journal.note, said)
                return
        # What another key may have put into the journal under the same id is nothing to this one.
        memory = await self.journal.call(Journal.remember, data.run_id, data.attempt, voucher.kid)
        known = memory.entry(data.attempt)
        if known is None or (voucher.operator and voucher.kid):
            binds = "" if voucher.operator else voucher.kid  # nobody ends what another key may begin
            await self.journal.call(
                Journal.tombstone, data.run_id, data.attempt, data.deadline, self.now(), binds, said
            )
            log.info("attempt.tombstoned", trigger_id=data.trigger_id, by=data.TYPE)
            if not memory.tombstoned:
                self.audit.obeyed(data, "tombstoned", voucher)
        if known is None:
            return
        if not voucher.may_end(known.kid):
            self._not_theirs(data, command)
            return
        if isinstance(data, Release):  # no guard was ever armed here, so there is nothing to release
            return
        await self._say_again(known, known.coordinator)

    async def _answer(self, query: Query, command: Command) -> None:
        report = await self._answers.to(query, command.voucher, command.hash)
        if query.settle and report.tombstoned:
            self.audit.obeyed(query, "tombstoned", command.voucher)
        else:
            self.audit.answered(query, command.voucher)
        if len(self._tasks) < MAX_TASKS:
            self._spawn(self.voice.report(query.coordinator, report), f"report {query.query_id}")
        else:
            log.warning("report.dropped", query_id=query.query_id, tasks=len(self._tasks), next="it is asked again")

    def _not_theirs(self, data: Go | Cancel | Release, command: Command) -> None:
        """Another key began what a command speaks of."""
        why = "another key began it; only that one or an operator's may speak of it"
        voucher = command.voucher
        log.warning(
            "command.refused",
            type=data.TYPE,
            code=ErrorCode.KEY_NOT_ALLOWED,
            trigger_id=data.trigger_id,
            key_id=voucher.kid,
            error=why,
        )
        self.audit.denied(data, ErrorCode.KEY_NOT_ALLOWED, why, who=voucher)

    def _why_unusable(self, error: JournalUnavailable) -> JournalUnavailable:
        """Pass on that the journal failed; returns the first cause, not that it is closed since."""
        first = self.journal_broken() or error
        self.journal_failed(first)
        return first

    # -- life

    async def recover(self) -> None:
        """After a restart: what was running is interrupted; what waited for go certainly did not run.

        After the journal was mended: what ended meanwhile is written down.

        Raises:
            JournalUnavailable: the journal cannot be read or written.
        """
        await self._executions.write_down()
        ours = ChainMap[AttemptKey, Any](self._executions.live, self._executions.unwritten, self._admitted)
        await recover(self.journal, self._replies, self.now, ours, self.audit)

    async def raise_floor(self) -> None:
        """What was refused without a record while the journal failed must not turn into a yes.

        Raises:
            JournalUnavailable: the floor cannot be written.
        """
        await self.journal.call(Journal.raise_floor, self._refused_until)

    async def _mark_refused(self, issued_at: datetime) -> None:
        """Remember a refusal that the journal could not take, also for a process that comes after us."""
        self._refused_until = max(self._refused_until, above(issued_at, self.now()))
        try:
            await self.journal.mark_refused(self._refused_until)
        except OSError as error:
            log.warning("refusal.not_marked", error=str(error), effect="known to this process only")

    async def drain(self, grace_seconds: float, send_seconds: float) -> None:
        """Take no new work; let what runs go on for `grace_seconds`, then stop it and record every outcome.

        What the broker does not take within `send_seconds` more stays in the journal for the next start.
        """
        self.stopping = True
        async with self.handling:  # what was admitted just before runs by now, so it is among those to wait for
            pass
        await self._executions.end(grace_seconds)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=send_seconds)
        for task in self._tasks:
            task.cancel()

    # -- within

    def _situation(self) -> admission.Situation:
        return admission.Situation(
            self.identity,
            self.stopping,
            len(self._executions.live),
            self.runner.most_at_once(self.max_concurrent),
        )

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = self.group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _outcome(self, trigger: TriggerAddress, trigger_hash: str, result: Result) -> OutcomeMessage:
        return self._replies.outcome(trigger.run_id, trigger.attempt, trigger_hash, result)

    def _refuse_unrecorded(self, command: Command, trigger: Trigger, refusal: Refusal) -> None:
        outcome = self._outcome(trigger, command.hash, refused(refusal))
        self._log_refused(trigger, outcome)
        self._audit_refused(command, trigger, outcome, refusal.container)
        self._send_unrecorded(trigger, outcome)

    def _send_unrecorded(self, trigger: TriggerAddress, outcome: OutcomeMessage) -> None:
        """Say a refusal at once; in a flood, when the outbox gets to it."""
        if len(self._tasks) < MAX_TASKS:
            sending = self.outbox.send(trigger.coordinator, outcome, recorded=False)
            self._spawn(sending, f"refusal {trigger.trigger_id}")
        else:
            self.outbox.keep(trigger.coordinator, outcome)

    def _audit_refused(self, command: Command, trigger: Trigger, outcome: OutcomeMessage, container: str) -> None:
        assert outcome.error is not None
        self.audit.refused(trigger, command.hash, outcome.error, command.voucher, container)

    @staticmethod
    def _log_refused(trigger: TriggerAddress, outcome: OutcomeMessage) -> None:
        code = outcome.error.code if outcome.error else None
        message = outcome.error.message if outcome.error else None
        log.warning("trigger.refused", trigger_id=trigger.trigger_id, code=code, error=message)


def _said(command: Command) -> Said | None:
    """What makes a signed command act once; None where nothing is signed."""
    if command.expires is None or not command.voucher.kid:
        return None
    return Said(command.voucher.kid, command.event_id, command.expires)


def above(issued_at: datetime, now: datetime) -> datetime:
    """A floor under which a trigger falls that was issued then, and all that are older.

    Its clock may be ahead of ours, but not by more than is tolerated: otherwise one trigger from the year 9000 would
    close the agent until then.
    """
    ahead = timedelta(seconds=CLOCK_TOLERANCE_SECONDS)
    return min(max(issued_at + timedelta(microseconds=1), now), now + ahead)
