"""What a coordinator is called: its broker user, so that rules can name its topics; its session, so that nobody can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.bus.broker import parse_broker
from agent.coordinator import Coordinator

RANDOM = r"c-[0-9a-f]{16}"


@pytest.mark.parametrize(
    ("url", "known_as"),
    [
        ("mqtt://127.0.0.1", RANDOM),
        ("mqtt://coordinator_nightly:secret@127.0.0.1", "coordinator_nightly"),
        ("mqtts://coordinator_nightly@127.0.0.1", "coordinator_nightly"),
        ("mqtt://a%2Fb:secret@127.0.0.1", RANDOM),  # two levels of a topic
        ("mqtt://%2B:secret@127.0.0.1", RANDOM),  # a wildcard
    ],
)
def test_its_topics_are_its_users(url: str, known_as: str) -> None:
    assert re.fullmatch(known_as, Coordinator(url).id)


def test_the_user_of_a_file_counts(tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.write_text("coordinator_nightly\n")
    assert Coordinator(parse_broker("mqtt://127.0.0.1", user_file=user)).id == "coordinator_nightly"
    user.unlink()  # said when it connects
    assert re.fullmatch(RANDOM, Coordinator(parse_broker("mqtt://127.0.0.1", user_file=user)).id)


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1", "mqtt://coordinator_nightly:secret@127.0.0.1"])
def test_its_session_has_another_name_each_time_and_not_the_one_in_its_triggers(url: str) -> None:
    first, second = Coordinator(url), Coordinator(url)
    ids = [each._link._options.client_id for each in (first, second)]
    assert len(set(ids)) == 2
    assert [each.id for each, named in zip((first, second), ids, strict=True) if each.id in named] == []
