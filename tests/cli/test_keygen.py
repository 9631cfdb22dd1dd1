"""`podhook keygen`, and the keys that it makes in use: run, agents, query and cancel of people and scripts."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.contract.signing.keys import parse_signing_key, parse_trusted_keys
from tests.agents import PROJECT, Stage, stage

__all__ = ["stage"]

HOOK = """
action:
  exec:
    command: [/bin/sh, -c, "echo quiet"]
executor:
  type: Pod
  pod: {selector: app=db, strategy: ExecuteOnAll}
"""


def podhook(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)


def test_a_pair_is_made_that_agents_and_coordinators_can_read(tmp_path: Path) -> None:
    made = podhook("keygen", "nightly", "-d", tmp_path, "-n", "shop", "-n", "lab", "--operator")
    assert made.returncode == 0, made.stderr
    private = parse_signing_key((tmp_path / "nightly.key").read_text(), "nightly.key")
    [public] = parse_trusted_keys((tmp_path / "nightly.pub").read_text(), "nightly.pub")
    assert made.stdout.strip() == private.kid == public.kid
    assert (public.namespaces, public.operator, public.name) == ({"shop", "lab"}, True, "nightly")
    assert stat.S_IMODE((tmp_path / "nightly.key").stat().st_mode) == 0o600
    assert json.loads((tmp_path / "nightly.key").read_text())["d"] not in made.stdout + made.stderr


def test_two_pairs_are_never_the_same(tmp_path: Path) -> None:
    kids = {podhook("keygen", name, "-d", tmp_path).stdout for name in ("a", "b")}
    assert len(kids) == 2


@pytest.mark.parametrize("there", ["nightly.key", "nightly.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    made = podhook("keygen", "nightly", "-d", tmp_path)
    assert (made.returncode, (tmp_path / there).read_text()) == (2, "precious")
    assert f"{there} exists, and a key is never overwritten" in made.stderr
    assert [each.name for each in tmp_path.iterdir()] == [there], "half a pair was left"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("keygen", "../nightly"), "cannot be a file's name"),
        (("keygen", "a", "-n", "Shop"), "--namespace 'Shop' is not a Kubernetes name"),
        (("keygen", "a", "-d", "/dev/null/keys"), "cannot write /dev/null/keys: Not a directory"),
        (("agents", "--key", "/nowhere"), "key file /nowhere: No such file or directory"),
        (("agents", "--agent-keys", "/nowhere"), "give a directory with NAMESPACE.pub files"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], says: str) -> None:
    made = podhook(*arguments)
    assert made.returncode == 2, made.stderr
    assert says in made.stderr


async def test_the_commands_sign_and_verify(stage: Stage, tmp_path: Path) -> None:
    """What a newcomer does: two pairs, an agent with them, and every command with --key and --agent-keys."""
    keys = tmp_path / "keys"
    for directory in (keys, keys / "agents", keys / "trusted"):
        directory.mkdir()
    assert podhook("keygen", "nightly", "-d", keys).returncode == 0
    assert podhook("keygen", "shop", "-d", keys).returncode == 0
    (keys / "nightly.pub").rename(keys / "trusted" / "nightly.pub")
    (keys / "shop.pub").rename(keys / "agents" / "shop.pub")
    (tmp_path / "freeze.yaml").write_text(HOOK)
    agent = await stage.agent(allow_unsigned="", trusted_keys=keys / "trusted", agent_key=keys / "shop.key")
    where = ("--broker", stage.broker.url, "--topic-root", stage.root)
    trust = ("--key", keys / "nightly.key", "--agent-keys", keys / "agents")

    listed = podhook("agents", *where, *trust)
    assert listed.returncode == 0
    assert "+0." in listed.stdout or "-0." in listed.stdout, f"no clock: the question was not signed\n{listed.stdout}"
    assert " yes " in listed.stdout
    assert " unverified " in podhook("agents", *where).stdout
    assert json.loads(podhook("agents", *where, *trust, "-o", "json").stdout)["verified"] is True

    run = podhook("run", tmp_path / "freeze.yaml", "-n", "shop", *where, *trust, "-o", "json")
    assert run.returncode == 0, run.stderr + agent.tail()
    result = json.loads(run.stdout)
    assert (result["verdict"], result["verified"]) == ("succeeded", True)
    asked = podhook("query", result["run_id"], *where, *trust)
    assert (asked.returncode, " yes " in asked.stdout) == (0, True), asked.stdout + asked.stderr
    stranger = podhook("query", result["run_id"], *where)
    assert (stranger.returncode, "succeeded" in stranger.stdout) == (1, False), "a stranger was told"
    assert "give the key with --key" in stranger.stderr
    assert result["run_id"] in podhook("runs", *where, *trust).stdout
    assert podhook("cancel", result["run_id"], *where, *trust).returncode == 0

    unsigned = podhook("run", tmp_path / "freeze.yaml", "-n", "shop", *where)
    assert unsigned.returncode == 1
    assert "sign it with a key that it trusts (--key FILE or PODHOOK_KEY)" in unsigned.stdout
    assert " unverified " in unsigned.stdout
