"""The scripts of examples/around, run as they stand: plan, podhook and agents are real, restic and co. stand-ins."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import kubernetes_schema

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [pytest.mark.broker, pytest.mark.processes]


@pytest.fixture
def world(cli, tmp_path, monkeypatch):
    """A MariaDB's agent in namespace shop; `run` runs a script, `say` gives a stand-in its words."""
    bin_, diary = tmp_path / "bin", tmp_path / "diary"
    bin_.mkdir()

    def say(name, text):
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)

    say("podhook", f'exec {sys.executable} -m agent "$@"')
    say("mariadb", f'for last; do :; done; echo "$last" >> {diary}')
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    cli.agent("mariadb", "shop", labels='app="mariadb"\n', CONTAINER="mariadb")
    cli.online("mariadb")

    def run(script, *arguments):
        done = subprocess.run(
            [EXAMPLES / "around" / script, *arguments],
            env=cli.environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = diary.read_text().splitlines()
        assert lines == ["SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"], done.stderr
        return done

    run.say = say
    return run


@pytest.mark.parametrize("code", [0, 3])
def test_restic(world, tmp_path, code):
    world.say("restic", f'echo "$@"; exit {code}')
    done = world("restic.sh", "/data")
    assert (done.returncode, done.stdout) == (code, "backup --tag mariadb /data\n")


@pytest.mark.parametrize(("phase", "code"), [("Completed", 0), ("PartiallyFailed", 1)])
def test_velero_which_ends_with_0_although_the_backup_failed(world, phase, code):
    state = json.dumps({"status": {"phase": phase}})
    world.say("velero", f"""[ "$2" = get ] && echo '{state}' || true""")
    world.say("jq", f"""exec {sys.executable} -c 'import json, sys; print(json.load(sys.stdin)["status"]["phase"])'""")
    done = world("velero.sh")
    assert done.returncode == code, done.stderr
    assert phase in done.stdout


@pytest.mark.parametrize(("code", "made"), [(0, True), (2, False)])
def test_mysqldump_through_a_pipe_is_as_good_as_its_worst_part(world, tmp_path, code, made):
    world.say("mysqldump", f'echo "dump of $*"; exit {code}')
    file = tmp_path / "shop.sql.gz"
    done = world("mysqldump.sh", file, "shop")
    assert done.returncode == code, done.stderr
    assert file.exists() is made
    if made:
        assert gzip.decompress(file.read_bytes()) == b"dump of --single-transaction shop\n"


def test_the_cronjob_is_one_and_its_command_is_podhooks(cli):
    [job] = yaml.safe_load_all((EXAMPLES / "around" / "cronjob.yaml").read_text())
    kubernetes_schema.check(job)
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["podhook", "around"]
    plan = EXAMPLES / "hooks" / Path(container["command"][2]).name
    done = cli("check", plan)
    assert done.returncode == 0, done.stderr
    assert "postBackup[0] writable: Always: valid" in done.stdout
