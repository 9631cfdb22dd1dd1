"""The steps of docs/sidecar.md, taken as they stand there: keys, certificates, users, and what goes into a cluster.

So the pods of the tests mount what a reader of that page has. `kubectl` is `kubectl.py`, which only takes notes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.pods.images import PROJECT
from tests.pods.stand_ins import Objects

PAGE = PROJECT / "docs" / "sidecar.md"
STEP_SECONDS = 60
#: What is typed in a shell that stops at the first thing that goes wrong.
_SHELL = ("bash", "-euo", "pipefail", "-c")


@dataclass(frozen=True, slots=True)
class Documented:
    """What a reader has after taking the steps: `directory` is his, the objects are the cluster's, by namespace."""

    directory: Path
    objects: Mapping[str, Objects]

    def run(self, block: str, **environment: str) -> str:
        """Type more of the page; what was said."""
        return _type(self.directory, f"checkout={PROJECT}\n{block}", environment)


def follow(directory: Path) -> Documented:
    """Take the steps, below a directory that is there. What is made lies in `podhook-cluster` in it."""
    tools = directory / "bin"
    tools.mkdir()
    _tool(tools / "podhook", f'PYTHONPATH={PROJECT} exec {sys.executable} -m agent "$@"')
    state = directory / "kubectl.json"
    _tool(tools / "kubectl", f'exec {sys.executable} {Path(__file__).with_name("kubectl.py")} {state} "$@"')
    checkout = directory / "checkout"  # a directory of its own: the page goes to the one beside it
    checkout.mkdir()
    for each in ("manifests", "examples"):
        (checkout / each).symlink_to(PROJECT / each)
    _type(checkout, f"{block('files')}\n{block('cluster')}", {})
    said = json.loads(state.read_text())
    objects = {
        namespace: Objects(said["secrets"].get(namespace, {}), said["config_maps"].get(namespace, {}))
        for namespace in said["namespaces"]
    }
    return Documented(directory / "podhook-cluster", objects)


def block(name: str) -> str:
    """The shell lines between the page's marks of this name."""
    found = re.search(rf"<!-- {name}: begin -->\n```sh\n(.*?)```\n<!-- {name}: end -->", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/sidecar.md has no steps called {name}"
    return found[1]


def _tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _type(directory: Path, text: str, environment: Mapping[str, str]) -> str:
    tools = directory.parent / "bin"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
    env = {**inherited, **environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*_SHELL, text], cwd=directory, env=env, capture_output=True, text=True, timeout=STEP_SECONDS, check=False
    )
    assert done.returncode == 0, f"docs/sidecar.md: exit {done.returncode}\n{text}\n{done.stdout}{done.stderr}"
    return done.stdout
