"""The file of a running agent: the last good policy holds, and what was never read is never open."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.contract.errors import ErrorCode, Refusal
from agent.sidecar.policy import PolicyFile

ONE = "containers: {mysql: {commands: [[one]]}}\n"
TWO = "containers: {mysql: {commands: [[two], [three]]}}\n"


def programs(file: PolicyFile) -> list[str]:
    policy = file.current()
    assert policy is not None
    return [argv[0] for argv in policy.commands["mysql"]]


def write(path: Path, text: str) -> None:
    """As Kubernetes does: another file takes its place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_no_path_is_no_policy():
    file = PolicyFile(None)
    file.look()
    assert (file.current(), file.problem) == (None, None)


@pytest.mark.parametrize("text", [None, "", "inlin: true", "inline: [", "\0"])
def test_what_was_never_read_refuses_everything(tmp_path, text):
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    file = PolicyFile(path)
    for _ in range(3):  # the second look says nothing new, and must not open it either
        file.look()
        with pytest.raises(Refusal) as caught:
            file.current()
        assert caught.value.code == ErrorCode.POLICY_UNAVAILABLE
        assert "every trigger is refused: no policy yet: PODHOOK_POLICY" in file.problem
    write(path, ONE)
    file.look()
    assert (programs(file), file.problem) == (["one"], None)


def test_before_the_first_look_it_is_shut(tmp_path):
    with pytest.raises(Refusal):
        PolicyFile(tmp_path / "policy.yaml").current()


def test_a_change_is_seen_and_a_broken_file_keeps_the_last_good_one(tmp_path):
    path = tmp_path / "policy.yaml"
    write(path, ONE)
    file = PolicyFile(path)
    file.look()
    write(path, TWO)
    file.look()
    assert programs(file) == ["two", "three"]
    write(path, "containers: {mysql: {comands: [[four]]}}\n")
    for _ in range(2):
        file.look()
        assert programs(file) == ["two", "three"]
        assert "the policy is as last read: PODHOOK_POLICY: containers.mysql.commands: is required" in file.problem
    path.unlink()
    file.look()
    assert programs(file) == ["two", "three"]
    assert "cannot read" in file.problem
    write(path, ONE)
    file.look()
    assert (programs(file), file.problem) == (["one"], None)


def test_a_file_that_is_too_large_keeps_the_last_good_one(tmp_path):
    path = tmp_path / "policy.yaml"
    write(path, ONE)
    file = PolicyFile(path)
    file.look()
    write(path, ONE + "#" * 300_000)
    for _ in range(2):
        file.look()
        assert programs(file) == ["one"]
        assert "the limit is 262144" in file.problem


def test_what_cannot_be_read_is_no_policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.mkdir()  # a right that is missing stops no root
    file = PolicyFile(path)
    file.look()
    with pytest.raises(Refusal):
        file.current()
