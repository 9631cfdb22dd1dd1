"""What a cluster's controllers do, for the mock API server: a Job gets a uid and a pod, which runs and ends."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.world import Json, World


class JobController:
    """Every Job that is created in a namespace runs at once: its pod ends with `exit_code`, having said `log`."""

    def __init__(self, world: World, namespace: str, *, exit_code: int = 0, log: str = "") -> None:
        self.world = world
        self.namespace = namespace
        self.exit_code = exit_code
        self.log = log
        self.made: list[Json] = []
        world.answer(f"post /apis/batch/v1/namespaces/{namespace}/jobs", self._create)

    def _create(self, request: Any) -> tuple[int, Json]:
        job = copy.deepcopy(dict(request.data))
        name = job["metadata"]["name"]
        job["metadata"]["uid"] = f"uid-{name}"
        job["metadata"]["resourceVersion"] = "1"
        self.made.append(job)
        good = self.exit_code == 0
        kind = "Complete" if good else "Failed"
        condition = {"type": kind, "status": "True", "reason": "" if good else "BackoffLimitExceeded", "message": ""}
        ended = copy.deepcopy(job) | {"status": {"conditions": [condition]}}
        self.world.put("batch/v1/jobs", ended)
        labels = job["spec"]["template"]["metadata"]["labels"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        pod = f"{name}-x7k2p"
        state = {
            "exitCode": self.exit_code,
            "reason": "Completed" if good else "Error",
            "startedAt": "2026-03-01T02:30:00Z",
            "finishedAt": "2026-03-01T02:30:01Z",
        }
        metadata = {
            "name": pod,
            "namespace": self.namespace,
            "uid": f"uid-{pod}",
            "resourceVersion": "1",
            "labels": labels,
            "ownerReferences": [owner],
        }
        container = job["spec"]["template"]["spec"]["containers"][0]["name"]
        status = {
            "phase": "Succeeded" if good else "Failed",
            "containerStatuses": [{"name": container, "state": {"terminated": state}}],
        }
        self.world.put(
            "v1/pods",
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n"}, "status": status},
        )
        log_path = f"get /api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        self.world.answer(log_path, (200, self.log.encode()))  # type: ignore[arg-type]
        return 201, job
