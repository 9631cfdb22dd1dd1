"""What outcomes amount to, and which of them another attempt may follow."""

from __future__ import annotations

import itertools

import pytest

from agent.contract.errors import TEMPORARY, ErrorCode
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.verdict import (
    Ended,
    Verdict,
    may_retry,
    never_started,
    ran_nothing,
    that_counts,
    verdict_on_all,
    verdict_on_one,
)

OK = Outcome.SUCCEEDED
NOT_OK = sorted(set(Outcome) - {OK})


def test_all_succeeded_only_if_every_target_did():
    assert verdict_on_all([OK, OK, OK], 3) is Verdict.SUCCEEDED


@pytest.mark.parametrize("outcome", NOT_OK)
def test_one_target_that_did_not_succeed_fails_the_run(outcome):
    assert verdict_on_all([OK, outcome, OK], 3) is Verdict.FAILED
    assert verdict_on_all([OK, outcome, OK], 3, cancelled=True) is Verdict.CANCELLED


@pytest.mark.parametrize("heard", [0, 1, 2])
def test_fewer_outcomes_than_targets_never_succeed(heard):
    assert verdict_on_all([OK] * heard, 3) is Verdict.FAILED


def test_a_cancel_that_came_too_late_does_not_undo_success():
    assert verdict_on_all([OK, OK], 2, cancelled=True) is Verdict.SUCCEEDED
    assert verdict_on_one([OK], cancelled=True) is Verdict.SUCCEEDED


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([OK], Verdict.SUCCEEDED),
        ([Outcome.REJECTED, Outcome.UNREACHABLE, OK], Verdict.SUCCEEDED),
        ([], Verdict.FAILED),
        ([Outcome.FAILED], Verdict.FAILED),
        ([Outcome.REJECTED, Outcome.FAILED], Verdict.FAILED),
        ([OK, OK], Verdict.FAILED),  # it ran twice: never what was asked for
    ],
)
def test_one_succeeded_only_if_exactly_one_did(outcomes, verdict):
    assert verdict_on_one(outcomes) is verdict


def test_nothing_tried_after_a_cancel_is_cancelled():
    assert verdict_on_one([], cancelled=True) is Verdict.CANCELLED


#: Outcome -> (repeated by maxRetry, repeated with --retry-unknown), for what is not a rejection.
REPEATED = {
    Outcome.SUCCEEDED: (False, False),
    Outcome.FAILED: (True, True),
    Outcome.TIMED_OUT: (True, True),
    Outcome.CANCELLED: (False, False),
    Outcome.INTERRUPTED: (False, True),
    Outcome.UNREACHABLE: (True, True),
    Outcome.LOST: (False, True),
}


def test_the_table_of_retries_has_every_outcome():
    assert set(REPEATED) | {Outcome.REJECTED} == set(Outcome)


@pytest.mark.parametrize(("outcome", "unknown"), list(itertools.product(sorted(REPEATED), [False, True])))
def test_what_is_repeated(outcome, unknown):
    assert may_retry(outcome, None, retry_unknown=unknown) is REPEATED[outcome][unknown]


@pytest.mark.parametrize("code", sorted(ErrorCode))
def test_a_rejection_is_repeated_only_if_it_passes_by_itself(code):
    assert may_retry(Outcome.REJECTED, code) is (code in TEMPORARY)
    assert may_retry(Outcome.REJECTED, str(code), retry_unknown=True) is (code in TEMPORARY)


def test_busy_and_a_full_journal_pass_by_themselves_and_a_typo_does_not():
    assert may_retry(Outcome.REJECTED, "busy")
    assert may_retry(Outcome.REJECTED, "journal_unavailable")
    assert not may_retry(Outcome.REJECTED, "unknown_container")
    assert not may_retry(Outcome.REJECTED, "some_newer_code")


@pytest.mark.parametrize(
    ("outcome", "code", "certain"),
    [
        (Outcome.REJECTED, ErrorCode.BUSY, True),
        (Outcome.REJECTED, ErrorCode.ID_REUSED, False),  # the run is there already, by another coordinator
        (Outcome.REJECTED, ErrorCode.ATTEMPT_RUNNING, False),
        (Outcome.REJECTED, ErrorCode.STALE_ATTEMPT, False),
        (Outcome.REJECTED, ErrorCode.BEFORE_JOURNAL, False),
        (Outcome.REJECTED, ErrorCode.POLICY_DENIED, True),
        (Outcome.CANCELLED, ErrorCode.CANCELLED, False),  # also what was killed while it ran
        (Outcome.UNREACHABLE, ErrorCode.NEVER_SEEN, True),
        (Outcome.CANCELLED, ErrorCode.TOMBSTONED, True),
        (Outcome.SUCCEEDED, None, False),
        (Outcome.FAILED, ErrorCode.EXIT_CODE, False),
        (Outcome.TIMED_OUT, ErrorCode.TIMEOUT, False),
        (Outcome.INTERRUPTED, ErrorCode.AGENT_RESTARTED, False),
        (Outcome.LOST, ErrorCode.SILENT, False),
    ],
)
def test_another_pod_may_take_the_hook_only_if_certainly_nothing_ran(outcome, code, certain):
    assert never_started(Ended(outcome, code)) is certain


@pytest.mark.parametrize("code", [ErrorCode.POLICY_DENIED, ErrorCode.ADDRESS_REFUSED])
def test_what_was_answered_before_a_redirect_was_refused_may_have_taken_effect(code):
    refused = failure(Outcome.REJECTED, code, "no")
    assert never_started(Ended.of(refused))
    assert ran_nothing(Ended.of(refused))
    answered = Ended.of(refused.model_copy(update={"http_status": 307}))
    assert not never_started(answered)
    assert not ran_nothing(answered)
    assert not may_retry(answered.outcome, answered.code)


_FAILED, _LOST = Ended(Outcome.FAILED, "exit_code"), Ended(Outcome.LOST, "silent")
_BUSY, _NEVER = Ended(Outcome.REJECTED, "busy"), Ended(Outcome.UNREACHABLE, "never_published")
_ANSWERED = Ended(Outcome.REJECTED, "policy_denied", answered=True)


@pytest.mark.parametrize(
    ("attempts", "counts"),
    [
        ([_FAILED], 0),
        ([_FAILED, Ended(OK)], 1),
        ([_FAILED, _ANSWERED, _BUSY], 1),
        ([_FAILED, _NEVER], 0),
        ([_LOST, Ended(Outcome.REJECTED, "attempt_running")], 0),
        ([_LOST, _BUSY, Ended(Outcome.CANCELLED, "tombstoned")], 0),
        ([_FAILED, _LOST, _BUSY], 1),
        ([_BUSY, _NEVER], 1),
        ([_FAILED, Ended(Outcome.CANCELLED, "cancelled")], 1),
    ],
)
def test_a_retry_that_never_started_does_not_hide_what_the_attempt_before_it_did(attempts, counts):
    assert that_counts(attempts) == counts
