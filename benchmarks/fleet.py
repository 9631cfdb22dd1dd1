"""One run on a thousand pods: time to the last outcome and the coordinator's memory, with signatures and journals on.

Some rounds go by presence, the others by a cluster (kmock) that has the pods: two pages of them, and a list of their
owners on the way to a Deployment.

The coordinator is the real command in a process of its own. The agents are light ones, some hundred to a process, each
with its own connection, journal, audit and keys. What runs is a TCP check: a thousand commands would measure this
machine's cores, which in a cluster are a thousand nodes'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from agent.contract.signing.keys import generate, private_text, public_text
from agent.coordinator import Coordinator
from tests.agents import LightAgent, light_settings
from tests.brokers import Mosquitto, mosquitto_binary
from tests.cluster.world import World, a_world, pod

AGENTS = 1000
#: A process of agents is one core at most.
HOSTS = max(2, os.cpu_count() or 2)
ROUNDS = 3
READY_SECONDS = 120
HOOK = """\
action: {tcpSocket: {host: 127.0.0.1, port: %d}}
executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}
"""
ROOT = Path(__file__).resolve().parents[1]


async def main() -> None:
    """Print the figures of some rounds."""
    try:
        mosquitto_binary()
    except BaseException as error:  # noqa: BLE001 (pytest's skip: it is not installed)
        print(f"fleet: not measured: {error}")
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for kind in ("coordinator", "agent"):
            (directory / kind).mkdir()
            key = generate(kind)
            (directory / kind / "private.key").write_text(private_text(key))
            (directory / kind / "private.key").chmod(0o600)
            (directory / kind / "shop.pub").write_text(public_text(key))
            (directory / kind / "private.key").rename(directory / f"{kind}.key")
        broker = Mosquitto(directory, "set_tcp_nodelay true\nmax_queued_messages 2000")
        broker.start()
        try:
            with _hosts(directory, broker.url):
                await _rounds(directory, broker.url)
        finally:
            broker.stop()


@contextlib.contextmanager
def _hosts(directory: Path, url: str) -> Iterator[None]:
    """The processes that the agents live in."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    hosts = []
    for number in range(HOSTS):
        command = [sys.executable, "-m", "benchmarks.fleet", str(directory), url, str(number)]
        hosts.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE))
    try:
        yield
    finally:
        for each in hosts:
            assert each.stdin is not None
            each.stdin.close()
        for each in hosts:
            each.wait(READY_SECONDS)


async def _rounds(directory: Path, url: str) -> None:
    end = time.monotonic() + READY_SECONDS
    async with Coordinator(url, agent_keys=directory / "agent") as coordinator:
        while (online := sum(each.state == "online" for each in await coordinator.agents())) < AGENTS:
            assert time.monotonic() < end, f"only {online} agents came online within {READY_SECONDS} s"
            await asyncio.sleep(0.5)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, backlog=2048) as server:
        hook = directory / "hook.yaml"
        hook.write_text(HOOK % server.sockets[0].getsockname()[1])
        trust = ["--key", directory / "coordinator.key", "--agent-keys", directory / "agent"]
        command = [sys.executable, "-m", "agent", "run", hook, "-n", "shop", "-o", "json", "--broker", url, *trust]
        for _ in range(ROUNDS):
            await _round("fleet", [*command, "--expect", str(AGENTS)])
        owned = directory / "owned.yaml"
        owned.write_text(hook.read_text().replace("strategy:", "owner: {kind: Deployment, name: db}, strategy:"))
        command[command.index(hook)] = owned
        async with a_world(directory) as world:
            _populate(world)
            for _ in range(ROUNDS):
                asked = len(world.asked)
                await _round("fleet of a cluster", [*command, "--kubeconfig", world.kubeconfig])
                print(f"fleet of a cluster: {len(world.asked) - asked} questions to the API server")


def _populate(world: World) -> None:
    """A pod for each agent, all of one Deployment."""

    def owner(kind: str) -> dict[str, object]:
        return {"apiVersion": "apps/v1", "kind": kind, "name": "db", "uid": f"uid-{kind}", "controller": True}

    owned = {"name": "db", "namespace": "shop"}
    for kind, above in (("ReplicaSet", [owner("Deployment")]), ("Deployment", [])):
        world.put(
            f"apps/v1/{kind.lower()}s",
            {"kind": kind, "metadata": {**owned, "uid": f"uid-{kind}", "ownerReferences": above}},
        )
    for at in range(AGENTS):
        world.put("v1/pods", pod(f"db-{at}", labels={"app": "db"}, ownerReferences=[owner("ReplicaSet")]))


async def _round(what: str, command: list[object]) -> None:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    peak = asyncio.create_task(_peak_mb(process.pid))
    told, said = await process.communicate()
    seconds = time.perf_counter() - begun
    _show(what, json.loads(told), said.decode(), seconds, await peak)


def _show(what: str, run: dict[str, object], said: str, seconds: float, peak_mb: float) -> None:
    targets = run["targets"]
    assert isinstance(targets, list)
    good = sum(each["outcome"] == "succeeded" and each["verified"] for each in targets)
    times = [float(line.split("s", 1)[0]) for line in said.splitlines() if " selected " in line or " succeeded" in line]
    print(
        f"{what}: {good} of {AGENTS} outcomes, verified: {max(times) - min(times):.2f} s from the selection to the "
        f"last, {seconds:.2f} s for the whole command, coordinator's peak memory {peak_mb:.0f} MB"
    )


async def _peak_mb(pid: int) -> float:
    """The largest resident set of a process until it ends."""
    peak = 0.0
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240
        except (FileNotFoundError, ProcessLookupError):
            return peak
        found = [line for line in status.splitlines() if line.startswith("VmHWM")]
        if not found:
            return peak  # it has ended, and is not yet reaped
        peak = max(peak, int(found[0].split()[1]) / 1024)
        await asyncio.sleep(0.02)


async def _host(directory: Path, url: str, number: int) -> None:
    """Some of the agents, until standard input ends."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    home = directory / f"host-{number}"
    home.mkdir()
    mine = range(number, AGENTS, HOSTS)
    agents = []
    for at in mine:
        settings = light_settings(url, "podhook", home, f"db-{at}").model_copy(
            update={
                "allow_unsigned": False,
                "pod_uid": f"uid-shop-db-{at}",  # the cluster's word for it
                "trusted_keys": directory / "coordinator" / "shop.pub",
                "agent_key": directory / "agent.key",
            }
        )
        agents.append(LightAgent(settings))
    tasks = []
    for each in agents:
        tasks.append(asyncio.create_task(each.agent.run(each.stop), name=str(each)))
        await asyncio.sleep(0.01)  # a broker is not asked for a thousand sessions in one moment
    await asyncio.to_thread(sys.stdin.read)
    for each in agents:
        each.stop.set()
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_host(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(main())
