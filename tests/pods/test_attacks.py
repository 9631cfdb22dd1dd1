"""A container that turns against the agent beside it: each way that entering can go wrong, played in a real pod.

The hostile container runs as uid 999, as databases do. What a root container can do is said in the documentation, not
prevented. Each docstring names the line whose removal lets the attack through.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import itertools
import json
import os
import platform
import resource
import signal
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.contract.errors import ErrorCode
from agent.contract.messages import OutcomeMessage, Started
from agent.contract.states import Outcome
from agent.pod.supervisor import AGENT_UID, COMMAND_UID
from tests.agents import Client, Json, until
from tests.pods import play, stand_ins
from tests.pods.broker import BrokerPod
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
from tests.pods.podman import environment
from tests.pods.test_launcher import children, status
from tests.pods.test_launcher import family as agents_family

pytestmark = pytest.mark.pods

HOSTILE_UID = 999
#: Neither the hostile user nor root: its commands are nobody's to signal but the agent's.
THIRD_USER = "1234:1234"
SECRET = "the-agents-own-secret"
AS_ROOT = ("--user", "0")
AS_AGENT = ("--user", f"{AGENT_UID}:{AGENT_UID}")
#: 32 and 33 belong to the C library, which lets nobody set them: they stay as the container was started with them.
LIBRARYS_OWN = 1 << 31 | 1 << 32
#: What a child might have open, and more.
DESCRIPTORS = range(3, 24)
PYTHON = "/opt/podhook/bin/python"
ATTEMPTS = 200
ASSAULT_SECONDS = 180

#: The hostile main process: a working directory that it can delete, and a child of its own.
MAIN = """
import os, signal
os.makedirs("/tmp/work", exist_ok=True)
os.chdir("/tmp/work")
os.fork()
signal.pause()
"""

#: Before the agent: a runtime that leaves every capability inheritable and ambient, as older ones do.
AMBIENT = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, data) == 0
data[2], data[5] = data[1], data[4]
assert libc.capset(header, data) == 0
for number in range(64):
    if (data[1] | data[4] << 32) >> number & 1:
        assert libc.prctl(47, 2, number, 0, 0) == 0
os.execv("/opt/podhook/bin/podhook", ["podhook", "agent"])
"""

#: Tries everything that one process can do to another; what worked on a process of somebody else is in `won`.
SPY = """
import ctypes, json, os, signal
libc = ctypes.CDLL(None, use_errno=True)
me = os.getuid()

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def head(pid, name):
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        if name != "mem" and not file.read(1):
            raise OSError("empty")

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def memory(pid):
    page = ctypes.create_string_buffer(8)
    ours, theirs = Piece(ctypes.addressof(page), 8), Piece(ctypes.addressof(page), 8)
    if check(libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)):
        return

def descriptor(pid):
    check(libc.syscall(438, os.pidfd_open(pid), 0, 0))

def trace(pid):
    check(libc.ptrace(0x4206, pid, None, None))
    libc.ptrace(17, pid, None, None)

def attacks(pid):
    for name in ("environ", "mem", "maps", "smaps", "auxv", "io", "syscall", "stack"):
        yield name, lambda name=name: head(pid, name)
    for name in ("fd", "fdinfo", "map_files", "root", "cwd", "root/var/lib/podhook"):
        yield name + "/", lambda name=name: os.listdir(f"/proc/{pid}/{name}")
    for name in ("exe", "root", "cwd", "ns/user", "fd/0"):
        yield name, lambda name=name: os.readlink(f"/proc/{pid}/{name}")
    yield "memory", lambda: memory(pid)
    yield "descriptor", lambda: descriptor(pid)
    yield "trace", lambda: trace(pid)
    yield "signal", lambda: os.kill(pid, 0)
    yield "pidfd signal", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0)
    yield "priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)
    yield "affinity", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid))

def uids(pid):
    with open(f"/proc/{pid}/status") as file:
        return [int(word) for line in file if line.startswith("Uid:") for word in line.split()[1:]]

won, denied, on_myself, victims = [], 0, [], {}
for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
    try:
        whose = uids(pid)
    except OSError:
        continue
    if whose == [me] * 4 and pid != os.getpid():
        continue
    if pid != os.getpid():
        victims[pid] = whose[0]
    for what, attack in attacks(pid):
        try:
            attack()
        except OSError:
            denied += 1
        else:
            (on_myself if pid == os.getpid() else won).append(what if pid == os.getpid() else [what, pid, whose[0]])
print(json.dumps({"uid": me, "won": won, "denied": denied, "on_myself": on_myself, "victims": victims}))
"""

#: Stops, kills, traces and reads whatever appears, over and over, until /shared/stop is there.
ASSAULT = """
import ctypes, json, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
harm = sys.argv[1] == "harm"
end = time.monotonic() + float(sys.argv[2])
def mine(pid):
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid() or "Uid:\\t999" in open(f"/proc/{pid}/status").read()
    except OSError:
        return False
spared = {name for name in os.listdir("/proc") if name.isdigit() and mine(name)}
won, errors, seen = [], 0, set()
open("/shared/begun", "w").close()
while not os.path.exists("/shared/stop") and time.monotonic() < end:
    for name in os.listdir("/proc"):
        if not name.isdigit() or name in spared:
            continue
        pid = int(name)
        seen.add(pid)
        for _ in range(10):
            if harm:
                for number in (signal.SIGSTOP, signal.SIGKILL):
                    try:
                        os.kill(pid, number)
                        won.append([number.name, pid])
                    except OSError:
                        errors += 1
                if libc.ptrace(0x4206, pid, None, None) == 0:
                    won.append(["ptrace", pid])
                else:
                    errors += 1
            try:
                with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                    data = file.read()
            except OSError:
                errors += 1
            else:
                if b"AGENTS_SECRET" in data:
                    won.append(["environ", pid])
print(json.dumps({"won": won[:20], "errors": errors, "seen": len(seen)}))
"""

#: Asks a launcher of its own, in the agent's container and with its rights, for what the agent would never ask.
ASK = """
import json, os, socket, sys
from agent.pod import kernel, launcher
kernel.harden()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    ours.close()
    launcher.serve(theirs, 7, 64918, 64919)
theirs.close()
ours.settimeout(20)
assert json.loads(kernel.receive(ours, bytearray(1 << 18))[0])["op"] == "hello"
ours.send(sys.stdin.buffer.read())
data, descriptors = kernel.receive(ours, bytearray(1 << 18))
print(json.dumps({**json.loads(data), "descriptors": len(descriptors)}))
"""

CENSUS = """
import dataclasses, json
from agent.pod.census import take_census
print(json.dumps(dataclasses.asdict(take_census())))
"""

HOME = """
import json, sys
from agent.pod.target import home_of
print(json.dumps([part.decode() for part in home_of(open(f"/proc/{sys.argv[1]}/mountinfo", "rb").read())]))
"""

#: In a user and mount namespace of its own, with a root where only the line that it made is to be seen.
FORGE = """
import ctypes, os, signal, sys
kind, path = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
def check(result):
    if result != 0:
        sys.exit(f"refused: {os.strerror(ctypes.get_errno())}")
def mount(source, target, kind, flags):
    check(libc.mount(source.encode(), target.encode(), kind, flags, None))
if kind == "prefix":  # the same disk as the termination logs, another folder
    path = "/shared" + path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").close()
if kind == "only-user-namespace":
    check(libc.unshare(0x10000000))
else:
    check(libc.unshare(0x10000000 | 0x00020000))
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
if kind != "only-user-namespace":
    mount("t", "/mnt", b"tmpfs", 0)
    if kind == "device":  # the same folder, another disk
        path = "/mnt" + path
        os.makedirs(os.path.dirname(path))
        open(path, "w").close()
    open("/mnt/line", "w").close()
    mount(path, "/mnt/line", None, 4096)
    proc = os.open("/proc", os.O_RDONLY)
    os.chroot("/mnt")
    os.chdir("/")
    print(open(os.open("self/mountinfo", os.O_RDONLY, dir_fd=proc)).read().strip().splitlines()[-1], flush=True)
else:
    print("here", flush=True)
signal.alarm(120)
signal.pause()
"""

#: Whatever Python might import, with a note of who imported it.
POISON = """
import os, sys
folders = sys.argv[1:]
text = '''
import posix
_noted = posix.open("/ran", posix.O_WRONLY | posix.O_APPEND)
posix.write(_noted, (__name__ + " " + str(posix.getuid()) + chr(10)).encode())
posix.close(_noted)
'''
os.close(os.open("/ran", os.O_CREAT | os.O_WRONLY))
os.chmod("/ran", 0o666)
names = sorted(sys.stdlib_module_names) + ["agent", "structlog", "sitecustomize", "usercustomize"]
for folder in folders:
    for name in names:
        package = os.path.join(folder, name)
        os.makedirs(folder, exist_ok=True)
        for path in (package + ".py", os.path.join(package, "__init__.py")):
            try:
                with open(path, "w") as file:
                    file.write(text)
            except OSError:
                pass  # no such package, or /sys
"""


# -- the pod


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """A hostile container, one that it would like to be, one with a poisoned Python, and the agent."""
    user = {"runAsUser": HOSTILE_UID, "runAsGroup": HOSTILE_UID}
    hostile: Json = {
        "name": "hostile",
        "image": images.base,
        "command": ["python3", "-c", f"exec({MAIN!r})"],  # podman takes no empty lines
        "securityContext": dict(user),
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }
    victim = {"name": "victim", "image": images.base, "command": ["sleep", "infinity"], "securityContext": dict(user)}
    poisoned = {
        "name": "poisoned",
        "image": images.base,
        "command": ["sleep", "infinity"],
        "securityContext": dict(user),
        "workingDir": "/home",
        "env": [{"name": "PYTHONPATH", "value": "/evil"}, {"name": "PYTHONHOME", "value": "/evil"}],
    }
    limits = "ulimit -S -n 77; ulimit -H -n 88; ulimit -S -f 1000; echo 987 > /proc/self/oom_score_adj"
    limited = {**victim, "name": "limited", "command": ["bash", "-c", f"{limits}; exec sleep infinity"]}
    fill = "for each in {10..21}; do export BIG_$each=$(printf %0100000d 0); done"
    vast = {**victim, "name": "vast", "command": ["bash", "-c", f"{fill}; exec sleep infinity"]}
    manifest = beside_agent(hostile, victim, poisoned, limited, vast)
    manifest.pod["spec"]["volumes"].append({"name": "shared", "emptyDir": {}})
    manifest.container("agent")["command"] = [PYTHON, "-c", f"exec({AMBIENT!r})"]
    manifest.container("agent")["securityContext"].pop("allowPrivilegeEscalation", None)  # podhook's own does it
    env = {"agent": {"AGENTS_SECRET": SECRET}}
    with Pod(playground, manifest, images.of_examples(), env=env, hosts=broker_pod.hosts) as made:
        yield made


@pytest.fixture
async def client(broker_pod: BrokerPod, pod: Pod) -> AsyncIterator[Client]:
    async with broker_pod.client() as made:
        await until(lambda: made.presences.get(str(pod)), f"{pod} is heard of")
        yield made


async def run(client: Client, pod: Pod, *command: str, container: str = "hostile", **more: Any) -> OutcomeMessage:
    return await client.run(pod, {"exec": {"command": [*command], **more}, "containerName": container})


def as_hostile(pod: Pod, script: str, *arguments: str, **options: Any) -> str:
    """What the hostile container does by itself."""
    return pod.exec("hostile", "python3", "-c", script, *arguments, **options).stdout


def ask(pod: Pod, **request: Any) -> Json:
    """Ask the launcher for the impossible; its answer."""
    whole = {
        "op": "start", "id": 1, "generation": 7, "argv": ["/bin/true"], "environment": [], "inherit": False,
        "fallback": False, "user": "", **request,
    }  # fmt: skip
    answer: Json = json.loads(pod.exec("agent", PYTHON, "-c", ASK, input=json.dumps(whole)).stdout)
    return answer


#: What a child can be asked for in a container: to become a command there, or only to look at the environment.
JOBS: tuple[Json, ...] = ({}, {"argv": [], "look": True})


def census(pod: Pod) -> Json:
    """What the agent sees, as the agent."""
    seen: Json = json.loads(pod.exec("agent", PYTHON, "-c", CENSUS, flags=AS_AGENT).stdout)
    return seen


def stat_of(pod: Pod, pid: int) -> list[str]:
    """State, parent, ... of a process, as the pod counts."""
    return pod.exec("agent", "cat", f"/proc/{pid}/stat").stdout.rpartition(") ")[2].split()


def started(pod: Pod, pid: int) -> int:
    return int(stat_of(pod, pid)[19])


def family(host_pid: int) -> list[int]:
    """A process and all that came from it, as the host counts."""
    children = Path(f"/proc/{host_pid}/task/{host_pid}/children").read_text(encoding="ascii").split()
    return [host_pid, *(each for child in children for each in family(int(child)))]


# -- 1


async def test_a_working_directory_replaced_by_a_link_leads_nowhere(client: Client, pod: Pod) -> None:
    """Fails with os.chdir(os.readlink("cwd", dir_fd=process)) for os.fchdir(cwd) in stepping._step_in."""
    pod.exec("agent", "sh", "-c", "echo secret > /agents-secret; chmod 644 /agents-secret")
    as_hostile(pod, "import os; os.rmdir('/tmp/work')")
    main = pod.exec("hostile", "stat", "-L", "-c", "%d:%i", f"/proc/{pod.pid('hostile')}/cwd").stdout
    look = "cat ../../../../../../agents-secret; stat -L -c %d:%i /proc/self/cwd"
    for number in DESCRIPTORS:
        as_hostile(pod, LINK, "/tmp/work (deleted)", f"/proc/self/fd/{number}")
        outcome = await run(client, pod, "/bin/sh", "-c", look)
        assert outcome.stdout.text == main, f"descriptor {number}: {outcome}"


LINK = """
import os, sys
name, target = sys.argv[1:]
if os.path.lexists(name):
    os.unlink(name)
os.symlink(target, name)
"""


# -- 2


async def test_no_program_is_reached_through_a_descriptor(client: Client, pod: Pod) -> None:
    """Fails without os.closerange in stepping.become."""
    pod.exec("agent", "sh", "-c", "cp /usr/bin/id /agents-id && chmod 4755 /agents-id")
    for number in DESCRIPTORS:
        for path in ("agents-id", "../../agents-id", "../../../agents-id", "proc/self/root/agents-id"):
            outcome = await run(client, pod, f"/proc/self/fd/{number}/{path}")
            assert outcome.error is not None, outcome
            assert outcome.error.code == ErrorCode.NOT_FOUND, f"descriptor {number}, {path}: {outcome}"


async def test_a_program_sees_its_three_descriptors_only(client: Client, pod: Pod) -> None:
    """Fails with close-on-exec taken from a descriptor and no os.closerange in stepping.become."""
    assert (await run(client, pod, "ls", "/proc/self/fd")).stdout.text.split() == ["0", "1", "2", "3"], "3 is ls's own"


async def test_a_set_user_id_program_of_the_agents_container_gains_nothing(client: Client, pod: Pod) -> None:
    """Fails without PR_SET_NO_NEW_PRIVS in kernel.harden. In other containers the kernel sees to it."""
    pod.exec("agent", "sh", "-c", "cp /usr/bin/id /agents-id && chmod 4755 /agents-id")
    works = pod.exec("agent", "/agents-id", "-u", flags=("--user", str(HOSTILE_UID)))
    assert works.stdout == "0\n", "the set-id bit works in this container"
    outcome = await run(client, pod, "/agents-id", "-u", container="agent")
    assert outcome.stdout.text == f"{COMMAND_UID}\n", outcome


# -- 3


async def test_nothing_that_python_could_import_in_the_container_runs(client: Client, pod: Pod) -> None:
    """Fails without sys.path.clear() and its like in launcher.serve, once a child imports anything late."""
    said = pod.exec("agent", PYTHON, "-c", "import json, sys; print(json.dumps(sys.path))").stdout
    folders = [folder for folder in json.loads(said) if folder and not folder.endswith(".zip")]
    folders += ["/", "/home", "/evil", "/evil/lib/python3.11"]
    pod.exec("poisoned", "python3", "-c", POISON, *folders, flags=(*AS_ROOT, "-e", "PYTHONPATH=", "-e", "PYTHONHOME="))
    pod.exec("poisoned", "python3", "-c", "", check=False)
    noted = pod.exec("poisoned", "cat", "/ran").stdout
    assert f"encodings {HOSTILE_UID}\n" in noted, f"the poison works: {noted!r}"
    pod.exec("poisoned", "sh", "-c", ": > /ran")
    for command, more in (
        (["/bin/true"], {}),
        (["true"], {}),
        (["no-such-program"], {}),
        (["/etc"], {}),
        (["/bin/echo", "\u00e9\u4e16"], {}),
        (["/bin/echo", "x" * 60_000], {}),
        (["/bin/true"], {"user": "nobody"}),
        (["/bin/true"], {"user": "nobody-here"}),
        (["/bin/true"], {"user": "root"}),
        (["/bin/true"], {"env": [{"name": "PYTHONSTARTUP", "value": "/evil/os.py"}]}),
    ):
        await run(client, pod, *command, container="poisoned", **more)
    assert pod.exec("poisoned", "cat", "/ran").stdout == ""
    assert (await run(client, pod, "/bin/true", container="poisoned")).outcome is Outcome.SUCCEEDED


# -- 4 and 6


@pytest.mark.parametrize("user", [THIRD_USER, ""])
async def test_two_hundred_attempts_under_assault_all_succeed(client: Client, pod: Pod, user: str) -> None:
    """Fails with os.setresuid(target.uid, 0, 0) for setfsuid in stepping._step_in; "": with PR_SET_DUMPABLE 1 in
    _drop_to. As the hostile user itself only memory is attacked: ending one's own commands is no attack.
    """
    shared = pod.place.directory / "volumes" / "shared"
    for name in ("stop", "begun"):
        (shared / name).unlink(missing_ok=True)
    kind, within = ("harm" if user else "read"), ASSAULT_SECONDS
    assault = asyncio.create_task(
        asyncio.to_thread(as_hostile, pod, ASSAULT, kind, str(within), within_seconds=within + 30)
    )
    more = {"user": user} if user else {}
    try:
        await until((shared / "begun").exists, "the assault has begun")
        outcomes = [await run(client, pod, "/bin/true", **more) for _ in range(ATTEMPTS)]
        assert not assault.done()
    finally:
        (shared / "stop").touch()
        said = json.loads(await assault)
    assert said["won"] == []
    assert said["seen"] > ATTEMPTS / 2, f"the assault saw hardly anybody: {said}"
    assert said["errors"] > 10_000, f"the assault hardly tried: {said}"
    assert {each.outcome for each in outcomes} == {Outcome.SUCCEEDED}, outcomes


# -- 5


@pytest.fixture
def homes(pod: Pod) -> Json:
    """(device, path prefix, container) of every container, as the launcher sees its own."""
    return {name: home(pod, main["pid"]) for name, main in census(pod)["mains"].items()}


def home(pod: Pod, pid: int) -> list[str]:
    said: list[str] = json.loads(pod.exec("agent", PYTHON, "-c", HOME, str(pid)).stdout)
    return said


@pytest.fixture
async def forge(pod: Pod, homes: Json) -> AsyncIterator[Any]:
    """Starts a forger of one kind; its pid in the pod, once its line stands."""
    running: list[asyncio.subprocess.Process] = []

    async def start(kind: str) -> int:
        marker = f"forger-{kind}"
        script = f"# {marker}\n{FORGE}"
        path = f"{homes['victim'][1]}/victim/deadbeef"
        before = pids_saying(pod, marker)
        process = await asyncio.create_subprocess_exec(
            "podman", "exec", pod.container("hostile"), "python3", "-c", script, kind, path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        if not line:
            why = (await process.stderr.read()).decode().strip()
            pytest.skip(f"this kernel lets no container make a user namespace, so nothing can be forged: {why}")
        if kind != "only-user-namespace":
            assert "containers/victim/deadbeef" in line, line
        (pid,) = pids_saying(pod, marker) - before
        return pid

    yield start
    for pid in pids_saying(pod, "# forger-"):
        pod.exec("hostile", "python3", "-c", f"import os; os.kill({pid}, 9)", check=False)
    for process in running:
        await asyncio.wait_for(process.wait(), 30)


def pids_saying(pod: Pod, word: str) -> set[int]:
    """Processes (as the pod counts) whose command line has this word and that are alive."""
    script = (
        "import os, sys\n"
        "for name in os.listdir('/proc'):\n"
        "    if name.isdigit() and int(name) != os.getpid():\n"
        "        try:\n"
        "            if sys.argv[1].encode() in open(f'/proc/{name}/cmdline', 'rb').read(): print(name)\n"
        "        except OSError: pass\n"
    )
    return {int(pid) for pid in pod.exec("agent", PYTHON, "-c", script, word).stdout.split()}


@pytest.mark.parametrize("kind", ["prefix", "device"])
async def test_a_forged_termination_log_is_not_believed(
    client: Client, pod: Pod, homes: Json, forge: Any, kind: str
) -> None:
    """Fails without the uid_map and home[:2] != own[:2] in census.take_census, and without home in target._identify."""
    forger = await forge(kind)
    assert stat_of(pod, forger)[1] == "0", "the forger has no parent, as a main process"
    pod.restart("victim")  # the forger is older now than the one it claims to be
    seen = census(pod)["mains"]
    assert seen["victim"]["pid"] == pod.pid("victim")
    assert {name: home(pod, main["pid"])[:2] for name, main in seen.items()} == {
        name: its[:2] for name, its in homes.items()
    }
    for job in JOBS:
        answer = ask(pod, pid=forger, started=started(pod, forger), container="victim", **job)
        assert (answer["op"], answer.get("step")) == ("failed", "identity: the process is not of that container")
    outcome = await run(client, pod, "cat", f"/proc/{pod.pid('victim')}/comm", container="victim")
    assert outcome.stdout.text == "sleep\n", outcome


async def test_a_process_of_another_user_namespace_is_not_entered(pod: Pod, homes: Json, forge: Any) -> None:
    """Fails without stepping._check_namespace (the kernel refuses already what comes before)."""
    forger = await forge("only-user-namespace")
    for job in JOBS:
        answer = ask(pod, pid=forger, started=started(pod, forger), container="hostile", **job)
        assert answer["op"] == "failed"
        assert answer["step"] in ("root", "ns/user", "identity: another user namespace")


async def test_a_process_with_a_parent_is_no_main_process_to_the_child(pod: Pod, homes: Json) -> None:
    """Fails without int(fields[1]) != 0 in target._identify."""
    main = pod.pid("hostile")
    (child,) = (int(pid) for pid in pod.exec("agent", "cat", f"/proc/{main}/task/{main}/children").stdout.split())
    for job in JOBS:
        assert ask(pod, pid=main, started=started(pod, main), container="hostile", **job)["op"] == "started"
        answer = ask(pod, pid=child, started=started(pod, child), container="hostile", **job)
        assert (answer["op"], answer.get("step")) == ("failed", "identity: the container's main process is gone")


async def test_an_orphan_of_a_container_that_restarted_is_no_main_process(client: Client, pod: Pod) -> None:
    """Fails without stat[1] != 0 in census.take_census."""
    host_pid = str(pod.host_pid("victim"))
    entered = await asyncio.create_subprocess_exec(
        "nsenter", "-t", host_pid, "-m", "-p", "-S", str(HOSTILE_UID), "sh", "-c", "sleep 98765 & "
    )
    assert await entered.wait() == 0
    (orphan,) = pids_saying(pod, "98765")
    try:
        assert stat_of(pod, orphan)[1] == "1"
        pod.restart("victim")
        assert started(pod, orphan) < started(pod, pod.pid("victim"))
        assert census(pod)["mains"]["victim"]["pid"] == pod.pid("victim")
        assert (await run(client, pod, "/bin/true", container="victim")).outcome is Outcome.SUCCEEDED
    finally:
        pod.exec("agent", "sh", "-c", f"kill -KILL {orphan}")


def test_a_pid_that_is_somebody_elses_now_is_refused(pod: Pod, homes: Json) -> None:
    """Fails without int(fields[19]) != job.started in target._identify."""
    main = pod.pid("hostile")
    for job in JOBS:
        answer = ask(pod, pid=main, started=started(pod, main) - 1, container="hostile", **job)
        assert (answer["op"], answer.get("step")) == ("failed", "identity: the container's main process is gone")


# -- 6


async def test_every_descriptor_of_the_agents_processes_is_closed_on_execve(client: Client, pod: Pod) -> None:
    """Fails without MSG_CMSG_CLOEXEC in kernel.receive."""
    sent = await client.trigger(pod, {"exec": {"command": ["sleep", "87654"]}, "containerName": "hostile"})
    await until(lambda: pids_saying(pod, "87654"), "the command runs")
    flags = {}
    for pid in family(pod.host_pid("agent")):
        if b"87654" in Path(f"/proc/{pid}/cmdline").read_bytes():
            continue
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            if int(entry.name) > 2:
                said = dict(line.split(":\t") for line in entry.read_text().splitlines() if ":\t" in line)
                flags[pid, int(entry.name)] = int(said["flags"], 8) & 0o2000000
    await client.cancel(pod, sent)
    await client.outcome(sent)
    assert len({pid for pid, _ in flags}) == 4, "parent, agent, launcher and the idle child"
    assert [at for at, cloexec in flags.items() if not cloexec] == []


@pytest.mark.parametrize("user", ["", "root"])
async def test_no_capability_is_ambient_or_inheritable(client: Client, pod: Pod, user: str) -> None:
    """Fails without limit_capabilities in kernel.harden."""
    more = {"user": user} if user else {}
    outcome = await run(client, pod, "grep", "-E", "Cap(Inh|Amb)", "/proc/self/status", **more)
    assert outcome.stdout.text.split() == ["CapInh:", "0" * 16, "CapAmb:", "0" * 16], outcome


async def test_output_can_be_opened_again_by_its_name(client: Client, pod: Pod) -> None:
    """Fails with _pipes() before set_filesystem_ids in stepping.become."""
    outcome = await run(client, pod, "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr", container="victim")
    assert (outcome.stdout.text, outcome.stderr.text) == ("out\n", "err\n"), outcome


def test_not_even_root_in_the_agents_container_reads_its_processes(pod: Pod) -> None:
    """Fails without PR_SET_DUMPABLE in kernel.harden (parent, launcher and idle child)."""
    main = pod.pid("agent")
    launched = set()
    for host_pid in family(pod.host_pid("agent")):
        text = Path(f"/proc/{host_pid}/status").read_text(encoding="ascii", errors="replace")
        launched.add(int(next(line for line in text.splitlines() if line.startswith("NSpid")).split()[-1]))
    assert main in launched
    assert len(launched) >= 4, "parent, agent, launcher and the idle child"
    assert SECRET in pod.exec("agent", "sh", "-c", "cat /proc/self/environ").stdout, "root reads what is dumpable"
    for pid in launched:
        for name in ("environ", "mem", "maps", "root/"):
            said = pod.exec("agent", "ls" if name.endswith("/") else "cat", f"/proc/{pid}/{name}", check=False)
            assert "Permission denied" in said.stderr, (pid, name, said)


# -- 7, and the agent's own container


def test_the_hostile_user_learns_nothing_of_the_agent(pod: Pod) -> None:
    """Fails with AGENT_UID = 999 in supervisor."""
    said = json.loads(as_hostile(pod, SPY))
    assert said["uid"] == HOSTILE_UID
    assert {"environ", "fd/", "root/", "memory", "signal"} <= set(said["on_myself"]), said
    assert {0, AGENT_UID} <= set(said["victims"].values()), said
    assert said["won"] == []


async def test_a_command_in_the_agents_own_container_learns_nothing_of_the_agent(client: Client, pod: Pod) -> None:
    """Fails with COMMAND_UID = AGENT_UID in supervisor."""
    outcome = await run(client, pod, "/usr/bin/python3", "-c", SPY, container="agent")
    assert outcome.outcome is Outcome.SUCCEEDED, outcome
    said = json.loads(outcome.stdout.text)
    assert said["uid"] == COMMAND_UID
    assert {0, AGENT_UID, HOSTILE_UID} <= set(said["victims"].values()), said
    assert said["won"] == []


async def test_a_command_in_the_agents_own_container_cannot_read_the_journal(client: Client, pod: Pod) -> None:
    """Fails with COMMAND_UID = AGENT_UID in supervisor."""
    script = "for each in /var/lib/podhook/journal-*; do head -c 1 $each && echo READ; : >> $each && echo WRITTEN; done"
    outcome = await run(client, pod, "/bin/sh", "-c", script, container="agent")
    assert outcome.stdout.text == "", outcome
    assert "ermission denied" in outcome.stderr.text


async def test_a_command_in_the_agents_own_container_cannot_remove_the_journal(client: Client, pod: Pod) -> None:
    outcome = await run(
        client, pod, "/bin/sh", "-c", "touch /var/lib/podhook/planted && rm /var/lib/podhook/planted", container="agent"
    )
    assert outcome.outcome is Outcome.FAILED, outcome
    assert "ermission denied" in outcome.stderr.text


# -- whom a command becomes


#: -1 to setresuid(2), which leaves what is there: root.
NOBODY_AT_ALL = "4294967295"
#: Lines that an image may have in its /etc/passwd.
ODD_USERS = f"""\
minus-uid:x:{NOBODY_AT_ALL}:1234::/:/bin/sh
minus-gid:x:1234:{NOBODY_AT_ALL}::/:/bin/sh
wrapped:x:4294967296:4294967296::/:/bin/sh
toor:x:0:0::/:/bin/sh
like-the-agent:x:{AGENT_UID}:{AGENT_UID}::/:/bin/sh
like-its-commands:x:{COMMAND_UID}:{COMMAND_UID}::/:/bin/sh
"""
NOT_AN_ID = "user: not an id"
ROOT_AGAIN = "user: another name of root"
OUR_OWN = "user: podhook's own"


@pytest.fixture(scope="module")
def odd_users(pod: Pod) -> None:
    pod.exec("poisoned", "sh", "-c", "cat >> /etc/passwd", input=ODD_USERS, flags=AS_ROOT)


@pytest.mark.parametrize(
    ("user", "step"),
    [
        (NOBODY_AT_ALL, NOT_AN_ID),
        (f"{NOBODY_AT_ALL}:{NOBODY_AT_ALL}", NOT_AN_ID),
        (f"1234:{NOBODY_AT_ALL}", NOT_AN_ID),
        (f"{NOBODY_AT_ALL}:1234", NOT_AN_ID),
        ("4294967296", NOT_AN_ID),
        ("18446744073709551615:18446744073709551615", NOT_AN_ID),
        ("minus-uid", NOT_AN_ID),
        ("minus-gid", NOT_AN_ID),
        ("wrapped", NOT_AN_ID),
        ("-1", "user: unknown"),
        ("+0", "user: unknown"),
        ("toor", ROOT_AGAIN),
        ("like-the-agent", OUR_OWN),
        ("like-its-commands", OUR_OWN),
        (f"{AGENT_UID}", OUR_OWN),
        (f"{COMMAND_UID}:1234", OUR_OWN),
    ],
)
async def test_a_user_that_would_be_root_or_podhook_itself_is_refused(
    client: Client, pod: Pod, odd_users: None, user: str, step: str
) -> None:
    """Fails without the bounds in job.parse_user and stepping._look_up and the comparison of ids in stepping._drop_to
    (any one of them stops it), without ids[0] == 0 in stepping._ids, without own.agent_uid in stepping._ids.
    """
    main = pod.pid("poisoned")
    answer = ask(pod, pid=main, started=started(pod, main), container="poisoned", argv=["/usr/bin/id"], user=user)
    assert (answer["op"], answer.get("step"), answer.get("begun")) == ("failed", step, False), answer
    with contextlib.suppress(ValidationError):  # most of them are no trigger at all
        outcome = await run(client, pod, "/usr/bin/id", user=user, container="poisoned")
        assert outcome.outcome is Outcome.FAILED, outcome
        assert outcome.stdout.text == ""


@pytest.mark.parametrize("user", ["65532", "65533"])
def test_the_usual_nonroot_user_of_images_learns_nothing_of_the_agent(pod: Pod, user: str) -> None:
    """Fails with AGENT_UID = 65532 in supervisor, or COMMAND_UID = 65533 while a command runs."""
    said = json.loads(as_hostile(pod, SPY, flags=("--user", f"{user}:{user}")))
    assert said["uid"] == int(user)
    assert {0, AGENT_UID, HOSTILE_UID} <= set(said["victims"].values()), said
    assert said["won"] == []


# -- a compromised agent


#: A launcher as in ASK. Sends each packet (base64, one a line) and then asks what is left of nobody: what it answered
#: before that is the answer. In the end, a command must still run.
PESTER = """
import base64, json, os, socket, sys
from agent.pod import kernel, launcher
kernel.harden()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    ours.close()
    launcher.serve(theirs, 7, 64918, 64919)
theirs.close()
ours.settimeout(25)

def hear():
    data, descriptors = kernel.receive(ours, bytearray(1 << 18))
    for descriptor in descriptors:
        os.close(descriptor)
    return json.loads(data)

def start(number, *argv):
    ours.send(json.dumps({"op": "start", "id": number, "generation": 7, "container": None, "pid": 0, "started": 0,
        "argv": argv, "environment": [], "inherit": False, "fallback": False, "user": ""}).encode())
    assert hear()["op"] == "started"

assert hear()["op"] == "hello"
start(1, "/bin/sleep", "60")
answers = []
for line in sys.stdin.read().split():
    ours.send(base64.b64decode(line))
    ours.send(json.dumps({"op": "left", "id": 5000, "n": len(answers)}).encode())
    heard = []
    while True:
        said = hear()
        if said["op"] == "left" and said["id"] == 5000:
            assert said["n"] == len(answers)
            break
        if not (said["op"] == "failed" and heard and said["id"] != 3):
            heard.append(said)
    if line in sys.argv[1:] and not heard:
        heard.append(hear())  # a job is judged by the child
    answers.append(heard)
start(2, "/bin/true")
assert hear() == {"op": "exited", "id": 2, "code": 0, "alone": True}
assert os.waitpid(pid, os.WNOHANG) == (0, 0)
print(json.dumps(answers))
"""


def pester(pod: Pod, *packets: bytes, jobs: bool = False) -> list[list[Json]]:
    """What a launcher answered to each packet; it lives, and serves. Attempt 1 is a running command.

    `jobs`: every packet is a start that has to be answered.
    """
    lines = [base64.b64encode(packet).decode() for packet in packets]
    awaited = lines if jobs else []
    said = pod.exec("agent", PYTHON, "-c", PESTER, *awaited, input="\n".join(lines)).stdout
    answers: list[list[Json]] = json.loads(said)
    return answers


def request(**fields: Any) -> bytes:
    whole = {
        "op": "start", "id": 3, "generation": 7, "container": None, "pid": 0, "started": 0, "argv": ["/bin/true"],
        "environment": [], "inherit": False, "fallback": False, "user": "", **fields,
    }  # fmt: skip
    return json.dumps(whole).encode()


def test_a_compromised_agent_gets_nothing_but_refusals_for_jobs_that_are_none(pod: Pod) -> None:
    """Fails without the types and bounds in job.parse_job; a path as pid without them would be opened below /proc."""
    where: Json = {"container": "hostile", "pid": pod.pid("hostile"), "started": started(pod, pod.pid("hostile"))}
    jobs: list[Json] = [
        {**where, "pid": str(where["pid"])},
        {**where, "pid": f"{where['pid']}/../{pod.pid('agent')}"},
        {**where, "pid": "self"},
        {**where, "pid": "../tmp/work"},
        {**where, "pid": float(where["pid"])},
        {**where, "pid": True},
        {**where, "pid": None},
        {**where, "pid": [where["pid"]]},
        {**where, "pid": 0},
        {**where, "pid": -1},
        {**where, "pid": 1 << 40},
        {**where, "started": str(where["started"])},
        {**where, "started": 1 << 80},
        {**where, "container": 5},
        {**where, "container": ["hostile"]},
        {**where, "container": "hostile\0"},
        {**where, "user": 0},
        {**where, "user": None},
        {**where, "user": "0\0"},
        {"user": "root"},
        {"user": f"{AGENT_UID}"},
        {"user": "nobody"},
        {"argv": []},
        {"argv": "/bin/true"},
        {"argv": None},
        {"argv": [["/bin/true"]]},
        {"argv": ["/bin/true\0"]},
        {"argv": ["\ud800"]},
        {"argv": [5]},
        {"environment": {"A": "b"}},
        {"environment": [["A"]]},
        {"environment": [["A", "b", "c"]]},
        {"environment": ["AB"]},
        {"environment": [["", "b"]]},
        {"environment": [["A=B", "c"]]},
        {"environment": [["A", "\0"]]},
        {"environment": [["A", None]]},
        {"inherit": 1},
        {"fallback": None},
        {**where, "look": 1, "argv": []},
        {**where, "look": "true", "argv": []},
        {**where, "look": True},
        {"look": True, "argv": []},
    ]
    for job, answer in zip(jobs, pester(pod, *(request(**job) for job in jobs), jobs=True), strict=True):
        assert [(said["op"], said["id"], said["errno"], said["begun"]) for said in answer] == [
            ("failed", 3, errno.EINVAL, False)
        ], (job, answer)


def test_a_compromised_agent_enters_no_other_container_than_it_names_and_never_its_own(pod: Pod, homes: Json) -> None:
    """Fails without home in target._identify (its three parts)."""
    for container, of in (("victim", "hostile"), ("agent", "hostile"), ("hostile", "agent"), ("agent", "agent")):
        main = pod.pid(of)
        for name, job in itertools.product((container, f"../{container}", ""), JOBS):
            answer = ask(pod, container=name, pid=main, started=started(pod, main), **job)
            assert answer["op"] == "failed", (name, of, answer)
            assert answer["step"].startswith("identity: "), answer
            assert (answer["begun"], answer["descriptors"]) == (False, 0)


def test_a_launcher_survives_what_is_no_request_at_all(pod: Pod) -> None:
    """Fails without except Exception in launcher._hear_agent."""
    deep = 95_000
    packets = [
        b"\0",
        b"\xff\xfe" * 50,
        b"{",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"NaN",
        b'{"op": "start"}',
        b'{"op": 5, "id": 3}',
        b'{"op": "start", "id": "3"}',
        b'{"op": "start", "id": -3}',
        b'{"op": "start", "id": true}',
        b'{"op": "start", "id": 3.0}',
        b'{"op": "start", "id": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[" * deep + b"]" * deep,
        b'{"op": "start", "id": 3, "generation": 7, "argv": ' + b"[" * (deep - 50) + b"]" * (deep - 50) + b"}",
        b"x" * 200_000,
        json.dumps({"op": "unheard-of", "id": 1}).encode(),
        json.dumps({"op": "forget", "id": 77}).encode(),
        json.dumps({"op": "signal", "id": 77}).encode(),
        json.dumps({"op": "signal", "id": 1, "signal": "KILL"}).encode(),
        json.dumps({"op": "signal", "id": 1, "signal": 99}).encode(),
        json.dumps({"op": "signal", "id": 1, "signal": -1}).encode(),
        json.dumps({"op": "signal", "id": 1, "signal": 0}).encode(),
    ]
    assert pester(pod, *packets) == [[] for _ in packets]
    assert (
        pester(pod, request(generation=6), request(generation="7"), request(generation=None))
        == [
            [
                {
                    "op": "failed",
                    "id": 3,
                    "step": "launcher: it was started anew",
                    "errno": 0,
                    "searched": "",
                    "begun": False,
                }
            ]
        ]
        * 3
    )


@pytest.mark.parametrize("number", ["missing", None, [9], 1e400, 1 << 80])
def test_a_launcher_survives_a_signal_that_is_none(pod: Pod, number: object) -> None:
    """Fails with request["signal"] for parse_signal(request) in launcher._serve."""
    asked = {"op": "signal", "id": 1, **({} if number == "missing" else {"signal": number})}
    assert pester(pod, json.dumps(asked).encode()) == [[]]


# -- an agent whose container has no system call filter


#: Joins the user namespace of a process, by each way to call setns: how that ended.
JOIN = """
import ctypes, errno, json, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
NEWUSER = 0x10000000

def tell(result):
    return "joined" if result == 0 else errno.errorcode[ctypes.get_errno()]

def in_child(call):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, tell(call()).encode())
        os._exit(0)
    os.close(write)
    return os.read(read, 100).decode()

said = {
    "namespace": in_child(lambda: libc.setns(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY), NEWUSER)),
    "pidfd": in_child(lambda: libc.setns(os.pidfd_open(pid), NEWUSER)),
}
if platform.machine() == "x86_64":
    x32 = 0x40000000 | 308
    said["x32"] = in_child(lambda: libc.syscall(x32, os.open(f"/proc/{pid}/ns/user", os.O_RDONLY), NEWUSER))
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({**said, "filtered": status["Seccomp"], "user": os.getuid()}))
"""


@pytest.fixture(scope="module")
def unconfined(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """A hostile container and an agent, both without the runtime's filter of system calls."""
    hostile = {
        "name": "hostile",
        "image": images.base,
        "command": ["sleep", "infinity"],
        "securityContext": {
            "runAsUser": HOSTILE_UID,
            "runAsGroup": HOSTILE_UID,
            "seccompProfile": {"type": "Unconfined"},
        },
    }
    manifest = beside_agent(hostile)
    manifest.container("agent")["securityContext"]["seccompProfile"] = {"type": "Unconfined"}
    made = Pod(playground, manifest, images.of_examples(), hosts=broker_pod.hosts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(play, "playable", unfiltered)
        made.__enter__()
    try:
        yield made
    finally:
        made.__exit__(None, None, None)


def unfiltered(*arguments: Any) -> Json:
    """What podman plays; for old ones, which know no seccompProfile, with the annotation that it had been before."""
    playable = stand_ins.playable(*arguments)
    names = [container["name"] for container in playable["spec"]["containers"]]
    said = {f"container.seccomp.security.alpha.kubernetes.io/{name}": "unconfined" for name in names}
    playable["metadata"]["annotations"] = said
    return playable


async def test_a_command_joins_no_user_namespace_even_where_system_calls_are_not_filtered(
    client: Client, unconfined: Pod
) -> None:
    """Fails without deny_setns in kernel.harden. Root in a joined namespace gets at the agent's mounts."""
    await until(lambda: client.presences.get(str(unconfined)), f"{unconfined} is heard of")
    if unconfined.exec("agent", "grep", "Seccomp:", "/proc/self/status").stdout.split() != ["Seccomp:", "0"]:
        pytest.skip("this podman filters system calls whatever the manifest says")
    forger = await asyncio.create_subprocess_exec(
        "podman", "exec", unconfined.container("hostile"), "python3", "-c", FORGE, "only-user-namespace", "forger",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert forger.stdout is not None
    try:
        if not await asyncio.wait_for(forger.stdout.readline(), 30):
            pytest.skip("this kernel lets no container make a user namespace")
        (pid,) = pids_saying(unconfined, "only-user-namespace")
        itself = json.loads(as_hostile(unconfined, JOIN, str(pid)))
        assert (itself["namespace"], itself["pidfd"], itself["filtered"]) == ("joined", "joined", "0"), itself
        for container in ("hostile", "agent"):
            program = "/usr/bin/python3"
            outcome = await run(client, unconfined, program, "-c", JOIN, str(pid), container=container)
            if container == "hostile":
                entered = json.loads(outcome.stdout.text)
                assert set(entered) >= {"namespace", "pidfd"}
                ways = {entered[way] for way in ("namespace", "pidfd", "x32") if way in entered}
                assert (ways, entered["filtered"], entered["user"]) == ({"EPERM"}, "2", HOSTILE_UID), entered
            else:
                assert "joined" not in outcome.stdout.text, outcome
        rooted = await run(client, unconfined, "grep", "Seccomp:", "/proc/self/status", user="root")
        assert rooted.stdout.text.split() == ["Seccomp:", "2"], rooted
    finally:
        for pid in pids_saying(unconfined, "only-user-namespace"):
            unconfined.exec("hostile", "python3", "-c", f"import os; os.kill({pid}, 9)", check=False)
        await asyncio.wait_for(forger.wait(), 30)


# -- when there is no room for another process


def process_limit(pod: Pod, container: str) -> Path:
    """The file with the highest number of processes of a container's cgroup."""
    for line in Path(f"/proc/{pod.host_pid(container)}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        root = {"pids": "/sys/fs/cgroup/pids", "": "/sys/fs/cgroup"}.get(controllers)
        if root is not None and (limit := Path(root + path) / "pids.max").exists():
            return limit
    pytest.skip("this machine bounds no container's processes")


@pytest.fixture
def full(pod: Pod) -> Iterator[Any]:
    """Called with True, the agent's container takes no process more; with False, it does again."""
    limit = process_limit(pod, "agent")
    before = limit.read_text(encoding="ascii")

    def fill(*, on: bool) -> None:
        limit.write_text("1" if on else before, encoding="ascii")

    yield fill
    fill(on=False)


async def test_without_room_for_a_process_attempts_fail_clearly_and_nobody_dies(
    client: Client, pod: Pod, full: Any
) -> None:
    """Fails without except OSError in launcher._refill and in launcher._start."""
    assert (await run(client, pod, "/bin/true")).outcome is Outcome.SUCCEEDED
    before = await agents_family(pod)
    full(on=True)
    try:
        outcomes = [await run(client, pod, "/bin/true") for _ in range(4)]
        await asyncio.sleep(1)
        outcomes.append(await run(client, pod, "/bin/true"))
    finally:
        full(on=False)
    refused = outcomes[1:]  # one child was forked already
    assert {outcome.outcome for outcome in refused} == {Outcome.FAILED}, outcomes
    for outcome in refused:
        assert outcome.error is not None
        assert outcome.error.code == ErrorCode.START_FAILED
        assert "the pod is at a limit of processes, memory or files" in outcome.error.message
    for _ in range(3):
        assert (await run(client, pod, "/bin/true")).outcome is Outcome.SUCCEEDED
    assert await agents_family(pod) == before


async def test_a_launcher_that_dies_without_room_for_another_is_there_when_there_is(
    client: Client, pod: Pod, full: Any
) -> None:
    """Fails without except OSError in supervisor._fork_launcher."""
    before = await agents_family(pod)
    full(on=True)
    try:
        os.kill(before.launcher, signal.SIGKILL)
        await asyncio.sleep(1)
        assert pod.host_pid("agent") == before.parent
        assert Path(f"/proc/{before.agent}").exists()
    finally:
        full(on=False)
    after = await agents_family(pod)
    assert (after.parent, after.agent) == (before.parent, before.agent)
    assert after.launcher != before.launcher
    await until_it_works(client, pod)


async def until_it_works(client: Client, pod: Pod) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while (await run(client, pod, "/bin/true")).outcome is not Outcome.SUCCEEDED:
        assert asyncio.get_running_loop().time() < deadline


# -- the idle child


async def idle_child(launcher: int) -> int:
    """The launcher's one child that is root: others were left to it by commands."""

    def waiting() -> list[int]:
        return [child for child in children(launcher) if status(child)["Uid"].split()[0] == "0"]

    await until(lambda: len(waiting()) == 1, "the idle child is forked")
    return waiting()[0]


async def test_a_dead_idle_child_costs_no_attempt(client: Client, pod: Pod) -> None:
    """Fails without self._idle.ended() in launcher._reap."""
    before = await agents_family(pod)
    for _ in range(5):
        idle = await idle_child(before.launcher)
        os.kill(idle, signal.SIGKILL)
        outcome = await run(client, pod, "/bin/true")
        assert outcome.outcome is Outcome.SUCCEEDED, outcome
        assert not Path(f"/proc/{idle}").exists(), "nobody reaped it"
    assert await agents_family(pod) == before


# -- what would not end


#: A daemon: it leaves its session and its parents, tampers with what could tell whose it is, and then writes, every
#: 50 ms, to the file that it is given.
DAEMON = """
import ctypes, os, resource, sys, threading, time
kind, path = sys.argv[1:]
LOCKS = 10

def mark_of(pid):
    try:
        with open(f"/proc/{pid}/limits") as file:
            said = {line[:25].strip(): line.split()[4] for line in file if line.startswith("Max ")}
        return int(said["Max file locks"]), int(said["Max resident set"])
    except (OSError, ValueError, IndexError):
        return None

def live():
    while True:
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.05)

if os.fork():
    time.sleep(60)
soft, hard = resource.getrlimit(LOCKS)
if kind == "lowered":
    resource.setrlimit(LOCKS, (4711, 4711))
elif kind == "lowered-a-little":
    resource.setrlimit(LOCKS, (soft - 1, hard - 1))
elif kind == "soft":
    resource.setrlimit(LOCKS, (0, hard))
elif kind == "zero":
    resource.setrlimit(LOCKS, (0, 0))
os.setsid()
if os.fork():
    os._exit(0)
if os.fork():
    os._exit(0)
if kind == "environment":
    os.closerange(0, 100)
    os.execve(sys.executable, [sys.executable, "-c", open("/proc/self/cmdline").read().split(chr(0))[2].replace(
        "if os.fork():" + chr(10), "if False:" + chr(10)), "plain", path], {})
if kind == "borrowed":
    others, mine = set(), mark_of("self")
    while not others:
        time.sleep(0.01)
        others = {mark_of(name) for name in os.listdir("/proc") if name.isdigit()} - {None, mine}
    for limit, value in zip((LOCKS, resource.RLIMIT_RSS), others.pop()):
        try:
            resource.setrlimit(limit, (value, value))
        except ValueError:
            pass
    open(path + ".borrowed", "w").close()
if kind == "headless":
    threading.Thread(target=live).start()
    ctypes.CDLL(None).pthread_exit(None)
live()
"""


def daemon(path: str, kind: str) -> Json:
    return {"exec": {"command": ["python3", "-c", DAEMON, kind, path]}, "containerName": "hostile"}


async def grows(path: Path) -> bool:
    before = path.stat().st_size
    await asyncio.sleep(0.5)
    return path.stat().st_size > before


@pytest.fixture
def shared(pod: Pod) -> Path:
    """The host's view of /shared."""
    return pod.place.directory / "volumes" / "shared"


@pytest.mark.parametrize(
    "kind",
    ["plain", "lowered", "lowered-a-little", "soft", "zero", "environment", "headless"],
)
async def test_a_timeout_ends_a_daemon_that_tampered_with_its_mark(
    client: Client, pod: Pod, shared: Path, kind: str
) -> None:
    """Fails with mark_of(pid) == attempt.mark for mark_of(pid) not in others in launcher._strays; "headless" (the
    first thread has ended) with every Z taken for dead in offspring.born.
    """
    path = shared / f"daemon-{kind}"
    sent = await client.trigger(pod, daemon(f"/shared/{path.name}", kind), timeout_seconds=1.5)
    await until(path.exists, "the daemon lives")
    assert await grows(path)
    outcome = await client.outcome(sent)
    assert outcome.outcome is Outcome.TIMED_OUT, outcome
    assert outcome.notes == []
    assert not await grows(path), "it outlived its attempt"


#: `for (end = time(0) + 4; time(0) < end;) if (fork()) exit(0); creat(argv[1], 0644);` for x86-64, without a library:
#: with one, each process lives long enough to be caught.
HOPPING = (
    "eNqrd/VxY2JkZIABJgY7BhCvgsEBzHeAil9gQAAHBgugGgcGZqBqkFpWsHoIgOmD0c5QcRgNs8mnO0VFYMdJIMvwPz+rT28Gyw5LIIeftfVAqSxC"
    "3PJFzfMdoSD1nc/3LWEEKdhhA5Vk0CvOKC4pKklMYtArSa0oYaAG4Ia6kQ3DP6j+YEDzDzKfGYu5u6G0IAH9AAINItw="
)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program is for x86-64")
async def test_a_timeout_ends_a_daemon_that_is_never_long_the_same_process(
    client: Client, pod: Pod, shared: Path
) -> None:
    """Fails where a look that finds nobody alive is believed, though somebody died since the one before."""
    program, paths = shared / "hop", [shared / f"hopped-{number}" for number in range(3)]
    program.write_bytes(zlib.decompress(base64.b64decode(HOPPING)))
    program.chmod(0o755)
    for path in paths:
        script = f"setsid /shared/hop /shared/{path.name} & sleep 60"
        action = {"exec": {"command": ["sh", "-c", script]}, "containerName": "hostile"}
        outcome = await client.run(pod, action, timeout_seconds=1)
        assert outcome.outcome is Outcome.TIMED_OUT, outcome
    await asyncio.sleep(5)
    assert [path.name for path in paths if path.exists()] == [], "it outlived its attempt"


async def test_a_timeout_ends_a_daemon_that_took_the_mark_of_a_later_attempt(
    client: Client, pod: Pod, shared: Path
) -> None:
    """Fails where a mark is one limit only: one of the two can be lowered to that of somebody else."""
    path = shared / "daemon-borrowed"
    sent = await client.trigger(pod, daemon(f"/shared/{path.name}", "borrowed"), timeout_seconds=3)
    await client.reply(Started, sent)
    await asyncio.sleep(1)
    later = await client.trigger(pod, {"exec": {"command": ["sleep", "4"]}, "containerName": "victim"})
    await until(Path(f"{path}.borrowed").exists, "it took what it could of the other's mark")
    assert (await client.outcome(sent)).outcome is Outcome.TIMED_OUT
    try:
        assert not await grows(path), "it outlived its attempt"
    finally:
        assert (await client.outcome(later)).outcome is Outcome.SUCCEEDED, "the other attempt is none of its business"
        await end_of(client, pod, path)


async def end_of(client: Client, pod: Pod, path: Path) -> None:
    """Whatever still writes there is ended, for the next test."""
    for pid in pids_saying(pod, f"/shared/{path.name}"):
        pod.exec("agent", "sh", "-c", f"kill -KILL {pid}", check=False)


@pytest.mark.parametrize("kind", ["plain", "lowered"])
async def test_what_a_successful_attempt_left_running_survives_the_timeout_of_a_later_one(
    client: Client, pod: Pod, shared: Path, kind: str
) -> None:
    """Fails without self._settled in launcher._strays."""
    script = "setsid sh -c 'while :; do echo x >> /shared/background; sleep 0.05; done' & sleep 0.2"
    outcome = await run(client, pod, "sh", "-c", script)
    assert outcome.outcome is Outcome.SUCCEEDED, outcome
    background, path = shared / "background", shared / f"later-{kind}"
    try:
        sent = await client.trigger(pod, daemon(f"/shared/{path.name}", kind), timeout_seconds=1.5)
        assert (await client.outcome(sent)).outcome is Outcome.TIMED_OUT
        assert not await grows(path), "it outlived its attempt"
        assert await grows(background), "it was killed with somebody else's"
    finally:
        await end_of(client, pod, background)


# -- what a command finds


async def test_a_command_has_the_limits_of_the_main_process_and_no_core_files(client: Client, pod: Pod) -> None:
    """Fails without resource.setrlimit(limit, values) in stepping.become."""
    script = "ulimit -S -n; ulimit -H -n; ulimit -S -f; ulimit -c"
    for more in ({}, {"user": "1234"}, {"user": "root"}):
        outcome = await run(client, pod, "bash", "-c", script, container="limited", **more)
        assert outcome.stdout.text.split() == ["77", "88", "1000", "0"], outcome


async def test_a_command_is_as_likely_to_be_killed_for_memory_as_its_container(client: Client, pod: Pod) -> None:
    """Fails without _share_oom_score in stepping._step_in."""
    outcome = await run(client, pod, "cat", "/proc/self/oom_score_adj", container="limited")
    assert outcome.stdout.text == "987\n", outcome


@pytest.mark.parametrize("container", ["victim", "agent"])
async def test_no_signal_is_ignored_or_blocked(client: Client, pod: Pod, container: str) -> None:
    """Fails without SIGXFSZ (or SIGPIPE) among the signals that stepping.become restores."""
    outcome = await run(client, pod, "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status", container=container)
    blocked, ignored = (int(line.split()[1], 16) for line in outcome.stdout.text.splitlines())
    assert (blocked, ignored & ~LIBRARYS_OWN) == (0, 0), outcome


async def test_output_can_be_opened_again_by_another_user_too(client: Client, pod: Pod) -> None:
    """Fails with _pipes() made as the main process's user in stepping._step_in, whoever the command runs as."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    outcome = await run(client, pod, "sh", "-c", script, container="victim", user=THIRD_USER)
    assert (outcome.stdout.text, outcome.stderr.text) == ("out\n", "err\n"), outcome


async def test_an_environment_is_taken_whole_or_not_at_all(client: Client, pod: Pod) -> None:
    """Fails with a file that offspring.read_all cut at its limit taken for all there is."""
    script = "set -- ${!BIG_*}; echo $# ${#BIG_10} ${#BIG_21}; env | grep -c ^BIG_"
    outcome = await run(client, pod, "bash", "-c", script, container="vast")
    if outcome.error is None:
        assert outcome.stdout.text.split() == ["12", "100000", "100000", "12"], outcome
    else:
        assert outcome.error.code == ErrorCode.START_FAILED


# -- what is said of an attempt


@pytest.mark.parametrize("letter", ["x", "\x01", "\u00e9", "\u4e16", "\U0001f600"])
async def test_a_program_that_is_not_found_in_an_odd_path_did_not_run(client: Client, pod: Pod, letter: str) -> None:
    """Fails with less room in launcher._Launcher._room than JSON makes of MAX_SEARCHED_BYTES."""
    path = f"/{letter * 50}" * (1000 // len(f"/{letter * 50}".encode())) + ":/nowhere"
    outcome = await run(client, pod, "no-such-program", env=[{"name": "PATH", "value": path}])
    assert outcome.error is not None, outcome
    assert outcome.error.code == ErrorCode.NOT_FOUND, outcome.error.code


async def test_a_command_whose_output_the_launcher_could_not_take_is_not_said_never_to_have_run(
    client: Client, pod: Pod, shared: Path
) -> None:
    """Fails with an error of kernel.receive taken for an end of file in launcher._hear_child."""
    before, ran = await agents_family(pod), shared / "ran"
    idle = await idle_child(before.launcher)
    limits = resource.prlimit(before.launcher, resource.RLIMIT_NOFILE)
    os.kill(idle, signal.SIGSTOP)
    try:
        command = ["sh", "-c", "touch /shared/ran; sleep 1"]
        sent = await client.trigger(pod, {"exec": {"command": command}, "containerName": "hostile"})
        await asyncio.sleep(0.5)  # the job is in the child's socket
        os.kill(before.launcher, signal.SIGSTOP)
        taken = {int(entry.name) for entry in Path(f"/proc/{before.launcher}/fd").iterdir()}
        lowest = next(number for number in range(1000) if number not in taken)
        resource.prlimit(before.launcher, resource.RLIMIT_NOFILE, (lowest, limits[1]))
        os.kill(idle, signal.SIGCONT)
        await until(ran.exists, "the command runs")
    finally:
        os.kill(idle, signal.SIGCONT)
        os.kill(before.launcher, signal.SIGCONT)
    outcome = await client.outcome(sent)
    resource.prlimit(before.launcher, resource.RLIMIT_NOFILE, limits)
    assert outcome.outcome in (Outcome.INTERRUPTED, Outcome.SUCCEEDED), outcome
    assert (await run(client, pod, "/bin/true")).outcome is Outcome.SUCCEEDED
    assert await agents_family(pod) == before
