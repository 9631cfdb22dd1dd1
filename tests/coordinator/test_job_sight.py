"""News of a Job may come twice, late, or not at all: what is known of its end is never taken back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.coordinator.job_sight import DELETED, JobEvent, JobSight
from agent.coordinator.job_states import JobEnd

Json = dict[str, Any]


def job(kind: str = "", uid: str = "j") -> Json:
    conditions = [{"type": kind, "status": "True", "reason": "", "message": ""}] if kind else []
    return {"metadata": {"uid": uid, "name": "j"}, "status": {"conditions": conditions}}


def pod(phase: str, state: Json | None = None, uid: str = "p", owner: str = "j") -> Json:
    return {
        "metadata": {"uid": uid, "ownerReferences": [{"uid": owner}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "function", "state": state}] if state else []},
    }


WAITING = pod("Pending", {"waiting": {"reason": "ContainerCreating"}})
RUNNING = pod("Running", {"running": {}})
EXITED = pod("Failed", {"terminated": {"exitCode": 3}})


def sight() -> tuple[JobSight, list[JobEvent]]:
    events: list[JobEvent] = []
    return JobSight(job(), events.append), events


def test_an_end_that_was_seen_stays():
    seen, _ = sight()
    seen.saw_job("MODIFIED", job("FailureTarget"))
    assert (seen.end, seen.over) == (JobEnd.FAILING, True)
    seen.saw_job("MODIFIED", job("Failed"))
    seen.saw_job("MODIFIED", job())  # a look that was slower than the watch
    assert seen.end is JobEnd.FAILED


def test_a_pod_that_ended_does_not_run_again():
    seen, events = sight()
    for each in (WAITING, RUNNING, EXITED, RUNNING):
        seen.saw_pod("MODIFIED", each)
    assert seen.pod == EXITED
    assert [each.kind for each in events] == ["pending", "running", "ended"]


def test_a_pod_that_is_not_in_a_list_is_gone_and_what_was_seen_of_it_stays():
    seen, _ = sight()
    seen.saw_pods([RUNNING])
    assert not seen.pod_gone
    seen.saw_pods([pod("Running", uid="another", owner="another")])
    assert seen.pod_gone
    assert seen.pod == RUNNING


def test_a_deletion_that_tells_nothing_more_does_not_wipe_away_what_was_seen():
    seen, _ = sight()
    seen.saw_pod("ADDED", EXITED)
    seen.saw_pod(DELETED, {"metadata": {"uid": "p"}})
    assert (seen.pod, seen.pod_gone) == (EXITED, True)


def test_a_deletion_may_be_the_first_word_of_an_end():
    seen, _ = sight()
    seen.saw_pod("ADDED", RUNNING)
    seen.saw_pod(DELETED, EXITED)
    assert seen.pod == EXITED
    seen.saw_job(DELETED, job("Complete"))
    assert (seen.end, seen.gone) == (JobEnd.COMPLETE, True)


def test_the_deletion_of_another_job_of_its_name_is_none_of_ours():
    seen, _ = sight()
    seen.saw_job(DELETED, job("Complete", uid="before"))
    assert (seen.end, seen.gone) == (None, False)


def test_it_is_settled_when_nothing_runs_any_more():
    seen, _ = sight()
    seen.saw_pod("ADDED", RUNNING)
    seen.saw_job("MODIFIED", job("Failed"))
    assert (seen.over, seen.settled) == (True, False)
    seen.saw_pod("MODIFIED", EXITED)
    assert seen.settled


STORY = [("job", job()), ("pod", WAITING), ("pod", RUNNING), ("pod", EXITED), ("job", job("Failed"))]


@given(st.permutations([*STORY, *STORY]))
def test_in_any_order_and_however_often_the_end_is_the_same(news):
    seen, events = sight()
    for what, item in news:
        (seen.saw_job if what == "job" else seen.saw_pod)("MODIFIED", item)
    assert (seen.end, seen.pod, seen.settled) == (JobEnd.FAILED, EXITED, True)
    assert events[-1] == JobEvent("ended", "exit code 3")
