"""Keys that commands of the agent's own container could take: judged by owner, group, mode and the way there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.sidecar.app import utc_now
from agent.sidecar.key_files import KeyFiles
from agent.sidecar.key_modes import _may, exposed
from agent.sidecar.settings import AgentSettings

AGENT, COMMANDS = 64918, 64919
R, W, X = 0o4, 0o2, 0o1


def found(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "right", "may"),
    [
        (0o444, 0, 0, R, True),
        (0o440, 0, AGENT, R, False),
        (0o440, 0, COMMANDS, R, True),
        (0o400, AGENT, AGENT, R, False),
        (0o400, COMMANDS, 0, R, True),
        (0o044, COMMANDS, COMMANDS, R, False),  # the owner's right counts, though others have more
        (0o404, 0, COMMANDS, R, False),
        (0o666, 0, 0, W, True),
        (0o644, 0, 0, W, False),
        (0o711, 0, 0, X, True),
        (0o700, AGENT, AGENT, X, False),
    ],
)
def test_a_mode_is_read_as_the_kernel_does(mode, uid, gid, right, may):
    assert _may(found(mode, uid, gid), COMMANDS, right) is may


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody can reach."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.geteuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    return tmp_path


def file(directory: Path, mode: int, name: str = "shop.key") -> Path:
    path = directory / name
    path.write_text("{}", encoding="ascii")
    path.chmod(mode)
    return path


def said(key: Path | None = None, trusted: Path | None = None) -> str:
    return exposed(key, trusted, agent=AGENT, commands=COMMANDS) or ""


def test_a_key_that_everybody_reads_is_told_with_what_to_do(place):
    path = file(place, 0o444)
    assert f"can read {path} (mode 0444)" in said(path)
    assert f"give the file to user {AGENT} alone, mode 0400" in said(path)
    assert said(file(place, 0o400)) == said(None) == said(place / "not there") == ""


def test_a_link_is_judged_by_what_it_leads_to(place):
    """Kubernetes mounts links to links, whose own mode is 0777."""
    (place / "..data").symlink_to(place)
    (place / "link").symlink_to(Path("..data") / file(place, 0o400).name)
    assert said(place / "link") == ""
    (place / "shop.key").chmod(0o444)
    assert "can read" in said(place / "link")


def test_behind_a_closed_door_a_mode_opens_nothing(place):
    (place / "closed").mkdir(mode=0o700)
    assert said(file(place / "closed", 0o444)) == ""


@pytest.mark.parametrize(
    ("directory", "key", "told"), [(0o755, 0o644, ""), (0o757, 0o644, "dir"), (0o755, 0o646, "key")]
)
def test_trusted_keys_that_commands_can_change_are_told(place, directory, key, told):
    trusted = place / "trusted"
    trusted.mkdir()
    path = file(trusted, key, "nightly.pub")
    trusted.chmod(directory)
    named = {"": "", "dir": f"can write to {trusted} (mode 0757)", "key": f"can write to {path} (mode 0646)"}[told]
    assert named in said(trusted=trusted)
    assert bool(said(trusted=trusted)) is bool(told)


def test_an_agent_whose_hooks_can_read_its_key_says_so_until_that_is_mended(place):
    key = file(place, 0o444)
    problems: dict[str, str | None] = {}
    files = KeyFiles(AgentSettings(agent_key=key), utc_now, problems.__setitem__, lambda: None)
    files.look(commands_are_others=False)
    assert "key files" not in problems, "where commands run as the agent, that is said of the whole agent"
    files.look(commands_are_others=True)
    assert f"can read {key} (mode 0444)" in str(problems["key files"])
    key.chmod(0o400)
    files.look(commands_are_others=True)
    assert problems["key files"] is None
