"""What entering a container costs: an attempt there, beside everything that it could be compared with, in one run.

A pod of two containers, the agent's and a sibling of the same base, and a mosquitto in a pod of its own. The attempt
and the raw round trip go the same way: from here over that broker to the agent's container, and back. What keys and
TLS cost is measured elsewhere: here the broker is open and nothing is signed. The functions under "in the agent's
container" are sent there as source, and run by its Python.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, cast

import aiomqtt

from benchmarks.walk import WARM_UP, WITHIN_SECONDS, TimedClient
from tests.agents import TRUE, AnyAgent, until
from tests.pods import images as recipes
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
from tests.pods.podman import environment, why_not
from tests.pods.stand_ins import Manifest

#: The measures take turns, so that what else the machine does meets all of them.
ROUNDS = 4
EACH = 50
EACH_PODMAN_EXEC = 3
PAUSE_SECONDS = 0.01

SIBLING = "sibling"
PYTHON = "/opt/podhook/bin/python"
PING, PONG = "bench/ping", "bench/pong"
#: What the functions in the agent's container import: a process that forks has no more than the launcher has.
FEW_IMPORTS = "import json, os, socket, time"
ECHO_IMPORTS = "import asyncio, functools, socket, aiomqtt"

#: Without it, an answer takes 88 ms instead of half a millisecond.
OPEN_BROKER = ("listener 1883", "allow_anonymous true", "set_tcp_nodelay true")
OPEN_AGENT = {
    "PODHOOK_BROKER": "mqtt://broker:1883",
    "PODHOOK_ALLOW_UNSIGNED": "true",
    **{f"PODHOOK_{each}": "" for each in ("TRUSTED_KEYS", "AGENT_KEY")},
    **{f"PODHOOK_BROKER_{each}_FILE": "" for each in ("CA", "USER", "PASSWORD")},
}

ATTEMPT = "attempt: publish to outcome, /bin/true in the sibling"
ROUND_TRIP = "raw MQTT QoS 1, there and back"
SPAWN = "posix_spawn + wait, in the agent's container"
PODMAN_EXEC = "podman exec of the same"
LAUNCH = "launch alone: request to exited, in the sibling"
FORK = "os.fork on demand + exec + wait"
SPAWN_AFTER_PAUSE = "posix_spawn + wait"


# -- in the agent's container


def quick(host: str) -> aiomqtt.Client:
    """A bare client, its socket as our own link has it: TCP_NODELAY, and TCP_QUICKACK armed again and again."""
    nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = aiomqtt.Client(host, protocol=aiomqtt.ProtocolVersion.V5, socket_options=[nodelay])
    paho: Any = client._client  # noqa: SLF001

    def then_quickack(original: Callable[[], object]) -> object:
        result = original()
        if (sock := paho.socket()) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return result

    for name in ("loop_read", "loop_write"):
        setattr(paho, name, functools.partial(then_quickack, getattr(paho, name)))
    return client


async def echo(host: str, ping: str, pong: str) -> None:
    """Send back what comes, for ever."""
    async with quick(host) as client:
        await client.subscribe(ping, qos=1)
        print("ready", flush=True)
        async for message in client.messages:
            await client.publish(pong, message.payload, qos=1)


def spawns(count: int) -> list[float]:
    """Milliseconds of posix_spawn and wait, one after another."""
    figures = []
    for _ in range(count):
        begun = time.perf_counter()
        os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
        figures.append((time.perf_counter() - begun) * 1000)
    return figures


def launches(count: int, container: str, pause_seconds: float) -> list[list[float]]:
    """Milliseconds of the launcher, of fork and exec, and of posix_spawn, in turn, each after a pause.

    The launcher has one child forked beforehand again after each pause, as it has between the agent's attempts. The
    others are done by its parent: as large as the launcher itself, and under the same restrictions.
    """
    from agent.pod import kernel, launcher, supervisor  # noqa: PLC0415
    from agent.pod.census import take_census  # noqa: PLC0415

    main = take_census().siblings[container]
    kernel.harden()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        launcher.serve(theirs, 0, supervisor.AGENT_UID, supervisor.COMMAND_UID)
    theirs.close()
    start = {
        "op": "start", "generation": 0, "container": container, "pid": main.pid, "started": main.started,
        "argv": ["/bin/true"], "environment": [], "inherit": True, "fallback": False, "user": "",
    }  # fmt: skip

    def hear() -> str:
        data, descriptors = kernel.receive(ours, bytearray(launcher.MAX_PACKET_BYTES))
        for descriptor in descriptors:
            os.close(descriptor)
        said = json.loads(data)
        assert said["op"] in ("hello", "started", "exited"), said
        return str(said["op"])

    def launch(number: int) -> None:
        ours.send(json.dumps({**start, "id": number}).encode())
        while hear() != "exited":
            pass

    def fork(_: int) -> None:
        pid = os.fork()
        if pid == 0:
            os.execve("/bin/true", ["/bin/true"], {})
        os.waitpid(pid, 0)

    hear()
    figures: list[list[float]] = [[], [], []]
    for number in range(count):
        for way, of_it in zip((launch, fork, lambda _: spawns(1)), figures, strict=True):
            time.sleep(pause_seconds)
            begun = time.perf_counter()
            way(number)
            of_it.append((time.perf_counter() - begun) * 1000)
        ours.send(json.dumps({"op": "forget", "id": number}).encode())
    return figures


# -- here


async def main() -> None:
    """Print the table, or why there is none."""
    if reason := why_not():
        print(f"entering a container: not measured: {reason}")
        return
    images = recipes.ensure()
    with (
        Playground() as playground,
        _open_broker(playground, images) as broker,
        _two_containers(playground, images, broker) as pod,
    ):
        _show(await _measure(broker.ip, pod))


def _open_broker(playground: Playground, images: Images) -> Pod:
    """A mosquitto that lets everybody do everything, forgetting it with its pod."""
    command = ["sh", "-c", 'printf "%s\\n" "$LINES" > /tmp/conf; exec mosquitto -c /tmp/conf']
    container = {
        "name": "mosquitto",
        "image": images.mosquitto,
        "command": command,
        "env": [{"name": "LINES", "value": "\n".join(OPEN_BROKER)}],
        "readinessProbe": {"tcpSocket": {"port": 1883}},
    }
    return Pod(
        playground,
        Manifest(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "broker"}, "spec": {"containers": [container]}}
        ),
        {},
    )


def _two_containers(playground: Playground, images: Images, broker: Pod) -> Pod:
    user = {"runAsUser": 999, "runAsGroup": 999}
    sibling = {"name": SIBLING, "image": images.base, "command": ["sleep", "infinity"], "securityContext": user}
    env = {"agent": OPEN_AGENT}
    return Pod(playground, beside_agent(sibling), images.of_examples(), env=env, hosts={"broker": broker.ip})


async def _measure(host: str, pod: Pod) -> dict[str, list[float]]:
    agent = cast("AnyAgent", pod)  # it has a name and a uid, which is all that a client needs
    action = {**TRUE, "containerName": SIBLING}
    figures: dict[str, list[float]] = {}

    def note(what: str, milliseconds: list[float]) -> None:
        figures.setdefault(what, []).extend(milliseconds)

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(TimedClient(f"mqtt://{host}:1883", "podhook", []))
        raw = await stack.enter_async_context(quick(host))
        await raw.subscribe(PONG, qos=1)
        await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
        payload = client.make(agent, action).payload
        stack.enter_context(_echoing(pod, host))
        for _ in range(WARM_UP):
            await client.timed(agent, action)
            await _round_trip(raw, payload)
        for _ in range(ROUNDS):
            note(ATTEMPT, [await client.timed(agent, action) for _ in range(EACH)])
            note(ROUND_TRIP, [await _round_trip(raw, payload) for _ in range(EACH)])
            note(SPAWN, _there(pod, f"spawns({EACH + WARM_UP})")[WARM_UP:])
            note(PODMAN_EXEC, [_podman_exec(pod) for _ in range(EACH_PODMAN_EXEC)])
            alone = _there(pod, f"launches({EACH + WARM_UP}, {SIBLING!r}, {PAUSE_SECONDS})")
            for what, milliseconds in zip((LAUNCH, FORK, SPAWN_AFTER_PAUSE), alone, strict=True):
                note(what, milliseconds[WARM_UP:])
    return figures


async def _round_trip(raw: aiomqtt.Client, payload: bytes) -> float:
    begun = time.perf_counter()
    async with asyncio.timeout(WITHIN_SECONDS):
        await raw.publish(PING, payload, qos=1)
        await anext(aiter(raw.messages))
    return (time.perf_counter() - begun) * 1000


def _podman_exec(pod: Pod) -> float:
    begun = time.perf_counter()
    pod.exec(SIBLING, "/bin/true")
    return (time.perf_counter() - begun) * 1000


def _source(imports: str, expression: str, *functions: Callable[..., Any]) -> str:
    parts = ["from __future__ import annotations", imports, *map(inspect.getsource, functions), expression]
    return "\n\n".join(parts)


def _there(pod: Pod, expression: str) -> Any:
    """What an expression is in the agent's container."""
    script = _source(FEW_IMPORTS, f"print(json.dumps({expression}))", spawns, launches)
    return json.loads(pod.exec("agent", PYTHON, "-c", script).stdout)


@contextmanager
def _echoing(pod: Pod, host: str) -> Iterator[None]:
    """An echo in the agent's container."""
    script = _source(ECHO_IMPORTS, f"asyncio.run(echo({host!r}, {PING!r}, {PONG!r}))", quick, echo)
    command = ["podman", "exec", pod.container("agent"), PYTHON, "-c", script]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as echoing:
        try:
            assert echoing.stdout is not None
            assert echoing.stdout.readline() == b"ready\n"
            yield
        finally:
            echoing.terminate()  # what it started in the container ends with the pod


def _show(figures: dict[str, list[float]]) -> None:
    total = sum(statistics.median(figures[what]) for what in (ROUND_TRIP, SPAWN))
    print(f"{'entering a container, all of /bin/true':<56}{'median ms':>10}{'p95 ms':>9}{'n':>5}{'of the sum':>12}")
    for what in (ATTEMPT, ROUND_TRIP, SPAWN, "", PODMAN_EXEC, LAUNCH, FORK, SPAWN_AFTER_PAUSE):
        if not what:
            print(f"{'  the sum of these two':<56}{total:>10.2f}{'':>9}{'':>5}{1:>11.2f}x")
            continue
        median, p95 = statistics.median(figures[what]), statistics.quantiles(figures[what], n=20)[18]
        print(f"{what:<56}{median:>10.2f}{p95:>9.2f}{len(figures[what]):>5}{median / total:>11.2f}x")


if __name__ == "__main__":
    asyncio.run(main())
