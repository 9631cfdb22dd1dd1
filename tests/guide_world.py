"""A small world in which the guide's examples are true: run as a process in network and mount namespaces of its own.

`python -m tests.guide_world DIRECTORY EXAMPLE` brings up loopback, gives `my-host.demo.svc` and
`my-service.mynamespace.svc` addresses with something listening on port 8080, starts a broker and agents for the pods
that the examples select, and an API server that knows these pods, their owners and a Function; then it runs
`podhook run EXAMPLE` with the cluster as the source of pods, and prints what came of it as JSON. See `test_guide_runs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.coordinator import Coordinator
from agent.sidecar.app import Agent
from agent.sidecar.settings import AgentSettings
from tests.brokers import Mosquitto
from tests.cluster.controllers import JobController
from tests.cluster.world import World, a_world, pod

HOSTS = {"127.0.0.2": "my-host.demo.svc", "127.0.0.3": "my-service.mynamespace.svc"}
POD_IP = "127.0.0.4"
PASSWORD = "s3cret"
NAMESPACE = "default"
FUNCTION = {
    "apiVersion": "addons.kubestash.com/v1alpha1",
    "kind": "Function",
    "metadata": {"name": "hook-function"},
    "spec": {"image": "example.com/hook:1", "args": ["migrate"]},
}
DEPLOYMENT = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "kubestash-op", "uid": "d-1"}
REPLICASET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "kubestash-op-5d9", "uid": "r-1"}
#: Pod -> labels. The first is in every example that has only an action; the others are there to be chosen from.
PODS = {
    "my-app-0": {"app": "my-app"},
    "web-0": {"app": "web", "env": "dev"},
    "web-1": {"app": "web", "env": "dev"},
    "web-2": {"app": "web", "env": "prod"},
}
MYSQL = """\
#!/bin/sh
# Stands in for the client: keeps what it was asked, and knows one password.
printf '%s\\0' "$@" > "$MYSQL_STAND_IN_RECORD"
[ "$3" = "--password={password}" ] || {{ echo "Access denied for user 'root'" >&2; exit 1; }}
"""


def loopback_up() -> None:
    """A new network namespace has a loopback that is down (netdevice(7): SIOCSIFFLAGS, IFF_UP and IFF_RUNNING)."""
    with socket.socket() as probe:
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40) + bytes(14))


def names_resolve(directory: Path) -> None:
    """Put our names over /etc/hosts, for this mount namespace only."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{ip} {name}\n" for ip, name in {"127.0.0.1": "localhost", **HOSTS}.items()))
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


async def listen(stack: contextlib.AsyncExitStack, ip: str, port: int, asked: list[dict[str, Any]]) -> int:
    """An HTTP server that keeps what it was asked, connections included; returns its port."""

    async def answer(request: web.BaseRequest) -> web.Response:
        body = (await request.read()).decode() if isinstance(request, web.Request) else ""
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked.append({"ip": ip, "method": request.method, "path": request.path, "headers": headers, "body": body})
        return web.Response(text="done")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, ip, port)
    await site.start()
    return int(runner.addresses[0][1])


def agent_settings(directory: Path, pod: str, broker: str, port: int, container: str) -> AgentSettings:
    home = directory / pod
    home.mkdir()
    (home / "labels").write_text("".join(f'{key}="{value}"\n' for key, value in PODS[pod].items()))
    containers = [{"name": container, "ports": [{"name": "my-port", "containerPort": port}]}]
    owners = [REPLICASET, DEPLOYMENT] if pod == "web-1" else []
    (home / "pod.json").write_text(json.dumps({"containers": containers, "owners": owners}))
    return AgentSettings(
        broker=broker,
        pod=pod,
        pod_uid=f"uid-{pod}",
        pod_ip=POD_IP,
        container=container,
        labels_file=home / "labels",
        pod_file=home / "pod.json",
        state_dir=home / "state",
        audit=str(home / "audit"),
        allow_unsigned=True,
        grace_seconds=0,
    )


def populate(world: World) -> JobController:
    """The cluster's side of the pods: who owns them, and a pod more, which has no agent and is being deleted."""
    for name, labels in PODS.items():
        owners = [REPLICASET | {"controller": True}] if name == "web-1" else []
        world.put("v1/pods", pod(name, NAMESPACE, uid=f"uid-{name}", labels=labels, ownerReferences=owners))
    leaving = pod("web-3", NAMESPACE, labels=PODS["web-0"], deletionTimestamp="2026-03-01T02:30:00Z")
    world.put("v1/pods", leaving)
    owner = [DEPLOYMENT | {"controller": True}]
    metadata = {"name": REPLICASET["name"], "namespace": NAMESPACE, "uid": REPLICASET["uid"], "ownerReferences": owner}
    world.put("apps/v1/replicasets", {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata})
    metadata = {"name": DEPLOYMENT["name"], "namespace": NAMESPACE, "uid": DEPLOYMENT["uid"]}
    world.put("apps/v1/deployments", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata})
    world.put("addons.kubestash.com/v1alpha1/functions", FUNCTION)
    return JobController(world, NAMESPACE, log="migrated\n")


async def run(directory: Path, example: Path, broker: str) -> dict[str, Any]:
    asked: list[dict[str, Any]] = []
    container = "mysql" if "mysql" in example.name else "my-container"
    async with contextlib.AsyncExitStack() as stack:
        for ip in HOSTS:
            await listen(stack, ip, 8080, asked)
        port = await listen(stack, POD_IP, 0, asked)
        stop = asyncio.Event()
        agents = [
            asyncio.create_task(Agent(agent_settings(directory, pod, broker, port, container)).run(stop), name=pod)
            for pod in PODS
        ]
        async with Coordinator(broker) as coordinator, asyncio.timeout(20):
            while len(await coordinator.agents()) < len(PODS):
                await coordinator.presence_changed()
        world = await stack.enter_async_context(a_world(directory))
        jobs = populate(world)
        cluster = ["--kubeconfig", str(world.kubeconfig), "--source", "kubernetes"]
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run", str(example), "--broker", broker, "-o", "json", *cluster),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(command.communicate(), 40)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*agents), 20)
    return {
        "code": command.returncode,
        "run": json.loads(out or "null"),
        "stderr": err.decode(),
        "asked": asked,
        "jobs": jobs.made,
        "api": world.asked,
    }


def main(directory: Path, example: Path) -> None:
    """Set the world up, run the example, and print what came of it."""
    loopback_up()
    names_resolve(directory)
    bin_directory = directory / "bin"
    bin_directory.mkdir()
    (bin_directory / "mysql").write_text(MYSQL.format(password=PASSWORD))
    (bin_directory / "mysql").chmod(0o755)
    os.environ["PATH"] = f"{bin_directory}:{os.environ['PATH']}"
    os.environ["MYSQL_ROOT_PASSWORD"] = PASSWORD
    os.environ["MYSQL_STAND_IN_RECORD"] = str(directory / "mysql.argv")
    broker = Mosquitto(directory)
    broker.start()
    log = (directory / "agents.log").open("w")
    try:
        with contextlib.redirect_stdout(log):  # the agents' log; the answer is alone on standard output
            found = asyncio.run(run(directory, example, broker.url))
    finally:
        broker.stop()
        log.close()
    record = directory / "mysql.argv"
    found["mysql"] = record.read_text().split("\0")[:-1] if record.exists() else None
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
