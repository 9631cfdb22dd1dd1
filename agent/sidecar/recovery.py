"""After a restart: what the journal says was alive, and nobody is. It never runs again by itself."""

from __future__ import annotations

from collections.abc import Callable, Container
from datetime import datetime

import structlog

from agent.contract.errors import ErrorCode, IllegalMove, Refusal
from agent.contract.messages import Result
from agent.contract.outcomes import failure
from agent.contract.states import AttemptState, Outcome
from agent.journal import Entry, Journal, JournalThread
from agent.pod.processes import kill_left_over
from agent.sidecar.audit import Audit
from agent.sidecar.executions import AttemptKey
from agent.sidecar.replies import Replies, refused
from agent.sidecar.runner import mark_of

log = structlog.get_logger("podhook.attempts")


async def recover(
    journal: JournalThread, replies: Replies, now: Callable[[], datetime], alive: Container[AttemptKey], audit: Audit
) -> None:
    """End every attempt that the journal has as unfinished, except those in `alive`.

    What was running is interrupted, and what it left running is ended; what waited for go certainly did not run.

    Raises:
        JournalUnavailable: the journal cannot be read or written.
    """
    for entry in await journal.call(Journal.unfinished):
        trigger_id = f"{entry.run_id}/{entry.attempt}"
        if (trigger_id, entry.kid) in alive:
            continue
        if entry.state is not AttemptState.READY and (
            left := await kill_left_over(mark_of(replies.identity.pod_uid, trigger_id, entry.kid))
        ):
            log.warning("attempt.left_over_killed", trigger_id=trigger_id, processes=left)
        outcome = replies.outcome(entry.run_id, entry.attempt, entry.trigger_hash, _what_became(entry, replies))
        try:
            await journal.call(Journal.finish, outcome, now())
        except IllegalMove:  # it ended while we looked
            continue
        audit.ended(outcome, entry.name, recovered=True)
        log.warning("attempt.recovered", trigger_id=trigger_id, outcome=outcome.outcome)


def _what_became(entry: Entry, replies: Replies) -> Result:
    if entry.state is AttemptState.READY:
        return refused(
            Refusal(
                ErrorCode.AGENT_RESTARTED_BEFORE_START, "the agent restarted while it waited for go; it did not run"
            )
        )
    return failure(
        Outcome.INTERRUPTED,
        ErrorCode.AGENT_RESTARTED,
        f"agent {replies.identity} went away while the attempt ran and was started again; "
        "whether it took effect is unknown",
    )
