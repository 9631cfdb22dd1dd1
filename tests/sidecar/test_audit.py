"""The audit: what each line says, that it is in order, and that nothing ends or waits because of it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.contract.actions import Action
from agent.contract.errors import ErrorCode
from agent.contract.messages import Cancel, CatalogueHook, ErrorDetail, Query, Targets, Trigger, TriggerAddress
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.pod.identity import Identity
from agent.sidecar.audit import Audit, open_sink
from agent.sidecar.audit_stream import AppendedFile, LineWriter, StandardOutput
from agent.sidecar.replies import Replies
from agent.sidecar.runner import Prepared
from agent.sidecar.trust import Voucher

NOW = datetime(2026, 3, 1, 2, 30, 0, 250000, tzinfo=UTC)
IDENTITY = Identity("shop", "db-0", "uid-0", "127.0.0.1")
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
HASH = "ab" * 32
WHO = Voucher("key-1", "backup")


def prepared(of, container: str = "") -> Prepared:
    """What the runner made of a trigger."""
    return Prepared(of, of.action, container)


HEAD = {"time": "2026-03-01T02:30:00.250000Z", "agent": "shop/db-0", "pod_uid": "uid-0"}
OF = {"coordinator": "c", "run_id": RUN, "attempt": 1, "trigger_hash": HASH}
PROMPT_SECONDS = 10


class Lines:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def close(self) -> None: ...


class Stage:
    """An audit whose clock stands, and its lines as they were parsed."""

    def __init__(self) -> None:
        self.sink = Lines()
        self.problems: list[str | None] = []
        self.seconds = 0.0
        self.audit = Audit(IDENTITY, self.sink, lambda: NOW, self.problems.append, lambda: self.seconds)

    def said(self) -> list[dict[str, Any]]:
        self.audit.close()
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in self.sink.lines)
        return [json.loads(line) for line in self.sink.lines]

    def line(self) -> dict[str, Any]:
        (line,) = self.said()
        for name, value in HEAD.items():
            assert line.pop(name) == value
        return line


@pytest.fixture
def stage() -> Stage:
    return Stage()


def trigger(action: dict[str, Any] | None = None, **changes: Any) -> Trigger:
    fields: dict[str, Any] = {
        "run_id": RUN,
        "attempt": 1,
        "coordinator": "c",
        "pod_uid": "uid-0",
        "targets": Targets.of([("shop", "db-0", "uid-0")]),
        "action": Action.model_validate(action or {"exec": {"command": ["/bin/dump", "SECRET-ARGUMENT"]}}),
        "name": "freeze",
        "issued_at": NOW,
        "deadline": NOW,
        **changes,
    }
    return Trigger(**fields)


# -- what is said


def test_an_accepted_command(stage: Stage) -> None:
    stage.audit.accepted(trigger(), HASH, prepared(trigger(), "mysql"), WHO)
    assert stage.line() == {
        "audit": "decision",
        "decision": "accepted",
        "key_id": "key-1",
        "key_name": "backup",
        "command": "trigger",
        **OF,
        "hook": "freeze",
        "action": "exec",
        "program": "/bin/dump",
        "container": "mysql",
        "rule": "no policy",
    }


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (
            {"httpPost": {"host": "h", "port": 80, "path": "/SECRET", "body": "SECRET",
                          "httpHeaders": [{"name": "X", "value": "SECRET"}]}},
            {"action": "httpPost", "method": "POST", "host": "h", "port": 80},
        ),
        ({"httpGet": {"port": "web"}, "containerName": "c"},
         {"action": "httpGet", "method": "GET", "host": "the pod's own", "port": "web", "container": "c"}),
        ({"tcpSocket": {"port": 3306}}, {"action": "tcpSocket", "host": "the pod's own", "port": 3306}),
        ({"exec": {"command": ["https://u:SECRET@h/x"], "user": "root", "env": [{"name": "A", "value": "SECRET"}]}},
         {"action": "exec", "program": "https://u:[redacted]@h/x", "user": "root"}),
        ({"exec": {"command": ["x" * 300]}}, {"action": "exec", "program": "x" * 200 + "..."}),
    ],
)  # fmt: skip
def test_what_it_was_about_and_nothing_else_of_it(stage: Stage, action: dict[str, Any], said: dict[str, Any]) -> None:
    stage.audit.accepted(trigger(action), HASH, prepared(trigger(action)))
    line = stage.line()
    assert "SECRET" not in json.dumps(line)
    for name in ("audit", "decision", "command", "hook", "rule", *OF):
        line.pop(name)
    assert line == {"key_id": "unsigned", **said}


def test_a_refused_trigger_says_the_code_the_sentence_and_the_rule(stage: Stage) -> None:
    stage.audit.refused(
        trigger(), HASH, ErrorDetail(code="policy_denied", message="no such rule", rule="rule 3"), WHO, "db"
    )
    line = stage.line()
    assert (line["decision"], line["code"], line["reason"], line["rule"]) == (
        "refused", "policy_denied", "no such rule", "rule 3")  # fmt: skip
    assert (line["program"], line["key_id"], line["container"]) == ("/bin/dump", "key-1", "db")


def test_a_refused_hook_of_the_catalogue_says_its_container_too(stage: Stage) -> None:
    hook = trigger().model_copy(update={"action": None, "name": "", "hook": CatalogueHook(name="freeze")})
    stage.audit.refused(hook, HASH, ErrorDetail(code="busy", message="no"), WHO, "mysql")
    line = stage.line()
    assert (line["hook"], line["action"], line["container"]) == ("freeze", "catalogue", "mysql")


def test_no_part_of_a_secret_stands_at_the_end_of_a_long_reason(stage: Stage) -> None:
    command = trigger({"exec": {"command": ["/bin/true"], "env": [{"name": "PASSWORD", "value": "SECRET-1234"}]}})
    why = ErrorDetail(code="policy_denied", message="r" * 490 + " SECRET-1234 and more")
    stage.audit.refused(command, HASH, why)
    assert "SECRET" not in json.dumps(stage.line())


def test_a_trigger_that_cannot_be_understood_is_known_by_its_address(stage: Stage) -> None:
    address = TriggerAddress(run_id=RUN, attempt=1, coordinator="c", pod_uid="u")
    stage.audit.refused(address, HASH, ErrorDetail(code="invalid_action", message="r" * 1000))
    line = stage.line()
    assert line["reason"] == "r" * 500 + "..."
    assert {name: line[name] for name in OF} == OF
    assert "program" not in line


def test_bytes_that_cannot_be_opened(stage: Stage) -> None:
    stage.audit.unreadable(b"SECRET", "MalformedMessage", "not JSON")
    stage.audit.unreadable(b"", "MalformedMessage", "too large", oversize_bytes=1_000_000)
    small, large = stage.said()
    assert (small["bytes"], small["payload_hash"]) == (6, hashlib.sha256(b"SECRET").hexdigest())
    assert (small["decision"], small["code"], small["command"]) == ("refused", "MalformedMessage", "unreadable")
    assert (large["bytes"], "payload_hash" in large) == (1_000_000, False)


def test_a_cancel_says_who_and_what_it_did(stage: Stage) -> None:
    cancel = Cancel(run_id=RUN, attempt=2, pod_uid="u", deadline=NOW)
    stage.audit.obeyed(cancel, "stopped", WHO, stopped_attempt=1)
    stage.audit.denied(cancel, ErrorCode.UNSIGNED)
    done, denied = stage.said()
    assert (done["command"], done["effect"], done["stopped_attempt"], done["key_id"]) == (
        "cancel",
        "stopped",
        1,
        "key-1",
    )
    assert (denied["decision"], denied["code"], denied["key_id"]) == ("refused", "unsigned", "unsigned")


def test_a_query_that_settles(stage: Stage) -> None:
    query = Query(
        query_id=RUN, coordinator="c", run_id=RUN, attempt=1, pod_uid="u", issued_at=NOW, deadline=NOW, settle=True
    )
    stage.audit.obeyed(query, "tombstoned")
    line = stage.line()
    assert (line["command"], line["effect"], line["run_id"], line["attempt"]) == ("query", "tombstoned", RUN, 1)


def test_an_outcome(stage: Stage) -> None:
    result = failure(Outcome.FAILED, ErrorCode.EXIT_CODE, "SECRET").model_copy(update={"duration_seconds": 1.23456})
    stage.audit.ended(Replies(IDENTITY).outcome(RUN, 1, HASH, result), "freeze", recovered=True)
    assert stage.line() == {
        "audit": "outcome", "run_id": RUN, "attempt": 1, "trigger_hash": HASH, "hook": "freeze", "outcome": "failed",
        "code": "exit_code", "duration_seconds": 1.2346, "recovered": True,
    }  # fmt: skip


def test_an_attempt_that_was_refused_after_it_began_says_why_and_by_which_rule(stage: Stage) -> None:
    result = failure(Outcome.REJECTED, ErrorCode.ADDRESS_REFUSED, "w" * 600, "http[0]")
    stage.audit.ended(Replies(IDENTITY).outcome(RUN, 1, HASH, result))
    line = stage.line()
    assert (line["outcome"], line["code"], line["rule"], line["reason"]) == (
        "rejected", "address_refused", "http[0]", "w" * 500 + "...")  # fmt: skip


# -- floods


def test_a_flood_of_refusals_is_a_number_and_hides_nothing_of_known_keys(stage: Stage) -> None:
    for _ in range(1000):
        stage.audit.unreadable(b"x", "MalformedMessage", "no")
    stage.audit.refused(trigger(), HASH, ErrorDetail(code="busy", message=""), WHO)
    for _ in range(200):
        stage.audit.accepted(trigger(), HASH, prepared(trigger()))
    stage.seconds += 1
    stage.audit.unreadable(b"x", "MalformedMessage", "no")
    said = stage.said()
    assert len([each for each in said if each.get("command") == "unreadable"]) == 61
    assert said[-1]["suppressed"] == 940
    assert len([each for each in said if each.get("code") == "busy"]) == 1
    assert len([each for each in said if each.get("decision") == "accepted"]) == 200, "what runs is always told"


def test_the_number_is_told_also_when_nothing_follows(stage: Stage) -> None:
    for _ in range(70):
        stage.audit.unreadable(b"x", "MalformedMessage", "no")
    stage.audit.settle()
    stage.audit.settle()
    assert [(each["audit"], each.get("count")) for each in stage.said()[60:]] == [("suppressed", 10)]


def test_questions_are_told_and_bounded_and_hide_no_refusal(stage: Stage) -> None:
    query = Query(query_id=RUN, coordinator="c", run_id=RUN)
    for _ in range(1000):
        stage.audit.answered(query, WHO)
    stage.audit.refused(trigger(), HASH, ErrorDetail(code="busy", message=""), WHO)
    stage.audit.obeyed(query, "tombstoned", WHO)
    stage.audit.settle()
    first, *rest = stage.said()
    assert (first["decision"], first["command"], first["effect"], first["key_id"], first["run_id"]) == (
        "accepted", "query", "answered", "key-1", RUN)  # fmt: skip
    assert len([each for each in rest if each.get("effect") == "answered"]) == 59
    assert [(each.get("code"), each.get("effect"), each.get("count"), each.get("of")) for each in rest[59:]] == [
        ("busy", None, None, None),
        (None, "tombstoned", None, None),
        (None, None, 940, "answered"),
    ]


def test_off_writes_nothing() -> None:
    audit = Audit(IDENTITY, open_sink("off"), lambda: NOW, lambda _: None)
    audit.accepted(trigger(), HASH, prepared(trigger()))
    audit.close()


# -- where it goes


class Failures:
    """What a writer says of its troubles."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self._changed = threading.Condition()

    def __call__(self, why: str | None) -> None:
        with self._changed:
            self.said.append(why)
            self._changed.notify_all()

    def wait(self, count: int) -> list[str | None]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.said) >= count, PROMPT_SECONDS), self.said
        return self.said


@pytest.fixture
def failures() -> Failures:
    return Failures()


@pytest.fixture
def writer(failures: Failures) -> Iterator[Callable[..., LineWriter]]:
    made: list[LineWriter] = []

    def make(sink: Any, **more: Any) -> LineWriter:
        made.append(LineWriter(sink, lambda count: b"dropped %d\n" % count, failures, **more))
        return made[-1]

    yield make
    for each in made:
        each.close(PROMPT_SECONDS)


def write(writer: LineWriter, *lines: str) -> None:
    for line in lines:
        writer.put(line.encode() + b"\n")
    assert writer.flush(PROMPT_SECONDS)


def test_a_file_is_for_its_owner_and_only_grows(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "audit"
    path.write_text("before\n")
    write(writer(AppendedFile(path)), "one", "two")
    assert path.read_text() == "before\none\ntwo\n"
    path.unlink()
    old = os.umask(0)
    try:
        write(writer(AppendedFile(path)), "three")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_rotated_or_removed_is_opened_anew(tmp_path: Path, writer: Any, failures: Failures) -> None:
    path = tmp_path / "audit"
    lines = writer(AppendedFile(path))
    write(lines, "one")
    path.rename(tmp_path / "audit.1")
    write(lines, "two")
    path.unlink()
    write(lines, "three")
    assert ((tmp_path / "audit.1").read_text(), path.read_text(), failures.said) == ("one\n", "three\n", [])


def test_a_full_disk_is_said_once_and_what_is_missing_is_told_when_it_works_again(
    tmp_path: Path, writer: Any, failures: Failures
) -> None:
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    lines = writer(AppendedFile(path))
    write(lines, "one", "two", "three")
    assert failures.wait(1) == ["No space left on device"]
    path.unlink()
    write(lines, "four", "five")
    assert path.read_text() == "dropped 3\nfour\nfive\n"
    assert failures.wait(2) == ["No space left on device", None]


def test_a_directory_that_is_not_there_ends_nothing(tmp_path: Path, writer: Any, failures: Failures) -> None:
    lines = writer(AppendedFile(tmp_path / "none" / "audit"))
    write(lines, "one")
    assert failures.wait(1) == ["No such file or directory"]
    (tmp_path / "none").mkdir()
    write(lines, "two")
    assert (tmp_path / "none" / "audit").read_text() == "dropped 1\ntwo\n"


def test_a_line_that_broke_off_does_not_spoil_the_next(
    tmp_path: Path, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.write, [4]

    def short(descriptor: int, data: bytes) -> int:
        if not room:
            return real(descriptor, data)
        if left := room.pop():
            return real(descriptor, data[:left])
        raise OSError(28, "No space left on device")

    lines = writer(AppendedFile(tmp_path / "audit"))
    room[:] = [0, 4]
    monkeypatch.setattr(os, "write", short)
    write(lines, "broken off", "whole")
    assert (tmp_path / "audit").read_text() == "brok\ndropped 1\nwhole\n"


def test_a_reader_that_never_reads_holds_nobody_up(writer: Any, failures: Failures) -> None:
    reading, writing = os.pipe()
    go = threading.Event()

    class Stuck:
        def write(self, line: bytes) -> None:
            assert go.wait(PROMPT_SECONDS)
            os.write(writing, line)

        def close(self) -> None: ...

    lines = writer(Stuck(), max_waiting=3)
    for number in range(10):
        lines.put(b"%d\n" % number)  # returns at once
    assert "3 lines wait" in str(failures.wait(1)[0])
    assert not lines.flush(0.01)
    go.set()
    assert lines.flush(PROMPT_SECONDS)
    lines.put(b"last\n")
    assert lines.flush(PROMPT_SECONDS)
    said = os.read(reading, 1000).split()
    os.close(reading)
    os.close(writing)
    assert said.pop() == b"last"
    told = iter(said)
    written, dropped = [], 0
    for each in told:
        if each == b"dropped":
            dropped += int(next(told))
        else:
            written.append(int(each))
    assert written == sorted(written), "in order"
    assert dropped > 0
    assert dropped + len(written) == 10, said
    assert failures.wait(2)[-1] is None


def test_what_is_missing_at_the_end_is_told_at_the_end(tmp_path: Path, writer: Any) -> None:
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    lines = writer(AppendedFile(path))
    write(lines, "one", "two")
    path.unlink()
    lines.close(PROMPT_SECONDS)
    assert path.read_text() == "dropped 2\n"


def test_lines_of_one_thread_come_in_its_order(tmp_path: Path, writer: Any) -> None:
    lines = writer(AppendedFile(tmp_path / "audit"))
    write(lines, *map(str, range(2000)))
    assert (tmp_path / "audit").read_text().split() == [str(number) for number in range(2000)]


@pytest.mark.parametrize(
    ("where", "kind"), [("stdout", StandardOutput), ("./x", AppendedFile), ("/var/x", AppendedFile)]
)
def test_the_setting_names_the_sink(where: str, kind: type) -> None:
    assert isinstance(open_sink(where), kind)


def test_without_a_thread_lines_are_dropped_and_counted_until_there_is_one(
    tmp_path: Path, writer: Any, failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks and the agent share a limit of processes."""
    lines = writer(AppendedFile(tmp_path / "audit"))
    with monkeypatch.context() as none_left:

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        none_left.setattr(threading.Thread, "start", refuse)
        lines.put(b"one\n")
    assert "can't start new thread" in str(failures.wait(1)[0])
    write(lines, "two")
    assert (tmp_path / "audit").read_text() == "dropped 1\ntwo\n"
