"""What a Job and its pod, as the API server shows them, amount to: what to tell, and how an attempt ended. Pure.

Succeeded and failed are the Job's word (SEMANTICS: Function executor); why, and the exit code, are its pod's.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from agent.contract.durations import format_duration
from agent.contract.errors import ErrorCode
from agent.contract.messages import Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.jobs import CONTAINER

Json = Mapping[str, Any]

#: Of what Kubernetes says, so much stands in a sentence of ours.
EXCERPT_CHARACTERS = 300
#: A pod's `status.reason` when somebody else ended it: the kubelet's eviction and node shutdown, a node that is gone.
_ENDED_BY_OTHERS = frozenset({"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"})
#: Why a container is said to have ended although nothing in it ever began (containerd, CRI-O, dockershim).
_NEVER_BEGAN = frozenset({"StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"})
#: A pod's `status.reason` when its node's kubelet did not take it in: no container was made (with all of `OutOf*`).
_NOT_TAKEN_IN = frozenset(
    {"NodeAffinity", "NodePorts", "PodOSNotSupported", "TopologyAffinityError", "UnexpectedAdmissionError"}
)
#: The kubelet has lost sight of it (exit code 137 stands beside it, and means nothing).
_UNKNOWN = "ContainerStatusUnknown"


class JobEnd(StrEnum):
    """How a Job stands. FAILING: it will fail, and waits for its pod to end (FailureTarget, Kubernetes 1.31)."""

    FAILING = "failing"
    FAILED = "failed"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class PodState:
    """What there is to tell of a pod. `kind` is `pending`, `running` or `ended`; `text` says more."""

    kind: Literal["pending", "running", "ended"]
    text: str


def job_end(job: Json) -> tuple[JobEnd, str, str] | None:
    """How the Job ended, the reason and the message of that; None while it runs."""
    found = {each.get("type"): each for each in _conditions(job) if each.get("status") == "True"}
    for kind, end in (("Complete", JobEnd.COMPLETE), ("Failed", JobEnd.FAILED), ("FailureTarget", JobEnd.FAILING)):
        if kind in found:
            return end, str(found[kind].get("reason") or ""), str(found[kind].get("message") or "")
    return None


def pod_state(pod: Json) -> PodState:
    """What there is to tell of it now."""
    container = _container(pod)
    state = container.get("state") or {}
    if ended := state.get("terminated"):
        return PodState("ended", _how(ended))
    if "running" in state:
        return PodState("running", _node(pod))
    if pod_over(pod):
        return PodState("ended", _said(pod.get("status") or {}) or "its pod is over")
    scheduled = next((each for each in _conditions(pod) if each.get("type") == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return PodState("pending", _said(scheduled))
    waiting = state.get("waiting") or _init_waiting(pod)
    return PodState("pending", _said(waiting) or (f"scheduled {_node(pod)}" if _node(pod) else "no node yet"))


def pod_over(pod: Json) -> bool:
    """Whether nothing of it runs any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def began(pod: Json) -> bool:
    """Whether the Function's container is known to have begun."""
    container = _container(pod)
    state = container.get("state") or {}
    if "running" in state:
        return True
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    return bool(ended) and ended.get("reason") not in _NEVER_BEGAN


def never_began(pod: Json) -> bool:
    """Whether it is certain that the container never began, and had no effect.

    A pod without a word of its containers proves nothing: an eviction may have wiped it away.
    """
    if began(pod):
        return False
    reason = str((pod.get("status") or {}).get("reason") or "")
    return bool(_container(pod).get("state")) or not _node(pod) or reason.startswith("OutOf") or reason in _NOT_TAKEN_IN


def began_at(pod: Json) -> datetime | None:
    """When its container began, by the node's clock."""
    state = _container(pod).get("state") or {}
    return _time((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def result_of(job: Json, pod: Json | None, what: str, timeout_seconds: float, *, pod_gone: bool = False) -> Result:
    """How an attempt ended whose Job has; `what` is the subject of its sentences. Output and times are not in it.

    `pod_gone`: what is known of the pod is what was last seen of it.
    """
    end = job_end(job)
    if end is None:
        raise ValueError(f"{what} has not ended")
    kind, reason, message = end
    if kind is JobEnd.COMPLETE:
        return Result(outcome=Outcome.SUCCEEDED, exit_code=0)
    terminated = _terminated(pod)
    if reason == "DeadlineExceeded":
        sentence = f"{what} did not end within its timeout of {format_duration(timeout_seconds)}"
        if pod is None:
            sentence += "; no pod of it was seen: if a quota, Pod Security or an admission webhook refused it, kubectl "
            sentence += "describe says so"
        elif never_began(pod):
            sentence += f"; its container never began: {pod_state(pod).text}"
        else:
            sentence += "; raise the timeout if it needs longer"
        result = failure(Outcome.TIMED_OUT, ErrorCode.TIMEOUT, sentence)
    elif pod is None:
        sentence = f"{what} failed, and its pod is gone ({_reason(reason, message)}); whether it took effect is unknown"
        return failure(Outcome.INTERRUPTED, ErrorCode.POD_GONE, sentence)
    else:
        result = _of_pod(pod, what, _reason(reason, message), pod_gone=pod_gone)
    code = terminated.get("exitCode") if terminated.get("reason") != _UNKNOWN else None
    if isinstance(code, int) and began(pod or {}):
        result = result.model_copy(update={"exit_code": code, "signal": _signal(terminated)})
    return result


def gone(what: str) -> Result:
    """The Job is not there any more, it was not we who removed it, and nobody saw how it ended."""
    sentence = f"{what} was deleted by somebody before its end was seen; whether it took effect is unknown"
    return failure(Outcome.INTERRUPTED, ErrorCode.JOB_DELETED, sentence)


def _of_pod(pod: Json, what: str, why: str, *, pod_gone: bool) -> Result:
    """Why a Job failed, by its pod."""
    status = pod.get("status") or {}
    terminated = _terminated(pod)
    others = _ended_by_others(pod, terminated)
    if not others and pod_gone and not terminated and not pod_over(pod):
        others = "its pod was deleted by somebody"
    if never_began(pod):
        reason = _said(terminated) or others or _said(status) or pod_state(pod).text
        sentence = f"{what} failed before its container began: {reason}"
        return failure(Outcome.FAILED, ErrorCode.START_FAILED, sentence)
    if others:
        sentence = f"{what} was interrupted: {others}; whether it took effect is unknown"
        return failure(Outcome.INTERRUPTED, ErrorCode.POD_GONE, sentence)
    code = terminated.get("exitCode")
    if terminated.get("reason") == "OOMKilled":
        limit = ((_spec(pod).get("resources") or {}).get("limits") or {}).get("memory")
        sentence = f"{what} was killed: out of memory" + (f" (limit {limit})" if limit else "")
        return failure(Outcome.FAILED, ErrorCode.OUT_OF_MEMORY, f"{sentence}; raise resources.limits.memory")
    if code == 0:
        sentence = f"{what} failed although its own container ended with exit code 0: {_other(pod) or why}"
        return failure(Outcome.FAILED, ErrorCode.EXIT_CODE, sentence)
    if code is None:
        return failure(Outcome.FAILED, ErrorCode.INTERNAL, f"{what} failed: {_said(status) or why}")
    by_signal = _signal(terminated) is not None
    return failure(
        Outcome.FAILED, ErrorCode.SIGNAL if by_signal else ErrorCode.EXIT_CODE, f"{what} ended with {_how(terminated)}"
    )


def _ended_by_others(pod: Json, terminated: Json) -> str:
    """Who else ended the pod, and why; "" if it ended by itself."""
    status = pod.get("status") or {}
    disruption = next((each for each in _conditions(pod) if each.get("type") == "DisruptionTarget"), {})
    if status.get("reason") in _ENDED_BY_OTHERS:
        return f"its pod was ended ({_said(status)})"
    if disruption.get("status") == "True":
        return f"its pod was ended ({_said(disruption)})"
    if terminated.get("reason") == _UNKNOWN:
        return f"its node lost sight of it ({_said(terminated)})"
    metadata = pod.get("metadata") or {}
    deleted = _time(metadata.get("deletionTimestamp"))
    if deleted is None:
        return ""
    asked = deleted - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    finished = _time(terminated.get("finishedAt"))
    return "" if finished is not None and finished < asked else "its pod was deleted by somebody"


def _how(terminated: Json) -> str:
    """`exit code 137 (SIGKILL), OOMKilled`: what a container's end looked like."""
    name = _signal(terminated)
    reason = terminated.get("reason")
    said = f"exit code {terminated.get('exitCode')}" + (f" ({name})" if name else "")
    return said + (f", {reason}" if reason and reason not in ("Error", "Completed") else "")


def _signal(terminated: Json) -> str | None:
    """The signal that ended it: what runtimes and shells write as 128 and its number, or what is told outright."""
    number, code = terminated.get("signal"), terminated.get("exitCode")
    if not number and isinstance(code, int) and code > 128:
        number = code - 128
    try:
        return signal.Signals(number).name if number else None
    except ValueError:
        return None


def _other(pod: Json) -> str:
    """Another container that failed: one that an admission webhook put in."""
    for each in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (each.get("state") or {}).get("terminated") or {}
        if each.get("name") != CONTAINER and ended.get("exitCode"):
            return f"container {each.get('name')!r} of its pod ended with {_how(ended)}"
    return ""


def _init_waiting(pod: Json) -> Json:
    for each in (pod.get("status") or {}).get("initContainerStatuses") or []:
        if waiting := (each.get("state") or {}).get("waiting"):
            return waiting  # type: ignore[no-any-return]
    return {}


def _container(pod: Json) -> Json:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == CONTAINER), {})


def _spec(pod: Json) -> Json:
    containers = (pod.get("spec") or {}).get("containers") or []
    return next((each for each in containers if each.get("name") == CONTAINER), {})


def _terminated(pod: Json | None) -> Json:
    return (_container(pod or {}).get("state") or {}).get("terminated") or {}


def _conditions(item: Json) -> Iterator[Json]:
    yield from (item.get("status") or {}).get("conditions") or []


def _node(pod: Json) -> str:
    node = (pod.get("spec") or {}).get("nodeName")
    return f"on {node}" if node else ""


def _said(part: Json) -> str:
    """`reason: message`, as far as they are there."""
    return _reason(str(part.get("reason") or ""), str(part.get("message") or ""))


def _reason(reason: str, message: str) -> str:
    text = ": ".join(each for each in (reason, " ".join(message.split())) if each)
    return text if len(text) <= EXCERPT_CHARACTERS else f"{text[:EXCERPT_CHARACTERS]}..."


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time.replace(tzinfo=time.tzinfo or UTC) if time is not None and time.year > 1970 else None
