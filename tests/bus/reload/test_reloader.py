"""The loop: what goes wrong is said once and tried again, and nothing ends it but being told to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.bus.reload.process import NotToldError
from agent.bus.reload.reloader import LOOK_SECONDS, Reloader
from agent.contract.errors import InvalidSettings

PATHS = [Path("/mosquitto/auth")]
A, B, NO_ACL = {"acl": b"1", "passwords": b"1"}, {"acl": b"2", "passwords": b"1"}, {"passwords": b"1"}


class World:
    """What is to be seen at each look, and whether the broker can be told."""

    def __init__(self, *looks: Mapping[str, bytes] | str) -> None:
        self.looks = list(looks)
        self.obstacles: dict[int, str] = {}
        self.told: list[int] = []
        self.number = 0

    def look(self, paths: Sequence[Path]) -> Mapping[str, bytes]:
        assert paths == PATHS
        self.number += 1
        found = self.looks[self.number - 1]
        if isinstance(found, str):
            raise InvalidSettings(found)
        return found

    def tell(self) -> int:
        if self.number in self.obstacles:
            raise NotToldError(self.obstacles[self.number])
        self.told.append(self.number)
        return 7

    def run(self) -> list[dict[str, Any]]:
        """Until there is nothing more to see; what was logged."""

        def wait(seconds: float) -> bool:
            assert seconds == LOOK_SECONDS
            return self.number == len(self.looks)

        with capture_logs() as logged:
            Reloader(PATHS, self.tell, self.look).run(wait)
        assert [logged[0]["event"], logged[-1]["event"]] == ["reloader.started", "reloader.stopped"]
        return [dict(each) for each in logged[1:-1]]


def test_a_change_is_told_with_what_changed():
    world = World(A, A, B, B, B)
    said = world.run()
    assert world.told == [2, 4]
    assert [(each["event"], each["pid"], each["changed"]) for each in said] == [
        ("broker.told_to_reload", 7, ["acl", "passwords"]),
        ("broker.told_to_reload", 7, ["acl"]),
    ]


def test_no_word_of_what_is_in_the_files_is_logged():
    world = World({"acl": b"content"}, {"acl": b"content"})
    assert "content" not in str(world.run())


def test_a_broker_that_is_not_there_yet_is_told_when_it_is():
    world = World(*[A] * 6)
    world.obstacles = {2: "nobody", 3: "nobody", 4: "two of them"}
    said = world.run()
    assert world.told == [5]
    assert [each["problem"] for each in said[:-1]] == ["nobody", "two of them"], "each is said once"


def test_what_cannot_be_read_is_said_once_and_changes_nothing():
    world = World(A, A, "gone!", "gone!", "gone!", A, A, A)
    said = world.run()
    assert world.told == [2]
    assert [each["problem"] for each in said if each["event"] == "broker.not_told"] == ["gone!"]


def test_what_was_seen_before_a_look_that_failed_proves_nothing():
    world = World(A, A, B, "gone!", B, B)
    world.run()
    assert world.told == [2, 6]


def test_while_the_acl_is_gone_nobody_is_told_and_somebody_hears_why():
    """mosquitto 2.0.11 that reads its files now lets everybody do everything: tests/broker/test_reload.py shows it."""
    world = World(A, A, *[NO_ACL] * 20, B, B)
    said = world.run()
    assert world.told == [2, 24]
    (why,) = [each["problem"] for each in said if each["event"] == "broker.not_told"]
    assert why.startswith("acl is gone, and mosquitto without its acl lets everybody do everything: bring it back")


@pytest.mark.parametrize("missing", ["files", "broker"])
def test_a_problem_that_came_back_is_said_again(missing):
    world = World(A, A, "gone!", A, A, "gone!", A) if missing == "files" else World(A, A, B, B, B, B, B, A, A)
    world.obstacles = {} if missing == "files" else {4: "nobody", 9: "nobody"}
    said = [each["problem"] for each in world.run() if each["event"] == "broker.not_told"]
    assert len(said) == 2
    assert len(set(itertools.chain(said))) == 1
