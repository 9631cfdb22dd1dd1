"""SECURITY.md says who plays each attacker: those tests are there, and meet the broker that is shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.collecting import collect

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
#: Brokers with the configuration of manifests/broker: users, TLS, rules. `way` and `shipped` are each of them.
SHIPPED = {"shipped_mosquitto", "shipped_nats", "shipped", "way", "certified", "broker_pod"}
#: Whom the page has to have.
ATTACKERS = (
    "an unsigned trigger",
    "a trigger signed with the wrong key",
    "an expired trigger",
    "a replay after the agent restarted",
    "a replay to another agent",
    "a replay to a pod of the same name with another uid",
    "a broker that rewrites",
    "an outcome that is forged",
    "a session that is taken over",
    "another tenant who reads, commands or speaks",
    "an outsider",
    "a trigger for a command outside the policy",
    "the metadata address by name, number, mapped, NAT64 and 6to4 form",
    "the metadata address by redirect",
    "a path that begins with `@`",
    "another key of the same namespace",
    "a hostile database, in every way that entering can go wrong",
    "a hostile database that wants keys, environment and memory",
    "a hostile database that is root",
    "a hook in the agent's own container",
    "a flood of 10,000 messages",
)


def rows() -> dict[str, list[str]]:
    """Attacker -> the tests that play it."""
    found = re.search(r"<!-- played: begin -->\n\| attacker .*\n\|[-|]*\n(.*?)<!-- played: end -->", PAGE, re.DOTALL)
    assert found is not None, "SECURITY.md has no table of who plays whom"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {attacker: re.findall(r"`(tests/[^`]+)`", tests) for attacker, tests in cells}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    files = {each.partition("::")[0] for tests in rows().values() for each in tests}
    return collect(sorted({*files, "tests/security"}), tmp_path_factory.mktemp("collected") / "tests.json")


def test_every_attacker_has_his_row() -> None:
    assert [each for each in ATTACKERS if each not in rows()] == []
    assert [each for each, tests in rows().items() if not tests] == [], "nobody plays them"


@pytest.mark.parametrize("attacker", rows())
def test_whoever_plays_him_is_there_and_meets_the_shipped_broker(attacker: str, collected: dict[str, set[str]]) -> None:
    for test in rows()[attacker]:
        assert test in collected, f"SECURITY.md: {attacker} is played by {test}, which is not there"
        assert collected[test] & SHIPPED, f"{test} plays {attacker} on a broker that is not shipped"


def test_nothing_in_this_directory_meets_another_broker(collected: dict[str, set[str]]) -> None:
    here = {test: fixtures for test, fixtures in collected.items() if test.startswith("tests/security/")}
    open_ones = {"mosquitto", "nats", "real_broker", "broker_url", "any_stage"}
    assert [test for test, fixtures in here.items() if fixtures & open_ones] == []
    assert sum(bool(fixtures & SHIPPED) for fixtures in here.values()) > 50
