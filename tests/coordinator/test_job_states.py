"""What a Job and its pod amount to: as Kubernetes 1.25 to 1.36 show them, one row a case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.messages import Result
from agent.coordinator.job_states import (
    JobEnd,
    PodState,
    began,
    began_at,
    gone,
    job_end,
    never_began,
    pod_over,
    pod_state,
    result_of,
)

WHAT = "Job shop/podhook-1"


def ended_job(kind="Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit"):
    conditions = [
        {"type": "Suspended", "status": "False"},
        {"type": kind, "status": "True", "reason": reason, "message": message},
    ]
    return {"metadata": {"uid": "j"}, "status": {"conditions": conditions}}


DEADLINE = ended_job(reason="DeadlineExceeded", message="Job was active longer than specified deadline")
FAILED = ended_job()


def pod(state=None, phase="Running", *, node="node-1", conditions=(), containers=(), memory=None, **metadata):
    statuses = [*containers, {"name": "function", "state": state}] if state is not None else list(containers)
    status = {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses}
    status |= {name: metadata.pop(name) for name in ("reason", "message", "initContainerStatuses") if name in metadata}
    spec = {"nodeName": node, "containers": [{"name": "function"}]}
    if memory:
        spec["containers"][0]["resources"] = {"limits": {"memory": memory}}
    return {"metadata": {"name": "p", "uid": "p", **metadata}, "spec": spec, "status": status}


def terminated(code, reason="Error", **more):
    times = {"startedAt": "2024-05-01T10:00:00Z", "finishedAt": "2024-05-01T10:00:05Z"}
    return {"terminated": {"exitCode": code, "reason": reason, **times, **more}}


def failed_pod(code, reason="Error", **more):
    return pod(terminated(code, reason), "Failed", **more)


RUNNING = {"running": {"startedAt": "2024-05-01T10:00:00Z"}}
BACK_OFF = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image\n"nosuch:1"'}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available",
}
DISRUPTED = {
    "type": "DisruptionTarget",
    "status": "True",
    "reason": "EvictionByEvictionAPI",
    "message": "Eviction API: evicting",
}


# --- the Job


@pytest.mark.parametrize(
    ("job", "end"),
    [
        ({}, None),
        ({"status": {"active": 1}}, None),
        ({"status": {"conditions": [{"type": "Failed", "status": "False"}]}}, None),
        ({"status": {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}}, None),
        (ended_job("Complete", "", ""), (JobEnd.COMPLETE, "", "")),
        (ended_job("FailureTarget", "DeadlineExceeded", "m"), (JobEnd.FAILING, "DeadlineExceeded", "m")),
        (ended_job("Failed", "DeadlineExceeded", "m"), (JobEnd.FAILED, "DeadlineExceeded", "m")),
    ],
)
def test_how_a_job_stands(job, end):
    assert job_end(job) == end


def test_failed_is_more_than_that_it_will_fail():
    job = ended_job("FailureTarget", "DeadlineExceeded", "m")
    job["status"]["conditions"].append({"type": "Failed", "status": "True", "reason": "r", "message": "n"})
    assert job_end(job) == (JobEnd.FAILED, "r", "n")


# --- the pod, for those who watch


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (pod(phase="Pending", node=None), PodState("pending", "no node yet")),
        (
            pod(phase="Pending", node=None, conditions=[UNSCHEDULABLE]),
            PodState("pending", "Unschedulable: 0/3 nodes are available"),
        ),
        (pod(phase="Pending"), PodState("pending", "scheduled on node-1")),
        (pod({"waiting": {"reason": "ContainerCreating"}}, "Pending"), PodState("pending", "ContainerCreating")),
        (pod(BACK_OFF, "Pending"), PodState("pending", 'ImagePullBackOff: Back-off pulling image "nosuch:1"')),
        (
            pod(phase="Pending", initContainerStatuses=[{"name": "istio-init", "state": BACK_OFF}]),
            PodState("pending", 'ImagePullBackOff: Back-off pulling image "nosuch:1"'),
        ),
        (pod(RUNNING), PodState("running", "on node-1")),
        (pod(terminated(0, "Completed"), "Succeeded"), PodState("ended", "exit code 0")),
        (failed_pod(3), PodState("ended", "exit code 3")),
        (failed_pod(137, "OOMKilled"), PodState("ended", "exit code 137 (SIGKILL), OOMKilled")),
        (pod(phase="Failed", reason="Evicted", message="disk"), PodState("ended", "Evicted: disk")),
        (pod(phase="Failed"), PodState("ended", "its pod is over")),
        (pod(RUNNING, containers=[{"name": "istio", "state": BACK_OFF}]), PodState("running", "on node-1")),
        ({}, PodState("pending", "no node yet")),
    ],
)
def test_what_there_is_to_tell_of_a_pod(seen, state):
    assert pod_state(seen) == state


def test_what_kubernetes_says_is_cut():
    text = pod_state(pod({"waiting": {"reason": "r", "message": "x" * 1000}}, "Pending")).text
    assert len(text) == 303
    assert text.endswith("x...")


@pytest.mark.parametrize(
    ("seen", "did", "never"),
    [
        (pod(phase="Pending", node=None), False, True),
        (pod(phase="Pending"), False, False),
        (pod(BACK_OFF, "Pending"), False, True),
        (pod(RUNNING), True, False),
        (failed_pod(1), True, False),
        (failed_pod(128, "StartError"), False, True),
        (failed_pod(127, "ContainerCannotRun"), False, True),
        (pod({"waiting": {"reason": "PodInitializing"}}), False, True),
        (pod(phase="Failed", reason="OutOfmemory"), False, True),
        (pod(phase="Failed", reason="NodeAffinity"), False, True),
        (pod(phase="Failed", reason="Evicted"), False, False),
        (pod(phase="Failed"), False, False),
    ],
)
def test_whether_it_ever_began(seen, did, never):
    assert (began(seen), never_began(seen)) == (did, never)


def test_when_it_began():
    assert began_at(pod(RUNNING)).isoformat() == "2024-05-01T10:00:00+00:00"
    assert began_at(failed_pod(1)).isoformat() == "2024-05-01T10:00:00+00:00"
    for odd in (None, "", "soon", "1970-01-01T00:00:00Z", 5):
        assert began_at(pod({"running": {"startedAt": odd}})) is None
    assert began_at(pod(BACK_OFF)) is None


def test_a_pod_is_over_when_its_phase_says_so():
    assert [pod_over({"status": {"phase": each}}) for each in ("Pending", "Running", "Succeeded", "Failed")] == [
        False,
        False,
        True,
        True,
    ]
    assert not pod_over({})


# --- how an attempt ended

DELETED = {"deletionTimestamp": "2024-05-01T10:00:34Z", "deletionGracePeriodSeconds": 30}  # asked for at 10:00:04
INTERRUPTED = "Job shop/podhook-1 was interrupted: {}; whether it took effect is unknown"


@pytest.mark.parametrize(
    ("job", "seen", "outcome", "code", "message", "exit_code", "signal"),
    [
        (ended_job("Complete", ""), pod(terminated(0), "Succeeded"), "succeeded", None, None, 0, None),
        (ended_job("Complete", ""), None, "succeeded", None, None, 0, None),
        (FAILED, failed_pod(3), "failed", "exit_code", f"{WHAT} ended with exit code 3", 3, None),
        (FAILED, failed_pod(143), "failed", "signal", f"{WHAT} ended with exit code 143 (SIGTERM)", 143, "SIGTERM"),
        (FAILED, failed_pod(255), "failed", "exit_code", f"{WHAT} ended with exit code 255", 255, None),
        (
            FAILED,
            failed_pod(137, "OOMKilled", memory="64Mi"),
            "failed",
            "out_of_memory",
            f"{WHAT} was killed: out of memory (limit 64Mi); raise resources.limits.memory",
            137,
            "SIGKILL",
        ),
        (
            FAILED,
            pod(
                {
                    "terminated": {
                        "exitCode": 128,
                        "reason": "StartError",
                        "message": 'exec: "migrat": not found',
                        "startedAt": "1970-01-01T00:00:00Z",
                    }
                },
                "Failed",
            ),
            "failed",
            "start_failed",
            f'{WHAT} failed before its container began: StartError: exec: "migrat": not found',
            None,
            None,
        ),
        (
            FAILED,
            pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"),
            "failed",
            "start_failed",
            f"{WHAT} failed before its container began: OutOfcpu: Node didn't have enough resource: cpu",
            None,
            None,
        ),
        (
            FAILED,
            pod(BACK_OFF, "Failed", reason="Evicted", message="The node was low on memory"),
            "failed",
            "start_failed",
            f"{WHAT} failed before its container began: its pod was ended (Evicted: The node was low on memory)",
            None,
            None,
        ),
        (  # the kubelet has wiped away what it knew of the container: it may have run
            FAILED,
            pod(phase="Failed", reason="Evicted", message="The node was low on memory"),
            "interrupted",
            "pod_gone",
            INTERRUPTED.format("its pod was ended (Evicted: The node was low on memory)"),
            None,
            None,
        ),
        (
            FAILED,
            pod(phase="Failed", node=None, conditions=[DISRUPTED | {"reason": "DeletionByPodGC", "message": ""}]),
            "failed",
            "start_failed",
            f"{WHAT} failed before its container began: its pod was ended (DeletionByPodGC)",
            None,
            None,
        ),
        (
            DEADLINE,
            pod(phase="Failed"),
            "timed_out",
            "timeout",
            f"{WHAT} did not end within its timeout of 5m; raise the timeout if it needs longer",
            None,
            None,
        ),
        (FAILED, failed_pod(137), "failed", "signal", f"{WHAT} ended with exit code 137 (SIGKILL)", 137, "SIGKILL"),
        (
            FAILED,
            failed_pod(137, conditions=[DISRUPTED]),
            "interrupted",
            "pod_gone",
            INTERRUPTED.format("its pod was ended (EvictionByEvictionAPI: Eviction API: evicting)"),
            137,
            "SIGKILL",
        ),
        (
            FAILED,
            failed_pod(137, "ContainerStatusUnknown"),
            "interrupted",
            "pod_gone",
            INTERRUPTED.format("its node lost sight of it (ContainerStatusUnknown)"),
            None,
            None,
        ),
        (
            FAILED,
            failed_pod(143, **DELETED),
            "interrupted",
            "pod_gone",
            INTERRUPTED.format("its pod was deleted by somebody"),
            143,
            "SIGTERM",
        ),
        (
            FAILED,
            pod(RUNNING, **DELETED),
            "interrupted",
            "pod_gone",
            INTERRUPTED.format("its pod was deleted by somebody"),
            None,
            None,
        ),
        (
            FAILED,
            failed_pod(3, **(DELETED | {"deletionTimestamp": "2024-05-01T10:01:34Z"})),
            "failed",
            "exit_code",
            f"{WHAT} ended with exit code 3",
            3,
            None,
        ),
        (
            FAILED,
            None,
            "interrupted",
            "pod_gone",
            (
                f"{WHAT} failed, and its pod is gone (BackoffLimitExceeded: Job has reached the specified backoff "
                "limit); whether it took effect is unknown"
            ),
            None,
            None,
        ),
        (
            FAILED,
            pod(
                terminated(0, "Completed"),
                "Failed",
                containers=[{"name": "istio", "state": terminated(2)}],
            ),
            "failed",
            "exit_code",
            (
                f"{WHAT} failed although its own container ended with exit code 0: container 'istio' of its pod ended "
                "with exit code 2"
            ),
            0,
            None,
        ),
        (
            FAILED,
            pod(RUNNING, "Failed", reason="Odd", message="thing"),
            "failed",
            "internal",
            f"{WHAT} failed: Odd: thing",
            None,
            None,
        ),
        (
            DEADLINE,
            pod(RUNNING),
            "timed_out",
            "timeout",
            f"{WHAT} did not end within its timeout of 5m; raise the timeout if it needs longer",
            None,
            None,
        ),
        (
            ended_job("FailureTarget", "DeadlineExceeded"),
            failed_pod(137, **DELETED),
            "timed_out",
            "timeout",
            f"{WHAT} did not end within its timeout of 5m; raise the timeout if it needs longer",
            137,
            "SIGKILL",
        ),
        (
            DEADLINE,
            pod(BACK_OFF, "Pending"),
            "timed_out",
            "timeout",
            (
                f"{WHAT} did not end within its timeout of 5m; its container never began: ImagePullBackOff: Back-off "
                'pulling image "nosuch:1"'
            ),
            None,
            None,
        ),
        (
            DEADLINE,
            None,
            "timed_out",
            "timeout",
            (
                f"{WHAT} did not end within its timeout of 5m; no pod of it was seen: if a quota, Pod Security or an "
                "admission webhook refused it, kubectl describe says so"
            ),
            None,
            None,
        ),
    ],
)
def test_how_an_attempt_ended(job, seen, outcome, code, message, exit_code, signal):
    result = result_of(job, seen, WHAT, 300)
    assert result.outcome == outcome
    assert (result.error and result.error.code, result.error and result.error.message) == (code, message)
    assert (result.exit_code, result.signal) == (exit_code, signal)


def test_a_pod_that_vanished_while_it_ran_was_deleted():
    result = result_of(FAILED, pod(RUNNING), WHAT, 300, pod_gone=True)
    assert (result.outcome, result.error.code) == ("interrupted", "pod_gone")
    ended = result_of(FAILED, failed_pod(3), WHAT, 300, pod_gone=True)
    assert (ended.outcome, ended.exit_code) == ("failed", 3)


def test_a_job_that_was_deleted_may_have_taken_effect():
    assert gone(WHAT).outcome == "interrupted"
    assert gone(WHAT).error.code == "job_deleted"


def test_a_job_that_runs_has_no_result():
    with pytest.raises(ValueError, match="has not ended"):
        result_of({"status": {"active": 1}}, pod(RUNNING), WHAT, 300)


_STATES = st.dictionaries(
    st.sampled_from(["running", "waiting", "terminated"]),
    st.dictionaries(st.sampled_from(["exitCode", "signal"]), st.integers(-2, 300), max_size=2)
    | st.dictionaries(st.sampled_from(["reason", "message", "startedAt", "finishedAt"]), st.text(max_size=5)),
)


@given(
    st.sampled_from([FAILED, DEADLINE, ended_job("Complete", ""), ended_job("FailureTarget", "x")]),
    st.none() | st.builds(pod, st.none() | _STATES, st.sampled_from(["Pending", "Running", "Failed", "Unknown", ""])),
    st.booleans(),
)
def test_every_pod_gives_a_result_and_only_a_complete_job_succeeds(job, seen, pod_gone):
    result = result_of(job, seen, WHAT, 300, pod_gone=pod_gone)
    assert isinstance(result, Result)
    assert (result.outcome == "succeeded") is (job_end(job)[0] is JobEnd.COMPLETE)
