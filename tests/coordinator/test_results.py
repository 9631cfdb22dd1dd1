"""The documented JSON, key by key."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from agent.contract.messages import CapturedStream, ErrorDetail, Result
from agent.contract.states import Outcome
from agent.coordinator import RunResult, Target, TargetResult, Verdict

AT = datetime(2026, 3, 1, 2, 30, 0, 250000, tzinfo=UTC)
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_a_run_is_exactly_this_json():
    result = Result(
        outcome=Outcome.FAILED,
        exit_code=3,
        stdout=CapturedStream(text="ü\n", total_bytes=3),
        stderr=CapturedStream(text="/wA=", encoding="base64", total_bytes=90_000, truncated=True),
        duration_seconds=1.23456,
        started_at=AT,
        error=ErrorDetail(code="exit_code", message="exited with code 3"),
        notes=["left running: 42"],
    )
    target = TargetResult(Target("shop", "db-0", "uid"), 2, result)
    run = RunResult(RUN, "freeze", Verdict.FAILED, AT, 2.5, (target,), None, ("a note",))
    assert json.loads(json.dumps(run.to_json())) == {
        "run_id": RUN,
        "hook": "freeze",
        "verdict": "failed",
        "started_at": "2026-03-01T02:30:00.250000Z",
        "duration_ms": 2500.0,
        "targets": [
            {
                "namespace": "shop",
                "pod": "db-0",
                "pod_uid": "uid",
                "outcome": "failed",
                "attempt": 2,
                "exit_code": 3,
                "signal": None,
                "http_status": None,
                "stdout": "ü\n",
                "stderr": "/wA=",
                "stdout_encoding": "utf-8",
                "stderr_encoding": "base64",
                "stdout_bytes": 3,
                "stderr_bytes": 90_000,
                "truncated": True,
                "duration_ms": 1234.56,
                "error": {"code": "exit_code", "message": "exited with code 3"},
                "notes": ["left running: 42"],
                "verified": False,
            }
        ],
        "verified": False,
        "error": None,
        "notes": ["a note"],
    }


def test_a_run_that_was_not_started_says_why_and_has_no_targets():
    error = ErrorDetail(code="no_targets", message="nobody")
    run = RunResult(RUN, "freeze", Verdict.NOT_STARTED, AT, 0.5, error=error).to_json()
    assert (run["verdict"], run["targets"]) == ("not_started", [])
    assert run["error"] == {"code": "no_targets", "message": "nobody"}


def test_signal_and_status_have_their_own_keys():
    killed = TargetResult(Target("a", "b", "c"), 1, Result(outcome=Outcome.FAILED, signal="SIGKILL")).to_json()
    refused = TargetResult(Target("a", "b", "c"), 1, Result(outcome=Outcome.FAILED, http_status=503)).to_json()
    assert (killed["signal"], killed["exit_code"], killed["error"]) == ("SIGKILL", None, None)
    assert (refused["http_status"], refused["truncated"]) == (503, False)
