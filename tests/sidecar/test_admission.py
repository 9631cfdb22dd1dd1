"""Yes or no to a trigger: each rule, its limit, and its sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.contract.actions import Action
from agent.contract.errors import TEMPORARY, ErrorCode, Refusal
from agent.contract.messages import Targets, Trigger
from agent.contract.states import AttemptState
from agent.journal import Entry, Memory
from agent.pod.identity import Identity
from agent.sidecar.admission import Situation, check_pod, check_times, check_trigger, reach

UID, OTHER_UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01", "1c9f6d2e-0000-4000-8000-000000000002"
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
IDENTITY = Identity("shop", "db-0", UID)
TARGETS = Targets.of([("shop", "db-0", UID)])
IDLE = Situation(IDENTITY, stopping=False, alive=0, max_concurrent=4)
_BORN = NOW - timedelta(days=1)
EMPTY = Memory((), tombstoned=False, born_at=_BORN, floor=_BORN, forgotten_deadline=datetime.fromtimestamp(0, UTC))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def trigger(attempt: int = 1, *, issued: float = 0, deadline: float = 300, pod_uid: str = UID) -> Trigger:
    return Trigger(
        run_id=RUN,
        attempt=attempt,
        coordinator="nightly",
        pod_uid=pod_uid,
        targets=TARGETS,
        action=Action.model_validate({"exec": {"command": ["true"]}}),
        issued_at=at(issued),
        deadline=at(deadline),
    )


def remembering(**states: AttemptState) -> Memory:
    """A memory of attempts of the run: `a2=STARTED` is attempt 2."""
    entries = [
        Entry(RUN, int(name[1:]), "ab" * 32, "nightly", "", TARGETS, state, NOW, at(300), NOW, None)
        for name, state in states.items()
    ]
    return replace(EMPTY, entries=tuple(entries))


def refusal(call, *arguments) -> tuple[ErrorCode, str]:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code, caught.value.message


def test_a_trigger_for_this_pod_by_somebody_who_may_is_let_in():
    check_pod(trigger(), IDENTITY)
    check_trigger(trigger(), EMPTY, IDLE, NOW)


# --- the sender


def test_what_was_meant_for_the_predecessor_is_refused():
    code, message = refusal(check_pod, trigger(pod_uid=OTHER_UID), IDENTITY)
    assert code == ErrorCode.WRONG_POD_UID
    assert message == (
        f"the trigger is meant for pod uid {OTHER_UID}, but shop/db-0 has uid {UID}: "
        "the pod was replaced; select the targets again"
    )


# --- the clocks


@pytest.mark.parametrize(
    ("issued", "deadline", "code"),
    [
        (0, 0, None),
        (0, 0.001, None),
        (0, -0.001, ErrorCode.EXPIRED),
        (30, 60, None),
        (30.001, 60, ErrorCode.CLOCK_SKEW),
        (-3600 * 20, 0, ErrorCode.DEADLINE_TOO_FAR),
        (-900, 0, None),
        (0, 900, None),
        (30, 930, None),
        (0, 900.001, ErrorCode.DEADLINE_TOO_FAR),
        (86_400, 86_400 * 2, ErrorCode.CLOCK_SKEW),
        (10, 5, None),
    ],
)
def test_a_trigger_is_judged_by_the_clock(issued, deadline, code):
    call = (trigger(issued=issued, deadline=deadline), EMPTY, NOW)
    if code is None:
        check_times(*call)
    else:
        assert refusal(check_times, *call)[0] == code


def test_a_clock_refusal_says_both_times_and_what_to_do():
    assert refusal(check_times, trigger(issued=90), EMPTY, NOW)[1] == (
        "the trigger was issued at 2026-03-01T02:31:30+00:00, 90 s ahead of this agent's clock "
        "(2026-03-01T02:30:00+00:00); the tolerance is 30 s: set both clocks"
    )
    assert refusal(check_times, trigger(issued=-60, deadline=-1), EMPTY, NOW)[1] == (
        "the deadline to start was 2026-03-01T02:29:59+00:00, it is 2026-03-01T02:30:00+00:00 here; "
        "trigger again, with a longer start window if delivery is slow"
    )
    assert refusal(check_times, trigger(deadline=1000), EMPTY, NOW)[1] == (
        "the deadline is 1000 s after issued_at; the limit is 900 s"
    )


@pytest.mark.parametrize(
    ("born", "forgotten", "why"),
    [
        (0, -1e6, None),
        (0.5, -1e6, "before this journal's memory begins (2026-03-01T02:30:00.500000+00:00)"),
        (-1e6, 299, None),
        (-1e6, 300, "its deadline 2026-03-01T02:35:00+00:00 is among those that were forgotten"),
        (-1e6, 400, "its deadline 2026-03-01T02:35:00+00:00 is among those that were forgotten"),
    ],
)
def test_what_may_have_run_before_the_memory_begins_is_refused(born, forgotten, why):
    memory = replace(EMPTY, born_at=at(born), forgotten_deadline=at(forgotten))
    if why is None:
        check_times(trigger(), memory, NOW)
        return
    code, message = refusal(check_times, trigger(), memory, NOW)
    assert code == ErrorCode.BEFORE_JOURNAL
    assert "may have run here already: " in message
    assert why in message


def test_what_may_have_been_refused_without_a_record_stays_refused_but_may_be_tried_again():
    check_times(trigger(), replace(EMPTY, floor=at(0)), NOW)
    code, message = refusal(check_times, trigger(), replace(EMPTY, floor=at(0.001)), NOW)
    assert code == ErrorCode.JOURNAL_UNAVAILABLE
    assert code in TEMPORARY
    assert "refused without a record" in message


# --- what is known of the run


@pytest.mark.parametrize(
    ("known", "attempt", "code"),
    [
        ({}, 1, None),
        ({}, 7, None),
        ({"a1": AttemptState.FAILED}, 2, None),
        ({"a1": AttemptState.FAILED, "a2": AttemptState.REJECTED}, 3, None),
        ({"a1": AttemptState.STARTED}, 2, ErrorCode.ATTEMPT_RUNNING),
        ({"a1": AttemptState.READY}, 2, ErrorCode.ATTEMPT_RUNNING),
        ({"a1": AttemptState.FAILED, "a2": AttemptState.READY}, 3, ErrorCode.ATTEMPT_RUNNING),
        ({"a2": AttemptState.FAILED}, 1, ErrorCode.STALE_ATTEMPT),
        ({"a2": AttemptState.REJECTED}, 1, ErrorCode.STALE_ATTEMPT),
        ({"a2": AttemptState.STARTED}, 1, ErrorCode.STALE_ATTEMPT),
    ],
)
def test_attempts_of_a_run_come_one_at_a_time_and_in_order(known, attempt, code):
    call = (trigger(attempt), remembering(**known), IDLE, NOW)
    if code is None:
        check_trigger(*call)
    else:
        assert refusal(check_trigger, *call)[0] == code


def test_the_order_of_attempts_is_explained():
    assert refusal(check_trigger, trigger(1), remembering(a2=AttemptState.FAILED), IDLE, NOW)[1] == (
        f"attempt 1 of run {RUN} comes after attempt 2; a lower attempt is never started after a higher one"
    )
    assert refusal(check_trigger, trigger(2), remembering(a1=AttemptState.STARTED), IDLE, NOW)[1] == (
        f"attempt 1 of run {RUN} is started here; one attempt of a run at a time: wait for its outcome or cancel it"
    )


def test_what_is_tombstoned_never_starts_whatever_else_is_true():
    memory = replace(remembering(a1=AttemptState.STARTED), tombstoned=True)
    code, message = refusal(check_trigger, trigger(2, deadline=-1), memory, replace(IDLE, stopping=True), NOW)
    assert code == ErrorCode.TOMBSTONED
    assert message == f"attempt {RUN}/2 was cancelled, or given up, before its trigger arrived"


# --- what the agent does


@pytest.mark.parametrize(
    ("situation", "code", "message"),
    [
        (
            replace(IDLE, stopping=True),
            ErrorCode.STOPPING,
            "agent shop/db-0 is stopping and takes no new work; try again in a moment",
        ),
        (
            replace(IDLE, alive=4),
            ErrorCode.BUSY,
            (
                "agent shop/db-0 runs 4 attempts, the limit is 4; try again later or raise PODHOOK_MAX_CONCURRENT "
                "(and limits.concurrency of its policy, if it has one)"
            ),
        ),
    ],
)
def test_an_agent_without_room_says_so_and_that_it_passes(situation, code, message):
    with pytest.raises(Refusal) as caught:
        check_trigger(trigger(), EMPTY, situation, NOW)
    assert (caught.value.code, caught.value.message, code in TEMPORARY) == (code, message, True)


def test_the_last_place_can_be_taken():
    check_trigger(trigger(), EMPTY, replace(IDLE, alive=3), NOW)


def test_a_reason_that_stays_is_given_before_one_that_passes():
    busy = replace(IDLE, alive=99, stopping=True)
    assert refusal(check_trigger, trigger(deadline=-1), EMPTY, busy, NOW)[0] == ErrorCode.EXPIRED
    assert refusal(check_trigger, trigger(1), remembering(a2=AttemptState.FAILED), busy, NOW)[0] == "stale_attempt"


# --- how far an empty memory reaches


@pytest.mark.parametrize(
    ("pod_uid", "born", "forgotten", "says"),
    [
        (UID, 0, 299, None),
        (OTHER_UID, 0, 299, f"the attempt was meant for pod uid {OTHER_UID}; this is {UID}"),
        (
            UID,
            1,
            299,
            "issued at 2026-03-01T02:30:00+00:00, before this journal's memory begins (2026-03-01T02:30:01+00:00)",
        ),
        (UID, 0, 300, "its deadline 2026-03-01T02:35:00+00:00 is among those that were forgotten"),
    ],
)
def test_an_empty_memory_proves_only_what_it_reaches(pod_uid, born, forgotten, says):
    memory = replace(EMPTY, born_at=at(born), floor=at(9), forgotten_deadline=at(forgotten))
    assert reach(pod_uid, at(0), at(300), memory, IDENTITY, NOW) == says


def test_a_clock_that_is_far_behind_proves_nothing():
    assert reach(UID, at(30), at(300), EMPTY, IDENTITY, NOW) is None
    said = reach(UID, at(31), at(300), EMPTY, IDENTITY, NOW)
    assert said is not None
    assert "the clocks differ too much" in said


@pytest.mark.parametrize("born", [-1, 0, 1])
@pytest.mark.parametrize("forgotten", [299, 300, 301])
def test_what_is_said_never_to_have_run_would_not_have_been_refused_for_it(born, forgotten):
    """`reach` and `check_times` draw the same line: else "never seen" could be said of what was refused unseen."""
    memory = replace(EMPTY, born_at=at(born), forgotten_deadline=at(forgotten))
    if reach(UID, at(0), at(300), memory, IDENTITY, NOW) is None:
        check_times(trigger(), memory, NOW)
    else:
        assert refusal(check_times, trigger(), memory, NOW)[0] == ErrorCode.BEFORE_JOURNAL
