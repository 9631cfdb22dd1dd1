"""What a run comes back with, and how it is written as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from agent.contract.messages import ErrorDetail, Result
from agent.contract.states import Outcome
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Verdict

log = structlog.get_logger("podhook.coordinator")


@dataclass(frozen=True, slots=True)
class TargetResult:
    """How a run ended on one target: the outcome of its last attempt."""

    target: Target
    attempt: int
    result: Result

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a target. Output that is not UTF-8 is base64, and says so."""
        return target_json(self.target, self.attempt, self.result)


def target_json(target: Target, attempt: int, result: Result | None) -> dict[str, Any]:
    """What is known of a target; without a result it has not ended."""
    return {
        "namespace": target.namespace,
        "pod": target.pod,
        "pod_uid": target.pod_uid,
        "outcome": str(result.outcome) if result else None,
        "attempt": attempt,
        **(_result_json(result) if result else {}),
    }


def _result_json(result: Result) -> dict[str, Any]:
    return {
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
        "error": error_json(result.error),
        "notes": result.notes,
    }


@dataclass(frozen=True, slots=True)
class RunResult:
    """One hook's run. `error` says why it was not started; `targets` stand in the order of their names.

    `verified`: every outcome that counts was signed with an agent key of its namespace. Otherwise whoever can publish
    to the broker may have said it. `missing` are selected pods without a live agent, without which it went on.
    """

    run_id: str
    hook: str
    verdict: Verdict
    started_at: datetime
    duration_seconds: float
    targets: tuple[TargetResult, ...] = ()
    error: ErrorDetail | None = None
    notes: tuple[str, ...] = ()
    verified: bool = False
    missing: tuple[Target, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The documented JSON object of a run."""
        return {
            "run_id": self.run_id,
            "hook": self.hook,
            "verdict": str(self.verdict),
            "started_at": time_json(self.started_at),
            "duration_ms": round(self.duration_seconds * 1000, 3),
            "verified": self.verified,
            "targets": [target.to_json() | {"verified": self._is_verified(target)} for target in self.targets],
            "error": error_json(self.error),
            "notes": list(self.notes),
        }

    def targets_by_outcome(self) -> dict[Outcome, int]:
        """How many targets ended how; without those that nobody ended in."""
        counts = dict.fromkeys(Outcome, 0)
        for each in self.targets:
            counts[each.result.outcome] += 1
        return {outcome: count for outcome, count in counts.items() if count}

    def _is_verified(self, target: TargetResult) -> bool | None:
        """None: the coordinator itself concluded it, and no agent said anything."""
        return None if target.result.outcome in (Outcome.UNREACHABLE, Outcome.LOST) else self.verified


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run, for people who watch.

    `kind` is one of `selected`, `triggered`, `accepted`, `ready`, `go`, `started`, `running`, `outcome`, `retry`,
    `asked`, `resent`, `cancelled`, `dropped`, `unverified`, `broker`.
    """

    kind: str
    run_id: str
    target: Target | None = None
    attempt: int = 0
    text: str = ""
    result: Result | None = None
    targets: tuple[Target, ...] = field(default=())


OnEvent = Callable[[RunEvent], None]


def ignore(_: RunEvent) -> None:
    """Nobody watches."""


def guarded(on_event: OnEvent) -> OnEvent:
    """Who watches a run must not be able to stop it: what the callback raises is logged."""

    def tell(event: RunEvent) -> None:
        try:
            on_event(event)
        except Exception:
            log.exception("event.callback_failed", run_id=event.run_id, kind=event.kind)

    return tell


def time_json(time: datetime | None) -> str | None:
    """RFC 3339, in UTC."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time is not None else None


def error_json(error: ErrorDetail | None) -> dict[str, str] | None:
    """Its stable code, and the sentence for people."""
    return {"code": error.code, "message": error.message} if error is not None else None
