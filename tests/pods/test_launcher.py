"""What becomes of commands when the launcher or the agent dies or is told to stop, and where the agent has no rights.

Processes are looked at and killed from the host, as the pod's own see nothing of the agent's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.contract.errors import ErrorCode
from agent.contract.messages import Presence, Started
from agent.contract.states import Outcome
from agent.pod.supervisor import AGENT_UID, COMMAND_UID
from tests.agents import Client, Json, offline, online, until
from tests.pods.broker import BrokerPod, heard_of
from tests.pods.images import Images
from tests.pods.play import EXAMPLES, Playground, Pod, beside_agent
from tests.pods.podman import podman
from tests.pods.stand_ins import Manifest
from tests.pods.test_like_exec import command, commands_of, printed, run, sh, told

pytestmark = pytest.mark.pods

STARTED_ANEW = (
    "the launcher was started anew, and what it had started was killed while command 'sh' ran; "
    "whether it took effect is unknown"
)
#: What a new launcher may take; podhook means to need a tenth of it.
AGAIN_SECONDS = 1.0
ATTEMPTS = 1000
AT_ONCE = 8
NOT_SHARED = "no other container's process is seen: set shareProcessNamespace: true in the pod"
NOT_ROOT = (
    "the agent's container runs as user 1000, not as root; give the agent's container runAsUser: 0 and the "
    "capabilities SETUID, SETGID, KILL and SYS_CHROOT"
)
AS_AGENT = "commands in the agent's own container run as the agent's own user"
ELSEWHERE = " of pod {} is not the agent's own ('agent'), and commands cannot run there: "


class Family(NamedTuple):
    """The agent's own processes, as the host counts."""

    parent: int
    launcher: int
    agent: int


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def families(pod: Pod) -> list[Family]:
    """The one family, or none while it is not complete."""
    parent = pod.host_pid("agent")
    by_uid = {}
    with contextlib.suppress(OSError):
        by_uid = {int(status(child)["Uid"].split()[0]): child for child in children(parent)}
    return [Family(parent, by_uid[0], by_uid[AGENT_UID])] if {0, AGENT_UID} <= set(by_uid) else []


async def family(pod: Pod) -> Family:
    await until(lambda: families(pod), f"{pod} has a launcher and an agent")
    return families(pod)[0]


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """A pod like any other."""
    target = {"name": "target", "image": images.tools}
    manifest = beside_agent(target)
    with Pod(playground, manifest, {"agent": images.agent}, hosts=broker_pod.hosts) as made:
        yield made


#: Neither a signal to the group nor one to the session reaches all of it.
STUBBORN = "trap '' TERM HUP; (setsid sh -c \"trap '' TERM HUP; setsid sleep 65432 & sleep 65432\" &); sleep 65432"


async def begin_stubborn(client: Client, pod: Pod):
    """An attempt of which three processes run, in three sessions."""
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    sent = await client.trigger(pod, sh("target", STUBBORN))
    await client.reply(Started, sent)
    await until(lambda: commands_of(pod).count("sleep 65432 ") >= 3, "all of it runs")
    return sent


# -- deaths


async def test_a_killed_launcher_is_there_again_at_once_and_only_what_ran_is_interrupted(client, pod) -> None:
    sent = await begin_stubborn(client, pod)
    before, announced = await family(pod), len(client.said(pod))
    os.kill(before.launcher, signal.SIGKILL)
    killed_at = time.monotonic()
    while (await client.run(pod, command("target", "true"))).outcome is not Outcome.SUCCEEDED:
        assert time.monotonic() - killed_at < AGAIN_SECONDS
    again_after = time.monotonic() - killed_at
    print(f"a command ran {again_after * 1000:.0f} ms after the launcher was killed")
    assert again_after < AGAIN_SECONDS
    assert told(await client.outcome(sent)) == (
        Outcome.INTERRUPTED,
        ErrorCode.LAUNCHER_RESTARTED,
        STARTED_ANEW,
    )
    assert "65432" not in commands_of(pod)
    after = await family(pod)
    assert (after.parent, after.agent) == (before.parent, before.agent)
    assert after.launcher != before.launcher
    assert len(client.said(pod)) == announced, "the agent's session noticed"


async def test_a_launcher_that_is_killed_again_and_again_is_there_each_time(client: Client, pod: Pod) -> None:
    for _ in range(5):
        before = await family(pod)
        os.kill(before.launcher, signal.SIGKILL)
        await until(lambda gone=before.launcher: [f for f in families(pod) if f.launcher != gone], "a new launcher")
        deadline = time.monotonic() + 5
        while (await run(client, pod, command("target", "true"))).outcome is not Outcome.SUCCEEDED:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("who", ["agent", "parent"])
async def test_a_killed_agent_takes_everything_with_it_and_its_container_is_started_again(client, pod, who) -> None:
    sent = await begin_stubborn(client, pod)
    before, announced = await family(pod), len(client.said(pod))
    os.kill(getattr(before, who), signal.SIGKILL)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), "its container has ended")
    assert "65432" not in pod.exec("target", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False).stdout
    await client.presence(pod, online, "online again", after=announced)
    outcome, code, _ = told(await client.outcome(sent))
    assert (outcome, code) == (Outcome.INTERRUPTED, ErrorCode.AGENT_RESTARTED)
    assert (await family(pod)).parent != before.parent
    assert await printed(client, pod, sh("target", "echo again")) == "again\n"


async def test_a_stop_lets_what_runs_finish_and_ends_with_code_0(
    playground: Playground, images: Images, broker_pod: BrokerPod
) -> None:
    manifest = beside_agent({"name": "target", "image": images.tools})
    manifest.pod["spec"]["restartPolicy"] = "Never"
    hosts, env = broker_pod.hosts, {"agent": {"PODHOOK_GRACE_SECONDS": "20"}}
    stopping = Pod(playground, manifest, {"agent": images.agent}, hosts=hosts, env=env)
    async with stopping, broker_pod.client() as client:
        await heard_of(broker_pod, stopping)
        sent = await client.trigger(stopping, sh("target", "until [ -e /tmp/go ]; do sleep 0.02; done; echo done"))
        await client.reply(Started, sent)
        stopping.kill("agent", signal.SIGTERM)
        deadline = time.monotonic() + 5
        while (late := await client.run(stopping, command("target", "true"))).outcome is Outcome.SUCCEEDED:
            assert time.monotonic() < deadline, "it was told to stop and takes new work"
        assert told(late)[:2] == (Outcome.REJECTED, ErrorCode.STOPPING)
        stopping.exec("target", "touch", "/tmp/go")
        outcome = await client.outcome(sent)
        assert (outcome.outcome, outcome.stdout.text) == (Outcome.SUCCEEDED, "done\n"), outcome
        await client.presence(stopping, lambda said: said is None, "goodbye")
        assert await asyncio.to_thread(podman, "wait", stopping.container("agent")) == "0"
        assert not [said for said in client.said(stopping) if offline(said)]


# -- nothing is left behind


def descriptors(of: Family) -> dict[str, int]:
    return {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in of._asdict().items()}


def processes(pod: Pod) -> collections.Counter[tuple[str, str]]:
    """(name, lives or zombie) of everything in the pod but what looks."""
    script = 'for each in /proc/[0-9]*/stat; do read -r line < $each && echo "$line"; done 2> /dev/null'
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for line in pod.exec("agent", "bash", "-c", script).stdout.splitlines():
        name, _, rest = line.partition("(")[2].rpartition(") ")
        if name != "bash":
            found[name, "zombie" if rest[0] == "Z" else "lives"] += 1
    return found


async def test_a_thousand_attempts_leave_no_descriptor_no_process_and_no_zombie(client: Client, pod: Pod) -> None:
    actions: list[Json] = [
        command("target", "true"),
        sh("target", "exit 3"),
        command("target", "/bin/nope"),
        sh("target", "(true & true &); echo out; echo err >&2"),
        sh("target", "setsid sleep 65433 & kill -9 $$"),
        command("agent", "true"),
    ]
    for action in actions:  # whatever is made once is made now
        await run(client, pod, action)
    of = await family(pod)
    before, running = descriptors(of), processes(pod)
    assert {state for _, state in running} == {"lives"}
    began, left = time.monotonic(), iter(range(ATTEMPTS))

    async def work() -> None:
        for number in left:
            await client.run(pod, actions[number % len(actions)])

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    print(f"{ATTEMPTS} attempts, {AT_ONCE} at once: {time.monotonic() - began:.1f} s")
    await until(lambda: descriptors(of) == before, f"no descriptor more than {before}", 5)
    await until(lambda: processes(pod) == running, f"no process more than {running}", 5)
    assert await family(pod) == of


# -- without a shared process namespace


@pytest.fixture(scope="module")
def alone(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The MariaDB example without its shared namespace, and a small web server in the database's place."""
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    manifest.pod["spec"]["shareProcessNamespace"] = False
    with web_server(manifest, playground, images, broker_pod) as made:
        yield made


@pytest.fixture(scope="module")
def restricted(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The same with the *restricted* Pod Security Standard for the agent, and a shared namespace."""
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    manifest.container("agent")["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    with web_server(manifest, playground, images, broker_pod) as made:
        yield made


def web_server(manifest: Manifest, playground: Playground, images: Images, broker_pod: BrokerPod) -> Pod:
    serve = "echo served > /home/page; exec httpd -f -p 3306 -h /home"
    manifest.container("mariadb")["command"] = ["sh", "-c", serve]
    chosen = {"mariadb": images.tools, "agent": images.agent}
    hosts, secrets = broker_pod.hosts, {"mariadb": {"root-password": "x"}}
    return Pod(playground, manifest, chosen, secrets=secrets, hosts=hosts)


def says(presence: Presence | None, sentence: str) -> bool:
    return presence is not None and any(sentence in problem for problem in presence.problems)


async def test_without_a_shared_namespace_presence_and_outcome_say_what_to_change(client, alone) -> None:
    await client.presence(alone, lambda said: says(said, NOT_SHARED), "what is missing")
    for name, which in (("mariadb", "container 'mariadb'"), ("", "the first container")):
        assert told(await run(client, alone, command(name, "true"))) == (
            Outcome.REJECTED,
            ErrorCode.CONTAINER_NOT_ENTERABLE,
            f"{which}{ELSEWHERE.format(alone)}{NOT_SHARED}; mend that, or name 'agent' in containerName",
        )


async def test_an_unprivileged_agent_says_that_it_cannot_run_commands_elsewhere(client, restricted) -> None:
    await client.presence(restricted, lambda said: says(said, NOT_ROOT), "what is missing")
    await client.presence(restricted, lambda said: says(said, AS_AGENT), "as whom commands run")
    for name, which in (("mariadb", "container 'mariadb'"), ("", "the first container")):
        assert told(await run(client, restricted, command(name, "true"))) == (
            Outcome.REJECTED,
            ErrorCode.CONTAINER_NOT_ENTERABLE,
            f"{which}{ELSEWHERE.format(restricted)}{NOT_ROOT}; mend that, or name 'agent' in containerName",
        )


@pytest.mark.parametrize("which", ["alone", "restricted"])
@pytest.mark.parametrize("port", ["mysql", 3306])
async def test_http_and_tcp_need_neither_a_shared_namespace_nor_rights(client, which, port, request) -> None:
    pod: Pod = request.getfixturevalue(which)
    got = await run(client, pod, {"httpGet": {"port": port, "path": "/page"}, "containerName": "mariadb"})
    assert (got.outcome, got.http_status) == (Outcome.SUCCEEDED, 200), got
    assert got.stdout.text == "served\n"
    opened = await run(client, pod, {"tcpSocket": {"port": port}, "containerName": "mariadb"})
    assert opened.outcome is Outcome.SUCCEEDED, opened


async def test_in_its_own_container_a_command_is_a_third_user_and_holds_no_capability(client, alone, pod) -> None:
    for each in (alone, pod):
        said = await printed(client, each, sh("agent", "id -u; id -g; id -G; grep -E 'Cap(Prm|Eff)' /proc/self/status"))
        third = str(COMMAND_UID)
        assert said.split() == [third, third, third, "CapPrm:", "0" * 16, "CapEff:", "0" * 16]


async def test_an_unprivileged_agent_runs_commands_in_its_own_container_and_stays_up(client, restricted) -> None:
    look = "id -u; grep -E 'Cap(Prm|Eff)' /proc/self/status"
    said = await printed(client, restricted, sh("agent", look))
    assert said.split() == ["1000", "CapPrm:", "0" * 16, "CapEff:", "0" * 16]
    assert restricted.inspect("agent")["RestartCount"] == 0


async def test_in_its_own_container_a_timeout_leaves_nothing_either(client: Client, pod: Pod) -> None:
    script = "trap '' TERM; setsid sleep 65434 & sleep 65434 & sleep 65434"
    outcome = await run(client, pod, sh("agent", script), timeout_seconds=0.5)
    assert outcome.outcome is Outcome.TIMED_OUT, outcome
    assert "65434" not in commands_of(pod)
