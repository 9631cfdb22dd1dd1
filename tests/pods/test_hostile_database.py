"""A database container that turns against an agent with keys, in a real pod: as its own user it gets none of them.

How entering goes wrong, all seven ways of it, is played in `test_attacks.py`, and so is what one process can do to
another by the usual calls. Here is what there is to steal once commands are signed - the keys, the environment, the
memory, the state - and every other door that we could think of. What root gets is shown too: SECURITY.md grants it.

The broker is the shipped one, and the agent has what examples/pods mounts: its key and its password by its own group,
which Kubernetes then gives to every container of the pod, the hostile one too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from agent.contract.messages import Result
from agent.contract.states import Outcome
from agent.contract.templates import load_hooks
from agent.coordinator import Coordinator, HookCall
from agent.pod.supervisor import AGENT_UID
from tests.agents import Json
from tests.pods.broker import BrokerPod, heard_of
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
from tests.pods.test_attacks import HOSTILE_UID, MAIN
from tests.pods.test_launcher import children, family

pytestmark = pytest.mark.pods

AGENT_KEY = "/etc/podhook/agent/shop.key"
PASSWORD = "/etc/podhook/broker/password"
TRUSTED = "/etc/podhook/trusted"
SECRET = "nobody-else-reads-this-in-the-agents-environment"
HUNT_SECONDS = 90

#: Tries every door to every process that is not the hostile user's, and first to one that is (`opened`): a door that
#: opens nowhere would prove nothing. What opened where it must not is in `won`.
BURGLAR = r"""
import ctypes, errno, glob, json, os, resource, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
key_path, password, trusted = sys.argv[1:]
needles = sys.stdin.buffer.read().split()  # not in our own command line
heap = ctypes.create_string_buffer(64)  # the accomplice has it at the same address
accomplice = os.fork()
if accomplice == 0:
    os.chdir("/tmp")
    signal.pause()

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def vm(pid, call):  # an address that is not there is found out only after the rights
    ours, theirs = Piece(ctypes.addressof(heap), 8), Piece(ctypes.addressof(heap), 8)
    if call(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) < 0 and ctypes.get_errno() != errno.EFAULT:
        raise OSError(ctypes.get_errno(), "")

def read(path):
    with open(path, "rb", buffering=0) as file:
        if not file.read(1):
            raise OSError("empty")

def write(path, text):
    with open(path, "wb", buffering=0) as file:
        file.write(text)

def memory(pid):
    maps = open(f"/proc/{pid}/maps").readlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(int(maps[0].split("-")[0], 16))
        if not file.read(8):
            raise OSError("empty")

def traced(pid, request):
    check(libc.ptrace(request, pid, None, None))
    if request == 0x4206:
        libc.ptrace(0x4207, pid, None, None)  # PTRACE_INTERRUPT: only what stands still can be let go
    os.waitpid(pid, 0x40000000)
    libc.ptrace(17, pid, None, None)

def descriptors(pid):
    pidfd = os.pidfd_open(pid)
    for number in range(64):
        if libc.syscall(438, pidfd, number, 0) >= 0:
            return
    raise OSError("none")

def limit(pid):
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

def spin(pid):
    check(libc.syscall(298, ctypes.byref(ctypes.create_string_buffer(b"\1\0\0\0\x70\0\0\0", 128)), pid, -1, -1, 0))

def doors(pid):
    for name in ("environ", "maps", "smaps", "smaps_rollup", "auxv", "io", "pagemap", "numa_maps", "stack"):
        yield name, lambda name=name: read(f"/proc/{pid}/{name}")
        yield "task/" + name, lambda name=name: read(f"/proc/{pid}/task/{pid}/{name}")
    yield "mem", lambda: memory(pid)
    yield "process_vm_readv", lambda: vm(pid, libc.process_vm_readv)
    yield "process_vm_writev", lambda: vm(pid, libc.process_vm_writev)
    for name in ("fd", "fdinfo", "map_files", "root", "cwd"):
        yield f"ls {name}", lambda name=name: os.listdir(f"/proc/{pid}/{name}")
    for number in range(24):
        path = f"/proc/{pid}/fd/{number}"
        yield "open a descriptor", lambda path=path: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    yield "pidfd_getfd", lambda: descriptors(pid)
    for way in (f"/proc/{pid}/root", f"/proc/{pid}/task/{pid}/root", f"/proc/{pid}/cwd/../../../../../.."):
        yield "the key", lambda way=way: read(way + key_path)
        yield "the password", lambda way=way: read(way + password)
        yield "the trusted keys", lambda way=way: os.listdir(way + trusted)
        yield "the state", lambda way=way: os.listdir(way + "/var/lib/podhook")
        yield "plant in the state", lambda way=way: write(way + "/var/lib/podhook/planted", b"x")
        yield "plant a trusted key", lambda way=way: write(way + trusted + "/mine.pub", b"x")
        yield "open a root", lambda way=way: os.close(os.open(way, os.O_PATH | os.O_DIRECTORY))
    for name in os.listdir("/proc/self/ns"):
        yield "read a namespace", lambda name=name: os.readlink(f"/proc/{pid}/ns/{name}")
    yield "PTRACE_SEIZE", lambda: traced(pid, 0x4206)
    yield "PTRACE_ATTACH", lambda: traced(pid, 16)
    yield "prlimit", lambda: limit(pid)
    yield "setpriority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)
    yield "affinity", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    yield "scheduler", lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    yield "ioprio_set", lambda: check(libc.syscall(251, 1, pid, 3 << 13))
    yield "kcmp", lambda: check(libc.syscall(312, pid, pid, 0, 0, 1))
    yield "perf", lambda: spin(pid)
    yield "oom_score_adj", lambda: write(f"/proc/{pid}/oom_score_adj", b"1000")
    yield "coredump_filter", lambda: write(f"/proc/{pid}/coredump_filter", b"0xff")
    yield "comm", lambda: write(f"/proc/{pid}/comm", b"mine")
    yield "SIGCONT", lambda: os.kill(pid, signal.SIGCONT)
    yield "SIGSTOP", lambda: os.kill(pid, signal.SIGSTOP)
    yield "SIGTERM by pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGTERM)
    yield "SIGKILL of a thread", lambda: check(libc.syscall(234, pid, pid, 9))
    yield "SIGKILL", lambda: os.kill(pid, signal.SIGKILL)

def owner(pid):
    with open(f"/proc/{pid}/status") as file:
        return [int(word) for line in file if line.startswith("Uid:") for word in line.split()[1:]]

def try_all(pid):
    opened, tried = set(), 0
    for what, door in doors(pid):
        tried += 1
        try:
            door()
        except (OSError, ValueError):
            pass
        else:
            opened.add(what)
    return opened, tried

me, victims, won, seen = os.getuid(), {}, [], 0
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
    uids = owner(pid)
    if uids != [me] * 4:
        opened, tried = try_all(pid)
        seen += tried
        victims[pid] = uids[0]
        won += [[what, pid, uids[0]] for what in opened]
    for name in ("cmdline", "status", "stat", "wchan", "mountinfo", "limits", "cgroup", "comm", "net/unix"):
        try:
            said = open(f"/proc/{pid}/{name}", "rb").read()
        except OSError:
            continue
        won += [["a secret in " + name, pid, uids[0]] for each in needles if each in said]

ours = socket.socket(socket.AF_UNIX)
ours.bind("\0burglar")
ours.listen()
names, connected = set(), set()
for line in open("/proc/net/unix").read().splitlines()[1:]:
    words = line.split()
    if len(words) > 7:
        names.add(words[7])
for name in names:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as mine:
            try:
                mine.connect("\0" + name[1:] if name[0] == "@" else name)
            except OSError:
                continue
            connected.add(name)
listening = [line.split()[1] for path in ("/proc/net/tcp", "/proc/net/tcp6") for line in open(path).readlines()[1:]
             if line.split()[3] == "0A"]
shared = [path for folder in ("/dev/shm", "/dev/mqueue", "/tmp") for path in glob.glob(folder + "/*")
          if os.stat(path).st_uid != me]
segments = len(open("/proc/sysvipc/shm").readlines()) - 1
opened, _ = try_all(accomplice)
print(json.dumps({
    "uid": me, "won": won, "victims": victims, "tried": seen, "opened": sorted(opened),
    "sockets": sorted(connected), "listening": listening, "shared": shared, "segments": segments,
}))
"""

#: What opens where it may, so that its staying shut says something. The rest hangs on the kernel and its settings.
MUST_OPEN = {
    *("environ", "task/environ", "maps", "smaps", "auxv", "mem", "process_vm_readv", "process_vm_writev"),
    *("ls fd", "ls root", "ls cwd", "open a root", "open a descriptor", "pidfd_getfd", "read a namespace"),
    *("PTRACE_SEIZE", "PTRACE_ATTACH", "prlimit", "setpriority", "affinity", "scheduler", "ioprio_set"),
    *("oom_score_adj", "coredump_filter", "SIGCONT", "SIGSTOP", "SIGTERM by pidfd", "SIGKILL"),
}

#: As root: end what runs in the agent's container, and look through the root of whatever comes after it, until one of
#: them shows the key. It can be caught for as long as it has not made itself undumpable.
ROBBER = r"""
import json, os, signal, sys, time
path, deadline = sys.argv[1].lstrip("/"), time.monotonic() + float(sys.argv[2])
def look(pid):
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return open(os.open(path, os.O_RDONLY, dir_fd=root)).read()
    except OSError:
        return None
    finally:
        os.close(root)
running = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != 1 and int(name) != os.getpid()]
podhook = [pid for pid in running if b"podhook" in open(f"/proc/{pid}/cmdline", "rb").read()]
before = [pid for pid in podhook if look(pid)]
found = None
for pid in podhook:
    if os.stat(f"/proc/{pid}").st_uid == 0:
        os.kill(pid, signal.SIGKILL)
while found is None and time.monotonic() < deadline:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in running:
            found = found or look(int(name))
print(json.dumps({"uid": os.getuid(), "before": before, "podhook": podhook, "found": found}))
"""


# -- the pods


def private_of_shop(broker: BrokerPod) -> str:
    """What of the agent's key is nobody else's."""
    return str(json.loads((broker.files / "agents" / "shop.key").read_text())["d"])


def with_keys(playground: Playground, images: Images, broker: BrokerPod, database: Json) -> Pod:
    """A database beside the agent of the examples."""
    manifest = beside_agent({"name": "database", "image": images.base, **database})
    env = {"agent": {"AGENTS_SECRET": SECRET}}
    return Pod(playground, manifest, images.of_examples(), env=env, hosts=broker.hosts)


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The usual case: the database runs as its own user."""
    database = {
        "command": ["python3", "-c", f"exec({MAIN!r})"],
        "securityContext": {"runAsUser": HOSTILE_UID, "runAsGroup": HOSTILE_UID},
    }
    with with_keys(playground, images, broker_pod, database) as made:
        yield made


@pytest.fixture
def as_root(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """What SECURITY.md warns of: the database runs as root, with the runtime's default capabilities."""
    with with_keys(playground, images, broker_pod, {"command": ["sleep", "infinity"]}) as made:
        yield made


async def signed(broker: BrokerPod, pod: Pod, container: str, *command: str) -> Result:
    """Run a hook from outside: signed, and its outcome believed because the agent's key vouches for it."""
    executor = {"type": "Pod", "pod": {"selector": f"pod-uid={pod.uid}", "strategy": "ExecuteOnAll"}}
    action = {"exec": {"command": list(command)}, "containerName": container}
    (hook,) = load_hooks(json.dumps({"action": action, "executor": executor}))
    await heard_of(broker, pod)
    keys = {"key": broker.files / "nightly.key", "agent_keys": broker.files / "agents"}
    async with Coordinator(broker.as_user("nightly"), **keys) as coordinator:
        run = await coordinator.run(HookCall(hook, namespaces=frozenset({"shop"}), timeout_seconds=20))
    assert run.verified, run
    (target,) = run.targets
    return target.result


# -- as its own user


async def test_the_databases_user_gets_no_key_no_memory_and_nobodys_process(pod: Pod, broker_pod: BrokerPod) -> None:
    """Fails with AGENT_UID = 999 in supervisor."""
    await heard_of(broker_pod, pod)
    before = await family(pod)
    idle = children(before.launcher)
    groups = pod.exec("database", "id", "-G").stdout.split()
    assert str(AGENT_UID) in groups, "fsGroup makes it a member of the agent's group, and that must not help it"
    (directory,) = (each for each in (pod.place.directory / "volumes").iterdir() if each.name == "podhook-state")
    needles = [SECRET, private_of_shop(broker_pod), (broker_pod.files / "secrets" / "shop" / "password").read_text()]
    paths = (AGENT_KEY, PASSWORD, TRUSTED)
    written = pod.exec("database", "python3", "-c", BURGLAR, *paths, input=" ".join(needles))
    said = json.loads(written.stdout)
    assert said["uid"] == HOSTILE_UID
    assert said["won"] == []
    assert set(said["opened"]) >= MUST_OPEN, MUST_OPEN - set(said["opened"])
    assert list(said["victims"].values()).count(AGENT_UID) == 1
    assert list(said["victims"].values()).count(0) >= 3, "parent, launcher and the idle child"
    assert said["sockets"] == ["@burglar"], "another abstract socket than its own let it in"
    assert said["listening"] == [], "somebody listens in the pod's network"
    assert (said["shared"], said["segments"]) == ([], 0)
    assert await family(pod) == before
    assert children(before.launcher) == idle
    assert not list(directory.rglob("planted"))
    outcome = await signed(broker_pod, pod, "database", "/usr/bin/id", "-u")
    assert (outcome.outcome, outcome.stdout.text) == (Outcome.SUCCEEDED, f"{HOSTILE_UID}\n"), f"{outcome}\n{pod.tail()}"


async def test_a_hook_in_the_agents_own_container_reads_no_key_that_is_the_agents_groups(
    pod: Pod, broker_pod: BrokerPod
) -> None:
    """Fails with COMMAND_UID = AGENT_UID in supervisor. With mode 0444 it would read it: docs/security.md says so."""
    outcome = await signed(broker_pod, pod, "agent", "cat", AGENT_KEY, PASSWORD, f"{TRUSTED}/nightly.pub")
    assert outcome.outcome is Outcome.FAILED, outcome
    assert outcome.stderr.text.count("Permission denied") == 2
    public = (broker_pod.files / "nightly.pub").read_text(encoding="ascii")
    assert outcome.stdout.text == public, "the public one is no secret"


# -- as root


async def test_a_database_that_is_root_gets_the_key_and_that_is_granted(as_root: Pod, broker_pod: BrokerPod) -> None:
    """SECURITY.md grants it everything; if it gets no key any more, say less there.

    `before` fails without PR_SET_DUMPABLE in kernel.harden.
    """
    await heard_of(broker_pod, as_root)
    assert SECRET not in as_root.exec("database", "cat", "/proc/self/environ").stdout, "it is another container"
    ran = as_root.exec(
        "database", "python3", "-c", ROBBER, AGENT_KEY, str(HUNT_SECONDS), within_seconds=HUNT_SECONDS + 30
    )
    said = json.loads(ran.stdout)
    assert said["uid"] == 0
    assert said["podhook"], "there were processes of podhook's"
    assert said["before"] == [], "once it has started, not even root reads it without SYS_PTRACE"
    assert private_of_shop(broker_pod) in str(said["found"]), "caught while it started"
