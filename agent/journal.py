"""The journal: what was received, started, finished and delivered, in SQLite.

It is the record of a pod: whatever is not in it was never acknowledged, and nothing runs that it could not write
down first. One file a pod uid, so a successor of the same name never speaks for its predecessor. All calls block
(0.2 ms for a write on a good disk) and belong on one thread: see `JournalThread`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from agent.contract.errors import IllegalMove, JournalLocked, JournalNewer, JournalUnavailable
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    MAX_START_WINDOW_SECONDS,
    OutcomeMessage,
    Targets,
    Trigger,
)
from agent.contract.states import FIRST_STATES, AttemptState, move

SCHEMA_VERSION = 1
#: Outcomes are kept for a day (DESIGN: Delivery 2), ids until deadline + 30 s at least.
KEEP_OUTCOMES_SECONDS = 24 * 3600
MAX_ROWS = 20_000
MAX_BYTES = 64 * 1024 * 1024
_PAGE_BYTES = 4096

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE attempts (
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    trigger_hash TEXT NOT NULL,
    coordinator TEXT NOT NULL,
    name TEXT NOT NULL,
    targets TEXT NOT NULL,
    state TEXT NOT NULL,
    deadline REAL NOT NULL,
    changed_at REAL NOT NULL,
    outcome TEXT,
    delivered INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, attempt)
) WITHOUT ROWID;
CREATE INDEX undelivered ON attempts (changed_at) WHERE outcome IS NOT NULL AND delivered = 0;
CREATE TABLE tombstones (
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    deadline REAL NOT NULL,
    PRIMARY KEY (run_id, attempt)
) WITHOUT ROWID;
"""
_COLUMNS = "run_id, attempt, trigger_hash, coordinator, name, targets, state, deadline, changed_at, outcome"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt as recorded. `outcome` is set once it has ended."""

    run_id: str
    attempt: int
    trigger_hash: str
    coordinator: str
    name: str
    targets: Targets
    state: AttemptState
    deadline: datetime
    changed_at: datetime
    outcome: OutcomeMessage | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What the journal remembers about an attempt that is asked for, and how far its memory reaches.

    `floor`: triggers issued before it may have been seen and forgotten. `forgotten_deadline`: the latest deadline
    of an id that was thrown away. `entries`: every attempt of the run, lowest first.
    """

    entries: tuple[Entry, ...]
    tombstoned: bool
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
        self.client_suffix = self._meta("client_suffix")

    @classmethod
    def open(cls, directory: Path, pod_uid: str, *, now: datetime) -> Journal:
        """Open the journal of a pod in `directory`, or make it; a corrupt one is set aside, never deleted.

        Raises:
            JournalUnavailable: no room, no right, or another agent has it open.
            JournalNewer: written by a newer podhook; left untouched.
        """
        path = directory / f"journal-{_file_safe(pod_uid)}.sqlite3"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalUnavailable(f"cannot use state directory {directory}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise JournalLocked(
                    f"another agent has {path} open; give each agent its own state directory"
                ) from error
            try:
                return cls._opened(path, lock, now, reset_from=None)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                return cls._opened(path, lock, now, reset_from=_set_aside(path, now))
        except (sqlite3.Error, OSError) as error:
            os.close(lock)
            raise JournalUnavailable(f"cannot open journal {path}: {error}") from error
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _opened(cls, path: Path, lock: int, now: datetime, *, reset_from: Path | None) -> Journal:
        connection = _connect(path, now)
        try:
            journal = cls(connection, lock, reset_from=reset_from)
            for row in connection.execute(f"SELECT {_COLUMNS} FROM attempts"):  # noqa: S608
                _entry(row)  # SQLite has no checksums: a row that is no attempt is found here or at work
        except (ValueError, TypeError, OverflowError) as error:
            connection.close()
            raise sqlite3.DatabaseError(f"damaged: {error}") from error
        except BaseException:
            connection.close()
            raise
        return journal

    def close(self) -> None:
        """Close it; what was committed stays."""
        self._connection.close()
        os.close(self._lock)

    # -- what is known

    def remember(self, run_id: str, attempt: int | None) -> Memory:
        """Everything known about a run, and whether this attempt of it is tombstoned."""
        with _translated():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM attempts WHERE run_id = ? ORDER BY attempt",  # noqa: S608
                (run_id,),
            ).fetchall()
            dead = self._connection.execute(
                "SELECT 1 FROM tombstones WHERE run_id = ? AND attempt = ?", (run_id, attempt)
            ).fetchone()
            return Memory(
                tuple(_entry(row) for row in rows),
                dead is not None,
                _time(float(self._meta("floor"))),
                _time(float(self._meta("forgotten_deadline"))),
            )

    def unfinished(self) -> list[Entry]:
        """Attempts that had not ended: after a restart, those that a crash interrupted."""
        return self._select("outcome IS NULL")

    def undelivered(self, limit: int) -> list[Entry]:
        """Outcomes that the broker does not have yet, oldest first."""
        return self._select("outcome IS NOT NULL AND delivered = 0 ORDER BY changed_at LIMIT ?", limit)

    # -- what happens

    def admit(
        self,
        trigger: Trigger,
        trigger_hash: str,
        state: AttemptState,
        outcome: OutcomeMessage | None,
        now: datetime,
    ) -> None:
        """Record a trigger in its first state; a refused one with its outcome."""
        if state not in FIRST_STATES or state.ended != (outcome is not None):
            raise IllegalMove(f"an attempt cannot begin as {state} {'with' if outcome else 'without'} an outcome")
        with self._write() as connection:
            rows = connection.execute("SELECT count(*) FROM attempts").fetchone()[0]
            if rows >= MAX_ROWS:
                raise JournalUnavailable(
                    f"the journal is full: {rows} attempts, the limit is {MAX_ROWS}; the oldest go after 24 h"
                )
            connection.execute(
                f"INSERT INTO attempts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (
                    trigger.run_id,
                    trigger.attempt,
                    trigger_hash,
                    trigger.coordinator,
                    trigger.name,
                    trigger.targets.model_dump_json(),
                    state,
                    min(trigger.deadline, _latest_deadline(now)).timestamp(),
                    now.timestamp(),
                    outcome.model_dump_json(exclude_none=True) if outcome else None,
                ),
            )

    def start(self, run_id: str, attempt: int, now: datetime) -> None:
        """A ready attempt starts.

        Raises:
            IllegalMove: it was not ready.
        """
        with self._write() as connection:
            self._move(connection, run_id, attempt, AttemptState.STARTED, None, now)

    def finish(self, run_id: str, attempt: int, outcome: OutcomeMessage, now: datetime) -> None:
        """An attempt ends.

        Raises:
            IllegalMove: it had ended before, or its state cannot end so.
        """
        with self._write() as connection:
            self._move(connection, run_id, attempt, AttemptState(outcome.outcome), outcome, now)

    def tombstone(self, run_id: str, attempt: int, deadline: datetime, now: datetime) -> None:
        """Make sure that this attempt never starts, if it was never seen. Kept until deadline + 30 s."""
        with self._write() as connection:
            connection.execute(
                "INSERT INTO tombstones (run_id, attempt, deadline) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET deadline = max(deadline, excluded.deadline)",
                (run_id, attempt, min(deadline, _latest_deadline(now)).timestamp()),
            )

    def delivered(self, run_id: str, attempt: int) -> None:
        """The broker has this outcome: stop publishing it."""
        with self._write() as connection:
            connection.execute("UPDATE attempts SET delivered = 1 WHERE run_id = ? AND attempt = ?", (run_id, attempt))

    def deliver_again(self, run_id: str, attempt: int, coordinator: str) -> None:
        """Somebody asked for this outcome again: it is undelivered once more, to `coordinator`."""
        with self._write() as connection:
            connection.execute(
                "UPDATE attempts SET delivered = 0, coordinator = ? WHERE run_id = ? AND attempt = ?",
                (coordinator, run_id, attempt),
            )

    def raise_floor(self, now: datetime) -> None:
        """Triggers may have been refused without a record until now: refuse whatever was issued before.

        The floor never sinks, whatever the clock does: what is below it may have run.
        """
        with self._write() as connection:
            _set_meta(connection, "floor", repr(max(float(self._meta("floor")), now.timestamp())))

    def prune(self, now: datetime) -> int:
        """Forget what may be forgotten; return how many attempts that were."""
        moment = now.timestamp()
        with self._write() as connection:
            old = (moment - CLOCK_TOLERANCE_SECONDS, moment - KEEP_OUTCOMES_SECONDS)
            condition = "deadline < ? AND changed_at < ? AND outcome IS NOT NULL"
            latest = connection.execute(f"SELECT max(deadline) FROM attempts WHERE {condition}", old).fetchone()[0]  # noqa: S608
            dead = connection.execute("SELECT max(deadline) FROM tombstones WHERE deadline < ?", old[:1]).fetchone()[0]
            forgotten = max(float(self._meta("forgotten_deadline")), latest or 0, dead or 0)
            _set_meta(connection, "forgotten_deadline", repr(forgotten))
            connection.execute("DELETE FROM tombstones WHERE deadline < ?", old[:1])
            return connection.execute(f"DELETE FROM attempts WHERE {condition}", old).rowcount  # noqa: S608

    # -- within

    def _move(
        self,
        connection: sqlite3.Connection,
        run_id: str,
        attempt: int,
        following: AttemptState,
        outcome: OutcomeMessage | None,
        now: datetime,
    ) -> None:
        row = connection.execute(
            "SELECT state FROM attempts WHERE run_id = ? AND attempt = ?", (run_id, attempt)
        ).fetchone()
        if row is None:
            raise IllegalMove(f"attempt {run_id}/{attempt} is not in the journal")
        connection.execute(
            "UPDATE attempts SET state = ?, changed_at = ?, outcome = ? WHERE run_id = ? AND attempt = ?",
            (
                move(AttemptState(row[0]), following),
                now.timestamp(),
                outcome.model_dump_json(exclude_none=True) if outcome else None,
                run_id,
                attempt,
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


class JournalThread:
    """Runs a journal's calls on one thread of its own, in order: a slow disk must not hold up the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal | None:
        """The open journal, for what was read when it was opened; None while there is none."""
        return self._journal

    async def open(self, directory: Path, pod_uid: str, now: datetime) -> Journal:
        """Open it (again). Raises what `Journal.open` raises."""
        loop = asyncio.get_running_loop()
        self._journal = await loop.run_in_executor(self._executor, lambda: Journal.open(directory, pod_uid, now=now))
        return self._journal

    async def call(self, method: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `method` of the journal. It goes through to its end even if the caller is cancelled.

        Raises:
            JournalUnavailable: it is not open, or could not be read or written.
        """
        if self._journal is None:
            raise JournalUnavailable("the journal is not open")
        journal = self._journal
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, lambda: method(journal, *args, **kwargs))
        return await asyncio.shield(work)  # a cancelled future would take what waits out of the queue

    async def close(self) -> None:
        """Close the journal and end the thread."""
        if self._journal is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._journal.close)
            self._journal = None
        self._executor.shutdown(wait=False)


def _connect(path: Path, now: datetime) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its -wal and -shm get the same mode
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalNewer(
                f"journal {path} has schema {version}, this podhook knows up to {SCHEMA_VERSION}; upgrade the agent"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledgement goes out next: it must be on disk
        connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // _PAGE_BYTES}")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                if statement.strip():
                    connection.execute(statement)
            born = repr(now.timestamp())
            for key, value in (
                ("born_at", born),
                ("floor", born),
                ("forgotten_deadline", "0.0"),
                ("client_suffix", secrets.token_hex(6)),
            ):
                _set_meta(connection, key, value)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        elif (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"damaged: {verdict}")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is at fault, and not the disk, a lock or a right: waiting will not mend it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # found by us, or text that is not UTF-8
        return True
    damaged = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # ERROR: a table is missing
    return code & 0xFF in damaged or code == sqlite3.SQLITE_IOERR_SHORT_READ


def _set_aside(path: Path, now: datetime) -> Path:
    aside = path.with_name(f"{path.name}.corrupt-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


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


def _entry(row: tuple[Any, ...]) -> Entry:
    run_id, attempt, trigger_hash, coordinator, name, targets, state, deadline, changed_at, outcome = row
    return Entry(
        run_id,
        attempt,
        trigger_hash,
        coordinator,
        name,
        Targets.model_validate_json(targets),
        AttemptState(state),
        _time(deadline),
        _time(changed_at),
        OutcomeMessage.model_validate_json(outcome) if outcome is not None else None,
    )


def _latest_deadline(now: datetime) -> datetime:
    """No deadline that we accept lies further ahead; what a sender says beyond it shall not keep a row for ever."""
    return now + timedelta(seconds=MAX_START_WINDOW_SECONDS + CLOCK_TOLERANCE_SECONDS)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _file_safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", text)[:128]
