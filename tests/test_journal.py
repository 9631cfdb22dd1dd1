"""The journal: what is committed stays, nothing moves but along the table, and a bad disk is said, not hidden."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.contract.actions import Action
from agent.contract.errors import IllegalMove, JournalFull, JournalNewer, JournalUnavailable
from agent.contract.messages import CapturedStream, ErrorDetail, OutcomeMessage, Targets, Trigger
from agent.contract.states import ATTEMPT_MOVES, FIRST_STATES, AttemptState, Outcome
from agent.journal import Journal, JournalThread, file, record

UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01"
OTHER_UID = "1c9f6d2e-0000-4000-8000-000000000002"
NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
HASH = "ab" * 32
DAY = timedelta(days=1)
NONE_ENDED = tuple(state for state in AttemptState if not state.ended)
ENDED = tuple(state for state in AttemptState if state.ended)


def after(**delta: float) -> datetime:
    return NOW + timedelta(**delta)


def run_id(number: int) -> str:
    return str(uuid.UUID(int=number))


def trigger(run: str = RUN, attempt: int = 1, *, deadline: datetime | None = None) -> Trigger:
    return Trigger(
        run_id=run,
        attempt=attempt,
        coordinator="nightly",
        pod_uid=UID,
        targets=Targets.of([("shop", "db-0", UID)]),
        action=Action.model_validate({"exec": {"command": ["true"]}}),
        name="freeze",
        issued_at=NOW,
        deadline=deadline or after(minutes=5),
    )


def outcome(state: Outcome | AttemptState = Outcome.SUCCEEDED, run: str = RUN, attempt: int = 1, output: str = ""):
    return OutcomeMessage(
        run_id=run,
        attempt=attempt,
        namespace="shop",
        pod="db-0",
        pod_uid=UID,
        trigger_hash=HASH,
        outcome=Outcome(state),
        stdout=CapturedStream(text=output, total_bytes=len(output.encode())),
        error=ErrorDetail(code="exit_code", message="größer"),
    )


def admit(journal: Journal, run: str = RUN, attempt: int = 1, state: AttemptState = AttemptState.STARTED, **more):
    ended = outcome(state, run, attempt) if state.ended else None
    now = more.pop("now", NOW)
    journal.admit(trigger(run, attempt, **more), HASH, state, ended, now)


@contextmanager
def opened(directory: Path, uid: str = UID, now: datetime = NOW) -> Iterator[Journal]:
    with closing(Journal.open(directory, uid, now=now)) as journal:
        yield journal


@pytest.fixture
def journal(tmp_path) -> Iterator[Journal]:
    with opened(tmp_path) as journal:
        yield journal


def file_of(directory: Path) -> Path:
    return directory / f"journal-{UID}.sqlite3"


# --- what is kept for the next life


def test_since_when_whom_the_agent_obeys_is_kept_and_nothing_else_hangs_on_it(tmp_path):
    with opened(tmp_path) as journal:
        assert journal.obeyed() is None
        journal.keep_obeyed("once")
        journal.keep_obeyed("twice")
    with opened(tmp_path, now=after(minutes=1)) as journal:
        assert (journal.obeyed(), journal.born_at) == ("twice", NOW)


# --- what happens to an attempt


@pytest.mark.parametrize("state", sorted(FIRST_STATES))
def test_what_is_admitted_is_remembered_as_it_was(journal, state):
    admit(journal, state=state)
    entry = journal.remember(RUN, 1).entry(1)
    assert (entry.run_id, entry.attempt, entry.trigger_hash, entry.state) == (RUN, 1, HASH, state)
    assert (entry.coordinator, entry.name, entry.targets) == ("nightly", "freeze", trigger().targets)
    assert (entry.deadline, entry.changed_at) == (after(minutes=5), NOW)
    assert entry.outcome == (outcome(state) if state.ended else None)


@pytest.mark.parametrize("state", sorted(set(AttemptState) - FIRST_STATES))
def test_only_first_states_can_be_first(journal, state):
    with pytest.raises(IllegalMove, match=f"cannot begin as {state}"):
        admit(journal, state=state)
    assert journal.remember(RUN, 1).entries == (), "a refused admission left a row"


@pytest.mark.parametrize(
    ("state", "ended"),
    [(AttemptState.STARTED, outcome()), (AttemptState.REJECTED, None), (AttemptState.READY, outcome())],
)
def test_an_attempt_has_an_outcome_exactly_when_it_has_ended(journal, state, ended):
    with pytest.raises(IllegalMove):
        journal.admit(trigger(), HASH, state, ended, NOW)
    assert journal.remember(RUN, 1).entries == ()


def test_the_same_attempt_cannot_be_admitted_twice(journal):
    admit(journal, state=AttemptState.READY)
    with pytest.raises(JournalUnavailable):
        admit(journal, state=AttemptState.STARTED)
    assert journal.remember(RUN, 1).entry(1).state is AttemptState.READY
    admit(journal, run_id(2))  # and the failed write did not stay open


@pytest.mark.parametrize("first", NONE_ENDED)
@pytest.mark.parametrize("following", ENDED)
def test_attempts_end_only_along_the_table(journal, first, following):
    admit(journal, state=first)
    if following in ATTEMPT_MOVES[first]:
        journal.finish(outcome(following), after(seconds=1))
        entry = journal.remember(RUN, 1).entry(1)
        assert (entry.state, entry.outcome, entry.changed_at) == (following, outcome(following), after(seconds=1))
    else:
        with pytest.raises(IllegalMove, match=f"{following} cannot follow {first}"):
            journal.finish(outcome(following), NOW)
        assert journal.remember(RUN, 1).entry(1).state is first, "an illegal move changed something"


@pytest.mark.parametrize("ended", sorted(ATTEMPT_MOVES[AttemptState.STARTED]))
@pytest.mark.parametrize("again", [Outcome.SUCCEEDED, Outcome.INTERRUPTED])
def test_an_attempt_ends_once(journal, ended, again):
    admit(journal)
    journal.finish(outcome(ended, output="first"), NOW)
    with pytest.raises(IllegalMove, match="it has ended"):
        journal.finish(outcome(again, output="second"), after(seconds=1))
    assert journal.remember(RUN, 1).entry(1).outcome.stdout.text == "first"


@pytest.mark.parametrize("state", sorted(FIRST_STATES))
def test_only_what_is_ready_starts(journal, state):
    admit(journal, state=state)
    if state is AttemptState.READY:
        journal.start(RUN, 1, HASH, after(seconds=2))
        assert journal.remember(RUN, 1).entry(1).state is AttemptState.STARTED
        assert journal.remember(RUN, 1).entry(1).changed_at == after(seconds=2)
    with pytest.raises(IllegalMove):
        journal.start(RUN, 1, HASH, NOW)


@pytest.mark.parametrize("attempt", [1, 2])
def test_what_was_never_admitted_cannot_move(journal, attempt):
    admit(journal, run_id(9))
    with pytest.raises(IllegalMove, match=f"{RUN}/{attempt} is not in the journal"):
        journal.start(RUN, attempt, HASH, NOW)
    with pytest.raises(IllegalMove, match="is not in the journal"):
        journal.finish(outcome(attempt=attempt), NOW)


def test_every_attempt_of_a_run_is_remembered_lowest_first(journal):
    for attempt in (10, 2, 1):
        admit(journal, attempt=attempt)
    admit(journal, run_id(9), 3)
    memory = journal.remember(RUN, 2)
    assert [entry.attempt for entry in memory.entries] == [1, 2, 10]
    assert (memory.entry(2).attempt, memory.entry(3)) == (2, None)


def test_what_is_unfinished_is_what_a_crash_interrupts(journal):
    admit(journal, run_id(1), state=AttemptState.READY)
    admit(journal, run_id(2))
    admit(journal, run_id(3), state=AttemptState.REJECTED)
    admit(journal, run_id(4))
    journal.finish(outcome(run=run_id(4)), NOW)
    assert {(entry.run_id, entry.state) for entry in journal.unfinished()} == {
        (run_id(1), AttemptState.READY),
        (run_id(2), AttemptState.STARTED),
    }


# --- delivery


def test_undelivered_outcomes_come_oldest_first_up_to_the_limit(journal):
    for number, second in ((1, 30), (2, 10), (3, 20)):
        admit(journal, run_id(number))
        journal.finish(outcome(run=run_id(number)), after(seconds=second))
    admit(journal, run_id(4))
    assert [entry.run_id for entry in journal.undelivered(10)] == [run_id(2), run_id(3), run_id(1)]
    assert [entry.run_id for entry in journal.undelivered(2)] == [run_id(2), run_id(3)]


def test_what_the_broker_has_is_not_published_again_until_somebody_asks(journal):
    admit(journal)
    journal.finish(outcome(), NOW)
    journal.delivered(outcome())
    assert journal.undelivered(10) == []
    journal.deliver_again(outcome(), "another")
    assert [(entry.run_id, entry.coordinator) for entry in journal.undelivered(10)] == [(RUN, "another")]


def test_delivery_of_one_attempt_says_nothing_of_the_next(journal):
    for attempt in (1, 2):
        admit(journal, attempt=attempt, state=AttemptState.REJECTED)
    journal.delivered(outcome())
    assert [entry.attempt for entry in journal.undelivered(10)] == [2]


# --- tombstones, floor, forgetting


def test_a_tombstone_is_for_an_attempt_and_those_before_it(journal):
    journal.tombstone(RUN, 2, NOW, NOW)
    assert journal.remember(RUN, 2).tombstoned
    assert journal.remember(RUN, 1).tombstoned, "a lower attempt is never started after a higher one"
    assert not journal.remember(RUN, 3).tombstoned
    assert not journal.remember(run_id(9), 2).tombstoned
    assert not journal.remember(RUN, None).tombstoned, "a run as a whole has no tombstone"


def test_a_tombstone_stays_until_nothing_that_was_issued_before_it_can_start(journal):
    journal.tombstone(RUN, 1, NOW, NOW)
    journal.prune(after(minutes=15, seconds=60))
    assert journal.remember(RUN, 1).tombstoned, "the longest start window with the clocks' tolerance, and 30 s"
    journal.prune(after(minutes=15, seconds=60.1))
    memory = journal.remember(RUN, 1)
    assert (memory.tombstoned, memory.forgotten_deadline) == (False, after(minutes=15, seconds=30))


def test_a_second_tombstone_only_lengthens_the_first(journal):
    for minutes in (0, 5, 1):
        journal.tombstone(RUN, 1, after(minutes=minutes), after(minutes=minutes))
    journal.prune(after(minutes=20))
    assert journal.remember(RUN, 1).tombstoned


def test_tombstones_have_a_bound_and_what_is_refused_is_said(journal, monkeypatch):
    monkeypatch.setattr(record, "MAX_TOMBSTONES", 2)
    for number in (1, 2):
        journal.tombstone(run_id(number), 1, NOW, NOW)
    with pytest.raises(JournalFull, match=r"2 tombstones of at most 2; wait 15 min"):
        journal.tombstone(run_id(3), 1, NOW, NOW)
    journal.prune(after(minutes=17))
    journal.tombstone(run_id(3), 1, after(minutes=17), after(minutes=17))


@pytest.mark.parametrize(
    ("deadline", "ended_at", "asked_at", "kept"),
    [
        (after(minutes=5), NOW, after(hours=23, minutes=59), True),
        (after(minutes=5), NOW, after(hours=24), True),
        (after(minutes=5), NOW, after(hours=24, seconds=1), False),
        (after(minutes=5), after(hours=2), after(hours=25), True),
        (after(minutes=15), NOW - 2 * DAY, after(minutes=15, seconds=30), True),  # it ended while the clock was behind
        (after(minutes=15), NOW - 2 * DAY, after(minutes=15, seconds=31), False),
    ],
)
def test_an_ended_attempt_is_kept_for_24_hours_and_until_its_deadline_and_30_seconds(
    journal, deadline, ended_at, asked_at, kept
):
    admit(journal, deadline=deadline)
    journal.finish(outcome(), ended_at)
    assert journal.prune(asked_at) == (0 if kept else 1)
    assert len(journal.remember(RUN, 1).entries) == (1 if kept else 0)


def test_a_deadline_that_no_trigger_may_have_keeps_no_row_for_ever(journal):
    admit(journal, state=AttemptState.REJECTED, deadline=after(days=3650))
    assert journal.prune(NOW + DAY) == 0
    assert journal.prune(after(hours=24, seconds=31)) == 1
    assert journal.remember(RUN, 1).forgotten_deadline == NOW + DAY


@pytest.mark.parametrize("state", NONE_ENDED)
def test_what_has_not_ended_is_never_forgotten(journal, state):
    admit(journal, state=state)
    assert journal.prune(after(days=400)) == 0
    assert journal.remember(RUN, 1).entry(1).state is state


def test_the_latest_deadline_that_was_forgotten_is_remembered(tmp_path):
    with opened(tmp_path) as journal:
        assert journal.remember(RUN, 1).forgotten_deadline == datetime.fromtimestamp(0, UTC)
        for number, minutes in ((1, 3), (2, 9), (3, 6)):
            admit(journal, run_id(number), state=AttemptState.REJECTED, deadline=after(minutes=minutes))
        assert journal.prune(NOW + 2 * DAY) == 3
        assert journal.remember(RUN, 1).forgotten_deadline == after(minutes=9)
    with opened(tmp_path, now=NOW - DAY) as journal:  # the clock was set back meanwhile
        assert journal.remember(RUN, 1).forgotten_deadline == after(minutes=9)
        admit(journal, state=AttemptState.REJECTED, deadline=NOW - DAY, now=NOW - DAY)
        assert journal.prune(NOW + DAY) == 1
        assert journal.remember(RUN, 1).forgotten_deadline == after(minutes=9), "an earlier deadline took it back"


def test_the_floor_begins_at_birth_and_only_rises(tmp_path):
    with opened(tmp_path) as journal:
        assert journal.remember(RUN, 1).floor == journal.born_at == NOW
        journal.raise_floor(after(hours=1))
        assert journal.remember(RUN, 1).floor == after(hours=1)
        journal.raise_floor(after(minutes=1))  # the clock was set back
        assert journal.remember(RUN, 1).floor == after(hours=1)
    with opened(tmp_path, now=after(hours=9)) as journal:
        assert (journal.remember(RUN, 1).floor, journal.born_at) == (after(hours=1), NOW)


def test_a_full_journal_refuses_and_says_so(journal, monkeypatch):
    monkeypatch.setattr(record, "MAX_ROWS", 2)
    for number in (1, 2):
        admit(journal, run_id(number), state=AttemptState.REJECTED)
    with pytest.raises(JournalFull, match=r"journal is full: 2 attempts of at most 2, \d+ bytes of at most .*24 h"):
        admit(journal, run_id(3))
    assert journal.remember(run_id(3), 1).entries == ()
    journal.prune(NOW + 2 * DAY)
    admit(journal, run_id(3))


# --- what the next process must know although this one could not write it


def test_a_refusal_that_could_not_be_recorded_raises_the_floor_of_the_next_process(tmp_path):
    with opened(tmp_path):
        file.mark_refused(file.path_of(tmp_path, UID), after(seconds=90))
        file.mark_refused(file.path_of(tmp_path, UID), after(seconds=60))
    with opened(tmp_path, now=after(minutes=5)) as journal:
        assert journal.remember(RUN, 1).floor == after(seconds=90), "a later mark took an earlier one back"
        assert journal.born_at == NOW


def test_the_client_id_stays_while_the_journal_cannot_be_opened(tmp_path):
    with opened(tmp_path) as journal:
        suffix = journal.client_suffix
    path = file.path_of(tmp_path, UID)
    path.write_bytes(b"no database" * 500)
    assert file.read_suffix(path) == suffix
    with opened(tmp_path, now=after(hours=1)) as journal:
        assert (journal.reset_from is not None, journal.client_suffix) == (True, suffix), (
            "another session, another queue"
        )


def test_under_pressure_refusals_go_before_their_day_is_over(journal):
    admit(journal, run_id(1), state=AttemptState.REJECTED)
    admit(journal, run_id(2))
    journal.finish(outcome(run=run_id(2)), NOW)
    assert journal.prune(after(minutes=6)) == 0
    assert journal.prune(after(minutes=5), pressed=True) == 0, "its id must be kept until deadline + 30 s"
    assert journal.prune(after(minutes=6), pressed=True) == 1
    assert journal.remember(run_id(2), 1).entry(1) is not None
    assert journal.remember(run_id(1), 1).forgotten_deadline == after(minutes=5)


# --- what is told of all runs


def test_the_latest_attempts_are_told_newest_first_without_what_they_printed(journal):
    for number in (1, 2, 3):
        admit(journal, run_id(number), now=after(seconds=number))
    journal.finish(outcome(run=run_id(1), output="much"), after(seconds=10))
    latest = journal.latest(2)
    assert [(entry.run_id, entry.state, entry.outcome) for entry in latest] == [
        (run_id(1), AttemptState.SUCCEEDED, None),
        (run_id(3), AttemptState.STARTED, None),
    ]
    assert latest[0].issued_at == NOW


# --- older and newer files


#: What version 1 made, as it was released: the file below is not made by the code under test.
VERSION_1 = """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (run_id TEXT NOT NULL, attempt INTEGER NOT NULL, trigger_hash TEXT NOT NULL,
        coordinator TEXT NOT NULL, name TEXT NOT NULL, targets TEXT NOT NULL, state TEXT NOT NULL,
        deadline REAL NOT NULL, changed_at REAL NOT NULL, outcome TEXT, delivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (run_id, attempt)) WITHOUT ROWID;
    CREATE INDEX undelivered ON attempts (changed_at) WHERE outcome IS NOT NULL AND delivered = 0;
    CREATE TABLE tombstones (run_id TEXT NOT NULL, attempt INTEGER NOT NULL, deadline REAL NOT NULL,
        PRIMARY KEY (run_id, attempt)) WITHOUT ROWID;
    PRAGMA user_version = 1;
"""


def version_1(directory: Path) -> Path:
    """A journal as version 1 left it: one attempt that ended, one that runs, a tombstone."""
    path = file.path_of(directory, UID)
    targets = '{"count":1,"hash":"sha256:' + "0" * 64 + '"}'
    ended = outcome(run=run_id(1), output="größer").model_dump_json(exclude_none=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(VERSION_1)
        meta = {
            "born_at": NOW.timestamp(),
            "floor": after(seconds=5).timestamp(),
            "forgotten_deadline": 7.0,
            "client_suffix": "0a1b2c3d4e5f",
        }
        database.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in meta.items()])
        for number, state, said in ((1, "succeeded", ended), (2, "started", None)):
            row = (run_id(number), 1, HASH, "nightly", "freeze", targets, state)
            times = (after(minutes=5).timestamp(), after(seconds=8).timestamp())
            database.execute(f"INSERT INTO attempts VALUES ({', '.join('?' * 11)})", (*row, *times, said, 0))
        database.execute("INSERT INTO tombstones VALUES (?, 1, ?)", (run_id(3), after(minutes=5).timestamp()))
    return path


def test_a_journal_of_version_1_is_brought_up_to_date_and_forgets_nothing(tmp_path):
    path = version_1(tmp_path)
    with opened(tmp_path, now=after(minutes=1)) as journal:
        assert (journal.born_at, journal.client_suffix, journal.reset_from) == (NOW, "0a1b2c3d4e5f", None)
        memory = journal.remember(run_id(1), 1)
        assert (memory.floor, memory.forgotten_deadline.timestamp()) == (after(seconds=5), 7.0)
        (entry,) = memory.entries
        assert (entry.state, entry.targets.strategy) == (AttemptState.SUCCEEDED, "ExecuteOnAll")
        assert entry.outcome is not None
        assert entry.outcome.stdout.text == "größer"
        assert entry.issued_at == after(minutes=-10), "the earliest that a trigger with this deadline can have had"
        assert [each.run_id for each in journal.unfinished()] == [run_id(2)]
        assert journal.remember(run_id(3), 1).tombstoned
        admit(journal, run_id(4))
    with opened(tmp_path, now=after(minutes=2)) as journal:
        assert journal.remember(run_id(4), 1).entry(1) is not None, "the second start migrated again"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (file.SCHEMA_VERSION,)


def test_a_journal_that_is_nearly_full_is_brought_up_to_date_too(tmp_path, monkeypatch):
    """A step may copy a table; the bound holds for what is in it, not for the room that the copy takes."""
    monkeypatch.setattr(file, "MAX_BYTES", 400 * 1024)
    path = version_1(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        targets = '{"count":1,"hash":"sha256:' + "0" * 64 + '"}'
        for number in range(10, 40):
            said = outcome(run=run_id(number), output="x" * 8000).model_dump_json(exclude_none=True)
            row = (run_id(number), 1, HASH, "nightly", "freeze", targets, "succeeded")
            times = (after(minutes=5).timestamp(), after(seconds=8).timestamp())
            database.execute(f"INSERT INTO attempts VALUES ({', '.join('?' * 11)})", (*row, *times, said, 0))
    with opened(tmp_path, now=after(minutes=1)) as journal:
        assert journal.remember(run_id(39), 1).entry(1) is not None


def test_a_migration_that_breaks_half_way_leaves_the_old_journal_as_it_was(tmp_path, monkeypatch):
    version_1(tmp_path)
    monkeypatch.setattr(
        file, "STEPS", (*file.STEPS[:1], f"{file.STEPS[1]}; INSERT INTO attempts (run_id) VALUES (NULL)")
    )
    with pytest.raises(JournalUnavailable, match="NOT NULL"):
        Journal.open(tmp_path, UID, now=NOW)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.corrupt-*")), "a healthy journal was set aside"
    with opened(tmp_path) as journal:
        assert journal.remember(run_id(1), 1).entry(1) is not None
        assert journal.born_at == NOW


# --- restarts, and whose journal it is


def test_a_restart_keeps_everything(tmp_path):
    with opened(tmp_path) as journal:
        admit(journal, run_id(1))
        journal.finish(outcome(run=run_id(1), output="größer\x00"), after(seconds=5))
        admit(journal, run_id(2), state=AttemptState.READY)
        journal.tombstone(run_id(3), 1, NOW, NOW)
        before = [journal.remember(run_id(number), 1) for number in (1, 2, 3)]
        suffix = journal.client_suffix
    with opened(tmp_path, now=after(hours=1)) as journal:
        assert [journal.remember(run_id(number), 1) for number in (1, 2, 3)] == before
        assert [entry.run_id for entry in journal.undelivered(10)] == [run_id(1)]
        assert (journal.born_at, journal.client_suffix, journal.reset_from) == (NOW, suffix, None)


def test_a_directory_has_one_opener_at_a_time(tmp_path):
    with opened(tmp_path):
        with pytest.raises(JournalUnavailable, match=f"another agent has {file_of(tmp_path)} open; give each agent"):
            Journal.open(tmp_path, UID, now=NOW)
        with opened(tmp_path, OTHER_UID):
            pass
    with opened(tmp_path):
        pass


def test_another_pod_uid_is_another_journal(tmp_path):
    with opened(tmp_path) as journal:
        admit(journal)
        suffix = journal.client_suffix
    with opened(tmp_path, OTHER_UID, after(hours=1)) as other:
        assert other.remember(RUN, 1).entries == ()
        assert other.born_at == after(hours=1)
        assert other.client_suffix != suffix, "a successor must not take over its predecessor's session"


def test_only_its_owner_can_read_a_journal(tmp_path):
    with opened(tmp_path / "state"):
        modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "state").iterdir()}
    assert set(modes.values()) == {0}, modes
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_after_close_a_journal_says_that_it_cannot_be_used(tmp_path):
    journal = Journal.open(tmp_path, UID, now=NOW)
    journal.close()
    with pytest.raises(JournalUnavailable):
        journal.remember(RUN, 1)


_VICTIM = """
import sys
from pathlib import Path
from tests.test_journal import NOW, UID, AttemptState, Journal, admit, outcome, run_id
journal = Journal.open(Path(sys.argv[1]), UID, now=NOW)
for number in range(1, 10_000):
    admit(journal, run_id(number))
    journal.finish(outcome(run=run_id(number)), NOW)
    admit(journal, run_id(number), 2, AttemptState.READY)
    print(number, flush=True)
"""


def test_sigkill_loses_nothing_that_was_committed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", _VICTIM, tmp_path], stdout=subprocess.PIPE) as victim:
        last = 0
        while last < 40:
            last = int(victim.stdout.readline())
        victim.send_signal(signal.SIGKILL)
        said = [last, *map(int, victim.stdout.read().split())]
    assert victim.returncode == -signal.SIGKILL
    with opened(tmp_path, now=after(hours=1)) as journal:
        assert (journal.reset_from, journal.born_at) == (None, NOW)
        for number in range(1, said[-1] + 1):
            states = [entry.state for entry in journal.remember(run_id(number), 1).entries]
            assert states == [AttemptState.SUCCEEDED, AttemptState.READY], f"run {number} of {said[-1]} was lost"


# --- damage


def filled(directory: Path) -> Path:
    with opened(directory) as journal:
        for number in range(1, 60):
            admit(journal, run_id(number))
            journal.finish(outcome(run=run_id(number), output="x" * 3000), NOW)
    return file_of(directory)


def overwrite(path: Path, at: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)


def change(statement: str, *, version: int = 1):
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")

    return damage


DAMAGES = {
    "no database at all": lambda path: path.write_bytes(b"these are not the pages\n" * 900),
    "garbage in the header": lambda path: overwrite(path, 0, os.urandom(100)),
    "the first page gone": lambda path: overwrite(path, 0, bytes(4096)),
    "cut in the middle of a page": lambda path: os.truncate(path, path.stat().st_size // 2 + 77),
    "cut between pages": lambda path: os.truncate(path, path.stat().st_size // 4096 // 2 * 4096),
    "cut after the first page": lambda path: os.truncate(path, 4096),
    "garbage in the middle": lambda path: overwrite(path, path.stat().st_size // 2 // 4096 * 4096, b"\xa5" * 9000),
    "a table gone": change("DROP TABLE attempts"),
    "a column gone": change("ALTER TABLE attempts DROP COLUMN name"),
    "its birth gone": change("DELETE FROM meta WHERE key = 'born_at'"),
    "its birth no number": change("UPDATE meta SET value = 'yesterday' WHERE key = 'born_at'"),
    "its birth beyond time": change("UPDATE meta SET value = '1e300' WHERE key = 'born_at'"),
    "its version forgotten": change("UPDATE meta SET value = value", version=0),
    "a state that there is not": change("UPDATE attempts SET state = 'stopped'"),
    "an outcome that is no JSON": change("UPDATE attempts SET outcome = '{' || outcome"),
    "a deadline that is no time": change("UPDATE attempts SET deadline = 'soon'"),
    "text that is not UTF-8": change("UPDATE attempts SET name = CAST(x'ff' AS TEXT)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_set_aside_and_a_new_one_begins(tmp_path, damage):
    path = filled(tmp_path)
    DAMAGES[damage](path)
    content = path.read_bytes()
    with opened(tmp_path, now=after(hours=1)) as journal:
        assert journal.reset_from is not None, f"{damage}: opened as if nothing had happened"
        assert journal.reset_from.parent == tmp_path
        assert journal.reset_from.name.startswith(f"{path.name}.corrupt-20260301T033000Z-")
        assert journal.reset_from.read_bytes() == content, "what is left of it belongs to its owner"
        born_at = after(hours=1)
        assert journal.born_at == journal.remember(RUN, 1).born_at == journal.remember(RUN, 1).floor == born_at
        assert journal.undelivered(100) == []
        admit(journal)
    with opened(tmp_path, now=after(hours=2)) as journal:
        assert (journal.reset_from, journal.born_at) == (None, after(hours=1))
        assert journal.remember(RUN, 1).entry(1) is not None


def test_two_damaged_journals_are_both_kept(tmp_path):
    for _ in range(2):
        filled(tmp_path).write_bytes(b"no database" * 500)
        with opened(tmp_path):
            pass
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 2


def test_a_row_that_turns_bad_while_open_is_an_unavailable_journal(tmp_path):
    with opened(tmp_path) as journal:
        admit(journal)
        DAMAGES["a state that there is not"](file_of(tmp_path))
        for act in (
            lambda: journal.remember(RUN, 1),
            journal.unfinished,
            lambda: journal.finish(outcome(), NOW),
        ):
            with pytest.raises(JournalUnavailable, match="cannot be used"):
                act()


def test_a_newer_journal_is_left_untouched(tmp_path):
    path = filled(tmp_path)
    newer = file.SCHEMA_VERSION + 1
    change("UPDATE meta SET value = value", version=newer)(path)
    content, files = path.read_bytes(), sorted(tmp_path.iterdir())
    for _ in range(2):
        with pytest.raises(JournalNewer, match=rf"has schema {newer}, this podhook knows up to {newer - 1}; upgrade"):
            Journal.open(tmp_path, UID, now=NOW)
    assert path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == files
    change("UPDATE meta SET value = value", version=file.SCHEMA_VERSION)(path)
    with opened(tmp_path) as journal:
        assert len(journal.undelivered(100)) == 59


# --- disks


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_state_directory_that_cannot_be_is_named(tmp_path, what):
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file" / ("deep" if what == "below a file" else "")
    with pytest.raises(JournalUnavailable, match=f"cannot use state directory {directory}"):
        Journal.open(directory, UID, now=NOW)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while os.statvfs(disk).f_bfree:
            file.write(bytes(4096))
    return ballast


def admit_until_refused(journal: Journal, output: str = "") -> tuple[int, JournalUnavailable]:
    """Finish attempt after attempt until the disk says no; how many were admitted, and what was said."""
    for number in range(100, 2000):
        try:
            admit(journal, run_id(number))
            journal.finish(outcome(run=run_id(number), output=output), NOW)
        except JournalUnavailable as error:
            return number, error
    raise AssertionError("there is room for everything")


def test_a_full_disk_is_said_and_nothing_is_half_written(small_disk):
    with opened(small_disk) as journal:
        admit(journal, run_id(1))
        ballast = fill(small_disk)
        refused, error = admit_until_refused(journal)
        assert "cannot be used" in str(error)
        left = journal.remember(run_id(refused), 1).entries
        assert [entry.state for entry in left] in ([], [AttemptState.STARTED]), "half a write was kept"
        assert journal.remember(run_id(1), 1).entry(1) is not None, "a full disk can still be read"
        ballast.unlink()
        admit(journal, run_id(2))
        journal.finish(outcome(run=run_id(1)), NOW)
    with opened(small_disk) as journal:
        assert journal.reset_from is None, "a full disk was taken for damage"
        for number in (1, *range(100, refused)):
            assert journal.remember(run_id(number), 1).entry(1).state is AttemptState.SUCCEEDED
        assert journal.remember(run_id(2), 1).entry(1).state is AttemptState.STARTED


def test_a_disk_without_room_for_a_journal_is_said(small_disk):
    ballast = fill(small_disk)
    with pytest.raises(JournalUnavailable):
        Journal.open(small_disk, UID, now=NOW)
    ballast.unlink()
    with opened(small_disk) as journal:
        admit(journal)


def test_a_read_only_disk_is_said_and_the_journal_is_left_alone(small_disk):
    with opened(small_disk) as journal:
        admit(journal)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(JournalUnavailable, match="Read-only"):
        Journal.open(small_disk, UID, now=NOW)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with opened(small_disk) as journal:
        assert journal.reset_from is None
        assert journal.remember(RUN, 1).entry(1) is not None


def test_a_damaged_journal_that_cannot_be_set_aside_is_unavailable(small_disk):
    path = file_of(small_disk)
    path.write_bytes(b"no database" * 500)
    subprocess.run(["mount", "--bind", path, path], check=True)  # a mount point cannot be renamed
    try:
        with pytest.raises(JournalUnavailable, match="busy"):
            Journal.open(small_disk, UID, now=NOW)
    finally:
        subprocess.run(["umount", path], check=True)
    with opened(small_disk) as journal:
        assert journal.reset_from is not None


def test_a_journal_at_its_bound_of_bytes_can_still_finish_what_it_admitted(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_BYTES", 256 * 1024)
    with opened(tmp_path) as journal:
        admit(journal, run_id(1))
        _, error = admit_until_refused(journal, "x" * 3000)
        assert isinstance(error, JournalFull), error
        journal.finish(outcome(run=run_id(1), output="y" * 3000), NOW)
        journal.tombstone(run_id(2), 1, NOW, NOW)
        journal.raise_floor(after(minutes=1))
        assert journal.remember(run_id(1), 1).floor == after(minutes=1)


def test_the_size_of_a_journal_has_a_bound_and_pruning_gives_room_again(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_BYTES", 256 * 1024)
    with opened(tmp_path) as journal:
        _, error = admit_until_refused(journal, "x" * 3000)
        assert "full" in str(error)
        assert file_of(tmp_path).stat().st_size <= 256 * 1024
        assert journal.prune(NOW + 2 * DAY) > 10
        admit(journal)


# --- the journal's thread


async def test_nothing_can_be_asked_before_the_journal_is_open(tmp_path):
    thread = JournalThread()
    with pytest.raises(JournalUnavailable, match="not open"):
        await thread.call(Journal.unfinished)
    await thread.open(tmp_path, UID, NOW)
    assert await thread.call(Journal.unfinished) == []
    await thread.close()
    with pytest.raises(JournalUnavailable, match="not open"):
        await thread.call(Journal.unfinished)
    with opened(tmp_path):
        pass


async def test_a_write_goes_through_although_its_caller_is_cancelled(tmp_path):
    thread = JournalThread()
    await thread.open(tmp_path, UID, NOW)
    go, began = threading.Event(), threading.Event()

    def slow(_: Journal) -> None:
        began.set()
        assert go.wait(10)

    blocking = asyncio.create_task(thread.call(slow))
    waiting = asyncio.create_task(
        thread.call(Journal.admit, trigger(), HASH, AttemptState.STARTED, None, NOW), name="waits behind it"
    )
    try:
        await asyncio.to_thread(began.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        go.set()
    await blocking
    assert [entry.run_id for entry in await thread.call(Journal.unfinished)] == [RUN], "the queued write was dropped"
    await thread.close()


async def test_a_slow_disk_does_not_hold_up_the_loop(tmp_path):
    thread = JournalThread()
    await thread.open(tmp_path, UID, NOW)
    go = threading.Event()
    slow = asyncio.create_task(thread.call(lambda _: go.wait(10)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not slow.done()
    go.set()
    assert await slow
    await thread.close()


# --- any order of operations


RUNS = st.integers(1, 3).map(run_id)
ATTEMPTS = st.integers(1, 3)


class JournalAgainstModel(RuleBasedStateMachine):
    """Whatever is done in whatever order, the journal knows what a dictionary would know."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(self.scratch) / uuid.uuid4().hex
        self.now = NOW
        self.journal = Journal.open(self.directory, UID, now=NOW)
        self.states: dict[tuple[str, int], tuple[AttemptState, datetime, datetime, bool]] = {}
        self.tombs: dict[tuple[str, int], datetime] = {}
        self.floor, self.forgotten = NOW, datetime.fromtimestamp(0, UTC)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()

    @rule(run=RUNS, attempt=ATTEMPTS, state=st.sampled_from(AttemptState), minutes=st.integers(0, 15))
    def admit(self, run, attempt, state, minutes) -> None:
        deadline = self.now + timedelta(minutes=minutes)
        if state not in FIRST_STATES or (run, attempt) in self.states:
            with pytest.raises((IllegalMove, JournalUnavailable)):
                admit(self.journal, run, attempt, state, deadline=deadline, now=self.now)
        else:
            admit(self.journal, run, attempt, state, deadline=deadline, now=self.now)
            self.states[run, attempt] = (state, deadline, self.now, False)

    @rule(run=RUNS, attempt=ATTEMPTS, following=st.sampled_from([AttemptState.STARTED, *ENDED]))
    def move(self, run, attempt, following) -> None:
        def act() -> None:
            if following is AttemptState.STARTED:
                self.journal.start(run, attempt, HASH, self.now)
            else:
                self.journal.finish(outcome(following, run, attempt), self.now)

        present = self.states.get((run, attempt))
        if present is None or following not in ATTEMPT_MOVES[present[0]]:
            with pytest.raises(IllegalMove):
                act()
        else:
            act()
            self.states[run, attempt] = (following, present[1], self.now, False)

    @rule(run=RUNS, attempt=ATTEMPTS, again=st.booleans())
    def deliver(self, run, attempt, again) -> None:
        if again:
            self.journal.deliver_again(outcome(run=run, attempt=attempt), "nightly")
        else:
            self.journal.delivered(outcome(run=run, attempt=attempt))
        if (run, attempt) in self.states:
            self.states[run, attempt] = (*self.states[run, attempt][:3], not again)

    @rule(run=RUNS, attempt=ATTEMPTS)
    def tombstone(self, run, attempt) -> None:
        self.journal.tombstone(run, attempt, self.now, self.now)
        kept = self.now + timedelta(seconds=930)
        self.tombs[run, attempt] = max(kept, self.tombs.get((run, attempt), kept))

    @rule(seconds=st.sampled_from([-4000, 1, 600, 931, 90_000]))
    def clock(self, seconds) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def prune(self) -> None:
        for_ids, for_outcomes = self.now - timedelta(seconds=30), self.now - DAY
        gone = {
            key: deadline
            for key, (state, deadline, changed, _) in self.states.items()
            if state.ended and deadline < for_ids and changed < for_outcomes
        }
        buried = {key: deadline for key, deadline in self.tombs.items() if deadline < for_ids}
        assert self.journal.prune(self.now) == len(gone)
        self.forgotten = max([self.forgotten, *gone.values(), *buried.values()])
        self.states = {key: value for key, value in self.states.items() if key not in gone}
        self.tombs = {key: value for key, value in self.tombs.items() if key not in buried}

    @rule()
    def raise_floor(self) -> None:
        self.journal.raise_floor(self.now)
        self.floor = max(self.floor, self.now)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal.open(self.directory, UID, now=self.now)

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "journal"):
            return
        found, dead = {}, set()
        for run in map(run_id, range(1, 4)):
            memory = self.journal.remember(run, None)
            assert (memory.floor, memory.forgotten_deadline) == (self.floor, self.forgotten)
            found |= {(run, entry.attempt): (entry.state, entry.deadline, entry.changed_at) for entry in memory.entries}
            assert all((entry.outcome is not None) == entry.state.ended for entry in memory.entries)
            dead |= {(run, attempt) for attempt in range(1, 4) if self.journal.remember(run, attempt).tombstoned}
        assert found == {key: value[:3] for key, value in self.states.items()}
        assert dead == {(run, lower) for run, attempt in self.tombs for lower in range(1, attempt + 1)}
        waiting = {(entry.run_id, entry.attempt) for entry in self.journal.undelivered(100)}
        assert waiting == {key for key, (state, _, _, sent) in self.states.items() if state.ended and not sent}


def test_any_order_of_operations_agrees_with_a_dictionary(tmp_path):
    JournalAgainstModel.scratch = tmp_path
    JournalAgainstModel.TestCase.settings = settings(
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    JournalAgainstModel.TestCase("runTest").runTest()
