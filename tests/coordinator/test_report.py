"""The report of `podhook around`, byte for byte, as docs/around.md has it (PODHOOK_GOLDEN=write writes it anew)."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from agent.contract.messages import CapturedStream, Result
from agent.contract.outcomes import failure
from agent.contract.plans import Phase
from agent.contract.states import Outcome
from agent.contract.templates import load_hooks
from agent.coordinator import HookCall, RunResult, Target, TargetResult, Verdict
from agent.coordinator.around import CommandEnd, HookEnd, Kind, Pre, State
from agent.coordinator.operation import Record
from agent.coordinator.plan import PlannedHook, Status
from agent.coordinator.report import report_of, report_of_nothing

GOLDEN = Path(__file__).parent / "golden" / "around-report.json"
AT = datetime(2026, 3, 1, 2, 30, 0, tzinfo=UTC)
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
HOOK = "action: {exec: {command: [x]}}\nexecutor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}"


def hook(title, phase, policy="Always"):
    return PlannedHook(phase, 0, title, policy, HookCall(load_hooks(HOOK)[0]))


def run(*results):
    targets = tuple(TargetResult(Target("shop", f"db-{at}", f"uid-{at}"), 1, each) for at, each in enumerate(results))
    good = all(each.outcome is Outcome.SUCCEEDED for each in results)
    return RunResult(RUN, "hook", Verdict.SUCCEEDED if good else Verdict.FAILED, AT, 1.5, targets)


def operation() -> Record:
    fine = Result(outcome=Outcome.SUCCEEDED, exit_code=0, stdout=CapturedStream(text="ok\n", total_bytes=3))
    lost = failure(Outcome.LOST, "silent", "silent since 10 s")
    return Record(
        kind=Kind.BACKUP,
        program="restic",
        started_at=AT,
        stage="ended",
        pre=Pre.PASSED,
        pres=[HookEnd(hook("freeze", Phase.PRE_BACKUP), State.SUCCEEDED, run=run(fine, fine))],
        command=CommandEnd(signal=15, seconds=61.25),
        status=Status("Failed", "1m1.25s", "the command was ended by signal 15: exit code 143"),
        posts=[
            HookEnd(
                hook("thaw", Phase.POST_BACKUP),
                State.FAILED,
                "failed: 1 succeeded, 1 lost",
                run(fine, lost),
                ("shop/db-1",),
            ),
            HookEnd(hook("tell", Phase.POST_BACKUP, "OnSuccess"), State.SKIPPED, "OnSuccess, and the operation failed"),
        ],
        signals=["SIGTERM"],
        seconds=70.0,
        exit_code=143,
    )


def test_the_report_is_exactly_this():
    text = json.dumps(report_of(operation(), plan="nightly", namespace="shop"), indent=2) + "\n"
    if os.environ.get("PODHOOK_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_one_of_nothing_has_the_same_fields_and_one_in_the_middle_too():
    whole = report_of(operation(), plan="nightly", namespace="shop")
    nothing = report_of_nothing(plan="p", operation="backup", code="invalid_plan", message="no", exit_code=121)
    assert nothing.keys() == whole.keys()
    record = Record(Kind.BACKUP, "restic", AT)
    record.running = (hook("freeze", Phase.PRE_BACKUP), RUN)
    begun = report_of(record, plan="nightly", namespace="shop")
    assert begun.keys() == whole.keys()
    assert begun["running"] == {"list": "preBackup", "name": "freeze", "run_id": RUN}
    assert (begun["stage"], begun["exit_code"], begun["command"]["ran"]) == ("pre", None, False)


def test_every_field_is_documented():
    text = (Path(__file__).parent.parent.parent / "docs" / "around.md").read_text()
    report = report_of(operation(), plan="nightly", namespace="shop")
    for name in [*report, *report["command"], *report["hooks"][0], *report["status"]]:
        assert f"`{name}`" in text, f"docs/around.md does not explain {name}"
