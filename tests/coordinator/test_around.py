"""The decisions of an operation, as tables: which post hooks are due, what the shell hears, what templates read."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from agent.contract.messages import ErrorDetail
from agent.contract.outcomes import failure
from agent.contract.plans import Phase
from agent.contract.states import Outcome
from agent.contract.templates import load_hooks
from agent.coordinator import HookCall, RunResult, Target, TargetResult, Verdict
from agent.coordinator.around import (
    CommandEnd,
    HookEnd,
    Kind,
    Pre,
    State,
    error_text,
    exit_code,
    is_due,
    judged,
    left_behind,
    operation_succeeded,
)
from agent.coordinator.plan import PlannedHook

PODS = "action: {exec: {command: [x]}}\nexecutor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}"
HERE = "action: {exec: {command: [x]}}\nexecutor: {type: Operator}"
FINE, WRONG, KILLED = CommandEnd(exit_code=0), CommandEnd(exit_code=7), CommandEnd(signal=9)
ABSENT = CommandEnd(exit_code=127, error="command 'x' was not found")


def planned(title="freeze", phase=Phase.PRE_BACKUP, text=PODS, **call) -> PlannedHook:
    return PlannedHook(phase, 0, title, "Always", HookCall(load_hooks(text)[0], **call))


def result(outcome, code="exit_code"):
    if outcome is Outcome.SUCCEEDED:
        from agent.contract.messages import Result

        return Result(outcome=outcome, exit_code=0)
    return failure(outcome, code, "it said $(rm -rf /) `x`")


def run_of(missing=(), verdict=None, error=None, **outcomes) -> RunResult:
    """A run with one target a keyword: `db_0=Outcome.FAILED`."""
    targets = tuple(
        TargetResult(Target("shop", pod.replace("_", "-"), "u"), 1, result(*(of if isinstance(of, tuple) else (of,))))
        for pod, of in outcomes.items()
    )
    good = targets and all(each.result.outcome is Outcome.SUCCEEDED for each in targets)
    verdict = verdict or (Verdict.SUCCEEDED if good else Verdict.FAILED)
    gone = tuple(Target("shop", pod, "u") for pod in missing)
    return RunResult("r", "hook", verdict, datetime.now(UTC), 1.0, targets, error, (), False, gone)


@pytest.mark.parametrize(
    ("kind", "pre", "succeeded", "due"),
    [
        (Kind.BACKUP, Pre.PASSED, True, {"Always", "OnSuccess"}),
        (Kind.BACKUP, Pre.PASSED, False, {"Always", "OnFailure"}),
        (Kind.BACKUP, Pre.FAILED, False, {"Always", "OnFailure"}),
        (Kind.BACKUP, Pre.STOPPED, False, {"Always", "OnFailure"}),
        (Kind.RESTORE, Pre.PASSED, True, {"Always", "OnSuccess"}),
        (Kind.RESTORE, Pre.PASSED, False, {"Always", "OnFailure"}),
        (Kind.RESTORE, Pre.FAILED, False, {"OnFailure"}),
        (Kind.RESTORE, Pre.STOPPED, False, {"OnFailure"}),
    ],
)
def test_which_post_hooks_have_their_turn(kind, pre, succeeded, due):
    policies = ("Always", "OnSuccess", "OnFailure")
    assert {each for each in policies if is_due(each, kind, pre, succeeded=succeeded)} == due


def ends(*states):
    return [HookEnd(planned(), state) for state in states]


OK, BAD, LEFT, PASSED_OVER = State.SUCCEEDED, State.FAILED, State.NOT_RUN, State.SKIPPED


@pytest.mark.parametrize(
    ("pre", "command", "posts", "stopped", "warn_only", "code"),
    [
        (Pre.PASSED, FINE, [], False, False, 0),
        (Pre.PASSED, FINE, [OK, PASSED_OVER], False, False, 0),
        (Pre.PASSED, FINE, [OK, BAD], False, False, 123),
        (Pre.PASSED, FINE, [OK, BAD], False, True, 0),
        (Pre.PASSED, FINE, [BAD, LEFT], True, False, 125),
        (Pre.PASSED, FINE, [BAD, LEFT], True, True, 125),  # who interrupts is told so, whatever hooks may do
        (Pre.PASSED, FINE, [OK, OK], True, False, 0),  # the hook was done before it could be ended
        (Pre.PASSED, WRONG, [OK], False, False, 7),
        (Pre.PASSED, WRONG, [BAD], True, False, 7),  # a command's own code is never hidden
        (Pre.PASSED, KILLED, [OK], False, False, 137),
        (Pre.PASSED, ABSENT, [OK], False, False, 127),
        (Pre.FAILED, None, [OK], False, False, 122),
        (Pre.FAILED, None, [BAD], True, True, 122),  # the command did not run: no option makes that a success
        (Pre.STOPPED, None, [OK], False, False, 125),
        (Pre.STOPPED, None, [BAD], False, False, 125),
    ],
)
def test_what_the_shell_hears(pre, command, posts, stopped, warn_only, code):
    assert exit_code(pre, command, ends(*posts), stopped=stopped, warn_only=warn_only) == code


def test_0_is_only_said_of_a_command_that_ran_and_succeeded():
    posts = [[], [OK], [BAD], [LEFT], [PASSED_OVER]]
    for pre, command, states, stopped, warn in itertools.product(
        Pre, (None, FINE, WRONG, KILLED, ABSENT), posts, (False, True), (False, True)
    ):
        if exit_code(pre, command, ends(*states), stopped=stopped, warn_only=warn) == 0:
            assert operation_succeeded(pre, command)
            assert warn or not {BAD, LEFT} & set(states)


@pytest.mark.parametrize(
    ("run", "wanted", "state", "why"),
    [
        (run_of(db_0=Outcome.SUCCEEDED), [], OK, ""),
        (run_of(db_0=Outcome.SUCCEEDED), ["db-0"], OK, ""),
        (run_of(db_0=Outcome.SUCCEEDED), ["db-0", "db-1"], BAD, "succeeded, but not in shop/db-1: no live agent there"),
        (run_of(["db-1"], db_0=Outcome.SUCCEEDED), [], BAD, "succeeded, but not in shop/db-1: no live agent there"),
        (run_of(db_0=Outcome.SUCCEEDED, db_1=Outcome.LOST), [], BAD, "failed: 1 succeeded, 1 lost"),
        (
            run_of(verdict=Verdict.NOT_STARTED, error=ErrorDetail(code="no_targets", message="nobody")),
            ["db-0"],
            BAD,
            "not_started: nobody",
        ),
    ],
)
def test_what_became_of_a_hook(run, wanted, state, why):
    end = judged(planned(), run, [("shop", pod) for pod in wanted])
    assert (end.state, end.why) == (state, why)


def test_missing_agents_that_are_allowed_fail_no_hook():
    assert judged(planned(allow_missing=True), run_of(["db-1"], db_0=Outcome.SUCCEEDED)).state is OK


@pytest.mark.parametrize(
    ("pre", "post", "left"),
    [
        (run_of(db_0=Outcome.SUCCEEDED, db_1=Outcome.SUCCEEDED), run_of(db_0=Outcome.SUCCEEDED), ("shop/db-1",)),
        (
            run_of(db_0=Outcome.FAILED),
            run_of(db_0=Outcome.FAILED),
            ("shop/db-0",),
        ),  # a freeze that failed may have frozen
        (run_of(db_0=Outcome.LOST), run_of(db_0=Outcome.SUCCEEDED), ()),
        (run_of(db_0=(Outcome.REJECTED, "policy_denied")), run_of(db_0=Outcome.FAILED), ()),  # nothing ever ran there
        (run_of(db_0=Outcome.UNREACHABLE), None, ()),
    ],
)
def test_pods_that_a_pre_hook_was_in_and_no_post_hook_reached(pre, post, left):
    thaw = planned("thaw", Phase.POST_BACKUP)
    posts = [HookEnd(thaw, OK if post else BAD, run=post)]
    assert left_behind([HookEnd(planned(), OK, run=pre)], posts) == left


def test_nobody_is_left_behind_by_a_plan_without_post_hooks_for_pods_or_by_what_runs_here():
    froze = HookEnd(planned(), OK, run=run_of(db_0=Outcome.SUCCEEDED))
    assert left_behind([froze], []) == ()
    assert left_behind([froze], [HookEnd(planned("tell", Phase.POST_BACKUP, HERE), OK)]) == ()
    of_ours = HookEnd(planned("job", text=HERE), OK, run=run_of(job=Outcome.SUCCEEDED))
    assert left_behind([of_ours], [HookEnd(planned("thaw", Phase.POST_BACKUP), BAD)]) == ()


@pytest.mark.parametrize(
    ("pres", "command", "more", "text"),
    [
        ([], FINE, {}, ""),
        ([], WRONG, {}, "the command exited with code 7"),
        ([], KILLED, {}, "the command was ended by signal 9: exit code 137"),
        ([], ABSENT, {}, "the command could not be started: exit code 127"),
        (
            [HookEnd(planned(), BAD, run=run_of(db_0=Outcome.SUCCEEDED, db_1=Outcome.FAILED))],
            None,
            {},
            "preBackup hook freeze failed: 1 succeeded, 1 failed",
        ),
        ([HookEnd(planned(), BAD, "x")], None, {}, "preBackup hook freeze failed: not run"),
        ([HookEnd(planned(), BAD)], None, {"stopped_by": "SIGTERM"}, "stopped by SIGTERM before the command ran"),
        ([], None, {"refused": True}, "a hook could not begin, and nothing was run"),
        ([HookEnd(planned("$(id)';`x`\n"), BAD)], None, {}, "preBackup hook ??id????x?? failed: not run"),
    ],
)
def test_what_templates_read_as_the_error_has_nothing_in_it_that_a_hook_wrote(pres, command, more, text):
    assert error_text(pres, command, **more) == text


def test_it_is_never_longer_than_what_was_tried_before_anything_ran():
    assert len(error_text([HookEnd(planned("n" * 5000), BAD)], None)) == 500
