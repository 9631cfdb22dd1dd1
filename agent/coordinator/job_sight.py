"""What has been seen of one Job and its pod so far, from watches and from looking after them. Pure.

News may be told twice, late, or not at all: what is known of an end is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from agent.coordinator.job_states import JobEnd, PodState, job_end, pod_over, pod_state
from agent.coordinator.jobs import Json

DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that became of a Job, for people who watch.

    `kind` is one of `created`, `adopted` (a lost answer of ours had made it), `pending`, `running`, `ended` (of its
    pod, with what Kubernetes says), `unseen` (the API server is away, or does not let us look), `cancelling`.
    """

    kind: Literal["created", "adopted", "pending", "running", "ended", "unseen", "cancelling"]
    text: str = ""


class JobSight:
    """One Job, known by its uid, and its pod. `tell` hears whatever is new of the pod."""

    def __init__(self, job: Json, tell: Callable[[JobEvent], None]) -> None:
        self.uid = str((job.get("metadata") or {}).get("uid", ""))
        self.job = job
        #: Whether the Job is not there any more.
        self.gone = False
        #: The pod as it was last seen, which it may not be any more.
        self.pod: Json | None = None
        self.pod_gone = False
        self._tell = tell
        self._told: PodState | None = None

    @property
    def end(self) -> JobEnd | None:
        """How the Job ended, or will; None while it runs."""
        ended = job_end(self.job)
        return ended[0] if ended else None

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for before its end can be told."""
        return self.gone or self.end is not None

    @property
    def settled(self) -> bool:
        """Whether nothing of it runs any more, as far as anybody can see."""
        if self.gone:
            return True
        return self.end in (JobEnd.COMPLETE, JobEnd.FAILED) and (
            self.pod is None or self.pod_gone or pod_over(self.pod)
        )

    def saw_job(self, kind: str, item: Json) -> None:
        """Take in an event of the Job's watch, or MODIFIED with the Job that was looked at."""
        ours = _uid(item) == self.uid
        if kind == DELETED:
            self.gone = self.gone or ours
        elif not ours:  # somebody made another of its name
            self.gone = True
            return
        if ours and (job_end(item) is not None or (self.end is None and "status" in item)):
            self.job = item

    def saw_no_job(self) -> None:
        """It was looked for, and is not there."""
        self.gone = True

    def saw_pod(self, kind: str, item: Json) -> None:
        """Take in an event of the watch on the run's pods."""
        if kind == DELETED:
            if self.pod is not None and _uid(item) == _uid(self.pod):
                self.pod_gone = True
                if pod_over(item):
                    self._pod(item)
            return
        owners = (item.get("metadata") or {}).get("ownerReferences") or []
        if any(each.get("uid") == self.uid for each in owners):
            self._pod(item)

    def saw_pods(self, items: Iterable[Json]) -> None:
        """Take in all pods of the run that there are now."""
        present = list(items)
        for item in present:
            self.saw_pod("MODIFIED", item)
        if self.pod is not None and _uid(self.pod) not in map(_uid, present):
            self.pod_gone = True

    def _pod(self, item: Json) -> None:
        if self.pod is not None and _uid(item) == _uid(self.pod) and pod_over(self.pod) and not pod_over(item):
            return
        self.pod = item
        state = pod_state(item)
        if state != self._told:
            self._told = state
            self._tell(JobEvent(state.kind, state.text))


def _uid(item: Json) -> str:
    return str((item.get("metadata") or {}).get("uid", ""))
