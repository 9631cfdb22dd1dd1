"""What a run comes back with, and how it is written as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agent.contract.errors import ErrorCode
from agent.contract.messages import ErrorDetail, Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Verdict


@dataclass(frozen=True, slots=True)
class TargetResult:
    """How a run ended on one target: the outcome of its last attempt."""

    target: Target
    attempt: int
    result: Result

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a target. Output that is not UTF-8 is base64, and says so."""
        result = self.result
        return {
            "namespace": self.target.namespace,
            "pod": self.target.pod,
            "pod_uid": self.target.pod_uid,
            "outcome": str(result.outcome),
            "attempt": self.attempt,
            "exit_code": result.exit_code,
            "signal": result.signal,
            "http_status": result.http_status,
            "stdout": result.stdout.text,
            "stderr": result.stderr.text,
            "stdout_encoding": result.stdout.encoding,
            "stderr_encoding": result.stderr.encoding,
            "stdout_bytes": result.stdout.total_bytes,
            "stderr_bytes": result.stderr.total_bytes,
            "truncated": result.stdout.truncated or result.stderr.truncated,
            "duration_ms": round(result.duration_seconds * 1000, 3),
            "error": _error(result.error),
            "notes": result.notes,
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """One hook's run. `error` says why it was not started; `targets` stand in the order of their names."""

    run_id: str
    hook: str
    verdict: Verdict
    started_at: datetime
    duration_seconds: float
    targets: tuple[TargetResult, ...] = ()
    error: ErrorDetail | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a run."""
        return {
            "run_id": self.run_id,
            "hook": self.hook,
            "verdict": str(self.verdict),
            "started_at": self.started_at.isoformat().replace("+00:00", "Z"),
            "duration_ms": round(self.duration_seconds * 1000, 3),
            "targets": [target.to_json() for target in self.targets],
            "error": _error(self.error),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run, for people who watch.

    `kind` is one of `selected`, `triggered`, `accepted`, `ready`, `go`, `started`, `running`, `outcome`, `retry`,
    `asked`, `resent`, `cancelled`, `dropped`, `broker`.
    """

    kind: str
    run_id: str
    target: Target | None = None
    attempt: int = 0
    text: str = ""
    result: Result | None = None
    targets: tuple[Target, ...] = field(default=())


OnEvent = Callable[[RunEvent], None]


def said_by_coordinator(outcome: Outcome, code: ErrorCode, message: str) -> Result:
    """`unreachable` or `lost`: what a coordinator concludes from silence."""
    return failure(outcome, code, message)


def _error(error: ErrorDetail | None) -> dict[str, str] | None:
    return {"code": error.code, "message": error.message} if error is not None else None
