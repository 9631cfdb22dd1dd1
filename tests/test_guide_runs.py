"""KubeStash's guide to hooks *runs* here as it stands: each example, unchanged, through `podhook run`.

The examples name hosts of a cluster (`my-host.demo.svc`, port 8080). They become true in network and mount namespaces
of their own, with an /etc/hosts of their own: nothing of the example is changed, and nothing of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from agent import __version__
from tests.brokers import mosquitto_binary

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "examples" / "guide"
HOST_IP, SERVICE_IP, POD_IP = "127.0.0.2", "127.0.0.3", "127.0.0.4"

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def unshare() -> list[str]:
    """How to enter namespaces of one's own here; skips with the reason where that is not allowed."""
    if (binary := shutil.which("unshare")) is None:
        pytest.skip("unshare is not installed: apt-get install util-linux")
    command = [binary, "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    probe = [*command, "--", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    tried = subprocess.run(probe, check=False, capture_output=True, text=True, timeout=20)
    if tried.returncode != 0:
        pytest.skip(f"needs root, or user namespaces, to give the examples their hosts: {tried.stderr.strip()}")
    return command


@pytest.fixture
def world(tmp_path):
    """Runs an example where its hosts, pods and commands are real; returns what came of it."""
    mosquitto_binary()
    command = unshare()

    def run(name):
        world = [sys.executable, "-m", "tests.guide_world", str(tmp_path), str(GUIDE / f"{name}.yaml")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
        done = subprocess.run(
            [*command, "--", *world],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def succeeded(found):
    """It ended well, on these pods."""
    assert found["code"] == 0, found
    assert found["run"]["verdict"] == "succeeded"
    assert {target["outcome"] for target in found["run"]["targets"]} == {"succeeded"}
    return [target["pod"] for target in found["run"]["targets"]]


def asked(found):
    """The one request that a server was sent."""
    [request] = found["asked"]
    return request


TESTED_BELOW = {
    "http-get-host-and-port",
    "http-get-custom-header",
    "http-get-named-port",
    "http-post-json",
    "http-post-form",
    "tcp-socket-host-and-port",
    "tcp-socket-named-port",
    "exec-mysql-read-only",
    "exec-mysql-writable",
    "exec-mysql-drop-database",
    "exec-mysql-rename-table",
    "exec-remove-corrupted-data",
    "executor-pod-all",
    "executor-pod-one",
    "executor-pod-owner",
    "executor-operator",
    "executor-function",
}


def test_every_example_of_the_guide_is_run_by_a_test_of_this_file():
    assert {path.stem for path in GUIDE.glob("*.yaml")} == TESTED_BELOW


def test_http_get_of_a_given_host_and_port(world):
    found = world("http-get-host-and-port")
    assert succeeded(found) == ["my-app-0"]
    assert found["run"]["targets"][0]["http_status"] == 200
    request = asked(found)
    assert (request["ip"], request["method"], request["path"]) == (HOST_IP, "GET", "/")
    assert request["headers"]["host"] == "my-host.demo.svc:8080"
    assert request["headers"]["user-agent"] == f"podhook/{__version__}"


def test_http_get_with_a_header_of_its_own(world):
    found = world("http-get-custom-header")
    assert succeeded(found) == ["my-app-0"]
    assert asked(found)["headers"]["user-agent"] == "kubestash/0.5.x"


def test_http_get_by_the_name_of_a_port_goes_to_the_pod_itself(world):
    found = world("http-get-named-port")
    assert succeeded(found) == ["my-app-0"]
    assert (asked(found)["ip"], asked(found)["path"]) == (POD_IP, "/")


def test_http_post_of_json(world):
    found = world("http-post-json")
    assert succeeded(found) == ["my-app-0"]
    request = asked(found)
    assert (request["ip"], request["method"], request["path"]) == (SERVICE_IP, "POST", "/demo")
    assert request["headers"]["content-type"] == "application/json"
    assert json.loads(request["body"]) == {"name": "john doe", "age": "28"}


def test_http_post_of_a_form(world):
    found = world("http-post-form")
    assert succeeded(found) == ["my-app-0"]
    request = asked(found)
    assert (request["ip"], request["method"], request["path"]) == (SERVICE_IP, "POST", "/demo")
    assert request["headers"]["content-type"] == "application/x-www-form-urlencoded"
    assert urllib.parse.parse_qsl(request["body"]) == [("name", "john doe"), ("age", "28")]


@pytest.mark.parametrize("name", ["tcp-socket-host-and-port", "tcp-socket-named-port"])
def test_tcp_to_a_host_or_by_the_name_of_a_port(world, name):
    assert succeeded(world(name)) == ["my-app-0"]


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("read-only", "SET GLOBAL super_read_only = ON;"),
        ("writable", "SET GLOBAL super_read_only = OFF;"),
        ("drop-database", "DROP DATABASE companyRecord;"),
        ("rename-table", "RENAME TABLE companyRecord.employee TO companyRecord.salaryRecord;"),
    ],
)
def test_mysql_is_given_the_statement_and_the_containers_own_password(world, name, statement):
    found = world(f"exec-mysql-{name}")
    assert succeeded(found) == ["my-app-0"]
    assert found["mysql"] == ["-u", "root", "--password=s3cret", "-e", statement]


def test_a_shell_command_clears_a_directory(world):
    assert not Path("/corrupted").exists(), "this machine has /corrupted; the example would delete below it"
    found = world("exec-remove-corrupted-data")
    assert succeeded(found) == ["my-app-0"]
    assert found["run"]["targets"][0]["exit_code"] == 0


@pytest.mark.parametrize(
    ("name", "pods"),
    [
        ("executor-pod-all", ["web-0", "web-1"]),
        ("executor-pod-one", ["web-0"]),
        ("executor-pod-owner", ["web-1"]),
    ],
)
def test_the_executor_chooses_the_pods(world, name, pods):
    assert succeeded(world(name)) == pods


def test_the_cluster_says_which_pods_there_are_and_who_owns_them(world):
    found = world("executor-pod-owner")
    assert succeeded(found) == ["web-1"]
    assert "not counted" not in str(found["run"]["notes"]), "the pod that is being deleted has no owner"
    assert "GET /apis/apps/v1/namespaces/default/replicasets" in found["api"]


def test_a_pod_that_is_being_deleted_does_not_count_and_is_named(world):
    found = world("executor-pod-all")
    assert succeeded(found) == ["web-0", "web-1"]
    assert found["run"]["notes"] == ["not counted, for they are not running: default/web-3 (being deleted)"]


def test_the_operator_itself_runs_it(world):
    found = world("executor-operator")
    assert succeeded(found) == ["operator"]
    assert (found["run"]["targets"][0]["exit_code"], found["api"]) == (0, []), "it needs no cluster"


def test_a_job_of_the_function_runs_it(world):
    found = world("executor-function")
    [pod] = succeeded(found)
    assert found["run"]["targets"][0]["stdout"] == "migrated\n"
    [job] = found["jobs"]
    assert job["metadata"]["name"] == pod
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == ("example.com/hook:1", ["migrate"])
