"""What the agent says of its attempts, as messages: who it is stands in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import AttemptReport, OutcomeMessage, Query, Reply, Report, Result, Trigger
from agent.contract.outcomes import failure, without_output
from agent.contract.states import Outcome
from agent.journal import Entry
from agent.pod.identity import Identity


@dataclass(frozen=True, slots=True)
class Replies:
    """Makes replies, outcomes and reports in the name of one agent."""

    identity: Identity

    def reply(self, kind: type[Reply], trigger: Trigger, trigger_hash: str, **more: object) -> Reply:
        """Something about a trigger; `more` are the fields of its kind."""
        of = {"run_id": trigger.run_id, "attempt": trigger.attempt, "trigger_hash": trigger_hash}
        return kind.model_validate({**of, **self._who(), **more})

    def outcome(self, run_id: str, attempt: int, trigger_hash: str, result: Result) -> OutcomeMessage:
        """How an attempt ended."""
        of = {"run_id": run_id, "attempt": attempt, "trigger_hash": trigger_hash}
        return OutcomeMessage.model_validate({**dict(result), **of, **self._who()})

    def report(
        self,
        query: Query,
        attempts: list[AttemptReport],
        clock: datetime,
        *,
        tombstoned: bool = False,
        tombstoned_for: str | None = None,
        cannot_tell: str | None = None,
    ) -> Report:
        """The answer to a query."""
        return Report(
            query_id=query.query_id,
            run_id=query.run_id,
            namespace=self.identity.namespace,
            pod=self.identity.pod,
            pod_uid=self.identity.pod_uid,
            attempt=query.attempt,
            attempts=attempts,
            tombstoned=tombstoned,
            tombstoned_for=tombstoned_for if tombstoned else None,
            cannot_tell=cannot_tell if cannot_tell is None else cannot_tell[:1000],
            clock=clock,
        )

    def _who(self) -> dict[str, str]:
        return {
            "namespace": self.identity.namespace,
            "pod": self.identity.pod,
            "pod_uid": self.identity.pod_uid,
        }


def refused(refusal: Refusal) -> Result:
    """The result of what was refused before it ran; `rejected` but for what was given up before it came."""
    outcome = Outcome.CANCELLED if refusal.code is ErrorCode.TOMBSTONED else Outcome.REJECTED
    return failure(outcome, refusal.code, refusal.message, refusal.rule)


def report_of(entry: Entry, *, with_output: bool) -> AttemptReport:
    """An attempt as the journal has it."""
    outcome = entry.outcome if with_output or entry.outcome is None else without_output(entry.outcome)
    return AttemptReport(
        run_id=entry.run_id,
        attempt=entry.attempt,
        state=entry.state,
        trigger_hash=entry.trigger_hash,
        name=entry.name,
        targets=entry.targets,
        issued_at=entry.issued_at,
        deadline=entry.deadline,
        changed_at=entry.changed_at,
        key_id=entry.kid or None,
        outcome=outcome,
    )
