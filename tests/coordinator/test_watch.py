"""What replies, reports and silence mean, at made-up times: no loop, no broker."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.contract.errors import ErrorCode
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    Accepted,
    AttemptReport,
    CapturedStream,
    ErrorDetail,
    Heartbeat,
    OutcomeMessage,
    Output,
    Ready,
    Report,
    Started,
)
from agent.contract.states import SAID_BY_AGENT, AttemptState, Outcome
from agent.coordinator.targets import Target
from agent.coordinator.watch import (
    CANCEL_SECONDS,
    ENDING_SECONDS,
    FIRST_QUESTION_SECONDS,
    LAST_QUESTION_SECONDS,
    REPLACED_SECONDS,
    SILENT_SECONDS,
    Step,
    Watch,
    patience_seconds,
)

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
HASH, OTHER_HASH = "ab" * 32, "cd" * 32
TARGET = Target("shop", "db-0", "uid-1")
AT = datetime(2026, 3, 1, tzinfo=UTC)
DEADLINE, TIMEOUT = 130.0, 60.0
WHO = {"run_id": RUN, "attempt": 1, "namespace": "shop", "pod": "db-0", "pod_uid": "uid-1", "trigger_hash": HASH}


def watch(*, submitted=True, **more):
    made = Watch(TARGET, RUN, 1, HASH, DEADLINE, TIMEOUT, now=100.0, **more)
    made.copies = int(submitted)
    return made


def reply(kind, **more):
    return kind(**{**WHO, **more})


def outcome(kind=Outcome.SUCCEEDED, **more):
    return reply(OutcomeMessage, outcome=kind, **more)


def entry(state, said=None, *, attempt=1, trigger_hash=HASH):
    return AttemptReport(attempt=attempt, state=state, trigger_hash=trigger_hash, outcome=said)


def report(*entries, uid="uid-1", **more):
    return Report(query_id=RUN, run_id=RUN, namespace="shop", pod="db-0", pod_uid=uid, attempts=list(entries), **more)


# -- replies


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (reply(Accepted), "accepted"),
        (reply(Ready), "ready"),
        (reply(Started, at=AT), "started"),
        (reply(Heartbeat, running_seconds=1), "started"),  # the started before it was lost
        (reply(Output, stream="stdout", text="x"), "running"),
    ],
)
def test_chatter_is_a_sign_of_life_and_never_an_outcome(message, kind):
    w = watch()
    assert w.hear(message, 101) == kind
    assert w.seen
    assert w.result is None
    assert w.due(101)[0] is Step.WAIT


def test_started_is_told_once():
    w = watch()
    assert [w.hear(reply(Started, at=AT), 101), w.hear(reply(Heartbeat, running_seconds=9), 110)] == [
        "started",
        "running",
    ]


@pytest.mark.parametrize("kind", sorted(SAID_BY_AGENT))
def test_an_outcome_ends_it_with_all_that_was_said(kind):
    w = watch()
    said = outcome(
        kind,
        exit_code=3,
        stderr=CapturedStream(text="no", total_bytes=2),
        duration_seconds=1.5,
        notes=["n"],
        error=ErrorDetail(code="exit_code", message="m"),
    )
    assert w.hear(said, 101) == "outcome"
    assert w.due(101) == (Step.CONCLUDE, 0)
    result = w.conclude()
    assert (result.outcome, result.exit_code, result.stderr.text, result.duration_seconds) == (kind, 3, "no", 1.5)
    assert (result.notes, result.error.message) == (["n"], "m")


def test_the_first_outcome_stays():
    w = watch()
    w.hear(outcome(Outcome.FAILED), 101)
    assert w.hear(outcome(Outcome.SUCCEEDED), 102) == "dropped"
    assert w.conclude().outcome is Outcome.FAILED


@pytest.mark.parametrize(
    "message",
    [
        outcome(trigger_hash=OTHER_HASH),
        outcome(pod_uid="uid-2"),
        outcome(Outcome.FAILED, trigger_hash=OTHER_HASH),
        reply(Accepted, trigger_hash=OTHER_HASH),
        reply(Ready, pod_uid="uid-2"),
        report(entry(AttemptState.SUCCEEDED, outcome(trigger_hash=OTHER_HASH), trigger_hash=OTHER_HASH)),
        report(entry(AttemptState.SUCCEEDED, outcome()), uid="uid-2"),
        report(uid="uid-2"),
        report(uid="uid-2", tombstoned=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_other_bytes_or_another_pod_prove_nothing(message):
    w = watch()
    assert w.hear(message, 101) == "dropped"
    assert (w.result, w.seen, w.ready, w.started, w.resend) == (None, False, False, None, False)


def wrong_uid(**more):
    return outcome(
        Outcome.REJECTED,
        pod_uid="uid-2",
        error=ErrorDetail(code=ErrorCode.WRONG_POD_UID, message="replaced"),
        **more,
    )


def test_a_successor_speaks_for_itself_only():
    """The predecessor may hang on a node that nobody hears from, with the trigger in its session."""
    w = watch()
    assert w.hear(wrong_uid(), 101) == "outcome"
    assert w.conclude().outcome is Outcome.LOST
    assert "replaced by pod uid" in w.conclude().error.message


def test_a_successors_refusal_does_not_hide_that_the_predecessor_had_it():
    w = watch()
    w.hear(reply(Accepted), 101)
    assert w.hear(wrong_uid(), 102) == "dropped"
    assert w.result is None


def test_a_successor_can_refuse_but_not_succeed():
    w = watch()
    assert w.hear(wrong_uid(trigger_hash=OTHER_HASH), 101) == "dropped"
    assert w.hear(outcome(Outcome.REJECTED, pod_uid="uid-2"), 101) == "dropped"


# -- reports


def test_a_report_with_the_outcome_ends_it():
    w = watch()
    assert w.hear(report(entry(AttemptState.FAILED, outcome(Outcome.FAILED, exit_code=2))), 103) == "outcome"
    assert (w.conclude().outcome, w.conclude().exit_code) == (Outcome.FAILED, 2)


def test_a_report_of_another_attempt_says_nothing_of_this_one():
    w = watch()
    w.hear(report(entry(AttemptState.SUCCEEDED, outcome(), attempt=2)), 103)
    assert w.result is None


@pytest.mark.parametrize(("state", "running"), [(AttemptState.STARTED, True), (AttemptState.READY, False)])
def test_a_report_without_an_outcome_is_a_sign_of_life(state, running):
    w = watch()
    w.hear(report(entry(state)), 103)
    assert (w.result, w.seen, w.started is not None, w.ready) == (None, True, running, not running)


def test_never_seen_before_the_deadline_sends_the_same_bytes_again():
    w = watch()
    assert w.hear(report(), 110) == "running"
    assert w.resend
    assert w.result is None


def test_ready_with_a_go_that_was_lost_gets_it_again():
    w = watch(wait_for_go=True)
    w.hear(report(entry(AttemptState.READY)), 103)
    assert not w.resend_go  # nobody said go
    w.go_sent = True
    w.hear(report(entry(AttemptState.READY)), 106)
    assert w.resend_go


def test_never_seen_and_tombstoned_is_unreachable():
    w = watch()
    assert w.hear(report(tombstoned=True), 140) == "outcome"
    assert (w.conclude().outcome, w.conclude().error.code) == (Outcome.UNREACHABLE, "never_seen")


def test_seen_and_then_forgotten_is_lost():
    w = watch()
    w.hear(reply(Accepted), 101)
    w.hear(report(tombstoned=True), 140)
    assert w.conclude().outcome is Outcome.LOST


def test_seen_and_then_forgotten_is_lost_also_after_a_cancel():
    w = watch()
    w.hear(reply(Started, at=AT), 101)
    w.cancel(105)
    w.hear(report(tombstoned=True), 106)
    assert w.conclude().outcome is Outcome.LOST


def test_who_accepted_it_and_then_cannot_tell_makes_it_lost_with_the_reason():
    w = watch()
    w.hear(reply(Accepted), 101)
    assert w.hear(report(cannot_tell="the journal is younger"), 110) == "outcome"
    assert w.conclude().outcome is Outcome.LOST
    assert "the journal is younger" in w.conclude().error.message


def test_who_cannot_tell_is_listened_to_until_nothing_can_start_any_more():
    w = watch()
    assert w.hear(report(cannot_tell="the journal is younger"), 110) == "running"
    w.asked(DEADLINE + 29)
    assert w.due(DEADLINE + 29.9)[0] is not Step.CONCLUDE, "it could still start after that"
    assert w.due(DEADLINE + 30)[0] is Step.CONCLUDE
    assert w.conclude().outcome is Outcome.LOST
    assert "the journal is younger" in w.conclude().error.message


def test_a_successor_that_answers_for_one_who_gave_no_sign_makes_it_lost_at_once():
    w = watch()
    assert w.hear(report(uid="uid-2", cannot_tell="another pod"), 103) == "outcome"
    assert w.conclude().outcome is Outcome.LOST


def test_who_accepted_it_and_was_replaced_has_a_moment_to_say_how_it_ended():
    w = long_running()
    w.hear(report(uid="uid-2", cannot_tell="another pod"), 110)
    w.asked(110 + REPLACED_SECONDS - 1)
    assert w.due(110 + REPLACED_SECONDS - 0.1)[0] is not Step.CONCLUDE
    assert w.due(110 + REPLACED_SECONDS)[0] is Step.CONCLUDE
    assert "was replaced by another pod" in w.conclude().error.message


def test_a_successor_that_cannot_tell_says_nothing_of_its_predecessor():
    w = watch()
    w.hear(reply(Started, at=AT), 101)
    assert w.hear(report(uid="uid-2", cannot_tell="another pod"), 110) == "dropped"
    assert w.hear(outcome(), 112) == "outcome"
    assert w.conclude().outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("code", ["before_journal"])
@pytest.mark.parametrize("copies", [1, 2])
def test_who_may_have_forgotten_it_makes_it_lost(code, copies):
    w = watch()
    w.copies = copies
    refused = outcome(Outcome.REJECTED, error=ErrorDetail(code=code, message="it may have run"))
    assert w.hear(refused, 101) == "outcome"
    assert w.conclude().outcome is Outcome.LOST


@pytest.mark.parametrize("code", ["expired", "clock_skew", "journal_unavailable"])
@pytest.mark.parametrize(("copies", "kind"), [(1, Outcome.REJECTED), (2, Outcome.LOST)])
@pytest.mark.parametrize("asked", [False, True], ids=["said", "reported"])
def test_a_refusal_of_one_copy_says_nothing_of_another(code, copies, kind, asked):
    w = watch()
    w.copies = copies
    refused = outcome(Outcome.REJECTED, error=ErrorDetail(code=code, message="no"))
    w.hear(report(entry(AttemptState.REJECTED, refused)) if asked else refused, 101)
    assert w.conclude().outcome is kind


def test_what_was_seen_is_not_sent_again_by_who_forgot_it():
    w = watch()
    w.hear(reply(Started, at=AT), 101)
    w.hear(report(), 110)
    assert not w.resend


@pytest.mark.parametrize("seen", [False, True])
def test_without_a_go_it_did_not_run_whoever_cannot_tell(seen):
    w = watch(wait_for_go=True)
    if seen:
        w.hear(reply(Ready), 101)
    w.hear(report(cannot_tell="the journal is younger"), 110)
    assert w.conclude().outcome is Outcome.UNREACHABLE


# -- silence and time


def steps(w, until, every=0.25):
    """Let time pass; a question counts as asked. Returns (second, step) of everything but waiting."""
    now, taken = 100.0, []
    while now < until:
        step, _ = w.due(now)
        if step is not Step.WAIT:
            taken.append((now, step))
            if step is Step.CONCLUDE:
                break
            w.asked(now)
        now += every
    return taken


def test_a_silent_target_is_asked_ever_later_then_settled_then_concluded():
    taken = steps(watch(), 1000)
    asks = [second for second, step in taken if step is Step.ASK]
    settles = [second for second, step in taken if step is Step.SETTLE]
    assert asks[0] == 100 + FIRST_QUESTION_SECONDS
    pauses = [b - a for a, b in zip(asks, [*asks[1:], *settles[:1]], strict=True)]
    assert pauses == sorted(pauses)
    assert max(pauses) <= LAST_QUESTION_SECONDS
    assert max(asks) <= DEADLINE < min(settles)
    assert taken[-1] == (DEADLINE + CLOCK_TOLERANCE_SECONDS, Step.CONCLUDE)


@pytest.mark.parametrize(
    ("heard", "end"),
    [
        ((), DEADLINE + CLOCK_TOLERANCE_SECONDS),
        ((reply(Accepted),), DEADLINE + TIMEOUT + ENDING_SECONDS + CLOCK_TOLERANCE_SECONDS),
        # started at 101: its timeout counts from there, but it fell silent long before
        ((reply(Accepted), reply(Started, at=AT)), 101 + SILENT_SECONDS),
    ],
    ids=["no sign", "accepted", "started"],
)
def test_silence_is_lost_30_seconds_after_nothing_can_come_any_more(heard, end):
    w = watch()
    for message in heard:
        w.hear(message, 101)
    w.asked(end - 1)
    assert w.due(end - 0.001)[0] is not Step.CONCLUDE
    assert w.due(end) == (Step.CONCLUDE, 0)
    assert (w.conclude().outcome, w.conclude().error.code) == (Outcome.LOST, "silent")


def long_running():
    made = Watch(TARGET, RUN, 1, HASH, DEADLINE, timeout_seconds=3600, now=100.0)
    made.copies = 1
    made.hear(reply(Started, at=AT), 101)
    return made


def test_who_runs_it_and_falls_silent_is_lost_early():
    w = long_running()
    w.hear(reply(Heartbeat, running_seconds=99), 200)
    w.asked(288)
    assert w.due(200 + SILENT_SECONDS - 0.001)[0] is not Step.CONCLUDE
    assert w.due(200 + SILENT_SECONDS)[0] is Step.CONCLUDE
    assert w.conclude().outcome is Outcome.LOST
    assert "no heartbeat, and no answer" in w.conclude().error.message


def test_nobody_falls_silent_while_our_own_link_is_down():
    w = long_running()
    w.link(150, up=False)
    assert w.due(1000)[0] is not Step.CONCLUDE
    w.link(1000, up=True)
    w.asked(1000)
    assert w.due(1000 + SILENT_SECONDS - 1)[0] is not Step.CONCLUDE
    w.asked(1000 + SILENT_SECONDS - 1)
    assert w.due(1000 + SILENT_SECONDS)[0] is Step.CONCLUDE


def test_who_slept_past_the_end_asks_once_more_before_it_concludes():
    w = watch()
    w.asked(110)
    late = DEADLINE + 1000
    assert w.due(late)[0] is Step.SETTLE, "concluded without a question on this link"
    w.asked(late)
    assert w.due(late + 1)[0] is Step.WAIT
    assert w.hear(report(entry(AttemptState.SUCCEEDED, outcome())), late + 2) == "outcome"
    assert w.conclude().outcome is Outcome.SUCCEEDED


def test_without_a_link_the_last_question_has_a_minute():
    w = watch()
    w.link(DEADLINE, up=False)
    end = DEADLINE + CLOCK_TOLERANCE_SECONDS
    assert w.due(end)[0] is Step.WAIT
    assert w.due(end + 59)[0] is Step.WAIT
    assert w.due(end + 60)[0] is Step.CONCLUDE


def test_what_never_left_is_unreachable_at_the_deadline():
    w = watch(submitted=False)
    assert w.due(DEADLINE - 0.001)[0] is Step.WAIT
    assert w.due(DEADLINE)[0] is Step.CONCLUDE
    assert (w.conclude().outcome, w.conclude().error.code) == (Outcome.UNREACHABLE, "never_published")


def test_what_was_only_ready_is_unreachable():
    w = watch(wait_for_go=True)
    w.hear(reply(Ready), 101)
    assert w.conclude().outcome is Outcome.UNREACHABLE
    assert "no go was sent" in w.conclude().error.message


def test_after_a_go_silence_is_lost():
    w = watch(wait_for_go=True)
    w.hear(reply(Ready), 101)
    w.go_sent = True
    assert w.conclude().outcome is Outcome.LOST


MESSAGES = {
    "nothing": None,
    "accepted": reply(Accepted),
    "ready": reply(Ready),
    "started": reply(Started, at=AT),
    "heartbeat": reply(Heartbeat, running_seconds=1),
    "other hash": outcome(trigger_hash=OTHER_HASH),
    "other pod": outcome(pod_uid="uid-2"),
    "never seen": report(),
    "tombstoned": report(tombstoned=True),
    "cannot tell": report(cannot_tell="?"),
    "running": report(entry(AttemptState.STARTED)),
}


@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("second", MESSAGES)
@pytest.mark.parametrize("first", MESSAGES)
def test_without_an_outcome_nothing_ever_succeeds_and_it_always_ends(first, second, cancelled, submitted):
    w = watch(submitted=submitted)
    for now, name in ((101, first), (102, second)):
        if MESSAGES[name] is not None:
            w.hear(MESSAGES[name], now)
    if cancelled:
        w.cancel(103)
    assert steps(w, 1000)[-1][1] is Step.CONCLUDE
    assert w.conclude().outcome in (Outcome.UNREACHABLE, Outcome.LOST, Outcome.CANCELLED)
    if submitted and {first, second} & {"accepted", "ready", "started", "heartbeat", "running"}:
        assert w.conclude().outcome is not Outcome.UNREACHABLE or "tombstoned" in (first, second)


def test_a_sign_of_life_puts_the_question_off():
    w = watch()
    w.hear(reply(Heartbeat, running_seconds=10), 110)
    assert w.due(111)[0] is Step.WAIT
    assert w.due(110 + FIRST_QUESTION_SECONDS)[0] is Step.ASK


def test_after_a_reconnect_it_is_asked_at_once():
    w = watch()
    w.asked(102)
    assert w.due(103)[0] is Step.WAIT
    w.ask_now()
    assert w.due(103)[0] is Step.ASK


# -- cancel


def test_a_cancelled_attempt_is_settled_and_given_up_after_ten_seconds():
    w = watch()
    w.hear(reply(Started, at=AT), 101)
    w.cancel(105)
    assert w.due(105 + FIRST_QUESTION_SECONDS)[0] is Step.SETTLE
    assert w.due(105 + CANCEL_SECONDS)[0] is Step.CONCLUDE
    assert w.conclude().outcome is Outcome.LOST


def test_what_never_left_is_given_up_at_once_by_a_cancel():
    w = watch(submitted=False)
    w.cancel(105)
    assert w.due(105)[0] is Step.CONCLUDE
    assert w.conclude().outcome is Outcome.UNREACHABLE
    assert "cancelled before" in w.conclude().error.message


def test_a_tombstone_after_a_cancel_is_cancelled():
    w = watch()
    w.cancel(105)
    w.hear(report(tombstoned=True), 106)
    assert (w.conclude().outcome, w.conclude().error.code) == (Outcome.CANCELLED, "tombstoned")


def test_never_seen_is_not_sent_again_after_a_cancel():
    w = watch()
    w.cancel(105)
    w.hear(report(), 106)
    assert not w.resend


def test_the_outcome_wins_over_the_cancel():
    w = watch()
    w.cancel(105)
    w.hear(outcome(Outcome.SUCCEEDED), 106)
    assert w.conclude().outcome is Outcome.SUCCEEDED


def test_cancelling_again_can_only_shorten_the_wait():
    w = watch()
    w.cancel(105)
    w.cancel(110)
    assert w.due(105 + CANCEL_SECONDS)[0] is Step.CONCLUDE
    w = watch()
    w.cancel(105)
    w.cancel(106, 0)
    assert w.due(106)[0] is Step.CONCLUDE


def test_a_no_at_the_socket_is_believed_although_it_was_started():
    """A name that leads to a metadata address is known only then; whoever says so has the first copy in its journal."""
    w = watch()
    w.copies = 2
    assert w.hear(reply(Started, at=AT), 101) == "started"
    no = outcome(Outcome.REJECTED, error=ErrorDetail(code=ErrorCode.ADDRESS_REFUSED, message="no"))
    assert w.hear(no, 102) == "outcome"
    assert w.conclude().outcome is Outcome.REJECTED


@pytest.mark.parametrize(("targets", "seconds"), [(1, 2), (400, 2), (1000, 5), (2400, 12), (10_000, 12)])
def test_many_targets_are_asked_later_so_that_questions_do_not_lengthen_the_queue(targets, seconds):
    patience = patience_seconds(targets)
    assert patience == seconds
    assert watch(patience_seconds=patience).due(100 + seconds - 0.1)[0] is Step.WAIT
    assert watch(patience_seconds=patience).due(100 + seconds)[0] is Step.ASK


@pytest.mark.parametrize(("status", "believed"), [(307, Outcome.REJECTED), (None, Outcome.LOST)])
def test_a_no_to_a_redirect_is_believed_although_it_was_started(status, believed):
    w = watch()
    w.copies = 2
    w.hear(reply(Started, at=AT), 101)
    error = ErrorDetail(code=ErrorCode.POLICY_DENIED, message="no", rule="http[0]")
    w.hear(outcome(Outcome.REJECTED, error=error, http_status=status), 102)
    assert w.conclude().outcome is believed
