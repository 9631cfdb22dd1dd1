"""Actions: exactly one, nothing unknown, no type guessed; every problem named at its field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.contract.actions import MAX_COMMAND_BYTES, Action

EXEC = {"exec": {"command": ["/bin/true"]}}


def http(**fields):
    return {"httpGet": {"port": 8080, **fields}}


def problems(document):
    with pytest.raises(ValidationError) as caught:
        Action.model_validate(document)
    return {
        ".".join(map(str, error["loc"])): error["msg"].removeprefix("Value error, ") for error in caught.value.errors()
    }


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (EXEC, "exec"),
        (http(), "httpGet"),
        ({"httpPost": {"port": 80}}, "httpPost"),
        ({"tcpSocket": {"port": 80}}, "tcpSocket"),
        ({"exec": None, **http()}, "httpGet"),
    ],
)
def test_an_action_knows_its_kind(document, kind):
    assert Action.model_validate(document).kind == kind


def test_no_action_is_refused_with_the_choice():
    assert problems({})[""] == "has no action; give one of exec, httpGet, httpPost, tcpSocket"
    assert "has no action" in problems({"containerName": "db"})[""]


def test_several_actions_are_refused_by_name():
    found = problems({**EXEC, "tcpSocket": {"port": 1}, "containerName": "db"})
    assert found == {
        "": "has 2 actions (exec, tcpSocket); a hook runs exactly one: split it into 2 hooks",
    }


def test_problems_in_and_between_fields_are_reported_together():
    found = problems({"exec": {"command": []}, "httpGet": {"port": "web", "path": 5}})
    assert set(found) == {"", "exec.command", "httpGet.path", "httpGet.port"}, f"reported only {found}"


@pytest.mark.parametrize("port", [1, 80, 65535, "80", "0080", "65535"])
def test_a_port_is_a_number_also_when_written_as_text(port):
    assert Action.model_validate(http(port=port)).http_get.port == int(port)


@pytest.mark.parametrize("port", ["web", "my-port", "a", "8a", "a" * 15])
def test_a_port_may_be_a_name_of_the_container(port):
    action = Action.model_validate({**http(port=port), "containerName": "db"})
    assert action.http_get.port == port


@pytest.mark.parametrize(
    "port",
    [
        *(
            0,
            -1,
            65536,
            70000,
            True,
            False,
            1.5,
            80.0,
            None,
            "",
            "0",
            "-1",
            "70000",
            "1.5",
            "a_b",
            "-a",
            "a-",
        ),
        *("a--b", "A", "a" * 16, "\uff18\uff10", [80], {"number": 80}),
        pytest.param(10**5000, id="10^5000"),
        pytest.param("9" * 5000, id="5000 digits"),
    ],
)
def test_what_is_no_port_is_refused(port):
    assert "is not a port" in problems({**http(port=port), "containerName": "db"})["httpGet.port"]


@pytest.mark.parametrize("kind", ["httpGet", "httpPost", "tcpSocket"])
def test_a_port_by_name_needs_a_container_and_says_so_at_the_port(kind):
    message = problems({kind: {"port": "web"}})[f"{kind}.port"]
    assert message == "'web' is a name, and names are looked up in one container's ports; set containerName"
    assert problems({kind: {"port": "web"}, "containerName": ""})


@pytest.mark.parametrize("host", ["", "db", "db.shop.svc", "10.0.0.1", "::1", "fd00::1", "db.", "a" * 253])
def test_hosts_are_names_and_addresses(host):
    assert Action.model_validate(http(host=host)).http_get.host == host


@pytest.mark.parametrize(
    "host",
    [
        "http://db",
        "db:80",
        "db/path",
        "user@db",
        "d b",
        "db\n",
        "[::1]",
        "fe80::1%eth0",
        "a:b:c",
        "db\x0b",
        "a" * 254,
    ],
)
def test_what_is_no_host_is_refused(host):
    assert "is not a host name or an IP address" in problems(http(host=host))["httpGet.host"]


@pytest.mark.parametrize(("scheme", "tls"), [("HTTP", False), ("http", False), ("", False), ("https", True)])
def test_schemes_may_be_in_any_case(scheme, tls):
    assert Action.model_validate(http(scheme=scheme)).http_get.tls is tls


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"scheme": "ftp"}, "httpGet.scheme"),
        ({"path": "/a\r\nX: y"}, "httpGet.path"),
        ({"httpHeaders": [{"name": "X Y", "value": "1"}]}, "httpGet.httpHeaders.0.name"),
        ({"httpHeaders": [{"name": "", "value": "1"}]}, "httpGet.httpHeaders.0.name"),
        ({"httpHeaders": [{"name": "X", "value": "1\r\nY: 2"}]}, "httpGet.httpHeaders.0.value"),
        ({"httpHeaders": [{"name": "Content-Length", "value": "1"}]}, "httpGet.httpHeaders.0.name"),
        ({"httpHeaders": [{"name": "TRANSFER-ENCODING", "value": "x"}]}, "httpGet.httpHeaders.0.name"),
        ({"body": "x"}, "httpGet.body"),
    ],
)
def test_what_would_break_a_request_is_refused_at_its_field(fields, place):
    assert place in problems(http(**fields))


def test_a_refused_header_value_is_not_repeated():
    assert "hunter2" not in str(problems(http(httpHeaders=[{"name": "Authorization", "value": "hunter2\n"}])))


def test_repeated_headers_and_form_keys_keep_their_order():
    headers = [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}]
    form = [{"key": "b", "values": ["2", "1"]}, {"key": "a", "values": []}]
    post = Action.model_validate({"httpPost": {"port": 1, "httpHeaders": headers, "form": form}}).http_post
    assert [header.value for header in post.http_headers] == ["1", "2"]
    assert [(field.key, field.values) for field in post.form] == [("b", ["2", "1"]), ("a", [])]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"command": []}, "exec.command"),
        ({"command": [""]}, "exec.command"),
        ({"command": "ls"}, "exec.command"),
        ({"command": ["a\0b"]}, "exec.command.0"),
        ({"command": ["sleep", 5]}, "exec.command.1"),
        ({"command": ["a" * MAX_COMMAND_BYTES]}, "exec.command"),
        ({}, "exec.command"),
        ({"command": ["a"], "user": 0}, "exec.user"),
        ({"command": ["a"], "user": "a\0"}, "exec.user"),
        ({"command": ["a"], "environment": "none"}, "exec.environment"),
        ({"command": ["a"], "env": [{"name": "A=B", "value": ""}]}, "exec.env.0.name"),
        ({"command": ["a"], "env": [{"name": "", "value": ""}]}, "exec.env.0.name"),
        ({"command": ["a"], "env": [{"name": "A", "value": "\0"}]}, "exec.env.0.value"),
        ({"command": ["a"], "env": [{"name": "A", "valueFrom": {}}]}, "exec.env.0.valueFrom.file"),
        ({"command": ["a"], "env": [{"name": "A", "value": "b", "valueFrom": {"file": "c"}}]}, "exec.env.0.valueFrom"),
        ({"command": ["a"], "env": [{"name": "A", "valueFrom": {"file": "../key"}}]}, "exec.env.0.valueFrom.file"),
        (
            {"command": ["a"], "env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]},
            "exec.env.0.valueFrom.secretKeyRef",
        ),
        ({"command": ["a"], "tty": True}, "exec.tty"),
    ],
)
def test_what_cannot_be_executed_is_refused_at_its_field(fields, place):
    assert place in problems({"exec": fields})


@pytest.mark.parametrize(
    "user",
    [
        *("root", "mysql", "_apt", "www-data", "a.b", "A", "machine$", "x" * 256, "systemd-network"),
        *("0", "00", "999", "1000:1000", "0:0", "007:010", "4294967294", "4294967294:4294967294"),
    ],
)
def test_a_user_is_a_name_or_numbers(user):
    assert Action.model_validate({"exec": {"command": ["id"], "user": user}}).exec_.user == user


@pytest.mark.parametrize(
    "user",
    [
        *("", " ", ":", "1:", ":1", "1:2:3", "root:", "root:0", "root:root", "mysql:27", "27:mysql", "::", "1::2"),
        *("-1", "+1", "1_0", "1.5", "0x0", "1 ", " 1", "1\n", "1: 1", "-", "-x", ".x", "$", "1a", "9mysql", "a$b"),
        *("a b", "a/b", "../root", "a,b", "a\n", "a\0", "größe", "a:b", "x" * 257, "\u0661", "1:\u0661", "\u00b2"),
    ],
)
def test_what_is_no_user_is_refused_with_what_to_write(user):
    found = problems({"exec": {"command": ["id"], "user": user}})
    assert found == {"exec.user": "is not a user; write a name of the container's /etc/passwd, uid or uid:gid"}


@pytest.mark.parametrize(
    "user",
    [
        *("4294967295", "4294967296", "0:4294967295", "4294967295:0", "18446744073709551615"),
        pytest.param("9" * 5000, id="5000 digits"),
        pytest.param("1:" + "9" * 5000, id="a group of 5000 digits"),
        pytest.param("0" * 20 + "4294967295", id="zeros before it"),
        pytest.param("1:" + "0" * 20 + "4294967295", id="zeros before a group"),
    ],
)
def test_an_id_that_the_kernel_takes_for_none_is_refused(user):
    """-1, which is 4294967295 in 32 bits, means "stay who you are"."""
    found = problems({"exec": {"command": ["id"], "user": user}})
    assert found == {"exec.user": "is not a user; ids go from 0 to 4294967294"}


@pytest.mark.parametrize("user", [0, 1000, True, 1.5, [], ["root"], {}, b"root"])
def test_a_user_is_written_as_text(user):
    assert set(problems({"exec": {"command": ["id"], "user": user}})) == {"exec.user"}


def test_without_a_user_it_is_the_containers():
    for written in ({}, {"user": None}):
        assert Action.model_validate({"exec": {"command": ["id"], **written}}).exec_.user is None


@given(st.text(max_size=12) | st.from_regex(r"\A[0-9]{1,12}(:[0-9]{1,12})?\Z"))
def test_every_user_that_is_accepted_is_one_to_the_launcher(user):
    from agent.pod.job import parse_user

    try:
        Action.model_validate({"exec": {"command": ["id"], "user": user}})
    except ValidationError:
        return
    parse_user(user.encode(), 0)


def test_the_longest_command_that_fits_is_accepted():
    command = ["é" * (MAX_COMMAND_BYTES // 2 - 1), ""]
    assert Action.model_validate({"exec": {"command": command}}).exec_.command == command


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["exec", "httpGet", "httpPost", "tcpSocket", "containerName", "extra"])
PARTS = st.dictionaries(st.sampled_from(["command", "port", "host", "httpHeaders", "form", "env", "x"]), JSON)


@given(st.dictionaries(FIELDS, PARTS | JSON) | JSON)
def test_anything_is_an_action_or_a_validation_error(document):
    try:
        action = Action.model_validate(document)
    except ValidationError:
        return
    assert Action.model_validate_json(action.model_dump_json(by_alias=True, exclude_none=True)) == action
