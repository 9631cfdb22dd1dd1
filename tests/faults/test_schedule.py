"""The plan follows from its seed, and even a short one has every kind of fault."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.schedule import _RULES, AGENTS, BROKER, COORDINATORS, Kind, make

PLAYS = (Kind.REPLACE_POD, Kind.LATE, Kind.JOURNAL_LOCKED)


def test_the_same_seed_makes_the_same_plan_and_another_one_another() -> None:
    assert make(7, 60) == make(7, 60)
    assert make(7, 60).faults != make(8, 60).faults
    assert make(7, 60).works != make(8, 60).works


@pytest.mark.parametrize("seconds", [42, 60, 600])
def test_every_kind_finds_its_place_in_every_plan(seconds: int) -> None:
    for seed in range(60):
        plan = make(seed, seconds)
        periods = max(1, seconds // 40)
        assert len(plan.left_out) <= periods // 10, f"seed {seed}: {plan.left_out}"
        wanted = Counter({kind: rule.times * periods for kind, rule in _RULES.items()})
        assert Counter(fault.kind for fault in plan.faults) + Counter(plan.left_out) == wanted, f"seed {seed}"


def test_every_kind_has_a_rule() -> None:
    assert set(_RULES) == set(Kind)


@pytest.mark.parametrize("seed", range(20))
def test_everything_happens_in_order_within_the_time_and_to_somebody_who_is_there(seed: int) -> None:
    plan = make(seed, 120)
    for each in (plan.faults, plan.works):
        assert [one.at for one in each] == sorted(one.at for one in each)
        assert each[0].at > 0
        assert each[-1].at < 120
    assert {fault.victim for fault in plan.faults} <= {*AGENTS, *COORDINATORS, BROKER}
    assert {work.by for work in plan.works} == {"", *COORDINATORS}


@pytest.mark.parametrize("seed", range(20))
def test_while_a_play_is_on_its_agent_and_the_broker_are_left_alone(seed: int) -> None:
    faults = make(seed, 200).faults
    for play in (fault for fault in faults if fault.kind in PLAYS):
        end = play.at + play.seconds + _RULES[play.kind].settle
        disturbed = [
            other
            for other in faults
            if other is not play
            and other.kind not in (Kind.REPLAY, Kind.CANCEL_FIRST)
            and (other.victim in (play.victim, BROKER))
            and other.at < end
            and other.at + other.seconds > play.at
        ]
        assert not disturbed, f"{play} is disturbed by {disturbed}"


def test_ten_minutes_have_more_than_a_thousand_triggers() -> None:
    for seed in range(10):
        works = make(seed, 600).works
        assert sum(1 if work.on_one else len(work.pods) for work in works) > 1300, f"seed {seed}"


def test_actions_are_of_every_length_and_end_in_every_way() -> None:
    works = make(1, 600).works
    assert any(work.sleep_seconds > 10 for work in works)
    assert any(work.exit_code for work in works)
    assert any(work.timeout_seconds < work.sleep_seconds for work in works)
    assert any(work.on_one for work in works)
    assert any(work.max_retry for work in works)
    assert any(work.cancel_after_seconds for work in works)
