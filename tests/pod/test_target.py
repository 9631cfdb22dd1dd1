"""Whether a process is the main one of a container, and who it is: from files as the kernel writes them."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.pod import target
from agent.pod.job import Job
from agent.pod.target import (
    GONE,
    LIMITS,
    MAX_ENVIRON_BYTES,
    Own,
    StepError,
    Target,
    environ_of,
    home_of,
    identify,
    limits_of,
)
from tests.pod.proc_tree import DEVICE, PREFIX, ROOT_MOUNT, ProcTree, log_line, stat_line, status_lines

HOME = (DEVICE.encode(), f"{PREFIX}/containers".encode(), b"mysql")
INFINITE = resource.RLIM_INFINITY


# --- whose container

KUBELET = "/var/lib/kubelet/pods/0b1c/containers/mysql/8f2e11aa"
LAYOUTS = {
    "containerd": (
        f"1030 1019 254:1 {KUBELET} /dev/termination-log rw,relatime - ext4 /dev/vda1 rw",
        (b"254:1", b"/var/lib/kubelet/pods/0b1c/containers", b"mysql"),
    ),
    "CRI-O, an SELinux node, with optional fields": (
        f"2210 2199 0:54 /ostree/deploy{KUBELET} /dev/termination-log rw,seclabel master:7 - xfs /dev/sda4 rw,prjquota",
        (b"0:54", b"/ostree/deploy/var/lib/kubelet/pods/0b1c/containers", b"mysql"),
    ),
    "docker, a disk of the kubelet's own": (
        "733 728 8:17 /pods/0b1c/containers/mysql/8f2e11aa /dev/termination-log rw,relatime - ext4 /dev/sdb1 rw",
        (b"8:17", b"/pods/0b1c/containers", b"mysql"),
    ),
    "k3s, the kubelet elsewhere": (
        "91 80 0:31 /@/opt/k3s/agent/pods/0b1c/containers/mysql/8f2e11aa /dev/termination-log rw - btrfs /dev/sda rw",
        (b"0:31", b"/@/opt/k3s/agent/pods/0b1c/containers", b"mysql"),
    ),
    "terminationMessagePath": (
        f"1030 1019 254:1 {KUBELET} /run/my\\040app/why rw,relatime - ext4 /dev/vda1 rw",
        (b"254:1", b"/var/lib/kubelet/pods/0b1c/containers", b"mysql"),
    ),
    "a space on the way there, in octal": (
        "1030 1019 254:1 /my\\040disk/pods/0b1c/containers/mysql/8f2e11aa /dev/termination-log rw - ext4 /dev/vda1 rw",
        (b"254:1", b"/my\\040disk/pods/0b1c/containers", b"mysql"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_container_is_told_by_the_kubelets_termination_log(layout):
    line, home = LAYOUTS[layout]
    for text in (line, f"{ROOT_MOUNT}{line}\n", f"{line}\n{ROOT_MOUNT}"):
        assert home_of(text.encode()) == home


@pytest.mark.parametrize(
    "line",
    [
        *("", "\n\n", " ", "1", "1 2 3 4", "a b c", "\0\0\0\0"),
        ROOT_MOUNT,
        f"1 2 8:1 {KUBELET}",  # no mount point: cut
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~empty-dir/data /data rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/volume-subpaths/containers/mysql/0 /data rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/containers/mysql/8f2e11a /dev/termination-log rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/containers/mysql/8f2e11aab /dev/termination-log rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/containers/mysql /dev/termination-log rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/pods/0b1c/x/containers/mysql/8f2e11aa /dev/termination-log rw - ext4 /dev/sda1 rw",
        "1 2 8:1 /var/lib/kubelet/podz/0b1c/containers/mysql/8f2e11aa /dev/termination-log rw - ext4 /dev/sda1 rw",
        "1 2 8:1 pods/0b1c/containers/mysql/8f2e11aa /dev/termination-log rw - ext4 /dev/sda1 rw",
        f"1 2 8:1 / {KUBELET} rw - ext4 /dev/sda1 rw",  # mounted at such a place, by anybody
        f"1 2 8:1 / /x rw - ext4 {KUBELET} rw",
    ],
)
def test_a_line_that_only_looks_like_it_is_none(line):
    assert home_of(line.encode()) is None


def test_the_first_termination_log_counts():
    """Further mounts can be made by the container; the kubelet's stand first."""
    assert home_of((log_line("mysql") + log_line("metrics")).encode()) == HOME


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b" ", b"/", b"\n", b"pods", b"containers", b"8f2e11aa"])).map(b"".join)
)
def test_any_file_of_mounts_can_be_looked_through(mountinfo):
    home = home_of(mountinfo)
    assert home is None or all(type(part) is bytes for part in home)


# --- limits


def limits_text(**present: tuple[object, object]) -> bytes:
    """/proc/PID/limits as the kernel writes it (fs/proc/base.c): names in 25 columns."""
    lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}"]
    for name, (soft, hard) in present.items():
        lines.append(f"{'Max ' + name.replace('_', ' '):<25} {soft!s:<20} {hard!s:<20} {'files':<10}")
    return ("\n".join(lines) + "\n").encode()


def test_limits_that_are_ours_already_need_no_change():
    assert limits_of(Path("/proc/self/limits").read_bytes()) == []


def test_every_limit_of_the_kernels_list_is_known_or_left_out_on_purpose():
    names = {line[:25].rstrip() for line in Path("/proc/self/limits").read_bytes().splitlines()[1:]}
    assert names - set(LIMITS) == {b"Max core file size", b"Max file locks", b"Max resident set"}
    assert set(LIMITS) <= names


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        ((1024, 4096), (1024, 4096), None),
        ((1024, 4096), (512, 4096), (512, 4096)),
        ((1024, 4096), (512, 512), (512, 512)),
        ((1024, 4096), (4096, 4096), (4096, 4096)),
        ((1024, 4096), (1024, 8192), None),
        ((1024, 4096), (8192, 8192), (4096, 4096)),
        ((1024, 4096), (1024, "unlimited"), None),
        ((1024, 4096), ("unlimited", "unlimited"), (4096, 4096)),
        ((INFINITE, INFINITE), (1024, 4096), (1024, 4096)),
        ((INFINITE, INFINITE), (1024, "unlimited"), (1024, INFINITE)),
        ((INFINITE, INFINITE), ("unlimited", "unlimited"), None),
        ((1024, INFINITE), ("unlimited", "unlimited"), (INFINITE, INFINITE)),
        ((0, 0), ("unlimited", "unlimited"), None),
        ((1024, 4096), (0, 0), (0, 0)),
    ],
)
def test_a_limit_is_the_containers_and_never_above_what_we_may_set(monkeypatch, ours, theirs, wanted):
    monkeypatch.setattr(target.resource, "getrlimit", lambda _: ours)
    assert limits_of(limits_text(open_files=theirs)) == ([] if wanted is None else [(resource.RLIMIT_NOFILE, wanted)])


def test_what_limits_of_says_can_be_set_without_privilege():
    text = limits_text(open_files=("unlimited", "unlimited"), stack_size=(4096, "unlimited"), cpu_time=(60, 60))
    for limit, (soft, hard) in limits_of(text):
        present = resource.getrlimit(limit)[1]
        assert present == INFINITE or hard <= present
        assert INFINITE in (hard, present) or soft <= hard


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"Limit\n", b"Max core file size        0  0  bytes\n", b"Max future thing  1  1\n"]
)
def test_unknown_limits_and_core_dumps_are_left_alone(text):
    assert limits_of(text) == []


# --- the environment


@pytest.fixture
def process(tmp_path) -> Iterator[Callable[..., int]]:
    """A descriptor of a directory with these files, as of /proc/PID."""
    opened = []

    def make(folder: Path = tmp_path, **files: bytes) -> int:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        opened.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return opened[-1]

    yield make
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("environ", "pairs"),
    [
        (b"A=1\0", [(b"A", b"1")]),
        (b"A=1\0B=\0C=x=y\0", [(b"A", b"1"), (b"B", b""), (b"C", b"x=y")]),
        (b"A=a b\nc\0B=\xff\xfe\0", [(b"A", b"a b\nc"), (b"B", b"\xff\xfe")]),
        (b"A=1\0A=2\0", [(b"A", b"1"), (b"A", b"2")]),
    ],
)
def test_an_environment_is_read_as_it_is(process, environ, pairs):
    assert environ_of(process(environ=environ)) == pairs


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param(b"", id="none, or of a process that just executes"),
        pytest.param(b"\0" * 300, id="zeros"),
        pytest.param(b"A=1\0" + bytes(300), id="zeros at the end"),
        pytest.param(bytes(300) + b"A=1\0", id="zeros at the beginning"),
        pytest.param(b"A=1\0\0B=2\0", id="a hole"),
        pytest.param(b"redis-server *:6379\0" + bytes(50), id="a title and zeros"),
        pytest.param(b"postgres: writer process   ", id="a title"),
        pytest.param(b"nginx: worker\0A=1\0", id="a title and a rest"),
        pytest.param(b"A=1\0B", id="no ="),
        pytest.param(b"=1\0", id="no name"),
        pytest.param(b"A=1\0=\0", id="nothing but ="),
    ],
)
def test_memory_that_was_used_for_something_else_is_no_environment(process, environ):
    with pytest.raises(StepError) as caught:
        environ_of(process(environ=environ))
    assert (caught.value.step, caught.value.number) == ("environment", 0)


def test_an_environment_as_large_as_the_bound_is_read_whole(process):
    entry = b"A=" + b"x" * 61 + b"\0"
    environ = entry * (MAX_ENVIRON_BYTES // len(entry) - 1)
    assert len(environ_of(process(environ=environ))) == len(environ) // len(entry)


@pytest.mark.parametrize("beyond", [1, 2, 4, 64, 100_000])
def test_an_environment_larger_than_the_bound_is_refused_and_never_cut(process, beyond):
    environ = b"A=1\0" * ((MAX_ENVIRON_BYTES - 20) // 4) + b"PASSWORD=secret-" + b"x" * beyond + b"\0LAST=1\0"
    assert len(environ) > MAX_ENVIRON_BYTES
    with pytest.raises(StepError) as caught:
        environ_of(process(environ=environ))
    assert (caught.value.step, caught.value.number) == ("environ", errno.EFBIG)


def test_an_environment_that_may_not_be_read_says_the_kernels_reason(process):
    with pytest.raises(StepError) as caught:
        environ_of(process())
    assert (caught.value.step, caught.value.number) == ("environ", errno.ENOENT)


# --- identity

OWN = Own((*HOME[:2], b"agent"), 1, 64918, 64919)
JOB = Job(b"mysql", 7, 1000, [b"true"], [], inherit=True, fallback=False, user=b"", mark=1)


@pytest.fixture
def proc(tmp_path) -> ProcTree:
    return ProcTree(tmp_path / "proc")


def refused(descriptor: int, job: Job = JOB, own: Own = OWN) -> tuple[str, int]:
    with pytest.raises(StepError) as caught:
        pytest.fail(f"it was taken for {identify(descriptor, job, own)}")
    return caught.value.step, caught.value.number


def test_the_main_process_is_known_by_its_file_system_ids_groups_umask_and_bounding_set(proc, process):
    descriptor = process(proc.process(7, "mysql"))
    assert identify(descriptor, JOB, OWN) == Target(999, 998, [27, 999], 0xA80425FB, 0o027, [])


def test_without_groups_or_an_umask_there_are_none_and_the_usual_one(proc, process):
    descriptor = process(proc.process(7, "mysql"), status=status_lines(0, 0, umask=None).encode())
    assert identify(descriptor, JOB, OWN) == Target(0, 0, [], 0xA80425FB, 0o022, [])


@pytest.mark.parametrize("name", ["a b", "a) R 1 1", ") S 9 9 9", "((", "))) (", "", "\n"])
def test_a_process_may_have_any_name(proc, process, name):
    assert identify(process(proc.process(7, "mysql", name=name)), JOB, OWN).uid == 999


def test_limits_of_the_main_process_come_with_it(proc, process):
    descriptor = process(proc.process(7, "mysql"), limits=limits_text(open_files=(7, 9)))
    assert identify(descriptor, JOB, OWN).limits == [(resource.RLIMIT_NOFILE, (7, 9))]


@pytest.mark.parametrize(
    "stat",
    [
        {"started": 1001},
        {"started": 999},
        {"parent": 1},
        {"parent": 3},
        {"name": f"a) S 0 {' 1' * 17} 1000", "parent": 1},
    ],
)
def test_another_start_time_or_a_parent_means_that_the_main_process_is_gone(proc, process, stat):
    assert refused(process(proc.process(7, "mysql", **stat))) == (GONE, errno.ESRCH)


@pytest.mark.parametrize("name", ["stat", "mountinfo", "status", "limits"])
def test_a_process_that_vanishes_meanwhile_is_gone(proc, process, name):
    descriptor = process(proc.process(7, "mysql"))
    (proc.path / "7" / name).unlink()
    assert refused(descriptor) == (GONE, errno.ESRCH)


NOT_OF_IT = ("identity: the process is not of that container", 0)


@pytest.mark.parametrize(
    "lines",
    [
        "",
        ROOT_MOUNT,
        log_line("metrics"),
        log_line("agent"),
        log_line("mysql", device="0:99"),
        log_line("mysql", prefix="/var/lib/kubelet/pods/99999999-2222-3333-4444-555555555555"),
        log_line("mysql", prefix=f"/tmp{PREFIX}"),
        log_line("metrics") + log_line("mysql"),
    ],
)
def test_a_process_of_another_container_or_pod_is_not_entered(proc, process, lines):
    assert refused(process(proc.process(7, lines=lines))) == NOT_OF_IT


def test_our_own_container_is_never_entered_even_if_asked_for_by_name(proc, process):
    assert refused(process(proc.process(7, "agent")), JOB._replace(container=b"agent")) == NOT_OF_IT


@pytest.mark.parametrize("container", [b"", b"mysq", b"mysql ", b"MYSQL", None])
def test_the_name_is_compared_to_the_letter(proc, process, container):
    assert refused(process(proc.process(7, "mysql")), JOB._replace(container=container)) == NOT_OF_IT


def test_without_a_line_of_our_own_nobody_is_entered(proc, process):
    step, number = refused(process(proc.process(7, "mysql")), own=OWN._replace(home=None))
    assert (step, number) == ("identity: the agent's own container cannot be told", 0)


def test_stat_is_read_to_its_last_parenthesis():
    assert stat_line(7, name="a) S 0").startswith("7 (a) S 0) S 0 "), "the tests' own line is as the kernel's"
