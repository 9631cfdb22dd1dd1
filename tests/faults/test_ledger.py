"""The ledger, on made-up diaries: a good one is good, and each counter goes red for each thing that it stands for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.diary import Event
from tests.faults.ledger import SAVED_SECONDS, Judgement, judge

UID, OTHER = "uid-of-db-0", "uid-of-db-1"
RUN = "01890000-0000-7000-8000-000000000001"
TRIGGER = f"{RUN}/1"


def event(at: float, what: str, **more: Any) -> Event:
    return {"at": at, "what": what, **more}


def about(at: float, what: str, **more: Any) -> Event:
    return event(at, what, **{"trigger": TRIGGER, "uid": UID, **more})


def word(at: float, what: str, outcome: str = "succeeded", code: str = "", **more: Any) -> Event:
    return about(at, what, outcome=outcome, code=code, **more)


def row(outcome: str = "succeeded", code: str = "", **more: Any) -> Event:
    values = {"state": outcome or "started", "outcome": outcome, "code": code, "delivered": True, "gone": False}
    return about(20, "row", **{**values, **more})


def published(at: float = 1, *, by: str = "raw", deadline: float = 11, **more: Any) -> Event:
    return about(at, "published", by=by, deadline=deadline, **more)


SENT = [published(), about(1.1, "acknowledged")]
ARRIVED = [*SENT, about(1.2, "delivered")]
RAN = [about(2, "start"), about(3, "end")]
TOLD = [word(3.1, "heard"), row(), word(21, "answered")]
TOLD_LATER = [word(15, "heard"), *TOLD[1:]]
GOOD = [*SENT, *RAN, *TOLD]
KILLED = event(2.5, "killed", uid=UID)
BROKER_KILLED = event(2.5, "broker_killed")
REFUSED = [word(2, "heard", "rejected", "busy"), row("rejected", "busy"), word(21, "answered", "rejected", "busy")]


def ended(outcome: str, code: str = "") -> list[Event]:
    return [word(3.1, "heard", outcome, code), row(outcome, code), word(21, "answered", outcome, code)]


def of_coordinator(outcome: str, code: str = "", at: float = 4) -> list[Event]:
    return [published(by="coordinator-0"), word(at, "concluded", outcome, code, by="coordinator-0")]


def run(at: float = 0.5, **more: Any) -> Event:
    return event(at, "run", **{"run": RUN, "by": "coordinator-0", "on_one": False, **more})


def verdict(text: str, at: float = 4) -> Event:
    return event(at, "verdict", run=RUN, verdict=text)


def counters(judgement: Judgement) -> dict[str, int]:
    return {each.counter: judgement.count(each.counter) for each in judgement.violations}


def test_a_good_run_is_good_and_its_line_says_so() -> None:
    judgement = judge(GOOD)
    assert judgement.good, judgement.violations
    assert judgement.summary(7) == "triggers=1 executed=1 twice=0 lost=0 unknown=0 false_success=0 seed=7"


def test_the_order_of_the_lines_does_not_matter() -> None:
    assert judge(GOOD[::-1]) == judge(GOOD)


@pytest.mark.parametrize(
    ("diary", "says"),
    [
        ([*GOOD, about(5, "start")], "ran 2 times"),
        ([*GOOD, about(2, "start", uid=OTHER), {**row(), "uid": OTHER}], "never meant for this pod"),
        (
            [
                *GOOD,
                run(on_one=True),
                verdict("failed"),
                *({**each, "uid": OTHER} for each in GOOD),
            ],
            "was meant for one pod, and ran on 2",
        ),
    ],
    ids=["two starts", "another pod", "one on two"],
)
def test_twice(diary: list[Event], says: str) -> None:
    judgement = judge(diary)
    assert judgement.count("twice") == 1, judgement.violations
    assert says in "\n".join(map(str, judgement.violations))


@pytest.mark.parametrize(
    ("diary", "says"),
    [
        ([*SENT, about(1.2, "delivered")], "the broker acknowledged it, and no journal knows it"),
        ([*SENT, event(9, "online", uid=UID)], "the broker acknowledged it, and no journal knows it"),
        ([*SENT, about(1.2, "delivered"), event(30, "replaced", uid=UID)], "no journal knows it"),
        ([*SENT, about(1.2, "delivered"), event(30, "full", uid=UID)], "no journal knows it"),
        ([*SENT, *RAN, word(3.1, "heard")], "ran, and no journal knows it"),
        ([*SENT, *RAN, word(3.1, "heard"), row()], "no outcome comes when a coordinator asks"),
        ([*SENT, KILLED, row(""), word(21, "answered", "")], "no outcome comes when a coordinator asks"),
        ([*SENT, *RAN, row(delivered=False), word(21, "answered")], "never handed to the broker"),
        ([*SENT, *RAN, row(), word(21, "answered")], "never reached whoever triggered it"),
        ([*SENT, about(2, "start"), *ended("interrupted", "agent_restarted")], "nobody killed its agent"),
        ([event(0.5, "killed", uid=UID), *SENT, *ended("interrupted")], "nobody killed its agent"),
        ([event(4, "killed", uid=UID), *SENT, *ended("interrupted")], "nobody killed its agent"),
        (
            [published(-5), event(-4, "killed", uid=UID), *SENT, *RAN, *ended("interrupted")],
            "nobody killed its agent",
        ),
        (of_coordinator("lost", "silent"), "nothing was done to its agent"),
        ([run(), *of_coordinator("lost"), KILLED], "never came back"),
        ([*GOOD, event(3, "died", uid=UID, pod="db-0", code=1)], "ended by itself"),
    ],
)
def test_lost(diary: list[Event], says: str) -> None:
    judgement = judge(diary)
    assert set(counters(judgement)) == {"lost"}, judgement.violations
    assert says in "\n".join(map(str, judgement.violations))


@pytest.mark.parametrize(
    ("diary", "says"),
    [
        ([*SENT, *TOLD], "did not run to its end, and"),
        ([*SENT, RAN[0], *TOLD], "did not run to its end, and"),
        ([*SENT, *RAN, *REFUSED], "ran, and raw has it as rejected (busy)"),
        ([*SENT, *RAN, *ended("cancelled", "tombstoned")], "ran, and raw has it as cancelled"),
        ([*of_coordinator("unreachable"), *RAN, *ended("failed")], "ran, and coordinator-0 has it as unreachable"),
        ([*of_coordinator("succeeded"), *RAN, *ended("failed")], "ended in two ways"),
        ([*SENT, *RAN, *ended("failed"), word(5, "heard", "timed_out")], "ended in two ways"),
        ([*SENT, *RAN, KILLED, word(3.1, "heard", "failed"), *ended("interrupted")], "ended in two ways"),
        (
            [
                *(*SENT, word(1.5, "heard", "rejected", "journal_unavailable"), about(1.8, "replayed"), *RAN, *TOLD),
                *(event(at, what, uid=UID) for at, what in ((0.5, "full"), (1.6, "freed"), (40, "killed"))),
            ],
            "ran, and raw has it as rejected (journal_unavailable)",
        ),
        ([about(0.5, "cancel_delivered"), about(1.2, "delivered"), *GOOD], "its cancel had reached the agent before"),
        ([*SENT, KILLED, *ended("interrupted"), about(2, "start"), about(6, "end")], "went on after it was said to"),
        ([*SENT, about(13, "start"), about(14, "end"), *TOLD_LATER], "started 2.0 s after its deadline"),
        (
            [*SENT, event(0.1, "clock", uid=UID, offset=20), *RAN, *TOLD],
            "started 11.0 s after its deadline by its agent's clock",
        ),
        (
            [run(), event(0.6, "selected", run=RUN, uids=[UID, OTHER]), *GOOD, verdict("succeeded")],
            "of 2 targets only 1 ran to their end",
        ),
    ],
)
def test_false_success(diary: list[Event], says: str) -> None:
    judgement = judge(diary)
    assert set(counters(judgement)) == {"false_success"}, judgement.violations
    assert says in "\n".join(map(str, judgement.violations))


@pytest.mark.parametrize(
    "diary",
    [
        [*SENT, KILLED, about(2, "start"), *ended("interrupted", "agent_restarted")],
        [*of_coordinator("lost", at=30), KILLED],
        [*of_coordinator("lost", at=30), event(2, "replaced", uid=UID)],
        [*of_coordinator("lost", at=30), event(2, "full", uid=UID), event(5, "freed", uid=UID)],
        [*SENT, KILLED, about(2, "start"), row("", gone=True), event(3, "replaced", uid=UID)],
    ],
    ids=["killed", "its agent was killed", "its pod was replaced", "its disk was full", "its journal is gone"],
)
def test_what_nobody_can_know_is_unknown_and_no_fault(diary: list[Event]) -> None:
    judgement = judge(diary)
    assert judgement.good, judgement.violations
    assert judgement.unknown == 1


@pytest.mark.parametrize(
    "diary",
    [
        [*ARRIVED, BROKER_KILLED],
        [*SENT, event(-1, "online", uid=UID), event(0, "broker_killed"), event(4, "online", uid=UID)],
        [*ARRIVED, event(9, "replaced", uid=UID)],
        [*ARRIVED, event(0, "full", uid=UID), event(3, "freed", uid=UID)],
        [*ARRIVED, word(2, "heard", "rejected", "journal_unavailable")],
        [published(), about(1.2, "delivered")],
        SENT,
        [*SENT, *RAN, row(), word(21, "answered"), BROKER_KILLED],
        [*of_coordinator("lost"), KILLED, *RAN, *ended("succeeded")],
        [*GOOD, about(3.5, "replayed"), word(4, "heard", "rejected", "before_journal")],
        [
            *(published(), about(1.2, "delivered"), word(1.3, "heard", "rejected", "journal_unavailable")),
            *(event(at, what, uid=UID) for at, what in ((0.5, "full"), (1.5, "killed"), (1.6, "freed"))),
            *(about(1.8, "replayed"), *RAN, *TOLD),
        ],
        [
            *(about(0.5, "cancel_delivered"), KILLED, *SENT, about(1.2, "delivered")),
            *(about(2.8, "start"), about(3, "end"), *TOLD),
        ],
        [run(), event(2, "coordinator_killed", victim="coordinator-0")],
        [
            *SENT,
            *RAN,
            word(3.1, "heard", "failed"),
            *(event(at, what, uid=UID) for at, what in ((1.5, "full"), (5, "killed"), (6, "freed"))),
            *(each | {"at": each["at"] + 5} for each in ended("interrupted")),
        ],
        [*SENT, *ended("cancelled", "tombstoned")],
        [*SENT, *RAN, *ended("cancelled", "cancelled")],
        [*of_coordinator("unreachable"), *ended("cancelled", "tombstoned")],
    ],
    ids=[
        "the broker forgot it",
        "the broker forgot its agent",
        "its pod is gone",
        "refused without a record",
        "refused, and heard",
        "never acknowledged",
        "its agent never came back",
        "the broker forgot its outcome",
        "lost turns into anything",
        "a refusal without memory of a second copy",
        "a refusal without memory that was forgotten",
        "a cancel that was forgotten",
        "its coordinator was killed",
        "it could not write down its end and was killed",
        "cancelled before it began",
        "cancelled while it ran",
        "given up, and cancelled when it came",
    ],
)
def test_what_is_allowed(diary: list[Event]) -> None:
    assert judge(diary).good, judge(diary).violations


def test_a_broker_that_had_time_to_save_is_no_excuse() -> None:
    assert not judge([*ARRIVED, event(1.1 + SAVED_SECONDS + 1, "broker_killed")]).good
    online = [event(at, "online", uid=UID) for at in (-SAVED_SECONDS - 1, 0.8)]
    assert not judge([*ARRIVED, *online, event(0, "broker_killed")]).good
    online = [event(at, "online", uid=UID) for at in (-1, 0.8)]
    assert not judge([*ARRIVED, *online, event(0, "broker_killed")]).good, "its agent had come back"


@pytest.mark.parametrize("frozen_at", [1.5, 0.5])
def test_who_was_frozen_after_its_look_at_the_clock_is_not_late(frozen_at: float) -> None:
    frozen = [event(frozen_at, "frozen", uid=UID), event(13, "thawed", uid=UID)]
    judgement = judge([*SENT, *frozen, about(13.2, "start"), about(13.4, "end"), *TOLD_LATER])
    assert judgement.good == (frozen_at > 1), "frozen before it was published, it must have looked after the thaw"


def test_a_clock_that_was_set_between_the_look_and_the_start_makes_nobody_late() -> None:
    assert judge([*SENT, event(1.9, "clock", uid=UID, offset=20), *RAN, *TOLD]).good


def test_the_last_word_is_the_agents() -> None:
    diary = [*of_coordinator("lost"), KILLED, row("interrupted"), word(21, "answered", "interrupted")]
    assert judge(diary).unknown == 1
    assert judge([*of_coordinator("lost"), KILLED, *RAN, *ended("succeeded")]).unknown == 0
