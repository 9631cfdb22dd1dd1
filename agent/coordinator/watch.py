"""One attempt on one target as the coordinator sees it: what its replies mean, and what its silence means when.

Pure: times are seconds of any steady clock, handed in. The rule is one: a target without an outcome that has been
silent for a while is asked; it is concluded only by its own answer, or 30 s after nothing can come any more. A target
that runs it and then neither sends a heartbeat nor answers is given up earlier: as lost, which claims nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent.contract.errors import UNVERIFIED, ErrorCode
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
#: ... among so many targets; among more, in proportion later: answers queue up, and questions would lengthen the queue.
FEW_TARGETS = 400
#: SIGTERM, 5 s, SIGKILL, and a second for the rest: what an agent may need after a timeout.
ENDING_SECONDS = 6
#: What runs says so every 10 s, and answers questions: who did neither for this long, while we listened, fell silent.
SILENT_SECONDS = 90
#: A pod that was replaced has this long to say how it ended: its agent's grace (15 s), and time to be heard.
REPLACED_SECONDS = 20
#: After a cancel, a target has this long to say how it ended.
CANCEL_SECONDS = 10

#: Once a question got no answer for this long there will be none.
ANSWER_SECONDS = 5
#: When the time is over and we could not ask - our link was down, or we slept - it is tried this long.
LAST_CHANCE_SECONDS = 60

#: Refusals that are said without looking into, or without having, a memory of what ran before. Of the only copy that
#: was sent, to somebody who never gave a sign, they can be believed.
_WITHOUT_MEMORY = frozenset(
    {
        ErrorCode.JOURNAL_UNAVAILABLE,
        ErrorCode.CLOCK_SKEW,
        ErrorCode.DEADLINE_TOO_FAR,
        ErrorCode.EXPIRED,
        ErrorCode.INVALID_ACTION,
        *UNVERIFIED,
    }
)


def patience_seconds(targets: int) -> float:
    """How long a target may be silent before it is asked for the first time, when so many answer at once."""
    return min(FIRST_QUESTION_SECONDS * max(1.0, targets / FEW_TARGETS), LAST_QUESTION_SECONDS)


class Step(StrEnum):
    """What to do next for a target."""

    WAIT = "wait"
    ASK = "ask"
    SETTLE = "settle"
    CONCLUDE = "conclude"


@dataclass(slots=True)
class Watch:
    """The state of one attempt. `copies` counts how often its trigger may have left.

    `patience_seconds` is how long it may be silent before it is asked for the first time. Answers name `trigger_hash`;
    an agent that does not believe who sent it names `refusal_hash`. `kid` is the key that signed it, or "": run ids are
    each key's own.
    """

    target: Target
    run_id: str
    attempt: int
    trigger_hash: str
    deadline: float
    timeout_seconds: float
    now: float
    wait_for_go: bool = False
    refusal_hash: str = ""
    kid: str = ""
    patience_seconds: float = FIRST_QUESTION_SECONDS
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
    _asked_at: float = field(default=0, init=False)
    _overdue_since: float | None = field(default=None, init=False)
    _replaced_at: float | None = field(default=None, init=False)
    _cannot_tell: str = field(default="", init=False)
    _heard: float = field(default=0, init=False)
    _beat: float = field(default=-1, init=False)
    _interval: float = field(init=False)
    _give_up_at: float | None = field(default=None, init=False)
    _listening_since: float | None = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._last_sign = self._listening_since = self._asked_at = self.now
        self._interval = self.patience_seconds

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
        if not isinstance(message, Reply) or not self._is_about_it(message):
            return "dropped"
        if message.pod_uid != self.target.pod_uid:
            return self._hear_successor(message)
        if isinstance(message, Heartbeat):
            if message.running_seconds <= self._beat:
                return "dropped"  # said before: whoever repeats it does not keep a dead agent alive
            self._beat = message.running_seconds
        seen_before = self.seen
        self._sign(now)
        match message:
            case OutcomeMessage():
                self._end(message, seen_before=seen_before)
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

    def _is_about_it(self, message: Reply) -> bool:
        """Whether it answers this very trigger. That its sender is not trusted, an agent says of all the bytes."""
        if message.trigger_hash == self.trigger_hash:
            return not (isinstance(message, OutcomeMessage) and _code(message) in UNVERIFIED)
        if not isinstance(message, OutcomeMessage) or message.outcome is not Outcome.REJECTED:
            return False
        return message.trigger_hash == self.refusal_hash and _code(message) in UNVERIFIED

    def _hear_successor(self, message: Reply) -> str:
        """A pod of the same name with another uid refuses what was meant for its predecessor.

        It speaks for itself only: the predecessor may hang on a lost node, with the trigger in its session.
        """
        wrong = isinstance(message, OutcomeMessage) and _code(message) == ErrorCode.WRONG_POD_UID
        if wrong and not self.seen:
            self.result = self._unknown(f"{self.target} was replaced by pod uid {message.pod_uid} meanwhile")
            return "outcome"
        return "dropped"

    def _hear_report(self, report: Report, now: float) -> str:
        ours = [each for each in report.attempts if each.attempt == self.attempt and self._may_be_ours(each)]
        entry = next((each for each in ours if each.trigger_hash == self.trigger_hash), ours[0] if ours else None)
        if entry is not None and entry.trigger_hash == self.trigger_hash and report.pod_uid == self.target.pod_uid:
            seen_before = self.seen
            self._sign(now)
            return self._hear_entry(entry, now, seen_before=seen_before)
        if entry is not None:
            return "dropped"
        if report.pod_uid != self.target.pod_uid:
            if self.seen or report.cannot_tell is None:
                self._replaced_at = now if self._replaced_at is None else self._replaced_at
                return "dropped"
            self.result = self._unknown(f"{self.target} was replaced by pod uid {report.pod_uid} meanwhile")
            return "outcome"
        if report.cannot_tell is not None:
            self._cannot_tell = report.cannot_tell
            if self.seen or self.cancelling:
                self.result = self._unknown(f"{self.target} cannot tell whether it ran: {report.cannot_tell}")
                return "outcome"
            return "running"  # it may start yet: only when it cannot any more is it over
        if report.tombstoned and report.tombstoned_for in (None, self.kid):
            self._end_tombstoned()
            return "outcome"
        self._last_sign = now
        self.resend = not self.cancelling and not self.seen  # never seen, and still time: the same bytes once more
        return "running"

    def _may_be_ours(self, entry: AttemptReport) -> bool:
        """Whether an attempt of our id is ours: what another key began under it is another's."""
        return not self.kid or entry.key_id in (None, self.kid)

    def _hear_entry(self, entry: AttemptReport, now: float, *, seen_before: bool) -> str:
        if entry.outcome is not None:
            self._end(entry.outcome, seen_before=seen_before)
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
        self._last_sign = self._asked_at = now
        self._interval = min(self._interval * 2, LAST_QUESTION_SECONDS)

    def ask_now(self) -> None:
        """The link or the agent is back: whatever was said meanwhile may be lost."""
        self._last_sign = float("-inf")
        self._interval = self.patience_seconds

    def link(self, now: float, *, up: bool) -> None:
        """Our own link broke or is back: while it is down nobody can be heard, so nobody falls silent."""
        self._listening_since = now if up else None

    def cancel(self, now: float, within_seconds: float = CANCEL_SECONDS) -> None:
        """Somebody wants the end: it has ten seconds to come. Said again, it can only come sooner."""
        give_up_at = now + within_seconds if self.submitted else now
        self._give_up_at = give_up_at if self._give_up_at is None else min(give_up_at, self._give_up_at)
        if not self.cancelling:
            self.cancelling = True
            self._last_sign = now
            self._interval = self.patience_seconds

    def due(self, now: float) -> tuple[Step, float]:
        """What to do now, and how many seconds until it must be asked again at the latest."""
        if self.result is not None:
            return Step.CONCLUDE, 0
        if now >= self._conclusion():
            return self._last_chance(now)
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

    def _last_chance(self, now: float) -> tuple[Step, float]:
        """The time is over. If nobody was asked of late - we slept, or had no link - one question is tried first."""
        self._overdue_since = now if self._overdue_since is None else self._overdue_since
        given_up = self._give_up_at is not None and now >= self._give_up_at
        over = now - self._overdue_since >= LAST_CHANCE_SECONDS
        if given_up or over or not self.submitted or (self.wait_for_go and not self.go_sent):
            return Step.CONCLUDE, 0
        if self._listening_since is None:
            return Step.WAIT, 1
        asked_ago = now - self._asked_at
        if asked_ago > LAST_QUESTION_SECONDS + ANSWER_SECONDS:
            return Step.SETTLE, 0
        if self._asked_at >= self._overdue_since and asked_ago < ANSWER_SECONDS:
            return Step.WAIT, ANSWER_SECONDS - asked_ago
        return Step.CONCLUDE, 0

    def _conclusion(self) -> float:
        """When nothing can come any more."""
        if self._give_up_at is not None:
            return self._give_up_at
        if not self.submitted:
            return self.deadline
        if self._replaced_at is not None:  # by who answers for another uid; the predecessor may still be ending
            return min(self._certain_end(), self._replaced_at + REPLACED_SECONDS)
        return min(self._certain_end(), max(self._silent_at(), self.deadline + CLOCK_TOLERANCE_SECONDS))

    def _silent_at(self) -> float:
        """When who runs it has been silent for too long."""
        if self.started is None or self._listening_since is None:
            return float("inf")
        return max(self._listening_since, self._heard) + SILENT_SECONDS

    def _certain_end(self) -> float:
        latest_start = self.started if self.started is not None else self.deadline
        running = self.timeout_seconds + ENDING_SECONDS if self.seen else 0
        return max(latest_start + running, self.deadline) + CLOCK_TOLERANCE_SECONDS

    def _sign(self, now: float) -> None:
        self.seen = True
        self._last_sign = self._heard = now

    def _end(self, outcome: OutcomeMessage, *, seen_before: bool) -> None:
        """Take the agent's word, unless it is a no that may be about a second copy, by who forgot the first."""
        refused = outcome.outcome is Outcome.REJECTED
        why = outcome.error.message if outcome.error else ""
        if refused and _code(outcome) == ErrorCode.BEFORE_JOURNAL:
            self.result = self._unknown(f"{self.target} cannot tell whether it ran: {why}")
            return
        # Of what is only known at the socket, or by a redirect, a no comes after the start, and about the first copy.
        late = _code(outcome) == ErrorCode.ADDRESS_REFUSED or outcome.http_status is not None
        if (
            refused
            and not late
            and (self.started is not None or ((seen_before or self.copies > 1) and _blind(outcome)))
        ):
            text = f"{self.target} refused a second copy of the trigger, and cannot speak for the first: {why}"
            self.result = self._unknown(text)
            return
        self.result = Result.of(outcome)

    def _silence(self) -> Result:
        if not self.submitted:
            why = "the run was cancelled before" if self.cancelling else "the broker or the agent was away"
            return failure(
                Outcome.UNREACHABLE,
                ErrorCode.NEVER_PUBLISHED,
                f"the trigger for {self.target} never left: {why}; nothing ran",
            )
        if self._replaced_at is not None:
            return self._unknown(f"{self.target} had accepted it and was replaced by another pod")
        if self.started is not None:
            return self._unknown(f"{self.target} was running it and fell silent: no heartbeat, and no answer")
        if self.seen:
            return self._unknown(f"{self.target} had accepted it and fell silent")
        if self._cannot_tell:
            return self._unknown(f"{self.target} cannot tell whether it ran: {self._cannot_tell}")
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
    return _code(outcome) in _WITHOUT_MEMORY


def _code(outcome: OutcomeMessage) -> str:
    return outcome.error.code if outcome.error is not None else ""
