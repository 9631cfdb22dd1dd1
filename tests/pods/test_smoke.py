"""Real pods come up: the databases answer, the agent is beside them with nothing added, and is heard of."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.contract.messages import Presence
from tests.agents import until
from tests.brokers import poll
from tests.pods.broker import BrokerPod
from tests.pods.images import PROJECT, Images
from tests.pods.play import EXAMPLES, PASSWORD, Playground, Pod, beside_agent, sweep
from tests.pods.podman import podman
from tests.pods.stand_ins import Manifest

#: What containerd, Docker and Debian's podman give when nobody says anything, by number.
DEFAULT_CAPABILITIES = {
    0: "CHOWN", 1: "DAC_OVERRIDE", 3: "FOWNER", 4: "FSETID", 5: "KILL", 6: "SETGID", 7: "SETUID", 8: "SETPCAP",
    10: "NET_BIND_SERVICE", 13: "NET_RAW", 18: "SYS_CHROOT", 27: "MKNOD", 29: "AUDIT_WRITE", 31: "SETFCAP",
}  # fmt: skip
#: A podman that gives fewer leaves these out; the launcher needs none of them.
SOMETIMES_MISSING = {13, 27, 29}


def status(pod: Pod, container: str, pid: int | str = "self") -> dict[str, str]:
    """`/proc/PID/status`, as a process in this container sees it."""
    lines = pod.exec(container, "cat", f"/proc/{pid}/status").stdout.splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def capabilities(mask: str) -> set[int]:
    return {bit for bit in range(64) if int(mask, 16) >> bit & 1}


def test_mariadb_answers_its_own_user_and_password(mariadb: Pod) -> None:
    query = 'exec mariadb -uroot -p"$MYSQL_ROOT_PASSWORD" -N -e "select 6 * 7"'
    assert mariadb.exec("mariadb", "sh", "-c", query).stdout == "42\n"
    by_network = mariadb.exec("mariadb", "mariadb", "-h", mariadb.ip, "-uroot", f"-p{PASSWORD}", "-N", "-e", "select 1")
    assert by_network.stdout == "1\n"
    refused = mariadb.exec("mariadb", "mariadb", "-uroot", "-pwrong", "-e", "select 1", check=False)
    assert "Access denied" in refused.stderr


def test_postgresql_answers_its_own_user_and_password(postgresql: Pod) -> None:
    query = 'PGPASSWORD="$POSTGRES_PASSWORD" exec psql -h "$(hostname -i)" -U postgres -Atc "select 6 * 7"'
    assert postgresql.exec("postgresql", "sh", "-c", query).stdout == "42\n"
    wrong = ("env", "PGPASSWORD=wrong", "psql", "-h", postgresql.ip, "-U", "postgres", "-c", "select 1")
    assert "authentication failed" in postgresql.exec("postgresql", *wrong, check=False).stderr


@pytest.mark.parametrize(
    ("name", "program", "ids"), [("mariadb", "mariadbd", "999 998"), ("postgresql", "postgres", "999 999")]
)
def test_the_database_is_the_main_process_and_nobody_special(name, program, ids, request) -> None:
    pod: Pod = request.getfixturevalue(name)
    said = status(pod, name, pod.pid(name))
    assert said["Name"] == program
    assert [said["Uid"].split()[1], said["Gid"].split()[1]] == ids.split()
    assert capabilities(said["CapPrm"]) == set()


def test_the_agent_sees_the_databases_process(mariadb: Pod) -> None:
    pid = mariadb.pid("mariadb")
    assert mariadb.exec("agent", "cat", f"/proc/{pid}/comm").stdout == "mariadbd\n"
    assert mariadb.pid("agent") != 1  # process 1 is the pod's


def test_python_is_the_agents_main_process(mariadb: Pod) -> None:
    pid = mariadb.pid("agent")
    python, script, command = mariadb.exec("agent", "cat", f"/proc/{pid}/cmdline").stdout.rstrip("\0").split("\0")
    assert ["python" in Path(python).name, Path(script).name, command] == [True, "podhook", "agent"]
    assert status(mariadb, "agent", pid)["PPid"] == "0"


def test_every_main_process_carries_its_containers_name(mariadb: Pod) -> None:
    for name in ("mariadb", "agent"):
        mounts = mariadb.exec("agent", "cat", f"/proc/{mariadb.pid(name)}/mountinfo").stdout.splitlines()
        (line,) = (line.split() for line in mounts if line.split()[4] == "/dev/termination-log")
        assert re.fullmatch(rf".*/pods/{mariadb.uid}/containers/{name}/[0-9a-f]{{8}}", line[3])


def test_the_agent_has_the_runtimes_default_capabilities_and_none_added(mariadb: Pod) -> None:
    inspected = mariadb.inspect("agent")
    assert inspected["HostConfig"]["CapAdd"] == []
    assert inspected["HostConfig"]["Privileged"] is False
    bounding = capabilities(status(mariadb, "agent", mariadb.pid("agent"))["CapBnd"])
    assert bounding <= set(DEFAULT_CAPABILITIES)
    assert set(DEFAULT_CAPABILITIES) - bounding <= SOMETIMES_MISSING
    assert bounding == capabilities(status(mariadb, "mariadb", mariadb.pid("mariadb"))["CapBnd"])
    print("the agent's container has", ", ".join(DEFAULT_CAPABILITIES[bit] for bit in sorted(bounding)))


@pytest.mark.parametrize("name", ["mariadb", "postgresql"])
async def test_its_presence_is_at_the_broker(name, broker_pod: BrokerPod, request) -> None:
    pod: Pod = request.getfixturevalue(name)
    said: list[Presence | None] = []
    async with broker_pod.client() as client:
        await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
        said = client.presences[str(pod)]
    presence = said[-1]
    assert presence is not None
    assert presence.pod_uid == pod.uid
    assert presence.labels == {"app": name, "pod-uid": pod.uid}


def test_the_agent_stops_when_told(playground: Playground, images: Images) -> None:
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    manifest.pod["spec"]["restartPolicy"] = "Never"
    with Pod(playground, manifest, images.of_examples(), secrets={"mariadb": {"root-password": "x"}}) as pod:
        poll(lambda: "agent.starting" in pod.logs("agent"), "the agent has started")  # before, it is only Python
        pod.kill("agent", signal.SIGTERM)
        assert podman("wait", pod.container("agent")) == "0"
        assert pod.running("mariadb")


@pytest.mark.parametrize(
    ("image", "command"), [("tools", ["sleep", "1000"]), ("static", ["/busybox", "sleep", "1000"])]
)
def test_anything_can_stand_beside_the_agent(playground, images, image, command) -> None:
    container = {"name": "target", "image": getattr(images, image), "command": command}
    with Pod(playground, beside_agent(container), images.of_examples()) as pod:
        assert status(pod, "agent", pod.pid("target"))["Uid"].split()[1] == "999"
        before = pod.pid("target")
        pod.restart("target")
        assert pod.pid("target") != before


def test_a_pod_leaves_nothing_behind(playground: Playground, images: Images) -> None:
    with Pod(playground, beside_agent({"name": "target", "image": images.tools}), images.of_examples()) as pod:
        directory = pod.place.directory
        assert directory.is_dir()
    assert pod.pod not in podman("ps", "-a", "--format", "{{.Names}} {{.PodName}}")
    assert not directory.exists()


LEFT_BEHIND = """
import json, os, signal
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
images = Images(**json.loads({images!r}))
manifest = beside_agent(dict(name="target", image=images.tools))
with Playground() as playground, Pod(playground, manifest, images.of_examples()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_test_left_behind_is_cleared_away(playground: Playground, images: Images) -> None:
    names = json.dumps({name: getattr(images, name) for name in Images.__slots__})
    process = subprocess.Popen([sys.executable, "-c", LEFT_BEHIND.format(images=names)], cwd=PROJECT)
    process.wait(60)
    mark = f"podhook-test-{process.pid}-"
    directories = [path for path in Path(playground.directory.parent).iterdir() if path.name.startswith(mark)]
    assert len(directories) == 1
    assert mark in podman("pod", "ls", "--format", "{{.Name}}")
    sweep()
    assert mark not in podman("pod", "ls", "--format", "{{.Name}}")
    assert mark not in podman("network", "ls", "--format", "{{.Name}}")
    assert not directories[0].exists()
    assert playground.directory.exists()
    assert os.getpid() != process.pid
