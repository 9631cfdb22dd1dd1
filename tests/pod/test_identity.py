"""Who the agent is, and the two small files that say more: labels and the pod's description."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import InvalidSettings
from agent.contract.messages import Owner
from agent.pod.identity import (
    MAX_FILE_BYTES,
    Identity,
    PodDescription,
    WatchedFile,
    parse_description,
    parse_labels,
)


def test_an_agent_is_known_by_namespace_and_pod():
    identity = Identity("shop", "db-0", "6f1c")
    assert (str(identity), identity.source, identity.address) == ("shop/db-0", "/agents/shop/db-0", "127.0.0.1")


# --- labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", {}),
        ('app="db"\n', {"app": "db"}),
        ('app="db"\ntier="primary"', {"app": "db", "tier": "primary"}),
        ('\n  app = "db"  \n\n', {"app": "db"}),
        ('app.kubernetes.io/name="my-db"\n', {"app.kubernetes.io/name": "my-db"}),
        ('empty=""\n', {"empty": ""}),
        ('note="a=b"\n', {"note": "a=b"}),
        (r'note="say \"hi\"\n\\"', {"note": 'say "hi"\n\\'}),
        ('app="one"\napp="two"\n', {"app": "two"}),
    ],
)
def test_labels_are_read_as_the_downward_api_writes_them(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize(
    "line", ["app", "app=db", 'app="db', 'app=db"', 'app="a" b"', '="db"', r'app="\x41"', "app='db'"]
)
def test_a_line_that_is_no_label_is_named_by_its_number(line):
    with pytest.raises(InvalidSettings) as caught:
        parse_labels(f'first="1"\n{line}\n')
    assert str(caught.value) == 'labels file, line 2: write key="value"'


@given(st.text())
def test_whatever_a_labels_file_holds_it_is_labels_or_an_error_of_ours(text):
    try:
        labels = parse_labels(text)
    except InvalidSettings:
        return
    assert all(isinstance(value, str) for value in labels.values())


# --- the description


def test_a_description_tells_containers_ports_and_owners():
    description = parse_description(
        json.dumps(
            {
                "containers": [
                    {"name": "mysql", "ports": [{"name": "db", "containerPort": 3306}], "image": "mysql:8"},
                    {"name": "metrics"},
                ],
                "owners": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "mysql", "uid": "u-1"}],
                "nodeName": "ignored",
            }
        )
    )
    assert [container.name for container in description.containers] == ["mysql", "metrics"]
    port = description.containers[0].ports[0]
    assert (port.name, port.container_port, port.protocol) == ("db", 3306, "TCP")
    assert description.presence_owners() == [Owner(api_version="apps/v1", kind="StatefulSet", name="mysql", uid="u-1")]


def test_an_empty_description_is_a_description():
    assert parse_description("{}") == PodDescription(containers=[], owners=[])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "pod description: the file: "),
        ("{", "pod description: the file: "),
        ("[]", "pod description: the file: "),
        ("[" * 5000, "pod description: the file: "),
        ('{"containers": 3}', "pod description: containers: "),
        ('{"containers": [{}]}', "pod description: containers.0.name: Field required"),
        ('{"containers": [{"name": ""}]}', "pod description: containers.0.name: "),
        (
            '{"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 70000}]}]}',
            "pod description: containers.1.ports.0.containerPort: Input should be less than or equal to 65535",
        ),
        ('{"owners": [{"kind": "Job", "name": "x"}]}', "pod description: owners.0.apiVersion: Field required"),
    ],
)
def test_a_bad_description_names_the_place(text, says):
    with pytest.raises(InvalidSettings) as caught:
        parse_description(text)
    assert str(caught.value).startswith(says)


# --- files that change


def test_no_file_never_changes():
    assert WatchedFile(None).changed() is None


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path):
    path = tmp_path / "labels"
    path.write_text("größer")
    watched = WatchedFile(path)
    assert [watched.changed(), watched.changed()] == ["größer", None]
    path.write_text("another text")
    assert [watched.changed(), watched.changed()] == ["another text", None]


def test_a_text_of_the_same_size_at_another_time_is_a_change(tmp_path):
    path = tmp_path / "labels"
    path.write_text("one")
    watched = WatchedFile(path)
    watched.changed()
    path.write_text("two")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))
    assert watched.changed() == "two"


def test_a_swapped_symlink_is_a_change(tmp_path):
    """How the kubelet writes: a directory beside, then `..data` renamed over."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels").write_text(name)
        os.utime(tmp_path / name / "labels", ns=(1, 1))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "labels").symlink_to("..data/labels")
    watched = WatchedFile(tmp_path / "labels")
    assert watched.changed() == "v1"
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(tmp_path / "..data")
    assert [watched.changed(), watched.changed()] == ["v2", None]


def missing(path):
    path.unlink(missing_ok=True)


def not_utf8(path):
    path.write_bytes(b"app=\xff")


def too_large(path):
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))


def a_directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, "cannot read {path}: No such file or directory"),
        (not_utf8, "cannot read {path}: 'utf-8' codec can't decode byte 0xff"),
        (too_large, "{path} has 262145 bytes; the limit is 262144"),
        (a_directory, "cannot read {path}: Is a directory"),
    ],
)
@pytest.mark.parametrize("read_before", [True, False])
def test_a_file_that_cannot_be_read_is_said_once_and_read_again_when_it_can(tmp_path, spoil, says, read_before):
    path = tmp_path / "labels"
    path.write_text("before")
    watched = WatchedFile(path)
    if read_before:
        assert watched.changed() == "before"
    for _ in range(2):
        spoil(path)
        with pytest.raises(InvalidSettings) as caught:
            watched.changed()
        assert str(caught.value).startswith(says.format(path=path))
        assert [watched.changed(), watched.changed()] == [None, None], "the same error came again"
        if path.is_dir():
            path.rmdir()
        path.write_text("after")
        assert [watched.changed(), watched.changed()] == ["after", None]


def test_the_largest_file_is_read(tmp_path):
    (tmp_path / "labels").write_bytes(b"x" * MAX_FILE_BYTES)
    assert len(WatchedFile(tmp_path / "labels").changed()) == MAX_FILE_BYTES
