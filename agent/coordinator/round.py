"""One run: publish triggers, gather an outcome from every target, retry what may be retried.

The rules of what silence means are in `watch`; what outcomes amount to is in `verdict`. Here is only the doing.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.contract.actions import Action
from agent.contract.errors import ErrorCode, LinkDown, PublishRefused
from agent.contract.messages import Cancel, CatalogueHook, Go, Message, Query, Report, Result, Targets, Trigger
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.contract.templates import PodExecutor
from agent.coordinator.calls import HookCall
from agent.coordinator.results import OnEvent, RunEvent, TargetResult
from agent.coordinator.retries import code_of, retry_pause_seconds, that_counts_of
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Ended, may_retry, never_started
from agent.coordinator.watch import CANCEL_SECONDS, Step, Watch, patience_seconds
from agent.coordinator.wire import MAX_QUESTIONS, Wire

#: ExecuteOnOne: how long a candidate may take to say `ready` before the next is tried.
READY_SECONDS = 5.0
#: How long a question holds its place among those under way.
QUESTION_SECONDS = 2.0
#: Answers to so many of the latest questions about an attempt are heard.
QUESTIONS_KEPT = 16
#: At the end of a run, how long a cancel or a question may still take to leave.
LAST_WORDS_SECONDS = 1.0
#: A publish that did not leave is tried again this soon.
REPUBLISH_SECONDS = 0.2


@dataclass(slots=True)
class _Active:
    """An attempt that is watched: what is known, what was said to it, and what it says."""

    watch: Watch
    payload: bytes
    issued_at: datetime
    deadline: datetime
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    questions: deque[str] = field(default_factory=lambda: deque(maxlen=QUESTIONS_KEPT))


@dataclass(slots=True, eq=False)
class Round:
    """One hook on its fixed set of targets."""

    run_id: str
    hook: str
    what: Action | CatalogueHook
    call: HookCall
    executor: PodExecutor
    targets: Sequence[Target]
    wire: Wire
    on_event: OnEvent
    now: Callable[[], datetime]
    cancelled: bool = False
    unverified: dict[tuple[str, str], str] = field(default_factory=dict)
    query_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    _aims: Targets = field(init=False)
    _active: dict[tuple[str, str], _Active] = field(default_factory=dict)
    _questions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_QUESTIONS))
    _queue: deque[_Active] = field(default_factory=deque)
    _held: dict[tuple[str, str], asyncio.TimerHandle] = field(default_factory=dict)
    _sending: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        ids = ((each.namespace, each.pod, each.pod_uid) for each in self.targets)
        self._aims = Targets.of(ids, self.executor.strategy)

    # -- the two strategies

    async def run(self) -> list[TargetResult]:
        """Run to the end; one result a target that was tried, in the order of their names."""
        if self.executor.strategy == "ExecuteOnOne":
            return await self._on_one()
        return await self._on_all()

    async def _on_all(self) -> list[TargetResult]:
        places = asyncio.Semaphore(self.call.max_parallel or max(1, len(self.targets)))
        results: dict[Target, TargetResult] = {}

        async def one(target: Target) -> None:
            async with places:
                results[target] = await self._with_retries(target)
                if results[target].result.outcome is not Outcome.SUCCEEDED:
                    self._errors += 1

        async with asyncio.TaskGroup() as group:
            for target in self.targets:
                group.create_task(one(target), name=f"target {target}")
        return [results[target] for target in self.targets]

    async def _with_retries(self, target: Target) -> TargetResult:
        limit = self.call.max_errors
        if self.cancelled or (limit is not None and self._errors > limit):
            why = "the run was cancelled" if self.cancelled else f"{self._errors} targets had failed, more than {limit}"
            code = ErrorCode.CANCELLED if self.cancelled else ErrorCode.STOPPED_AFTER_ERRORS
            result = failure(Outcome.UNREACHABLE, code, f"{target} was not triggered: {why}; nothing ran there")
            return self._ended(target, 0, result)
        results: list[TargetResult] = []
        while True:
            attempt = len(results) + 1
            result = await self._attempt(target, attempt, wait_for_go=False)
            results.append(TargetResult(target, attempt, result))
            if not await self._again(target, attempt, result):
                return that_counts_of(results)

    async def _on_one(self) -> list[TargetResult]:
        """The first candidate that says ready gets `go`. After a go was sent, no other pod ever gets one."""
        tried: dict[Target, list[TargetResult]] = {}
        candidates = list(self.targets)
        attempt = 0
        while True:
            attempt += 1
            round_of: list[TargetResult] = []
            for target in candidates:
                if self.cancelled:
                    break
                result = await self._attempt(target, attempt, wait_for_go=True)
                round_of.append(TargetResult(target, attempt, result))
                tried.setdefault(target, []).append(round_of[-1])
                if self._active_go(target) or not never_started(Ended.of(result)):
                    candidates, round_of = [target], round_of[-1:]  # what the others said does not count any more
                    break
            again = next((each for each in round_of if self._may_retry(attempt, each.result)), None)
            if again is None or not await self._again(again.target, attempt, again.result):
                return [that_counts_of(tried[target]) for target in sorted(tried)]

    def _may_retry(self, attempt: int, result: Result) -> bool:
        return attempt <= self.call.max_retry and may_retry(
            result.outcome, code_of(result), retry_unknown=self.call.retry_unknown
        )

    async def _again(self, target: Target, attempt: int, result: Result) -> bool:
        """Whether there is another attempt; waits its pause."""
        if self.cancelled or not self._may_retry(attempt, result):
            return False
        pause = retry_pause_seconds(attempt, random.random())  # noqa: S311 (jitter, not a secret)
        self._say(
            "retry",
            target,
            attempt + 1,
            f"attempt {attempt + 1} of {self.call.max_retry + 1} in {pause:.1f} s",
        )
        try:
            async with asyncio.timeout(pause):
                await self._stop.wait()
        except TimeoutError:
            pass
        return not self.cancelled

    # -- one attempt

    async def _attempt(self, target: Target, attempt: int, *, wait_for_go: bool) -> Result:
        active = self._prepare(target, attempt, wait_for_go=wait_for_go)
        self._active[target.key] = active
        watch = active.watch
        publishing = asyncio.create_task(self._trigger(active), name=f"trigger {target}")
        try:
            if wait_for_go and not await self._until_ready(active):
                watch.cancelling = True  # no go was sent, so it cannot start: the tombstone only spares it the wait
                if watch.submitted:
                    self._send(target, self._cancel(watch, active.deadline))
                result = watch.conclude()
            else:
                result = await self._until_ended(active)
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        if result.outcome is Outcome.CANCELLED and not self.cancelled:
            self._say("cancelled", target, attempt, "by somebody else: nothing more is started")
            self.cancelled = True  # whoever did that reached every agent that was there
            self._stop.set()
        return self._ended(target, attempt, result).result

    def _prepare(self, target: Target, attempt: int, *, wait_for_go: bool) -> _Active:
        issued_at = self.now()
        deadline = issued_at + timedelta(seconds=self.call.start_window_seconds)
        trigger = Trigger(
            run_id=self.run_id,
            attempt=attempt,
            coordinator=self.wire.coordinator,
            pod_uid=target.pod_uid,
            targets=self._aims,
            action=self.what if isinstance(self.what, Action) else None,
            hook=self.what if isinstance(self.what, CatalogueHook) else None,
            name=self.hook,
            timeout_seconds=self.call.timeout_seconds,
            issued_at=issued_at,
            deadline=deadline,
            wait_for_go=wait_for_go,
        )
        sealed = self.wire.seal(trigger, target)
        now = _clock()
        watch = Watch(
            target=target,
            run_id=self.run_id,
            attempt=attempt,
            trigger_hash=sealed.digest,
            refusal_hash=sealed.digest_of_refusal,
            kid=self.wire.trust.kid,
            deadline=now + self.call.start_window_seconds,
            timeout_seconds=self.call.timeout_seconds,
            now=now,
            wait_for_go=wait_for_go,
            patience_seconds=patience_seconds(len(self.targets)),
        )
        return _Active(watch, sealed.payload, issued_at, deadline)

    async def _trigger(self, active: _Active) -> None:
        """Publish the trigger until the broker has it or it is too late; the bytes are always the same."""
        watch = active.watch

        def submitted() -> None:
            watch.copies += 1
            active.heard.set()

        while _clock() < watch.deadline and watch.result is None and not watch.cancelling:
            if not watch.submitted and (successor := self.wire.successor(watch.target)) is not None:
                why = f"{watch.target} was replaced by pod uid {successor} before the trigger left; nothing ran"
                watch.result = failure(Outcome.UNREACHABLE, ErrorCode.NEVER_PUBLISHED, why)
                active.heard.set()
                return
            if not self.wire.is_online(watch.target):
                await asyncio.sleep(REPUBLISH_SECONDS)
                continue
            before = watch.submitted
            try:
                await self.wire.publish(watch.target, self.run_id, active.payload, self._expiry(watch), submitted)
            except LinkDown:
                await asyncio.sleep(REPUBLISH_SECONDS)
            except PublishRefused as error:
                if not before and watch.result is None:  # an earlier try may have arrived: then its silence is asked
                    watch.result = failure(Outcome.UNREACHABLE, ErrorCode.NEVER_PUBLISHED, str(error))
                    active.heard.set()
                return
            else:
                self._say("triggered", watch.target, watch.attempt)
                return

    async def _until_ready(self, active: _Active) -> bool:
        """Whether the candidate said ready and got its go; False when another may be tried."""
        watch = active.watch
        until = _clock() + READY_SECONDS
        while not watch.ready and watch.result is None and not self.cancelled:
            if _clock() >= until or watch.due(_clock())[0] is Step.CONCLUDE:
                return False
            await self._listen(active, until - _clock())
        if watch.result is not None or self.cancelled:
            return True
        watch.go_sent = True  # from here on it may run: never another pod
        self._say("go", watch.target, watch.attempt)
        self._send(watch.target, self._go(watch, active.deadline))
        return True

    async def _until_ended(self, active: _Active) -> Result:
        while active.watch.due(_clock())[0] is not Step.CONCLUDE:
            await self._listen(active, float("inf"))
        return active.watch.conclude()

    async def _listen(self, active: _Active, at_most: float) -> None:
        """Wait for a reply or for what the silence is due, and do that."""
        watch = active.watch
        step, seconds = watch.due(_clock())
        if step is Step.WAIT:
            try:
                async with asyncio.timeout(min(seconds, at_most)):
                    await active.heard.wait()
            except TimeoutError:
                pass
        elif step in (Step.ASK, Step.SETTLE):
            await self._ask(active, settle=step is Step.SETTLE)
        active.heard.clear()
        if watch.resend and watch.result is None and _clock() < watch.deadline:
            watch.resend = False
            self._say("resent", watch.target, watch.attempt, "it never saw the trigger")
            watch.copies += 1
            self._send_bytes(watch.target, active.payload, self._expiry(watch), qos=0)  # it has just answered
        if watch.resend_go and watch.result is None:
            watch.resend_go = False
            self._send(watch.target, self._go(watch, active.deadline), qos=0)

    async def _ask(self, active: _Active, *, settle: bool) -> None:
        """Ask the target's journal, if somebody is there to answer; at most 200 at a time."""
        watch = active.watch
        if not self.wire.is_online(watch.target):
            watch.asked(_clock())
            return
        if self._questions.locked():
            self._queue.append(active)
            try:
                async with asyncio.timeout(QUESTION_SECONDS):
                    await active.heard.wait()  # a place is free, or an answer came unasked
            except TimeoutError:
                pass
            return
        watch.asked(_clock())
        await self._questions.acquire()
        self._hold_place(watch.target.key)
        if watch.cancelling:  # the broker may have lost the cancel; twice does no harm
            self._send(watch.target, self._cancel(watch, active.deadline), qos=0)
        query = Query(
            query_id=self.query_id,
            coordinator=self.wire.coordinator,
            run_id=self.run_id,
            attempt=watch.attempt,
            settle=settle,
            pod_uid=watch.target.pod_uid,
            issued_at=active.issued_at,
            deadline=active.deadline,
        )
        self._say("asked", watch.target, watch.attempt)
        sealed = self.wire.seal(query, watch.target)
        active.questions.append(sealed.digest)
        self._send_bytes(watch.target, sealed.payload, 60, qos=0)

    def _hold_place(self, key: tuple[str, str]) -> None:
        """A question holds its place until it is answered, or for a while: the dead must not block the living."""
        self._leave_place(key)
        self._held[key] = asyncio.get_running_loop().call_later(QUESTION_SECONDS, self._leave_place, key)

    def _leave_place(self, key: tuple[str, str]) -> None:
        handle = self._held.pop(key, None)
        if handle is not None:
            handle.cancel()
            self._questions.release()
            if self._queue:
                self._queue.popleft().heard.set()

    # -- what comes in

    def hear(self, key: tuple[str, str], message: Message) -> None:
        """A reply or a report of a target."""
        active = self._active.get(key)
        if isinstance(message, Report):
            if active is None or message.query_hash not in active.questions:
                return  # an answer to another question, which somebody else may have asked: it proves nothing
            self._leave_place(key)
        if active is None or active.watch.attempt != getattr(message, "attempt", active.watch.attempt):
            return
        kind = active.watch.hear(message, _clock())
        if kind != "outcome":
            text = "the answer speaks of another trigger or another pod" if kind == "dropped" else ""
            if kind != "dropped" or active.watch.result is None:
                self._say(kind, active.watch.target, active.watch.attempt, text)
        active.heard.set()

    def hear_unverified(self, key: tuple[str, str], why: str) -> None:
        """Somebody speaks in the name of an agent, or an agent without its key: told, and never believed.

        Whoever may publish can take any name, and as many as it likes: only our targets' are told, and each once.
        """
        if key in self.unverified or all(each.key != key for each in self.targets):
            return
        self.unverified[key] = why
        active = self._active.get(key)
        self._say("unverified", active.watch.target if active else None, 0, f"{key[0]}/{key[1]}: {why}")

    def link_lost(self) -> None:
        """Nobody can be heard until the broker is back."""
        for active in self._active.values():
            active.watch.link(_clock(), up=False)

    def link_restored(self) -> None:
        """The broker is back: ask everybody whose outcome may have been lost meanwhile."""
        for active in self._active.values():
            active.watch.link(_clock(), up=True)
            if active.watch.submitted and active.watch.result is None:
                active.watch.ask_now()
                active.heard.set()

    def agent_restored(self, key: tuple[str, str]) -> None:
        """An agent is online again: its journal knows what became of the attempt."""
        active = self._active.get(key)
        if active is not None and active.watch.submitted and active.watch.result is None:
            active.watch.ask_now()
            active.heard.set()

    def cancel(self, within_seconds: float = CANCEL_SECONDS) -> None:
        """Start nothing more and stop what was started; `run` then comes back soon with what is known."""
        self.cancelled = True
        self._stop.set()
        for active in self._active.values():
            if active.watch.result is None:
                if not active.watch.cancelling:
                    self._say("cancelled", active.watch.target, active.watch.attempt)
                active.watch.cancel(_clock(), within_seconds)
                active.heard.set()
                if active.watch.submitted:
                    self._send(active.watch.target, self._cancel(active.watch, active.deadline))

    async def close(self) -> None:
        """Forget what is still waiting for its time; what is being sent gets a moment, for a cancel must leave."""
        for handle in self._held.values():
            handle.cancel()
        if self._sending:
            await asyncio.wait(self._sending, timeout=LAST_WORDS_SECONDS)
        for task in self._sending:
            task.cancel()

    # -- within

    def _active_go(self, target: Target) -> bool:
        return self._active[target.key].watch.go_sent

    def _ended(self, target: Target, attempt: int, result: Result) -> TargetResult:
        self._say("outcome", target, attempt, result.error.message if result.error else "", result)
        return TargetResult(target, attempt, result)

    def _go(self, watch: Watch, deadline: datetime) -> Go:
        return Go(run_id=self.run_id, attempt=watch.attempt, pod_uid=watch.target.pod_uid, start_by=deadline)

    def _cancel(self, watch: Watch, deadline: datetime) -> Cancel:
        return Cancel(run_id=self.run_id, attempt=watch.attempt, pod_uid=watch.target.pod_uid, deadline=deadline)

    @staticmethod
    def _expiry(watch: Watch) -> int:
        return max(1, int(watch.deadline - _clock()) + 1)

    def _send(self, target: Target, message: Message, *, qos: int = 1) -> None:
        self._send_bytes(target, self.wire.seal(message, target).payload, 60, qos=qos)

    def _send_bytes(self, target: Target, payload: bytes, expiry_seconds: int, *, qos: int) -> None:
        """Publish in a task of its own: a broker that does not acknowledge must not hold up what is heard.

        Nothing goes to an agent that is offline (DESIGN: Delivery 7); when it is back it is asked, and told again.
        """
        if not self.wire.is_online(target):
            return
        task = asyncio.create_task(self._publish(target, payload, expiry_seconds, qos), name=f"send {target}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _publish(self, target: Target, payload: bytes, expiry_seconds: int, qos: int) -> None:
        try:
            await self.wire.publish(target, self.run_id, payload, expiry_seconds, qos=qos)
        except (LinkDown, PublishRefused) as error:
            self._say("broker", target, 0, str(error))  # the silence that follows is asked about

    def _say(
        self, kind: str, target: Target | None, attempt: int, text: str = "", result: Result | None = None
    ) -> None:
        self.on_event(RunEvent(kind, self.run_id, target, attempt, text, result))


def _clock() -> float:
    return asyncio.get_running_loop().time()
