"""A Function's Job over HTTP: the real client against a mock API server (kmock), from its making to its end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from agent.contract.functions import load_function
from agent.contract.messages import Result
from agent.coordinator.functions import JobEvent, run_function
from agent.coordinator.jobs import job_for
from tests.agents import until
from tests.cluster.conftest import world
from tests.cluster.world import World, lines, no
from tests.coordinator.test_jobs import ACTION, RUN, executor, function, job
from tests.kubernetes_schema import check

__all__ = ["world"]

JOBS_OF_SHOP = "/apis/batch/v1/namespaces/shop/jobs"
PODS_OF_SHOP = "/api/v1/namespaces/shop/pods"
NAME = f"podhook-{RUN}-1"
POD = f"{NAME}-x7k2p"
WITHIN_SECONDS = 15


class Server:
    """The controllers of a cluster that is a mock: they give uids, make pods and say how Jobs end."""

    def __init__(self, world: World, http: aiohttp.ClientSession) -> None:
        self.world = world
        self.http = http
        self.events: list[JobEvent] = []
        self.stop = asyncio.Event()
        self.made: list[dict[str, Any]] = []
        world.answer(f"post {JOBS_OF_SHOP}", self.create)
        world.api.resources["v1/pods"] = {}
        world.api.resources["batch/v1/jobs"] = {}

    def create(self, request: Any) -> tuple[int, dict[str, Any]]:
        item = json.loads(json.dumps(request.data))
        item["metadata"]["uid"] = "uid-of-job"
        self.made.append(item)
        self.world.put("batch/v1/jobs", item)
        return 201, item

    async def run(self, **options: Any) -> Result:
        made = job_for(
            function(), executor(), None, namespace="shop", run_id=RUN, attempt=1, hook="migrate", timeout_seconds=300
        )
        async with self.world.cluster() as cluster, asyncio.timeout(WITHIN_SECONDS):
            return await run_function(
                cluster, made, timeout_seconds=300, on_event=self.events.append, stop=self.stop, **options
            )

    async def heard(self, kind: str) -> None:
        await until(lambda: kind in [each.kind for each in self.events], f"{kind} of the Job")

    async def change(self, path: str, patch: dict[str, Any]) -> None:
        async with self.http.patch(f"{self.world.url}{path}", json=patch) as response:
            assert response.status == 200, await response.text()

    async def post(self, path: str, item: dict[str, Any]) -> None:
        async with self.http.post(f"{self.world.url}{path}", json=item) as response:
            assert response.status == 200, await response.text()

    async def pod_runs(self) -> None:
        labels = self.made[0]["spec"]["template"]["metadata"]["labels"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": NAME, "uid": "uid-of-job"}
        metadata = {"name": POD, "namespace": "shop", "uid": "p", "labels": labels, "ownerReferences": [owner]}
        state = {"running": {"startedAt": "2024-05-01T10:00:00Z"}}
        item = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "containerStatuses": [{"name": "function", "state": state}]},
        }
        await self.post(PODS_OF_SHOP, item)

    async def pod_exits(self, code: int) -> None:
        state = {"terminated": {"exitCode": code, "reason": "Error", "startedAt": "2024-05-01T10:00:00Z"}}
        status = {"phase": "Failed", "containerStatuses": [{"name": "function", "state": state}]}
        await self.change(f"{PODS_OF_SHOP}/{POD}", {"status": status})
        condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}
        await self.change(f"{JOBS_OF_SHOP}/{NAME}", {"status": {"conditions": [condition]}})


@pytest.fixture
async def server(world: World) -> AsyncIterator[Server]:
    async with aiohttp.ClientSession() as http:
        yield Server(world, http)


async def test_a_job_from_its_making_to_its_end(server: Server):
    server.world.answer(f"get {PODS_OF_SHOP}/{POD}/log", (200, b"no such table\n"))
    task = asyncio.create_task(server.run())
    await server.heard("created")
    await server.pod_runs()
    await server.heard("running")
    await server.pod_exits(3)
    result = await task
    assert (result.outcome, result.exit_code, result.error.code) == ("failed", 3, "exit_code")
    assert (result.stdout.text, result.stdout.total_bytes) == ("no such table\n", 14)
    assert [each.kind for each in server.events] == ["created", "running", "ended"]
    check({**server.made[0], "metadata": {**server.made[0]["metadata"], "uid": "u"}})


async def test_an_answer_that_gets_lost_makes_no_second_job(server: Server):
    def lost(request: Any) -> tuple[int, Any, Any]:
        assert not server.made, "a second one"
        server.create(request)
        return no(504, "the connection to etcd timed out")

    server.world.answer(f"post {JOBS_OF_SHOP}", lost)
    task = asyncio.create_task(server.run())
    await server.heard("created")
    await server.pod_runs()
    await server.pod_exits(4)
    assert (await task).exit_code == 4
    assert len(server.made) == 1


async def test_one_of_our_own_that_is_there_is_taken_up(server: Server):
    ours = job()
    ours["metadata"]["uid"] = "uid-of-job"
    server.made.append(server.world.put("batch/v1/jobs", ours))
    task = asyncio.create_task(server.run())
    await server.heard("adopted")
    await server.pod_runs()
    await server.pod_exits(5)
    assert (await task).exit_code == 5
    assert f"POST {JOBS_OF_SHOP}" not in server.world.asked


async def test_a_foreign_one_is_refused_and_left_alone(server: Server):
    foreign = job(action=ACTION)
    foreign["metadata"]["uid"] = "uid-of-somebody"
    server.world.put("batch/v1/jobs", foreign)
    result = await server.run()
    assert (result.outcome, result.error.code) == ("rejected", "id_reused")
    assert {each.split()[0] for each in server.world.asked} == {"GET"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            no(
                403, 'jobs.batch is forbidden: User "system:serviceaccount:backup:runner" cannot create resource "jobs"'
            ),
            "resources:\n  - jobs\n  verbs:\n  - create",
        ),
        (no(403, "exceeded quota: jobs, requested: count/jobs.batch=1"), "exceeded quota: jobs"),
        (no(422, 'Job.batch "x" is invalid: spec.template.spec.priorityClassName: no such class'), "no such class"),
        (no(404, 'namespaces "shop" not found'), 'namespaces "shop" not found'),
        (no(400, 'strict decoding error: unknown field "spec.template.spec.affinityy"'), "affinityy"),
    ],
)
async def test_a_no_says_what_to_change(server: Server, answer: Any, said: str):
    server.world.answer(f"post {JOBS_OF_SHOP}", answer)
    result = await server.run()
    assert (result.outcome, result.error.code) == ("rejected", "job_refused")
    assert said in result.error.message
    assert server.world.asked.count(f"POST {JOBS_OF_SHOP}") == 1


async def test_a_field_that_kubernetes_does_not_know_is_not_dropped_silently(server: Server):
    task = asyncio.create_task(server.run())
    await server.heard("created")
    made = next(each for each in server.world.api if each.method.value == "POST")
    assert made.params["fieldValidation"] == "Strict"
    server.stop.set()
    await task


async def test_nothing_is_begun_without_the_right_to_see_its_pods(server: Server):
    server.world.answer(f"get {PODS_OF_SHOP}", no(403, 'pods is forbidden: User "jane" cannot list resource "pods"'))
    result = await server.run()
    assert (result.outcome, result.error.code) == ("rejected", "job_refused")
    assert "verbs:\n  - list" in result.error.message
    assert server.made == []


async def test_cancelling_deletes_that_very_job_and_its_pod_first(server: Server):
    task = asyncio.create_task(server.run())
    await server.heard("created")
    await server.pod_runs()
    await server.heard("running")
    server.stop.set()
    result = await task
    assert (result.outcome, result.error.code) == ("cancelled", "cancelled")
    deleted = next(each for each in server.world.api if each.method.value == "DELETE")
    assert deleted.url.path == f"{JOBS_OF_SHOP}/{NAME}"
    assert deleted.data["propagationPolicy"] == "Foreground"
    assert deleted.data["preconditions"] == {"uid": "uid-of-job"}


async def test_a_cancelled_task_leaves_no_job(server: Server):
    task = asyncio.create_task(server.run())
    await server.heard("created")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.world.asked[-1] == f"DELETE {JOBS_OF_SHOP}/{NAME}"


async def test_a_watch_whose_past_is_forgotten_goes_on(server: Server):
    expired = lines(("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}))
    left = [expired, expired]

    def watch(request: Any) -> Any:
        return (200, left.pop()) if request.params.get("watch") == "true" and left else None

    server.world.answer(f"get {JOBS_OF_SHOP}", watch)
    task = asyncio.create_task(server.run())
    await server.heard("created")
    await server.pod_runs()
    await server.heard("running")
    await server.pod_exits(6)
    assert (await task).exit_code == 6
    assert left == []


# --- what docs/functions.md says


def documented() -> list[dict[str, Any]]:
    text = (Path(__file__).parents[2] / "docs" / "functions.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_documented_function_is_one():
    settings = "volumes: [{name: settings, configMap: {name: migrate}}]"
    check(job(load_function(yaml.safe_dump(documented()[0])), executor(settings)))


async def test_the_documented_rights_are_those_that_are_asked_for(server: Server):
    server.world.answer(f"get {PODS_OF_SHOP}/{POD}/log", (200, b""))
    task = asyncio.create_task(server.run())
    await server.heard("created")
    await server.pod_runs()
    await server.heard("running")
    server.stop.set()
    await task
    role = documented()[1]
    check(role)
    verbs = {"GET": "get", "POST": "create", "DELETE": "delete"}
    needed = set()
    for request in server.world.api:
        if request.headers.get("User-Agent", "").startswith("podhook"):
            _, _, path = request.url.path.partition("/namespaces/shop/")
            plural, name, subresource = (*path.split("/"), "", "")[:3]
            verb = verbs[request.method.value]
            verb = "watch" if request.params.get("watch") else "list" if verb == "get" and not name else verb
            needed.add((f"{plural}/{subresource}" if subresource else plural, verb))
    given = {(each, verb) for rule in role["rules"] for each in rule["resources"] for verb in rule["verbs"]}
    assert needed == given
