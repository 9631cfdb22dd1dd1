"""The ledger: what was promised, held against what happened. Pure: a diary in, a judgement out.

The three counters that must stay at zero, and what each stands for:

- `twice`: an attempt ran more than once, or on a pod that it was not meant for, or an ExecuteOnOne ran on two pods.
- `lost`: what an agent or the broker had taken over left no trace, or no outcome; or an agent ended by itself.
- `false_success`: somebody was told something that is not true, or a command started after its deadline.

`unknown` counts the honest answer "nobody knows"; each must be owed to a fault that makes it so, otherwise it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.faults.diary import Event
from tests.faults.facts import FOREVER, RAW, Attempt, Facts, Key, Pod, Run, Span, Word

#: What ends so did not run. `cancelled` may have run, unless it says that it was tombstoned.
NOT_RUN = frozenset({"rejected", "unreachable"})
TOMBSTONED = "tombstoned"
UNKNOWN = frozenset({"interrupted", "lost"})
SAID_BY_COORDINATOR = frozenset({"lost", "unreachable"})
#: Refusals that are said without a memory: of an earlier copy they say nothing.
BLIND = frozenset({"journal_unavailable", "before_journal", "unsigned", "invalid_action"})
#: The broker saves once a second. What it took just before it was killed may be gone, and that is not ours.
SAVED_SECONDS = 5
#: After a disk is free again the agent notices within this time (it looks every 5 s).
MENDED_SECONDS = 8
#: What was delivered is in the journal after this time, whoever was killed or frozen meanwhile.
ARRIVED_SECONDS = 12
#: Between an agent's look at its clock and the first line of its command. A busy machine takes its time.
START_SECONDS = 1.0
#: ... and after it was frozen in between.
THAW_SECONDS = 0.5
#: Once an end was heard of, nothing of the attempt says anything any more; a line may be written a little later.
GONE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    counter: str
    key: Key
    what: str

    def __str__(self) -> str:
        return f"{self.counter}: trigger {self.key.trigger} on pod uid {self.key.uid}: {self.what}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run amounts to."""

    triggers: int
    executed: int
    unknown: int
    violations: tuple[Violation, ...]

    @property
    def good(self) -> bool:
        return not self.violations

    def count(self, counter: str) -> int:
        return sum(each.counter == counter for each in self.violations)

    def summary(self, seed: int) -> str:
        """The one line."""
        return (
            f"triggers={self.triggers} executed={self.executed} twice={self.count('twice')} lost={self.count('lost')} "
            f"unknown={self.unknown} false_success={self.count('false_success')} seed={seed}"
        )


def judge(events: Iterable[Event]) -> Judgement:
    """Judge a run by its diary."""
    facts = Facts.of(events)
    violations = []
    for key, attempt in facts.attempts.items():
        pod = facts.pods[key.uid]
        found = [
            *(("twice", what) for what in _twice(attempt)),
            *(("lost", what) for what in _lost(attempt, pod, facts.broker_kills)),
            *(("lost", what) for what in _unexplained(attempt, pod)),
            *(("false_success", what) for what in _untrue(attempt, pod)),
            *(("false_success", what) for what in _late(attempt, pod)),
        ]
        violations += [Violation(counter, key, what) for counter, what in found]
    for run_id, run in facts.runs.items():
        violations += _of_run(run_id, run, facts)
    for event in facts.died:
        what = f"{event['pod']} ended by itself with code {event['code']}"
        violations.append(Violation("lost", Key(event["uid"], "-"), what))
    return Judgement(
        triggers=sum(bool(each.published) for each in facts.attempts.values()),
        executed=sum(bool(each.starts) for each in facts.attempts.values()),
        unknown=sum(_final(each) in UNKNOWN for each in facts.attempts.values()),
        violations=tuple(violations),
    )


def _twice(attempt: Attempt) -> Iterator[str]:
    if len(attempt.starts) > 1:
        yield f"ran {len(attempt.starts)} times"
    if attempt.starts and not attempt.published:
        yield "ran, but was never meant for this pod"


def _lost(attempt: Attempt, pod: Pod, broker_kills: list[float]) -> Iterator[str]:
    row = attempt.row
    if row is None:
        if attempt.starts:
            yield "ran, and no journal knows it"
        elif _must_have_arrived(attempt, pod, broker_kills):
            yield "the broker acknowledged it, and no journal knows it"
        return
    if row.gone:
        return
    if not attempt.answered:
        yield f"its journal has it as {row.state}, and no outcome comes when a coordinator asks"
    if not row.delivered:
        yield f"its outcome ({row.state}) was never handed to the broker"
        return
    heard = attempt.by != RAW or any(word.by == RAW for word in attempt.agent)
    if not heard and not any(kill >= attempt.first for kill in broker_kills):
        yield f"its outcome ({row.state}) never reached whoever triggered it"


def _must_have_arrived(attempt: Attempt, pod: Pod, broker_kills: list[float]) -> bool:
    """Whether nothing excuses that an acknowledged trigger left no trace: it reached its agent, or its agent was there.

    Who asks about it, and sends it again, would mask a loss; so only those count about which nobody ever asks. The
    broker may forget what it did not save. A full disk makes an agent refuse without a record, and with a pod its
    journal goes: but only what came shortly before.
    """
    taken = attempt.acknowledged
    if attempt.by != RAW or taken is None or attempt.agent:
        return False
    if any(taken <= kill <= taken + SAVED_SECONDS or _was_nobodys(kill, taken, pod.online) for kill in broker_kills):
        return False
    full = [span.begin for span in _unwritable(pod) if span.end >= taken]
    reached = min((at for at in (*attempt.deliveries, *pod.online) if at >= taken), default=FOREVER)
    return reached < FOREVER and reached + ARRIVED_SECONDS <= min([pod.replaced, *full], default=FOREVER)


def _was_nobodys(kill: float, taken: float, online: list[float]) -> bool:
    """Whether the killed broker forgot the agent itself, who was new, and took a message before the agent came back."""
    new = online[:1] and online[0] <= kill <= online[0] + SAVED_SECONDS
    return bool(new) and kill < taken and not any(kill < at < taken for at in online)


def _unwritable(pod: Pod) -> Iterator[Span]:
    """When the agent could not write anything down: from a full disk to its next look, unless it is frozen then."""
    for full in pod.full:
        end = full.end + MENDED_SECONDS
        for frozen in pod.frozen:
            if frozen.begin < end and frozen.end > full.end:
                end += frozen.end - max(frozen.begin, full.end)
        yield Span(full.begin, end)


def _unexplained(attempt: Attempt, pod: Pod) -> Iterator[str]:
    """Nobody knows how it ended, and nothing was done to its agent that would explain that."""
    final = _final(attempt)
    if final == "interrupted":
        begun = max(attempt.first, min(attempt.starts, default=0) - START_SECONDS)
        said = min((word.at for word in attempt.agent if word.outcome == final), default=FOREVER)
        if not any(begun <= kill <= said for kill in pod.kills):
            yield "is interrupted, though nobody killed its agent while it ran"
    if final == "lost":
        until = max(word.at for word in attempt.coordinator)
        killed = any(attempt.first <= kill <= until for kill in pod.kills)
        unrecorded = any(span.meets(attempt.first, until) for span in _unwritable(pod))
        if not killed and not unrecorded and pod.replaced > until:
            yield "is lost to its coordinator, though nothing was done to its agent"


def _untrue(attempt: Attempt, pod: Pod) -> Iterator[str]:
    told = [*attempt.coordinator, *(word for word in attempt.agent if not _says_nothing(word, attempt, pod))]
    if attempt.starts and _was_cancelled_before(attempt, pod):
        yield "ran, though its cancel had reached the agent before it"
    for word in told:
        if attempt.starts and (word.outcome in NOT_RUN or (word.outcome == "cancelled" and word.code == TOMBSTONED)):
            yield f"ran, and {word.by} has it as {word.outcome} ({word.code})"
    succeeded = [word for word in told if word.outcome == "succeeded"]
    if succeeded and not (attempt.starts and attempt.ends):
        yield f"did not run to its end, and {succeeded[0].by} has it as succeeded"
    heard = min((word.at for word in told if word.by == RAW), default=FOREVER)
    if any(at > heard + GONE_SECONDS for at in (*attempt.starts, *attempt.ends)):
        yield f"went on after it was said to have ended ({', '.join(sorted({word.outcome for word in told}))})"
    endings = {word.outcome for word in told} - SAID_BY_COORDINATOR
    if _forgot_its_end(attempt, pod):
        endings.discard("interrupted")
    if len(endings) > 1:
        yield "ended in two ways: " + ", ".join(sorted({f"{word.outcome} ({word.code}, {word.by})" for word in told}))


def _forgot_its_end(attempt: Attempt, pod: Pod) -> bool:
    """Whether the agent was killed before it could write down how the attempt ended, because its disk was full.

    It said so while it lived; the next one can only say that it does not know.
    """
    return _killed_unrecorded(pod, attempt.first)


def _killed_unrecorded(pod: Pod, since: float) -> bool:
    """Whether the agent was killed while it could not write anything down."""
    return any(kill >= since and span.meets(kill, kill) for span in _unwritable(pod) for kill in pod.kills)


def _says_nothing(word: Word, attempt: Attempt, pod: Pod) -> bool:
    """A refusal without a memory says nothing of the copies before it: coordinators know that, and so must we.

    Of those after it, it does: whoever refuses without a record refuses everything that was issued before it has one
    again - unless it was killed until then. What a coordinator concludes must be true all the same.
    """
    if word.outcome != "rejected" or word.code not in BLIND:
        return False
    return _killed_unrecorded(pod, word.at) or sum(at <= word.at for at in attempt.copies) > 1


def _was_cancelled_before(attempt: Attempt, pod: Pod) -> bool:
    """Whether one life of the agent got the cancel first, and could record it."""
    first, start = min(attempt.deliveries, default=0), min(attempt.starts)
    return any(
        cancel < first
        and not any(cancel <= kill <= start for kill in pod.kills)
        and not any(span.meets(cancel, start) for span in _unwritable(pod))
        for cancel in attempt.cancels
    )


def _late(attempt: Attempt, pod: Pod) -> Iterator[str]:
    for start in attempt.starts:
        late = _earliest_look(attempt, pod, start) - attempt.deadline
        if late > 0:
            yield f"started {late + START_SECONDS:.1f} s after its deadline by its agent's clock"


def _earliest_look(attempt: Attempt, pod: Pod, start: float) -> float:
    """The least that the agent's clock can have said when it looked at it for the last time before the start.

    Its clock may have been set between the look and the start, or it may have been frozen then.
    """
    looks = [start - START_SECONDS, *(at for at, _ in pod.clock if start - START_SECONDS <= at <= start)]
    looks += [
        span.begin
        for span in pod.frozen
        if attempt.first <= span.begin < start and span.end >= start - START_SECONDS - THAW_SECONDS
    ]
    return min(look + pod.offset(look) for look in looks)


def _final(attempt: Attempt) -> str:
    """The last word: the agent's if there is one, otherwise the coordinator's; empty if nobody says anything.

    A journal that was thrown away in the middle of an attempt leaves it unknown.
    """
    if attempt.agent:
        order = {"query": 3, "journal": 2}
        return max(attempt.agent, key=lambda word: (order.get(word.by, 1), word.at)).outcome
    if attempt.row is not None and attempt.row.gone:
        return "interrupted"
    return attempt.coordinator[-1].outcome if attempt.coordinator else ""


def _of_run(run_id: str, run: Run, facts: Facts) -> Iterator[Violation]:
    ran_on = {key.uid for key, each in facts.attempts.items() if key.trigger.startswith(f"{run_id}/") and each.starts}
    nowhere = Key("-", run_id)
    if run.on_one and len(ran_on) > 1:
        yield Violation("twice", nowhere, f"was meant for one pod, and ran on {len(ran_on)}: {', '.join(ran_on)}")
    if not run.verdict and not run.abandoned:
        yield Violation("lost", nowhere, f"the run of {run.by} never came back")
    if run.verdict == "succeeded":
        good = {
            key.uid
            for key, each in facts.attempts.items()
            if key.trigger.startswith(f"{run_id}/") and each.starts and each.ends
        }
        wanted = 1 if run.on_one else len(run.targets)
        if len(good) < wanted:
            what = f"the verdict of {run.by} is succeeded, but of {wanted} targets only {len(good)} ran to their end"
            yield Violation("false_success", nowhere, what)
