"""When a question is asked again, what a no says, and that an object is created once."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import yaml

from agent.cluster.resources import JOBS, PODS, SECRETS
from agent.contract.errors import (
    ClusterConflict,
    ClusterNotFound,
    ClusterRefused,
    ClusterUnavailable,
)
from tests.cluster.world import World, no, pod

DB = "get /api/v1/namespaces/shop/pods/db-0"
PODS_OF_SHOP = "get /api/v1/namespaces/shop/pods"
JOB_OF_SHOP = "/apis/batch/v1/namespaces/shop/jobs"
#: What RBAC says.
DENIED = 'secrets "db" is forbidden: User "system:serviceaccount:backup:runner" cannot get resource "secrets"'


def job(**labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "run-1", "namespace": "shop", "labels": labels or {"podhook.dev/run": "1"}},
    }


# --- again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_passes_is_asked_again(world: World, status: int):
    world.put("v1/pods", pod("db-0"))
    world.answer(DB, no(status), no(status), lambda _: None)
    async with world.cluster() as cluster:
        assert (await cluster.get(PODS, "db-0", "shop"))["metadata"]["name"] == "db-0"
    assert world.clock.naps == [0.5, 1.0]
    assert len(world.asked) == 3


async def test_what_the_server_asks_for_is_waited_for(world):
    world.put("v1/pods", pod("db-0"))
    world.answer(PODS_OF_SHOP, no(429, "slow down", Retry_After="7"), lambda _: None)
    async with world.cluster() as cluster:
        assert len(await cluster.list(PODS, "shop")) == 1
    assert world.clock.naps == [7.5]


async def test_it_is_given_up_after_five_times(world):
    world.answer(DB, no(503, "etcd is away"))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable) as caught:
            await cluster.get(PODS, "db-0", "shop")
    assert str(caught.value) == (
        f"the API server at {world.url} cannot answer now (503: etcd is away); asked 5 times in 8 s"
    )
    assert caught.value.status == 503
    assert world.clock.naps == [0.5, 1, 2, 4]
    assert len(world.asked) == 5


async def test_nobody_waits_for_longer_than_the_limit(world):
    world.answer(DB, no(429, "later", Retry_After="40"))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable) as caught:
            await cluster.get(PODS, "db-0", "shop")
    assert str(caught.value).endswith(
        "(429: later); asked 2 times in 40 s, and the next 41 s would pass the limit of 60 s; try again later"
    )
    assert caught.value.retry_after_seconds == 40


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 422, 501])
async def test_what_does_not_pass_is_asked_once(world, status):
    world.answer(DB, no(status, "never"))
    async with world.cluster() as cluster:
        with pytest.raises((ClusterRefused, ClusterNotFound, ClusterConflict)) as caught:
            await cluster.get(PODS, "db-0", "shop")
    assert caught.value.status == status
    assert len(world.asked) == 1


async def test_an_answer_that_breaks_off_is_asked_for_again(world):
    world.put("v1/pods", pod("db-0"))

    def breaks(request: Any) -> Any:
        request._raw_request.transport.abort()
        return 200, b""

    world.answer(DB, breaks, lambda _: None)
    async with world.cluster() as cluster:
        assert (await cluster.get(PODS, "db-0", "shop"))["metadata"]["name"] == "db-0"
    assert len(world.asked) == 2


async def test_nobody_listens(world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        world.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        world.write_kubeconfig()
        async with world.cluster() as cluster:
            with pytest.raises(ClusterUnavailable) as caught:
                await cluster.get(PODS, "db-0", "shop")
    assert str(caught.value) == (
        f"the API server at {world.url} cannot be reached (Connection refused); check its address and the network; "
        "asked 5 times in 8 s"
    )


# --- a login that is not accepted any more


async def test_a_token_that_expired_is_fetched_anew(world):
    world.put("v1/pods", pod("db-0"))

    def reply(request: Any) -> Any:
        return None if request.headers["Authorization"] == "Bearer second" else no(401, "Unauthorized")

    world.answer(DB, reply)
    async with world.cluster() as cluster, asyncio.TaskGroup() as group:
        world.write_kubeconfig({"token": "second"})
        for _ in range(5):  # all at once
            group.create_task(cluster.get(PODS, "db-0", "shop"))
    shown = [request.headers["Authorization"] for request in world.api]
    assert shown.count("Bearer second") == 5
    assert shown.count("Bearer janes") <= 5


async def test_a_program_that_logs_in_is_started_again_when_its_token_expired(world, tmp_path):
    world.put("v1/pods", pod("db-0"))
    count = tmp_path / "count"
    script = (
        f"echo x >>{count}; printf '"
        '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t%s"}}'
        f"' $(wc -l <{count})"
    )
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", script]}
    world.write_kubeconfig({"exec": login})
    world.answer(DB, lambda request: None if request.headers["Authorization"] == "Bearer t2" else no(401))
    async with world.cluster() as cluster:
        await cluster.get(PODS, "db-0", "shop")
        await cluster.get(PODS, "db-0", "shop")
    assert [request.headers["Authorization"] for request in world.api] == ["Bearer t1", "Bearer t2", "Bearer t2"]


async def test_who_is_never_accepted_hears_so(world):
    world.answer(DB, no(401, "Unauthorized"))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused) as caught:
            await cluster.get(PODS, "db-0", "shop")
    assert str(caught.value) == (
        f"the API server at {world.url} does not accept podhook's credentials (401: Unauthorized); check that the "
        "pod's service account still exists, or log in again if there is a kubeconfig"
    )
    assert len(world.asked) == 2


# --- a right that is missing


async def test_a_missing_right_is_ready_to_paste(world):
    world.answer("get /api/v1/namespaces/shop/secrets/db", no(403, DENIED))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused) as caught:
            await cluster.get(SECRETS, "db", "shop")
    sentence, _, rule = str(caught.value).partition("\n")
    assert sentence == (
        f"the API server at {world.url} does not let system:serviceaccount:backup:runner get secrets shop/db "
        f"(403: {DENIED}); whoever administers the cluster allows it with `kubectl apply -f -` and this:"
    )
    assert rule == caught.value.rule
    assert list(yaml.safe_load_all(rule)) == [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "podhook-get-secrets-db", "namespace": "shop"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["db"], "verbs": ["get"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "podhook-get-secrets-db-backup-runner", "namespace": "shop"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "podhook-get-secrets-db",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "runner", "namespace": "backup"}],
        },
    ]


async def test_a_no_of_a_quota_or_an_admission_webhook_is_no_missing_right(world):
    world.answer(f"post {JOB_OF_SHOP}", no(403, 'jobs "run-1" is forbidden: exceeded quota: small'))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused) as caught:
            await cluster.create(JOBS, job(), "shop")
    assert str(caught.value) == (
        f"the API server at {world.url} does not let podhook create jobs.batch in namespace shop "
        '(403: jobs "run-1" is forbidden: exceeded quota: small); it is not RBAC that says so: look at the '
        "namespace's quotas, Pod Security level and admission webhooks"
    )
    assert caught.value.rule == ""


# --- created once


async def test_an_object_is_created(world):
    async with world.cluster() as cluster:
        assert await cluster.create(JOBS, job(), "shop") == job()
        with pytest.raises(ClusterConflict, match=r"could not create jobs.batch in namespace shop \(409"):
            await cluster.create(JOBS, job(), "shop")
        assert await cluster.get(JOBS, "run-1", "shop") == job()
    (request, *_) = list(world.api)
    assert (request.method.value, request.url.path, request.data) == ("POST", JOB_OF_SHOP, job())


async def test_a_lost_answer_does_not_create_it_twice(world):
    def creates(request: Any) -> Any:
        world.put("batch/v1/jobs", request.data)
        return no(504, "timed out")

    world.answer(f"post {JOB_OF_SHOP}", creates)
    async with world.cluster() as cluster:
        assert await cluster.create(JOBS, job(), "shop") == job()
    assert world.asked == [f"POST {JOB_OF_SHOP}", f"GET {JOB_OF_SHOP}/run-1"]


async def test_what_never_arrived_is_posted_again(world):
    world.answer(f"post {JOB_OF_SHOP}", no(429, "slow down"), lambda _: None)
    async with world.cluster() as cluster:
        assert await cluster.create(JOBS, job(), "shop") == job()
    assert world.asked == [f"POST {JOB_OF_SHOP}", f"GET {JOB_OF_SHOP}/run-1", f"POST {JOB_OF_SHOP}"]


async def test_an_answer_that_is_late_is_no_conflict(world):
    """The first try arrives after the look that did not find it, and before the second."""
    world.answer(f"get {JOB_OF_SHOP}/run-1", no(404), (200, job()))
    world.answer(f"post {JOB_OF_SHOP}", no(504), no(409, "exists"))
    async with world.cluster() as cluster:
        assert await cluster.create(JOBS, job(), "shop") == job()
    assert [line.split()[0] for line in world.asked] == ["POST", "GET", "POST", "GET"]


@pytest.mark.parametrize("found", [job(other="1"), {**job(), "metadata": {"name": "run-1"}}])
async def test_somebody_elses_object_is_not_taken_for_ours(world, found):
    world.answer(f"post {JOB_OF_SHOP}", no(500))
    world.answer(f"get {JOB_OF_SHOP}/run-1", (200, found))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterConflict, match=r"has another jobs.batch shop/run-1 already"):
            await cluster.create(JOBS, job(), "shop")


async def test_an_object_without_marks_is_nobodys(world):
    body = {"metadata": {"name": "run-1"}}
    world.answer(f"post {JOB_OF_SHOP}", no(500))
    world.answer(f"get {JOB_OF_SHOP}/run-1", (200, body))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterConflict, match="has another"):
            await cluster.create(JOBS, body, "shop")


async def test_whether_it_was_created_may_stay_unknown(world):
    world.answer(f"post {JOB_OF_SHOP}", no(503))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterUnavailable, match=r"whether jobs.batch shop/run-1 was created is not known"):
            await cluster.create(JOBS, job(), "shop")
    world.answer(f"get {JOB_OF_SHOP}/run-1", no(403, 'User "jane" cannot get'))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused, match=r"created is not known, and it cannot be looked for: .*let jane get"):
            await cluster.create(JOBS, job(), "shop")


async def test_what_is_not_valid_is_told_in_full(world):
    why = 'Job.batch "run-1" is invalid: ' + "spec.template.spec.containers: Required value, " * 20 + "and no more"
    world.answer(f"post {JOB_OF_SHOP}", no(422, why))
    async with world.cluster() as cluster:
        with pytest.raises(ClusterRefused, match="and no more") as caught:
            await cluster.create(JOBS, job(), "shop")
    assert caught.value.status == 422


# --- deleted


async def test_an_object_is_deleted_and_one_that_is_gone_is_fine(world):
    world.put("batch/v1/jobs", job())
    async with world.cluster() as cluster:
        await cluster.delete(JOBS, "run-1", "shop")
        await cluster.delete(JOBS, "run-1", "shop", uid="1", propagation="Foreground")
        with pytest.raises(ClusterNotFound):
            await cluster.get(JOBS, "run-1", "shop")
    options = {"apiVersion": "v1", "kind": "DeleteOptions"}
    assert [request.data for request in world.api][:2] == [
        {**options, "propagationPolicy": "Background"},
        {**options, "propagationPolicy": "Foreground", "preconditions": {"uid": "1"}},
    ]


@pytest.mark.parametrize(("present", "gone"), [("2", True), (None, True), ("1", False)])
async def test_a_successor_of_the_same_name_stays(world, present, gone):
    world.put("batch/v1/jobs", job())
    found = {"metadata": {"name": "run-1", "uid": present}}
    world.answer(f"get {JOB_OF_SHOP}/run-1", (200, found) if present else no(404))
    world.answer(f"delete {JOB_OF_SHOP}/run-1", no(409, "the UID in the precondition does not match"))
    async with world.cluster() as cluster:
        if gone:
            await cluster.delete(JOBS, "run-1", "shop", uid="1")
        else:
            with pytest.raises(ClusterConflict):
                await cluster.delete(JOBS, "run-1", "shop", uid="1")
        with pytest.raises(ClusterConflict):
            await cluster.delete(JOBS, "run-1", "shop")


async def test_a_lost_answer_to_a_deletion_is_asked_for_again(world):
    world.put("batch/v1/jobs", job())
    world.answer(f"delete {JOB_OF_SHOP}/run-1", no(504), lambda _: None)
    async with world.cluster() as cluster:
        await cluster.delete(JOBS, "run-1", "shop")
    assert world.asked == [f"DELETE {JOB_OF_SHOP}/run-1"] * 2
