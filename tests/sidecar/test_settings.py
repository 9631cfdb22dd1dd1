"""The agent's settings: the environment, flags over it, and errors that name the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.contract.errors import InvalidSettings
from agent.sidecar import settings as settings_module
from agent.sidecar.settings import AgentSettings, command_environment, load_settings

#: A value other than the default for every setting, as people write it into the environment, and what it becomes.
GIVEN = {
    "broker": ("mqtts://u:p@broker:8884", "mqtts://u:p@broker:8884"),
    "broker_user_file": ("/run/user", Path("/run/user")),
    "broker_password_file": ("/run/password", Path("/run/password")),
    "broker_ca_file": ("/run/ca", Path("/run/ca")),
    "broker_cert_file": ("/run/cert", Path("/run/cert")),
    "broker_key_file": ("/run/key", Path("/run/key")),
    "broker_protocol": ("3.1.1", "3.1.1"),
    "topic_root": ("backup/hooks", "backup/hooks"),
    "namespace": ("shop", "shop"),
    "pod": ("db-0", "db-0"),
    "pod_uid": ("6f1c", "6f1c"),
    "pod_ip": ("10.1.2.3", "10.1.2.3"),
    "container": ("mysql", "mysql"),
    "labels_file": ("/etc/podinfo/labels", Path("/etc/podinfo/labels")),
    "pod_file": ("/etc/pod.json", Path("/etc/pod.json")),
    "kubernetes": ("true", True),
    "state_dir": ("/var/lib/podhook", Path("/var/lib/podhook")),
    "max_concurrent": ("3", 3),
    "grace_seconds": ("2.5", 2.5),
    "output_limit_bytes": ("0", 0),
    "http_verify_pod": ("true", True),
    "http_verify_host": ("false", False),
    "http_ca_file": ("/run/http-ca", Path("/run/http-ca")),
    "secrets_dir": ("/run/secrets", Path("/run/secrets")),
    "audit": ("/var/log/podhook", "/var/log/podhook"),
    "allow_unsigned": ("1", True),
    "policy": ("/etc/podhook/policy.yaml", Path("/etc/podhook/policy.yaml")),
    "health_port": ("8686", 8686),
    "log_format": ("json", "json"),
    "trusted_keys": ("/etc/podhook/trusted", Path("/etc/podhook/trusted")),
    "agent_key": ("/etc/podhook/agent.key", Path("/etc/podhook/agent.key")),
    "log_level": ("debug", "debug"),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path) -> None:
    for name in os.environ:
        if name.upper().startswith("PODHOOK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


def error(**flags: object) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(**flags)
    return str(caught.value)


def test_every_setting_is_tried_here():
    assert GIVEN.keys() == AgentSettings.model_fields.keys()


def test_every_setting_can_come_from_the_environment(monkeypatch):
    for contradicting in ("trusted_keys", "allow_unsigned"):
        given = {name: each for name, each in GIVEN.items() if name != contradicting}
        monkeypatch.delenv(f"PODHOOK_{contradicting.upper()}", raising=False)
        for name, (text, _) in given.items():
            monkeypatch.setenv(f"PODHOOK_{name.upper()}", text)
        loaded = load_settings()
        assert {name: getattr(loaded, name) for name in given} == {name: value for name, (_, value) in given.items()}


def test_no_default_equals_what_is_tried_here():
    loaded = load_settings()
    assert [name for name, (_, value) in GIVEN.items() if getattr(loaded, name) == value] == []


def test_a_flag_wins_over_the_environment_and_none_is_no_flag(monkeypatch):
    monkeypatch.setenv("PODHOOK_NAMESPACE", "shop")
    monkeypatch.setenv("PODHOOK_ALLOW_UNSIGNED", "true")
    monkeypatch.setenv("PODHOOK_POD", "db-0")
    loaded = load_settings(namespace="lab", allow_unsigned=False, pod=None)
    assert (loaded.namespace, loaded.allow_unsigned, loaded.pod) == ("lab", False, "db-0")


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    for name in GIVEN:
        monkeypatch.setenv(f"PODHOOK_{name.upper()}", "")
    assert load_settings().model_dump() == AgentSettings().model_dump()
    assert load_settings().pod_ip == "127.0.0.1", "status.podIP can be empty at first"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BROKER", "http://broker", "PODHOOK_BROKER: the broker URL begins with 'http'"),
        ("BROKER", "mqtt://", "PODHOOK_BROKER: the broker URL has no host"),
        ("BROKER", "mqtt://h:99999", "PODHOOK_BROKER: the broker URL cannot be read"),
        ("BROKER_CA_FILE", "/run/ca", "PODHOOK_BROKER: certificates are given but the broker URL is mqtt://"),
        ("BROKER_KEY_FILE", "/run/key", "PODHOOK_BROKER_KEY_FILE: "),
        ("BROKER_PROTOCOL", "4", "PODHOOK_BROKER_PROTOCOL: '4': Input should be 'auto', '5' or '3.1.1'"),
        ("TOPIC_ROOT", "a/#", "PODHOOK_TOPIC_ROOT: topic root 'a/#' cannot be used: letters, digits"),
        ("NAMESPACE", "Shop", "PODHOOK_NAMESPACE 'Shop' is not a Kubernetes name: lower-case letters"),
        ("POD", "db_0", "PODHOOK_POD 'db_0' is not a Kubernetes name"),
        ("POD_UID", "x" * 129, "PODHOOK_POD_UID: '"),
        ("CONTAINER", "x" * 254, "PODHOOK_CONTAINER: '"),
        ("MAX_CONCURRENT", "0", "PODHOOK_MAX_CONCURRENT: '0': Input should be greater than or equal to 1"),
        ("MAX_CONCURRENT", "1001", "PODHOOK_MAX_CONCURRENT: '1001': Input should be less than or equal to 1000"),
        ("MAX_CONCURRENT", "many", "PODHOOK_MAX_CONCURRENT: 'many': Input should be a valid integer"),
        ("GRACE_SECONDS", "-1", "PODHOOK_GRACE_SECONDS: '-1': "),
        ("GRACE_SECONDS", "nan", "PODHOOK_GRACE_SECONDS: 'nan': "),
        ("GRACE_SECONDS", "inf", "PODHOOK_GRACE_SECONDS: 'inf': "),
        ("GRACE_SECONDS", "15s", "PODHOOK_GRACE_SECONDS: '15s': Input should be a valid number"),
        (
            "OUTPUT_LIMIT_BYTES",
            "65537",
            "PODHOOK_OUTPUT_LIMIT_BYTES: '65537': Input should be less than",
        ),
        ("HTTP_VERIFY_HOST", "maybe", "PODHOOK_HTTP_VERIFY_HOST: 'maybe': Input should be a valid boolean"),
        ("AUDIT", "stdot", "PODHOOK_AUDIT: 'stdot' is neither stdout nor off nor a path; write a file as ./stdot"),
        ("ALLOW_UNSIGNED", "on please", "PODHOOK_ALLOW_UNSIGNED: 'on please': Input should be a valid boolean"),
        ("LOG_FORMAT", "xml", "PODHOOK_LOG_FORMAT: 'xml': Input should be 'auto', 'json' or 'console'"),
        ("LOG_LEVEL", "loud", "PODHOOK_LOG_LEVEL: 'loud': Input should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
@pytest.mark.parametrize("by", ["environment", "flag"])
def test_an_error_names_the_variable_the_value_and_the_rule(monkeypatch, name, value, says, by):
    if by == "environment":
        monkeypatch.setenv(f"PODHOOK_{name}", value)
        assert says in error()
    else:
        assert says in error(**{name.lower(): value})


@pytest.mark.parametrize("name", ["BROKER_PASSWORD_FILE", "STATE_DIR", "POD_FILE"])
def test_no_file_of_the_agents_own_lies_where_hooks_may_read(monkeypatch, tmp_path, name):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "secrets")
    monkeypatch.setenv("PODHOOK_SECRETS_DIR", str(tmp_path / "link"))
    monkeypatch.setenv("PODHOOK_STATE_DIR", str(tmp_path / "state"))
    load_settings()
    monkeypatch.setenv(f"PODHOOK_{name}", str(tmp_path / "secrets" / "it"))
    assert f"holds PODHOOK_{name} ({tmp_path}/secrets/it)" in error()


def test_every_wrong_variable_is_named_at_once(monkeypatch):
    for name in ("MAX_CONCURRENT", "LOG_LEVEL", "GRACE_SECONDS"):
        monkeypatch.setenv(f"PODHOOK_{name}", "x")
    assert [f"PODHOOK_{name}: 'x'" in error() for name in ("MAX_CONCURRENT", "LOG_LEVEL", "GRACE_SECONDS")] == [
        True
    ] * 3
    message = error(max_concurrent=1, log_level="info", grace_seconds=1, namespace="A", topic_root="#", broker="x://")
    assert all(name in message for name in ("PODHOOK_NAMESPACE", "PODHOOK_TOPIC_ROOT", "PODHOOK_BROKER"))


@pytest.mark.parametrize("url", ["mqtt://u:hidden@:1", "x://u:hidden@h", "mqtt://u:hidden@h:99999", "mqtt://:hidden@h"])
def test_no_error_repeats_a_password(url):
    assert "hidden" not in error(broker=url)


# --- who the agent is


def test_without_a_name_the_host_names_the_agent(monkeypatch):
    monkeypatch.setattr(settings_module.socket, "gethostname", lambda: "DB_0.Example.com")
    assert str(load_settings(namespace="shop").identity()) == "shop/db-0.example.com"


@pytest.mark.parametrize("host", ["", "___", "-"])
def test_a_host_without_a_usable_name_has_one_all_the_same(monkeypatch, host):
    monkeypatch.setattr(settings_module.socket, "gethostname", lambda: host)
    assert load_settings().identity().pod == "localhost"


def test_the_identity_is_the_downward_apis():
    identity = load_settings(namespace="shop", pod="db-0", pod_uid="6f1c", pod_ip="fd00::7").identity()
    assert (identity.namespace, identity.pod, identity.pod_uid, identity.address) == ("shop", "db-0", "6f1c", "fd00::7")


def test_outside_kubernetes_the_uid_is_the_same_after_a_restart_and_another_for_another_name():
    code = "from agent.sidecar.settings import load_settings; print(load_settings(pod='db-0').identity().pod_uid)"
    root = Path(__file__).parents[2]
    again = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    uids = [load_settings(pod=pod).identity().pod_uid for pod in ("db-0", "db-0", "db-1")]
    assert uids[0] == uids[1] == again.stdout.strip() != uids[2]


@pytest.mark.parametrize("content", ["", "\n", None])
def test_images_with_an_empty_machine_id_do_not_share_a_uid(monkeypatch, content):
    def read(path: Path, **_: object) -> str:
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(Path, "read_text", read)
    uids = set()
    for node in (1, 2):
        monkeypatch.setattr(settings_module.uuid, "getnode", lambda node=node: node)
        uids.add(load_settings(pod="db-0").identity().pod_uid)
    assert len(uids) == 2, "two machines, one uid"


def test_the_journal_is_kept_where_state_belongs(monkeypatch, tmp_path):
    assert load_settings().state_dir == tmp_path / ".local/state/podhook"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert load_settings().state_dir == Path("/var/state/podhook")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert error() == "PODHOOK_STATE_DIR is not set and there is no home directory; set it"
    assert load_settings(state_dir=Path("/state")).state_dir == Path("/state")


# --- what commands get


def test_no_setting_of_ours_reaches_a_command(monkeypatch):
    for name, (text, _) in GIVEN.items():
        monkeypatch.setenv(f"PODHOOK_{name.upper()}", text)
    monkeypatch.setenv("podhook_broker", "mqtt://u:hidden@h")
    monkeypatch.setenv("PODHOOK_SOMETHING_NEWER", "x")
    monkeypatch.setenv("MYSQL_ROOT_HOST", "%")
    environment = command_environment()
    assert [name for name in environment if "podhook" in name.lower()] == []
    assert environment["MYSQL_ROOT_HOST"] == "%"
    assert environment.keys() == {name for name in os.environ if not name.upper().startswith("PODHOOK_")}


def test_whom_to_obey_is_said_in_one_way_only():
    message = error(allow_unsigned=True, trusted_keys="/keys")
    assert "PODHOOK_ALLOW_UNSIGNED is true and PODHOOK_TRUSTED_KEYS is set" in message
    assert "remove one of the two" in message
