"""The Function executor at work: one attempt is one Job, made once, watched to its end, and gone when it is cancelled.

If we die, the Job ends by its own deadline, is removed 300 s after that, and goes with the coordinator's pod where
that is known (`agent.coordinator.jobs`). Nothing that a Job holds - environment, arguments - is ever logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Protocol

import structlog

from agent.cluster.resources import JOBS, PODS, Resource
from agent.contract.durations import format_duration
from agent.contract.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterUnavailable, ErrorCode
from agent.contract.messages import DEFAULT_OUTPUT_LIMIT_BYTES, CapturedStream, Result
from agent.contract.outcomes import failure, redacted
from agent.contract.redaction import Redactor
from agent.contract.states import Outcome
from agent.coordinator.job_log import log_output, secrets_in
from agent.coordinator.job_sight import JobEvent, JobSight
from agent.coordinator.job_states import JobEnd, began, began_at, gone, result_of
from agent.coordinator.jobs import CONTAINER, TTL_SECONDS, Json, is_of_run, selector_of

__all__ = ["JobCluster", "JobEvent", "run_function"]

log = structlog.get_logger("podhook.coordinator")

#: How long it may take to make the Job while the API server is away (as a trigger's: `HookCall`).
START_WINDOW_SECONDS = 30.0
#: After its deadline a Job's pod has 30 s to end (Kubernetes' default), and the Job's controller its own pace.
GRACE_SECONDS = 60.0
#: A watch may miss what happened before it began, or be refused: the Job is looked after so often besides.
LOOK_SECONDS = 10.0
#: Until an API server that was away is asked again.
PAUSE_SECONDS = 2.0
#: How long the end of a cancelled Job is waited for, its pod's 30 s included.
CANCEL_SECONDS = 60.0
#: Who cancels the task waits so long at most for the Job to be deleted.
LAST_WORD_SECONDS = 10.0

Sleep = Callable[[float], Awaitable[Any]]


class JobCluster(Protocol):
    """What is asked of a cluster; `agent.cluster.Cluster` has it all."""

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Json:
        """One object."""

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "") -> list[Json]:
        """Every object that the selector matches."""

    async def create(self, resource: Resource, body: Json, namespace: str = "") -> Json:
        """Create it once, also when an answer gets lost."""

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> None:
        """Delete it; one that is not there is fine."""

    def watch(
        self, resource: Resource, namespace: str | None, *, name: str = "", selector: str = ""
    ) -> AsyncIterator[tuple[str, Json]]:
        """What happens to the objects, without end."""

    async def log_end(
        self, pod: str, namespace: str, *, container: str = "", limit_bytes: int
    ) -> tuple[bytes, int | None]:
        """The end of a container's log, and the size of the whole if that is known."""


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
    run = _FunctionRun(
        cluster, job, timeout_seconds, on_event, stop or asyncio.Event(), secrets, limit_bytes, now, sleep
    )
    result = redacted(await run.result(start_window_seconds), secrets)
    log.info("function.ended", job=run.name, namespace=run.namespace, outcome=str(result.outcome))
    return result


class _FunctionRun:
    """One Job, from nothing to its end."""

    def __init__(
        self,
        cluster: JobCluster,
        job: Json,
        timeout_seconds: float,
        on_event: Callable[[JobEvent], None],
        stop: asyncio.Event,
        redactor: Redactor,
        limit_bytes: int,
        now: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.name: str = job["metadata"]["name"]
        self.namespace: str = job["metadata"]["namespace"]
        self._what = f"Job {self.namespace}/{self.name}"
        self._cluster = cluster
        self._job = job
        self._timeout_seconds = timeout_seconds
        self._on_event = on_event
        self._stop = stop
        self._redactor = redactor
        self._limit_bytes = limit_bytes
        self._now = now
        self._sleep = sleep
        #: Whether a question that may have made the Job has left.
        self._asked = False
        self._sight: JobSight | None = None
        self._news = asyncio.Event()
        self._unseen = ""

    async def result(self, start_window_seconds: float) -> Result:
        """Make it, follow it, say how it ended."""
        began_seconds = self._now()
        try:
            made = await self._make(began_seconds + start_window_seconds, start_window_seconds)
            result = made if isinstance(made, Result) else await self._follow(made)
        except asyncio.CancelledError:
            await self._last_word()
            raise
        return result.model_copy(update={"duration_seconds": max(0.0, self._now() - began_seconds)})

    # -- making it

    async def _make(self, until: float, window_seconds: float) -> Json | Result:
        """The Job as the cluster has it, or why there is none."""
        doubt = False  # whether it may have been made, and nobody told us
        while True:
            try:
                if self._stop.is_set() and not self._asked:
                    sentence = f"{self._what} was cancelled before it was made"
                    return failure(Outcome.CANCELLED, ErrorCode.TOMBSTONED, sentence)
                found = await self._find()
                if found is not None:
                    if not is_of_run(found, self._job):
                        sentence = f"{self._what} was not made: another one of its name is there, with other content"
                        return failure(Outcome.REJECTED, ErrorCode.ID_REUSED, f"{sentence}; look at it, and delete it")
                    self._tell(JobEvent("adopted", self.name))
                    return found
                doubt = False
                if self._stop.is_set():
                    return self._not_made("it was cancelled meanwhile")
                self._asked = True
                made = await self._cluster.create(JOBS, self._job, self.namespace)
                self._tell(JobEvent("created", self.name))
                log.info("function.made", job=self.name, namespace=self.namespace)
                return made
            except (ClusterUnavailable, ClusterConflict) as error:  # whose a name is that is taken, `_find` tells
                doubt = doubt or self._asked
                pause = max(PAUSE_SECONDS, getattr(error, "retry_after_seconds", 0))
                if self._now() + pause > until:
                    return self._not_made(f"not within {format_duration(window_seconds)}: {error}")
                self._tell_unseen(error)
                await self._until(self._stop.is_set, pause)
            except ClusterError as error:
                if doubt:
                    return self._not_made(str(error))
                return failure(Outcome.REJECTED, ErrorCode.JOB_REFUSED, f"{self._what} was not made: {error}")

    async def _find(self) -> Json | None:
        """The Job of this name. Whether its pods may be looked at is asked first: without that nothing is begun."""
        if not self._asked:
            await self._cluster.list(PODS, self.namespace, selector=selector_of(self._job))
        try:
            return await self._cluster.get(JOBS, self.name, self.namespace)
        except ClusterNotFound:
            return None

    def _not_made(self, why: str) -> Result:
        if not self._asked:
            return failure(Outcome.UNREACHABLE, ErrorCode.NEVER_PUBLISHED, f"{self._what} was not made: {why}")
        return failure(
            Outcome.LOST,
            ErrorCode.SILENT,
            f"whether {self._what} was made is not known: {why}; if it was, it ends by itself {self._by_itself()}",
        )

    # -- following it

    async def _follow(self, job: Json) -> Result:
        self._sight = sight = JobSight(job, self._tell)
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(work, name=f"{what} of {self._what}")
                for what, work in (
                    ("watch", self._watch(JOBS, sight.saw_job, name=self.name)),
                    ("pods", self._watch(PODS, sight.saw_pod, selector=selector_of(self._job))),
                    ("looks", self._look_now_and_then(sight)),
                )
            ]
            try:
                return await self._to_its_end(sight)
            finally:
                for task in watching:
                    task.cancel()

    async def _to_its_end(self, sight: JobSight) -> Result:
        if not await self._until(lambda: sight.over or self._stop.is_set(), self._timeout_seconds + GRACE_SECONDS):
            await self._look(sight)  # the last chance
        if sight.end is not None:
            return await self._ended(sight)
        if sight.gone:
            return gone(self._what)
        if self._stop.is_set():
            return await self._cancel(sight)
        return await self._give_up(sight)

    async def _watch(self, resource: Resource, saw: Callable[[str, Json], None], **which: str) -> None:
        """Take in what is told of a resource, without end; where that is refused, looks have to do."""
        while True:
            try:
                async for kind, item in self._cluster.watch(resource, self.namespace, **which):
                    saw(kind, item)
                    self._seen_again()
            except ClusterUnavailable as error:
                self._tell_unseen(error)
            except ClusterError as error:
                self._tell_unseen(error)
                return
            await self._sleep(PAUSE_SECONDS)

    async def _look_now_and_then(self, sight: JobSight) -> None:
        while True:
            await self._sleep(LOOK_SECONDS)
            await self._look(sight)

    async def _look(self, sight: JobSight) -> None:
        try:
            try:
                sight.saw_job("MODIFIED", await self._cluster.get(JOBS, self.name, self.namespace))
            except ClusterNotFound:
                sight.saw_no_job()
            await self._look_at_pods(sight)
            self._seen_again()
        except ClusterError as error:
            self._tell_unseen(error)

    async def _look_at_pods(self, sight: JobSight) -> None:
        sight.saw_pods(await self._cluster.list(PODS, self.namespace, selector=selector_of(self._job)))

    # -- its end

    async def _ended(self, sight: JobSight, *notes: str) -> Result:
        """What came of a Job that has ended, or will as soon as its pod has."""
        output, found = await self._last_look(sight)
        if not sight.settled:  # nothing of it may run while the next attempt does
            await self._until(lambda: sight.settled or self._stop.is_set(), GRACE_SECONDS)
            later, found_later = await self._last_look(sight)
            output, found = (output, found) if later is None else (later, found_later)
        result = result_of(sight.job, sight.pod, self._what, self._timeout_seconds, pod_gone=sight.pod_gone)
        told = [*notes, *found]
        if not sight.settled:
            told.append(f"its pod has not ended yet, {format_duration(GRACE_SECONDS)} after that was asked of it")
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
                name, self.namespace, container=CONTAINER, limit_bytes=limit_bytes
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
        if self._unseen:
            why = f"the API server could not be asked: {self._unseen}"
        else:
            why = "its controller does not end it; is the kube-controller-manager running?"
        late = format_duration(GRACE_SECONDS)
        sentence = f"nothing is known of the end of {self._what} {late} after its timeout: {why}"
        with contextlib.suppress(ClusterError):
            await self._cluster.delete(JOBS, self.name, self.namespace, uid=sight.uid)
        return failure(Outcome.LOST, ErrorCode.SILENT, sentence)

    # -- stopping it

    async def _cancel(self, sight: JobSight) -> Result:
        """Delete it, its pod first, and wait until they are gone."""
        self._tell(JobEvent("cancelling", self.name))
        until = self._now() + CANCEL_SECONDS
        try:
            await self._delete_until(until, sight)
        except ClusterError as error:
            sentence = f"{self._what} could not be cancelled: {error}; it ends by itself {self._by_itself()}"
            return failure(Outcome.LOST, ErrorCode.SILENT, sentence)
        output, notes = await self._last_look(sight)
        there = not await self._until(lambda: sight.gone or sight.end is JobEnd.COMPLETE, max(0.0, until - self._now()))
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
                await self._cluster.delete(JOBS, self.name, self.namespace, uid=sight.uid, propagation="Foreground")
            except ClusterUnavailable as error:
                if self._now() + PAUSE_SECONDS > until:
                    raise
                self._tell_unseen(error)
                await self._sleep(PAUSE_SECONDS)
            else:
                return

    async def _last_word(self) -> None:
        """Whoever waited for us does not any more: delete what we have made, within a bound."""
        if not self._asked or (self._sight is not None and self._sight.over):
            return
        with contextlib.suppress(ClusterError, TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                uid = self._sight.uid if self._sight else ""
                if not uid:
                    found = await self._find()
                    uid = found["metadata"]["uid"] if found is not None and is_of_run(found, self._job) else ""
                if uid:
                    await self._cluster.delete(JOBS, self.name, self.namespace, uid=uid)
                    log.info("function.deleted", job=self.name, namespace=self.namespace)

    def _by_itself(self) -> str:
        deadline = self._job["spec"]["activeDeadlineSeconds"]
        return f"within {format_duration(deadline)}, and is removed {format_duration(TTL_SECONDS)} later"

    # -- waiting and telling

    async def _until(self, condition: Callable[[], bool], within_seconds: float) -> bool:
        """Wait until there is news that makes `condition` true, or time is up; returns whether it is true."""
        timer = asyncio.ensure_future(self._sleep(within_seconds))
        stop = asyncio.ensure_future(self._stop.wait())
        for each in (timer, stop):
            each.add_done_callback(lambda _: self._news.set())
        try:
            while not condition() and not timer.done():
                self._news.clear()
                await self._news.wait()
        finally:
            for each in (timer, stop):
                each.cancel()
            await asyncio.gather(timer, stop, return_exceptions=True)
        return condition()

    def _seen_again(self) -> None:
        self._unseen = ""
        self._news.set()

    def _tell_unseen(self, error: ClusterError) -> None:
        """Tell it once, however often it is tried."""
        if not self._unseen:
            self._tell(JobEvent("unseen", str(error)))
        self._unseen = str(error)

    def _tell(self, event: JobEvent) -> None:
        """Who watches must not be able to stop it."""
        try:
            self._on_event(event)
        except Exception:
            log.exception("event.callback_failed", job=self.name, kind=event.kind)
