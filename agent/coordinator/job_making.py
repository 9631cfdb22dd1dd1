"""Making a Job once: found again when an answer got lost, and never confused with another's of its name."""

from __future__ import annotations

import contextlib

import structlog

from agent.cluster.resources import JOBS, PODS
from agent.contract.durations import format_duration
from agent.contract.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterUnavailable, ErrorCode
from agent.contract.messages import Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.job_sight import JobEvent
from agent.coordinator.job_vigil import PAUSE_SECONDS, JobCluster, Vigil
from agent.coordinator.jobs import TTL_SECONDS, Json, is_of_run, selector_of

log = structlog.get_logger("podhook.coordinator")


class JobMaker:
    """Makes one Job. `uid` is the Job's in the cluster, once that is known."""

    def __init__(self, cluster: JobCluster, job: Json, vigil: Vigil) -> None:
        self.name: str = job["metadata"]["name"]
        self.namespace: str = job["metadata"]["namespace"]
        self.uid = ""
        self._cluster = cluster
        self._job = job
        self._vigil = vigil
        #: Whether a question that may have made the Job has left.
        self._asked = False

    def __str__(self) -> str:
        return f"Job {self.namespace}/{self.name}"

    async def make(self, window_seconds: float) -> Json | Result:
        """The Job as the cluster has it, or why there is none: tried for `window_seconds` while nobody answers."""
        vigil, until = self._vigil, self._vigil.now() + window_seconds
        doubt = False  # whether it may have been made, and nobody told us
        while True:
            stopped = vigil.stopped
            try:
                if stopped and not self._asked:
                    return failure(Outcome.CANCELLED, ErrorCode.TOMBSTONED, f"{self} was cancelled before it was made")
                found = await self._find()
                if found is not None:
                    return self._taken_up(found)
                doubt = False
                if stopped:
                    return self._not_made("it was cancelled meanwhile")
                self._asked = True
                made = await self._cluster.create(JOBS, self._job, self.namespace)
                self.uid = made["metadata"]["uid"]
                vigil.tell(JobEvent("created", self.name))
                log.info("function.made", job=self.name, namespace=self.namespace)
                return made
            except (ClusterUnavailable, ClusterConflict) as error:  # whose a name is that is taken, `_find` tells
                doubt = doubt or self._asked
                pause = max(PAUSE_SECONDS, getattr(error, "retry_after_seconds", 0))
                if vigil.now() + pause > until:
                    return self._not_made(f"not within {format_duration(window_seconds)}: {error}")
                vigil.tell_unseen(error)
                await vigil.until(lambda before=stopped: vigil.stopped and not before, pause)  # type: ignore[misc]
            except ClusterError as error:
                if doubt:
                    return self._not_made(str(error))
                return failure(Outcome.REJECTED, ErrorCode.JOB_REFUSED, f"{self} was not made: {error}")

    async def delete_whatever_was_made(self) -> None:
        """Delete the Job if there is one and it is ours. Raises ClusterError."""
        if not self._asked:
            return
        if not self.uid:
            found = await self._find()
            if found is None or not is_of_run(found, self._job):
                return
            self.uid = found["metadata"]["uid"]
        await self._cluster.delete(JOBS, self.name, self.namespace, uid=self.uid)
        log.info("function.deleted", job=self.name, namespace=self.namespace)

    def by_itself(self) -> str:
        """When Kubernetes ends it, and removes it, if nobody else does."""
        deadline = self._job["spec"]["activeDeadlineSeconds"]
        return f"within {format_duration(deadline)}, and is removed {format_duration(TTL_SECONDS)} later"

    async def _find(self) -> Json | None:
        """The Job of this name. Whether its pods may be looked at is asked first: without that nothing is begun."""
        if not self._asked:
            await self._cluster.list(PODS, self.namespace, selector=selector_of(self._job))
        with contextlib.suppress(ClusterNotFound):
            return await self._cluster.get(JOBS, self.name, self.namespace)
        return None

    def _taken_up(self, found: Json) -> Json | Result:
        """One that is there already: made by us, and its answer lost, or by somebody else."""
        if not is_of_run(found, self._job):
            sentence = f"{self} was not made: another one of its name is there, with other content"
            return failure(Outcome.REJECTED, ErrorCode.ID_REUSED, f"{sentence}; look at it, and delete it")
        self.uid = found["metadata"]["uid"]
        self._asked = True
        self._vigil.tell(JobEvent("adopted", self.name))
        return found

    def _not_made(self, why: str) -> Result:
        if not self._asked:
            return failure(Outcome.UNREACHABLE, ErrorCode.NEVER_PUBLISHED, f"{self} was not made: {why}")
        return failure(
            Outcome.LOST,
            ErrorCode.SILENT,
            f"whether {self} was made is not known: {why}; if it was, it ends by itself {self.by_itself()}",
        )
