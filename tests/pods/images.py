"""The images of the tests, made once and kept: `python -m tests.pods.images` makes what is missing and lists them.

Each is tagged with a hash of what it is made of, so what did not change is not made again. The base is a Debian made by
debootstrap; with PODHOOK_TEST_BASE_IMAGE=python:3.13-slim (any Debian with Python 3.11 or newer and its venv module) it
is that image instead.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from agent import __version__
from tests.pods.podman import BASE_VARIABLE, call, chosen_base, podman, why_not

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
REPOSITORY = "localhost/podhook-test"

SUITE = "bookworm"
#: What the base has beyond what Debian calls minimal. The mirror is debootstrap's own default.
PACKAGES = ("python3", "python3-venv", "ca-certificates")
#: Thrown away, since containers read no manuals and fetch their own package lists.
NOT_IN_BASE = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)
DPKG_OPTIONS = "".join(f"path-exclude=/{path}/*\n" for path in NOT_IN_BASE[:4]) + "force-unsafe-io\n"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What of the checkout gets into the agent's image; .dockerignore lets in no more.
AGENT_SOURCES = (
    "Dockerfile",
    ".dockerignore",
    "requirements/image.txt",
    "requirements/build.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "examples/demo.yaml",
)
TARGETS = ("mariadb", "postgresql", "mosquitto", "tools", "static")

BUILD_SECONDS = 900
TRY_SECONDS = 120
#: Earlier versions are kept for a while: another checkout on this machine may be at work with them.
KEEP_HOURS = 48
LOCK = Path("/run/podhook-test-images.lock")


@dataclass(frozen=True, slots=True)
class Images:
    """Full names, tags included. `base` has Python and, unlike `agent`, the set-user-id programs of its Debian."""

    base: str
    agent: str
    mariadb: str
    postgresql: str
    mosquitto: str
    tools: str
    static: str

    def of_examples(self) -> dict[str, str]:
        """Container name -> image, for the YAML under examples/pods."""
        return {
            "agent": self.agent,
            "reloader": self.agent,
            "mariadb": self.mariadb,
            "postgresql": self.postgresql,
            "mosquitto": self.mosquitto,
        }


class NoContainersHere(RuntimeError):  # noqa: N818 (reads as what it is)
    """This machine makes no base image, or runs no container at all: nothing that podhook could have broken."""


def ensure() -> Images:
    """Make what is missing, and return the names. Only one process makes images at a time.

    Raises:
        PodmanFailed: a build failed; its last words are in the message.
        NoContainersHere: see there.
    """
    with _locked():
        there = set(
            podman("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={REPOSITORY}/*").split()
        )
        base = chosen_base() or _base(there)
        _try_out(base)
        made = {"base": base, "agent": _agent(base, there)}
        recipe = _hash([HERE / "Dockerfile", *sorted((HERE / "entrypoints").iterdir())], base)
        for target in TARGETS:
            made[target] = f"{REPOSITORY}/{target}:{recipe}"
            _make(made[target], there, HERE, base, "--target", target)
        return Images(**made)


def _try_out(base: str) -> None:
    """Whether a container runs here: under some seccomp profiles and in some containers none does."""
    try:
        ended = call("run", "--rm", "--network=none", base, "/bin/true", within_seconds=TRY_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NoContainersHere(f"podman ran nothing in {TRY_SECONDS} s") from error
    if ended.returncode != 0:
        raise NoContainersHere(f"podman cannot run a container here: {ended.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hash(files: list[Path], *words: str) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for path in files:
        digest.update(f"\0{path.relative_to(PROJECT)}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# -- the base


def _base(there: set[str]) -> str:
    recipe = hashlib.sha256("\0".join((SUITE, *PACKAGES, *NOT_IN_BASE, DPKG_OPTIONS, DEFAULT_PATH)).encode())
    name = f"{REPOSITORY}/base:{SUITE}-{recipe.hexdigest()[:16]}"
    if name not in there:
        _debootstrap(name)
    return name


def _debootstrap(name: str) -> None:
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise NoContainersHere(f"debootstrap is not installed: install it, or set {BASE_VARIABLE}=python:3.13-slim")
    with tempfile.TemporaryDirectory(prefix="podhook-test-base-", dir="/var/tmp") as directory:
        root, log = Path(directory) / "root", Path(directory) / "log"
        # In a mount namespace of its own: what debootstrap mounts goes with it, whatever becomes of it.
        command = [
            "unshare",
            "--mount",
            program,
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            SUITE,
            str(root),
        ]
        with log.open("wb") as output:
            ended = subprocess.run(command, stdout=output, stderr=output, timeout=BUILD_SECONDS, check=False)
        if ended.returncode != 0:
            raise NoContainersHere(f"debootstrap failed: {log.read_text(errors='replace')[-2000:]}")
        for path in NOT_IN_BASE:
            shutil.rmtree(root / path, ignore_errors=True)
            (root / path).mkdir(parents=True, exist_ok=True)
        (root / "etc/dpkg/dpkg.cfg.d/podhook-test").write_text(DPKG_OPTIONS, encoding="ascii")
        tar = subprocess.Popen(["tar", "-C", str(root), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE)
        with tar:
            podman(
                "import",
                "-q",
                "--change",
                f"ENV PATH={DEFAULT_PATH}",
                "-",
                name,
                stdin=tar.stdout,
                within_seconds=BUILD_SECONDS,
            )
        if tar.returncode != 0:
            podman("rmi", name, check=False)
            raise NoContainersHere(f"tar failed with exit code {tar.returncode}")


# -- what is built


def _agent(base: str, there: set[str]) -> str:
    sources = [PROJECT / name for name in AGENT_SOURCES]
    sources += sorted(
        path for path in (PROJECT / "agent").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    name = f"{REPOSITORY}/agent:{_hash(sources, base)}"
    _make(name, there, PROJECT, base, "--build-arg", f"VERSION={__version__}")
    return name


def _make(name: str, there: set[str], context: Path, base: str, *options: str) -> None:
    if name in there:
        return
    with tempfile.TemporaryDirectory(prefix="podhook-test-build-") as directory:
        file = ("-f", str(context / "Dockerfile"))
        chosen = ("--build-arg", f"BASE={base}", *_fetching(Path(directory)), *options)
        podman("build", *file, *chosen, "-t", name, str(context), within_seconds=BUILD_SECONDS)
    repository = name.rpartition(":")[0]
    for old in there:
        if old.rpartition(":")[0] == repository:
            _remove_if_old(old)


def _remove_if_old(name: str) -> None:
    aged = podman("images", "-q", "--filter", f"reference={name}", "--filter", f"until={KEEP_HOURS}h", check=False)
    if aged:
        call("rmi", name)  # refused while a container uses it, and so it should be


def _fetching(directory: Path) -> list[str]:
    """How apt and pip reach their packages in a build: as this machine does. Nothing of it stays in the image."""
    arguments = ["--network", "host"]
    certificates = Path("/etc/ssl/certs")
    if (certificates / "ca-certificates.crt").is_file():
        arguments += ["-v", f"{certificates}:{certificates}:O"]
    configuration = _pip_configuration()
    if configuration:
        path = directory / "pip.conf"
        path.write_text(configuration, encoding="utf-8")
        arguments += ["-v", f"{path}:/etc/pip.conf:ro"]
    return arguments


#: Settings of pip that say where packages come from. Values that name this machine's files mean nothing in a container.
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


def _pip_configuration() -> str:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    settings = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in _PIP_SETTINGS:
            words = [word for word in str(ast.literal_eval(value)).split() if not word.startswith(("file:", "/"))]
            if words:
                settings[name] = "\n  ".join(words)
    return "".join(["[global]\n", *(f"{name} = {value}\n" for name, value in settings.items())]) if settings else ""


def main() -> int:
    """Make what is missing and say what there is."""
    if reason := why_not():
        print(f"pods are not tested here: {reason}")
        return 0
    began = time.monotonic()
    try:
        images = ensure()
    except NoContainersHere as error:
        print(f"pods are not tested here: {error}")
        return 0
    for field in fields(images):
        name = getattr(images, field.name)
        size = int(podman("image", "inspect", "--format", "{{.Size}}", name))
        print(f"{field.name:<11} {size / 1e6:>6.0f} MB  {name}")
    print(f"ready after {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
