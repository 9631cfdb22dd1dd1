"""Several attempts on one target: how long between them, and which of them counts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.contract.messages import Result
from agent.coordinator.results import TargetResult
from agent.coordinator.verdict import Ended, that_counts

#: Pause before a retry; doubles up to the ceiling.
RETRY_FIRST_SECONDS = 1.0
RETRY_CEILING_SECONDS = 30.0


def retry_pause_seconds(attempt: int, chance: float) -> float:
    """How long to wait after an attempt before the next: between half of its pause and all of it, by `chance` (0 to 1).

    So a thousand targets that failed together do not come back together.
    """
    most: float = min(RETRY_FIRST_SECONDS * 2 ** (attempt - 1), RETRY_CEILING_SECONDS)
    return most * (0.5 + chance / 2)


def that_counts_of(attempts: Sequence[TargetResult]) -> TargetResult:
    """A target's result after all its attempts; says so if the last one had no effect and an earlier one may have."""
    one = attempts[that_counts([Ended.of(each.result) for each in attempts])]
    last = attempts[-1]
    if one is last:
        return one
    why = f" ({last.result.error.message})" if last.result.error else ""
    note = f"attempt {last.attempt} was {last.result.outcome}{why}"[:2048]
    return replace(one, result=one.result.model_copy(update={"notes": [*one.result.notes, note]}))


def code_of(result: Result) -> str | None:
    """The code of its error, if it has one."""
    return result.error.code if result.error else None
