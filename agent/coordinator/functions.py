"""The Function executor at work: one attempt is one Job, made once, watched to its end, and gone when it is cancelled.

If we die, the Job ends by its own deadline, is removed 300 s after that, and goes with the coordinator's pod where
that is known (`agent.coordinator.jobs`). Nothing that a Job holds - environment, arguments - is ever logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog

from agent.cluster.resources import JOBS, PODS, Resource
from agent.contract.durations import format_duration
from agent.contract.errors import ClusterError, ClusterNotFound, ClusterUnavailable, ErrorCode
from agent.contract.messages import DEFAULT_OUTPUT_LIMIT_BYTES, CapturedStream, Result
from agent.contract.outcomes import failure, redacted
from agent.contract.redaction import Redactor
from agent.contract.states import Outcome
from agent.coordinator.job_log import log_output, secrets_in
from agent.coordinator.job_making import JobMaker
from agent.coordinator.job_sight import JobEvent, JobSight
from agent.coordinator.job_states import JobEnd, began, began_at, gone, result_of
from agent.coordinator.job_vigil import PAUSE_SECONDS, JobCluster, Sleep, Vigil
from agent.coordinator.jobs import CONTAINER, Json, selector_of

__all__ = ["JobCluster", "JobEvent", "run_function"]

log = structlog.get_logger("podhook.coordinator")

#: How long it may take to make the Job while the API server is away (as a trigger's: `HookCall`).
START_WINDOW_SECONDS = 30.0
#: After its deadline a Job's pod has 30 s to end (Kubernetes' default), and the Job's controller its own pace.
GRACE_SECONDS = 60.0
#: A watch may miss what happened before it began, or be refused: the Job is looked after so often besides.
LOOK_SECONDS = 10.0
#: How long the end of a cancelled Job is waited for, its pod's 30 s included.
CANCEL_SECONDS = 60.0
#: Who cancels the task waits so long at most for the Job to be deleted.
LAST_WORD_SECONDS = 10.0


async def run_function(
    cluster: JobCluster,
    job: Json,
    *,
    timeout_seconds: float,
    on_event: Callable[[JobEvent], None] = lambda _: None,
    stop: asyncio.Event | None = None,
    redactor: Redactor | None = None,
    limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES,
    start_window_seconds: float = START_WINDOW_SECONDS,
    now: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> Result:
    """Run one attempt: make `job` (of `jobs.job_for`, with this timeout), and come back with how it ended.

    The last `limit_bytes` of its log are the result's stdout (Kubernetes does not keep the streams apart), without the
    secrets that `redactor` knows and the names of the Job's own variables tell of. `stop`, once it is set, cancels. So
    does cancelling the task: it ends when the Job is deleted, or 10 s later. Whatever the cluster answers becomes an
    outcome and raises nothing. `now` and `sleep` (seconds) are for tests.
    """
    secrets = (redactor or Redactor()).with_(secrets_in(job))
    vigil = Vigil(on_event, stop or asyncio.Event(), now, sleep)
    run = _FunctionRun(cluster, job, timeout_seconds, vigil, secrets, limit_bytes)
    result = redacted(await run.result(start_window_seconds), secrets)
    log.info("function.ended", job=job["metadata"]["name"], outcome=str(result.outcome))
    return result


class _FunctionRun:
    """One Job, from nothing to its end."""

    def __init__(
        self,
        cluster: JobCluster,
        job: Json,
        timeout_seconds: float,
        vigil: Vigil,
        redactor: Redactor,
        limit_bytes: int,
    ) -> None:
        self._cluster = cluster
        self._selector = selector_of(job)
        self._timeout_seconds = timeout_seconds
        self._vigil = vigil
        self._redactor = redactor
        self._limit_bytes = limit_bytes
        self._maker = JobMaker(cluster, job, vigil)
        self._name, self._namespace, self._what = self._maker.name, self._maker.namespace, str(self._maker)

    async def result(self, start_window_seconds: float) -> Result:
        """Make it, follow it, say how it ended."""
        began_seconds = self._vigil.now()
        try:
            made = await self._maker.make(start_window_seconds)
            result = made if isinstance(made, Result) else await self._follow(JobSight(made, self._vigil.tell))
        except asyncio.CancelledError:
            # Whoever waited for us does not any more: what we have made goes, but nobody waits long for that.
            with contextlib.suppress(ClusterError, TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await self._maker.delete_whatever_was_made()
            raise
        return result.model_copy(update={"duration_seconds": max(0.0, self._vigil.now() - began_seconds)})

    # -- following it

    async def _follow(self, sight: JobSight) -> Result:
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(work, name=f"{what} of {self._what}")
                for what, work in (
                    ("watch", self._watch(JOBS, sight.saw_job, name=self._name)),
                    ("pods", self._watch(PODS, sight.saw_pod, selector=self._selector)),
                    ("looks", self._look_now_and_then(sight)),
                )
            ]
            try:
                return await self._to_its_end(sight)
            finally:
                for task in watching:
                    task.cancel()

    async def _to_its_end(self, sight: JobSight) -> Result:
        if not await self._vigil.until(
            lambda: sight.over or self._vigil.stopped, self._timeout_seconds + GRACE_SECONDS
        ):
            await self._look(sight)  # the last chance
        if sight.end is not None:
            return await self._ended(sight)
        if sight.gone:
            return gone(self._what)
        if self._vigil.stopped:
            return await self._cancel(sight)
        return await self._give_up(sight)

    async def _watch(self, resource: Resource, saw: Callable[[str, Json], None], **which: str) -> None:
        """Take in what is told of a resource, without end; where that is refused, looks have to do."""
        while True:
            try:
                async for kind, item in self._cluster.watch(resource, self._namespace, **which):
                    saw(kind, item)
                    self._vigil.seen()
            except ClusterUnavailable as error:
                self._vigil.tell_unseen(error)
            except ClusterError as error:
                self._vigil.tell_unseen(error)
                return
            await self._vigil.sleep(PAUSE_SECONDS)

    async def _look_now_and_then(self, sight: JobSight) -> None:
        while True:
            await self._vigil.sleep(LOOK_SECONDS)
            await self._look(sight)

    async def _look(self, sight: JobSight) -> None:
        try:
            try:
                sight.saw_job("MODIFIED", await self._cluster.get(JOBS, self._name, self._namespace))
            except ClusterNotFound:
                sight.saw_no_job()
            await self._look_at_pods(sight)
            self._vigil.seen()
        except ClusterError as error:
            self._vigil.tell_unseen(error)

    async def _look_at_pods(self, sight: JobSight) -> None:
        sight.saw_pods(await self._cluster.list(PODS, self._namespace, selector=self._selector))

    # -- its end

    async def _ended(self, sight: JobSight, *notes: str) -> Result:
        """What came of a Job that has ended, or will as soon as its pod has."""
        output, found = await self._last_look(sight)
        if not sight.settled:  # nothing of it may run while the next attempt does
            await self._vigil.until(lambda: sight.settled or self._vigil.stopped, GRACE_SECONDS)
            later, found_later = await self._last_look(sight)
            output, found = (output, found) if later is None else (later, found_later)
        result = result_of(sight.job, sight.pod, self._what, self._timeout_seconds, pod_gone=sight.pod_gone)
        told = [*notes, *found]
        if not sight.settled:
            told.append("its pod has not ended yet: kubectl says what it waits for")
        return result.model_copy(update=self._details(sight, output, told))

    async def _last_look(self, sight: JobSight) -> tuple[CapturedStream | None, list[str]]:
        """The log's end as far as there is one, and what there is to note; `sight` has its pod as it is now."""
        notes = []
        try:
            await self._look_at_pods(sight)
        except ClusterError as error:
            notes.append(f"its pod could not be looked at again: {error}")
        if sight.pod is None or not began(sight.pod):
            return None, notes
        name, limit_bytes = sight.pod["metadata"]["name"], self._limit_bytes
        try:
            data, total = await self._cluster.log_end(
                name, self._namespace, container=CONTAINER, limit_bytes=limit_bytes
            )
        except ClusterNotFound:
            return None, [*notes, "its log is gone with its pod"]
        except ClusterError as error:
            return None, [*notes, f"its log could not be read: {error}"]
        return log_output(data, total, limit_bytes, self._redactor), notes

    def _details(self, sight: JobSight, output: CapturedStream | None, notes: list[str]) -> dict[str, Any]:
        """What an outcome has besides how it ended."""
        return {
            "stdout": output or CapturedStream(),
            "started_at": began_at(sight.pod or {}),
            "notes": [note[:2048] for note in notes],
        }

    async def _give_up(self, sight: JobSight) -> Result:
        """Its deadline is long over, and nobody says that it ended."""
        if self._vigil.unseen:
            why = f"the API server could not be asked: {self._vigil.unseen}"
        else:
            why = "its controller does not end it; is the kube-controller-manager running?"
        late = format_duration(GRACE_SECONDS)
        sentence = f"nothing is known of the end of {self._what} {late} after its timeout: {why}"
        with contextlib.suppress(ClusterError):
            await self._cluster.delete(JOBS, self._name, self._namespace, uid=sight.uid)
        return failure(Outcome.LOST, ErrorCode.SILENT, sentence)

    # -- stopping it

    async def _cancel(self, sight: JobSight) -> Result:
        """Delete it, its pod first, and wait until they are gone."""
        self._vigil.tell(JobEvent("cancelling", self._name))
        until = self._vigil.now() + CANCEL_SECONDS
        try:
            await self._delete_until(until, sight)
        except ClusterError as error:
            sentence = f"{self._what} could not be cancelled: {error}; it ends by itself {self._maker.by_itself()}"
            return failure(Outcome.LOST, ErrorCode.SILENT, sentence)
        output, notes = await self._last_look(sight)
        there = not await self._vigil.until(
            lambda: sight.gone or sight.end is JobEnd.COMPLETE, max(0.0, until - self._vigil.now())
        )
        if sight.end is JobEnd.COMPLETE:
            result = await self._ended(sight, "it was cancelled when it had succeeded already")
            return result if result.stdout.text else result.model_copy(update={"stdout": output or result.stdout})
        if there:
            notes.append(f"it was deleted, and its pod has not ended {format_duration(CANCEL_SECONDS)} later")
        sentence = f"{self._what} was stopped because the coordinator cancelled it"
        result = failure(Outcome.CANCELLED, ErrorCode.CANCELLED, sentence)
        return result.model_copy(update=self._details(sight, output, notes))

    async def _delete_until(self, until: float, sight: JobSight) -> None:
        """Raises ClusterError: a no, or no answer up to then."""
        while True:
            try:
                await self._cluster.delete(JOBS, self._name, self._namespace, uid=sight.uid, propagation="Foreground")
            except ClusterUnavailable as error:
                if self._vigil.now() + PAUSE_SECONDS > until:
                    raise
                self._vigil.tell_unseen(error)
                await self._vigil.sleep(PAUSE_SECONDS)
            else:
                return
