"""`podhook check`: valid files are described, invalid ones explained, all at once and without a broker."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.brokers import Mosquitto, free_port
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


# -- a broker


@pytest.mark.broker
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("", 0, "keeps every promise that it can tell of"),
        ("retain_available false", 1, "no retained messages"),
        ("max_qos 0", 1, "no QoS 1"),
        ("max_inflight_messages 5", 1, "at most 5 unacknowledged messages at once"),
        ("max_packet_size 20000", 1, "packets of at most 20000 bytes"),
        ("max_packet_size 200000", 0, "keeps every promise"),
    ],
)
def test_a_broker_is_told_what_it_does_not_keep(tmp_path, line, code, said):
    broker = Mosquitto(tmp_path, line)
    broker.start()
    try:
        done = check("--broker", broker.url)
    finally:
        broker.stop()
    assert done.returncode == code, done.stderr
    assert said in done.stdout
    assert f"{broker.url}: MQTT 5" in done.stdout


@pytest.mark.broker
def test_what_an_older_protocol_leaves_out_is_a_note_and_no_fault(nats):
    done = check("--broker", nats.url)
    assert (done.returncode, "MQTT 3.1.1" in done.stdout, "note: " in done.stdout) == (0, True, True)


@pytest.mark.broker
def test_a_check_leaves_no_session_behind(mosquitto):
    before = mosquitto.log.read_bytes().count(b"podhook_check_")
    assert check("--broker", mosquitto.url).returncode == 0
    log = mosquitto.log.read_text().splitlines()
    connects = [line for line in log if "New client connected" in line and "podhook_check_" in line]
    assert len(connects) == 2, "once as an agent does, once to take its session back"
    assert "(p5, c0," in connects[0]
    assert "(p5, c1," in connects[1]
    assert before == 0


def test_a_broker_that_is_not_there_has_its_exit_code():
    done = check("--broker", f"mqtt://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (4, "")
    assert "cannot reach the broker" in done.stderr


def test_without_a_file_or_a_broker_there_is_nothing_to_check():
    done = check()
    assert done.returncode == 2
    assert "give a FILE of hooks, or --broker URL" in done.stderr
