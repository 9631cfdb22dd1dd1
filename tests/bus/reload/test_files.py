"""Looking at what a broker reads: contents and not dates, through links, within bounds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.bus.reload import files
from agent.bus.reload.files import snapshot
from agent.contract.errors import InvalidSettings
from tests.mounted import Mounted


def names(*paths: Path) -> list[str]:
    return [Path(each).name for each in snapshot(paths)]


def test_a_mounted_secret_is_what_its_links_lead_to(tmp_path):
    mounted = Mounted(tmp_path / "auth", {"acl": b"a", "passwords": b"p"})
    before = snapshot([mounted.directory])
    assert names(mounted.directory) == ["acl", "passwords"]
    mounted.renew({"acl": b"a", "passwords": b"p"})
    assert snapshot([mounted.directory]) == before, "renewed with the same content"
    mounted.renew({"acl": b"b", "passwords": b"p"})
    after = snapshot([mounted.directory])
    assert {name for name in after if after[name] != before[name]} == {str(mounted.directory / "acl")}
    assert snapshot([mounted.directory / "acl"]) == {
        str(mounted.directory / "acl"): after[str(mounted.directory / "acl")]
    }


def test_a_file_with_new_content_of_the_same_size_and_date_is_another(tmp_path):
    path = tmp_path / "acl"
    path.write_bytes(b"a")
    stat, before = path.stat(), snapshot([path])
    path.write_bytes(b"b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert snapshot([path]) != before


def test_what_begins_with_a_dot_and_directories_do_not_count(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".passwords.1234").write_bytes(b"half")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "deep").touch()
    (tmp_path / "acl").touch()
    assert names(tmp_path) == ["acl"]
    assert names(tmp_path / ".lock") == [".lock"], "unless it is named"


def test_an_empty_directory_is_nothing(tmp_path):
    assert snapshot([tmp_path]) == {}


def test_a_path_that_is_missing_is_named_with_what_to_do(tmp_path):
    with pytest.raises(
        InvalidSettings, match=re.escape(f"{tmp_path}/acl: No such file or directory; mount it, or name")
    ):
        snapshot([tmp_path, tmp_path / "acl"])


def test_a_link_to_nowhere_is_a_missing_file(tmp_path):
    """As for a moment while names are added: what would be read without it is not whole."""
    (tmp_path / "acl").symlink_to("..data/acl")
    with pytest.raises(InvalidSettings, match="acl: No such file"):
        snapshot([tmp_path])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidSettings, match="pipe is no regular file"):
            snapshot([path])


def test_there_are_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT_BYTES", 100)
    monkeypatch.setattr(files, "LIMIT_FILES", 3)
    for name, size in (("a", 40), ("b", 60)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert names(tmp_path) == ["a", "b"]
    (tmp_path / "c").write_bytes(b"x")
    with pytest.raises(InvalidSettings, match=r"more than 100 bytes together .*/c is one of them.*; name the ones"):
        snapshot([tmp_path])
    for name in "bcd":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidSettings, match="more than 3 files"):
        snapshot([tmp_path])


def test_a_file_that_does_not_end_is_not_read_to_its_end():
    with pytest.raises(InvalidSettings, match="no regular file"):
        snapshot([Path("/dev/zero")])


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "acl").touch()

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refused)
    with pytest.raises(InvalidSettings, match="acl: Permission denied; let this user read it"):
        snapshot([tmp_path])
