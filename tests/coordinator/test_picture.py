"""What many journals say of one run, put together: who is known, who is missing, and what it amounts to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.contract.messages import AttemptReport, Targets
from agent.contract.states import AttemptState
from agent.coordinator.picture import MAX_GUESSED, Picture, first_possible_issue, picture_of
from agent.coordinator.targets import Target
from agent.coordinator.verdict import Verdict

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"  # a UUIDv7 of 2023-06-30
AT = datetime(2026, 3, 1, tzinfo=UTC)
PODS = tuple(Target("shop", f"db-{at}", f"uid-{at}") for at in range(6))


def aims(*targets: Target, strategy="ExecuteOnAll") -> Targets:
    return Targets.of(((each.namespace, each.pod, each.pod_uid) for each in targets), strategy)


def attempt(state: AttemptState, of: Targets, number: int = 1) -> AttemptReport:
    return AttemptReport(
        attempt=number, state=state, trigger_hash="", name="freeze", targets=of, issued_at=AT, changed_at=AT
    )


def picture(states: dict[Target, AttemptState | None], of: Targets, **more) -> Picture:
    """`None`: it answered, and never saw the run."""
    attempts = {target: [attempt(state, of)] if state else [] for target, state in states.items()}
    return picture_of(RUN, attempts, **more)


OK, FAILED, STARTED = AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.STARTED


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([OK, OK, OK], Verdict.SUCCEEDED),
        ([OK, FAILED, OK], Verdict.FAILED),
        ([OK, STARTED, OK], Verdict.RUNNING),
        ([FAILED, AttemptState.READY, OK], Verdict.RUNNING),
        ([OK, OK, None], Verdict.INCOMPLETE),
        ([None, None, None], Verdict.NOT_FOUND),
        ([AttemptState.CANCELLED, None, OK], Verdict.CANCELLED),
    ],
)
def test_a_run_on_all_pods_amounts_to(states, verdict):
    of = aims(*PODS[:3])
    assert picture(dict(zip(PODS, states, strict=False)), of).verdict is verdict


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ([OK, None, None], Verdict.SUCCEEDED),
        ([AttemptState.REJECTED, OK, None], Verdict.SUCCEEDED),
        ([AttemptState.REJECTED, None, None], Verdict.FAILED),
        ([OK, OK, None], Verdict.FAILED),
        ([STARTED, None, None], Verdict.RUNNING),
    ],
)
def test_a_run_on_one_pod_amounts_to(states, verdict):
    of = aims(*PODS[:3], strategy="ExecuteOnOne")
    assert picture(dict(zip(PODS, states, strict=False)), of).verdict is verdict


def test_as_many_outcomes_as_targets_are_not_enough_if_they_are_others():
    found = picture(dict.fromkeys(PODS[1:4], OK), aims(*PODS[:3]))
    assert (len(found.known), found.missing, found.verdict) == (3, 0, Verdict.INCOMPLETE)


def test_the_last_attempt_counts_in_whatever_order_they_are_told():
    of = aims(PODS[0])
    found = picture_of(RUN, {PODS[0]: [attempt(OK, of, 2), attempt(FAILED, of, 1)]})
    assert (found.known[0].counts.attempt, found.verdict) == (2, Verdict.SUCCEEDED)


def test_who_is_missing_is_named_by_the_hash():
    of = aims(*PODS[:4])
    found = picture({PODS[0]: OK, PODS[1]: OK, PODS[2]: None, PODS[5]: None}, of, offline=[PODS[3], PODS[4]])
    assert (found.missing, found.name_missing()) == (2, (PODS[2], PODS[3]))


def test_who_is_missing_and_not_there_at_all_cannot_be_named():
    of = aims(*PODS[:4])
    assert picture({PODS[0]: OK, PODS[4]: None, PODS[5]: None}, of).name_missing() is None


def test_nobody_is_missing_of_a_whole_run():
    assert picture(dict.fromkeys(PODS, OK), aims(*PODS)).name_missing() == ()


def test_too_many_ways_to_guess_are_not_tried():
    many = [Target("shop", f"web-{at}", "u") for at in range(400)]
    of = aims(PODS[0], *many[:200])
    assert of.count * 2**200 > MAX_GUESSED
    assert picture({PODS[0]: OK, **dict.fromkeys(many, None)}, of).name_missing() is None


def test_a_later_look_replaces_what_was_known_and_forgets_nobody():
    of = aims(*PODS[:3])
    first = picture({PODS[0]: STARTED, PODS[1]: OK, PODS[5]: None}, of, silent=[PODS[2]])
    later = picture({PODS[0]: OK, PODS[2]: OK}, of)
    both = first.updated(later)
    assert [(each.target, each.counts.state) for each in both.known] == [(each, OK) for each in PODS[:3]]
    assert (both.silent, both.verdict) == ((), Verdict.SUCCEEDED)


def test_who_cannot_tell_is_no_stranger():
    found = picture({PODS[0]: OK, PODS[1]: None}, aims(*PODS[:2]), blind={PODS[1]: "its journal is younger"})
    assert (found.strangers, found.blind) == ((), ((PODS[1], "its journal is younger"),))


def test_nothing_was_issued_before_the_run_had_its_id():
    assert first_possible_issue(RUN) == datetime(2023, 6, 30, 3, 34, 18, 518000, tzinfo=UTC)
    assert first_possible_issue("6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01") is None, "no UUIDv7: it tells no time"


def test_the_json_tells_what_runs_and_who_was_not_heard():
    found = picture(
        {PODS[0]: STARTED},
        aims(*PODS[:3]),
        blind={PODS[1]: "the disk is full"},
        silent=[PODS[2]],
        offline=[PODS[3]],
    ).to_json()
    assert (found["verdict"], found["expected_targets"], found["hook"]) == ("running", 3, "freeze")
    assert found["started_at"] == "2026-03-01T00:00:00Z"
    (target,) = found["targets"]
    assert (target["pod"], target["outcome"], target["state"], target["attempt"]) == ("db-0", None, "started", 1)
    assert found["cannot_tell"] == [{"agent": "shop/db-1", "why": "the disk is full"}]
    assert (found["silent"], found["offline"]) == (["shop/db-2"], ["shop/db-3"])


def test_what_runs_stands_for_its_target_although_a_later_attempt_was_refused():
    of = aims(PODS[0])
    (known,) = picture_of(RUN, {PODS[0]: [attempt(STARTED, of, 1), attempt(AttemptState.REJECTED, of, 2)]}).known
    assert (known.counts.attempt, known.result) == (1, None)


def test_what_had_an_effect_stands_for_its_target_although_a_later_attempt_was_refused():
    of = aims(PODS[0])
    (known,) = picture_of(RUN, {PODS[0]: [attempt(FAILED, of, 1), attempt(AttemptState.REJECTED, of, 2)]}).known
    assert known.result is not None
    assert (known.result.attempt, str(known.result.result.outcome)) == (1, "failed")
    assert known.result.result.notes == ["attempt 2 was rejected"]


def test_targets_that_disagree_about_the_run_are_not_believed():
    states = {PODS[0]: [attempt(OK, aims(*PODS[:2]))], PODS[1]: [attempt(OK, aims(*PODS[:3]))]}
    found = picture_of(RUN, states)
    assert (found.aims, found.verdict) == (None, Verdict.INCOMPLETE)


def test_nobody_knows_it_is_said_only_if_everybody_was_heard():
    assert picture({PODS[0]: None}, aims(PODS[0])).verdict is Verdict.NOT_FOUND
    for unheard in ({"silent": [PODS[1]]}, {"offline": [PODS[1]]}, {"blind": {PODS[1]: "why"}}):
        assert picture({PODS[0]: None}, aims(PODS[0]), **unheard).verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize("made", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "e0000000-0000-7fff-bfff-000000000000"])
def test_an_id_of_no_sane_time_tells_none(made):
    assert first_possible_issue(made) is None


def test_clocks_that_differ_do_not_make_a_run_shorter_than_nothing():
    late = AttemptReport(
        attempt=1, state=OK, trigger_hash="", targets=aims(PODS[0]), issued_at=AT, changed_at=AT - timedelta(seconds=9)
    )
    assert picture_of(RUN, {PODS[0]: [late]}).duration_seconds == 0


# -- whose run it is


def signed_by(key: str | None, state: AttemptState, of: Targets, number: int = 1) -> AttemptReport:
    return attempt(state, of, number).model_copy(update={"key_id": key})


def test_of_several_keys_the_askers_run_is_shown():
    of = aims(*PODS[:2])
    told = {PODS[0]: [signed_by("a", FAILED, of), signed_by("b", OK, of, 2)], PODS[1]: [signed_by("b", OK, of)]}
    assert picture_of(RUN, told, kid="a").verdict is Verdict.INCOMPLETE
    assert [len(each.attempts) for each in picture_of(RUN, told, kid="a").known] == [1]
    stranger = picture_of(RUN, told, kid="c")
    assert (stranger.verdict, stranger.keys) == (Verdict.INCOMPLETE, {"a", "b"})


def test_what_agents_without_keys_ran_for_us_is_ours_too():
    """A fleet in which some agents still obey everybody: they note nobody's key."""
    of = aims(*PODS[:2])
    told = {PODS[0]: [signed_by("a", OK, of)], PODS[1]: [signed_by(None, OK, of)]}
    assert picture_of(RUN, told, kid="a").verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize(
    ("kid", "strangers", "verdict"),
    [
        ("a", [], Verdict.SUCCEEDED),
        ("b", PODS[1:3], Verdict.SUCCEEDED),
        ("b", [], Verdict.INCOMPLETE),
        ("b", PODS[3:5], Verdict.INCOMPLETE),
    ],
)
def test_one_pod_of_anothers_run_counts_if_it_is_proven_to_be_one_of_its_targets(kid, strangers, verdict):
    of = aims(*PODS[:3], strategy="ExecuteOnOne")
    told = {PODS[0]: [signed_by("a", OK, of)], **{each: [] for each in strangers}}
    assert picture_of(RUN, told, kid=kid).verdict is verdict
