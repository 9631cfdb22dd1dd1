"""What all outcomes of a run amount to. Pure: values in, a verdict out."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from agent.contract.errors import TEMPORARY, ErrorCode
from agent.contract.states import Outcome


class Verdict(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"


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


def may_retry(outcome: Outcome, code: str | None, *, retry_unknown: bool = False) -> bool:
    """Whether `maxRetry` repeats an attempt that ended so. What may have taken effect only with `retry_unknown`."""
    if outcome in _RETRIED:
        return True
    if outcome is Outcome.REJECTED:
        return code in {str(temporary) for temporary in TEMPORARY}
    return retry_unknown and outcome in (Outcome.INTERRUPTED, Outcome.LOST)


def never_started(outcome: Outcome, code: str | None) -> bool:
    """Whether it is certain that nothing ran: another pod may take the hook."""
    return outcome in (Outcome.REJECTED, Outcome.UNREACHABLE) or (
        outcome is Outcome.CANCELLED and code in (ErrorCode.TOMBSTONED, ErrorCode.CANCELLED)
    )
