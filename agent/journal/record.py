"""What a journal can be asked, and what is written into it. All calls block; see `thread`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.contract.errors import IllegalMove, JournalFull, JournalUnavailable
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    MAX_START_WINDOW_SECONDS,
    OutcomeMessage,
    Targets,
    Trigger,
)
from agent.contract.states import FIRST_STATES, AttemptState, move
from agent.journal import file

#: Outcomes are kept for a day (DESIGN: Delivery 2), ids until deadline + 30 s at least.
KEEP_OUTCOMES_SECONDS = 24 * 3600
_DAY = timedelta(seconds=KEEP_OUTCOMES_SECONDS)
MAX_ROWS = 20_000
#: Ids of attempts that were never seen and shall never start; each is kept for a quarter of an hour.
MAX_TOMBSTONES = 20_000
MAX_COMMANDS_OF_A_KEY = 2_000
#: This share of the file is left free when a trigger is admitted, so that those before it can still be finished.
RESERVE_SHARE = 1 / 16

_COLUMNS = (
    "run_id, attempt, trigger_hash, coordinator, name, targets, state, issued_at, deadline, changed_at, kid, outcome"
)
#: One row: a trigger's hash names its key as well.
_IT = "run_id = ? AND attempt = ? AND trigger_hash = ?"


@dataclass(frozen=True, slots=True)
class Said:
    """A signed command: whose key, which id, and until when it is good. It acts once."""

    kid: str
    command_id: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt as recorded. `outcome` is set once it has ended; `kid` is the key that signed its trigger, or ""."""

    run_id: str
    attempt: int
    trigger_hash: str
    coordinator: str
    name: str
    targets: Targets
    state: AttemptState
    issued_at: datetime
    deadline: datetime
    changed_at: datetime
    outcome: OutcomeMessage | None
    kid: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the journal remembers about an attempt that is asked for, and how far its memory reaches.

    `entries`: every attempt of the run, lowest first. `tombstoned`: this attempt, or a later one, shall never start.
    Nothing is known of what was issued before `born_at`, or had a deadline up to `forgotten_deadline`, the latest of
    an id that was thrown away. What was issued before `floor` may have been refused without a record, but did not run.
    """

    entries: tuple[Entry, ...]
    tombstoned: bool
    born_at: datetime
    floor: datetime
    forgotten_deadline: datetime

    def entry(self, attempt: int) -> Entry | None:
        """The entry of one attempt, or None."""
        return next((entry for entry in self.entries if entry.attempt == attempt), None)


class Journal:
    """An open journal file.

    Raises (every method):
        JournalUnavailable: it could not be read or written; nothing was changed.
    """

    def __init__(self, connection: sqlite3.Connection, lock: int, *, reset_from: Path | None) -> None:
        self._connection = connection
        self._lock = lock
        self.reset_from = reset_from  # where a corrupt predecessor was put, for people to see
        self.born_at = _time(float(self._meta("born_at")))
        self.client_suffix = ""

    @classmethod
    def open(cls, directory: Path, pod_uid: str, *, now: datetime) -> Journal:
        """Open the journal of a pod in `directory`, or make it; a corrupt one is set aside, never deleted.

        Raises:
            JournalUnavailable: no room, no right, or another agent has it open.
            JournalNewer: written by a newer podhook; left untouched.
        """
        path = file.path_of(directory, pod_uid)
        held = file.lock(path)
        try:
            try:
                return cls._opened(path, held, now, reset_from=None)
            except sqlite3.DatabaseError as error:
                if not file.is_damage(error):
                    raise
                return cls._opened(path, held, now, reset_from=file.set_aside(path, now))
        except (sqlite3.Error, OSError) as error:
            os.close(held)
            raise JournalUnavailable(f"cannot open journal {path}: {error}") from error
        except BaseException:
            os.close(held)
            raise

    @classmethod
    def _opened(cls, path: Path, held: int, now: datetime, *, reset_from: Path | None) -> Journal:
        connection = file.connect(path, now)
        try:
            journal = cls(connection, held, reset_from=reset_from)
            for row in connection.execute(f"SELECT {_COLUMNS} FROM attempts"):  # noqa: S608
                _entry(row)  # SQLite has no checksums: a row that is no attempt is found here or at work
        except (ValueError, TypeError, OverflowError) as error:
            connection.close()
            raise sqlite3.DatabaseError(f"damaged: {error}") from error
        except BaseException:
            connection.close()
            raise
        journal.client_suffix = file.read_suffix(path) or journal._meta("client_suffix")
        if file.read_suffix(path) is None:
            file.keep_suffix(path, journal.client_suffix)
        if (mark := file.refused_until(path)) > _time(float(journal._meta("floor"))):
            journal.raise_floor(mark)
        return journal

    def close(self) -> None:
        """Close it; what was committed stays."""
        self._connection.close()
        os.close(self._lock)

    # -- what is known

    def remember(self, run_id: str, attempt: int | None, kid: str = "") -> Memory:
        """Everything known about the run that this key began, and whether this attempt of it is tombstoned for it.

        Run ids are each key's own, so that nobody burns another's. What is unsigned belongs to all: "" knows all of
        them, and every key knows what ran unsigned here before.
        """
        with _translated():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM attempts WHERE run_id = ? AND (? = '' OR kid IN ('', ?)) "  # noqa: S608
                "ORDER BY attempt, kid <> ?",
                (run_id, kid, kid, kid),
            ).fetchall()
            dead = self._connection.execute(
                "SELECT 1 FROM tombstones WHERE run_id = ? AND attempt >= ? AND (? = '' OR kid IN ('', ?))",
                (run_id, attempt, kid, kid),
            ).fetchone()
            return Memory(
                tuple(_entry(row) for row in rows),
                dead is not None,
                self.born_at,
                _time(float(self._meta("floor"))),
                _time(float(self._meta("forgotten_deadline"))),
            )

    def unfinished(self) -> list[Entry]:
        """Attempts that had not ended: after a restart, those that a crash interrupted."""
        return self._select("outcome IS NULL")

    def undelivered(self, limit: int) -> list[Entry]:
        """Outcomes that the broker does not have yet, oldest first."""
        return self._select("outcome IS NOT NULL AND delivered = 0 ORDER BY changed_at LIMIT ?", limit)

    def latest(self, limit: int) -> list[Entry]:
        """The attempts that changed last, newest first, without what they printed."""
        with _translated():
            columns = _COLUMNS.replace("outcome", "NULL")
            query = f"SELECT {columns} FROM attempts ORDER BY changed_at DESC LIMIT ?"  # noqa: S608
            return [_entry(row) for row in self._connection.execute(query, (limit,))]

    def acted(self, said: Said) -> bool:
        """Whether this signed command has acted before."""
        with _translated():
            query = "SELECT 1 FROM commands WHERE kid = ? AND id = ?"
            return self._connection.execute(query, (said.kid, said.command_id)).fetchone() is not None

    def check_room(self) -> None:
        """Whether one more attempt may be admitted.

        Raises:
            JournalFull: it is at its bound of rows or of bytes.
        """
        with _translated():
            rows, pages, free = (
                self._connection.execute(query).fetchone()[0]
                for query in ("SELECT count(*) FROM attempts", "PRAGMA page_count", "PRAGMA freelist_count")
            )
        used, limit = (pages - free) * file.PAGE_BYTES, int(file.MAX_BYTES * (1 - RESERVE_SHARE))
        if rows >= MAX_ROWS or used >= limit:
            what = f"{rows} attempts of at most {MAX_ROWS}, {used} bytes of at most {limit}"
            raise JournalFull(f"the journal is full: {what}; outcomes are kept for 24 h, then there is room again")

    # -- what happens

    def admit(
        self,
        trigger: Trigger,
        trigger_hash: str,
        state: AttemptState,
        outcome: OutcomeMessage | None,
        now: datetime,
        *,
        kid: str = "",
    ) -> None:
        """Record a trigger in its first state; a refused one with its outcome. `kid` is the key that signed it.

        Raises:
            JournalFull: there is no room for it; what is there can still be finished.
        """
        if state not in FIRST_STATES or state.ended != (outcome is not None):
            raise IllegalMove(f"an attempt cannot begin as {state} {'with' if outcome else 'without'} an outcome")
        self.check_room()
        with self._write() as connection:
            connection.execute(
                f"INSERT INTO attempts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (
                    trigger.run_id,
                    trigger.attempt,
                    trigger_hash,
                    trigger.coordinator,
                    trigger.name,
                    trigger.targets.model_dump_json(),
                    state,
                    trigger.issued_at.timestamp(),
                    min(trigger.deadline, now + _DAY).timestamp(),
                    now.timestamp(),
                    kid,
                    outcome.model_dump_json(exclude_none=True) if outcome else None,
                ),
            )

    def start(self, run_id: str, attempt: int, trigger_hash: str, now: datetime) -> None:
        """A ready attempt starts.

        Raises:
            IllegalMove: it was not ready.
        """
        with self._write() as connection:
            self._move(connection, (run_id, attempt, trigger_hash), AttemptState.STARTED, None, now)

    def finish(self, outcome: OutcomeMessage, now: datetime) -> None:
        """The attempt that an outcome speaks of ends.

        Raises:
            IllegalMove: it had ended before, or its state cannot end so.
        """
        with self._write() as connection:
            of = (outcome.run_id, outcome.attempt, outcome.trigger_hash)
            self._move(connection, of, AttemptState(outcome.outcome), outcome, now)

    def tombstone(
        self, run_id: str, attempt: int, deadline: datetime, now: datetime, kid: str = "", said: Said | None = None
    ) -> None:
        """Make sure that this attempt, and no lower one, ever starts, if it was never seen.

        With a `kid` that holds for triggers of this key only: nobody ends what another may begin.

        Kept until its deadline, and until nothing that was issued before now can be started any more, and 30 s. Our
        own clock may be behind, so a deadline far ahead is believed up to a day.

        Raises:
            JournalFull: there are too many; nothing was written.
        """
        with self._write() as connection:
            rows = connection.execute("SELECT count(*) FROM tombstones").fetchone()[0]
            if rows >= MAX_TOMBSTONES:
                raise JournalFull(f"the journal is full: {rows} tombstones of at most {MAX_TOMBSTONES}; wait 15 min")
            connection.execute(
                "INSERT INTO tombstones (run_id, attempt, kid, deadline) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET deadline = max(deadline, excluded.deadline)",
                (run_id, attempt, kid, max(_latest_deadline(now), min(deadline, now + _DAY)).timestamp()),
            )
            _note(connection, said)

    def note(self, said: Said) -> None:
        """A signed command acted: a copy of it shall not act again."""
        with self._write() as connection:
            _note(connection, said)

    def delivered(self, outcome: OutcomeMessage) -> None:
        """The broker has this outcome: stop publishing it."""
        with self._write() as connection:
            connection.execute(
                f"UPDATE attempts SET delivered = 1 WHERE {_IT}",  # noqa: S608
                (outcome.run_id, outcome.attempt, outcome.trigger_hash),
            )

    def deliver_again(self, outcome: OutcomeMessage, coordinator: str) -> None:
        """Somebody asked for this outcome again: it is undelivered once more, to `coordinator`."""
        with self._write() as connection:
            connection.execute(
                f"UPDATE attempts SET delivered = 0, coordinator = ? WHERE {_IT}",  # noqa: S608
                (coordinator, outcome.run_id, outcome.attempt, outcome.trigger_hash),
            )

    def raise_floor(self, floor: datetime) -> None:
        """Triggers may have been refused without a record: refuse whatever was issued before `floor`.

        The floor never sinks, whatever the clock does: what is below it may have been answered.
        """
        with self._write() as connection:
            _set_meta(connection, "floor", repr(max(float(self._meta("floor")), floor.timestamp())))

    def obeyed(self) -> str | None:
        """Since when whom the agent obeys, as `keep_obeyed` was given it; None if it never was."""
        with _translated():
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'obeyed'").fetchone()
            return None if row is None else str(row[0])

    def keep_obeyed(self, text: str) -> None:
        """Keep since when whom the agent obeys, for its next life."""
        with self._write() as connection:
            _set_meta(connection, "obeyed", text)

    def prune(self, now: datetime, *, pressed: bool = False) -> int:
        """Forget what may be forgotten; return how many attempts that were. `pressed`: also refusals of today."""
        moment = now.timestamp()
        with self._write() as connection:
            old = (moment - CLOCK_TOLERANCE_SECONDS, moment - KEEP_OUTCOMES_SECONDS)
            today = " OR state = 'rejected'" if pressed else ""
            condition = f"deadline < ? AND (changed_at < ?{today}) AND outcome IS NOT NULL"
            latest = connection.execute(f"SELECT max(deadline) FROM attempts WHERE {condition}", old).fetchone()[0]  # noqa: S608
            dead = connection.execute("SELECT max(deadline) FROM tombstones WHERE deadline < ?", old[:1]).fetchone()[0]
            forgotten = max(float(self._meta("forgotten_deadline")), latest or 0, dead or 0)
            _set_meta(connection, "forgotten_deadline", repr(forgotten))
            connection.execute("DELETE FROM tombstones WHERE deadline < ?", old[:1])
            connection.execute("DELETE FROM commands WHERE expires < ?", old[:1])
            return connection.execute(f"DELETE FROM attempts WHERE {condition}", old).rowcount  # noqa: S608

    # -- within

    def _move(
        self,
        connection: sqlite3.Connection,
        of: tuple[str, int, str],
        following: AttemptState,
        outcome: OutcomeMessage | None,
        now: datetime,
    ) -> None:
        row = connection.execute(f"SELECT state FROM attempts WHERE {_IT}", of).fetchone()  # noqa: S608
        if row is None:
            raise IllegalMove(f"attempt {of[0]}/{of[1]} is not in the journal")
        connection.execute(
            f"UPDATE attempts SET state = ?, changed_at = ?, outcome = ? WHERE {_IT}",  # noqa: S608
            (
                move(AttemptState(row[0]), following),
                now.timestamp(),
                outcome.model_dump_json(exclude_none=True) if outcome else None,
                *of,
            ),
        )

    def _select(self, condition: str, *arguments: Any) -> list[Entry]:
        with _translated():
            query = f"SELECT {_COLUMNS} FROM attempts WHERE {condition}"  # noqa: S608 (conditions are constants)
            return [_entry(row) for row in self._connection.execute(query, arguments)]

    def _meta(self, key: str) -> str:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"the journal has no {key}")
        return str(row[0])

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with _translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, OverflowError) as error:  # ValueError: a row that is no attempt
        raise JournalUnavailable(f"the journal cannot be used: {error}") from error


def _set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (key, value),
    )


def _note(connection: sqlite3.Connection, said: Said | None) -> None:
    """Of one key no more are kept than this: what is noted now can act twice without harm, so nothing depends on it."""
    if said is None:
        return
    count = connection.execute("SELECT count(*) FROM commands WHERE kid = ?", (said.kid,)).fetchone()[0]
    if count < MAX_COMMANDS_OF_A_KEY:
        connection.execute(
            "INSERT OR IGNORE INTO commands (kid, id, expires) VALUES (?, ?, ?)",
            (said.kid, said.command_id, said.expires.timestamp()),
        )


def _entry(row: tuple[Any, ...]) -> Entry:
    run_id, attempt, trigger_hash, coordinator, name, targets, state, issued_at, deadline, changed_at, kid, outcome = (
        row
    )
    return Entry(
        run_id,
        attempt,
        trigger_hash,
        coordinator,
        name,
        Targets.model_validate_json(targets),
        AttemptState(state),
        _time(issued_at),
        _time(deadline),
        _time(changed_at),
        OutcomeMessage.model_validate_json(outcome) if outcome is not None else None,
        str(kid),
    )


def _latest_deadline(now: datetime) -> datetime:
    """No deadline that we accept lies further ahead; what a sender says beyond it shall not keep a row for ever."""
    return now + timedelta(seconds=MAX_START_WINDOW_SECONDS + CLOCK_TOLERANCE_SECONDS)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
