"""`valueFrom.file`: what a Secret volume holds, and nothing else that the agent can read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.actions.secret_files import MAX_SECRET_BYTES, read_secret, with_secrets
from agent.contract.action_secrets import redactor_of, secrets_of_action
from agent.contract.actions import Action, ValueFrom
from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import CatalogueHook, Targets, Trigger


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A Secret volume as the kubelet makes it, beside a file that must not be had."""
    (tmp_path / "private.pem").write_text("the agent's own key")
    root = tmp_path / "secrets"
    version = root / "..2026_11_22_10_00_00.123"
    (version / "db").mkdir(parents=True)
    (version / "password").write_bytes(b"hunter2\n")
    (version / "db" / "token").write_bytes(b"t0ken")
    (root / "..data").symlink_to(version.name)
    (root / "password").symlink_to("..data/password")
    (root / "db").symlink_to("..data/db")
    return root


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"hunter2", b"hunter2"),
        (b"hunter2\n", b"hunter2"),
        (b"hunter2\r\n", b"hunter2"),
        (b"hunter2\n\n", b"hunter2\n"),
        (b" hunter2 ", b" hunter2 "),
        (b"", b""),
        (b"\xff\n", b"\xff"),
        (b"x" * MAX_SECRET_BYTES, b"x" * MAX_SECRET_BYTES),
    ],
)
def test_a_value_is_the_files_without_its_last_line_end(volume: Path, content: bytes, value: bytes) -> None:
    (volume / "plain").write_bytes(content)
    assert read_secret(volume, "plain") == value


def test_the_kubelets_links_are_followed_also_after_a_rotation(volume: Path) -> None:
    assert read_secret(volume, "password") == b"hunter2"
    assert read_secret(volume, "db/token") == b"t0ken"
    newer = volume / "..2026_11_23"
    newer.mkdir()
    (newer / "password").write_bytes(b"newer")
    (volume / "..data_tmp").symlink_to(newer.name)
    (volume / "..data_tmp").rename(volume / "..data")
    assert read_secret(volume, "password") == b"newer"


def refusal(volume: Path | None, name: str) -> str:
    with pytest.raises(Refusal) as caught:
        read_secret(volume, name)
    assert caught.value.code is ErrorCode.SECRET_UNAVAILABLE
    assert caught.value.message.endswith("nothing was run")
    return caught.value.message


def test_what_leads_out_of_the_directory_is_refused(volume: Path, tmp_path: Path) -> None:
    (volume / "absolute").symlink_to(tmp_path / "private.pem")
    (volume / "relative").symlink_to("../private.pem")
    (volume / "up").symlink_to("..")
    (volume / "self").symlink_to("/proc/self/environ")
    (tmp_path / "secrets-of-others").mkdir()
    (tmp_path / "secrets-of-others" / "it").write_text("others'")
    (volume / "beside").symlink_to("../secrets-of-others/it")
    for name in ("absolute", "relative", "up/private.pem", "self", "beside", "../private.pem"):
        assert f"leads out of {volume}" in refusal(volume, name)


def test_what_cannot_be_read_says_why(volume: Path) -> None:
    (volume / "large").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    os.mkfifo(volume / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(volume / "socket"))
    (volume / "loop").symlink_to("loop")
    assert "no PODHOOK_SECRETS_DIR" in refusal(None, "password")
    assert "No such file" in refusal(volume, "passwrd")
    assert "No such file" in refusal(volume / "nowhere", "password")
    assert f"65537 bytes; the limit is {MAX_SECRET_BYTES}" in refusal(volume, "large")
    assert "not a file" in refusal(volume, "db")
    assert "not a file" in refusal(volume, "pipe"), "and nobody waits for its writer"
    assert "No such device" in refusal(volume, "socket")
    assert "symbolic links" in refusal(volume, "loop")


@pytest.mark.parametrize(
    "name",
    ["", "..", "../a", "a/..", "a/../b", "/etc/passwd", "a//b", ".hidden", "..data/a", "a/b/c/d", "a b", "a\0", "a\n",
     "-a", "ü", "a" * 254, "./a", "a/"],
)  # fmt: skip
def test_a_name_is_simple(name: str) -> None:
    with pytest.raises(ValidationError, match="is not the name of a secret file"):
        ValueFrom.model_validate({"file": name})


@pytest.mark.parametrize("name", ["a", "db/password", "a.b-c_d", "_x", "a/b/c", "tls.crt", "a" * 253])
def test_a_name_of_a_key_will_do(name: str) -> None:
    assert ValueFrom.model_validate({"file": name}).file == name


def exec_with(*env: dict[str, object]) -> Action:
    return Action.model_validate({"exec": {"command": ["true"], "env": list(env)}})


def test_an_action_gets_its_values_and_they_are_told(volume: Path) -> None:
    action = exec_with({"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"file": "password"}})
    filled, values = with_secrets(action, volume)
    assert filled.exec_ is not None
    assert [(each.name, each.value, each.value_from) for each in filled.exec_.env or []] == [
        ("A", "1", None),
        ("B", "hunter2", None),
    ]
    assert values == [b"hunter2"]
    request = {"port": 80, "httpHeaders": [{"name": "X", "valueFrom": {"file": "db/token"}}]}
    for kind in ("httpGet", "httpPost"):
        filled, values = with_secrets(Action.model_validate({kind: request}), volume)
        sent = filled.http_get or filled.http_post
        assert sent is not None
        assert (sent.http_headers[0].value, values) == ("t0ken", [b"t0ken"])
    plain = exec_with({"name": "A", "value": "1"})
    assert with_secrets(plain, None) == (plain, [])


def test_what_fits_no_variable_and_no_header_is_refused(volume: Path) -> None:
    (volume / "nul").write_bytes(b"a\0b")
    (volume / "lines").write_bytes(b"a\nb")
    (volume / "big").write_bytes(b"x" * MAX_SECRET_BYTES)
    with pytest.raises(Refusal, match="NUL byte"):
        with_secrets(exec_with({"name": "A", "valueFrom": {"file": "nul"}}), volume)
    with pytest.raises(Refusal, match="larger than 262144 bytes together"):
        with_secrets(exec_with(*({"name": "A", "valueFrom": {"file": "big"}} for _ in range(5))), volume)
    request = {"port": 80, "httpHeaders": [{"name": "X", "valueFrom": {"file": "lines"}}]}
    action = Action.model_validate({"httpGet": request})
    with pytest.raises(Refusal, match="one line"):
        with_secrets(action, volume)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"exec": {"command": ["a", "--password=one-secret", "-x"]}}, {"one-secret"}),
        ({"exec": {"command": ["a", "--password", "one-secret"]}}, {"one-secret"}),
        ({"exec": {"command": ["a", "--password", "--verbose"]}}, set()),
        ({"exec": {"command": ["env", "PGPASSWORD=one-secret", "psql"]}}, {"one-secret"}),
        ({"exec": {"command": ["curl", "https://u:one-secret@host/"]}}, {"one-secret"}),
        ({"exec": {"command": ["sh", "-c", "mysql -e 'select password from t'"]}}, set()),
        ({"exec": {"command": ["a"], "env": [{"name": "DB_TOKEN", "value": "one-secret"}]}}, {"one-secret"}),
        ({"exec": {"command": ["a"], "env": [{"name": "LANG", "value": "C.UTF-8"}]}}, set()),
        (
            {"httpGet": {"port": 80, "httpHeaders": [{"name": "Authorization", "value": "Bearer one-secret"}]}},
            {"Bearer one-secret", "one-secret"},
        ),
        ({"httpGet": {"port": 80, "path": "/x?api_key=one%20secret&a=b"}}, {"one secret"}),
        ({"httpPost": {"port": 80, "form": [{"key": "token", "values": ["one-secret", "2"]}]}}, {"one-secret", "2"}),
        ({"httpPost": {"port": 80, "body": "to=amqp://u:one-secret@h"}}, {"one-secret"}),
        ({"tcpSocket": {"port": 80}}, set()),
    ],
)  # fmt: skip
def test_secrets_that_a_trigger_tells(action: dict[str, object], expected: set[str]) -> None:
    assert {each.decode() for each in secrets_of_action(Action.model_validate(action))} == expected


def test_parameters_of_the_catalogue_with_a_secrets_name(now) -> None:
    trigger = Trigger(
        run_id="01890a5d-ac96-774b-bcce-b302099a8057",
        attempt=1,
        coordinator="c",
        pod_uid="u",
        targets=Targets.of([("a", "b", "c")]),
        hook=CatalogueHook(name="freeze", params={"dbPassword": "one-secret", "table": "orders"}),
        issued_at=now,
        deadline=now,
    )
    assert redactor_of(trigger).text("one-secret of orders") == "[redacted] of orders"


@pytest.fixture
def now():
    from datetime import UTC, datetime

    return datetime(2026, 3, 1, tzinfo=UTC)
