"""A run that somebody else triggered: gathered to its end, or cancelled. Nothing is ever triggered here.

The journals in the pods are the record (DESIGN: Delivery 5), so whoever asks them can finish what a coordinator that
died began. It may as well be alive: so nothing is settled unless the run is cancelled, and what it might retry is not
taken for the end at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from agent.contract.errors import ErrorCode, LinkDown, PublishRefused
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    MAX_ATTEMPTS,
    MAX_START_WINDOW_SECONDS,
    Cancel,
    ErrorDetail,
    Query,
    Report,
)
from agent.contract.outcomes import failure
from agent.contract.states import AttemptState, Outcome
from agent.coordinator.inquiry import ask
from agent.coordinator.picture import Known, Picture, first_possible_issue, picture_of
from agent.coordinator.results import OnEvent, RunEvent, RunResult, TargetResult
from agent.coordinator.retries import RETRY_CEILING_SECONDS
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Verdict, may_retry
from agent.coordinator.watch import CANCEL_SECONDS, SILENT_SECONDS
from agent.coordinator.wire import Wire

#: Between two looks; doubles up to the ceiling, or to a few times what a look takes.
LOOK_FIRST_SECONDS = 0.5
LOOK_CEILING_SECONDS = 5.0
LOOK_SHARE = 4
#: Whoever began the run may live, and begin another attempt this long after one that failed.
RETRY_WAIT_SECONDS = RETRY_CEILING_SECONDS + 5
MAX_NAMES = 20

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Resumption:
    """Gathers one run. `present` tells which agents there are: those online, and those offline."""

    run_id: str
    wire: Wire
    on_event: OnEvent
    now: Callable[[], datetime]
    present: Callable[[], tuple[list[Target], list[Target]]]
    _unconfirmed: tuple[Target, ...] | None = None  # of a cancel; None: nobody was asked to
    _stops_anybody: bool = True
    _patience_seconds: float | None = None
    _give_up_at: float = float("inf")
    _heard: dict[Target, float] = field(default_factory=dict)
    _ended: dict[tuple[Target, int], float] = field(default_factory=dict)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def look(self) -> Picture:
        """Ask all agents that are online, and put together what they say.

        Raises:
            LinkDown: the broker went away meanwhile, so who was silent proves nothing.
        """
        online, offline = self.present()
        answers = await ask(self.wire, online, self._question, run_id=self.run_id, now=self.now)
        attempts, blind = {}, {}
        for target, answer in answers.items():
            said = answer.report
            speaker = Target(target.namespace, target.pod, said.pod_uid)  # its presence may have changed meanwhile
            attempts[speaker] = said.attempts
            if said.cannot_tell is not None and not said.attempts:
                blind[speaker] = said.cannot_tell
        return picture_of(
            self.run_id,
            attempts,
            blind=blind,
            silent=set(online) - set(answers),
            offline=offline,
            verified=self.wire.trust.verifies,
            kid=self.wire.trust.kid,
        )

    async def run(self, *, cancel: bool = False) -> RunResult:
        """Gather until every target has ended, or fell silent. With `cancel`, end it first.

        Raises:
            LinkDown: the broker was not there for the first look.
        """
        picture = await self.look()
        self.on_event(RunEvent("selected", self.run_id, targets=tuple(each.target for each in picture.known)))
        if cancel:
            self.cancel()
        pause, clock = LOOK_FIRST_SECONDS, asyncio.get_running_loop().time
        self._note(picture, picture.known)
        while True:
            if self._patience_seconds is not None:
                picture = await self._bury(picture)
            if self._is_over(picture):
                return self._result(picture)
            await self._unless_stopped(asyncio.sleep(pause))
            began = clock()
            later = await self._unless_stopped(self._look_again(picture))
            pause = min(pause * 2, max(LOOK_CEILING_SECONDS, LOOK_SHARE * (clock() - began)))
            if later is not None:
                self._note(picture.updated(later), later.known)
                picture = picture.updated(later)

    def cancel(self, within_seconds: float = CANCEL_SECONDS) -> None:
        """Stop what runs; each target then has this long to say how it ended. Said again, it can only be shorter."""
        self._patience_seconds = min(within_seconds, self._patience_seconds or within_seconds)
        self._give_up_at = min(self._give_up_at, asyncio.get_running_loop().time() + within_seconds)
        self._stop.set()

    async def _look_again(self, picture: Picture) -> Picture | None:
        """Another look; None while the broker is away, which is nobody's silence."""
        try:
            return await self.look()
        except LinkDown:
            self._heard = dict.fromkeys(self._heard, asyncio.get_running_loop().time())
            self.on_event(RunEvent("broker", self.run_id, text="the broker is away; waiting for it"))
            return None if picture.known else picture

    async def _unless_stopped(self, work: Coroutine[None, None, T]) -> T | None:
        """Do it, unless somebody wants the end before it is done."""
        working = asyncio.create_task(work, name=f"look {self.run_id}")
        stopping = asyncio.create_task(self._stop.wait(), name=f"stop {self.run_id}")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            self._stop.clear()
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    # -- whether it is over

    def _note(self, picture: Picture, heard: Iterable[Known]) -> None:
        """Remember who was heard when, and tell what is new."""
        now = asyncio.get_running_loop().time()
        self._heard |= {each.target: now for each in heard}
        for known in picture.known:
            result = known.result
            if result is None or (known.target, result.attempt) in self._ended:
                continue
            self._ended[known.target, result.attempt] = now
            error = result.result.error
            text = error.message if error else ""
            self.on_event(RunEvent("outcome", self.run_id, known.target, result.attempt, text, result.result))

    def _is_over(self, picture: Picture) -> bool:
        if not picture.known or asyncio.get_running_loop().time() >= self._give_up_at:
            return True
        if any(known.alive and self._lost(known) is None for known in picture.known):
            return False
        if self._unconfirmed is not None:
            return True
        one = picture.aims is not None and picture.aims.strategy == "ExecuteOnOne"
        succeeded = any(known.counts.state is AttemptState.SUCCEEDED for known in picture.known)
        if one and succeeded:
            return True
        waits = one or any(self._may_be_retried(known) for known in picture.known)
        if waits and not self._quiet_for(picture, RETRY_WAIT_SECONDS):
            return False
        return one or not picture.missing or self._nothing_can_start(picture)

    def _may_be_retried(self, known: Known) -> bool:
        result = known.result
        error = result.result.error if result else None
        return result is not None and may_retry(result.result.outcome, error.code if error else None)

    def _quiet_for(self, picture: Picture, seconds: float) -> bool:
        """Whether nothing has changed for this long: by the agents' clocks, or since we saw it."""
        now = asyncio.get_running_loop().time()
        changed = picture.changed_at
        by_clock = changed is not None and (self.now() - changed).total_seconds() >= seconds
        return by_clock or now - max(self._ended.values(), default=now) >= seconds

    def _nothing_can_start(self, picture: Picture) -> bool:
        """Whether the time to start is over: before, a slow trigger may yet arrive at a target that is missing."""
        deadlines = [each.deadline for known in picture.known for each in known.attempts if each.deadline]
        return self.now() > max(deadlines, default=self.now()) + timedelta(seconds=CLOCK_TOLERANCE_SECONDS)

    def _lost(self, known: Known) -> str | None:
        """Why nobody will say how it ended; None while somebody may."""
        online, offline = self.present()
        there = {target.key: target for target in online}
        silent_for = asyncio.get_running_loop().time() - self._heard.get(known.target, 0)
        if there.get(known.target.key, known.target) != known.target:
            return f"{known.target} was replaced by another pod, and its journal with it"
        if silent_for >= SILENT_SECONDS or asyncio.get_running_loop().time() >= self._give_up_at:
            where = "is offline" if known.target in offline else "has not said how it ended"
            return f"{known.target} {where}; it was heard {silent_for:.0f} s ago"
        return None

    # -- what came of it

    def _result(self, picture: Picture) -> RunResult:
        results = []
        for known in picture.known:
            if (result := known.result) is None:
                why = f"{self._lost(known) or known.target}; whether the hook took effect is unknown: look there"
                result = TargetResult(known.target, known.counts.attempt, failure(Outcome.LOST, ErrorCode.SILENT, why))
            results.append(result)
        outcomes = [each.result.outcome for each in results]
        return RunResult(
            self.run_id,
            picture.hook or "run",
            self._verdict(picture, outcomes),
            picture.issued_at or self.now(),
            picture.duration_seconds,
            tuple(results),
            self._why_incomplete(picture),
            (),
            self.wire.trust.verifies,
        )

    def _verdict(self, picture: Picture, outcomes: list[Outcome]) -> Verdict:
        if outcomes:
            return picture.verdict_on(outcomes)
        return Verdict.INCOMPLETE if self._unconfirmed else picture.verdict

    def _why_incomplete(self, picture: Picture) -> ErrorDetail | None:
        """What stands against trusting the results."""
        unheard = _names(picture.unheard)
        nobody = f"; offline, silent, or cannot tell: {unheard}" if unheard else ""
        if not picture.known:
            if self._unconfirmed:
                return ErrorDetail(code="unconfirmed", message=self._why_unconfirmed(nobody))
            buried = "; if it comes, they refuse it" if self._unconfirmed is not None else ""
            text = f"no agent that answered knows run {self.run_id}{buried}{nobody}"
            return ErrorDetail(code="unknown_run", message=text)
        if len(picture.keys) > 1:
            keys = ", ".join(sorted(picture.keys))
            text = f"several keys have begun a run of this id: {keys}; ask with the key whose run is meant"
            return ErrorDetail(code="contradictory", message=text)
        if self._unconfirmed:
            return ErrorDetail(code="unconfirmed", message=self._why_unconfirmed(nobody))
        if picture.aims is None:
            return ErrorDetail(code="contradictory", message="its targets do not agree on which targets the run has")
        if picture.aims.strategy == "ExecuteOnAll" and picture.missing and self._unconfirmed is None:
            named = picture.name_missing()
            who = f": {_names(named)}" if named else nobody
            count = picture.aims.count
            text = f"{len(picture.known)} of {count} targets know it; of the others nobody has an attempt{who}"
            return ErrorDetail(code="missing_outcomes", message=text)
        return None

    def _why_unconfirmed(self, nobody: str) -> str:
        """Who may still start something of a run that was cancelled."""
        unconfirmed = self._unconfirmed or ()
        one_key = "" if self._stops_anybody else "; only an operator's key stops what another key began"
        return (
            f"{len(unconfirmed)} agents did not confirm that nothing of the run starts there any more: "
            f"{_names(unconfirmed)}; what is on its way to them can start until its deadline{one_key}{nobody}"
        )

    # -- cancelling

    async def _bury(self, picture: Picture) -> Picture:
        """Stop what runs, and let no attempt of the run start any more, wherever it is on its way to.

        A cancel of the highest attempt that there can be is one of all of them. The first time it is confirmed, and
        the targets have their time from then on; later it is only said again.
        """
        self._stop.clear()  # this is what it asked for; the next one wants no more waiting
        online, offline = self.present()
        first = self._unconfirmed is None
        await asyncio.gather(*(self._cancel(target, qos=int(first)) for target in online))
        if not first:
            return picture
        self._unconfirmed = tuple(sorted({*online, *offline}))
        issued_at = first_possible_issue(self.run_id) or self.now()

        def question(query_id: str, target: Target) -> Query:
            return self._query(query_id, target, attempt=MAX_ATTEMPTS, settle=True, issued_at=issued_at)

        asking = ask(self.wire, online, question, run_id=self.run_id, now=self.now)
        try:
            answers = await self._unless_stopped(asking) or {}
        except LinkDown:
            answers = {}
        sure = {target for target, answer in answers.items() if _stops(target, answer.report, picture.keys)}
        self._stops_anybody = all(answer.report.tombstoned_for is None for answer in answers.values())
        self._unconfirmed = tuple(sorted({*online, *offline} - sure))
        if self._patience_seconds:
            self._give_up_at = asyncio.get_running_loop().time() + self._patience_seconds
        later = await self._unless_stopped(self._look_again(picture))
        if later is None:
            return picture
        self._note(picture.updated(later), later.known)
        return picture.updated(later)

    async def _cancel(self, target: Target, *, qos: int) -> None:
        if not self.wire.is_online(target):
            return
        latest = self.now() + timedelta(seconds=MAX_START_WINDOW_SECONDS)
        message = Cancel(run_id=self.run_id, attempt=MAX_ATTEMPTS, pod_uid=target.pod_uid, deadline=latest)
        try:
            await self.wire.publish(target, self.run_id, self.wire.seal(message, target).payload, 60, qos=qos)
        except (LinkDown, PublishRefused) as error:
            self.on_event(RunEvent("broker", self.run_id, target, 0, str(error)))  # said again at the next look

    # -- questions

    def _question(self, query_id: str, target: Target) -> Query:
        return self._query(query_id, target, issued_at=first_possible_issue(self.run_id))

    def _query(
        self,
        query_id: str,
        target: Target,
        *,
        issued_at: datetime | None,
        attempt: int | None = None,
        settle: bool = False,
    ) -> Query:
        """`issued_at` is a lower bound, and so stands for the deadline too: the agent says more often "cannot tell"."""
        return Query(
            query_id=query_id,
            coordinator=self.wire.coordinator,
            run_id=self.run_id,
            attempt=attempt,
            settle=settle,
            pod_uid=target.pod_uid,
            issued_at=issued_at,
            deadline=issued_at,
        )


def _stops(target: Target, report: Report, keys: frozenset[str]) -> bool:
    """Whether nothing of a run that these keys began starts there any more: only an operator's key stops anybody's."""
    meant = report.attempt == MAX_ATTEMPTS and report.cannot_tell is None and report.pod_uid == target.pod_uid
    return meant and report.tombstoned and (report.tombstoned_for is None or keys == {report.tombstoned_for})


def _names(targets: Iterable[Target]) -> str:
    named = list(map(str, targets))
    return ", ".join(named[:MAX_NAMES]) + (", ..." if len(named) > MAX_NAMES else "")
