"""What all outcomes of a run amount to. Pure: values in, a verdict out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent.contract.errors import TEMPORARY, ErrorCode
from agent.contract.messages import Result
from agent.contract.states import Outcome


class Verdict(StrEnum):
    """How a run ended; the last three only of a run that is asked about later."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"
    RUNNING = "running"
    INCOMPLETE = "incomplete"
    NOT_FOUND = "not_found"


#: Repeated by maxRetry (SEMANTICS: Retries); rejections only when they say that they pass.
_RETRIED = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.UNREACHABLE})


def verdict_on_all(outcomes: Collection[Outcome], targets: int, *, cancelled: bool = False) -> Verdict:
    """ExecuteOnAll: every target succeeded. Fewer outcomes than targets can never be `succeeded`."""
    if len(outcomes) == targets and all(outcome is Outcome.SUCCEEDED for outcome in outcomes):
        return Verdict.SUCCEEDED
    return Verdict.CANCELLED if cancelled else Verdict.FAILED


def verdict_on_one(outcomes: Collection[Outcome], *, cancelled: bool = False) -> Verdict:
    """ExecuteOnOne: exactly one target succeeded; those before it were never started."""
    if sum(outcome is Outcome.SUCCEEDED for outcome in outcomes) == 1:
        return Verdict.SUCCEEDED
    return Verdict.CANCELLED if cancelled else Verdict.FAILED


def verdict_of(strategy: str, outcomes: Collection[Outcome], targets: int, *, cancelled: bool = False) -> Verdict:
    """The verdict by the executor's strategy."""
    if strategy == "ExecuteOnOne":
        return verdict_on_one(outcomes, cancelled=cancelled)
    return verdict_on_all(outcomes, targets, cancelled=cancelled)


def may_retry(outcome: Outcome, code: str | None, *, retry_unknown: bool = False) -> bool:
    """Whether `maxRetry` repeats an attempt that ended so. What may have taken effect only with `retry_unknown`."""
    if outcome in _RETRIED:
        return True
    if outcome is Outcome.REJECTED:
        return code in {str(temporary) for temporary in TEMPORARY}
    return retry_unknown and outcome in (Outcome.INTERRUPTED, Outcome.LOST)


#: Refusals that speak of something that ran, or may have: not of this trigger, but of its run on that pod.
_OF_ANOTHER = frozenset(
    {ErrorCode.ID_REUSED, ErrorCode.STALE_ATTEMPT, ErrorCode.ATTEMPT_RUNNING, ErrorCode.BEFORE_JOURNAL}
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended, as far as that decides what it may have done.

    `answered`: a request was answered (the outcome has an `http_status`), and so it may have taken effect, also where
    the redirect that came back was refused.
    """

    outcome: Outcome
    code: str | None = None
    answered: bool = False

    @classmethod
    def of(cls, result: Result) -> Self:
        """Of what an agent said."""
        return cls(result.outcome, result.error.code if result.error else None, result.http_status is not None)


def never_started(ended: Ended) -> bool:
    """Whether it is certain that nothing of the run ran on the pod: another pod may take the hook."""
    return ran_nothing(ended) and not (ended.outcome is Outcome.REJECTED and ended.code in _OF_ANOTHER)


def ran_nothing(ended: Ended) -> bool:
    """Whether it is certain that this very attempt did nothing, whatever others of its run did."""
    if ended.outcome is Outcome.CANCELLED:
        return ended.code == ErrorCode.TOMBSTONED
    return ended.outcome is Outcome.UNREACHABLE or (ended.outcome is Outcome.REJECTED and not ended.answered)


def that_counts(attempts: Sequence[Ended]) -> int:
    """Of all attempts on one target, the index of the one that is its outcome: the last that may have had an effect.

    A retry that never started must not hide what the attempt before it did.
    """
    return next((at for at in reversed(range(len(attempts))) if not ran_nothing(attempts[at])), len(attempts) - 1)
