"""podman as the tests use it: where it can run at all, its configuration, and calls that end in time.

podman takes its limits for granted: where this process may not raise its own (no CAP_SYS_RESOURCE) every container
would be refused. So the tests bring their own configuration, unless CONTAINERS_CONF says that somebody else did.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CALL_SECONDS = 60
#: Program -> the Debian package that has it.
PACKAGES = {
    "podman": "podman",
    "runc": "runc",
    "catatonit": "catatonit",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
}
#: Names a Debian image with Python 3.11 or newer: the base of all images, in place of one made by debootstrap.
BASE_VARIABLE = "PODHOOK_TEST_BASE_IMAGE"
LOWEST_NOFILE = 1024
TAIL_CHARACTERS = 3000


class PodmanFailed(AssertionError):  # noqa: N818 (reads as what happened)
    """podman said no. The message has its last words."""


def why_not() -> str | None:
    """Why no pod can be played here, or None."""
    if os.geteuid() != 0:
        return "pods need root: a rootless podman puts the agent into a user namespace, as no cluster does"
    missing = missing_packages()
    return (
        f"pods need {', '.join(missing)}: apt-get install {' '.join(missing)} (make test-pods does)"
        if missing
        else None
    )


def missing_packages() -> list[str]:
    """Debian packages that pods need and that are not here."""
    needed = {name: package for name, package in PACKAGES.items() if name != "debootstrap" or not chosen_base()}
    return [package for name, package in needed.items() if not _installed(name)]


def chosen_base() -> str:
    """The base image that the contributor named, or nothing."""
    return os.environ.get(BASE_VARIABLE, "")


def _installed(name: str) -> bool:
    places = ("/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman", "/usr/local/lib/podman")
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *places))) is not None


@functools.cache
def environment() -> dict[str, str]:
    """The environment in which podman is called: ours, and a CONTAINERS_CONF that fits this machine."""
    if "CONTAINERS_CONF" in os.environ:
        return dict(os.environ)
    return {**os.environ, "CONTAINERS_CONF": str(_configuration())}


def _configuration() -> Path:
    files = _limit(resource.RLIMIT_NOFILE, 1048576)
    processes = _limit(resource.RLIMIT_NPROC, 32768)
    lines = [
        "[containers]",
        f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]',
        'log_driver = "k8s-file"',
        "[engine]",
        'runtime = "runc"',
        'events_logger = "file"',
    ]
    if not Path("/run/systemd/system").exists():
        lines.append('cgroup_manager = "cgroupfs"')
    # One file for all test processes, so that it needs no owner: same machine, same content.
    path = Path(tempfile.gettempdir()) / f"podhook-test-containers-{os.geteuid()}.conf"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write("\n".join(lines) + "\n")
    return Path(file.name).replace(path)


def _limit(which: int, usual: int) -> int:
    hard = resource.getrlimit(which)[1]
    return usual if hard == resource.RLIM_INFINITY else max(min(hard, usual), LOWEST_NOFILE)


def podman(*arguments: str, check: bool = True, within_seconds: float = CALL_SECONDS, **options: Any) -> str:
    """Call podman and return what it printed, stripped.

    Raises:
        PodmanFailed: it exited with another code than 0 and `check` is set.
        subprocess.TimeoutExpired: it took longer than `within_seconds`.
    """
    called = call(*arguments, within_seconds=within_seconds, **options)
    if check and called.returncode != 0:
        raise PodmanFailed(f"podman {' '.join(arguments)}: exit {called.returncode}: {_tail(called)}")
    return called.stdout.strip()


def _tail(called: subprocess.CompletedProcess[str]) -> str:
    return (called.stdout[-TAIL_CHARACTERS:] + called.stderr[-TAIL_CHARACTERS:]).strip()


def call(*arguments: str, within_seconds: float = CALL_SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
    """Call podman and return everything: exit code, stdout, stderr. Raises only when it takes too long."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        ["podman", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=within_seconds,
        check=False,
        **options,
    )


def podman_json(*arguments: str) -> Any:
    """Call podman and parse what it printed."""
    return json.loads(podman(*arguments) or "null")


def run_once(image: str, *command: str, entrypoint: str | None = None, flags: tuple[str, ...] = ()) -> str:
    """Run a container without network to its end, and return what it printed."""
    chosen = () if entrypoint is None else ("--entrypoint", entrypoint)
    return podman("run", "--rm", "--pull=never", "--network=none", *flags, *chosen, image, *command)


if __name__ == "__main__":
    print(*missing_packages())
