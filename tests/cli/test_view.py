"""What is told of a run while it goes on, where there is no terminal: a line for each thing that matters."""

import pytest

from agent.cli.view import MANY_TARGETS, RunView
from agent.contract.messages import Result
from agent.contract.states import Outcome
from agent.coordinator import RunEvent, Target


def told(capsys, targets, *kinds):
    pods = tuple(Target("shop", f"db-{at}", str(at)) for at in range(targets))
    with RunView("freeze") as view:
        view(RunEvent("selected", "r", targets=pods))
        for kind in kinds:
            view(RunEvent(kind, "r", pods[0], 1, text="why" if kind == "retry" else ""))
        view(RunEvent("outcome", "r", pods[0], 1, result=Result(outcome=Outcome.SUCCEEDED)))
    return [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("targets", [1, MANY_TARGETS])
def test_of_a_few_targets_every_step_is_told(capsys, targets):
    steps = ("triggered", "accepted", "ready", "go", "started")
    assert told(capsys, targets, *steps)[1:] == [*(f"shop/db-0 {step}" for step in steps), "shop/db-0 succeeded"]


def test_of_many_targets_only_what_is_decided_or_goes_wrong_is_told(capsys):
    lines = told(capsys, MANY_TARGETS + 1, "triggered", "accepted", "started", "retry")
    assert lines[1:] == ["shop/db-0 retry - why", "shop/db-0 succeeded"]


def test_that_something_still_runs_is_no_news_but_what_became_of_it_is(capsys):
    job = Target("shop", "job", "")
    with RunView("migrate") as view:
        view(RunEvent("selected", "r", targets=(job,)))
        view(RunEvent("running", "r", job, 1))
        view(RunEvent("running", "r", job, 1, text="pending: ImagePullBackOff"))
    assert [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()][1:] == [
        "shop/job running - pending: ImagePullBackOff"
    ]
