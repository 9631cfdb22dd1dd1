"""`podhook check`: valid files are described, invalid ones explained, all at once and without a broker."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import clean_environment

GOOD = """
apiVersion: core.kubestash.com/v1alpha1
kind: HookTemplate
metadata: {name: freeze}
spec:
  params:
    - {name: LOCK, usage: which lock, required: true}
    - {name: WAIT, default: "5"}
  action: {exec: {command: [sh, -c, "echo ${LOCK} ${WAIT}"]}}
  executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}
---
action: {tcpSocket: {port: 3306}}
---
executor: {type: Function, function: {name: f}}
"""
BAD = """
action:
  exec: {comand: [a]}
  httpGet: {port: 99999}
executor: {type: Pods}
---
apiVersion: core.kubestash.com/v1alpha1
kind: HookTemplate
metadata: {name: x}
spec:
  action: {exec: {command: [echo, "{{ nope }}"]}}
  executor: {type: Pod, pod: {selector: "a in"}}
"""


def check(*arguments, stdin="", cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "agent", "check", *map(str, arguments)],
        input=stdin,
        env=clean_environment(PODHOOK_BROKER="mqtt://127.0.0.1:1"),
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_valid_file_is_described_hook_by_hook(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    done = check(tmp_path / "good.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    for sentence in (
        "freeze: exec, ExecuteOnAll of pods with app=db: valid",
        "  param LOCK: required - which lock",
        "  param WAIT: default '5'",
        "good#2: tcpSocket, no executor: valid",
        "one thing is missing: executor",
        "good#3: no action, Function executor: valid",
        "comes with the Kubernetes coordinator",
    ):
        assert sentence in done.stdout


def test_every_problem_of_every_document_is_explained_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD)
    done = check(tmp_path / "bad.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    for problem in (
        "document 1: action.exec.comand: unknown field; did you mean 'command'?",
        "document 1: action.httpGet.port: 99999 is not a port",
        "document 1: action: has 2 actions (exec, httpGet)",
        "document 1: executor.type: 'Pods' is not one of",
        "document 2: spec.action.exec.command[1]:",
        "document 2: spec.executor.pod.selector:",
    ):
        assert problem in done.stderr


@pytest.mark.parametrize("stdin", [GOOD, BAD])
def test_a_dash_reads_standard_input(stdin):
    done = check("-", stdin=stdin)
    assert done.returncode == (0 if stdin is GOOD else 2)
    assert ("stdin#2" in done.stdout) is (stdin is GOOD)


@pytest.mark.parametrize("text", ["", "# nothing\n", "[1, 2]", "\x00", "a: [", "&a [*a, *a]"])
def test_what_is_no_hook_at_all_is_an_error_and_not_a_crash(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    done = check(tmp_path / "odd.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("podhook: the hook cannot be used:\n  ")


def test_a_file_that_is_not_there_or_a_directory_is_named(tmp_path):
    assert "cannot read none.yaml: No such file" in check("none.yaml", cwd=tmp_path).stderr
    assert "Is a directory" in check(tmp_path).stderr
