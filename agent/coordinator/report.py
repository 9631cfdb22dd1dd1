"""What `podhook around --report` writes: one JSON object, documented in docs/around.md. Pure."""

from __future__ import annotations

from typing import Any

from agent.contract.plans import API_VERSION
from agent.coordinator.around import CommandEnd, HookEnd
from agent.coordinator.operation import Record
from agent.coordinator.results import time_json
from agent.pod.processes import signal_name

KIND = "AroundReport"


def report_of(record: Record, *, plan: str, namespace: str) -> dict[str, Any]:
    """The documented JSON object of an operation, as far as it has come.

    Of the command only its name is in it: arguments hold passwords. What hooks printed is, redacted by their agents.
    """
    return {
        **_head(plan, namespace),
        "operation": str(record.kind),
        "stage": record.stage,
        "started_at": time_json(record.started_at),
        "duration_ms": round(record.seconds * 1000, 3),
        "error": {"code": "not_begun", "message": record.refused} if record.refused else None,
        "status": (
            {"phase": record.status.phase, "duration": record.status.duration, "error": record.status.error}
            if record.status is not None
            else None
        ),
        "command": _command(record.program, record.command),
        "hooks": [_hook(each) for each in (*record.pres, *record.posts)],
        "running": (
            {"list": str(record.running[0].phase), "name": record.running[0].title, "run_id": record.running[1]}
            if record.running is not None
            else None
        ),
        "signals": list(record.signals),
        "unreached": list(record.unreached) if record.stage == "ended" else [],
        "exit_code": record.exit_code,
    }


def report_of_nothing(*, plan: str, operation: str, code: str, message: str, exit_code: int) -> dict[str, Any]:
    """The same object where nothing was begun: the plan cannot be used, or nobody could be asked."""
    return {
        **_head(plan, ""),
        "operation": operation,
        "stage": "ended",
        "started_at": None,
        "duration_ms": 0.0,
        "error": {"code": code, "message": message},
        "status": None,
        "command": None,
        "hooks": [],
        "running": None,
        "signals": [],
        "unreached": [],
        "exit_code": exit_code,
    }


def _head(plan: str, namespace: str) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "plan": {"name": plan, "namespace": namespace}}


def _command(program: str, end: CommandEnd | None) -> dict[str, Any]:
    return {
        "program": program,
        "ran": end is not None and not end.error,
        "exit_code": end.code if end is not None else None,
        "signal": signal_name(end.signal) if end is not None and end.signal is not None else None,
        "duration_ms": round(end.seconds * 1000, 3) if end is not None else None,
        "error": (end.error or None) if end is not None else None,
    }


def _hook(end: HookEnd) -> dict[str, Any]:
    return {
        "list": str(end.hook.phase),
        "name": end.hook.title,
        "executionPolicy": end.hook.policy,
        "state": str(end.state),
        "why": end.why or None,
        "unreached": list(end.unreached),
        "run": end.run.to_json() if end.run is not None else None,
    }
