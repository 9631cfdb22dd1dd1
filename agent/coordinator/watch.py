"""One attempt on one target as the coordinator sees it: what its replies mean, and what its silence means when.

Pure: times are seconds of any steady clock, handed in. The rule is one: a target without an outcome that has been
silent for a while is asked; it is concluded only by its own answer, or 30 s after nothing can come any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.contract.errors import ErrorCode
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    Accepted,
    AttemptReport,
    Heartbeat,
    Message,
    OutcomeMessage,
    Ready,
    Reply,
    Report,
    Result,
    Started,
)
from agent.contract.outcomes import failure
from agent.contract.states import AttemptState, Outcome
from agent.coordinator.targets import Target

#: A silent target is asked after this long; then ever later, up to a little more than a heartbeat.
FIRST_QUESTION_SECONDS = 2.0
LAST_QUESTION_SECONDS = 12.0
#: SIGTERM, 5 s, SIGKILL, and a second for the rest: what an agent may need after a timeout.
ENDING_SECONDS = 6
#: After a cancel, a target has this long to say how it ended.
CANCEL_SECONDS = 10

#: Refusals that are said without looking into, or without having, a memory of what ran before.
_WITHOUT_MEMORY = frozenset(
    {
        ErrorCode.JOURNAL_UNAVAILABLE,
        ErrorCode.BEFORE_JOURNAL,
        ErrorCode.UNSIGNED,
        ErrorCode.INVALID_ACTION,
    }
)


class Step(StrEnum):
    """What to do next for a target."""

    WAIT = "wait"
    ASK = "ask"
    SETTLE = "settle"
    CONCLUDE = "conclude"


@dataclass(slots=True)
class Watch:
    """The state of one attempt. `copies` counts how often its trigger may have left."""

    target: Target
    run_id: str
    attempt: int
    trigger_hash: str
    deadline: float
    timeout_seconds: float
    now: float
    wait_for_go: bool = False
    copies: int = 0
    seen: bool = False
    ready: bool = False
    go_sent: bool = False
    cancelling: bool = False
    started: float | None = None
    result: Result | None = None
    resend: bool = False
    resend_go: bool = False
    _last_sign: float = field(default=0, init=False)
    _interval: float = field(default=FIRST_QUESTION_SECONDS, init=False)
    _give_up_at: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._last_sign = self.now

    @property
    def submitted(self) -> bool:
        """Whether a copy of the trigger may ever have left: from then on silence proves nothing."""
        return self.copies > 0

    # -- what is heard

    def hear(self, message: Message, now: float) -> str:
        """Take a reply or a report in; returns what it was, as an event's kind (`dropped` if it proves nothing)."""
        if self.result is not None:
            return "dropped"
        if isinstance(message, Report):
            return self._hear_report(message, now)
        if not isinstance(message, Reply) or message.trigger_hash != self.trigger_hash:
            return "dropped"
        if message.pod_uid != self.target.pod_uid:
            return self._hear_successor(message)
        seen_before = self.seen
        self._sign(now)
        match message:
            case OutcomeMessage():
                refused = message.outcome is Outcome.REJECTED
                if refused and (self.started is not None or ((seen_before or self.copies > 1) and _blind(message))):
                    self.result = self._unknown(
                        f"{self.target} refused a second copy of the trigger, and cannot speak for the first: "
                        f"{message.error.message if message.error else ''}"
                    )
                else:
                    self._end(message)
                return "outcome"
            case Ready():
                self.ready = True
                return "ready"
            case Started() | Heartbeat():
                first = self.started is None
                self.started = now if self.started is None else self.started
                return "started" if first else "running"
            case Accepted():
                return "accepted"
        return "running"

    def _hear_successor(self, message: Reply) -> str:
        """A pod of the same name with another uid refuses what was meant for its predecessor."""
        code = message.error.code if isinstance(message, OutcomeMessage) and message.error else ""
        if isinstance(message, OutcomeMessage) and code == ErrorCode.WRONG_POD_UID and not self.seen:
            if self.copies > 1:
                self.result = self._unknown(f"{self.target} was replaced while the trigger was sent again")
            else:
                self._end(message)
            return "outcome"
        return "dropped"

    def _hear_report(self, report: Report, now: float) -> str:
        entry = next((each for each in report.attempts if each.attempt == self.attempt), None)
        if entry is not None and entry.trigger_hash == self.trigger_hash and report.pod_uid == self.target.pod_uid:
            self._sign(now)
            return self._hear_entry(entry, now)
        if entry is not None:
            return "dropped"
        if report.cannot_tell is not None:
            self.result = self._unknown(f"{self.target} cannot tell whether it ran: {report.cannot_tell}")
            return "outcome"
        if report.pod_uid != self.target.pod_uid:
            return "dropped"
        if report.tombstoned:
            self._end_tombstoned()
            return "outcome"
        self._last_sign = now
        self.resend = not self.cancelling  # never seen, and still time: the same bytes once more
        return "running"

    def _hear_entry(self, entry: AttemptReport, now: float) -> str:
        if entry.outcome is not None:
            self._end(entry.outcome)
            return "outcome"
        if entry.state is AttemptState.READY:
            self.ready = True
            self.resend_go = self.go_sent
            return "ready"
        self.started = now if self.started is None else self.started
        return "running"

    def _end_tombstoned(self) -> None:
        if self.seen:
            self.result = self._unknown(f"{self.target} had accepted the attempt and now does not know it")
        elif self.cancelling:
            self.result = failure(
                Outcome.CANCELLED,
                ErrorCode.TOMBSTONED,
                f"{self.target} never saw the trigger and will not start it",
            )
        else:
            self.result = failure(
                Outcome.UNREACHABLE,
                ErrorCode.NEVER_SEEN,
                f"{self.target} never saw the trigger, and will not start it any more: the broker lost it",
            )

    # -- what to do

    def asked(self, now: float) -> None:
        """A question went out: the next comes later."""
        self._last_sign = now
        self._interval = min(self._interval * 2, LAST_QUESTION_SECONDS)

    def ask_now(self) -> None:
        """The link or the agent is back: whatever was said meanwhile may be lost."""
        self._last_sign = float("-inf")
        self._interval = FIRST_QUESTION_SECONDS

    def cancel(self, now: float, within_seconds: float = CANCEL_SECONDS) -> None:
        """Somebody wants the end: it has ten seconds to come. Said again, it can only come sooner."""
        give_up_at = now + within_seconds if self.submitted else now
        self._give_up_at = give_up_at if self._give_up_at is None else min(give_up_at, self._give_up_at)
        if not self.cancelling:
            self.cancelling = True
            self._last_sign = now
            self._interval = FIRST_QUESTION_SECONDS

    def due(self, now: float) -> tuple[Step, float]:
        """What to do now, and how many seconds until it must be asked again at the latest."""
        if self.result is not None or now >= self._conclusion():
            return Step.CONCLUDE, 0
        question = self._last_sign + self._interval
        if not self.submitted or now < question:
            return Step.WAIT, max(0.001, min(question if self.submitted else self.deadline, self._conclusion()) - now)
        return (Step.SETTLE if self.cancelling or now > self.deadline else Step.ASK), 0

    def conclude(self) -> Result:
        """The result, or what the silence amounts to now."""
        if self.result is None:
            self.result = self._silence()
        return self.result

    # -- within

    def _conclusion(self) -> float:
        """When nothing can come any more."""
        if self._give_up_at is not None:
            return self._give_up_at
        if not self.submitted:
            return self.deadline
        latest_start = self.started if self.started is not None else self.deadline
        running = self.timeout_seconds + ENDING_SECONDS if self.seen else 0
        return max(latest_start + running, self.deadline) + CLOCK_TOLERANCE_SECONDS

    def _sign(self, now: float) -> None:
        self.seen = True
        self._last_sign = now

    def _end(self, outcome: OutcomeMessage) -> None:
        self.result = Result.model_validate({name: getattr(outcome, name) for name in Result.model_fields})

    def _silence(self) -> Result:
        if not self.submitted:
            why = "the run was cancelled before" if self.cancelling else "the broker or the agent was away"
            return failure(
                Outcome.UNREACHABLE,
                ErrorCode.NEVER_PUBLISHED,
                f"the trigger for {self.target} never left: {why}; nothing ran",
            )
        if self.started is not None:
            return self._unknown(f"{self.target} was running it and fell silent")
        if self.seen:
            return self._unknown(f"{self.target} had accepted it and fell silent")
        return self._unknown(f"{self.target} gave no sign")

    def _unknown(self, what: str) -> Result:
        """Nobody says how it ended. Without a go it certainly did not begin; otherwise who knows."""
        if self.wait_for_go and not self.go_sent:
            return failure(
                Outcome.UNREACHABLE, ErrorCode.NEVER_PUBLISHED, f"{what}, and no go was sent to it: nothing ran"
            )
        return failure(
            Outcome.LOST,
            ErrorCode.SILENT,
            f"{what}; whether the hook took effect is unknown: look there before going on",
        )


def _blind(outcome: OutcomeMessage) -> bool:
    """A refusal that the agent could not look up: of a first copy that did run it knows nothing."""
    return outcome.error is not None and outcome.error.code in _WITHOUT_MEMORY
