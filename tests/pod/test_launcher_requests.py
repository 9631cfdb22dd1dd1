"""Whatever the agent asks, the launcher stays up: it holds the privileges, and everybody's commands hang on it.

What it does for requests that are right is tested in real pods.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.pod import launcher
from agent.pod.launcher import FIRST_MARK, MAX_PACKET_BYTES, _Launcher
from agent.pod.offspring import MARK_SUM
from tests.pod.test_job import GOOD, JSON
from tests.strays import descriptors

ATTEMPT = 7


class Asked:
    """A launcher without children of its own, and the agent's end of its socket."""

    def __init__(self) -> None:
        self.agent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.agent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET_BYTES)
        self.agent.setblocking(False)
        self.theirs = theirs
        self.launcher = object.__new__(_Launcher)
        self.launcher._agent = theirs
        self.launcher._generation = 3
        self.launcher._mark = FIRST_MARK
        self.launcher._settled = set()
        self.launcher._idle = None
        self.launcher._own = None
        self.launcher._room = bytearray(MAX_PACKET_BYTES)
        self.launcher._attempts = {ATTEMPT: SimpleNamespace(pid=0)}  # 0: nobody is ever signalled

    def __call__(self, packet: bytes | dict[str, Any]) -> list[dict[str, Any]]:
        """Ask, and return what is answered."""
        self.agent.send(packet if isinstance(packet, bytes) else json.dumps(packet).encode())
        assert self.launcher._hear_agent(), "it takes the agent for gone"
        answers = []
        while True:
            try:
                answers.append(json.loads(self.agent.recv(1 << 20)))
            except BlockingIOError:
                return answers

    def close(self) -> None:
        self.agent.close()
        self.theirs.close()


@pytest.fixture
def ask(monkeypatch) -> Iterator[Asked]:
    monkeypatch.setattr(launcher, "fork_child", lambda _: pytest.fail("a child was forked for it"))
    before, asked = descriptors(), Asked()
    yield asked
    asked.close()
    assert descriptors() == before


WRONG_SIGNALS = [None, "x", "", "9", [], [9], {}, True, 1e300, float("inf"), float("nan"), -1, 0, 1 << 31, 1 << 70]


@pytest.mark.parametrize("request_", [{}, *({"signal": number} for number in WRONG_SIGNALS)], ids=str)
def test_a_signal_that_is_none_ends_nobody_and_not_the_launcher(ask, monkeypatch, request_):
    sent: list[object] = []
    monkeypatch.setattr(launcher, "signal_group", lambda _, number: sent.append(number))
    assert ask({"op": "signal", "id": ATTEMPT, **request_}) == []
    assert all(type(number) is int for number in sent)
    assert ask({"op": "left", "id": 99, "n": 1}) == [{"op": "left", "id": 99, "n": 1, "pids": []}], "and it goes on"


@pytest.mark.parametrize(
    "packet",
    [
        *(b"x", b"{}", b"[]", b"null", b"\xff\xff", b'{"op": "start"}', b'{"op": "forget", "id": "7"}', b"[" * 100_000),
        *(b'{"op": "unknown", "id": 7}', b'{"op": "forget", "id": 8}', b'{"op": "signal", "id": 8}'),
        pytest.param(b"x" * (MAX_PACKET_BYTES + 1), id="too large"),
        pytest.param(b'{"op": "start", "id": ' + b"9" * 5000 + b"}", id="5000 digits"),
    ],
)
def test_a_packet_that_is_no_request_is_refused_without_an_answer(ask, packet):
    assert ask(packet) == []


@pytest.mark.parametrize("n", [None, "x", [1], 1 << 70, "\ud800", "x" * 100_000], ids=ascii)
def test_a_question_about_nobody_is_answered_by_its_number_whatever_that_is(ask, n):
    for operation in ("kill", "left"):
        assert ask({"op": operation, "id": 99, "n": n}) == [{"op": "left", "id": 99, "n": n, "pids": []}]


@pytest.mark.parametrize("generation", [None, 2, 4, "3", [3], 3.5])
def test_a_start_for_an_earlier_launcher_certainly_did_not_begin(ask, generation):
    (answer,) = ask({**GOOD, "id": 1, "generation": generation})
    assert (answer["op"], answer["id"], answer["begun"]) == ("failed", 1, False)
    assert answer["step"] == "launcher: it was started anew"


def test_a_job_goes_to_a_child_as_it_is_behind_a_mark_that_only_the_launcher_gives(ask, monkeypatch):
    """The agent has no word in the mark: it could give one attempt's processes to another."""
    marks = []
    for number in range(20, 24):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        monkeypatch.setattr(
            launcher, "fork_child", lambda _, channel=ours: SimpleNamespace(pid=0, channel=channel, give=channel.send)
        )
        job = {**GOOD, "id": number, "generation": 3, "argv": [], "mark": 1}
        assert ask(job) == []
        mark, _, data = theirs.recv(1 << 20).partition(b" ")
        marks.append(int(mark))
        assert json.loads(data) == job, "the child looks whether it is one"
        ours.close()
        theirs.close()
    assert len(set(marks)) == 4
    assert all(FIRST_MARK < mark < MARK_SUM for mark in marks)


def test_a_number_that_is_taken_is_not_started_twice(ask):
    assert ask({**GOOD, "id": ATTEMPT, "generation": 3}) == []


OPERATIONS = st.sampled_from(["start", "signal", "kill", "left", "forget", ""])


@given(
    request_=st.fixed_dictionaries(
        {"op": OPERATIONS | JSON, "id": st.integers(8, 12) | JSON},
        optional={"n": JSON, "signal": JSON, "generation": JSON, "argv": JSON, "pid": JSON},
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_survived(ask, request_):
    ask.launcher._attempts = {ATTEMPT: ask.launcher._attempts[ATTEMPT]}
    ask(request_)


def test_the_agents_end_is_noticed(ask):
    ask.agent.close()
    assert ask.launcher._hear_agent() is False
