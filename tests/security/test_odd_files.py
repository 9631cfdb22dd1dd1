"""An agent among files that nobody should have put there: it stays up, and says what is wrong."""

from __future__ import annotations

import os

import pytest

from tests.agents import online
from tests.security.conftest import Realm

pytestmark = [pytest.mark.broker, pytest.mark.processes]


async def test_many_wrong_files_with_long_names_are_no_end_of_the_agent(realm: Realm) -> None:
    """Each is a sentence in presence and will, and MQTT has room for 65,535 bytes of a will."""
    realm.trust("nightly")
    for number in range(250):
        (realm.trusted / f"{'x' * 200}{number:03}.json").write_text("{}", encoding="ascii")
    agent = await realm.agent()
    said = await realm.client.presence(agent, lambda p: online(p) and p and p.problems, "says what is wrong")
    assert said is not None
    assert any("trusted keys" in problem and "(whole in the agent's log)" in problem for problem in said.problems)
    await realm.works(agent)


async def test_a_file_name_that_is_no_text_is_no_end_of_the_agent(realm: Realm) -> None:
    realm.trust("nightly")
    with open(os.fsencode(realm.trusted) + b"/\xff.pub", "w", encoding="ascii") as file:  # noqa: PTH123 (bytes)
        file.write("{}")
    agent = await realm.agent()
    said = await realm.client.presence(agent, lambda p: online(p) and p and p.problems, "says what is wrong")
    assert said is not None
    assert any("\\udcff.pub is of another kind" in problem for problem in said.problems), said.problems
    await realm.works(agent)
